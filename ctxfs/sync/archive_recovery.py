"""The archive log made anew from the archives alone, where it is lost.

Owns what archives say without it: in the order of their names, first what each deletes, then its members, of which the last one of a path counts.
It must not know who asks. Only archives that are older than any flush takes are believed: younger ones may wait for the first commit. What only the
log had is not in it: owners beyond 32 bits, fractions of seconds, extended attributes, hard links. Costs a download of all archives, because a
member's etag is the hash of its content. Synchronous.
"""
from __future__ import annotations

import hashlib
import io
import logging
import stat
import time
from collections.abc import Iterator

from ctxfs.errors import Corrupted
from ctxfs.records import Attrs, IndexRecord
from ctxfs.storage import archive_log_format as log_format
from ctxfs.storage import zip_format
from ctxfs.storage.archive_log_format import ARCHIVE_DIR, DELETED_NAME, FLUSH_SECONDS, ArchiveInfo, LogHeader, MemberRecord
from ctxfs.storage.keys import name_to_component
from ctxfs.storage.listing import pages
from ctxfs.storage.members import DIRECTORY_ETAG, Place, file_etag, symlink_etag
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.zip_format import Member

log = logging.getLogger(__name__)


def archives_in(store: ObjectStore, prefix: str) -> list[ArchiveInfo]:
    """In the order of their names, which is that of their commits; none where one of them is young."""
    directory = prefix + ARCHIVE_DIR
    found: list[ArchiveInfo] = []
    for page in pages(store, directory):
        now_ns = page.now_ns or time.time_ns()
        for info in page.objects:
            if log_format.number_in(name := info.key[len(directory):]) is not None:
                if now_ns - info.mtime_ns < FLUSH_SECONDS * 10**9:
                    return []
                found.append(ArchiveInfo(name, info.size))
    return found


def rebuild(store: ObjectStore, prefix: str, *, host: str) -> int:
    """Write a base that says what the archives leave; its number, 0 where there are none. What cannot be read of them is left out (logged)."""
    archives = archives_in(store, prefix)
    if not archives:
        return 0
    members: dict[str, MemberRecord] = {}
    for info in archives:
        try:
            _apply(store, prefix, info, members)
        except Corrupted as error:
            log.error('the archive %s is left out: %s', info.name, error)
    number = max(log_format.number_in(info.name) or 0 for info in archives)
    header = LogHeader(kind='base', number=number, host=host, created_ns=time.time_ns(), archives=archives)
    body = io.BytesIO()
    log_format.write(body, header, (members[key] for key in sorted(members)))
    store.put(prefix + log_format.base_key(number), body.getvalue())
    log.warning('the archive log was lost, and is made anew from %d archives: %d members', len(archives), len(members))
    return number


def _apply(store: ObjectStore, prefix: str, info: ArchiveInfo, members: dict[str, MemberRecord]) -> None:
    data = store.get(f'{prefix}{ARCHIVE_DIR}{info.name}')
    found = list(_members(data))
    for member in found:
        if member.name == DELETED_NAME:
            for name in _content(data, member)[0].split(b'\0'):
                members.pop(_key(name), None)
    for member in found:
        if member.name != DELETED_NAME:
            key = _key(member.name)
            members[key] = _record(key, info.name, data, member)


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
    attrs = Attrs(mode=member.mode, uid=member.uid, gid=member.gid, mtime_ns=member.mtime_ns, atime_ns=member.mtime_ns, ctime_ns=member.mtime_ns,
                  target=content if kind == stat.S_IFLNK else None)
    record = IndexRecord(path=key, changed_ns=member.mtime_ns, etag=etag, size=member.size, attrs=attrs)
    return MemberRecord(record, Place(archive, at, member.packed, member.method, member.crc))


def _key(name: bytes) -> str:
    return '/'.join(name_to_component(part) for part in name.split(b'/'))
