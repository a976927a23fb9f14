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

FILES = 1500


def fill(at: Path) -> observe.Tree:
    """Many small files, a few large ones, links, directories: seconds of uploading."""
    for n in range(FILES):
        directory = at / f'd{n % 20}'
        directory.mkdir(exist_ok=True)
        (directory / f'f{n}').write_bytes(content(4000 + n, n))
    for n in range(3):
        (at / f'large{n}').write_bytes(content(24 << 20, n))
    os.link(at / 'd0/f0', at / 'hard')
    os.symlink('d0/f0', at / 'soft')
    (at / 'empty').mkdir()
    return observe.snapshot(os.fsencode(at))


def check_elsewhere(site: Site, name: str, want: observe.Tree) -> None:
    other, there = site.host(), site.mount_point()
    other.mount(name, there)
    # a hard link counts the names that are known so far
    eventually('all is there', lambda: not observe.differences(observe.snapshot(os.fsencode(there)), want, directory_times=False), every=0.5)
    other.unmount(there)


@pytest.mark.parametrize('arrived', [1, 300])
def test_daemon_killed_while_it_writes_back(arrived: int, site: Site) -> None:
    """`ctxfs wait` says that it failed; the next mount has everything, and its unmount brings all of it into the bucket."""
    host, at = site.host(), site.mount_point()
    host.mount('c', at, create=True)
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


def test_workers_killed_while_they_write_back(site: Site) -> None:
    """The daemon replaces its workers, and the write-back ends as if nothing had happened."""
    host, at = site.host(), site.mount_point()
    host.mount('c', at, create=True)
    prefix = f'contexts/{site.context_id("c")}/d'
    want = fill(at)
    pid = host.pid(at)
    host.run('fusermount3', '-u', at)
    killed: set[int] = set()
    for arrived in (1, 300, 700):
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
    (at / 'large').write_bytes(content(64 << 20, 1))
    host.unmount(at)
    other = site.host()
    other.mount('c', at)
    pid = other.pid(at)
    eventually('workers', lambda: children(pid))
    got = bytearray()
    failures = 0
    with open(at / 'large', 'rb', buffering=0) as f:
        while len(got) < 64 << 20:
            if len(got) >> 20 in (3, 20, 40):
                kill_children(pid)
            try:
                f.seek(len(got))
                got += f.read(1 << 20)
            except OSError as e:
                failures += 1
                assert e.errno == 5 and failures < 20, e
    assert bytes(got) == content(64 << 20, 1)
    other.unmount(at)
