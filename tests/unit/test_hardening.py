"""What becomes durable by itself, when, and what waits for it: the clock passes virtually, the disk and the database are real.

Owns nothing. What a power cut makes of it is tests/unit/test_power_cut.py's.
"""
from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from ctxfs.policy import ONLY_ON_UNMOUNT, BWList, SyncPolicy, WhiteList
from ctxfs.records import ROOT_INO
from ctxfs.storage.durability import Measure, measure, whole_size
from ctxfs.storage.hardened import HardenedFiles
from ctxfs.storage.inode import Content, Inode
from ctxfs.sync.hardening import LONGEST_SECONDS, LOOK_SECONDS, QUIET_SECONDS, Hardener
from tests.unit.rig import ME, Disk, virtual_time

Play = Callable[[Callable[[Disk, Hardener], Awaitable[None]]], None]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """play(scenario): run it on a disk that hardens by itself and uploads nothing unasked."""
    def run(scenario: Callable[[Disk, Hardener], Awaitable[None]]) -> None:
        async def main() -> None:
            disk = Disk(tmp_path, sync_every=ONLY_ON_UNMOUNT)
            hardener = Hardener(disk.db, disk.staging)
            try:
                async with disk.running():
                    disk.spawn(hardener.run)
                    await scenario(disk, hardener)
            finally:
                disk.close()

        with virtual_time(monkeypatch) as clock:
            trio.run(main, clock=clock)
    return run


async def hardened_after(disk: Disk, inode: Inode) -> float:
    """Virtual seconds until the database has it."""
    began = trio.current_time()
    while HardenedFiles(disk.db).measure_of(inode.ino) is None:
        assert trio.current_time() - began < 100, 'it never hardens'
        await trio.sleep(0.1)
    return trio.current_time() - began


async def remove(disk: Disk, name: bytes, inode: Inode) -> None:
    await disk.fs.unlink(ROOT_INO, name)
    disk.fs.forget([(inode.ino, 1)])


def test_a_quiet_file_hardens(play: Play) -> None:
    """Between one look and the next; then nothing is left to do."""
    async def scenario(disk: Disk, _: Hardener) -> None:
        inode = await disk.save(b'f', b'x' * 100)
        assert QUIET_SECONDS <= await hardened_after(disk, inode) <= QUIET_SECONDS + LOOK_SECONDS + 0.2
        assert HardenedFiles(disk.db).measure_of(inode.ino) == (100, 0) and not disk.staging.unhardened
    play(scenario)


def test_a_file_that_is_never_quiet_hardens_too(play: Play) -> None:
    """It is not known to be whole then, but what it had is."""
    async def scenario(disk: Disk, _: Hardener) -> None:
        fh, inode = await disk.open_new(b'log')
        hardened, written = HardenedFiles(disk.db), 0
        while hardened.measure_of(inode.ino) is None:
            assert written < LONGEST_SECONDS + 2 * LOOK_SECONDS + 1
            await disk.fs.write(fh, written, b'.')
            written += 1
            await trio.sleep(1)
        assert written >= LONGEST_SECONDS and hardened.measure_of(inode.ino) == (written, 0)
        await disk.fs.write(fh, written, b'.')
        assert disk.staging.unhardened == {inode.ino}
        await disk.fs.release(fh)
    play(scenario)


def test_an_upload_comes_first(play: Play) -> None:
    """What the bucket has needs no write to this disk."""
    async def scenario(disk: Disk, _: Hardener) -> None:
        await disk.save(b'f', b'x')
        assert (await disk.engine.flush()).ok and not disk.staging.unhardened
        await trio.sleep(3 * LOOK_SECONDS)
        assert not HardenedFiles(disk.db).inos()
    play(scenario)


def test_what_is_staged_anew_is_not_hardened_any_more(play: Play) -> None:
    """The row goes in the transaction of the turn: of the new bytes nobody knows anything."""
    async def scenario(disk: Disk, _: Hardener) -> None:
        inode = await disk.save(b'f', b'x')
        await hardened_after(disk, inode)
        assert (await disk.engine.flush()).ok
        await disk.rewrite(inode, b'y')
        assert HardenedFiles(disk.db).measure_of(inode.ino) is None and disk.staging.unhardened == {inode.ino}
    play(scenario)


def test_what_changes_while_it_is_hardened_stays_unhardened(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row says what was there before the fsync began; a file that was uploaded and staged anew meanwhile gets none."""
    async def scenario(disk: Disk, hardener: Hardener) -> None:
        inode = await disk.save(b'f', b'x')
        fh = await disk.fs.open(inode.ino, os.O_WRONLY)
        real = disk.staging.harden

        async def harden(change: Callable[[], Awaitable[object]]) -> None:
            async def thread(function: Callable[..., object], *args: object) -> object:
                result = function(*args)
                if function == real:
                    await change()
                return result
            with monkeypatch.context() as patch:
                patch.setattr(trio.to_thread, 'run_sync', thread)
                await hardener._harden([inode.ino])

        await harden(lambda: disk.fs.write(fh, 1, b'yz'))
        assert HardenedFiles(disk.db).measure_of(inode.ino) == (1, 0) and disk.staging.unhardened == {inode.ino}

        async def anew() -> None:
            assert (await disk.engine.flush()).ok
            await disk.fs.write(fh, 3, b'!')
        await harden(anew)
        assert HardenedFiles(disk.db).measure_of(inode.ino) is None and disk.staging.unhardened == {inode.ino}
        await disk.fs.release(fh)
    play(scenario)


def test_a_removed_file_stays_until_its_removal_is_durable(play: Play) -> None:
    """If it was hardened; else nobody was promised anything, and its bytes need not reach the disk first."""
    async def scenario(disk: Disk, _: Hardener) -> None:
        kept, gone = await disk.save(b'kept', b'x'), await disk.save(b'gone', b'x')
        await hardened_after(disk, kept)
        await disk.rewrite(gone, b'other')      # hardened before: stays hardened
        fresh = await disk.save(b'fresh', b'x')
        used = disk.staging.used
        for name, inode in ((b'kept', kept), (b'fresh', fresh)):
            await remove(disk, name, inode)
        assert os.path.exists(disk.staging.path(kept.ino)) and not os.path.exists(disk.staging.path(fresh.ino))
        assert disk.staging.used < used and disk.staging.removed == [kept.ino]
        await trio.sleep(LOOK_SECONDS + 0.1)
        assert not os.path.exists(disk.staging.path(kept.ino)) and not disk.staging.removed
    play(scenario)


def test_a_full_disk_has_the_room_of_removed_files_at_once(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that makes room and goes on must not be told that there is none."""
    async def scenario(disk: Disk, _: Hardener) -> None:
        inode = await disk.save(b'big', b'x' * 10_000)
        await hardened_after(disk, inode)
        fh, _unused = await disk.open_new(b'f')
        real = os.pwrite

        def pwrite(fd: int, data: bytes, offset: int) -> int:
            if os.path.exists(disk.staging.path(inode.ino)):
                if offset:
                    raise OSError(errno.ENOSPC, 'full')
                data = data[:3]
            return real(fd, data, offset)
        monkeypatch.setattr(os, 'pwrite', pwrite)
        with pytest.raises(OSError, match='full'):
            await disk.fs.write(fh, 0, b'abcdef')
        await remove(disk, b'big', inode)
        assert await disk.fs.write(fh, 0, b'abcdef') == 6 and await disk.fs.read(fh, 0, 10) == b'abcdef'
        await disk.fs.release(fh)
    play(scenario)


def test_a_file_that_leaves_the_bucket_is_hardened_before_its_object_goes(play: Play) -> None:
    """From then on its bytes are nowhere else."""
    seen = []

    async def scenario(disk: Disk, hardener: Hardener) -> None:
        disk.engine._harden = hardener.harden_local
        disk.gating.rules.replace(SyncPolicy(bw_list=BWList(white_lists=(WhiteList(path='/src'),))))
        await disk.fs.make(ROOT_INO, b'src', mode=0o40755, caller=ME)
        await disk.fs.make(ROOT_INO, b'other', mode=0o40755, caller=ME)
        src, other = disk.inode_at(b'src').ino, disk.inode_at(b'other').ino
        fh, inode = await disk.fs.create(src, b'f', mode=0o644, flags=os.O_WRONLY, caller=ME)
        await disk.fs.write(fh, 0, b'x' * 100)
        await disk.fs.release(fh)
        assert (await disk.engine.flush()).ok and disk.body('src/f') == b'x' * 100
        await disk.fs.rename(src, b'f', other, b'f', 0)

        async def before(operation: object) -> None:
            if type(operation).__name__ == 'DeleteMany':
                seen.append(HardenedFiles(disk.db).measure_of(inode.ino))
        disk.before = before
        assert (await disk.engine.flush()).ok and disk.body('src/f') is None
    play(scenario)
    assert seen == [Measure(100, 0)]


def test_a_staging_file_stays_until_its_upload_is_durable(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that refuses to make it durable: not in that pass, nor in one that has nothing to upload any more."""
    async def scenario(disk: Disk, _: Hardener) -> None:
        def refuse() -> None:
            raise OSError(errno.EIO, 'the disk is gone')
        inode = await disk.save(b'f', b'x')
        path = disk.staging.path(inode.ino)
        with monkeypatch.context() as patch:
            patch.setattr(disk.db, 'make_durable', refuse)
            for _unused in range(2):
                assert (await disk.engine.flush(retry_seconds=0)).ok and disk.body('f') == b'x'
                assert os.path.exists(path) and inode.content == Content.SEALED
        assert (await disk.engine.flush()).ok and inode.content == Content.CLEAN and not os.path.exists(path)
    play(scenario)


def test_a_file_that_was_hardened_after_its_upload_stays_so_when_it_is_taken_back(play: Play) -> None:
    """Its object was removed by somebody: the staging file is the only copy again, and nobody looks at it once more."""
    async def scenario(disk: Disk, hardener: Hardener) -> None:
        inode = await disk.save(b'f', b'x')
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(disk.finisher, 'sealed', lambda most=-1: [])
            assert (await disk.engine.flush()).ok and inode.content == Content.SEALED
        await hardener._harden(list(disk.staging.unhardened))
        disk.journal.drop_object('f')
        await disk.finisher.adopt(disk.finisher.sealed())
        assert inode.content == Content.STAGED
        assert inode.ino in disk.staging.unhardened or HardenedFiles(disk.db).measure_of(inode.ino) == Measure(1, 0)
    play(scenario)


def test_a_disk_that_refuses_is_told_once(play: Play, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """And asked again at every look."""
    async def scenario(disk: Disk, _: Hardener) -> None:
        def refuse(inos: object) -> dict[int, Measure]:
            raise OSError(errno.EIO, 'the disk is gone')
        inode = await disk.save(b'f', b'x')
        with monkeypatch.context() as patch:
            patch.setattr(disk.staging, 'harden', refuse)
            await trio.sleep(QUIET_SECONDS + 3 * LOOK_SECONDS)
        assert [record.getMessage() for record in caplog.records if record.levelname == 'WARNING'] == [
            'changes are not durable, a power cut would lose them: [Errno 5] the disk is gone']
        await hardened_after(disk, inode)
    play(scenario)


@pytest.mark.parametrize('count', [3, 40], ids=['one by one', 'the file system'])
def test_files_are_hardened_as_they_are(count: int, tmp_path: Path) -> None:
    """Whatever way is taken; what is gone meanwhile is left out."""
    from ctxfs.storage.staging import Staging
    staging = Staging(tmp_path / 'staging')
    for ino in range(count):
        fd = staging.create(ino)
        os.pwrite(fd, b'x' * 10, 1 << 20 if ino == 1 else 0)
        os.close(fd)
    staging.remove(2)
    found = staging.harden(range(count))
    assert found.keys() == set(range(count)) - {2} and found[0] == (10, 0)
    assert found[1] == ((1 << 20) + 10, 1 << 20)


@pytest.mark.parametrize(('data', 'hole_at', 'size', 'hardened', 'whole'), [
    (b'x' * 10_000, None, 10_000, Measure(10_000, 0), 10_000),      # as it was
    (b'x' * 10_000, None, 10_000, Measure(5000, 0), 10_000),        # more came, and is there
    (b'x' * 10_000, None, 10_000, Measure(10_001, 0), None),        # cut since
    (b'x' * 8192, 8192, 20_000, Measure(5000, 0), 8192),            # more came, and is there in part
    (b'x' * 5000, 5000, 20_000, Measure(5000, 0), 5000),            # nothing of it is
    (b'x' * 5000 + bytes(100), None, 5100, Measure(5000, 0), 5000),     # nor is it in the block that there was
    (b'x' * 5000 + b'y' * 100, None, 5100, Measure(5000, 0), 5100),
    (b'', 0, 20_000, Measure(20_000, 0), None),                     # replaced, and nothing of that is there
    (b'', 0, 20_480, Measure(20_480, 20_480), 20_480),              # a hole that somebody made
])
def test_what_a_power_cut_left_is_told(data: bytes, hole_at: int | None, size: int, hardened: Measure, whole: int | None, tmp_path: Path) -> None:
    """By holes, by sizes, and by blank ends of blocks."""
    with open(tmp_path / 'f', 'w+b') as file:
        file.write(data)
        file.truncate(size)
        os.fsync(file.fileno())
        if hole_at is not None and measure(file.fileno()).holes == 0:
            pytest.skip('no holes on this file system')
        assert whole_size(file.fileno(), hardened) == whole
