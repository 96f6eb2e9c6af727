"""The C library's allocator, told what a training on the CPU needs of it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# malloc.h of the GNU C library.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MEGABYTE = 1 << 20


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within it, freed memory stays with the process; afterwards what is free goes back to the system.

    PyTorch on the CPU takes and frees maps of tens of megabytes in every step. GNU malloc hands blocks of 32 MB and more
    back at once, and the system must clear every page of the next one: a fifth of the processor time of a bottom-heavy
    ResNet-18 of half the width on images of 256x320. Nothing happens on other C libraries, or where the environment tunes
    malloc itself.
    """
    mallopt = _mallopt()
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, 1024 * _MEGABYTE)
    mallopt(_TRIM_THRESHOLD, -1)  # never
    mallopt(_TOP_PAD, 64 * _MEGABYTE)
    try:
        yield
    finally:
        # Where GNU malloc's own adjustment ends, and its default.
        mallopt(_MMAP_THRESHOLD, 32 * _MEGABYTE)
        mallopt(_TRIM_THRESHOLD, 64 * _MEGABYTE)
        mallopt(_TOP_PAD, _MEGABYTE // 8)
        ctypes.CDLL(None).malloc_trim(0)


def _mallopt() -> Callable[[int, int], int] | None:
    if not sys.platform.startswith("linux") or any(
        name.startswith("MALLOC_") or (name == "GLIBC_TUNABLES" and "malloc" in value)
        for name, value in os.environ.items()
    ):
        return None
    library = ctypes.CDLL(None)
    # musl has neither; malloc_trim is what only GNU's library has.
    return library.mallopt if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
