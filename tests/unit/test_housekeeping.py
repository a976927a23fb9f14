"""What a mount does so that its host is not filled in months: a log of bounded size, and no caches of contexts that nobody mounts."""
from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ctxfs.edge import log_file, unused_caches
from ctxfs.edge.state_lock import locked
from ctxfs.edge.unused_caches import SHORT_SECONDS, UNUSED_SECONDS, drop_unused
from ctxfs.storage.block_cache import BlockCache

# --- the log -------------------------------------------------------------------------------------------------------------------------


def test_a_log_is_bounded_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By any number of processes that have it open: each goes on, and the newest lines are there, here or in what was moved aside."""
    monkeypatch.setattr(log_file, 'MAX_LOG_BYTES', 1000)
    path = tmp_path / 'ctxfs.log'
    with log_file.open_log(path) as daemon:
        worker = os.dup(daemon.fileno())
        try:
            for number in range(300):
                os.write(daemon.fileno() if number % 2 else worker, f'line {number:03}\n'.encode())
                log_file.cut(path, daemon.fileno())
                assert path.stat().st_size <= 1009
        finally:
            os.close(worker)
    found = ((tmp_path / 'ctxfs.log.1').read_text() + path.read_text()).split('\n')[:-1]
    assert found == [f'line {number:03}' for number in range(300 - len(found), 300)] and len(found) > 100
    assert sorted(file.name for file in tmp_path.iterdir()) == ['ctxfs.log', 'ctxfs.log.1']
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


def test_what_is_not_the_log_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stderr may lead anywhere: to a file of the user's, a pipe, a file that was moved away."""
    monkeypatch.setattr(log_file, 'MAX_LOG_BYTES', 3)
    log, other = tmp_path / 'ctxfs.log', tmp_path / 'other'
    for path in (log, other):
        path.write_text('long enough')
    with other.open('ab') as stderr:
        assert not log_file.cut(log, stderr.fileno()) and not log_file.cut(tmp_path / 'none', stderr.fileno())
    reader, writer = os.pipe()
    assert not log_file.cut(log, writer)
    os.close(reader)
    os.close(writer)
    assert log.read_text() == other.read_text() == 'long enough'


# --- caches --------------------------------------------------------------------------------------------------------------------------

LAYOUTS = {'beside': ('cache/{}', 'state/{}'), 'inside': ('state/{}/cache', 'state/{}')}


class Host:
    """Contexts that were mounted so many seconds ago, in one of the two layouts of directories."""

    def __init__(self, root: Path, layout: str) -> None:
        self._root, self._layout = root, LAYOUTS[layout]
        self.now = time.time()

    def cache(self, name: str) -> Path:
        return self._root / self._layout[0].format(name)

    def state(self, name: str) -> Path:
        return self._root / self._layout[1].format(name)

    def add(self, name: str, age: float) -> None:
        self.state(name).mkdir(parents=True)
        (self.state(name) / 'tree.db').touch()
        self.cache(name).mkdir(parents=True)
        database = self.cache(name) / 'cache.db'
        database.touch()
        os.utime(database, (self.now - age, self.now - age))

    def look(self, *, spare: int = 1) -> int:
        return drop_unused(self.cache('own'), self.state('own'), now=self.now, spare=lambda path: spare)

    def left(self) -> set[str]:
        assert all((self.state(name) / 'tree.db').exists() for name in ('own', 'new', 'day', 'old')), 'a journal is nobody\'s to remove'
        return {name for name in ('own', 'new', 'day', 'old') if (self.cache(name) / 'cache.db').exists()}


@pytest.fixture(params=LAYOUTS)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    made = Host(tmp_path, request.param)
    for name, age in (('own', 2 * UNUSED_SECONDS), ('new', SHORT_SECONDS / 2), ('day', 2 * SHORT_SECONDS), ('old', UNUSED_SECONDS + 1)):
        made.add(name, age)
    return made


def test_caches_that_nobody_used_for_long_go(host: Host) -> None:
    """But for this mount's own; what is no cache stays, whatever lies beside it."""
    foreign = host.cache('foreign')
    foreign.mkdir(parents=True)
    (foreign / 'file').touch()
    os.utime(foreign / 'file', (1, 1))
    assert host.look() == 1 and host.left() == {'own', 'new', 'day'} and host.look() == 0
    assert (foreign / 'file').exists() and not list(host.cache('old').parent.glob(f'{host.cache("old").name}*'))


def test_on_a_disk_that_is_short_of_room_they_go_sooner(host: Host) -> None:
    """Those that were used a day ago, before programs hear that the disk is full."""
    assert host.look(spare=0) == 2 and host.left() == {'own', 'new'}


def test_each_mount_renews_the_time_of_its_cache(host: Host) -> None:
    """By opening it: what was used lately is not old."""
    BlockCache(host.cache('old'), 64 << 20).close()
    host.now = time.time()
    assert host.look() == 0


def test_a_cache_in_use_stays(host: Host) -> None:
    """Of a mount, or of workers of one that was killed: they have its lock."""
    with locked(host.state('old')):
        assert host.look() == 0 and host.left() == {'own', 'new', 'day', 'old'}
    assert host.look() == 1


def test_what_a_kill_left_of_a_cache_goes(host: Host) -> None:
    """It was moved away to be removed."""
    left = Path(f'{host.cache("old")}{unused_caches.BROKEN}0123abcd')
    left.mkdir()
    (left / 'cache.db').touch()
    host.look()
    assert left.exists(), 'somebody may be at it'
    host.now += SHORT_SECONDS + 600
    host.look()
    assert not left.exists()
