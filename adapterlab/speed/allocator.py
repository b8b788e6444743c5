"""Keep the memory that a training step frees for the next step, on a CPU under Linux."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for its parameters, in glibc's malloc.h
_LARGEST = 32 * 2**20  # bytes; glibc takes no higher threshold for memory of its own mapping
_OWN_TUNING = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX")


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Let glibc keep what is freed inside the `with` block, and give it back at its end; yield whether it does.

    By default glibc returns large blocks to the kernel as soon as they are free, and the next step's activations, as
    large as the last one's, are mapped and cleared page by page again. Who has tuned malloc by its environment
    variables knows better, and nothing is changed; nor is it where malloc isn't glibc's.
    """
    library = _glibc()
    if library is None or not library.mallopt(_MMAP_THRESHOLD, _LARGEST):
        yield False
        return
    library.mallopt(_TRIM_THRESHOLD, -1)  # never: above a limit of 2 GB, say, a large step would give back each time
    try:
        yield True
    finally:
        # about what glibc itself raises it to where large blocks come and go
        library.mallopt(_TRIM_THRESHOLD, _LARGEST)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux" or any(name in os.environ for name in _OWN_TUNING):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None  # musl has neither
