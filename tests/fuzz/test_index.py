"""Index objects that anybody wrote: whatever is in them is a record within its bounds, or the object is refused as a whole."""
from __future__ import annotations

import io
import json
import stat
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from ctxfs.errors import Corrupted, CtxfsError
from ctxfs.records import Attrs, IndexRecord
from ctxfs.storage import index_format
from ctxfs.storage.index_format import Header
from tests.fuzz.tools import DEEP, MIB, bounded, fuzz, integers, mutated, texts, values

HEADER = {'format': 'ctxfs-index', 'version': 1, 'kind': 'segment', 'host': 'h', 'created_ns': 5}
INT64 = range(-(1 << 63), 1 << 63)


def pack(*lines: bytes, header: Any = HEADER) -> bytes:
    return zstandard.compress(b''.join(line + b'\n' for line in (json.dumps(header).encode(), *lines)))


def read(data: bytes) -> list[IndexRecord]:
    return list(index_format.read(io.BytesIO(data))[1])


def check(record: IndexRecord) -> None:
    """All that the rest of ctxfs relies on: SQLite's integers, msgpack, the kernel's names and types."""
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=IndexRecord) == record
    assert 1 <= len(record.path.encode()) <= 1023 + 1 and record.changed_ns in INT64 and 0 <= record.size < 1 << 63
    assert max(map(len, (record.etag, record.link, record.lifecycle))) <= 1024
    attrs = record.attrs
    if attrs is None:
        return
    assert stat.S_IFMT(attrs.mode) and attrs.mode <= 0o177777 and 0 <= attrs.uid < 1 << 32 and 0 <= attrs.gid < 1 << 32
    assert all(ns in INT64 for ns in (attrs.mtime_ns, attrs.atime_ns, attrs.ctime_ns)) and 0 <= attrs.rdev < 1 << 63
    assert stat.S_ISDIR(attrs.mode) == record.path.endswith('/')
    assert attrs.target is None or (1 <= len(attrs.target) <= 4095 and b'\0' not in attrs.target)
    assert stat.S_ISLNK(attrs.mode) or attrs.target is None
    for name, value in (attrs.xattrs or {}).items():
        assert 1 <= len(name.encode()) <= 1020 and '\0' not in name and len(value) <= 64 << 10


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    'p': texts, 'n': integers, 'e': texts, 's': integers, 'm': st.one_of(integers, st.sampled_from([0o100644, 0o40755, 0o120777, 0o644, 0o160000])),
    'u': integers, 'g': integers, 't': st.lists(integers, min_size=3, max_size=3), 'l': texts, 'r': integers,
    'x': st.dictionaries(texts, texts, max_size=2), 'h': texts, 'y': texts, 'zzz': values}


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A record as one that is right but for a few fields."""
    right = {'p': 'a', 'n': 1, 'e': '"x"', 's': 3, 'm': 0o100644, 't': [1, 2, 3]}
    names = draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=3, unique=True))
    line = {**right, **{name: draw(st.one_of(FIELDS[name], values)) for name in names}}
    return json.dumps(line, ensure_ascii=draw(st.booleans())).encode('utf-8', 'surrogatepass')


@given(st.lists(lines(), min_size=1, max_size=3))
@fuzz
def test_a_record_is_within_its_bounds_or_refused(some: list[bytes]) -> None:
    """Fields of any type and size, paths that lead anywhere: no other error, and nothing that a later step would choke on."""
    try:
        records = read(pack(*some))
    except CtxfsError:
        return
    for record in records:
        check(record)


@given(values)
@fuzz
def test_a_header_is_right_or_refused(header: Any) -> None:
    try:
        index_format.read(io.BytesIO(pack(header=header)))
        index_format.read(io.BytesIO(pack(header={**HEADER, 'covers': header, 'created_ns': header})))
    except CtxfsError:
        return


GOOD = index_format.encode(Header(kind='segment', host='h', created_ns=1), [
    IndexRecord(path=path, changed_ns=1, etag='"e"', size=1, attrs=Attrs(mode=0o100644, uid=1, gid=1, mtime_ns=1, atime_ns=1, ctime_ns=1))
    for path in ('a', 'b', 'c/d')])
PLAIN = zstandard.ZstdDecompressor().decompressobj().decompress(GOOD)


@given(st.one_of(st.binary(max_size=200), mutated(st.just(GOOD)), mutated(st.just(PLAIN)).map(zstandard.compress)))
@example(GOOD + b'x')
@example(GOOD + GOOD)
@example(b'')
@fuzz
def test_any_bytes_are_an_index_object_or_refused(data: bytes) -> None:
    """Torn, flipped, joined; compressed or not."""
    try:
        for record in read(data):
            check(record)
    except CtxfsError:
        return


def rle_bomb(blocks: int, byte: bytes = b'\n') -> bytes:
    """A zstd frame of 4 bytes for each 128 KiB of one byte (RFC 8878: an RLE block)."""
    block = ((128 << 10) << 3 | 1 << 1).to_bytes(3, 'little') + byte
    last = ((128 << 10) << 3 | 1 << 1 | 1).to_bytes(3, 'little') + byte
    return b'\x28\xb5\x2f\xfd' + b'\x00' + b'\x58' + block * (blocks - 1) + last


BOMBS = {
    'newlines': lambda: rle_bomb(8_000), 'one line': lambda: rle_bomb(8_000, b'a'), 'nuls': lambda: rle_bomb(50_000, b'\0'),
    'blanks': lambda: rle_bomb(8_000, b' '), 'deep': lambda: pack(DEEP[0]), 'deep in a field': lambda: pack(b'{"p":"a","n":1,"zz":' + DEEP[0] + b'}'),
    'deep header': lambda: zstandard.compress(DEEP[2] + b'\n'), 'a long number': lambda: pack(b'{"p":"a","n":' + b'9' * 500_000 + b'}'),
    'a long exponent': lambda: pack(b'{"p":"a","n":1e999999999}'),
    'a large window': lambda: zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=27)).compress(b'a' * MIB),
}


@pytest.mark.parametrize('name', BOMBS)
def test_a_bomb_is_refused_in_little_memory_and_time(name: str) -> None:
    """An object of kilobytes that unpacks to gigabytes, or nests without end."""
    data = BOMBS[name]()
    assert len(data) < MIB
    with pytest.raises(Corrupted):
        bounded(lambda: read(data), megabytes=96)


def test_records_that_compress_well_are_bounded_by_the_size_of_their_object() -> None:
    """Many records with the same large value, each within its bounds: their object is refused before it fills a disk."""
    value = 'QUFB' * 20_000
    line = b'{"p":"f%09d","n":1,"m":33188,"x":{"user.a":"' + value.encode() + b'"}}\n'
    out = zstandard.ZstdCompressor(level=3).compressobj()
    data = b''.join([out.compress(json.dumps(HEADER).encode() + b'\n'), *(out.compress(line % n) for n in range(2_000)), out.flush()])

    def count() -> int:
        found = 0
        with pytest.raises(Corrupted):
            for _ in index_format.read(io.BytesIO(data))[1]:
                found += 1
        return found
    assert bounded(count) * len(line) <= index_format.MAX_FREE + index_format.MAX_RATIO * len(data)
