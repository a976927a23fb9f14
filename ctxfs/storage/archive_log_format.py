"""The format of a context's archive log: which members there are in Archive mode, commit by commit.

Owns names, encoding and decoding of the log's objects. It must not know stores, who commits when, or what a member means for a tree.

Format, version 1. All of Archive mode lies below `.ctxfs/archive/` of the context:

    NAME.zip               an archive. NAME is N-TIME-HOST-RANDOM: the number (20 digits) of the commit that it was made for, or of an earlier
                           one where others came in between with other paths; so of two archives that have the same path the later by name counts
    log/N.commit.zst       commit number N (20 digits), created only where there is none: what it says happens at once, or not at all
    log/N.base.zst         all that commits 1…N left; replaces them

A log object is one zstd stream of JSON lines like an index object's (index_format.py). The header, the first line:

    format, version   "ctxfs-archive-log", 1
    kind              "commit" or "base"
    number            N
    nonce             random, of this attempt to commit: whose answer was lost finds its own by it
    host, created_ns  who wrote it, and when by that host's clock
    archives          [{"name", "size", "lifecycle"}]: what the lines refer to; a commit names those that it adds
    dropped           [names] of archives that nobody need read any more: in a commit, those whose last members it moved; in a base, those
                      that are still to be removed
    is_reset          in a commit: everything before it is deleted (the context was cleared)

A line is an index record with these fields besides, in the order of the paths, one line a path:

    a   the member's archive: its number in `archives`. Missing: the line deletes the path's member, or where `p` ends with "/" and there are
        attributes, gives a directory's attributes only
    o, c   where the member's bytes begin in the archive, and how many there are
    d      packed as in zip: 8 deflated, 0 (or missing) stored
    k      CRC-32 of the content
    v      etag of the object at that key whose place the member takes: as long as the object is this version, it is not shown; any other
           object at the key came later, and counts instead of the member
    q      in a base, of a deletion: the number of the commit that told it

`e` is the member's etag (storage/members.py). An archive has, beside its members, `.ctxfs/deleted` where the commit deletes anything: the paths,
each followed by a NUL, that are to be removed before its members are unpacked (of one that ends with "/" only the empty directory).
"""
from __future__ import annotations

import io
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, BinaryIO

import msgspec

from ctxfs.errors import Corrupted, Unsupported
from ctxfs.records import RESERVED_DIR, UNREADABLE, IndexRecord
from ctxfs.storage.index_format import Line, read_lines, to_line, to_record, write_lines
from ctxfs.storage.members import Place

FORMAT = 'ctxfs-archive-log'
VERSION = 1
ARCHIVE_DIR = RESERVED_DIR + 'archive/'
LOG_DIR = ARCHIVE_DIR + 'log/'
#: what an archive tells of deletions, as one of its members
DELETED_NAME = b'.ctxfs/deleted'
#: an archive that no commit names after so long was sent by a flush that never came to its end
FLUSH_SECONDS = 86_400
_LOG_NAME = re.compile(r'(\d{20})\.(commit|base)\.zst')
_ARCHIVE_NAME = re.compile(r'(\d{20})-\d{20}-([A-Za-z0-9_.]+)-[0-9a-f]+\.zip')
_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62))]


class ArchiveInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """An archive, as the log tells of it."""
    name: Annotated[str, msgspec.Meta(max_length=512)]
    size: _Count = 0
    lifecycle: str = ''


class LogHeader(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The first line; see the module docstring."""
    format: str = ''
    version: int = 0
    kind: str
    number: _Count
    nonce: str = ''
    host: str = ''
    created_ns: int = 0
    archives: list[ArchiveInfo] = []
    dropped: list[str] = []
    is_reset: bool = False


class MemberRecord(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """A line: the record of a path, and where its member lies (None: see the module docstring). `number`: of the commit that deleted it."""
    record: IndexRecord
    place: Place | None = None
    shadows: str = ''
    number: int = 0

    @property
    def is_deletion(self) -> bool:
        return self.place is None and self.record.attrs is None


def deletion(path: str) -> MemberRecord:
    """A line that deletes the path's member now."""
    return MemberRecord(IndexRecord(path=path, changed_ns=time.time_ns()))


class _LogLine(Line, kw_only=True, omit_defaults=True):
    a: Annotated[int, msgspec.Meta(ge=-1, le=1 << 30)] = -1
    o: _Count = 0
    c: _Count = 0
    d: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    k: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0
    v: Annotated[str, msgspec.Meta(max_length=1024)] = ''
    q: _Count = 0


_decode_header = msgspec.json.Decoder(LogHeader).decode
_decode_line = msgspec.json.Decoder(_LogLine).decode


def commit_key(number: int) -> str:
    """The key of a commit, relative to the context."""
    return f'{LOG_DIR}{number:020d}.commit.zst'


def base_key(number: int) -> str:
    return f'{LOG_DIR}{number:020d}.base.zst'


def parsed(name: str) -> tuple[int, str] | None:
    """(number, 'commit' or 'base') of a log object's name; None for any other."""
    match = _LOG_NAME.fullmatch(name)
    return None if match is None else (int(match[1]), match[2])


def archive_name(number: int, *, host: str, created_ns: int) -> str:
    """A new name for an archive that is made for commit `number`."""
    return f'{number:020d}-{created_ns:020d}-{spelled(host)}-{secrets.token_hex(4)}.zip'


def spelled(host: str) -> str:
    """A host in the name of an archive."""
    return re.sub(r'[^A-Za-z0-9_.]', '_', host) or '_'


def host_in(name: str) -> str:
    """Whose archive it is, `spelled`; '' for what is no archive's name."""
    match = _ARCHIVE_NAME.fullmatch(name)
    return '' if match is None else match[2]


def number_in(name: str) -> int | None:
    """The commit for which an archive was made; None for what is no archive's name."""
    match = _ARCHIVE_NAME.fullmatch(name)
    return None if match is None else int(match[1])


def encode(header: LogHeader, records: Iterable[MemberRecord]) -> bytes:
    """A commit as bytes; the records in the order of their paths."""
    file = io.BytesIO()
    write(file, header, records)
    return file.getvalue()


def write(file: BinaryIO, header: LogHeader, records: Iterable[MemberRecord]) -> int:
    """A log object, streaming; how many records it has."""
    numbers = {info.name: number for number, info in enumerate(header.archives)}
    whole = msgspec.structs.replace(header, format=FORMAT, version=VERSION)
    return write_lines(file, whole, (_to_log_line(record, numbers) for record in records))


def check(item: MemberRecord) -> None:
    """Raises Corrupted for what nobody could read from the log."""
    try:
        to_record(_decode_line(msgspec.json.encode(_to_log_line(item, {} if item.place is None else {item.place.archive: 0}))))
    except UNREADABLE as error:
        raise Corrupted(f'no log can tell of it: {error}') from error


def _to_log_line(item: MemberRecord, numbers: dict[str, int]) -> _LogLine:
    place = item.place
    if place is None:
        return to_line(item.record, _LogLine, q=item.number)
    return to_line(item.record, _LogLine, a=numbers[place.archive], o=place.offset, c=place.packed, d=place.method, k=place.crc, v=item.shadows)


def read(file: BinaryIO) -> tuple[LogHeader, Iterator[MemberRecord]]:
    """The header, and the records as they are decompressed. Raises Corrupted for what is no whole log object (the iterator, too), Unsupported for a
    version that is not known."""
    lines = read_lines(file)
    try:
        header = _decode_header(next(lines))
    except StopIteration:
        raise Corrupted('an empty object in the archive log') from None
    except UNREADABLE as error:
        raise Corrupted(f'no object of an archive log: {error}') from error
    if header.format != FORMAT or header.kind not in ('commit', 'base'):
        raise Corrupted(f'no object of an archive log: its format is {header.format!r}')
    if header.version != VERSION:
        raise Unsupported(f'version {header.version} of the archive log is not known to this ctxfs, which reads version {VERSION}: upgrade ctxfs')
    if any(number_in(info.name) is None for info in header.archives):
        raise Corrupted('an archive log names what is no archive')
    return header, _in_order(_records(lines, header.archives))


def _records(lines: Iterator[bytes], archives: list[ArchiveInfo]) -> Iterator[MemberRecord]:
    for text in lines:
        try:
            line = _decode_line(text)
            record = to_record(line)
        except UNREADABLE as error:
            raise Corrupted(f'a record of the archive log cannot be read: {error}') from error
        if line.a < 0:
            yield MemberRecord(record, number=line.q)
        elif line.a < len(archives) and record.attrs is not None:
            yield MemberRecord(record, Place(archives[line.a].name, line.o, line.c, line.d, line.k), line.v)
        else:
            raise Corrupted('a record of the archive log names an archive that its header does not')


def _in_order(records: Iterator[MemberRecord]) -> Iterator[MemberRecord]:
    last = ''
    for item in records:
        if item.record.path <= last:
            raise Corrupted(f'the archive log is out of order at {item.record.path!r}')
        last = item.record.path
        yield item
