"""Power cuts at every instant of what programs do, on every disk that the model allows: what was promised is there, and the bucket is whole.

Owns the programs and the promises. It must not need a mount: core, sync and recovery run as the daemon wires them, over a real directory.
"""
from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import trio

from ctxfs.records import ROOT_INO
from ctxfs.storage.inode import Inode
from ctxfs.sync import power_cut
from ctxfs.sync.hardening import Hardener
from ctxfs.sync.protocol import Operation
from tests.crash import disk_model
from tests.crash.disk_model import Instant, Recorder
from tests.crash.promises import Promises
from tests.unit.rig import Disk, virtual_time
from tests.unit.test_sync_regressions import PREFIX

#: disks tried of each program, chosen by chance; 0: all of them
DISKS = int(os.environ.get('CTXFS_TEST_POWER_DISKS', '30'))
#: what programs do, as instants are called when it is done
STEPS = ('save', 'patch', 'rename', 'remove', 'sync', 'harden')
SIZE = 10_000


def content(number: int, size: int = SIZE) -> bytes:
    """Never a zero."""
    return bytes(1 + (number * 7 + at) % 255 for at in range(251)) * (size // 251 + 1)


class Programs:
    """What programs do on a disk, with what they were promised."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.promises = Promises()
        self.hardener = Hardener(disk.db, disk.staging)
        #: told after each step
        self.done: Callable[[str], object] = lambda step: None

    def at(self, name: str) -> Inode:
        return self.disk.inode_at(name.encode())

    async def save(self, name: str, data: bytes, *, fsync: bool = False) -> None:
        """A new file, or another content from its first byte on (O_TRUNC)."""
        fs = self.disk.fs
        self.promises.now(name, data)
        if self.disk.db.resolve((name.encode(),)) is None:
            fh, _ = await self.disk.open_new(name.encode())
        else:
            fh = await fs.open(self.at(name).ino, os.O_WRONLY | os.O_TRUNC)
        await fs.write(fh, 0, data[:len(data) // 2])
        await fs.write(fh, len(data) // 2, data[len(data) // 2:])
        if fsync:
            await fs.fsync(fh)
            self.promises.durable(name)
        await fs.release(fh)
        self.done('save')

    async def patch(self, name: str, offset: int, data: bytes, *, fsync: bool = False) -> None:
        """Write in place, or beyond the end."""
        before = self.promises.versions[name][-1] or b''
        fh = await self.disk.fs.open(self.at(name).ino, os.O_WRONLY)
        self.promises.now(name, before[:offset] + data + before[offset + len(data):])
        await self.disk.fs.write(fh, offset, data)
        if fsync:
            await self.disk.fs.fsync(fh)
            self.promises.durable(name)
        await self.disk.fs.release(fh)
        self.done('patch')

    async def rename(self, name: str, new: str) -> None:
        replaced = self.disk.db.resolve((new.encode(),))
        data = self.promises.versions[name][-1]
        self.promises.now(new, data)
        self.promises.now(name, None)
        await self.disk.rename(name.encode(), new.encode())
        if replaced is not None:
            self.disk.fs.forget([(replaced, 1)])
        self.done('rename')

    async def remove(self, name: str) -> None:
        ino = self.at(name).ino
        self.promises.now(name, None)
        await self.disk.fs.unlink(ROOT_INO, name.encode())
        self.disk.fs.forget([(ino, 1)])
        self.done('remove')

    async def sync(self) -> None:
        assert (await self.disk.engine.flush()).ok
        self.promises.durable()
        self.done('sync')

    async def harden(self) -> None:
        """What happens by itself, when files have been quiet."""
        self.disk.fs.forget([(inode.ino, 1) for inode in list(self.disk.db._live.values()) if inode.ino in self.disk.fs._known])
        await self.hardener._harden(list(self.disk.staging.unhardened))
        self.promises.durable()
        self.done('harden')


# --- programs ----------------------------------------------------------------------------------------------------------------------

async def editors(run: Programs) -> None:
    """Save anew, save in place, save beside and rename, with and without fsync."""
    await run.save('a', content(1))
    await run.save('b', content(2), fsync=True)
    await run.sync()
    await run.save('a', content(3), fsync=True)
    await run.save('a', content(4))
    await run.save('tmp', content(5))
    await run.rename('tmp', 'b')
    await run.save('c', content(6))
    await run.sync()
    await run.save('tmp', content(7), fsync=True)
    await run.rename('tmp', 'a')
    await run.save('c', content(8, 3000), fsync=True)


async def logs(run: Programs) -> None:
    """Appended to, with an fsync now and then; also inside of one block, where the file system leaves zeros."""
    await run.save('log', content(1)[:8192], fsync=True)
    size = 8192
    await run.sync()
    for number in range(2, 5):
        await run.patch('log', size, content(number, 5000), fsync=number == 3)
        size += len(content(number, 5000))
        if number == 3:
            await run.patch('log', 100, content(9, 400))
    await run.sync()


async def removals(run: Programs) -> None:
    """What was fsynced, or hardened by itself, and is removed or replaced before the bucket has it."""
    await run.save('a', content(1), fsync=True)
    await run.save('b', content(2))
    await run.sync()
    await run.save('b', content(3))
    await run.save('new', content(4), fsync=True)
    await run.save('gone', content(7), fsync=True)
    await run.harden()
    await run.remove('gone')
    await run.save('tmp', content(5))
    await run.rename('tmp', 'new')
    await run.remove('b')
    await run.remove('a')
    await run.harden()
    await run.save('a', content(6))
    await run.sync()


async def waiting(run: Programs) -> None:
    """Nothing is fsynced and nothing uploaded for long: it hardens by itself, and is promised from then on."""
    await run.save('old', content(1))
    await run.sync()
    await run.save('old', content(2))
    await run.save('new', content(3))
    await run.harden()
    await run.save('old', content(4))
    await run.patch('new', 100, content(5, 200))
    await run.sync()


PROGRAMS = (editors, logs, removals, waiting)


# --- the cut -----------------------------------------------------------------------------------------------------------------------

def record(program: Callable[[Programs], Awaitable[None]], directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[Instant]:
    directory.mkdir()
    instants: list[Instant] = []

    async def main() -> None:
        disk = Disk(directory)
        try:
            run = Programs(disk)
            recorder = Recorder(directory, lambda: deepcopy(run.promises))
            run.done = recorder.instant

            async def before(operation: Operation[Any]) -> None:
                recorder.instant(f'before {type(operation).__name__}')
            disk.before = before
            with recorder.recording():
                async with disk.running():
                    recorder.instant('begin')
                    await program(run)
                    recorder.instant('end')
            instants.extend(recorder.instants)
        finally:
            disk.close()
    with virtual_time(monkeypatch) as clock:
        trio.run(main, clock=clock)
    return instants


class Found:
    """What the host shows when it came up again, at once and when all is uploaded, and what the bucket has then."""

    def __init__(self) -> None:
        self.at_first: dict[str, bytes] = {}
        self.at_last: dict[str, bytes] = {}
        self.bucket: dict[str, bytes] = {}


def after_reboot(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Found:
    found = Found()

    async def main() -> None:
        disk = Disk(directory)
        try:
            async with disk.running():
                found.at_first = await shown(disk)
                assert (await disk.engine.flush()).ok
                found.at_last = await shown(disk)
                keys = disk.keys()
                found.bucket = {key: disk.body(key) or b'' for key in keys}
        finally:
            disk.close()
    with virtual_time(monkeypatch) as clock:
        trio.run(main, clock=clock)
    return found


async def shown(disk: Disk) -> dict[str, bytes]:
    contents = {}
    for name, ino in disk.db.children(ROOT_INO, b'', 100):
        fh = await disk.fs.open(ino, os.O_RDONLY)
        contents[name.decode()] = await disk.fs.read(fh, 0, 1 << 20)
        await disk.fs.release(fh)
    return contents


def broken_promises(instant: Instant, found: Found) -> list[str]:
    directory = instant.bucket / PREFIX
    before = {name: (directory / name).read_bytes() for name in instant.note.versions if (directory / name).exists()}
    lines: list[str] = instant.note.broken(at_first=found.at_first, at_last=found.at_last, before=before, bucket=found.bucket)
    return lines


def choose(cases: list[list[tuple[int, disk_model.Disk]]], instants: list[Instant]) -> list[tuple[int, disk_model.Disk]]:
    """One disk of each instant at which a step was done, for then most is promised, and others by chance."""
    every = [case for of_instant in cases for case in of_instant]
    if not DISKS:
        return every
    chance = random.Random(4)
    chosen = [chance.choice(of_instant) for of_instant, instant in zip(cases, instants, strict=True) if instant.step in STEPS]
    return chosen + chance.sample(every, min(max(DISKS - len(chosen), 0), len(every)))


@pytest.mark.parametrize('program', PROGRAMS, ids=lambda program: program.__name__)
def test_a_power_cut_breaks_no_promise(program: Callable[[Programs], Awaitable[None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of the un-fsynced writes reached the disk: fsynced and synced content is there by its name, and no object is replaced by less
    than a whole and later version."""
    instants = record(program, tmp_path / 'host', monkeypatch)
    cases = choose([[(number, disk) for disk in disk_model.disks(instant)] for number, instant in enumerate(instants)], instants)
    monkeypatch.setattr(power_cut, 'boot_id', lambda: 'another boot')
    broken = []
    for count, (number, disk) in enumerate(cases):
        root = tmp_path / f'disk.{count}'
        disk_model.make(instants[number], disk, root)
        (root / 'cache').symlink_to(tmp_path / 'host/cache')       # 256 directories need not be made each time
        broken += [f'at {number} {instants[number].step} ({disk.how}): {line}'
                   for line in broken_promises(instants[number], after_reboot(root, monkeypatch))]
    assert not broken, '\n'.join([f'{len(broken)} of {len(cases)} disks', *broken[:20]])
