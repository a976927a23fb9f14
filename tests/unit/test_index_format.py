"""The index format: whole or refused, in order, bounded."""
from __future__ import annotations

import io
import json
import stat

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ctxfs.errors import Corrupted, Unsupported
from ctxfs.records import Attrs, IndexRecord
from ctxfs.storage import index_format
from ctxfs.storage.index_format import Header

NS = st.integers(-2**62, 2**62)
TYPES = (stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
TARGETS = st.binary(max_size=20).map(lambda data: data.replace(b'\0', b'/') or b'x')
TEXT = st.text(st.characters(exclude_categories=['Cs']), max_size=9)
ATTRS = st.builds(Attrs, mode=st.builds(int.__or__, st.sampled_from(TYPES), st.integers(0, 0o7777)), uid=st.integers(0, 2**32 - 1),
                  gid=st.integers(0, 2**32 - 1), mtime_ns=NS, atime_ns=NS, ctime_ns=NS, target=st.none() | TARGETS, rdev=st.integers(0, 2**32),
                  xattrs=st.none() | st.dictionaries(st.text(st.characters(exclude_categories=['Cs', 'Cc']), min_size=1, max_size=5),
                                                     st.binary(max_size=9), max_size=3))


def consistent(record: IndexRecord) -> IndexRecord:
    """A directory's path ends with a slash, and only symlinks have a target."""
    attrs = record.attrs
    if attrs is None:
        return record
    if record.path.endswith('/'):
        attrs = msgspec.structs.replace(attrs, mode=stat.S_IFDIR | stat.S_IMODE(attrs.mode))
    return msgspec.structs.replace(record, attrs=attrs if stat.S_ISLNK(attrs.mode) else msgspec.structs.replace(attrs, target=None))


RECORDS = st.lists(st.builds(IndexRecord, path=st.text(st.characters(exclude_categories=['Cs']), min_size=1, max_size=8), changed_ns=NS,
                             etag=TEXT, size=st.integers(0, 2**50), attrs=st.none() | ATTRS, link=TEXT).map(consistent), max_size=20)
HEADER = Header(kind='segment', host='h', created_ns=12, covers=['x'])


def compressed(*lines: object) -> io.BytesIO:
    return io.BytesIO(zstandard.compress(b''.join(json.dumps(line).encode() + b'\n' for line in lines)))


def readable() -> bytes:
    return index_format.encode(HEADER, [IndexRecord(path=f'p{number}', changed_ns=number) for number in range(2000)])


@given(RECORDS)
def test_what_is_written_is_read_back_sorted_with_the_latest_of_each_path(records: list[IndexRecord]) -> None:
    """Encoding and decoding give the same header and, of each path, the record with the greatest change time."""
    header, decoded = index_format.read(io.BytesIO(index_format.encode(HEADER, records)))
    latest: dict[str, IndexRecord] = {}
    for record in records:
        if record.path not in latest or record.changed_ns >= latest[record.path].changed_ns:
            latest[record.path] = record
    assert header == HEADER
    assert list(decoded) == [latest[path] for path in sorted(latest)]


@pytest.mark.parametrize('damage', [
    lambda body: b'', lambda body: body[:-1], lambda body: body[:len(body) // 2], lambda body: body + b'x',
    lambda body: b'\0' * 40, lambda body: body[:60] + bytes([body[60] ^ 0xff]) + body[61:], lambda body: body + body])
def test_a_damaged_object_is_refused(damage: object) -> None:
    """Torn, extended, flipped or foreign bytes raise Corrupted, at the latest at the end."""
    with pytest.raises(Corrupted):
        list(index_format.read(io.BytesIO(damage(readable())))[1])  # type: ignore[operator]


def test_an_unknown_version_is_refused_and_an_unknown_field_is_not() -> None:
    """A newer format is named as such; a newer field of this version is skipped."""
    head = {'format': 'ctxfs-index', 'version': 2, 'kind': 'base', 'host': 'h', 'created_ns': 1}
    with pytest.raises(Unsupported, match='version 2'):
        index_format.read(compressed(head))
    _, records = index_format.read(compressed({**head, 'version': 1, 'new': 1}, {'p': 'a', 'n': 5, 'm': 33188, 'zz': [1]}))
    assert [record.path for record in records] == ['a']


def test_records_out_of_order_are_refused_by_reader_and_writer() -> None:
    """Merging relies on the order, so nothing else is written or believed."""
    head = {'format': 'ctxfs-index', 'version': 1, 'kind': 'base', 'host': 'h', 'created_ns': 1}
    with pytest.raises(Corrupted, match='order'):
        list(index_format.read(compressed(head, {'p': 'b', 'n': 1}, {'p': 'a', 'n': 1}))[1])
    with pytest.raises(Corrupted, match='order'):
        index_format.write(io.BytesIO(), HEADER, [IndexRecord(path='b', changed_ns=1), IndexRecord(path='a', changed_ns=1)])


def test_a_bomb_is_refused_before_it_fills_the_memory() -> None:
    """1 GiB of one line in 32 KiB of zstd is stopped at the limit for a line."""
    body = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(body, closefd=False) as out:
        for _ in range(1024):
            out.write(b'a' * (1 << 20))
    body.seek(0)
    with pytest.raises(Corrupted, match='line'):
        index_format.read(body)


def test_names_sort_by_time_and_tell_their_kind() -> None:
    """Names of one host and time differ; foreign names are no index objects."""
    names = [index_format.object_name(kind, host='h/ä-1', created_ns=ns) for ns in (5, 10**18) for kind in ('base', 'segment')]
    assert [index_format.kind_of(name) for name in names] == ['base', 'segment', 'base', 'segment']
    assert max(names[:2]) < min(names[2:]) and len(set(names)) == 4 and not any('/' in name for name in names)
    assert index_format.kind_of('README') is None
    assert index_format.object_name('base', host='h', created_ns=1) != index_format.object_name('base', host='h', created_ns=1)
