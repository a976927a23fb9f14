"""SIGKILL at every named place, of the daemon or of a worker: what was acknowledged is there after the next mount, and reaches another host.

Owns the work that leads through all of them. A point that this work does not reach fails the test: nobody would know that it holds.
"""
from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ctxfs import crash_points
from ctxfs.storage.consistency import Bucket, check_against_bucket
from ctxfs.storage.registry import context_prefix
from ctxfs.storage.stores import open_store
from ctxfs.sync.archive_log import members_of
from ctxfs.sync.index_log import IndexLog
from tests import conftest, leftovers
from tests.crash.load import check_against
from tests.crash.watch import eventually, is_running
from tests.crash.zygote import ForkedHost, Zygote, zygote
from tests.model import observe
from tests.model.hosts import IS_DOUBLE
from tests.model.operations import Operation, Side, content, perform
from tests.mount.harness import CommandFailed
from tests.mount.sites import DirectoryBucket, S3Bucket

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no daemon'), pytest.mark.timeout(120)]

#: in the bucket before anything dies
BEFORE: list[Operation] = [
    ('mkdir', b'old', 0o755), *(('write_file', b'old/f%d' % n, 5000, n) for n in range(10)), ('write_file', b'large', 1_500_000, 9),
    ('symlink', b'large', b'soft'), ('mkdir', b'leave', 0o755), ('write_file', b'leave/it', 10, 1), ('write_file', b'one', 11, 1),
    ('write_file', b'other', 12, 2)]
#: each step leads to other requests and transfers
WORK: list[Operation] = [
    ('write_file', b'new', 70_000, 1), ('mkdir', b'empty', 0o700), ('symlink', b'new', b'link'), ('rename', b'old/f0', b'renamed'),
    ('renameat2', b'one', b'other', 2), ('rename', b'old', b'moved'), ('unlink', b'moved/f1'), ('chmod', b'moved/f2', 0o640),
    ('write_file', b'moved/f3', 100, 4), ('link', b'new', b'hard'), ('truncate', b'moved/f4', 10), ('save_durably', b'durable', 9000, 3),
    ('utimens', b'moved/f5', 1_000_000_000_123_456_789, True), ('read_whole', b'renamed'), ('patch', b'large', 1_000_000, 1000, 77),
    ('write_file', b'gone', 300, 8), ('unlink', b'gone'), ('unlink', b'leave/it'), ('rmdir', b'leave')]
#: left behind by a crash for the recovery of an armed mount
RECOVERED: list[Operation] = [('write_file', b'late', 3000, 6), ('unlink', b'moved/f6'), ('rename', b'moved/f7', b'last'),
                              ('truncate', b'moved/f2', 0)]

#: in tests of their own, here, in test_archive_crashes.py or in tests/unit/test_repair.py
ELSEWHERE = ('archive-', 'worker-archive-', 'worker-pack-', 'conflict-', 'context-', 'localise-', 'regate-', 'repair-', 'turn-', 'worker-multipart-')
NAMES = [name for name in crash_points.NAMES if not name.startswith(ELSEWHERE)]


class Forge:
    """The zygote of this module, and the file that arms what it forks."""

    def __init__(self, process: Zygote, file: Path) -> None:
        self.zygote = process
        self.file = file

    def host(self, work: Path, name: str, store: str) -> ForkedHost:
        return ForkedHost(work / name, store=store, zygote=self.zygote)

    def arm(self, point: str) -> None:
        self.file.write_text(point)

    def is_hit(self) -> bool:
        return not self.file.exists()


@pytest.fixture(scope='module')
def forge() -> Iterator[Forge]:
    """Outlives the tests: none of them left it behind."""
    marker, before = os.environ.pop(leftovers.TEST_VARIABLE, None), leftovers.pids()
    with tempfile.TemporaryDirectory(prefix='t-') as directory:
        file = Path(directory) / 'crash-point'
        with zygote({crash_points.VARIABLE: str(file)}) as process:
            conftest.session_pids.update(pid for pid in leftovers.pids() - before if conftest.parent(pid) == os.getpid())
            if marker is not None:
                os.environ[leftovers.TEST_VARIABLE] = marker
            yield Forge(process, file)


@pytest.fixture
def armed(forge: Forge, tmp_path: Path) -> Iterator[Armed]:
    """Whatever the test did not come to, nothing of it runs afterwards."""
    made = Armed(forge, tmp_path)
    yield made
    forge.file.unlink(missing_ok=True)
    made.end()


class Told:
    """For check_against: what was acknowledged is on the local side already; one step may have happened or not."""
    acknowledged: Sequence[Operation] = ()

    def __init__(self, in_flight: Operation | None) -> None:
        self.in_flight = in_flight


class Armed:
    """A host with a context of BEFORE, and the local directory that has what the mount acknowledged."""

    #: of each mount
    options: Sequence[str] = ('--sync-every', 'unmount')

    def __init__(self, forge: Forge, work: Path) -> None:
        self.forge = forge
        self.work = work
        self.bucket = DirectoryBucket(_made(work / 'store'))
        self.store = f'file://{work}/store?fsync=no'
        self.host = forge.host(work, 'state', self.store)
        self.at = _made(work / 'mnt')
        self.pid = 0
        self.since_ns = time.time_ns()
        self._mounted = Side(os.fsencode(self.at))
        self.oracle = Side(os.fsencode(_made(work / 'oracle')))
        self.in_flight: Operation | None = None

    @property
    def is_alive(self) -> bool:
        return is_running(self.pid)

    def mount(self, *options: str) -> None:
        self.host.mount('c', self.at, create=True, options=(*self.options, *options))
        self.pid = self.host.pid(self.at)

    def prepare(self) -> None:
        """BEFORE is in the bucket, clean, and the mount is there."""
        self.mount()
        self.steps(BEFORE)
        self.host.cli('sync', self.at)

    def steps(self, operations: Sequence[Operation]) -> None:
        """On both sides, until the daemon dies. A read that a worker's death fails is tried again."""
        for step in operations:
            for _ in range(20):
                outcome = perform(self._mounted, step)
                if outcome.error is None:
                    assert perform(self.oracle, step) == outcome
                    break
                assert self.forge.is_hit() or not self.is_alive, f'{step} is {outcome} although nothing died'
                if not self.is_alive:
                    self.in_flight = step
                    return
                time.sleep(0.1)
            else:
                raise AssertionError(f'{step} goes on failing: {outcome}')

    def sync(self) -> None:
        """Its outcome is the daemon's death, or not."""
        try:
            self.host.cli('sync', self.at, check=False, timeout=60)
        except subprocess.TimeoutExpired:
            assert not self.is_alive, 'a sync does not end although the daemon lives'

    def bury(self) -> None:
        """Take the dead mount away; nobody uses the state directory any more."""
        eventually('the daemon is gone', lambda: not self.is_alive)
        subprocess.run(['fusermount3', '-uz', str(self.at)], capture_output=True, check=False)
        self.host.check_state()

    def check(self) -> observe.Tree:
        """The mount shows what was acknowledged."""
        check_against(self.oracle, Told(self.in_flight), self.at, self.since_ns)  # type: ignore[arg-type]
        self.in_flight = None
        return observe.snapshot(os.fsencode(self.at))

    def leave(self, *, is_for_others: bool = True) -> None:
        """Unmount; the bucket then has exactly what this host knows, and (`is_for_others`) another host sees the same."""
        got = observe.snapshot(os.fsencode(self.at))
        self.host.unmount(self.at)
        state = self.state_dir
        store = open_store(self.store)
        prefix = context_prefix(state.name.rpartition('-')[0])
        found = check_against_bucket(state, Bucket(store, prefix, [(item.record.path, item.record.etag) for item in members_of(store, prefix)]))
        store.close()
        assert found == []
        if not is_for_others:
            return
        other = self.forge.host(self.work, 'other', self.store)
        other.mount('c', self.at)
        elsewhere = observe.snapshot(os.fsencode(self.at))
        other.unmount(self.at)
        assert observe.differences(elsewhere, got, directory_times=False) == []

    @property
    def state_dir(self) -> Path:
        found, = (path.parent for path in self.host.state_dir.glob('*/tree.db'))
        return found

    def end(self) -> None:
        if leftovers.mounts_below(self.at):
            self.host.kill9(self.at, pid=self.pid) if self.is_alive else self.bury()


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


@pytest.mark.parametrize('name', [name for name in NAMES if name.startswith('worker-')])
def test_a_worker_dies_at(name: str, armed: Armed) -> None:
    """The daemon replaces it, the programs notice nothing but a failed read, and everything is uploaded."""
    armed.prepare()
    if name == 'worker-compact-after-base':
        _add_segments(armed)
    prefix = context_prefix(armed.state_dir.name.rpartition('-')[0])
    armed.forge.arm(name)
    armed.bucket.put(f'{prefix}from-outside', content(4000, 1))
    (Path(os.fsdecode(armed.oracle.root)) / 'from-outside').write_bytes(content(4000, 1))
    eventually('the file from outside', (armed.at / 'from-outside').exists)
    armed.steps([('chmod', b'from-outside', 0o644), ('read_whole', b'from-outside'), *WORK,
                 ('write_file', b'big', 9 << 20, 5)])     # read twice by the worker: once for its hash
    armed.sync()
    armed.steps([('unlink', b'renamed'), ('write_file', b'again', 10, 1)])
    armed.sync()
    assert armed.forge.is_hit(), f'nothing that this test does leads by {name}'
    assert armed.is_alive
    armed.check()
    armed.leave()


def _add_segments(armed: Armed) -> None:
    """So many that the next upload merges them."""
    store = open_store(armed.store)
    log = IndexLog(store, context_prefix(armed.state_dir.name.rpartition('-')[0]), host='elsewhere')
    for _ in range(70):
        log.append([])
    store.close()
    armed.host.cli('sync', armed.at, '--mode', 'download')


ON_THE_WAY_UP = ('recovery-', 'listing-')
#: what another host sees is made here; of the others the bucket is what it is after any upload
SENT = ('upload-', 'cycle-', 'subtree-', 'delete-', 'index-', 'announce-', 'link-', 'rename-')


@pytest.mark.parametrize('name', [f'{name}:{nth}' for name in NAMES if name.startswith('tree-') for nth in (3, 17)] + [
    name for name in NAMES if not name.startswith(('worker-', 'tree-', *ON_THE_WAY_UP))])
def test_the_daemon_dies_at(name: str, armed: Armed) -> None:
    """In a request, a transfer, or the final upload: the next mount has everything, and brings it into the bucket."""
    armed.prepare()
    armed.forge.arm(name)
    armed.steps(WORK)
    if armed.is_alive:
        armed.sync()
    if armed.is_alive:
        armed.steps([('write_file', b'again', 1000, 2), ('unlink', b'moved/f5')])
        armed.sync()
    assert armed.forge.is_hit(), f'nothing that this test does leads by {name}'
    armed.bury()
    armed.mount()
    armed.check()
    armed.leave(is_for_others=name.startswith(SENT))


@pytest.mark.parametrize('name', [name for name in NAMES if name.startswith(ON_THE_WAY_UP)])
def test_the_daemon_dies_on_the_way_up_at(name: str, armed: Armed) -> None:
    """With changes of a crash before: the mount after it has them all the same."""
    armed.prepare()
    armed.steps([*WORK, *RECOVERED])
    armed.host.kill9(armed.at, pid=armed.pid)
    armed.forge.arm(name)
    try:
        armed.mount()
    except (CommandFailed, AssertionError, TypeError):      # it died before it said that it is there, or before it said its pid
        assert armed.forge.is_hit()
    eventually(f'{name} is hit', armed.forge.is_hit)
    armed.bury()
    armed.mount()
    armed.check()
    armed.leave()


def test_what_was_told_of_a_file_that_only_the_log_has(armed: Armed) -> None:
    """That it was made, and its attributes changed, as far as the program heard of it before the daemon died."""
    armed.prepare()
    (armed.at / 'd').mkdir()
    armed.forge.arm('made-before-commit')
    told = {'size': 0}
    fd = os.open(armed.at / 'd/it', os.O_CREAT | os.O_WRONLY, 0o600)
    with suppress(OSError):     # it is gone as soon as no request follows at once
        os.fchmod(fd, 0o751)
        told['mode'] = 0o751
        os.utime(fd, ns=(10**18, 10**18 + 1))
        told['mtime_ns'] = 10**18 + 1
    with suppress(OSError):
        os.close(fd)
    eventually('made-before-commit is hit', armed.forge.is_hit)
    armed.bury()
    armed.mount()
    found = (armed.at / 'd/it').stat()
    kept = {'size': found.st_size, 'mode': found.st_mode & 0o7777, 'mtime_ns': found.st_mtime_ns}
    assert {name: kept[name] for name in told} == told
    armed.host.unmount(armed.at)


@pytest.mark.parametrize('name', [name for name in crash_points.NAMES if name.startswith('conflict-')])
def test_a_conflict_is_settled_once_although_the_daemon_dies_at(name: str, armed: Armed) -> None:
    """Both contents are there, each once."""
    armed.prepare()
    armed.steps([('write_file', b'old/f0', 100, 50)])
    armed.forge.arm(name)
    armed.bucket.put(f'{context_prefix(armed.state_dir.name.rpartition("-")[0])}old/f0', b'theirs')
    armed.sync()
    assert armed.forge.is_hit(), f'nothing that this test does leads by {name}'
    armed.bury()
    armed.mount()
    armed.host.cli('sync', armed.at)
    found = [path.read_bytes() for path in (armed.at / 'old').iterdir() if 'f0' in path.name]
    assert sorted(found) == sorted([content(100, 50), b'theirs'])
    assert (armed.at / 'old/f0').read_bytes() == b'theirs'
    armed.leave()


@pytest.mark.parametrize('name', [name for name in crash_points.NAMES if name.startswith(('localise-', 'regate-'))])
def test_white_lists_are_kept_although_the_daemon_dies_at(name: str, armed: Armed) -> None:
    """What left them is here and not in the bucket, what was never on them is not shown."""
    armed.prepare()
    armed.host.unmount(armed.at)
    policy = armed.work / 'policy.json'
    policy.write_text(json.dumps({'bwList': {'whiteLists': [{'path': '/old'}]}}))
    armed.forge.arm(name)
    try:
        armed.mount('--policy', str(policy))
        armed.steps([('mkdir', b'here', 0o755), ('rename', b'old/f0', b'here/f0'), ('write_file', b'old/more', 10, 3)])
        armed.sync()
    except (CommandFailed, AssertionError):
        assert armed.forge.is_hit()
    assert armed.forge.is_hit(), f'nothing that this test does leads by {name}'
    armed.bury()
    armed.mount('--policy', str(policy))
    armed.host.cli('sync', armed.at)
    assert not (armed.at / 'large').exists()
    prefix = context_prefix(armed.state_dir.name.rpartition('-')[0])
    keys = {key[len(prefix):] for key in armed.bucket.keys(prefix)}
    if name.startswith('localise-'):
        assert (armed.at / 'here/f0').read_bytes() == content(5000, 0)
        assert 'old/f0' not in keys and 'old/more' in keys and 'here/f0' not in keys
    assert {'large', 'old/f1', 'leave/it'} <= keys
    armed.host.unmount(armed.at)


def test_a_worker_dies_in_an_upload_in_parts(forge: Forge, s3_server: Any, tmp_path: Path) -> None:
    """Before and after its parts become an object: the object is whole, and no upload is taken for somebody else's."""
    bucket = S3Bucket(s3_server.endpoint, s3_server.environment, s3_server.make_bucket())
    host = ForkedHost(tmp_path / 'state', store=f's3://{bucket.name}?endpoint={s3_server.endpoint}', zygote=forge.zygote, env=s3_server.environment)
    at = _made(tmp_path / 'mnt')
    host.mount('c', at, create=True, options=('--sync-every', 'unmount'))
    try:
        for number, name in enumerate(name for name in crash_points.NAMES if name.startswith('worker-multipart-')):
            forge.arm(name)
            (at / f'large {number}').write_bytes(content(17 << 20, number))
            host.cli('sync', at)
            assert forge.is_hit(), f'nothing that this test does leads by {name}'
            key, = (key for key in bucket.keys('contexts/') if key.endswith(f'large {number}'))
            assert bucket.body(key) == content(17 << 20, number)
        assert len(list(at.iterdir())) == 2
        host.unmount(at)
    finally:
        if leftovers.mounts_below(at):
            host.kill9(at)
        bucket.client.close()
