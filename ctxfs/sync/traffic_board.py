"""The memory in which all workers of a mount count their requests and keep the mount's bounds on bytes a second.

Owns its layout and its lock. It must not know what is counted (storage.traffic). A worker that is killed leaves its counts, and the next one
in its place goes on with them; a lock that it held the kernel gives back.

    bound of uploads, of downloads │ counters of worker 0 │ counters of worker 1 │ …
"""
from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
from typing import Any

from ctxfs.storage.traffic import BUDGET_CELLS, COUNTER_CELLS, Budget, Cells, Counters, Kind, Limits, Tally, Traffic, tallies

_CELL = 8
_BOUNDS = 2 * BUDGET_CELLS


def _cells_of(memory: mmap.mmap, start: int, count: int) -> Any:
    return memoryview(memory).cast('d')[start:start + count]


class TrafficBoard:
    """The daemon's view: made before the workers, read at any time."""

    def __init__(self, workers: int) -> None:
        self.fd = os.memfd_create('ctxfs-traffic', os.MFD_CLOEXEC)
        size = (_BOUNDS + workers * COUNTER_CELLS) * _CELL
        os.ftruncate(self.fd, size)
        memory = mmap.mmap(self.fd, size)
        self._counters: list[Cells] = [_cells_of(memory, _BOUNDS + number * COUNTER_CELLS, COUNTER_CELLS) for number in range(workers)]

    def tallies(self) -> dict[Kind, Tally]:
        """Since the mount began."""
        return tallies(self._counters)

    def close(self) -> None:
        os.close(self.fd)


def traffic_of(fd: int, number: int, limits: Limits) -> Traffic:
    """What worker `number` counts and waits by; the bounds are those of all workers together."""
    memory = mmap.mmap(fd, os.fstat(fd).st_size)
    lock = _SharedLock(fd)
    up, down = (Budget(rate, _cells_of(memory, at * BUDGET_CELLS, BUDGET_CELLS), lock) for at, rate in enumerate(limits))
    return Traffic(Counters(_cells_of(memory, _BOUNDS + number * COUNTER_CELLS, COUNTER_CELLS)), upload=up, download=down)


class _SharedLock(contextlib.AbstractContextManager[None]):
    """Between threads and processes: a lock of the file is the process's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._threads = threading.Lock()

    def __enter__(self) -> None:
        self._threads.acquire()
        fcntl.lockf(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *exc: object) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN)
        self._threads.release()
