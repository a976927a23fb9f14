"""What transfer workers answer: one message for each kind of operation, and what such messages are made of.

Owns the results, nothing else: which operation has which is protocol.py's.
"""
from __future__ import annotations

from typing import Any

import msgspec

from ctxfs import errors
from ctxfs.records import Attrs, IndexRecord, ObjectInfo, Stamp
from ctxfs.sync.error_travel import revive


class Message(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=True):
    """Base of all that crosses: encoded as an array, because names would cost more than the values."""


class PutDone(Message, frozen=True, kw_only=True, array_like=True):
    """What became of an upload. At most one flag is set.

    `is_skipped`: the content equals the base version, nothing was sent, `etag` is the base's. `is_aborted`: the slot was set before the
    commit, nothing became visible, `etag` is ''. `is_recovered`: the response was lost or a condition failed, but the object is ours.
    `lifecycle`: what the object carries."""
    etag: str
    size: int
    sha256: str
    lifecycle: str = ''
    is_skipped: bool = False
    is_aborted: bool = False
    is_recovered: bool = False

    @property
    def is_sent(self) -> bool:
        """Whether one request did it: nothing was left out, nothing was asked twice."""
        return not (self.is_skipped or self.is_aborted or self.is_recovered)


class CopyDone(Message, frozen=True, kw_only=True, array_like=True):
    etag: str
    size: int
    lifecycle: str = ''


class ItemFailure(Message, frozen=True, kw_only=True, array_like=True):
    """One item of a batch that failed; `error()` is the exception."""
    key: str
    name: str
    message: str

    def error(self) -> errors.CtxfsError:
        return revive(self.name, self.message)


class HeadItem(Message, frozen=True, kw_only=True, array_like=True):
    """One key of a Head: `info` and `attrs` (symlink target included), or `failure` (NotFound among others). `lifecycle`: what the object
    carries; with `wants_tags` only if its tag says so too, where the store has tags. `sha256`: of the content."""
    key: str
    info: ObjectInfo | None = None
    attrs: Attrs | None = None
    stamp: Stamp | None = None
    lifecycle: str = ''
    failure: ItemFailure | None = None
    sha256: str = ''


class FetchDone(Message, frozen=True, kw_only=True, array_like=True):
    """Blocks [start, stop) are in the cache; `fetched` bytes came from the store (the others were there)."""
    start: int
    stop: int
    fetched: int


class WarmDone(Message, frozen=True, kw_only=True, array_like=True):
    """The first `done` items were dealt with: those numbered in `skipped` did not fit into the budget, `failures` cannot be had (by another
    version in the bucket, among others), all others are in the cache. `cause`: why it stopped before the end; None when its time was over.
    `seconds` were spent in `requests`, `least` of them in the shortest."""
    done: int
    fetched: int
    requests: int
    seconds: float
    least: float = float('inf')
    skipped: list[int] = []
    failures: list[ItemFailure] = []
    cause: ItemFailure | None = None


class HydrateDone(Message, frozen=True, kw_only=True, array_like=True):
    """The file is complete; `fetched` bytes came from the store, the rest from the block cache."""
    size: int
    fetched: int


class AdoptDone(Message, frozen=True, kw_only=True, array_like=True):
    """How many staged files are in the cache now; `missing` are paths that were gone or had another size (not an error)."""
    adopted: int
    missing: list[str]


class IndexPart(Message, frozen=True, kw_only=True, array_like=True):
    """A run of merged index records, sorted by path over the whole stream: `count` of them from `first` to `last`, `objects` of them of objects.
    Packed, because who reads the whole needs each record much later, if at all."""
    first: str
    last: str
    count: int
    objects: int
    packed: bytes

    @classmethod
    def of(cls, records: list[IndexRecord]) -> IndexPart:
        return cls(first=records[0].path, last=records[-1].path, count=len(records), objects=sum(1 for record in records if record.etag),
                   packed=msgspec.msgpack.encode(records))

    def records(self) -> list[IndexRecord]:
        return msgspec.msgpack.decode(self.packed, type=list[IndexRecord])


class IndexDone(Message, frozen=True, kw_only=True, array_like=True):
    """`names`: the index objects that this stream covers (give them as `seen` next time). `segments` and `segment_bytes` / `base_bytes`
    say whether compaction is due; `skipped`: unreadable objects, with the reason."""
    names: list[str]
    segments: int
    segment_bytes: int
    base_bytes: int
    skipped: list[tuple[str, str]]
    is_compaction_due: bool


class ListDone(Message, frozen=True, kw_only=True, array_like=True):
    objects: int
    prefixes: int


class SegmentDone(Message, frozen=True, kw_only=True, array_like=True):
    name: str
    size: int


class CompactDone(Message, frozen=True, kw_only=True, array_like=True):
    """`name` is '' when there was nothing to merge. `removed`: covered objects past their grace time that were deleted; `left`: the names of the
    index objects that there are now."""
    name: str
    records: int
    removed: int
    left: list[str]


class DeleteDone(Message, frozen=True, kw_only=True, array_like=True):
    """Everything not in `failures` is gone (or never was there)."""
    failures: list[ItemFailure]


class TidyDone(Message, frozen=True, kw_only=True, array_like=True):
    removed: int


class ProbeDone(Message, frozen=True, kw_only=True, array_like=True):
    capabilities: dict[str, Any]


class CheckDone(Message, frozen=True, kw_only=True, array_like=True):
    pass


class PutItem(Message, frozen=True, kw_only=True, array_like=True):
    """What became of one file of a PutMany: `done` or `failure`."""
    done: PutDone | None = None
    failure: ItemFailure | None = None
    retry_after: float = 0.0

    def outcome(self) -> PutDone | errors.CtxfsError:
        if self.done is not None:
            return self.done
        assert self.failure is not None
        return revive(self.failure.name, self.failure.message, self.retry_after)


class PutManyDone(Message, frozen=True, kw_only=True, array_like=True):
    """In the order of the files."""
    items: list[PutItem]
