"""Notes: what an archive's directory says of a member beyond what zip has fields for, so that archives alone give more than unzip can.

Owns the bytes of these notes (zip_format.py puts them into a field of their own). It must not know the log, which has all of it too, nor where
archives lie. What is too long for a directory, or cannot be read, is left out: the log has it.

    1 byte    version, 1
    1 byte    bits: 1: the member is there for who unpacks the archive, and no member for the log (a directory that is not empty)
    8 bytes   mtime, ns since 1970 (little-endian, signed)
    rest      JSON, where there is anything to be said: `x` extended attributes, `h` hard-link group, `y` lifetime, as in a line of the index
"""
from __future__ import annotations

import struct
from typing import Annotated

import msgspec

from ctxfs.records import UNREADABLE, IndexRecord
from ctxfs.storage.attr_bounds import are_xattrs
from ctxfs.storage.zip_format import NOTES_MAX

_VERSION, _ALONG = 1, 1
_HEAD = struct.Struct('<BBq')
_Short = Annotated[str, msgspec.Meta(max_length=1024)]


class _More(msgspec.Struct, omit_defaults=True):
    x: dict[str, bytes] | None = None
    h: _Short = ''
    y: _Short = ''


class Notes(msgspec.Struct, frozen=True, kw_only=True):
    """What was noted. `is_along`: see the module docstring."""
    mtime_ns: int
    xattrs: dict[str, bytes] | None = None
    link: str = ''
    lifecycle: str = ''
    is_along: bool = False


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_More).decode


def encode(record: IndexRecord, *, is_along: bool) -> bytes:
    """Of a record with attributes."""
    assert record.attrs is not None
    head = _HEAD.pack(_VERSION, _ALONG if is_along else 0, record.attrs.mtime_ns)
    if not (record.attrs.xattrs or record.link or record.lifecycle):
        return head
    more = _encode(_More(x=record.attrs.xattrs or None, h=record.link, y=record.lifecycle))
    if len(head) + len(more) > NOTES_MAX:
        more = _encode(_More(h=record.link, y=record.lifecycle))
    return head + more


def decode(notes: bytes) -> Notes | None:
    """None for what is none, or of a version that is not known."""
    if len(notes) < _HEAD.size or notes[0] != _VERSION:
        return None
    _, bits, mtime_ns = _HEAD.unpack_from(notes)
    try:
        more = _decode(notes[_HEAD.size:]) if len(notes) > _HEAD.size else _More()
    except UNREADABLE:
        more = _More()
    xattrs = more.x if more.x and are_xattrs(more.x) else None
    return Notes(mtime_ns=mtime_ns, xattrs=xattrs, link=more.h, lifecycle=more.y, is_along=bool(bits & _ALONG))
