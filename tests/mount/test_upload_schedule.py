"""When uploads happen on real mounts: by the clock, on close, by hand, not while paused; and what reaches the bucket while programs write.

Owns what a user sees of the schedule. Its rules in detail, over hours, are tests/unit/test_schedule.py's; what single changes cost is
test_requests.py's.
"""
from __future__ import annotations

import errno
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from ctxfs.errors import CtxfsError
from tests.crash.watch import eventually
from tests.fakes.counting_proxy import CountingProxy
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingSite, site_maker

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory uploads nothing'), pytest.mark.timeout(150)]

PUT, INDEX = ('PUT', 'object'), ('PUT', 'index')
#: one write(2) and one request to the daemon: the kernel asks for it as a whole at the next fsync
STATE_BYTES = 64 << 10


class Desk:
    """A host, its mount point, and what the bucket behind it holds."""

    def __init__(self, site: MountingSite, work: Path) -> None:
        self.site, self.work = site, work
        self.host: Any = site.host()
        self.at = site.mount_point()
        self.prefix = ''

    def mount(self, *options: str) -> Path:
        self.host.mount('c', self.at, create=True, options=options)
        self.prefix = f'contexts/{self.site.context_id("c")}/'
        return self.at

    def body(self, name: str) -> bytes | None:
        """The object, if there is one."""
        key, bucket = self.prefix + name, self.site.bucket()
        while key in bucket.keys(key):
            try:
                return bucket.body(key)
            except (CtxfsError, OSError, ClientError):
                assert key not in bucket.keys(key)      # it went between the two requests
        return None

    def wait_idle(self) -> None:
        eventually('everything is uploaded', lambda: self.host.status(self.at)['pending']['files'] == 0, every=0.1)

    def policy(self, **upload: Any) -> str:
        path = self.work / 'policy.json'
        path.write_text(json.dumps({'uploadPolicy': upload}))
        return str(path)


@pytest.fixture(params=['file', 's3'])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Desk:
    (tmp_path / 'site').mkdir()
    return Desk(site_maker(request.param, request)(tmp_path / 'site'), tmp_path)


@pytest.fixture
def counted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Desk, CountingProxy]]:
    """A desk on a server, and the requests between them."""
    (tmp_path / 'site').mkdir()
    site = site_maker('s3', request)(tmp_path / 'site')
    with CountingProxy(request.getfixturevalue('s3_server').endpoint) as proxy:
        bucket = site.bucket()
        yield Desk(MountingSite(tmp_path / 'site', f's3://{bucket.name}?endpoint={proxy.endpoint}', site.env, lambda: bucket), tmp_path), proxy


@contextmanager
def repeated(step: Callable[[int], None], *, every: float) -> Iterator[None]:
    """`step(0)`, `step(1)` … in a thread until the block ends; its error is raised here."""
    stopped, errors = threading.Event(), []

    def run() -> None:
        number = 0
        try:
            while not stopped.is_set():
                step(number)
                number += 1
                stopped.wait(every)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(60)
    assert not errors, errors


def test_changes_reach_the_bucket_by_themselves(desk: Desk) -> None:
    """Without a sync, an unmount, or a close of the file; and the status tells when."""
    at = desk.mount('--sync-every', '2s')
    with open(at / 'open', 'wb', buffering=0) as file:
        file.write(b'one')
        os.fsync(file.fileno())
        (at / 'closed').write_bytes(b'two')
        assert time.time() < desk.host.status(at)['nextUpload'] <= time.time() + 3
        eventually('both are there', lambda: desk.body('open') == b'one' and desk.body('closed') == b'two', every=0.05)
        (at / 'closed').unlink()
        eventually('the deletion, too', lambda: desk.body('closed') is None, every=0.05)
        desk.wait_idle()
        assert desk.host.status(at)['nextUpload'] == 0
    desk.host.unmount(at)


def test_a_save_by_the_clock_is_one_put_and_attributes_are_none(counted: tuple[Desk, CountingProxy]) -> None:
    """A file written beside and renamed over; then chmod and touch; then nothing at all."""
    desk, proxy = counted
    at = desk.mount('--sync-every', '1s', '--poll-every', '1h')
    (at / 'f').write_bytes(b'old')
    desk.wait_idle()
    proxy.reset()
    (at / '.f.tmp').write_bytes(b'new')
    os.rename(at / '.f.tmp', at / 'f')
    eventually('the new content', lambda: desk.body('f') == b'new', every=0.05)
    desk.wait_idle()
    assert {kind: count for kind, count in proxy.counts().items() if kind[0] != 'GET'} == {PUT: 1, INDEX: 1}
    proxy.reset()
    (at / 'f').chmod(0o600)
    os.utime(at / 'f', ns=(1, 1))
    desk.wait_idle()
    assert proxy.total(method='PUT', kind='object') == 0 and proxy.total(kind='index', method='PUT') in (1, 2)
    proxy.reset()
    time.sleep(3)       # three periods: there is no event for nothing
    assert proxy.counts() == {}
    desk.host.unmount(at)


def test_on_close(desk: Desk) -> None:
    """Not while it is open; at once when it is closed, renamed, removed."""
    at = desk.mount('--sync-every', '0')
    with open(at / 'f', 'wb', buffering=0) as file:
        file.write(b'x')
        os.fsync(file.fileno())
        time.sleep(1)       # long enough for an upload that must not come
        assert desk.body('f') is None
    eventually('closed', lambda: desk.body('f') == b'x', seconds=10, every=0.02)
    os.rename(at / 'f', at / 'g')
    eventually('renamed', lambda: desk.body('g') == b'x' and desk.body('f') is None, seconds=10, every=0.02)
    (at / 'g').unlink()
    eventually('removed', lambda: desk.body('g') is None, seconds=10, every=0.02)
    desk.host.unmount(at)


def test_a_file_that_is_written_without_pause_goes_up_in_whole_states(desk: Desk) -> None:
    """Longer than five periods: each version in the bucket is one state, a log's is a prefix, and the last one is complete."""
    at = desk.mount('--sync-every', '1s')
    bodies: dict[str, list[bytes]] = {'states': [], 'log': []}

    with open(at / 'states', 'wb', buffering=0) as states, open(at / 'log', 'ab', buffering=0) as log:
        def write(number: int) -> None:
            os.pwrite(states.fileno(), b'%08d' % number * (STATE_BYTES // 8), 0)
            log.write(b'%08d' % number * 512)
            os.fsync(states.fileno())
            os.fsync(log.fileno())

        with repeated(write, every=0.02):
            end = time.monotonic() + 30
            while time.monotonic() < end and any(len(found) < 3 for found in bodies.values()):
                for name, found in bodies.items():
                    if (body := desk.body(name)) is not None and body not in found:
                        found.append(body)
                time.sleep(0.05)
        last = {name: (at / name).read_bytes() for name in bodies}
    assert all(len(found) >= 3 for found in bodies.values()), {name: len(found) for name, found in bodies.items()}
    for body in bodies['states']:
        assert body[:8] * (STATE_BYTES // 8) == body
    for body in bodies['log']:
        assert last['log'].startswith(body) and len(body) % 4096 == 0
    desk.host.unmount(at)
    assert {name: desk.body(name) for name in bodies} == last
    assert not list((desk.work / 'site').rglob('*.copy'))


def test_a_sync_does_not_wait_for_a_file_to_hold_still(desk: Desk) -> None:
    """It is done when what was written before it is in the bucket, also of a file that somebody rewrites all the time."""
    at = desk.mount('--sync-every', 'unmount')
    with open(at / 'f', 'wb', buffering=0) as file:
        def write(number: int) -> None:
            os.pwrite(file.fileno(), b'%08d' % number * (STATE_BYTES // 8), 0)
            os.fsync(file.fileno())

        write(0)
        with repeated(write, every=0):
            time.sleep(0.5)
            before = int((at / 'f').read_bytes()[:8])
            desk.host.cli('sync', at)
            body = desk.body('f')
    assert body is not None and body[:8] * (STATE_BYTES // 8) == body and int(body[:8]) >= before
    desk.host.unmount(at)


def test_pause_and_resume(desk: Desk) -> None:
    """Nothing goes by itself while paused, but a sync does; then what waited goes at once."""
    at = desk.mount('--sync-every', '1s')
    desk.host.cli('pause', at)
    (at / 'f').write_bytes(b'one')
    time.sleep(3)       # three periods
    assert desk.body('f') is None and desk.host.status(at)['paused'] and desk.host.status(at)['nextUpload'] == 0
    desk.host.cli('sync', at)
    assert desk.body('f') == b'one'
    (at / 'f').write_bytes(b'two')
    desk.host.cli('resume', at)
    eventually('what waited', lambda: desk.body('f') == b'two', every=0.05)
    desk.host.cli('pause', at)
    (at / 'f').write_bytes(b'three')
    desk.host.unmount(at)       # a pause is no reason to leave something behind
    assert desk.body('f') == b'three'


def test_manual(counted: tuple[Desk, CountingProxy]) -> None:
    """An unmount sends nothing and says what stays; the next mount has it; a sync sends it."""
    desk, proxy = counted
    policy = desk.policy(autoUpload=False)
    at = desk.mount('--policy', policy, '--poll-every', '1h')
    proxy.reset()
    (at / 'f').write_bytes(b'mine')
    done = desk.host.cli('umount', at, check=False)
    assert done.returncode == 1
    assert re.search('autoUpload is off: [12] changes? stays? on this host; mount it again and run ctxfs sync', done.stderr)
    assert proxy.total(method='PUT', kind='object') == 0 and proxy.total(method='PUT', kind='index') == 0
    assert desk.host.cli('wait', 'c', check=False).returncode == 1
    desk.mount()
    assert (at / 'f').read_bytes() == b'mine' and desk.body('f') is None
    desk.host.cli('sync', at)
    assert desk.body('f') == b'mine'
    assert desk.host.cli('umount', at).returncode == 0


def test_manual_at_the_bound(desk: Desk) -> None:
    """No waiting for an upload that nobody asked for: the writer gets ENOSPC, and the log and the status say what to do; a sync makes room."""
    at = desk.mount('--policy', desk.policy(autoUpload=False), '--cache-size', '64M')
    content = bytes(range(256)) * (40 << 12)
    (at / 'one').write_bytes(content)
    (at / 'two').write_bytes(content)       # a file's own bytes never refuse it
    began = time.monotonic()
    with pytest.raises(OSError) as refused, open(at / 'three', 'wb', buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
    assert refused.value.errno == errno.ENOSPC and time.monotonic() - began < 30
    log = Path(desk.host.json('status', at)['mounts'][0]['stateDir'], 'ctxfs.log').read_text()
    assert log.count('autoUpload is off: run ctxfs sync') == 1
    assert 'full      no space to write: ' in desk.host.cli('status', at).stdout
    desk.host.cli('sync', at)
    assert desk.host.json('status', at)['mounts'][0]['cache']['full'] == ''
    (at / 'three').write_bytes(content)
    desk.host.cli('sync', at)
    desk.host.unmount(at)
