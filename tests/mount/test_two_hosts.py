"""One context mounted by two hosts at once: each sees what the other flushed within a poll, and nothing is lost between them.

Owns what two mounts see of each other, in both kinds of store, and what their looking costs. Single changes by foreign tools are
test_live_changes.py's.
"""
from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.watch import eventually
from tests.fakes.counting_proxy import CountingProxy
from tests.model import observe
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingSite, S3Bucket, site_maker
from tests.servers import S3Server

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no other host'), pytest.mark.timeout(200)]

#: flushes are the tests' own
OPTIONS = ('--poll-every', '1s', '--sync-every', 'unmount')


class Pair:
    """Two hosts with one context each at a mount point of its own."""

    def __init__(self, site: MountingSite) -> None:
        self.site = site
        self.hosts: list[Any] = [site.host(), site.host()]
        self.at = [site.mount_point(), site.mount_point()]
        for host, at in zip(self.hosts, self.at, strict=True):
            host.mount('c', at, create=True, options=OPTIONS)
            eventually('listed', lambda: host.status(at)['remote']['isComplete'])  # noqa: B023

    def flush(self, number: int) -> None:
        self.hosts[number].cli('sync', str(self.at[number]))

    def unmount(self) -> None:
        for host, at in zip(self.hosts, self.at, strict=True):
            host.unmount(at)


@pytest.fixture(params=['file', 's3'])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    made = Pair(site_maker(request.param, request)(tmp_path))
    yield made
    made.unmount()


def content_of(path: Path) -> bytes | None:
    """None where there is none, or another version comes while it is read."""
    try:
        return path.read_bytes()
    except OSError as error:
        assert error.errno in (errno.ENOENT, errno.ESTALE)
        return None


def test_each_sees_the_flushes_of_the_other(pair: Pair) -> None:
    """Files, links, modes, empty directories and removals travel both ways; in the end both trees are the same."""
    one, two = pair.at
    (one / 'src').mkdir()
    (one / 'src/main.c').write_text('int main;')
    (one / 'run').write_text('#!/bin/sh\n')
    (one / 'run').chmod(0o755)
    (one / 'soft').symlink_to('src/main.c')
    (one / 'empty').mkdir(0o700)
    pair.flush(0)
    eventually('all of it', lambda: {'src', 'run', 'soft', 'empty'} <= set(os.listdir(two)))
    eventually('the modes', lambda: stat.S_IMODE((two / 'run').stat().st_mode) == 0o755 and stat.S_IMODE((two / 'empty').stat().st_mode) == 0o700)
    assert (two / 'src/main.c').read_text() == 'int main;'
    assert os.readlink(two / 'soft') == 'src/main.c'
    (two / 'src/main.c').write_text('int main(void) { return 0; }')
    (two / 'run').unlink()
    (two / 'empty').rmdir()
    pair.flush(1)
    eventually('the removals', lambda: not (one / 'run').exists() and not (one / 'empty').exists())
    eventually('the new content', lambda: content_of(one / 'src/main.c') == b'int main(void) { return 0; }')
    same = lambda: observe.differences(observe.snapshot(os.fsencode(one)), observe.snapshot(os.fsencode(two)), directory_times=False) == []  # noqa: E731
    eventually('the same trees', same, every=0.2)


def test_attributes_alone_travel(pair: Pair) -> None:
    """A chmod and a touch of the other host are seen, without the content having moved."""
    one, two = pair.at
    (one / 'f').write_bytes(b'content')
    pair.flush(0)
    eventually('the file', (two / 'f').exists)
    before = (two / 'f').stat().st_ino
    (one / 'f').chmod(0o640)
    pair.flush(0)
    eventually('the mode', lambda: stat.S_IMODE((two / 'f').stat().st_mode) == 0o640)
    assert (two / 'f').stat().st_ino == before


def test_a_renamed_directory_is_seen_whole(pair: Pair) -> None:
    """After the other host renamed a directory, everything is below the new name and nothing below the old one."""
    one, two = pair.at
    for n in range(40):
        (one / f'd/sub{n % 4}').mkdir(parents=True, exist_ok=True)
        (one / f'd/sub{n % 4}/f{n}').write_text(str(n))
    pair.flush(0)
    eventually('the tree', lambda: (two / 'd/sub3/f39').exists())
    (one / 'd').rename(one / 'e')
    pair.flush(0)
    eventually('the old name is gone', lambda: not (two / 'd').exists())
    eventually('the new one is whole', lambda: sum(len(files) for _, _, files in os.walk(two / 'e')) == 40)
    assert (two / 'e/sub3/f39').read_text() == '39'


def test_both_contents_of_a_file_that_both_changed_are_kept(pair: Pair) -> None:
    """The flush that comes second finds the other version under the name; both contents are there on both hosts in the end."""
    one, two = pair.at
    (one / 'f').write_bytes(b'base')
    pair.flush(0)
    eventually('the file', (two / 'f').exists)
    (one / 'f').write_bytes(b'of the first')
    (two / 'f').write_bytes(b'of the second')
    pair.flush(0)
    pair.flush(1)

    def contents(at: Path) -> set[bytes | None]:
        return {content_of(at / name) for name in os.listdir(at)}

    for at in pair.at:
        eventually('both contents', lambda: contents(at) == {b'of the first', b'of the second'}, every=0.1)  # noqa: B023


def test_a_change_here_survives_what_comes_from_there(pair: Pair) -> None:
    """Changes that are not uploaded yet stay what they are while the other host's flushes are taken over around them."""
    one, two = pair.at
    (two / 'mine').write_bytes(b'not uploaded')
    (two / 'dir').mkdir()
    (one / 'theirs').write_bytes(b'1')
    pair.flush(0)
    eventually('theirs', (two / 'theirs').exists)
    (one / 'theirs').unlink()
    pair.flush(0)
    eventually('theirs is gone', lambda: not (two / 'theirs').exists())
    assert (two / 'mine').read_bytes() == b'not uploaded' and (two / 'dir').is_dir()
    pair.flush(1)
    eventually('mine', lambda: (one / 'mine').exists() and (one / 'dir').is_dir())


def test_a_name_removed_and_made_again_is_there_in_the_end(pair: Pair) -> None:
    """The tombstone of a removal never wins over what the same host, or the other one, put there afterwards."""
    one, two = pair.at
    (one / 'f').write_bytes(b'1')
    pair.flush(0)
    eventually('the file', (two / 'f').exists)
    (one / 'f').unlink()
    pair.flush(0)
    (one / 'f').write_bytes(b'second')
    pair.flush(0)
    eventually('the second', lambda: content_of(two / 'f') == b'second')
    (two / 'f').unlink()
    pair.flush(1)
    eventually('it is gone', lambda: not (one / 'f').exists())


# --- what looking costs --------------------------------------------------------------------------------------------------------------


class Counted:
    """A host whose requests are counted, and a bucket behind it."""

    def __init__(self, work: Path, server: S3Server, proxy: CountingProxy) -> None:
        self.proxy = proxy
        self.bucket = S3Bucket(server.endpoint, server.environment, f't-{secrets.token_hex(8)}')
        self.bucket.client.create_bucket(Bucket=self.bucket.name)
        self.site = MountingSite(work, f's3://{self.bucket.name}?endpoint={proxy.endpoint}', server.environment, lambda: self.bucket)
        self.behind = MountingSite(work / 'behind', f's3://{self.bucket.name}?endpoint={server.endpoint}', server.environment, lambda: self.bucket)
        self.host: Any = self.site.host()
        self.at = self.site.mount_point()
        self.host.create_context('c')
        self.prefix = f'contexts/{self.site.context_id("c")}/'

    def mount(self) -> None:
        """With everything in the cache: what comes afterwards is looking, and nothing else."""
        self.host.mount('c', self.at, options=(*OPTIONS, '--wait-download'))
        self.settle()

    def remote(self) -> dict[str, Any]:
        return self.host.status(self.at)['remote']

    def polls(self) -> int:
        return int(json.loads(self.host.cli('status', str(self.at), '--json').stdout)['mounts'][0]['remote']['lastPoll'] * 1000)

    def settle(self) -> None:
        """Until a poll began and ended after everything before."""
        for _ in range(2):
            last = self.polls()
            eventually('a poll', lambda: self.polls() > last, every=0.05)  # noqa: B023


@pytest.fixture
def counted(s3_server: S3Server, tmp_path: Path) -> Iterator[Counted]:
    (tmp_path / 'behind').mkdir()
    with CountingProxy(s3_server.endpoint) as proxy:
        made = Counted(tmp_path, s3_server, proxy)
        yield made
        made.host.unmount(made.at)
        made.bucket.client.close()


@pytest.mark.parametrize('count', [20, 1100])
def test_a_poll_of_an_unchanged_context_is_one_request(counted: Counted, count: int) -> None:
    """One LIST a second and nothing else, below and above a thousand objects."""
    for n in range(count):
        counted.bucket.put(f'{counted.prefix}d{n % 7}/f{n}', b'.')
    counted.mount()
    counted.proxy.reset()
    began = counted.polls()
    listed = []
    while len(listed) < 4:
        eventually('a poll', lambda: len(counted.proxy.requests()) > len(listed), every=0.01)  # noqa: B023
        listed = counted.proxy.requests()
    assert {(request.method, request.kind) for request in listed} == {('GET', 'list')}
    seconds = (counted.polls() - began) / 1000
    assert len(listed) <= seconds + 2
    wanted = counted.prefix if count <= 1000 else counted.prefix + '.ctxfs/index/'
    assert {request.query['prefix'] for request in listed} == {wanted}


def test_own_uploads_cost_no_further_look(counted: Counted) -> None:
    """What this host flushed changes the listing, and is recognised without a request about any object."""
    counted.mount()
    for n in range(30):
        (counted.at / f'f{n}').write_bytes(b'%d' % n)
    counted.host.cli('sync', str(counted.at))
    counted.proxy.reset()
    counted.settle()
    assert {(request.method, request.kind) for request in counted.proxy.requests()} == {('GET', 'list')}


def test_in_a_large_context_only_what_changed_is_looked_at(counted: Counted) -> None:
    """Of 1,100 objects the other host changes one and removes one: two HEADs, the new segments, and no listing of the objects."""
    for n in range(1100):
        counted.bucket.put(f'{counted.prefix}d/f{n}', b'.')
    counted.mount()
    other: Any = counted.behind.host()
    at = counted.behind.mount_point()
    other.mount('c', at, options=('--sync-every', 'unmount'))
    (at / 'd/f7').write_bytes(b'changed there')
    (at / 'd/f8').unlink()
    assert (counted.at / 'd/f7').stat().st_size == (counted.at / 'd/f8').stat().st_size == 1      # costs a HEAD for their attributes
    counted.proxy.reset()
    other.cli('sync', str(at))
    eventually('both', lambda: not (counted.at / 'd/f8').exists() and (counted.at / 'd/f7').stat().st_size == 13)
    seen = counted.proxy.requests()
    assert {request.query['prefix'] for request in seen if request.kind == 'list'} == {counted.prefix + '.ctxfs/index/'}
    assert sorted(request.key.removeprefix(counted.prefix) for request in seen if request.method == 'HEAD') == ['d/f7', 'd/f8']
    assert (counted.at / 'd/f7').read_bytes() == b'changed there'
    other.unmount(at)


def test_a_file_store_shows_what_is_dropped_into_its_directory_within_a_second(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A file, a directory with files, an edit and a removal in the store's own directory reach the mount at once, though no poll is near."""
    site = site_maker('file', request)(tmp_path)
    host: Any = site.host()
    at = site.mount_point()
    host.mount('c', at, create=True, options=('--poll-every', '1h', '--sync-every', 'unmount'))
    eventually('listed', lambda: host.status(at)['remote']['isComplete'])
    store = tmp_path / f'store/contexts/{site.context_id("c")}'
    store.mkdir(parents=True, exist_ok=True)
    (store / 'first').write_bytes(b'makes the directory known')
    eventually('the first', (at / 'first').exists)
    (store / 'dropped').write_bytes(b'here')
    eventually('the file', (at / 'dropped').exists, seconds=1)
    assert (at / 'dropped').read_bytes() == b'here'
    (tmp_path / 'tree/a/b').mkdir(parents=True)
    (tmp_path / 'tree/a/b/deep').write_bytes(b'deep')
    shutil.move(tmp_path / 'tree', store / 'tree')
    eventually('the directory', (at / 'tree/a/b/deep').exists, seconds=1)
    with open(store / 'dropped', 'ab') as more:
        more.write(b' and more')
    eventually('the edit', lambda: content_of(at / 'dropped') == b'here and more', seconds=2)
    shutil.rmtree(store / 'tree')
    eventually('the removal', lambda: not (at / 'tree').exists(), seconds=2)
    (at / 'ours').write_bytes(b'1')
    host.cli('sync', str(at))
    host.unmount(at)
    assert (store / 'ours').read_bytes() == b'1'
