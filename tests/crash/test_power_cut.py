"""The power goes off under a mount whose state lies on a real ext4: what was fsynced is there afterwards, and the bucket has whole files.

Owns the work and the moments of the cuts, CTXFS_TEST_POWER_CUTS of them. What the disk may make of un-fsynced bytes is helped along: files
are sent off and the journal is committed just before, which leaves full sizes and zeros. All disks that a model allows are in
tests/unit/test_power_cut.py; this one has a kernel, workers, the block cache and SQLite's own writes.
"""
from __future__ import annotations

import os
import random
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctxfs.edge.client import ControlClient
from ctxfs.edge.runtime_dir import find_mounts
from tests import leftovers
from tests.crash.cut_disk import CannotMount, CutDisk, begin_writing
from tests.crash.promises import Promises
from tests.crash.watch import children, eventually, is_running
from tests.model.hosts import IS_DOUBLE
from tests.mount.harness import Host

CUTS = int(os.environ.get('CTXFS_TEST_POWER_CUTS', '2'))
SEED = int(os.environ.get('CTXFS_TEST_POWER_SEED', '0'))
STEPS = 12
NAMES = ('a', 'b', 'c', 'd')

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='says what a mount does, not what any disk does'), pytest.mark.needs_root,
              pytest.mark.timeout(120 + 60 * CUTS)]


@pytest.fixture
def disk(tmp_path: Path, no_leaks: str) -> Iterator[CutDisk]:
    try:
        made = CutDisk(tmp_path)
    except CannotMount as error:
        pytest.skip(f'no loop mounts here: {error}')
    yield made
    leftovers.unmount_all(tmp_path / 'at')
    leftovers.kill(leftovers.wait_for_end(leftovers.processes(leftovers.TEST_VARIABLE, no_leaks), 15))     # they have files open on it
    made.power_off()


class Programs:
    """Random work on the mount, with what it was promised."""

    def __init__(self, at: Path, host: Host, chance: random.Random) -> None:
        self.at = at
        self.host = host
        self.chance = chance
        self.promises = Promises()

    def content(self) -> bytes:
        """Never a zero, and of no other's content the beginning."""
        size = self.chance.choice((10, 3000, 5000, 70_000, 300_000))
        return self.chance.randbytes(64).translate(bytes(byte or 1 for byte in range(256))) * (size // 64 + 1)

    def step(self) -> None:
        name = self.chance.choice(NAMES)
        is_there = self.promises.latest(name) is not None
        changes = (self.append, self.patch, self.remove) if is_there else ()
        self.chance.choice((self.save, self.save, self.save_by_rename, *changes, self.sync))(name)

    def _write(self, name: str, flags: int, offset: int, data: bytes, *, whole: bytes) -> bool:
        """Whether it was fsynced."""
        self.promises.now(name, whole)
        fd = os.open(self.at / name, os.O_WRONLY | flags, 0o644)
        try:
            os.pwrite(fd, data, offset)
            if is_fsynced := self.chance.random() < 0.4:
                os.fsync(fd)
                self.promises.durable(name)
            return is_fsynced
        finally:
            os.close(fd)

    def save(self, name: str) -> None:
        data = self.content()
        self._write(name, os.O_CREAT | os.O_TRUNC, 0, data, whole=data)

    def append(self, name: str) -> None:
        before, data = self.promises.latest(name) or b'', self.content()
        self._write(name, 0, len(before), data, whole=before + data)

    def patch(self, name: str) -> None:
        """In place, all of it, so that any mixture is one of two versions: a block of the disk."""
        before = self.promises.latest(name) or b''
        offset = self.chance.randrange(0, len(before), 4096)
        data = bytes(byte % 255 + 1 for byte in before[offset:offset + 4096])
        self._write(name, 0, offset, data, whole=before[:offset] + data + before[offset + len(data):])

    def save_by_rename(self, name: str) -> None:
        data = self.content()
        is_fsynced = self._write('tmp', os.O_CREAT | os.O_TRUNC, 0, data, whole=data)
        self.promises.now(name, data)
        self.promises.now('tmp', None)
        os.rename(self.at / 'tmp', self.at / name)
        if is_fsynced:
            fd = os.open(self.at, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            self.promises.durable(name, 'tmp')

    def remove(self, name: str) -> None:
        self.promises.now(name, None)
        os.unlink(self.at / name)

    def sync(self, _: str) -> None:
        self.host.cli('sync', self.at)
        self.promises.durable()

    def shown(self) -> dict[str, bytes]:
        return {name: (self.at / name).read_bytes() for name in (*NAMES, 'tmp') if (self.at / name).exists()}


def bucket_of(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.glob('contexts/*/*') if path.is_file()}


def cut(disk: CutDisk, host: Host, at: Path, chance: random.Random) -> None:
    """The power goes off, after the disk got as far with what was not fsynced as `chance` has it."""
    pid = host.pid(at)
    workers = children(pid)
    for file in disk.path.glob('*/staging/*/*'):
        if chance.random() < 0.5:
            begin_writing(str(file))
    if chance.random() < 0.7:
        for log in disk.path.glob('*/tree.db-wal'):
            fd = os.open(log, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
    if chance.random() < 0.7:
        disk.commit()
    disk.cut()
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    host.kill9(at, pid=pid)
    eventually('the workers are gone', lambda: not any(is_running(worker) for worker in workers))
    disk.power_off()


def wait_until_hardened(host: Host) -> None:
    """It does so by itself when files are quiet; then nothing needs an fsync."""
    with ControlClient(find_mounts(host.runtime / 'ctxfs')[0].socket) as client:
        eventually('everything is hardened', lambda: client.call('statistics')['durability'] == {'unhardened': 0}, every=0.5)


def boot(disk: CutDisk) -> None:
    """As the host comes up again: for the database it is another boot."""
    disk.power_on()
    for database in disk.path.glob('*/tree.db'):
        connection = sqlite3.connect(database)
        connection.execute("UPDATE meta SET value = 'another boot' WHERE name = 'boot_id'")
        connection.commit()
        connection.close()


@pytest.mark.parametrize('seed', [SEED + number for number in range(CUTS)])
def test_a_power_cut_breaks_no_promise(seed: int, disk: CutDisk, tmp_path: Path) -> None:
    """Random work, a cut, and the next mount: fsynced and synced content is there, and no object is less than it was."""
    chance = random.Random(seed)
    store, at = tmp_path / 'store', tmp_path / 'at'
    at.mkdir()
    host = Host(disk.path, store=f'file://{store}')
    options = ('--sync-every', 'unmount')
    host.mount('c', at, create=True, options=options)
    run = Programs(at, host, chance)
    run.save('a')
    run.sync('a')
    for _ in range(STEPS):
        run.step()
    if seed % 2:
        wait_until_hardened(host)
        run.promises.durable()
    before = bucket_of(store)
    cut(disk, host, at, chance)
    boot(disk)
    host.mount('c', at, options=options)
    at_first = run.shown()
    host.cli('sync', at)
    broken = run.promises.broken(at_first=at_first, at_last=run.shown(), before=before, bucket=bucket_of(store))
    host.unmount(at)
    assert not broken, '\n'.join([f'seed {seed}', *broken])
