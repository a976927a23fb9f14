"""Memory that is free in this process, given back to the system: what much work took is kept by the allocators for more of it.

Owns the calls that do it. It must not know when: that is for whoever knows that much work has come to its end, because in between it costs
(milliseconds now, and the same pages once more afterwards).

Python's allocator gives back what is empty in pieces of 1 MiB, and its lists of free floats, tuples and frames, which only a full collection
empties, keep many of these from becoming empty (measured: 13 of 149 MB after the listing of 200,000 files). The C library by itself gives back
only what lies at the end of its heap, and when it is told to (`malloc_trim`) everything, but for what lies at the end of the other heaps that it
makes for threads (13 of the 42 MB of a worker that had listed 1,000,000 files): so one heap is all there is.
"""
from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path

#: not worth it for less
WORTH_BYTES = 4 << 20

_M_ARENA_MAX = -8
_libc = ctypes.CDLL(None)
_has_trim = hasattr(_libc, 'malloc_trim')       # glibc


def use_one_heap() -> None:
    """For all threads that there will be. They hold the interpreter's lock for most of what they ask of it, so they do not wait for each other."""
    if _has_trim:
        _libc.mallopt(_M_ARENA_MAX, 1)


def resident() -> int:
    """Bytes of this process that are in memory, the files that it has mapped among them."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


class FreeMemory:
    """See the module docstring. Knows how large the process was when it was made, and after the last time."""

    def __init__(self) -> None:
        self._left = resident()
        #: how often it was worth it
        self.given_back = 0

    def has_grown(self) -> bool:
        """So much since then that it is worth it."""
        return resident() >= self._left + WORTH_BYTES

    def give_back(self) -> None:
        """For a moment when nothing else is to be done: it holds the interpreter for as long as a full collection takes."""
        gc.collect()
        if _has_trim:
            _libc.malloc_trim(0)
        self._left = resident()
        self.given_back += 1
