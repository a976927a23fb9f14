"""What the daemon and its transfer workers say to each other: typed operations, their results, and the frames around them.

Owns every message that crosses the pipe, as msgpack in the frames of frames.py. It must not know sockets, processes, stores or schedules:
pool.py sends, worker.py answers; error_travel.py says how an error crosses.

One `Request` is answered by zero or more `Part`s (streaming operations only, at most `Request.credit` ahead of the reader, who sends
`Credit` for each one it consumed), any number of `Progress`, and then exactly one `Reply` or `Failed`, in any order among requests.
File contents never cross the pipe: paths and keys do. Both ends are one installation, so the messages have no version.
"""
from __future__ import annotations

from typing import Any, TypeVar, cast

import msgspec

from ctxfs import errors
from ctxfs.records import UNREADABLE, Attrs, IndexRecord, ListPage
from ctxfs.storage.members import Place
from ctxfs.storage.object_store import ALWAYS, Condition
from ctxfs.sync import archive_protocol as archives
from ctxfs.sync.error_travel import describe as describe
from ctxfs.sync.error_travel import revive as revive
from ctxfs.sync.frames import LENGTH
from ctxfs.sync.messages import Operation as Operation
from ctxfs.sync.results import (  # noqa: F401 - whoever knows the operations knows what they return
    AdoptDone,
    CheckDone,
    CompactDone,
    CopyDone,
    DeleteDone,
    FetchDone,
    HeadItem,
    HydrateDone,
    IndexDone,
    IndexPart,
    ItemFailure,
    ListDone,
    Message,
    ProbeDone,
    PutDone,
    PutItem,
    PutManyDone,
    SegmentDone,
    TidyDone,
    WarmDone,
)
from ctxfs.sync.worker_options import WorkerOptions as WorkerOptions

R = TypeVar('R')

NO_SLOT = -1     # no upload has it: the operation cannot be aborted


# --- operations ------------------------------------------------------------------------------------------------------------------

class PutFile(Operation[PutDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Upload the staging file at `path`, which must have `size` bytes and, when given, `mtime_ns` at the start and at the end.

    `attrs` become the object's POSIX metadata, `revision`, `link` and `attempt` its stamp (the host is the worker's). Skipped without a request
    when the content is the one of `condition.etag`, by `base_sha256` or because the etag proves it, unless there is a `lifecycle`: that
    begins anew with each upload (FOREVER: the version before it had one). `abort_slot` is asked after the last byte was read.
    Raises RemoteChanged, RemoteUnavailable (outcome unknown even after a HEAD), Denied, NotFound (the staging file is gone) …"""
    key: str
    path: str
    size: int
    attrs: Attrs
    revision: int
    link: str = ''
    content_type: str | None = None
    condition: Condition = ALWAYS
    abort_slot: int = NO_SLOT
    base_sha256: str = ''
    lifecycle: str = ''
    attempt: str = ''


class PutMany(Operation[PutManyDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Upload small files, so many at once, in one thread of a worker; each as PutFile does. Raises nothing that is one file's."""
    files: list[PutFile]
    parallel: int


class PutBytes(Operation[PutDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Upload a small body: a directory marker, a symlink's target. `attrs` None writes no POSIX metadata but still the stamp."""
    key: str
    body: bytes
    attrs: Attrs | None = None
    revision: int = 0
    link: str = ''
    content_type: str | None = None
    condition: Condition = ALWAYS
    lifecycle: str = ''
    attempt: str = ''


class Copy(Operation[CopyDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Server-side copy, metadata and tags included: one request where `source_etag` and `size` are given. `lifecycle`, when given,
    replaces the source's. `sha256` of the source, where it is known, tells whether a write in doubt arrived."""
    source: str
    key: str
    source_etag: str | None = None
    size: int | None = None
    condition: Condition = ALWAYS
    sha256: str = ''
    lifecycle: str = ''


class DeleteMany(Operation[DeleteDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Remove (key, etag or None) pairs; with an etag only that version. Absent is success. `is_expiry`: because their time was over."""
    items: list[tuple[str, str | None]]
    is_expiry: bool = False


class Head(Operation[list[HeadItem]], frozen=True, kw_only=True, array_like=True, tag=True):
    """Describe keys in parallel, in their order. Bodies of symlinks up to 4,096 bytes are read too; `wants_hash`: of all with a stamp."""
    keys: list[str]
    wants_tags: bool = False
    wants_hash: bool = False


class ListPages(Operation[ListDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Streaming: every page (`ListPage`) of the keys that start with `prefix`, after `start_after`; the page with `stop_after`, or with what comes
    behind it, is the last one."""
    prefix: str
    delimiter: str = ''
    start_after: str = ''
    stop_after: str = ''


class WarmItem(Message, frozen=True, kw_only=True, array_like=True):
    """Blocks [start, start + count) of one version; `count` 0: to its end. `place` as in Fetch."""
    key: str
    etag: str
    size: int
    start: int = 0
    count: int = 0
    place: Place | None = None


class Fetch(Operation[FetchDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Bring blocks [start, start + count) of the version `etag` of `size` bytes into the block cache. RemoteChanged when the object is
    another version by now. `place`: where it lies if it is a member, the archive by its full key; `neighbours`: members of the same
    archive that come along, as far as they are missing."""
    key: str
    etag: str
    size: int
    start: int = 0
    count: int = 1
    place: Place | None = None
    neighbours: list[WarmItem] = []


class Warm(Operation[WarmDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Bring what is missing of many files into the block cache, one after the other, while other operations of the worker go first. At most
    `budget` bytes: what an item is missing, or all of it with `counts_cached` (then what is there already is noted as used, too)."""
    items: list[WarmItem]
    budget: int
    counts_cached: bool = False


class Hydrate(Operation[HydrateDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Make the whole version `etag` a plain file at `path` (written beside it, then renamed: it is there whole or not at all)."""
    key: str
    etag: str
    size: int
    path: str
    place: Place | None = None


class AdoptItem(Message, frozen=True, kw_only=True, array_like=True):
    path: str
    key: str
    etag: str
    size: int


class Adopt(Operation[AdoptDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Link uploaded staging files into the block cache, all in one transaction. The file at `path` must never be written again:
    cache and staging share its bytes until the caller unlinks it."""
    items: list[AdoptItem]


class ReadIndex(Operation[IndexDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Streaming: `IndexPart`s of all index objects under `<prefix>.ctxfs/index/` that are not `seen`, merged, latest wins."""
    prefix: str
    seen: list[str] = []


class WriteSegment(Operation[SegmentDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Add one index segment. `records` need no order."""
    prefix: str
    records: list[IndexRecord]


class CompactIndex(Operation[CompactDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Write a new base that covers all index objects, and delete those covered by an older base for longer than the grace time."""
    prefix: str
    grace_seconds: float = 600.0


class TidyCache(Operation[TidyDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Unlink what killed workers left in the cache directory without an entry and that was put there before `older_than` (seconds since
    the epoch). Costs by the size of the cache: for the background, once after an unclean end."""
    older_than: float


class Probe(Operation[ProbeDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """What the endpoint honours, asked anew; the dict may be remembered and given back as WorkerOptions.capabilities."""


class Check(Operation[CheckDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """The store answers and the bucket may be listed; raises what ObjectStore.check raises."""


class Heartbeat(Operation[CheckDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Write the object that says that the mount lives; without a body, remove it. With `context_id` raises InUse when that context is being
    cleared once the heartbeat is there."""
    key: str
    body: bytes | None
    context_id: str = ''


class EnsureExpiry(Operation[CheckDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """The store removes what carries `lifecycle` after `days` by itself; raises what ObjectStore.ensure_expiry raises."""
    lifecycle: str
    days: int


AnyOperation = (PutFile | PutMany | PutBytes | Heartbeat | Copy | DeleteMany | Head | ListPages | Fetch | Warm | Hydrate | Adopt | ReadIndex
                | WriteSegment | CompactIndex | TidyCache | Probe | Check | EnsureExpiry | archives.ArchiveOperation)
#: what a streaming operation yields before its result
STREAMED: dict[type[Any], Any] = {ListPages: ListPage, ReadIndex: IndexPart, **archives.STREAMED}
RESULTS: dict[type[Any], Any] = {
    PutFile: PutDone, PutMany: PutManyDone, PutBytes: PutDone, Heartbeat: CheckDone, Copy: CopyDone, DeleteMany: DeleteDone,
    Head: list[HeadItem], ListPages: ListDone,
    Fetch: FetchDone, Warm: WarmDone, Hydrate: HydrateDone, Adopt: AdoptDone, ReadIndex: IndexDone, WriteSegment: SegmentDone,
    CompactIndex: CompactDone, TidyCache: TidyDone, Probe: ProbeDone, Check: CheckDone, EnsureExpiry: CheckDone,
    **archives.RESULTS}


def slots_of(operation: Operation[Any]) -> list[int]:
    """The abort slots that a worker looks at while it is under way."""
    files = operation.files if isinstance(operation, PutMany) else [operation] if isinstance(operation, PutFile) else []
    return [file.abort_slot for file in files if file.abort_slot >= 0]


# --- envelopes -------------------------------------------------------------------------------------------------------------------

class Start(Message, frozen=True, kw_only=True, array_like=True):
    """The first frame to a worker. It answers `Ready` or `Failed` with id 0."""
    options: WorkerOptions


class Request(Message, frozen=True, kw_only=True, array_like=True):
    """`credit`: how many `Part`s may be sent before the first `Credit` comes. `wants_progress`: send `Progress` as bytes move."""
    id: int
    operation: AnyOperation
    credit: int = 0
    wants_progress: bool = False


class Credit(Message, frozen=True, kw_only=True, array_like=True):
    id: int
    count: int = 1


class Cancel(Message, frozen=True, kw_only=True, array_like=True):
    """Nobody waits for this request any more: stop where nothing is left half done. It is still answered."""
    id: int


class LogLevel(Message, frozen=True, kw_only=True, array_like=True):
    """Log so much from now on."""
    level: int


class Limit(Message, frozen=True, kw_only=True, array_like=True):
    """The block cache's bound in bytes is now this."""
    cache_bytes: int


class Learn(Message, frozen=True, kw_only=True, array_like=True):
    """What the store can do is now known to be this."""
    capabilities: dict[str, Any]


class Ready(Message, frozen=True, kw_only=True, array_like=True):
    pid: int


class Part(Message, frozen=True, kw_only=True, array_like=True):
    """`value` is one encoded element of a stream."""
    id: int
    value: msgspec.Raw


class Progress(Message, frozen=True, kw_only=True, array_like=True):
    """`done` bytes of this transfer have moved in all."""
    id: int
    done: int


class Reply(Message, frozen=True, kw_only=True, array_like=True):
    """`value` is the encoded result, of the type that RESULTS names for the operation; `cpu`: seconds that it took of the worker's CPU."""
    id: int
    value: msgspec.Raw
    cpu: float = 0.0


class Failed(Message, frozen=True, kw_only=True, array_like=True):
    """`retry_after`: seconds in which the store does not want to be asked."""
    id: int
    name: str
    message: str
    retry_after: float = 0.0


ToWorker = Start | Request | Credit | Cancel | Limit | Learn | LogLevel
FromWorker = Ready | Part | Progress | Reply | Failed

_encoder = msgspec.msgpack.Encoder()
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode
_value_decoders = {kind: msgspec.msgpack.Decoder(result).decode for kind, result in RESULTS.items()}
_part_decoders = {kind: msgspec.msgpack.Decoder(part).decode for kind, part in STREAMED.items()}


def frame(message: Message) -> bytes:
    """The message as it goes over the pipe, length included."""
    buffer = bytearray(LENGTH.size)
    _encoder.encode_into(message, buffer, LENGTH.size)
    LENGTH.pack_into(buffer, 0, len(buffer) - LENGTH.size)
    return bytes(buffer)


def raw(value: Any) -> msgspec.Raw:
    """A result or part, encoded for its envelope."""
    return msgspec.Raw(_encoder.encode(value))


def decode_result(operation: Operation[R], value: msgspec.Raw) -> R:
    """Raises Corrupted."""
    return cast(R, _decode(_value_decoders, operation, value, 'result'))


def decode_part(operation: Operation[Any], value: msgspec.Raw) -> Any:
    """Raises Corrupted."""
    return _decode(_part_decoders, operation, value, 'part')


def _decode(decoders: dict[Any, Any], operation: Operation[Any], value: msgspec.Raw, what: str) -> Any:
    try:
        return decoders[type(operation)](value)
    except UNREADABLE as error:
        raise errors.Corrupted(f'a worker answered {type(operation).__name__} with what is no {what} of it: {error}') from error
