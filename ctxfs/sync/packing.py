"""Packing: contents of files into the parts that become archives.

Owns a part: a local file that has all of an archive but its directory, with its list beside it (PART.list). It must not know stores: where content
comes from that is not here is a callable. Synchronous; runs in a transfer worker.

A part is packed first and sent later, because only then it is known which of its items did not hold still while they were read: those are left out
of the directory, so that nobody who unpacks the archive meets them; their bytes stay as a gap.
"""
from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import msgspec

from ctxfs.errors import CtxfsError, NotFound
from ctxfs.records import Attrs, IndexRecord
from ctxfs.storage import member_notes, members, zip_format
from ctxfs.storage.archive_log_format import DELETED_NAME, MemberRecord
from ctxfs.storage.keys import component_to_name
from ctxfs.storage.members import DIRECTORY_ETAG, Place, file_etag, symlink_etag
from ctxfs.storage.zip_format import Member
from ctxfs.sync.archive_protocol import PackedItem, PackItem, PartRef
from ctxfs.sync.error_travel import describe
from ctxfs.sync.results import ItemFailure

#: the content of an item that is not on this disk
Source = Callable[[PackItem], bytes]


class _Listed(msgspec.Struct, frozen=True, array_like=True):
    """One item of a part: what the log is to say of it, and its line in the archive's directory."""
    number: int
    record: MemberRecord
    entry: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[_Listed]).decode


class _Content(NamedTuple):
    body: bytes
    etag: str
    mode: int


def name_in_archive(key: str) -> bytes:
    """The path of a key as a file system has it; a directory's with a slash at its end."""
    return b'/'.join(component_to_name(component) for component in key.split('/'))


def pack_item(member: members.Member, place: Place, key: str, *, link: str) -> PackItem:
    """A member once more, as `key`, of the hard-link group `link`; `place`: where it is, the archive by its full key. Its record must be known."""
    assert member.record is not None and member.record.attrs is not None
    attrs = member.record.attrs
    if stat.S_ISLNK(attrs.mode) or stat.S_ISDIR(attrs.mode):
        return PackItem(key=key, attrs=attrs, size=member.size, body=attrs.target or b'', link=link)
    return PackItem(key=key, attrs=attrs, size=member.size, source_key=member.key, source_etag=member.etag, source_place=place, link=link)


def pack(part: str, items: Sequence[PackItem], *, source: Source, lifecycle: str, changed_ns: int) -> tuple[list[PackedItem], int]:
    """Write the part and its list; the results, and its size. Raises OSError where the disk refuses."""
    results: list[PackedItem] = []
    listed: list[_Listed] = []
    with open(part, 'wb', buffering=1 << 20) as file:
        for number, item in enumerate(items):
            try:
                content = _content(item, source)
            except (CtxfsError, FileNotFoundError) as error:
                results.append(_failed(item, error))
                continue
            member, packed = _member(name_in_archive(item.key), content, item.attrs, file.tell())
            file.write(zip_format.local_header(member))
            place = Place('', file.tell(), member.packed, member.method, member.crc)
            file.write(packed)
            results.append(PackedItem(etag=content.etag, place=place if item.is_marker else None))
            told = _record(item, content, place, lifecycle, changed_ns)
            noted = member._replace(notes=member_notes.encode(told.record, is_along=not item.is_marker))
            listed.append(_Listed(number, told, zip_format.directory_entry(noted)))
        size = file.tell()
    with open(f'{part}.list', 'wb') as file:
        file.write(_encode(listed))
    return results, size


def _content(item: PackItem, source: Source) -> _Content:
    """Raises NotFound (as FileNotFoundError) where it is gone, or is not `size` bytes long."""
    kind = stat.S_IFMT(item.attrs.mode)
    if kind == stat.S_IFDIR:
        return _Content(b'', DIRECTORY_ETAG if item.is_marker else '', item.attrs.mode)
    if item.body is not None:
        return _Content(item.body, symlink_etag(hashlib.sha256(item.body).hexdigest()), item.attrs.mode)
    body = _read(item.path, item.size) if item.path else source(item)
    return _Content(body, file_etag(hashlib.sha256(body).hexdigest()), stat.S_IFREG | stat.S_IMODE(item.attrs.mode))


def _read(path: str, size: int) -> bytes:
    """Exactly `size` bytes; one more is asked for, to notice growth."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        data = os.read(fd, size + 1)
        while len(data) <= size and (piece := os.read(fd, size + 1 - len(data))):
            data += piece
    finally:
        os.close(fd)
    if len(data) != size:
        raise NotFound('it is being written')
    return data


def _failed(item: PackItem, error: Exception) -> PackedItem:
    known = error if isinstance(error, CtxfsError) else NotFound(str(error))
    name, message = describe(known)
    return PackedItem(failure=ItemFailure(key=item.key, name=name, message=message))


def _member(name: bytes, content: _Content, attrs: Attrs, offset: int) -> tuple[Member, bytes]:
    packed = zip_format.pack(content.body)
    return Member(name, content.mode, attrs.mtime_ns, attrs.uid, attrs.gid, packed.crc, packed.method, len(packed.data), len(content.body),
                  offset), packed.data


def _record(item: PackItem, content: _Content, place: Place, lifecycle: str, changed_ns: int) -> MemberRecord:
    size = len(content.body)
    record = IndexRecord(path=item.key, changed_ns=changed_ns, etag=content.etag, size=size, attrs=item.attrs, link=item.link, lifecycle=lifecycle)
    return MemberRecord(record, place if item.is_marker else None, item.shadows)


# --- what becomes of a part --------------------------------------------------------------------------------------------------------

def records_of(ref: PartRef, archive: str) -> Iterator[MemberRecord]:
    """What the log is to say of the part's items, in that archive."""
    for item in _listed(ref):
        place = item.record.place
        yield item.record if place is None else msgspec.structs.replace(
            item.record, place=Place(archive, place.offset, place.packed, place.method, place.crc))


def _listed(ref: PartRef) -> Iterator[_Listed]:
    left_out = set(ref.leave_out)
    with open(f'{ref.path}.list', 'rb') as file:
        return iter([item for item in _decode(file.read()) if item.number not in left_out])


@contextlib.contextmanager
def completed(ref: PartRef, deleted: Collection[str]) -> Iterator[BinaryIO]:
    """The part as an archive, with its directory and what it tells of deletions; at its start."""
    entries = [item.entry for item in _listed(ref)]
    with open(ref.path, 'r+b') as file:
        file.seek(0, os.SEEK_END)
        _complete(file, entries, deleted)
        file.seek(0)
        yield file


def _complete(file: BinaryIO, entries: Iterable[bytes], deleted: Collection[str]) -> None:
    lines = list(entries)
    if deleted:
        # what lies in a directory before the directory, which goes when it is empty
        body = b''.join(name_in_archive(key) + b'\0' for key in sorted(deleted, reverse=True))
        now_ns = time.time_ns()
        attrs = Attrs(mode=stat.S_IFREG | 0o644, uid=0, gid=0, mtime_ns=now_ns, atime_ns=now_ns, ctime_ns=now_ns)
        member, packed = _member(DELETED_NAME, _Content(body, '', attrs.mode), attrs, file.tell())
        file.write(zip_format.local_header(member) + packed)
        lines.insert(0, zip_format.directory_entry(member))
    start = file.tell()
    directory = b''.join(lines)
    file.write(directory + zip_format.end_record(len(lines), start=start, size=len(directory)))


def deletions_only(file: BinaryIO, deleted: Collection[str]) -> None:
    """An archive that tells of deletions and has nothing else."""
    _complete(file, (), deleted)


def remove(part: str) -> None:
    """It is in the bucket, or not wanted any more."""
    for path in (part, f'{part}.list'):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
