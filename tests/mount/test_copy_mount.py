"""A copy of a context that is mounted and in use, mounted itself: the same tree, and what it costs."""
from __future__ import annotations

import os
import secrets
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.counting_proxy import CountingProxy
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingSite, S3Bucket, site_maker
from tests.servers import S3Server

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no copies'), pytest.mark.timeout(250)]


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything below a directory: mode, links, time, target, content."""
    found = {}
    for path in sorted(root.rglob('*')):
        status = path.lstat()
        body = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = (status.st_mode, status.st_nlink if path.is_file() else 0, status.st_mtime_ns, body)
    return found


def test_a_copy_of_a_mounted_context_is_the_same_tree(s3_server: S3Server, tmp_path: Path) -> None:
    """Modes, times, links, symlinks and empty directories, a chmod that only the index knows among them. Inside the store: a copy for each object,
    no content comes or goes; and the copy's mount asks for no object's attributes."""
    with CountingProxy(s3_server.endpoint) as proxy:
        bucket = S3Bucket(s3_server.endpoint, s3_server.environment, f't-{secrets.token_hex(8)}')
        with closing(bucket.client):
            bucket.client.create_bucket(Bucket=bucket.name)
            site = MountingSite(tmp_path, f's3://{bucket.name}?endpoint={proxy.endpoint}', s3_server.environment, lambda: bucket)
            host, at, other = site.host(), site.mount_point(), site.mount_point()
            host.mount('c', at, create=True, options=('--sync-every', 'unmount'))
            (at / 'd').mkdir(mode=0o710)
            (at / 'empty').mkdir()
            (at / 'd/a').write_bytes(b'a' * 5000)
            os.link(at / 'd/a', at / 'd/linked')
            os.symlink('d/a', at / 'symlink')
            (at / 'run').write_bytes(b'#!')
            host.cli('sync', at)
            (at / 'run').chmod(0o751)
            os.utime(at / 'd/a', ns=(1, 1_700_000_000_123_456_789))
            host.cli('sync', at)
            (at / 'later').write_bytes(b'not uploaded yet')
            proxy.reset()
            copied = host.json('context', 'copy', 'c', 'backup', '--create')
            assert proxy.total(kind='copy') == copied['objects'] > 4 and proxy.total(kind='object') == 0
            assert host.json('context', 'show', 'backup')['state'] == 'available'
            proxy.reset()
            host.mount('backup', other, options=('--sync-every', 'unmount'))
            wanted = {path: entry for path, entry in tree(at).items() if path != 'later'}
            assert tree(other) == wanted
            assert proxy.total(method='HEAD', kind='object') == 0
            (other / 'd/a').write_bytes(b'of the copy alone')
            host.unmount(other)     # type: ignore[attr-defined]
            refused = host.cli('context', 'copy', 'backup', 'c', '--update', check=False)
            assert refused.returncode == 1 and 'is mounted here' in refused.stderr
            assert (at / 'd/linked').read_bytes() == b'a' * 5000
            host.unmount(at)        # type: ignore[attr-defined]
            assert host.json('context', 'copy', 'c', 'backup', '--update')['objects'] >= 2


def test_a_copy_in_the_other_mode_is_the_same_tree(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """From a context in use, there and back: modes, times, links, symlinks, empty directories, a large file; each is mounted as it is kept."""
    site = site_maker('file', request)(tmp_path)
    host, at, other = site.host(), site.mount_point(), site.mount_point()
    host.mount('c', at, create=True, options=('--sync-every', 'unmount'))
    (at / 'd').mkdir(mode=0o710)
    (at / 'empty').mkdir(mode=0o700)
    (at / 'd/a').write_bytes(b'a' * 5000)
    (at / 'd/large').write_bytes(os.urandom(5 << 20))
    os.link(at / 'd/a', at / 'd/linked')
    os.symlink('d/a', at / 'symlink')
    os.utime(at / 'd/a', ns=(1, 1_700_000_000_123_456_789))
    host.cli('sync', at)
    wanted = tree(at)
    for source, target, mode in (('c', 'packed', 'archive'), ('packed', 'back', 'file')):
        host.json('context', 'copy', source, target, '--create', '--mode', mode)
        host.mount(target, other, options=('--sync-every', 'unmount'))
        found = tree(other)
        assert found == wanted, [path for path in wanted if found.get(path) != wanted[path]]
        host.unmount(other)     # type: ignore[attr-defined]
        kept = f'contexts/{site.context_id(target)}/'
        assert ('d/a' in {key[len(kept):] for key in site.bucket().keys(kept)}) == (mode == 'file')
    host.unmount(at)        # type: ignore[attr-defined]
