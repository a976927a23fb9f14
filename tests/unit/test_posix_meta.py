"""POSIX attributes through object metadata: what ctxfs writes it reads, and it reads what everybody else writes."""
from __future__ import annotations

import base64
import json
import stat
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxfs.records import Attrs, Stamp
from ctxfs.storage.attr_bounds import INT64_MAX, INT64_MIN
from ctxfs.storage.object_store import METADATA_MAX, check_metadata
from ctxfs.storage.posix_meta import DIRECTORY_TYPE, decode, decode_stamp, encode, encode_stamp

NOW = 1_700_000_000_123_456_789
TYPES = [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK]
TIMES = st.integers(INT64_MIN, INT64_MAX)


def read(metadata: dict[str, str] | None, *, key: str = 'k', size: int = 5, content_type: str | None = None, **options: Any) -> Attrs:
    return decode(metadata, key=key, size=size, mtime_ns=NOW, content_type=content_type, **{'uid': 7, 'gid': 8, **options})


def attrs(**changes: Any) -> Attrs:
    return Attrs(**{'mode': 0o100644, 'uid': 1, 'gid': 2, 'mtime_ns': NOW, 'atime_ns': NOW, 'ctime_ns': NOW, **changes})


@given(st.sampled_from(TYPES), st.integers(0, 0o7777), st.integers(0, 2**32 - 2), TIMES, TIMES, st.integers(0, 2**63 - 1))
def test_what_is_written_is_read(kind: int, permissions: int, uid: int, mtime_ns: int, atime_ns: int, rdev: int) -> None:
    """Every type and permission, nanoseconds, times before 1970."""
    written = attrs(mode=kind | permissions, uid=uid, gid=uid, mtime_ns=mtime_ns, atime_ns=atime_ns, rdev=rdev)
    metadata = dict(check_metadata(encode(written)))
    assert read(metadata, key='d/' if kind == stat.S_IFDIR else 'k') == written


def test_every_mode_is_read_from_both_bases() -> None:
    """s3fs writes st_mode in decimal, rclone in octal, under one name: all 4,096 permissions of files, directories and symlinks."""
    for permissions in range(0o10000):
        for kind, key in ((stat.S_IFREG, 'k'), (stat.S_IFDIR, 'k/'), (stat.S_IFLNK, 'k')):
            mode = kind | permissions
            assert read({'mode': str(mode)}, key=key).mode == mode
            assert read({'mode': f'{mode:o}'}, key=key).mode == mode


@pytest.mark.parametrize(('metadata', 'expected'), [
    ({'mode': '33188', 'uid': '1000', 'gid': '1001', 'mtime': '1595002920.000000001'},
     attrs(uid=1000, gid=1001, mtime_ns=1595002920000000001, atime_ns=1595002920000000001, ctime_ns=1595002920000000001)),
    ({'mode': '100600', 'mtime': '2020-07-17T16:22:00.5Z', 'atime': '2020-07-17T18:22:00+02:00', 'uid': '5'},
     attrs(mode=0o100600, uid=5, gid=8, mtime_ns=1595002920500000000, atime_ns=1595002920000000000, ctime_ns=1595002920500000000)),
    ({'mtime': '1595002920.123456789'},
     attrs(uid=7, gid=8, mtime_ns=1595002920123456789, atime_ns=1595002920123456789, ctime_ns=1595002920123456789)),
    ({'file-permissions': '0100644', 'file-owner': '3', 'file-group': '4', 'file-mtime': '1595002920000000007ns', 'file-atime': '5ns'},
     attrs(uid=3, gid=4, mtime_ns=1595002920000000007, atime_ns=5, ctime_ns=1595002920000000007)),
    ({'gcsfuse_mtime': '2020-07-17T16:22:00.000000009Z'},
     attrs(uid=7, gid=8, mtime_ns=1595002920000000009, atime_ns=1595002920000000009, ctime_ns=1595002920000000009)),
    ({'goog-reserved-posix-mode': '640', 'goog-reserved-posix-uid': '3', 'goog-reserved-file-mtime': '1595002920'},
     attrs(mode=0o100640, uid=3, gid=8, mtime_ns=1595002920000000000, atime_ns=1595002920000000000, ctime_ns=1595002920000000000)),
    ({'permissions': '33188', 'owner': '3', 'group': '4'}, attrs(mode=0o100644, uid=3, gid=4)),
    ({'Mode': '33261', 'mtime': '1.5959e+09'}, attrs(mode=0o100755, uid=7, gid=8, mtime_ns=1595900000000000000, atime_ns=1595900000000000000,
                                                      ctime_ns=1595900000000000000)),
    ({'mode': '420'}, attrs(mode=0o100644, uid=7, gid=8)),
], ids=['s3fs', 'rclone --metadata', 'rclone', 'FSx', 'gcsfuse', 'GCS', 's3sync', 'float', 'permissions only'])
def test_each_dialect_is_read(metadata: dict[str, str], expected: Attrs) -> None:
    """As its tool writes it."""
    assert read(metadata) == expected


@pytest.mark.parametrize(('metadata', 'key', 'size', 'content_type', 'mode'), [
    (None, 'k', 5, None, 0o100644), ({}, 'k', 5, 'text/plain', 0o100644), ({}, 'd/', 0, None, 0o40755), ({}, 'd/', 3, None, 0o40755),
    ({}, 'd', 0, DIRECTORY_TYPE, 0o40755), ({}, 'd', 0, DIRECTORY_TYPE + '; charset=UTF-8', 0o40755), ({}, 'd', 5, DIRECTORY_TYPE, 0o100644),
    ({'hdi_isfolder': 'true'}, 'd', 0, None, 0o40755), ({}, 'd_$folder$', 0, None, 0o40755), ({'is_symlink': 'true'}, 'k', 5, None, 0o120777),
    ({'mode': '33188'}, 'd/', 0, None, 0o40755),
])
def test_an_object_without_mode_gets_a_sensible_one(metadata: dict[str, str] | None, key: str, size: int, content_type: str | None,
                                                    mode: int) -> None:
    """By its key and type; its times are those of the object, its owner is the mount's."""
    found = read(metadata, key=key, size=size, content_type=content_type)
    assert (found.mode, found.uid, found.gid, found.mtime_ns, found.atime_ns) == (mode, 7, 8, NOW, NOW)


def test_the_umask_applies_to_defaults_only() -> None:
    """A mode that somebody chose is kept."""
    assert read({}, umask=0o077).mode == 0o100600
    assert read({'mode': '33279'}, umask=0o077).mode == 33279


@pytest.mark.parametrize(('metadata', 'target'), [
    ({'mode': '41471'}, None), ({'mode': '41471', 'symlink-target': 'a/b'}, b'a/b'), ({'--symlink-target': 'a%2Fb'}, b'a/b'),
    ({'gcsfuse_symlink_target': '../x'}, b'../x'),
])
def test_a_symlink_has_its_target_or_its_body_tells_it(metadata: dict[str, str], target: bytes | None) -> None:
    """None means: read the object."""
    found = read(metadata)
    assert stat.S_ISLNK(found.mode)
    assert found.target == target


GARBAGE = ['', ' ', '-', 'x', '0x1f', '99999999999999999999', '9' * 400, '1e400', 'nan', 'inf', '-inf', 'nanns', '９', '\0', '2020-13-45T99:99:99Z',
           '2020-01-01T00:00:00', '%', '%zz', '{}', '[1]', '"a"', quote('{"a": 1}'), quote('{"a": "!"}'), quote('[' * 5000)]


@pytest.mark.parametrize('value', GARBAGE, ids=lambda value: ascii(value)[:20])
def test_garbage_counts_as_absent(value: str) -> None:
    """In every key that is read, and never an exception."""
    for name in ('mode', 'uid', 'gid', 'mtime', 'atime', 'ctime', 'rdev', 'xattr', 'file-permissions', 'file-mtime', 'gcsfuse_mtime'):
        assert read({name: value}) == attrs(uid=7, gid=8), name
    assert decode_stamp({'ctxfs': value}) is None


@given(st.dictionaries(st.sampled_from(['mode', 'uid', 'mtime', 'atime', 'rdev', 'xattr', 'symlink-target', 'file-mtime', 'ctxfs']),
                       st.text(max_size=30)))
def test_no_metadata_raises(metadata: dict[str, str]) -> None:
    """Whatever the text, the result is one that stat can show."""
    found = read(metadata)
    assert 0 <= found.mode <= 0o177777
    assert 0 <= found.uid < 2**32
    decode_stamp(metadata)


@given(st.dictionaries(st.text(st.characters(codec='utf-8', exclude_characters='\0'), min_size=1, max_size=20), st.binary(max_size=60), min_size=1,
                       max_size=3))
def test_xattrs_come_back_in_the_dialect_of_s3fs(xattrs: dict[str, bytes]) -> None:
    """url-encoded JSON of base64, when it fits."""
    metadata = encode(attrs(xattrs=xattrs))
    check_metadata(metadata)
    if 'xattr' in metadata:
        assert read(metadata).xattrs == xattrs


def test_xattrs_of_s3fs_are_read() -> None:
    """As it writes them."""
    text = quote(json.dumps({'user.a': base64.b64encode(b'\0v').decode()}))
    assert read({'xattr': text}).xattrs == {'user.a': b'\0v'}


def test_xattrs_that_do_not_fit_are_left_out() -> None:
    """The rest of the metadata stays, within S3's 2 KiB."""
    metadata = encode(attrs(xattrs={'user.big': b'x' * 4000}), Stamp(sha256='f' * 64, host='h' * 60, revision=2**40, link='l' * 60))
    assert 'xattr' not in metadata
    assert sum(len(name) + len(value) for name, value in metadata.items()) < METADATA_MAX
    assert metadata['mode'] == '33188'


@given(st.builds(Stamp, sha256=st.text(max_size=64), host=st.text(max_size=30), revision=st.integers(0, 10**18), link=st.text(max_size=30)))
def test_the_stamp_comes_back(stamp: Stamp) -> None:
    """Host names in any script, in ASCII metadata."""
    metadata = encode(None, stamp)
    check_metadata(metadata)
    assert decode_stamp(metadata) == stamp


def test_the_stamp_reads_as_documented() -> None:
    """The format is a promise to other hosts, and a later version of it is not misread."""
    stamp = Stamp(sha256='ab12', host='my host', revision=3, link='x')
    assert encode_stamp(stamp) == 'v=1;sha256=ab12;host=my%20host;rev=3;link=x'
    assert decode_stamp({'ctxfs': 'v=1;new=field;rev=3'}) == Stamp(revision=3)
    assert decode_stamp({'ctxfs': 'v=2;rev=3'}) is None
    assert decode_stamp({}) is decode_stamp(None) is None
