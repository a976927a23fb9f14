"""What the transfer workers did: operations, failures, bytes up and down, and how fast that goes just now.

Owns the counters of one pool and the window over which a rate is taken. It must not know workers or the pipe: the pool tells it.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ctxfs.sync.archive_protocol import CommitDone, SendDone
from ctxfs.sync.protocol import PutBytes, PutDone, PutFile, PutMany, PutManyDone, SegmentDone

#: seconds over which a rate is taken: long enough that a part of a multipart upload does not look like a burst
WINDOW = 5


class Rate:
    """Counts per second over the last WINDOW seconds, in buckets of a second: adding costs the same however often it is done."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._buckets = dict.fromkeys(range(WINDOW + 1), 0)
        self._newest = int(self._began)

    def _advance(self) -> int:
        now = int(self._clock())
        for second in range(max(self._newest, now - WINDOW - 1) + 1, now + 1):
            self._buckets[second % (WINDOW + 1)] = 0
        self._newest = now
        return now

    def add(self, count: int) -> None:
        self._buckets[self._advance() % (WINDOW + 1)] += count

    def per_second(self) -> float:
        """Of the running second and the WINDOW - 1 before it; of less when less has passed."""
        now = self._advance()
        total = sum(self._buckets.values()) - self._buckets[(now - WINDOW) % (WINDOW + 1)]
        return total / max(1.0, min(WINDOW, self._clock() - self._began))


class TransferMeter:
    """See the module docstring. `clock`: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.uploaded = 0
        self.downloaded = 0
        self._calls: dict[str, int] = {}
        self._failures: dict[str, int] = {}
        self._up, self._down = Rate(clock), Rate(clock)

    def began(self, operation: Any) -> None:
        name, count = _counted(operation)
        self._calls[name] = self._calls.get(name, 0) + count

    def failed(self, operation: Any, count: int | None = None) -> None:
        """All of it, or so many of a batch."""
        name, most = _counted(operation)
        if failed := most if count is None else count:
            self._failures[name] = self._failures.get(name, 0) + failed

    def moved(self, operation: Any, count: int) -> None:
        """`count` more bytes of a running operation have moved."""
        if isinstance(operation, (PutFile, PutMany, PutBytes)):
            self.uploaded += count
            self._up.add(count)
        else:
            self.downloaded += count
            self._down.add(count)

    def ended(self, operation: Any, result: Any, *, noted: int) -> None:
        """The operation's result is there; `noted` of its bytes were told by `moved` already (more, where an attempt was repeated)."""
        if isinstance(result, SegmentDone | SendDone | CommitDone):
            self.uploaded += result.size
            self._up.add(result.size)
            return
        if isinstance(result, PutManyDone):
            self.failed(operation, sum(item.failure is not None for item in result.items))
            size = sum(_sent_bytes(item.done) for item in result.items if item.done is not None)
        else:
            size = _sent_bytes(result) if isinstance(result, PutDone) else getattr(result, 'fetched', 0)
        if size > noted:
            self.moved(operation, size - noted)

    def rates(self) -> dict[str, int]:
        """Bytes a second."""
        return {'uploadBytes': round(self._up.per_second()), 'downloadBytes': round(self._down.per_second())}

    def to_dict(self) -> dict[str, Any]:
        operations = {name: {'calls': calls, 'failed': self._failures.get(name, 0)} for name, calls in sorted(self._calls.items())}
        return {'operations': operations, 'bytesUploaded': self.uploaded, 'bytesDownloaded': self.downloaded}


def _counted(operation: Any) -> tuple[str, int]:
    """What it counts as, and for how many: a batch is as many uploads as it has files."""
    return (PutFile.__name__, len(operation.files)) if isinstance(operation, PutMany) else (type(operation).__name__, 1)


def _sent_bytes(done: PutDone) -> int:
    return 0 if done.is_skipped or done.is_aborted else done.size
