"""The C library's allocator, told what PyTorch on the CPU needs of it."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# malloc.h of the GNU C library.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MEGABYTE = 1 << 20


_lock, _depth = threading.Lock(), 0


@contextmanager
def freed_memory_kept(*, give_back: bool = True) -> Iterator[None]:
    """Within it, freed memory stays with the process; afterwards, when the outermost ends, what is free goes back to the system.

    `give_back` False leaves that to what is freed later: for what is short and may soon come again.

    PyTorch on the CPU takes and frees maps of tens of megabytes in every step. GNU malloc hands blocks of 32 MB and more
    back at once, and the system must clear every page of the next one: a fifth of the processor time of a bottom-heavy
    ResNet-18 of half the width on images of 256x320, and of that of a small detector on one of 1024x1280. Nothing happens on
    other C libraries, or where the environment tunes malloc itself.
    """
    mallopt = _mallopt()
    if mallopt is None:
        yield
        return
    if _enter() == 1:
        mallopt(_MMAP_THRESHOLD, 1024 * _MEGABYTE)
        mallopt(_TRIM_THRESHOLD, -1)  # never
        mallopt(_TOP_PAD, 64 * _MEGABYTE)
    try:
        yield
    finally:
        if _leave() == 0:
            # Where GNU malloc's own adjustment ends, and its default.
            mallopt(_MMAP_THRESHOLD, 32 * _MEGABYTE)
            mallopt(_TRIM_THRESHOLD, 64 * _MEGABYTE)
            mallopt(_TOP_PAD, _MEGABYTE // 8)
            if give_back:
                ctypes.CDLL(None).malloc_trim(0)


def _enter() -> int:
    global _depth
    with _lock:
        _depth += 1
        return _depth


def _leave() -> int:
    global _depth
    with _lock:
        _depth -= 1
        return _depth


def _mallopt() -> Callable[[int, int], int] | None:
    if not sys.platform.startswith("linux") or any(
        name.startswith("MALLOC_") or (name == "GLIBC_TUNABLES" and "malloc" in value)
        for name, value in os.environ.items()
    ):
        return None
    library = ctypes.CDLL(None)
    # musl has neither; malloc_trim is what only GNU's library has.
    return library.mallopt if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
