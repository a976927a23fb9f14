"""The index's file format: POSIX attributes of many paths in one small object that `zstdcat` and `jq` can read.

Owns names, encoding and decoding of index objects. It must not know stores, schedules, or which record is still valid.

Format, version 1. An index object is one zstd stream of JSON lines (UTF-8, `\\n`). The first line is the header:

    format       "ctxfs-index"
    version      1; a reader refuses a version that it does not know
    kind         "base" (everything known when it was written) or "segment" (what one host changed)
    host         id of the host that wrote it
    created_ns   when, ns since the epoch, by that host's clock
    covers       [names] of the index objects that a base replaces (without prefix); [] in a segment

Each further line is the record of one path; lines are in the order of the paths' UTF-8 bytes, one line a path, so that any number of
index objects merges as a stream:

    p   path: the object's key relative to the context's prefix; a directory's ends with "/"
    n   when its host made the change, ns since the epoch; of two records of one path the later counts
    e   etag of the object version that the attributes belong to ("" for directories, left out when "")
    s   size in bytes of that version (left out when 0)
    m   st_mode with the file type, decimal. Missing: a tombstone, the path was removed
    u, g        uid, gid (left out when 0)
    t   [mtime, atime, ctime] in ns since the epoch
    l   symlink target, base64 (the bytes need not be UTF-8)
    r   rdev of a device node
    x   xattrs: {name: base64}
    h   id of the hard-link group that the file belongs to
    y   the lifecycle that the object carries as a tag, as "Lifecycle_30Days"

Fields that a reader does not know are ignored. A record whose (e, s) is not the object's current (etag, size) says nothing. Anybody who may
write to the context may have written the object, so a reader takes nothing that its own kernel or database could not hold: a record with such
a value, a line of more than MAX_LINE bytes, or records that are together more than MAX_RATIO times the object (beyond MAX_FREE) make the whole
object unreadable, which costs HEAD requests.
Names: `<20 digits of created_ns>-<host>-<random>.seg.zst` and `….base.zst`, so that name order is creation order and two hosts, or two
processes of one, never write the same object.
"""
from __future__ import annotations

import io
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, BinaryIO, TypeVar

import msgspec
import zstandard

from ctxfs.errors import Corrupted, Unsupported
from ctxfs.records import RESERVED_DIR, UNREADABLE, Attrs, IndexRecord
from ctxfs.storage.attr_bounds import FILE_TYPES, are_xattrs, is_target

FORMAT = 'ctxfs-index'
VERSION = 1
#: where index objects live, below the context's prefix
INDEX_DIR = RESERVED_DIR + 'index/'
#: one line: a path of 1,023 bytes, a target of 4,095 and 64 KiB of xattrs in base64 fit twice; more is not an index
MAX_LINE = 256 << 10
#: bytes of records that any object may hold, and how many times its own size a larger one
MAX_FREE, MAX_RATIO = 16 << 20, 200
#: the window that a reader must hold in memory, as a power of two; a stream that wants more is refused
_MAX_WINDOW = 1 << 23
_LEVEL = 3
_CHUNK = 256 << 10
#: compressed bytes given to the decompressor at a time: 4 of them can become 128 KiB, so this bounds a hostile object to 8 MiB a step
_STEP = 1 << 8
_NAME = re.compile(r'(\d{20})-([A-Za-z0-9_.]+)-([0-9a-f]+)\.(seg|base)\.zst')


_Ns = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Id = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
_Short = Annotated[str, msgspec.Meta(max_length=1024)]


L = TypeVar('L', bound='Line')


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of an index object; see the module docstring."""
    kind: str
    host: str
    created_ns: _Ns
    covers: list[str] = []
    format: str = FORMAT
    version: int = VERSION


class Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One record as it is written; see the module docstring."""
    p: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    n: _Ns
    e: _Short = ''
    s: _Size = 0
    m: Annotated[int, msgspec.Meta(ge=0, le=0o177777)] | None = None
    u: _Id = 0
    g: _Id = 0
    t: tuple[_Ns, _Ns, _Ns] = (0, 0, 0)
    l: bytes | None = None  # noqa: E741  (the fields are named as in the format)
    r: _Size = 0
    x: dict[str, bytes] | None = None
    h: _Short = ''
    y: _Short = ''


_encoder = msgspec.json.Encoder()
_decode_header = msgspec.json.Decoder(Header).decode
_decode_line = msgspec.json.Decoder(Line).decode


def object_name(kind: str, *, host: str, created_ns: int) -> str:
    """A new name for an index object of `kind` 'segment' or 'base'. `host` is reduced to characters that names may have."""
    suffix = 'base' if kind == 'base' else 'seg'
    safe = re.sub(r'[^A-Za-z0-9_.]', '_', host) or '_'
    return f'{created_ns:020d}-{safe}-{secrets.token_hex(4)}.{suffix}.zst'


def kind_of(name: str) -> str | None:
    """'base' or 'segment', or None when `name` is not an index object's."""
    match = _NAME.fullmatch(name)
    return None if match is None else 'base' if match[4] == 'base' else 'segment'


def to_line(record: IndexRecord, kind: type[L] = Line, **more: Any) -> L:  # type: ignore[assignment]
    """`more`: fields of a line of another `kind`."""
    attrs = record.attrs
    if attrs is None:
        return kind(p=record.path, n=record.changed_ns, e=record.etag, s=record.size, h=record.link, y=record.lifecycle, **more)
    return kind(p=record.path, n=record.changed_ns, e=record.etag, s=record.size, m=attrs.mode, u=attrs.uid, g=attrs.gid,
                t=(attrs.mtime_ns, attrs.atime_ns, attrs.ctime_ns), l=attrs.target, r=attrs.rdev, x=attrs.xattrs, h=record.link,
                y=record.lifecycle, **more)


def to_record(line: Line) -> IndexRecord:
    """Raises Corrupted for what no file has."""
    attrs = None
    if line.m is not None:
        mtime_ns, atime_ns, ctime_ns = line.t
        _check(line, line.m)
        attrs = Attrs(mode=line.m, uid=line.u, gid=line.g, mtime_ns=mtime_ns, atime_ns=atime_ns, ctime_ns=ctime_ns, target=line.l,
                      rdev=line.r, xattrs=line.x)
    return IndexRecord(path=line.p, changed_ns=line.n, etag=line.e, size=line.s, attrs=attrs, link=line.h, lifecycle=line.y)


def _check(line: Line, mode: int) -> None:
    """What the types of the fields do not say. Raises Corrupted."""
    kind = stat.S_IFMT(mode)
    if kind not in FILE_TYPES or (kind == stat.S_IFDIR) != line.p.endswith('/'):
        raise Corrupted(f'an index record of {line.p[:80]!r} has the mode {mode:o}')
    if line.l is not None and not (kind == stat.S_IFLNK and is_target(line.l)):
        raise Corrupted(f'an index record of {line.p[:80]!r} has a target that no symlink has')
    if line.x and not are_xattrs(line.x):
        raise Corrupted(f'an index record of {line.p[:80]!r} has extended attributes that no file has')


def write(file: BinaryIO, header: Header, records: Iterable[IndexRecord]) -> int:
    """Write an index object into `file`, streaming. Returns how many records there were; Corrupted if they were not in order."""
    return write_lines(file, header, (to_line(record) for record in in_order(records)))


def write_lines(file: BinaryIO, header: Any, found: Iterable[Any]) -> int:
    """A header and then any lines, as JSON in one zstd frame; how many lines there were."""
    count = 0
    with zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).stream_writer(file, closefd=False) as out:
        out.write(_encoder.encode(header) + b'\n')
        lines = bytearray()
        for line in found:
            lines += _encoder.encode(line) + b'\n'
            count += 1
            if len(lines) >= _CHUNK:
                out.write(lines)
                lines.clear()
        out.write(lines)
    return count


def encode(header: Header, records: Iterable[IndexRecord]) -> bytes:
    """A whole index object as bytes, for segments: the records may come in any order, the latest of each path counts."""
    latest: dict[str, IndexRecord] = {}
    for record in records:
        known = latest.get(record.path)
        if known is None or record.changed_ns >= known.changed_ns:
            latest[record.path] = record
    file = io.BytesIO()
    write(file, header, (latest[path] for path in sorted(latest)))
    return file.getvalue()


def in_order(records: Iterable[IndexRecord]) -> Iterator[IndexRecord]:
    """The same; Corrupted where they are not in the order of their paths."""
    # The order of UTF-8 bytes is the order of code points, which is how Python compares str.
    last = ''
    for record in records:
        if record.path <= last:
            raise Corrupted(f'index records are out of order at {record.path!r}')
        last = record.path
        yield record


def read(file: BinaryIO) -> tuple[Header, Iterator[IndexRecord]]:
    """The header, and the records as they are decompressed: memory is bounded by MAX_LINE and the zstd window.

    Raises Corrupted for what is not a whole index object (the iterator too: a torn object shows at its end), Unsupported for a version
    that is not known."""
    lines = read_lines(file)
    try:
        header = _decode_header(next(lines))
    except StopIteration:
        raise Corrupted('an empty index object') from None
    except UNREADABLE as error:
        raise Corrupted(f'not an index object: {error}') from error
    if header.format != FORMAT:
        raise Corrupted(f'not an index object: its format is {header.format!r}')
    if header.version != VERSION:
        raise Unsupported(f'index version {header.version} is not known to this ctxfs, which reads version {VERSION}: upgrade ctxfs')
    return header, in_order(_records(lines))


def _records(lines: Iterator[bytes]) -> Iterator[IndexRecord]:
    for line in lines:
        try:
            yield to_record(_decode_line(line))
        except UNREADABLE as error:
            raise Corrupted(f'an index record cannot be read: {error}') from error


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """What `write_lines` wrote, line by line, bounded as `read` is. Raises Corrupted."""
    rest = b''
    for data in _decompressed(file):
        start = 0
        while (end := data.find(b'\n', start)) >= 0:       # one by one: a split of a hostile step is a million lines
            yield _line(rest + data[start:end])
            rest, start = b'', end + 1
        rest = _line(rest + data[start:])
    if rest:
        raise Corrupted('an index object ends within a line')


def _line(line: bytes) -> bytes:
    if len(line) > MAX_LINE:
        raise Corrupted(f'a line of more than {MAX_LINE} bytes in an index object')
    return line


def _decompressed(file: BinaryIO) -> Iterator[bytes]:
    """The one zstd frame of the object. `decompressobj` and not a reader, because it tells whether the frame came to its end."""
    frame = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
    taken = given = 0
    while not frame.eof:
        data = file.read(_CHUNK)
        if not data:
            raise Corrupted('an index object is torn: its compressed stream does not end')
        for start in range(0, len(data), _STEP):
            if frame.eof:
                raise Corrupted('an index object has bytes after its end')
            try:
                plain = frame.decompress(data[start:start + _STEP])
            except zstandard.ZstdError as error:
                raise Corrupted(f'an index object cannot be decompressed: {error}') from error
            taken, given = taken + _STEP, given + len(plain)
            if given > MAX_FREE + MAX_RATIO * taken:
                raise Corrupted('an index object unpacks to more than its size can mean')
            yield plain
    if frame.unused_data or file.read(1):
        raise Corrupted('an index object has bytes after its end')
