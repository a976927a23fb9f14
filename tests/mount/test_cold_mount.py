"""A context that another host filled, used from the first moment on while its listing still loads."""
from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ctxfs.edge import fuse_ops
from tests.crash.watch import eventually
from tests.fakes.s3_server import FakeS3
from tests.model.hosts import IS_DOUBLE, Site
from tests.mount.sites import MountingSite

DIRECTORIES = 40

_STAY = '''
import os, sys
for number in range(int(sys.argv[2])):
    os.chdir(os.path.join(sys.argv[1], f"d{number}"))
    for _ in range(40):
        assert os.path.basename(os.getcwd()) == f"d{number}"
        os.stat(".")
    os.listdir(".")
    assert os.path.basename(os.getcwd()) == f"d{number}"
'''


def test_a_working_directory_stays_while_the_listing_loads(site: Site) -> None:
    """What the listing brings is never taken away again from a process that is in it: getcwd() always works."""
    host, at = site.host(), site.mount_point()
    host.mount('cold', at, create=True)
    for number in range(DIRECTORIES):
        os.mkdir(os.path.join(at, f'd{number}'))
        for name in 'abc':
            with open(os.path.join(at, f'd{number}', name), 'w') as file:
                file.write(name)
    host.unmount(at)
    for _ in range(3):
        other = site.host()
        other.mount('cold', at)
        done = subprocess.run([sys.executable, '-c', _STAY, str(at), str(DIRECTORIES)], capture_output=True, text=True, cwd='/', check=False)
        other.unmount(at)
        assert done.returncode == 0, done.stderr


@pytest.mark.skipif(IS_DOUBLE or not fuse_ops.is_loaded(), reason='without the library names come with attributes')
def test_names_are_listed_while_the_index_is_read(tmp_path: Path) -> None:
    """Nobody waits for attributes who wants none, and who wants them gets them right, without a HEAD."""
    env = {'AWS_ACCESS_KEY_ID': 'any', 'AWS_SECRET_ACCESS_KEY': 'any'}
    with FakeS3() as fake, ThreadPoolExecutor() as threads:
        site = MountingSite(tmp_path, fake.url, env, lambda: pytest.fail('not needed'))
        host, at = site.host(), site.mount_point()
        host.mount('cold', at, create=True)
        (at / 'd/e').mkdir(parents=True)
        (at / 'd/e/f').write_bytes(b'deep')
        (at / 'file').write_bytes(b'content')
        (at / 'link').symlink_to('file')
        os.link(at / 'file', at / 'again')
        for path, mode, seconds in ((at / 'file', 0o604, 1000), (at / 'd', 0o750, 2000), (at / 'd/e', 0o711, 3000)):
            path.chmod(mode)
            os.utime(path, (seconds, seconds))
        before = {path: os.lstat(path) for path in (at / 'file', at / 'again', at / 'link', at / 'd', at / 'd/e', at / 'd/e/f')}
        host.unmount(at)
        held = fake.hold_next('GET', when=lambda request: '/.ctxfs/index/' in request.key, times=100)
        asked = len(fake.requests)
        other = site.host()
        try:
            other.mount('cold', at)
            assert sorted(os.listdir(at)) == ['again', 'd', 'file', 'link']
            with os.scandir(at) as entries:
                kinds = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries if entry.name == 'd'}
            assert kinds == {'d': True}
            wanted = {path: threads.submit(os.lstat, path) for path in before}
            assert held.arrived.is_set() and not any(future.done() for future in wanted.values())
        finally:
            held.release.set()
        for path, future in wanted.items():
            found, was = future.result(60), before[path]
            assert (found.st_mode, found.st_mtime_ns, found.st_size) == (was.st_mode, was.st_mtime_ns, was.st_size), path
        assert os.readlink(at / 'link') == 'file' and (at / 'd/e/f').read_bytes() == b'deep'
        assert os.stat(at / 'file').st_ino == os.stat(at / 'again').st_ino
        assert not [request.key for request in fake.requests[asked:] if request.method == 'HEAD' and '/.ctxfs/' not in request.key and
                    not request.key.startswith('.ctxfs/')]
        other.unmount(at)


@pytest.mark.skipif(IS_DOUBLE, reason='a directory makes no requests')
def test_the_index_is_asked_for_before_the_mount_is_there(tmp_path: Path) -> None:
    """While the record of the context is looked at once more, which the mount waits for."""
    with FakeS3() as fake, ThreadPoolExecutor() as threads:
        site = MountingSite(tmp_path, fake.url, {'AWS_ACCESS_KEY_ID': 'any', 'AWS_SECRET_ACCESS_KEY': 'any'}, lambda: pytest.fail('not needed'))
        host, at = site.host(), site.mount_point()
        host.cli('context', 'create', 'cold')
        records = iter(range(100))
        held = fake.hold_next('GET', when=lambda request: request.key.startswith('.ctxfs/contexts/ids/') and next(records) == 1)
        mounting = threads.submit(host.mount, 'cold', at)
        try:
            eventually('the record once more', held.arrived.is_set)
            eventually('the index', lambda: any(request.query.get('prefix', '').endswith('.ctxfs/index/') for request in fake.requests))
            assert not os.path.ismount(at)
        finally:
            held.release.set()
        mounting.result(60)
        host.unmount(at)


@pytest.mark.skipif(IS_DOUBLE, reason='a directory has no archives')
def test_members_are_listed_when_the_archive_log_is_read(tmp_path: Path) -> None:
    """Their names are nowhere else: a directory is never shown without them."""
    env = {'AWS_ACCESS_KEY_ID': 'any', 'AWS_SECRET_ACCESS_KEY': 'any'}
    policy = tmp_path / 'policy.json'
    policy.write_text('{"uploadPolicy": {"uploadMode": "Archive"}}')
    with FakeS3() as fake, ThreadPoolExecutor() as threads:
        site = MountingSite(tmp_path, fake.url, env, lambda: pytest.fail('not needed'))
        host, at = site.host(), site.mount_point()
        host.mount('cold', at, create=True, options=('--policy', str(policy)))
        (at / 'd').mkdir()
        for name in ('a', 'd/b'):
            (at / name).write_bytes(b'member')
        host.unmount(at)
        held = fake.hold_next('GET', when=lambda request: '/.ctxfs/archive/' in request.key + request.query.get('prefix', ''), times=100)
        other = site.host()
        try:
            other.mount('cold', at)
            root, below = threads.submit(os.listdir, at), threads.submit(os.listdir, at / 'd')
            assert held.arrived.wait(30)
            with pytest.raises(TimeoutError):
                root.result(1.0)        # several times as long as names of objects are waited for
        finally:
            held.release.set()
        assert (sorted(root.result(60)), below.result(60)) == (['a', 'd'], ['b'])
        other.unmount(at)
