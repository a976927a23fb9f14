"""The archive log made anew where something of it is lost: from the archives alone, and from what a host's mirror has of it.

Owns what archives say without the log: in the order of their names, first what each deletes, then its members, of which the last one of a path
counts. It must not know who asks. Synchronous.

    known    what the mirror of the host has that finds the loss; without one nothing
    added    archives that it does not know, in order. A member's etag is the hash of its content, so these are downloaded
    written  a base with everything in it, where there is none of its number: the next round one, beyond all that anybody can know. So of two hosts
             that repair at once, one does it

What only the log had of the archives that are added is lost: attributes that changed without the content, when a file was read or its attributes
changed, that a file which was there before got one more name, and very long extended attributes. An archive that was sent and never committed is not
told from one whose commit is lost: what it has shows. Only where the first flush of a context may be under way (nothing but young archives for commit
1, and no log), nothing is done.
"""
from __future__ import annotations

import hashlib
import logging
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from ctxfs.errors import Corrupted, NotFound, RemoteChanged
from ctxfs.records import Attrs, IndexRecord
from ctxfs.storage import archive_log_format as log_format
from ctxfs.storage import member_notes, zip_format
from ctxfs.storage.archive_log_format import ARCHIVE_DIR, DELETED_NAME, FLUSH_SECONDS, ArchiveInfo, LogHeader, MemberRecord
from ctxfs.storage.keys import name_to_component, printable
from ctxfs.storage.listing import pages
from ctxfs.storage.member_notes import Notes
from ctxfs.storage.members import DIRECTORY_ETAG, Place, file_etag, read_mirror, symlink_etag
from ctxfs.storage.object_store import ALWAYS, Condition, ObjectStore
from ctxfs.storage.zip_format import Member
from ctxfs.sync.archive_log import ArchiveLog

log = logging.getLogger(__name__)

#: numbers between a log that was lost and the one that takes its place
ROUND = 1000
#: an archive is committed with a number so much higher than the one it is made for, at most
LATE = 20


GONE = 'the archive log of the context is gone from the bucket, and the archives, too: restore what is below .ctxfs/archive/ from a backup'


class _Archive(NamedTuple):
    info: ArchiveInfo
    number: int
    is_young: bool


class _State:
    """What there is, and what was deleted by which commit."""

    def __init__(self) -> None:
        self.number = 0
        self.members: dict[str, MemberRecord] = {}
        self.deleted: dict[str, int] = {}
        self.known: set[str] = set()
        self.dropped: list[str] = []
        #: of archives that have one
        self.lifecycles: dict[str, str] = {}

    def delete(self, path: str, number: int) -> None:
        self.members.pop(path, None)
        self.deleted[path] = number

    def put(self, item: MemberRecord) -> None:
        """What only gives a directory's attributes leaves its marker alone."""
        before = self.members.get(item.record.path)
        if item.place is None and before is not None:
            item = MemberRecord(msgspec.structs.replace(item.record, etag=before.record.etag), before.place)
        self.members[item.record.path] = item
        self.deleted.pop(item.record.path, None)

    def records(self) -> list[MemberRecord]:
        gone = [MemberRecord(IndexRecord(path=path, changed_ns=0), number=number) for path, number in self.deleted.items()]
        return sorted([*self.members.values(), *gone], key=lambda item: item.record.path)


def repair(store: ObjectStore, prefix: str, *, since: int, host: str, tree_db: str = '') -> bool:
    """Make the log anew for a reader who knows all up to `since`; False where there is nothing to be made one from. Raises what the store raises."""
    archives, whole = _archives_in(store, prefix), ArchiveLog(store, prefix)
    if (now := whole.look(since)).number and now.has_all_after(since):
        return True     # somebody committed just now
    commits = whole.look()
    if not archives or (not commits.number and _may_be_first(archives)):
        return False
    state = _known(tree_db)
    for found in archives:
        if found.info.name not in state.known and found.number > state.number - LATE:
            _add(store, prefix, found, state)
    newest = max(state.number, commits.number, *(found.number for found in archives))
    _write(store, prefix, (newest // ROUND + 1) * ROUND, state, [found.info for found in archives], host)
    return True


def has_lost_log(store: ObjectStore, prefix: str) -> bool:
    """Of a context without any log: whether there was one."""
    archives = _archives_in(store, prefix)
    return bool(archives) and not _may_be_first(archives)


def _may_be_first(archives: Sequence[_Archive]) -> bool:
    return all(found.number <= 1 for found in archives) and any(found.is_young for found in archives)


def _archives_in(store: ObjectStore, prefix: str) -> list[_Archive]:
    """In the order of their names, which is that of their commits."""
    directory, found = prefix + ARCHIVE_DIR, []
    for page in pages(store, directory):
        now_ns = page.now_ns or time.time_ns()
        for info in page.objects:
            if (number := log_format.number_in(name := info.key[len(directory):])) is not None:
                found.append(_Archive(ArchiveInfo(name, info.size), number, now_ns - info.mtime_ns < FLUSH_SECONDS * 10**9))
    return found


def _known(tree_db: str) -> _State:
    state = _State()
    if not tree_db:
        return state
    mirror = read_mirror(Path(tree_db))
    if mirror.number <= 0:      # none, or one that is being built
        return state
    state.number, state.deleted, state.known = mirror.number, dict(mirror.deleted), set(mirror.archives)
    state.lifecycles = {use.name: use.lifecycle for use in mirror.archives.values() if use.lifecycle}
    state.dropped = [use.name for use in mirror.archives.values() if use.dead_ns]
    state.members = {member.key: MemberRecord(member.record, member.place, member.shadows) for member in mirror.members if member.record is not None}
    return state


def _write(store: ObjectStore, prefix: str, number: int, state: _State, archives: Sequence[ArchiveInfo], host: str) -> None:
    present = {info.name for info in archives}
    lost = [path for path, item in state.members.items() if item.place is not None and item.place.archive not in present]
    for path in lost:
        log.error('%s is lost: its archive is not there any more', path)
        del state.members[path]
    used = {item.place.archive for item in state.members.values() if item.place is not None}
    records, dropped = state.records(), [name for name in state.dropped if name in present - used]
    header = LogHeader(kind='base', number=number, host=host, created_ns=time.time_ns(), dropped=dropped,
                       archives=[ArchiveInfo(info.name, info.size, state.lifecycles.get(info.name, '')) for info in archives
                                 if info.name not in dropped])
    condition = Condition(absent=True) if store.capabilities().conditional_create else ALWAYS
    try:
        store.put(prefix + log_format.base_key(number), log_format.encode(header, records), condition=condition)
    except RemoteChanged:
        return      # another host did the same
    log.warning('commits were missing from the archive log; it is made anew from %d archives: %d members', len(archives), len(state.members))


# --- what an archive says ----------------------------------------------------------------------------------------------------------

def _add(store: ObjectStore, prefix: str, found: _Archive, state: _State) -> None:
    """What cannot be read is left out: the archive, or one member."""
    try:
        data = store.get(f'{prefix}{ARCHIVE_DIR}{found.info.name}')
        members = list(_members(data))
    except (Corrupted, NotFound) as error:
        log.error('the archive %s is left out: %s', found.info.name, error)
        return
    # deletions come first
    for member in sorted(members, key=lambda member: member.name != DELETED_NAME):
        try:
            _add_member(data, member, found, state)
        except Corrupted as error:
            log.error('%s of the archive %s is left out: %s', printable(_key(member.name)), found.info.name, error)


def _add_member(data: bytes, member: Member, found: _Archive, state: _State) -> None:
    if member.name == DELETED_NAME:
        for name in filter(None, _content(data, member)[0].split(b'\0')):
            state.delete(_key(name), found.number)
        return
    item = _record(_key(member.name), found.info.name, data, member)
    log_format.check(item)
    state.put(item)
    if item.record.lifecycle:
        state.lifecycles[found.info.name] = item.record.lifecycle


def _members(data: bytes) -> Iterator[Member]:
    start, stop = zip_format.tail_of(len(data))
    count, at, size = zip_format.read_end(data[start:stop], len(data))
    return zip_format.read_directory(data[at:at + size], count)


def _content(data: bytes, member: Member) -> tuple[bytes, int]:
    """The content, and where its packed bytes begin."""
    at = zip_format.content_start_of(data[member.offset:member.offset + zip_format.LOCAL_SIZE], member.offset)
    return zip_format.unpack(data[at:at + member.packed], member.method, size=member.size, crc=member.crc), at


def _record(key: str, archive: str, data: bytes, member: Member) -> MemberRecord:
    content, at = _content(data, member)
    digest = hashlib.sha256(content).hexdigest()
    kind = stat.S_IFMT(member.mode)
    etag = DIRECTORY_ETAG if kind == stat.S_IFDIR else symlink_etag(digest) if kind == stat.S_IFLNK else file_etag(digest)
    notes = member_notes.decode(member.notes) or Notes(mtime_ns=member.mtime_ns)
    mtime_ns = notes.mtime_ns
    attrs = Attrs(mode=member.mode, uid=member.uid, gid=member.gid, mtime_ns=mtime_ns, atime_ns=mtime_ns, ctime_ns=mtime_ns,
                  target=content if kind == stat.S_IFLNK else None, xattrs=notes.xattrs)
    if notes.is_along:
        return MemberRecord(IndexRecord(path=key, changed_ns=mtime_ns, attrs=attrs))
    record = IndexRecord(path=key, changed_ns=mtime_ns, etag=etag, size=member.size, attrs=attrs, link=notes.link, lifecycle=notes.lifecycle)
    return MemberRecord(record, Place(archive, at, member.packed, member.method, member.crc))


def _key(name: bytes) -> str:
    return '/'.join(name_to_component(part) for part in name.split(b'/'))
