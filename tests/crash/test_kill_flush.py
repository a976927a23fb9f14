"""Kills during the final write-back, after `fusermount3 -u`: of the daemon, and of its transfer workers.

Owns nothing. It must not know how uploads are queued: it watches objects arrive in the bucket, and kills then.
"""
from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.crash.watch import children, eventually, is_running, kill_children
from tests.model import observe
from tests.model.hosts import IS_DOUBLE, Site
from tests.model.operations import content

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no write-back'), pytest.mark.timeout(300)]

FILES = 400
#: of a file that takes a while to be read
SIZE = 32 << 20
#: with it the write-back takes seconds, however fast the machine is
SLOWLY = ('--max-upload-rate', '5M')
#: a directory has no rate; tests/crash/test_random_kills.py kills over one
on_a_server = pytest.mark.parametrize('new_site', ['s3'], indirect=True)


def fill(at: Path) -> observe.Tree:
    """Many small files, a large one, links, directories: seconds of uploading."""
    for n in range(FILES):
        directory = at / f'd{n % 20}'
        directory.mkdir(exist_ok=True)
        (directory / f'f{n}').write_bytes(content(4000 + n, n))
    # goes up in parts: of a body that ends too soon this server would make an object
    (at / 'large').write_bytes(content(17 << 20, 1))
    os.link(at / 'd0/f0', at / 'hard')
    os.symlink('d0/f0', at / 'soft')
    (at / 'empty').mkdir()
    return observe.snapshot(os.fsencode(at))


def check_elsewhere(site: Site, name: str, want: observe.Tree) -> None:
    other, there = site.host(), site.mount_point()
    other.mount(name, there)
    # a hard link counts the names that are known so far
    eventually('it is listed', lambda: other.status(there)['remote']['isComplete'])
    got = observe.snapshot(os.fsencode(there))
    assert observe.differences(got, want, directory_times=False) == []
    other.unmount(there)


@on_a_server
@pytest.mark.parametrize('arrived', [1, 150])
def test_daemon_killed_while_it_writes_back(arrived: int, site: Site) -> None:
    """`ctxfs wait` says that it failed; the next mount has everything, and its unmount brings all of it into the bucket."""
    host, at = site.host(), site.mount_point()
    host.mount('c', at, create=True, options=SLOWLY)
    prefix = f'contexts/{site.context_id("c")}/d'
    want = fill(at)
    pid = host.pid(at)
    host.run('fusermount3', '-u', at)
    eventually(f'{arrived} objects', lambda: len(site.bucket().keys(prefix)) >= arrived)
    assert is_running(pid), 'the write-back was over before the kill: the tree must be larger'
    os.kill(pid, signal.SIGKILL)
    eventually('the daemon is gone', lambda: not is_running(pid))
    waited = host.cli('wait', 'c', '--timeout', '60', check=False)
    assert waited.returncode == 1 and waited.stderr.strip(), f'wait after a killed daemon: {waited}'
    host.mount('c', at)
    assert observe.differences(observe.snapshot(os.fsencode(at)), want) == []
    host.unmount(at)
    check_elsewhere(site, 'c', want)


@on_a_server
def test_workers_killed_while_they_write_back(site: Site) -> None:
    """The daemon replaces its workers, and the write-back ends as if nothing had happened."""
    host, at = site.host(), site.mount_point()
    host.mount('c', at, create=True, options=SLOWLY)
    prefix = f'contexts/{site.context_id("c")}/d'
    want = fill(at)
    pid = host.pid(at)
    host.run('fusermount3', '-u', at)
    killed: set[int] = set()
    for arrived in (1, 100, 250):
        eventually(f'{arrived} objects', lambda n=arrived: len(site.bucket().keys(prefix)) >= n)
        killed |= kill_children(pid)
    assert killed, 'the write-back was over before the kill: the tree must be larger'
    assert is_running(pid)
    host.cli('wait', 'c', '--timeout', '200')
    check_elsewhere(site, 'c', want)


def test_workers_killed_while_files_are_read(site: Site) -> None:
    """A reader whose transfers die gets the right bytes, or EIO and the right bytes at the next attempt; never wrong ones."""
    host, at = site.host(), site.mount_point()
    host.mount('c', at, create=True)
    (at / 'large').write_bytes(content(SIZE, 1))
    host.unmount(at)
    other = site.host()
    other.mount('c', at)
    pid = other.pid(at)
    eventually('workers', lambda: children(pid))
    got = bytearray()
    failures = 0
    with open(at / 'large', 'rb', buffering=0) as f:
        while len(got) < SIZE:
            if len(got) >> 20 in (3, 12, 21):
                kill_children(pid)
            try:
                f.seek(len(got))
                got += f.read(1 << 20)
            except OSError as e:
                failures += 1
                assert e.errno == 5 and failures < 20, e
    assert bytes(got) == content(SIZE, 1)
    other.unmount(at)
