"""The zip format, as far as archives of a context need it: what is written before, between and after the members' bytes, and the directory read back.

Owns the bytes of headers and of the directory (PKWARE's APPNOTE.TXT, Info-ZIP's extra fields). It must not know contexts, stores or where the
members' content comes from.

A member has its Unix mode, symlinks and directories included (external attributes of a Unix host), its mtime (extra field "UT", in seconds) and
owner ("ux"). Sizes and checksums stand in the local header, so that a member can be read without the directory. What zip has no field for may
stand in a field of our own ("cx") in the directory, which other programs pass over. Archives stay below the bounds of the format without zip64:
MAX_MEMBERS, MAX_BYTES.
"""
from __future__ import annotations

import stat
import struct
import time
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from ctxfs.errors import Corrupted

STORED, DEFLATED = 0, 8
MAX_MEMBERS = 65_000
MAX_BYTES = 3 << 30
NOTES_MAX = 60_000
_LOCAL = struct.Struct('<4sHHHHHLLLHH')
_CENTRAL = struct.Struct('<4sHHHHHHLLLHHHHHLL')
_END = struct.Struct('<4sHHHHLLH')
_UTF8 = 1 << 11
_VERSION, _UNIX = 20, 3
#: the end record, with the longest comment
_TAIL = _END.size + 65_535
_LEVEL = 6


class Member(NamedTuple):
    """One member: `offset` is where its local header begins. The name is the path's bytes; `notes`: what the directory says besides, up to NOTES_MAX
    bytes."""
    name: bytes
    mode: int
    mtime_ns: int
    uid: int
    gid: int
    crc: int
    method: int
    packed: int
    size: int
    offset: int
    notes: bytes = b''


class Packed(NamedTuple):
    """A content as it lies in an archive."""
    data: bytes
    method: int
    crc: int


def pack(content: bytes) -> Packed:
    """Deflated, or as it is where that is not longer."""
    crc = zlib.crc32(content)
    if len(content) > 16:
        deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        data = deflate.compress(content) + deflate.flush()
        if len(data) < len(content):
            return Packed(data, DEFLATED, crc)
    return Packed(content, STORED, crc)


def unpack(data: bytes, method: int, *, size: int, crc: int) -> bytes:
    """The content of a member of `size` bytes. Raises Corrupted for anything else."""
    if method == DEFLATED:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = inflate.decompress(data, size + 1)
        except zlib.error as error:
            raise Corrupted(f'a member of an archive cannot be inflated: {error}') from error
    elif method == STORED:
        content = data
    else:
        raise Corrupted(f'a member of an archive is packed by the method {method}, which ctxfs does not know')
    if len(content) != size or zlib.crc32(content) != crc:
        raise Corrupted('a member of an archive is not what its directory says')
    return content


def local_header(member: Member) -> bytes:
    """What stands before the member's bytes."""
    extra = _extra(member)
    return _LOCAL.pack(b'PK\x03\x04', _VERSION, _flags(member), member.method, *_dos_time(member.mtime_ns), member.crc, member.packed, member.size,
                       len(member.name), len(extra)) + member.name + extra


def directory_entry(member: Member) -> bytes:
    """The member's line in the directory at the end."""
    extra = _extra(member)
    if member.notes:
        extra += struct.pack('<2sH', b'cx', len(member.notes)) + member.notes
    attributes = (member.mode & 0xFFFF) << 16 | (0x10 if stat.S_ISDIR(member.mode) else 0)
    return _CENTRAL.pack(b'PK\x01\x02', _UNIX << 8 | _VERSION, _VERSION, _flags(member), member.method, *_dos_time(member.mtime_ns), member.crc,
                         member.packed, member.size, len(member.name), len(extra), 0, 0, 0, attributes, member.offset) + member.name + extra


def end_record(count: int, *, start: int, size: int) -> bytes:
    """What follows the directory of `count` entries, which begins at `start` and has `size` bytes."""
    return _END.pack(b'PK\x05\x06', 0, 0, count, count, size, start, 0)


def read_end(tail: bytes, size: int) -> tuple[int, int, int]:
    """(entries, start, bytes) of the directory, from the last bytes (tail_of(size)) of an archive of `size` bytes. Raises Corrupted."""
    at = tail.rfind(b'PK\x05\x06')
    if at < 0 or at + _END.size > len(tail):
        raise Corrupted('it is no zip file: its directory is missing')
    _, _, _, _, count, length, start, _ = _END.unpack_from(tail, at)
    if start + length > size:
        raise Corrupted('its directory does not lie inside of the zip file')
    return count, start, length


def tail_of(size: int) -> tuple[int, int]:
    """[start, stop) of the bytes that have the end record."""
    return max(0, size - _TAIL), size


def read_directory(data: bytes, count: int) -> Iterator[Member]:
    """The members, in the order of the directory. Raises Corrupted."""
    at = 0
    for _ in range(count):
        if len(data) - at < _CENTRAL.size:
            raise Corrupted('the directory of a zip file is torn')
        (magic, _, _, _, method, _, _, crc, packed, size, name, extra, comment, _, _, attributes, offset) = _CENTRAL.unpack_from(data, at)
        end = at + _CENTRAL.size + name + extra + comment
        if magic != b'PK\x01\x02' or end > len(data):
            raise Corrupted('the directory of a zip file is torn')
        raw = data[at + _CENTRAL.size:at + _CENTRAL.size + name]
        mtime_ns, uid, gid, notes = _read_extra(data[at + _CENTRAL.size + name:at + _CENTRAL.size + name + extra])
        yield Member(raw, attributes >> 16, mtime_ns, uid, gid, crc, method, packed, size, offset, notes)
        at = end


def content_start(member: Member) -> int:
    """Where the bytes of a member that this module wrote begin."""
    return member.offset + _LOCAL.size + len(member.name) + len(_extra(member))


def content_start_of(header: bytes, offset: int) -> int:
    """The same of any archive's member, by its local header (LOCAL_SIZE bytes at `offset`). Raises Corrupted."""
    if len(header) < _LOCAL.size or header[:4] != b'PK\x03\x04':
        raise Corrupted('a member of a zip file does not lie where its directory says')
    name, extra = _LOCAL.unpack_from(header)[-2:]
    return offset + _LOCAL.size + int(name) + int(extra)


LOCAL_SIZE = _LOCAL.size


def _flags(member: Member) -> int:
    """Names that are no UTF-8 are given as they are."""
    try:
        member.name.decode('utf-8')
    except UnicodeDecodeError:
        return 0
    return 0 if member.name.isascii() else _UTF8


def _extra(member: Member) -> bytes:
    seconds = member.mtime_ns // 10**9
    parts = []
    if -(1 << 31) <= seconds < 1 << 31:
        parts.append(struct.pack('<2sHBl', b'UT', 5, 1, seconds))
    parts.append(struct.pack('<2sHBBLBL', b'ux', 11, 1, 4, member.uid, 4, member.gid))
    return b''.join(parts)


def _read_extra(extra: bytes) -> tuple[int, int, int, bytes]:
    mtime_ns = uid = gid = at = 0
    notes = b''
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from('<2sH', extra, at)
        body = extra[at + 4:at + 4 + length]
        if kind == b'UT' and len(body) >= 5:
            mtime_ns = struct.unpack_from('<l', body, 1)[0] * 10**9
        elif kind == b'ux' and len(body) == 11:
            _, _, uid, _, gid = struct.unpack('<BBLBL', body)
        elif kind == b'cx':
            notes = body
        at += 4 + length
    return mtime_ns, uid, gid, notes


def _dos_time(mtime_ns: int) -> tuple[int, int]:
    """(time, date) in UTC, for readers that know no better; 1980 to 2107."""
    seconds = min(max(mtime_ns // 10**9, 315_532_800), 4_354_819_198)
    year, month, day, hour, minute, second = time.gmtime(seconds)[:6]
    return hour << 11 | minute << 5 | second // 2, (year - 1980) << 9 | month << 5 | day
