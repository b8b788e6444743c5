"""Write a folder aside and rename it at the end: it is there whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from adapterlab.errors import AdapterLabError


def check_free(destination: Path, error: type[AdapterLabError]) -> None:
    """Refuse a place that holds something already.

    Raises:
        error: it is a folder that isn't empty, or a file.
    """
    if destination.is_dir() and any(destination.iterdir()):
        raise error(f"'{destination}' isn't empty. Give a folder that doesn't exist yet.")
    if destination.exists() and not destination.is_dir():
        raise error(f"'{destination}' is a file; give a folder to write.")
    if destination.is_symlink() or destination.is_mount() or destination.resolve() == Path.cwd():
        raise error(
            f"'{destination}' can't be replaced by a folder (a link, a mount or the current folder). Give one in it."
        )


@contextmanager
def new_folder(destination: Path, error: type[AdapterLabError]) -> Iterator[Path]:
    """Give a folder to write into, which becomes `destination` at the end of the `with` block; a failure removes it.

    Raises:
        error: as by `check_free`, or it can't be written: a full disk, no permission.
    """
    check_free(destination, error)
    staging = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".tmp-{destination.name}-", dir=destination.parent))
        yield staging
        _open_up(staging)
        if destination.is_dir():
            destination.rmdir()
        staging.replace(destination)
    except (OSError, SafetensorError) as reason:
        said, file = getattr(reason, "strerror", None) or reason, getattr(reason, "filename", None)
        if isinstance(file, str) and staging is not None and not Path(file).is_relative_to(staging.parent):
            raise  # something else that was read in between
        raise error(f"'{destination}' can't be written: {said}.") from reason
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _open_up(folder: Path) -> None:
    """Give what was made for one user alone the permissions that new files have here."""
    umask = os.umask(0)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
