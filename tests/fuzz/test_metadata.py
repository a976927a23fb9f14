"""User metadata that anybody wrote on an object: attributes within the bounds of the kernel and the database, or those of an object without."""
from __future__ import annotations

import json
import stat
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ctxfs.records import Attrs, Stamp
from ctxfs.storage import posix_meta
from ctxfs.storage.keys import KEY_MAX, Unmountable, component_to_name, key_to_path, name_to_component, path_to_key
from tests.fuzz.tools import DEEP, bounded, fuzz, integers, surrogates, texts, values

INT64 = range(-(1 << 63), 1 << 63)
NAMES = ['mode', 'uid', 'gid', 'mtime', 'atime', 'ctime', 'rdev', 'xattr', 'ctxfs', 'symlink-target', '--symlink-target', 'gcsfuse_symlink_target',
         'is_symlink', 'hdi_isfolder', 'permissions', 'file-permissions', 'owner', 'file-owner', 'file-mtime', 'goog-reserved-posix-mode',
         'goog-reserved-posix-uid', 'gcsfuse_mtime', 'goog-reserved-file-mtime']
numbers = st.one_of(integers.map(str), st.sampled_from([
    '1e308', '-1e308', 'nan', 'inf', '1.5959e+09', '0x10', '1_0', '٣', '²', '9' * 5000, '0' * 5000, '']))
times = st.one_of(numbers, numbers.map('{}ns'.format), st.tuples(numbers, numbers).map('.'.join), st.sampled_from([
    '9999-12-31T23:59:59Z', '0001-01-01T00:00:00+23:59', '2024-13-01T00:00:00Z', '253402300799', '-253402300799', '253402300799.999999999',
    '9223372036.854775807', '9223372036.854775808', '1e11']))
xattrs = st.one_of(values.map(json.dumps).map(quote), texts,
                   st.dictionaries(texts | surrogates, st.just('QUFB'), max_size=2).map(json.dumps).map(quote))
metadata = st.dictionaries(st.sampled_from(NAMES), st.one_of(numbers, times, texts, xattrs), max_size=5)


def check(attrs: Attrs) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(attrs), type=Attrs) == attrs
    assert 0 <= attrs.mode <= 0o177777 and stat.S_IFMT(attrs.mode) and 0 <= attrs.uid < 1 << 32 and 0 <= attrs.gid < 1 << 32
    assert all(ns in INT64 for ns in (attrs.mtime_ns, attrs.atime_ns, attrs.ctime_ns)) and 0 <= attrs.rdev < 1 << 63
    assert attrs.target is None or (0 < len(attrs.target) <= 4095 and b'\0' not in attrs.target)
    for name, value in (attrs.xattrs or {}).items():
        assert 0 < len(name.encode()) <= 1020 and '\0' not in name and len(value) <= 64 << 10


def decode(found: dict[str, str], key: str = 'k') -> Attrs:
    return posix_meta.decode(found, key=key, size=3, mtime_ns=5, uid=1, gid=2)


@given(metadata, texts)
@example({'mtime': '253402300799'}, 'k')
@example({'rdev': '18446744073709551615'}, 'k')
@example({'symlink-target': 'a' * 5000, 'mode': '41471'}, 'k')
@example({'xattr': quote('{"\\ud800": "QUFB"}')}, 'k')
@example({'xattr': quote('{"a\\u0000b": "QUFB"}')}, 'k')
@fuzz
def test_any_metadata_give_attributes_that_a_file_can_have(found: dict[str, str], key: str) -> None:
    """Never an error: a value that makes no sense counts as not there."""
    check(decode(found, key))


@given(texts, st.integers(0, 40))
@example('v=1;rev=9999999999999999999', 0)
@fuzz
def test_any_stamp_is_one_or_none(text: str, cut: int) -> None:
    """The key that ctxfs itself writes; anybody can."""
    good = posix_meta.encode_stamp(Stamp(sha256='ab', host='h', revision=7, link='l'))
    for value in (text, good[:cut] + text + good[cut:]):
        stamp = posix_meta.decode_stamp({'ctxfs': value})
        assert stamp is None or (msgspec.msgpack.encode(stamp) and 0 <= stamp.revision < 1 << 63)


BOMBS: dict[str, dict[str, str]] = {
    'deep': {'xattr': DEEP[0].decode()}, 'deeper': {'xattr': DEEP[2].decode()}, 'digits': {'mtime': '9' * 1_000_000, 'uid': '9' * 1_000_000},
    'exponent': {'mtime': '1e' + '9' * 30}, 'escapes': {'symlink-target': '%41' * 300_000}, 'blanks': {'mode': ' ' * 1_000_000 + 'x'},
    'semicolons': {'ctxfs': ';' * 1_000_000}, 'a long number in xattrs': {'xattr': '{"a":' + '9' * 1_000_000 + '}'}}


@pytest.mark.parametrize('name', BOMBS)
def test_metadata_without_end_take_little_memory_and_time(name: str) -> None:
    """Headers are bounded by the connection; what a sidecar or another store hands over need not be."""
    bounded(lambda: check(decode(BOMBS[name])))
    bounded(lambda: posix_meta.decode_stamp(BOMBS[name]))


# --- keys ------------------------------------------------------------------------------------------------------------------------

@given(st.one_of(texts, st.text(), st.text('a/‛F.\0', max_size=300), st.just('a/' * 100_000)))
@fuzz
def test_a_key_leads_to_one_place_below_the_root_or_nowhere(key: str) -> None:
    """No name that means another directory, ends early or is the reserved one; and back to the very same key."""
    path = key_to_path(key)
    if isinstance(path, Unmountable):
        assert path.reason and len(path.reason) < 300
        return
    assert all(name not in (b'', b'.', b'..') and not set(name) & set(b'/\0') and len(name) <= 255 for name in path)
    assert not path or path[0] != b'.ctxfs'
    assert len(path) <= KEY_MAX // 2 + 1
    if len(key.encode()) <= KEY_MAX:
        assert path_to_key(path, is_dir=key.endswith('/')) == key


@given(st.binary(min_size=1, max_size=300))
@fuzz
def test_a_name_is_one_component(name: bytes) -> None:
    """Whatever bytes a program uses: one component of a key, and back."""
    if b'/' not in name:
        component = name_to_component(name)
        assert '/' not in component and component_to_name(component) == name


def test_attributes_that_are_written_are_read_back() -> None:
    """At the edges of what a file can have."""
    for ns in (INT64[0], -1, 0, INT64[-1]):
        attrs: Any = Attrs(mode=0o100644, uid=(1 << 32) - 2, gid=0, mtime_ns=ns, atime_ns=ns, ctime_ns=ns)
        assert decode(posix_meta.encode(attrs)) == attrs
