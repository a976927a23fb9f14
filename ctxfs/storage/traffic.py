"""What passes between this process and a store: requests counted by kind, and bytes a second bounded.

Owns the kinds, the counters and the arithmetic of the bounds. Both lie in memory that processes may share, so that all of a mount keep one
bound, and whoever wants the counts just reads them. It must not know requests or sockets: it is told, and says how long to wait.

A bound is a clock that each byte moves on, and that whoever sends or receives waits for (the token bucket, written as the time when the next
token is there). What a program waits for has a clock of its own, which moves the common one along: it gets the whole rate, however many others
wait, and they get what is left.
"""
from __future__ import annotations

import contextlib
import enum
import threading
import time
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from ctxfs.storage import fibers


class Kind(enum.IntEnum):
    """What a request is for. DELETE is one of any number of objects, PART the bytes of an upload in parts, MULTIPART its begin and end."""
    GET = 0
    PUT = 1
    LIST = 2
    HEAD = 3
    DELETE = 4
    COPY = 5
    PART = 6
    MULTIPART = 7
    OTHER = 8


#: upper bounds of the histogram of durations, in seconds; one more cell counts what took longer
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COUNT, _ERRORS, _RETRIES, _SENT, _RECEIVED, _SECONDS, _BUCKETS = range(7)
_FIELDS = _BUCKETS + len(BOUNDS) + 1
#: cells of the counters of one process, and of the bound in one direction
COUNTER_CELLS = len(Kind) * _FIELDS
BUDGET_CELLS = 2

Cells = MutableSequence[float]


class Limits(NamedTuple):
    """Bytes a second; 0: no bound."""
    upload: float = 0.0
    download: float = 0.0


class Tally(NamedTuple):
    """Of one kind. `errors` got no answer, or one that says that something is wrong (that there is no such object, or that it is another version,
    is an answer); `retries` were made again after that. `buckets` are counts by BOUNDS, not summed up."""
    requests: int
    errors: int
    retries: int
    sent: int
    received: int
    seconds: float
    buckets: tuple[int, ...]


class Counters:
    """One process writes them, any number may read. Thread-safe."""

    def __init__(self, cells: Cells | None = None) -> None:
        self._cells: Cells = [0.0] * COUNTER_CELLS if cells is None else cells
        self._lock = threading.Lock()

    def note(self, kind: Kind, *, seconds: float, sent: int, received: int, is_error: bool) -> None:
        """A request has ended."""
        at, cells = kind * _FIELDS, self._cells
        bucket = next((number for number, bound in enumerate(BOUNDS) if seconds <= bound), len(BOUNDS))
        with self._lock:
            cells[at + _COUNT] += 1
            cells[at + _ERRORS] += is_error
            cells[at + _SENT] += sent
            cells[at + _RECEIVED] += received
            cells[at + _SECONDS] += seconds
            cells[at + _BUCKETS + bucket] += 1

    def note_retry(self, kind: Kind) -> None:
        with self._lock:
            self._cells[kind * _FIELDS + _RETRIES] += 1


def tallies(counters: list[Cells]) -> dict[Kind, Tally]:
    """Sums over processes, of the kinds that there were."""
    found = {}
    for kind in Kind:
        at = kind * _FIELDS
        sums = [sum(cells[at + field] for cells in counters) for field in range(_FIELDS)]
        if sums[_COUNT]:
            found[kind] = Tally(int(sums[_COUNT]), int(sums[_ERRORS]), int(sums[_RETRIES]), int(sums[_SENT]), int(sums[_RECEIVED]),
                                sums[_SECONDS], tuple(map(int, sums[_BUCKETS:])))
    return found


class Budget:
    """One direction. `cells` and `lock` may be shared with other processes: CLOCK_MONOTONIC is the same for all of them."""

    #: what was not used so long ago may be used now, on top
    BURST_SECONDS = 0.1
    #: bytes after which the others have their turn
    PIECE_MOST = 256 << 10
    PIECE_LEAST = 4 << 10

    def __init__(self, rate: float, cells: Cells | None = None, lock: AbstractContextManager[Any] | None = None, *,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._cells: Cells = [0.0] * BUDGET_CELLS if cells is None else cells
        self._lock = threading.Lock() if lock is None else lock
        self._clock = clock

    @property
    def piece(self) -> int:
        """Bytes to move in one go."""
        return int(min(self.PIECE_MOST, max(self.PIECE_LEAST, self._rate * self.BURST_SECONDS))) if self._rate else self.PIECE_MOST

    def take(self, count: int, *, is_urgent: bool = False) -> tuple[float, float]:
        """Account `count` bytes; (seconds until they may begin, seconds until they may have passed)."""
        if not self._rate:
            return 0.0, 0.0
        cost = count / self._rate
        with self._lock:
            now = self._clock()
            oldest = now - self.BURST_SECONDS
            begins = max(self._cells[0], oldest)
            self._cells[0] = begins + cost
            if is_urgent:
                begins = max(self._cells[1], oldest)
                self._cells[1] = begins + cost
        return max(0.0, begins - now), max(0.0, begins + cost - now)


class Traffic:
    """Counters and bounds of this process's requests. Thread-safe."""

    #: less than this waits for nobody: an answer's header
    SMALL = 1 << 10

    def __init__(self, counters: Counters | None = None, *, upload: Budget | None = None, download: Budget | None = None,
                 sleep: Callable[[float], object] = fibers.sleep) -> None:
        self.counters = counters or Counters()
        self._upload = upload or Budget(0.0)
        self._download = download or Budget(0.0)
        self._sleep = sleep
        self._here = threading.local()

    @property
    def piece_up(self) -> int:
        return self._upload.piece

    @property
    def piece_down(self) -> int:
        return self._download.piece

    def before_sending(self, count: int, *, may_wait: bool = True) -> float:
        """Wait until so many bytes may go; how long that was. Those who may not wait are accounted, and others wait for it."""
        wait, _ = self._upload.take(count)
        return self._wait(wait) if may_wait and count else 0.0

    def received(self, count: int) -> float:
        """So many bytes have come: wait until they may have; how long that was."""
        _, wait = self._download.take(count, is_urgent=not getattr(self._here, 'is_leisurely', False))
        return self._wait(wait) if count > self.SMALL else 0.0

    def _wait(self, seconds: float) -> float:
        if seconds > 0:
            self._sleep(seconds)
        return seconds

    @contextlib.contextmanager
    def leisurely(self) -> Iterator[None]:
        """What this thread receives in the block nobody waits for."""
        self._here.is_leisurely = True
        try:
            yield
        finally:
            self._here.is_leisurely = False
