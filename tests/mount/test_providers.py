"""Two hosts, one context, and a store that cannot compare and swap: no version that a host has written is overwritten by another that never saw it.

Owns the schedules that would do it: a request is held back between the look and the write, a daemon is killed with its write under way. Each
on the profiles of providers (fakes/profiles.py), which are checked against the real servers where there are any.
"""
from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.crash.watch import eventually, is_running
from tests.fakes.profiles import provider
from tests.fakes.s3_server import FakeS3, Hold, Quirk, Request
from tests.model.hosts import IS_DOUBLE
from tests.mount import harness
from tests.mount.sites import MountingSite, S3Bucket
from tests.servers import S3Server

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory is one host'), pytest.mark.timeout(240)]

OPTIONS = ('--poll-every', '1h', '--sync-every', 'unmount')
TURN = '.ctxfs/turn/'


class Pair:
    """Two hosts with the context mounted, and what each sees; `sync` runs in a thread, executed: forked commands come one after the other."""

    def __init__(self, fake: FakeS3, env: dict[str, str], work: Path) -> None:
        self.fake = fake
        self.site = MountingSite(work, fake.url, env, lambda: pytest.fail('look at fake.objects'))
        self.hosts: list[Any] = [self.site.host(), self.site.host()]
        self.at = [self.site.mount_point(), self.site.mount_point()]
        self._threads = ThreadPoolExecutor(2)

    def mount(self, number: int, **env: str) -> None:
        self.hosts[number].mount('c', self.at[number], create=True, options=OPTIONS, env=env)
        eventually('listed', lambda: self.hosts[number].status(self.at[number])['remote']['isComplete'])

    def sync(self, number: int) -> Future[subprocess.CompletedProcess[str]]:
        return self._threads.submit(harness.Host.cli, self.hosts[number], 'sync', str(self.at[number]), check=False)

    def bodies(self) -> set[bytes]:
        """Of the users' objects."""
        return {stored.body for key, stored in self.fake.objects.items() if key.startswith('contexts/') and '/.ctxfs/' not in key}

    def looks(self) -> int:
        """How often the hosts looked whose turn it is."""
        return sum(request.query.get('prefix', '').endswith(TURN) for request in self.fake.requests)

    def close(self) -> None:
        self._threads.shutdown()


@pytest.fixture
def make_pair(tmp_path: Path) -> Iterator[Callable[[FakeS3, dict[str, str]], Pair]]:
    pairs: list[Pair] = []

    def make(fake: FakeS3, env: dict[str, str]) -> Pair:
        pairs.append(Pair(fake, env, tmp_path))
        return pairs[-1]
    yield make
    for pair in pairs:
        pair.close()


def is_write_of(name: str) -> Callable[[Request], bool]:
    return lambda request: request.key.startswith('contexts/') and request.key.endswith(f'/{name}') and 'x-amz-copy-source' not in request.headers


def released_when(hold: Hold, is_time: Callable[[], bool]) -> threading.Thread:
    def wait() -> None:
        eventually('time to let it go', is_time, seconds=60)
        hold.release.set()
    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize('name', ['oss', 'ceph', 'ignoring'])
def test_a_write_that_was_looked_at_and_is_held_back_lands_on_what_was_seen(name: str, make_pair: Callable[..., Pair]) -> None:
    """Both hosts changed the file. The first has looked, and its PUT hangs in the network; the second waits for it instead of writing between
    the two, then finds that the file was changed, and keeps both."""
    with provider(name) as (fake, env):
        pair = make_pair(fake, env)
        pair.mount(0)
        (pair.at[0] / 'f').write_bytes(b'base')
        (pair.at[0] / 'gone').write_bytes(b'to be removed')
        assert pair.sync(0).result().returncode == 0
        pair.mount(1)
        (pair.at[0] / 'f').write_bytes(b'from the first host')
        (pair.at[1] / 'f').write_bytes(b'from the second host')
        hold = fake.hold_next('PUT', when=is_write_of('f'))
        first = pair.sync(0)
        assert hold.arrived.wait(60)
        looks = pair.looks()
        second = pair.sync(1)
        thread = released_when(hold, lambda: pair.looks() >= looks + 3 or second.done())
        assert first.result().returncode == 0
        second.result()
        thread.join()
        for number in (0, 1):
            pair.hosts[number].unmount(pair.at[number])
        assert {b'from the first host', b'from the second host'} <= pair.bodies()


def test_a_delete_that_is_held_back_spares_what_came_meanwhile(make_pair: Callable[..., Pair]) -> None:
    """Ceph heeds conditions of PUTs, and of deletes none: a host that may overwrite atomically waits all the same while another deletes."""
    with provider('ceph') as (fake, env):
        pair = make_pair(fake, env)
        pair.mount(0)
        (pair.at[0] / 'f').write_bytes(b'base')
        assert pair.sync(0).result().returncode == 0
        pair.mount(1)
        (pair.at[0] / 'f').unlink()
        (pair.at[1] / 'f').write_bytes(b'changed')
        hold = fake.hold_next('DELETE', when=is_write_of('f'))
        first = pair.sync(0)
        assert hold.arrived.wait(60)
        looks = pair.looks()
        second = pair.sync(1)
        thread = released_when(hold, lambda: pair.looks() >= looks + 3 or second.done())
        assert (first.result().returncode, second.result().returncode) == (0, 0)
        thread.join()
        for number in (0, 1):
            pair.hosts[number].unmount(pair.at[number])
        assert pair.bodies() == {b'changed'}


def test_a_host_that_dies_in_its_turn_holds_nobody_up_for_long(make_pair: Callable[..., Pair]) -> None:
    """Killed with its write under way, which arrives all the same: the other host writes when the store's clock says that the turn is over, and
    finds a conflict; nothing is lost."""
    with provider('oss') as (fake, env):
        pair = make_pair(fake, env)
        pair.mount(0)
        (pair.at[0] / 'f').write_bytes(b'base')
        assert pair.sync(0).result().returncode == 0
        pair.mount(1)
        (pair.at[0] / 'f').write_bytes(b'from the first host')
        (pair.at[1] / 'f').write_bytes(b'from the second host')
        hold = fake.hold_next('PUT', when=is_write_of('f'))
        first = pair.sync(0)
        assert hold.arrived.wait(60)
        pair.hosts[0].kill9(pair.at[0])
        first.result()
        hold.release.set()
        eventually('it arrived', lambda: b'from the first host' in pair.bodies())
        looks, clock = pair.looks(), fake.clock
        second = pair.sync(1)
        eventually('the second waits', lambda: pair.looks() >= looks + 2 or second.done())
        assert b'from the second host' not in pair.bodies()
        fake.clock = lambda: clock() + 100
        assert second.result().returncode == 0
        assert {b'from the first host', b'from the second host'} <= pair.bodies()
        pair.hosts[1].unmount(pair.at[1])


def test_a_host_that_dies_when_its_turn_begins_goes_on_with_it(make_pair: Callable[..., Pair]) -> None:
    """The next mount knows the turn for its own and need not wait until it has run out."""
    with provider('oss') as (fake, env):
        pair = make_pair(fake, env)
        host, at = pair.hosts[0], pair.at[0]
        pair.mount(0)
        (at / 'f').write_bytes(b'base')
        assert pair.sync(0).result().returncode == 0
        host.unmount(at)
        pair.mount(0, CTXFS_CRASH_POINT='turn-after-make')
        pid = host.pid(at)
        (at / 'f').write_bytes(b'changed')
        turns = sum(TURN in key for key in fake.objects)
        assert pair.sync(0).result().returncode != 0
        eventually('the daemon is dead', lambda: not is_running(pid))
        host.run('fusermount3', '-uz', at)
        assert pair.bodies() == {b'base'} and sum(TURN in key for key in fake.objects) == turns + 1
        pair.mount(0)
        host.unmount(at)
        assert pair.bodies() == {b'changed'}
        assert len([key for key in fake.objects if TURN in key and not key.endswith('-free')]) == (turns + 1) // 2 + 1


@pytest.mark.parametrize('name', ['rclone', 'ceph'])
def test_two_hosts_on_a_real_server_keep_what_both_wrote(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """At the same time, the same file and others, several times: whatever a host has uploaded is in the bucket, or in what was based on it."""
    server: S3Server = request.getfixturevalue(f'{name}_server')
    bucket = S3Bucket(server.endpoint, server.environment, server.make_bucket())
    site = MountingSite(tmp_path, f's3://{bucket.name}?endpoint={server.endpoint}', server.environment, lambda: bucket)
    hosts: list[Any] = [site.host(), site.host()]
    at = [site.mount_point(), site.mount_point()]
    for host, where in zip(hosts, at):
        host.mount('c', where, create=True, options=OPTIONS)
    with ThreadPoolExecutor(2) as threads:
        for number in range(2):
            for host, where in enumerate(at):
                (where / 'same').write_bytes(b'%d of host %d' % (number, host))
                (where / f'own{host}').write_bytes(b'%d' % number)
            # a host may be told that it is the other's turn
            done = threads.map(lambda n: harness.Host.cli(hosts[n], 'sync', str(at[n]), check=False), (0, 1))
            assert {0} <= {sync.returncode for sync in done} <= {0, 1}
    for host, where in zip(hosts, at):
        host.unmount(where)
    bodies = [bucket.body(key) for key in bucket.keys('contexts/') if '/.ctxfs/' not in key]
    assert {b'1 of host 0', b'1 of host 1'} <= set(bodies)
    assert bodies.count(b'1') == 2
    bucket.client.close()


def test_what_a_store_can_do_is_asked_once(make_pair: Callable[..., Pair]) -> None:
    """Remembered for the next mount, for no eyes but the user's. A damaged file, or a store that refuses what it could, is asked anew: then
    what is written is written as it can be by then."""
    def probes() -> int:
        return sum('.ctxfs/probe-' in request.key for request in fake.requests)
    with provider('aws') as (fake, env):
        pair = make_pair(fake, env)
        host, at = pair.hosts[0], pair.at[0]
        for number in range(3):
            fake.requests.clear()
            pair.mount(0)
            (at / 'f').write_bytes(b'%d' % number)
            host.unmount(at)
            files = list(host.state_dir.glob('stores/*/*.json'))
            assert {oct(file.stat().st_mode & 0o777) for file in files} == {'0o600'}
            assert (probes() > 0) == (number != 1)
            if number == 1:
                file, = files
                file.write_bytes(file.read_bytes()[:100])
        pair.mount(0)
        fake.quirks.add(Quirk.FORBID_OVERWRITE)
        (at / 'f').write_bytes(b'after the store was exchanged')
        (at / 'new').write_bytes(b'new')
        host.unmount(at)
        assert pair.bodies() == {b'after the store was exchanged', b'new'}
        said = host.json('doctor', 'c')['findings']
        assert any('not honoured' in finding['text'] for finding in said)
