"""A deployed folder's manifest: what the model is, and the size and hash of each file; verified when it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterlab import __version__
from adapterlab.adapter_folder import CONFIG as ADAPTER
from adapterlab.adapter_folder import read_json
from adapterlab.errors import AdapterLabError, DeployedFolderError, unknown_name
from adapterlab.serving.quantizing import SCHEMES

MANIFEST = "adapterlab.json"
# int8 has a name that transformers alone doesn't look for: it would take bytes for numbers
WEIGHTS = {None: "model.safetensors", "int8": "int8.safetensors"}
FORMAT = 1  # of a deployed folder


def finish(place: Path, content: Mapping[str, Any]) -> None:
    """Write a folder's manifest over all that is in it now."""
    files = {
        path.relative_to(place).as_posix(): {"size": path.stat().st_size, "sha256": _hash(path)}
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(place / MANIFEST, {**content, "files": files})


def is_deployed(folder: Path) -> bool:
    """Whether a folder looks like one that `save_deployed` wrote: an adapter's has no weights of a whole model."""
    has_weights = any((folder / name).is_file() for name in WEIGHTS.values())
    return (folder / MANIFEST).is_file() and has_weights and not (folder / ADAPTER).is_file()


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return what a deployed folder says of itself, once its files are found to be those that were written.

    Raises:
        DeployedFolderError: it is none, of a newer format, or a file is missing, cut short or changed.
    """
    folder = Path(folder)
    if not is_deployed(folder):
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no folder at all"
        raise DeployedFolderError(
            f"'{folder}' is no deployed folder: it lacks {MANIFEST}, or {' or '.join(WEIGHTS.values())} (it holds "
            f"{held or 'nothing'}). Make one of a run: adapterlab quantize RUN OUT."
        )
    try:
        manifest = read_json(folder / MANIFEST)
    except AdapterLabError as error:
        raise DeployedFolderError(str(error)) from None
    if not isinstance(manifest.get("format"), int) or manifest["format"] > FORMAT:
        raise DeployedFolderError(
            f"{folder / MANIFEST} is of format {manifest.get('format')!r} (written by adapterlab "
            f"{manifest.get('adapterlab', '?')}), and this adapterlab {__version__} reads {FORMAT}: upgrade it."
        )
    scheme = manifest.get("scheme", "")
    if not isinstance(scheme, str | None) or scheme not in WEIGHTS:
        raise DeployedFolderError(f"{folder / MANIFEST}: {unknown_name('scheme', str(scheme), SCHEMES)}")
    _verify(folder, manifest.get("files"), WEIGHTS[scheme])
    return manifest


def mapping(manifest: Mapping[str, Any], key: str, folder: Path) -> dict[str, Any]:
    found = manifest.get(key, {})
    if not isinstance(found, dict):
        raise DeployedFolderError(f"{folder / MANIFEST}: {key} must be a mapping, and is a {type(found).__name__}.")
    return found


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def _verify(folder: Path, files: Any, weights: str) -> None:
    if not isinstance(files, dict) or not {weights, "config.json"} <= files.keys():
        raise DeployedFolderError(f"{folder / MANIFEST} doesn't list the folder's files: it was changed or cut short.")
    for name, known in files.items():
        path = folder / name
        if not isinstance(known, dict):
            raise DeployedFolderError(f"{folder / MANIFEST}: files.{name} must have a size and a sha256.")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DeployedFolderError(f"{folder / MANIFEST} names a file outside of the folder: {name!r}.")
        if not path.is_file():
            raise DeployedFolderError(f"'{folder}' lacks {name}. Get the folder again.")
        if path.stat().st_size != known.get("size"):
            raise DeployedFolderError(
                f"{path} has {path.stat().st_size:,} bytes, and was written with {known.get('size'):,}: it is cut "
                "short, or another one. Get the folder again."
            )
        if _hash(path) != known.get("sha256"):
            raise DeployedFolderError(f"{path} isn't what was written: its sha256 differs. Get the folder again.")
