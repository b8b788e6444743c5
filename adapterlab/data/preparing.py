"""Preparing: rows to model inputs, in several processes where that pays, kept on disk for the next run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adapterlab.data.sources import bars_only_on_terminal
from adapterlab.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_WORTH_KEEPING = 5_000  # rows: fewer are prepared again as fast as they are looked up
_WORTH_A_PROCESS = 20_000  # rows that a process must have to do, to be worth starting
_MOST = 8  # processes
_KEPT = 30 * 24 * 3600  # seconds after its last use that a file in the shared cache is kept
_VERSIONS = ("adapterlab", "datasets", "tokenizers", "transformers")


@dataclass(frozen=True)
class Preparation:
    """What a recipe's `data` section says of preparing rows. As it stands: in this process, in memory, texts cut."""

    workers: int | Literal["auto"] = 1
    cache: bool | str = False
    long_texts: str = "cut"
    stride: int = 32


def encode_rows(
    dataset: Dataset,
    function: Callable[..., dict[str, Any]],
    *,
    description: str,
    fingerprint: Sequence[Any] = (),
    workers: int | Literal["auto"] = 1,
    cache: bool | str = False,
    with_indices: bool = False,
) -> Dataset:
    """Replace rows by what a function makes of them, in batches, with a progress bar on a terminal.

    Args:
        dataset: the rows.
        function: takes a batch as columns and returns other columns, of the same length or not; it must depend on
            nothing but the batch, its own package's code and what `fingerprint` names.
        description: beside the bar.
        fingerprint: what the outcome depends on besides rows and code (the tokenizer's identity, options, lengths),
            as JSON can hold it.
        workers: processes; "auto" starts one for every 20,000 rows, as far as there are cores.
        cache: True keeps the outcome of 5,000 rows or more in the cache of `datasets` (HF_DATASETS_CACHE), for thirty
            days after its last use; a path keeps every outcome in that folder; False keeps nothing.
        with_indices: give the function the rows' numbers as its second argument.

    Raises:
        DataError: the folder named can't be written.
    """
    processes = _processes(workers, len(dataset))
    file = _cache_file(dataset, function, fingerprint, cache)
    with bars_only_on_terminal(), _tokenizers_alone(processes > 1):
        encoded = dataset.map(
            function,
            batched=True,
            with_indices=with_indices,
            remove_columns=dataset.column_names,
            num_proc=processes if processes > 1 else None,
            keep_in_memory=file is None,
            load_from_cache_file=file is not None,
            cache_file_name=str(file) if file else None,
            # spares hashing the tokenizer
            new_fingerprint=file.stem if file else uuid.uuid4().hex,
            desc=description,
        )
    if file is not None:
        _keep_house(file, shared=cache is True)
    return encoded


def _processes(workers: int | Literal["auto"], rows: int) -> int:
    if workers != "auto":
        return max(1, min(workers, rows))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, rows // _WORTH_A_PROCESS, _MOST))


def _cache_file(
    dataset: Dataset, function: Callable[..., Any], fingerprint: Sequence[Any], cache: bool | str
) -> Path | None:
    """Return where the outcome is, or will be; None keeps it in memory."""
    import datasets

    if cache is False or (cache is True and len(dataset) < _WORTH_KEEPING):
        return None
    code = _code_of(function)
    if code is None:
        return None
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "adapterlab" if cache is True else Path(cache).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        if cache is True:
            return None  # a home that can't be written to is no reason not to train
        raise DataError(f"data.cache: the folder '{cache}' can't be written. Give another, or true or false.")
    parts = [_content_of(dataset), code, json.dumps(list(fingerprint), sort_keys=True, default=str)]
    parts += [f"{name} {_version(name)}" for name in _VERSIONS]
    return folder / f"{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:40]}.arrow"


def _content_of(dataset: Dataset) -> str:
    """Return a digest of the rows' values."""
    import pyarrow  # type: ignore[import-untyped]

    class Digest:
        """Takes what Arrow writes, and keeps none of it."""

        closed = False

        def __init__(self) -> None:
            self.sha = hashlib.sha256()

        def write(self, data: Any) -> None:
            self.sha.update(data)

    sink = Digest()
    table = dataset.with_format("arrow")[:]
    bare = table.replace_schema_metadata(None)
    with pyarrow.ipc.new_stream(pyarrow.PythonFile(sink, mode="w"), bare.schema) as writer:
        writer.write_table(bare.combine_chunks())
    return sink.sha.hexdigest()


def _code_of(function: Callable[..., Any]) -> str | None:
    """Return a digest of the function's module and those beside it, or None where there is no file."""
    source = inspect.getsourcefile(function)
    if source is None or not Path(source).is_file():
        return None
    digest = hashlib.sha256(f"{function.__module__}.{function.__qualname__}".encode())
    for file in sorted(Path(source).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@contextmanager
def _tokenizers_alone(alone: bool) -> Iterator[None]:
    """Keep tokenizers from threads of their own in processes that share the cores."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    if alone:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if alone and before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        elif before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _keep_house(file: Path, *, shared: bool) -> None:
    """Mark what was used, and take away what nobody used for long from the cache that all runs share."""
    for used in file.parent.glob(f"{file.stem}*"):
        with suppress(OSError):
            used.touch()
    for old in file.parent.glob("*.arrow") if shared else ():
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > _KEPT:
                old.unlink()
