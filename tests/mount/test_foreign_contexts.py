"""Contexts that other tools filled, and objects that change behind a mount: what is shown, and that nothing in the bucket is lost.

Owns the foreign dialects by example (aws s3 cp, s3fs, rclone) and the races with another writer. It must not know how ctxfs stores.
"""
from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from tests.model.hosts import IS_DOUBLE, Site

pytestmark = pytest.mark.skipif(IS_DOUBLE, reason='a directory has no bucket')


@pytest.fixture
def prefix(site: Site) -> str:
    """The keys' prefix of an empty context `foreign`."""
    site.host().create_context('foreign')
    return f'contexts/{site.context_id("foreign")}/'


def mounted(site: Site) -> tuple[object, Path]:
    host, at = site.host(), site.mount_point()
    host.mount('foreign', at)
    return host, at


def test_objects_without_metadata_or_markers(site: Site, prefix: str) -> None:
    """What `aws s3 cp --recursive` left: ordinary modes, the user's ownership, the objects' times, directories where keys have slashes."""
    bucket = site.bucket()
    before = time.time_ns()
    for key in ('top.txt', 'a/b/c/deep.txt', 'a/b/other.txt', 'x y/ü.txt', 'zero'):
        bucket.put(prefix + key, b'' if key == 'zero' else key.encode() * 100)
    after = time.time_ns()
    versions = bucket.versions(prefix)
    host, at = mounted(site)
    assert sorted(str(p.relative_to(at)) for p in at.rglob('*')) == sorted(
        ['top.txt', 'a', 'a/b', 'a/b/c', 'a/b/c/deep.txt', 'a/b/other.txt', 'x y', 'x y/ü.txt', 'zero'])
    assert (at / 'a/b/c/deep.txt').read_bytes() == b'a/b/c/deep.txt' * 100
    st = os.stat(at / 'top.txt')
    assert stat.S_IMODE(st.st_mode) & 0o600 == 0o600 and stat.S_IMODE(st.st_mode) & 0o111 == 0
    assert (st.st_uid, st.st_gid) == (os.getuid(), os.getgid())
    # S3 tells last-modified in whole seconds, some stores rounded.
    assert before - 2 * 10**9 <= st.st_mtime_ns <= after + 2 * 10**9
    assert stat.S_IMODE(os.stat(at / 'a/b').st_mode) & 0o700 == 0o700
    host.unmount(at)
    assert {key: etag for key, etag in bucket.versions(prefix).items() if '.ctxfs/' not in key} == versions


def test_metadata_of_s3fs(site: Site, prefix: str) -> None:
    """Decimal mode with type, owner, times with nanoseconds, directory objects, symlinks whose body is the target."""
    bucket = site.bucket()
    bucket.put(prefix + 'script', b'#!/bin/sh\n', {'mode': '33261', 'uid': '1234', 'gid': '5678', 'mtime': '1600000000.123456789'})
    bucket.put(prefix + 'd/', b'', {'mode': '16832', 'uid': '1', 'gid': '2', 'mtime': '1500000000.000000001'}, 'application/x-directory')
    bucket.put(prefix + 'link', b'script', {'mode': '41471', 'uid': '0', 'gid': '0', 'mtime': '1400000000'})
    host, at = mounted(site)
    st = os.stat(at / 'script')
    assert (stat.S_IMODE(st.st_mode), st.st_mtime_ns) == (0o755, 1_600_000_000_123_456_789)
    assert stat.S_IMODE(os.stat(at / 'd').st_mode) == 0o700
    assert os.stat(at / 'd').st_mtime_ns == 1_500_000_000_000_000_001
    assert os.readlink(at / 'link') == 'script'
    assert (at / 'link').read_bytes() == b'#!/bin/sh\n'
    if os.geteuid() == 0:
        assert (st.st_uid, st.st_gid) == (1234, 5678)
    host.unmount(at)


def test_metadata_of_rclone(site: Site, prefix: str) -> None:
    """mtime as a decimal fraction, mode in octal under the key where s3fs has it in decimal."""
    bucket = site.bucket()
    bucket.put(prefix + 'plain', b'x', {'mtime': '1600000000.123456789'})
    bucket.put(prefix + 'script', b'x', {'mtime': '1600000001', 'mode': '100750', 'uid': '7', 'gid': '8'})
    host, at = mounted(site)
    assert os.stat(at / 'plain').st_mtime_ns == 1_600_000_000_123_456_789
    assert stat.S_IMODE(os.stat(at / 'script').st_mode) == 0o750
    host.unmount(at)


@pytest.mark.parametrize('metadata', [{'mode': 'rw-r--r--', 'mtime': 'yesterday', 'uid': '-1', 'gid': '99999999999999999999'},
                                      {'mode': '4294967295', 'mtime': '1e400'}, {'mode': '24576', 'mtime': '-'}, {'ctxfs': 'v=99;;=;x'},
                                      {'mode': '41471'}])
def test_garbage_in_metadata_is_survived(metadata: dict[str, str], site: Site, prefix: str) -> None:
    """Metadata that no tool meant to write neither stops the mount nor hides the file, nor makes a device of it."""
    body = b'\0 not a target' if metadata == {'mode': '41471'} else b'content'
    site.bucket().put(prefix + 'f', body, metadata)
    site.bucket().put(prefix + 'good', b'good')
    host, at = mounted(site)
    assert (at / 'good').read_bytes() == b'good'
    st = os.lstat(at / 'f')
    assert not stat.S_ISBLK(st.st_mode) and not stat.S_ISCHR(st.st_mode)
    if stat.S_ISREG(st.st_mode):
        assert (at / 'f').read_bytes() == body
    host.unmount(at)
    assert site.bucket().body(prefix + 'f') == body


def test_other_objects_stay_when_one_changes(site: Site, prefix: str) -> None:
    """A program changes one file of a foreign context: that object is written, all others keep their version."""
    bucket = site.bucket()
    for n in range(20):
        bucket.put(f'{prefix}d{n % 3}/f{n}', b'%d' % n * 500)
    versions = bucket.versions(prefix)
    host, at = mounted(site)
    with open(at / 'd0/f3', 'r+b') as f:
        f.seek(10)
        f.write(b'patched')
    host.unmount(at)
    now = bucket.versions(prefix)
    assert {key for key in versions if now.get(key) != versions[key]} == {prefix + 'd0/f3'}
    assert bucket.body(prefix + 'd0/f3') == (b'3' * 500)[:10] + b'patched' + (b'3' * 500)[17:]


# -- another writer ----------------------------------------------------------------------------------------------------------------

def everything_kept(site: Site, host: object, at: Path, prefix: str) -> set[bytes]:
    """All contents that are in the bucket, or that this host still holds and shows after it has mounted again."""
    host.unmount(at, check=False)
    bucket = site.bucket()
    kept = {bucket.body(key) for key in bucket.keys(prefix) if '.ctxfs/' not in key}
    host.mount('foreign', at)
    kept |= {p.read_bytes() for p in at.rglob('*') if p.is_file()}
    host.unmount(at, check=False)
    return kept | {bucket.body(key) for key in bucket.keys(prefix) if '.ctxfs/' not in key}


def test_overwritten_elsewhere_while_changed_here(site: Site, prefix: str) -> None:
    """Both versions are kept, and the other writer's is never silently overwritten."""
    bucket = site.bucket()
    bucket.put(prefix + 'f', b'base')
    host, at = mounted(site)
    assert (at / 'f').read_bytes() == b'base'
    (at / 'f').write_bytes(b'mine')
    bucket.put(prefix + 'f', b'theirs')
    assert {b'mine', b'theirs'} <= everything_kept(site, host, at, prefix)


def test_created_elsewhere_while_created_here(site: Site, prefix: str) -> None:
    """Two writers make the same new name: both contents are kept."""
    host, at = mounted(site)
    (at / 'new').write_bytes(b'mine')
    site.bucket().put(prefix + 'new', b'theirs')
    assert {b'mine', b'theirs'} <= everything_kept(site, host, at, prefix)


def test_overwritten_elsewhere_while_removed_here(site: Site, prefix: str) -> None:
    """A local unlink removes the version it saw, not one that somebody wrote since."""
    bucket = site.bucket()
    bucket.put(prefix + 'f', b'base')
    host, at = mounted(site)
    assert (at / 'f').read_bytes() == b'base'
    os.unlink(at / 'f')
    bucket.put(prefix + 'f', b'theirs')
    assert b'theirs' in everything_kept(site, host, at, prefix)


def test_overwritten_elsewhere_while_replaced_by_a_rename_here(site: Site, prefix: str) -> None:
    """Renaming over a file replaces the version it saw; both new contents are kept."""
    bucket = site.bucket()
    bucket.put(prefix + 'f', b'base')
    host, at = mounted(site)
    assert (at / 'f').read_bytes() == b'base'
    (at / 'tmp').write_bytes(b'mine')
    os.rename(at / 'tmp', at / 'f')
    bucket.put(prefix + 'f', b'theirs')
    assert {b'mine', b'theirs'} <= everything_kept(site, host, at, prefix)


def test_removed_elsewhere_while_changed_here(site: Site, prefix: str) -> None:
    """What was changed here is kept although its object is gone."""
    bucket = site.bucket()
    bucket.put(prefix + 'f', b'base')
    host, at = mounted(site)
    with open(at / 'f', 'r+b') as f:
        f.write(b'MINE')
    bucket.delete(prefix + 'f')
    assert b'MINE' in everything_kept(site, host, at, prefix)


def values(data: bytes) -> set[int]:
    """Which bytes there are, quickly where they are all one."""
    return {data[0]} if data.count(data[:1]) == len(data) > 0 else set(data)


def test_overwritten_elsewhere_while_it_is_read(site: Site, prefix: str) -> None:
    """One open handle gives the bytes of one version or fails with ESTALE: never the two mixed."""
    bucket = site.bucket()
    size = 24 << 20
    bucket.put(prefix + 'large', b'1' * size)
    host, at = mounted(site)
    pieces = set()
    with open(at / 'large', 'rb', buffering=0) as f:
        pieces |= values(f.read(1 << 16))
        bucket.put(prefix + 'large', b'2' * size)
        try:
            while piece := f.read(1 << 20):
                pieces |= values(piece)
        except OSError as e:
            assert e.errno == 116   # ESTALE
    assert pieces in ({ord('1')}, {ord('2')})
    host.unmount(at)
    other, there = mounted(site)
    assert values((there / 'large').read_bytes()) == {ord('2')}
    other.unmount(there)
