"""What the daemon and its transfer workers say to each other about archives: packing, sending, committing, reading the log.

Owns these messages (messages.py has their bases, protocol.py the table of all). It must not know what a commit means.
"""
from __future__ import annotations

import enum
from typing import Any

from ctxfs.records import Attrs
from ctxfs.storage.archive_log_format import LogHeader, MemberRecord
from ctxfs.storage.members import Place
from ctxfs.sync.messages import Operation
from ctxfs.sync.results import ItemFailure, Message


class PackItem(Message, frozen=True, kw_only=True, array_like=True, omit_defaults=True):
    """One path to be packed, `key` relative to the context. Its content is the staging file at `path`, which must have `size` bytes; or `body`; or
    the object or member `source_key` (full, of the version `source_etag`, at `source_place` if it is a member). A directory that is not a
    marker is packed for who unpacks the archive; for the log it has attributes only."""
    key: str
    attrs: Attrs
    size: int
    path: str = ''
    body: bytes | None = None
    source_key: str = ''
    source_etag: str = ''
    source_place: Place | None = None
    link: str = ''
    shadows: str = ''
    is_marker: bool = True


class PackedItem(Message, frozen=True, kw_only=True, array_like=True, omit_defaults=True):
    """What became of it: its etag and place (whose archive is not named yet), or why it is not in the part."""
    etag: str = ''
    place: Place | None = None
    failure: ItemFailure | None = None


class PackDone(Message, frozen=True, kw_only=True, array_like=True):
    """One result for each item, in their order; `size`: bytes of the part."""
    items: list[PackedItem]
    size: int


class SendDone(Message, frozen=True, kw_only=True, array_like=True):
    """The archive is in the bucket, and has so many bytes."""
    size: int


class CommitDone(Message, frozen=True, kw_only=True, array_like=True):
    """The commit is in the log."""
    size: int
    is_recovered: bool = False


class LogPart(Message, frozen=True, kw_only=True, array_like=True):
    """A run of records of one log object; with its header where it begins."""
    records: list[MemberRecord]
    header: LogHeader | None = None


class LogDone(Message, frozen=True, kw_only=True, array_like=True):
    """`number`: of the newest commit, 0 when there is none. `commits`: how many are not in a base. `now_ns`: by the store's clock."""
    number: int
    commits: int
    now_ns: int = 0


class BaseDone(Message, frozen=True, kw_only=True, array_like=True):
    number: int
    records: int
    removed: int


class Pack(Operation[PackDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Pack items into the local file `part`, which becomes an archive when it is sent; what is needed for that lies beside it."""
    items: list[PackItem]
    part: str
    lifecycle: str = ''
    changed_ns: int = 0


class PartRef(Message, frozen=True, kw_only=True, array_like=True):
    """A part and which of its items are not to be in the archive."""
    path: str
    leave_out: list[int] = []


class SendArchive(Operation[SendDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Complete a part and make it the object `key`. `deleted`: keys (relative) whose deletion it tells. Without a part it tells only that."""
    key: str
    part: PartRef | None = None
    deleted: list[str] = []
    lifecycle: str = ''


class CommitArchive(Operation[CommitDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Create the commit `key`: the items of the parts, in the archives of the same numbers, and `more`; until that time (boot seconds), or not at
    all. Raises RemoteChanged when another has that number."""
    key: str
    header: LogHeader
    parts: list[PartRef]
    until: float
    more: list[MemberRecord] = []


class ReadLog(Operation[LogDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Streaming: `LogPart`s of all that was committed after the number `since`: commits, in order, or first a base where there are not all. Where
    something is lost that nobody can do without, the log is made anew if it `may_repair`, from archives and the mirror in `tree_db`, where that is
    given; else it raises RemoteUnavailable."""
    prefix: str
    since: int = 0
    may_repair: bool = False
    tree_db: str = ''


class WriteBase(Operation[BaseDone], frozen=True, kw_only=True, array_like=True, tag=True):
    """Write a base that replaces all commits, and remove what a base that is older than the grace time replaces. `tree_db`: see ReadLog."""
    prefix: str
    grace_seconds: float
    tree_db: str = ''


class Verdict(enum.Enum):
    """What the object is to a member of its key: there is none; it came later, knowing the member, or it certainly came later; it came earlier,
    certainly; nobody can say."""
    GONE = 'gone'
    LATER = 'later'
    EARLIER = 'earlier'
    UNAWARE = 'unaware'


class Rival(Message, frozen=True, kw_only=True, array_like=True):
    """A member at whose key (full) an object lies, too; its archive by its name. `listed`: the commit up to which the log was read when a listing
    began that showed no object there."""
    key: str
    etag: str
    size: int
    archive: str
    shadows: str = ''
    listed: int = 0


class Weigh(Operation[list[Verdict]], frozen=True, kw_only=True, array_like=True, tag=True):
    """Look at the objects of these keys; one verdict for each."""
    prefix: str
    rivals: list[Rival]


ArchiveOperation = Pack | SendArchive | CommitArchive | ReadLog | WriteBase | Weigh
STREAMED: dict[type[Any], Any] = {ReadLog: LogPart}
RESULTS: dict[type[Any], Any] = {Pack: PackDone, SendArchive: SendDone, CommitArchive: CommitDone, ReadLog: LogDone, WriteBase: BaseDone,
                                Weigh: list[Verdict]}
