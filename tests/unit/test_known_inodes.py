"""What is kept in memory for the kernel is bounded, and what was let go is the same when it is asked for again."""
from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from ctxfs.core.known_inodes import KnownInodes
from ctxfs.errors import NotFound, RemoteChanged
from ctxfs.records import ROOT_INO
from ctxfs.storage.inode import Content
from tests.unit.rig import Disk

MOST = 16


def run(tmp_path: Path, work: Callable[[Disk], Awaitable[None]]) -> None:
    async def main() -> None:
        disk = Disk(tmp_path)
        disk.fs._known = KnownInodes(disk.db, most=MOST)
        async with disk.running():
            await work(disk)
        disk.close()
    trio.run(main)


async def saved(disk: Disk, count: int) -> list[int]:
    """Files that are in the bucket, known to the kernel."""
    inos = [(await disk.save(b'f%d' % number, b'x' * number)).ino for number in range(count)]
    assert (await disk.engine.flush()).ok
    for number in range(count):
        assert await disk.fs.lookup(ROOT_INO, b'f%d' % number)
    return inos


def test_clean_files_that_the_kernel_knows_are_not_kept(tmp_path: Path) -> None:
    """However many: a bounded number is live, each is as it was when it is asked for, and is told of changes."""
    async def work(disk: Disk) -> None:
        inos = await saved(disk, 10 * MOST)
        known = disk.fs._known
        assert known.kept() <= MOST + MOST // 8 and len(known) == len(inos)
        assert [disk.fs.inode(ino).size for ino in inos] == list(range(len(inos)))
        assert known.kept() <= MOST + MOST // 8 and all(disk.fs.is_known(ino) for ino in inos)
        assert list(known.inodes(inos)) and set(known.inodes(inos)) == set(inos)
        disk.fs.forget([(ino, 2) for ino in inos])
        assert len(known) == known.kept() == 0
    run(tmp_path, work)


def test_each_name_in_a_listing_is_one_reference(tmp_path: Path) -> None:
    """Also of an inode with several that is in memory; what the kernel got no room for is none."""
    async def work(disk: Disk) -> None:
        ino, = await saved(disk, 1)
        for name in (b'f1', b'f2'):
            await disk.fs.link(ino, ROOT_INO, name)
        disk.fs.forget([(ino, 4)])      # created, looked up, and linked twice
        held = disk.fs.inode(ino)
        fh = await disk.fs.opendir(ROOT_INO)
        entries = disk.fs.listed(fh, 0)
        assert entries is not None and entries.names == [b'.', b'..', b'f0', b'f1', b'f2'] and entries.inodes == {ino: held}
        disk.fs.told(entries, 4)
        disk.fs.forget([(ino, 1)])
        assert disk.fs.is_known(ino)
        disk.fs.forget([(ino, 1)])
        assert not disk.fs.is_known(ino)
        disk.fs.releasedir(fh)
    run(tmp_path, work)


def test_what_the_bucket_took_away_is_stale_and_not_missing(tmp_path: Path) -> None:
    """Until the kernel hears of it, it asks for the inode that the name had; on ESTALE it looks the name up again, on ENOENT the program would hear
    that there is no such file."""
    async def work(disk: Disk) -> None:
        inos = await saved(disk, 2 * MOST)
        disk.db.delete_inode(inos[0])
        with pytest.raises(RemoteChanged):
            disk.fs.inode(inos[0])
        disk.fs.forget([(inos[0], 2)])
        with pytest.raises(NotFound):
            disk.fs.inode(inos[0])
    run(tmp_path, work)


def test_many_that_have_to_stay_are_not_looked_at_for_each_newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of a file does not depend on how many wait for their upload."""
    async def work(disk: Disk) -> None:
        known = disk.fs._known
        passes: list[int] = []
        let_go = known._let_go
        monkeypatch.setattr(known, '_let_go', lambda: (passes.append(known.kept()), let_go()))
        for number in range(10 * MOST):
            await disk.save(b'f%d' % number, b'x')
        assert known.kept() == 10 * MOST and 0 < len(passes) <= 10 * MOST // (MOST // 8)
        assert (await disk.engine.flush()).ok
        await look_at_others(disk)
        for number in range(12 * MOST):
            await disk.save(b'new%d' % number, b'')
            if number % MOST == 0:
                assert (await disk.engine.flush()).ok
        assert known.kept() <= 3 * MOST, 'and what was uploaded goes in the end'
    run(tmp_path, work)


def test_what_the_kernel_forgot_costs_nothing(tmp_path: Path) -> None:
    """Not even the room that it had."""
    async def work(disk: Disk) -> None:
        inode = await disk.save(b'f', b'x')
        known, before = disk.fs._known, sys.getsizeof(disk.fs._known._counts)
        known._counts.update((ino, 1) for ino in range(10_000, 20_000))
        known.forget([(ino, 1) for ino in range(10_000, 20_000)])
        assert sys.getsizeof(known._counts) <= 2 * before
        assert inode.ino in known and len(known) == 1
    run(tmp_path, work)


def test_what_is_dirty_open_or_without_a_name_stays(tmp_path: Path) -> None:
    """Something of it may be in memory only."""
    async def work(disk: Disk) -> None:
        first = await saved(disk, 4 * MOST)
        dirty = [(await disk.save(b'dirty%d' % number, b'd')).ino for number in range(MOST)]
        fh = await disk.fs.open(first[0], os.O_RDONLY)
        await disk.fs.unlink(ROOT_INO, b'f1')
        live = [disk.fs.inode(ino) for ino in (first[0], first[1], *dirty)]
        await look_at_others(disk)
        assert all(disk.fs._known._kept[inode.ino] is inode for inode in live)
        assert all(inode.content == Content.STAGED for inode in live[2:])
        assert first[2] not in disk.fs._known._kept
        await disk.fs.release(fh)
        assert (await disk.engine.flush()).ok
        await look_at_others(disk)
        assert not set(dirty) & set(disk.fs._known._kept)
    run(tmp_path, work)


async def look_at_others(disk: Disk) -> None:
    """So that whatever may go goes."""
    for _ in range(3):
        for number in range(2 * MOST, 4 * MOST):
            await disk.fs.lookup(ROOT_INO, b'f%d' % number)


@pytest.mark.parametrize('is_detached', [False, True])
def test_a_file_that_lost_its_name_after_it_was_let_go_is_removed(tmp_path: Path, is_detached: bool) -> None:
    """When the kernel forgets it, or the mount ends. The last name goes by a program's unlink, or because the object went."""
    async def work(disk: Disk) -> None:
        inos = (await saved(disk, 4 * MOST))[:2]
        await look_at_others(disk)
        assert not set(inos) & set(disk.fs._known._kept)
        await disk.fs.unlink(ROOT_INO, b'f0')
        (tmp_path / 'bucket' / disk.uploader._prefix / 'f1').unlink()
        await disk.engine.download()
        await look_at_others(disk)
        assert disk.db.orphans() and set(disk.db.orphans()) <= set(inos)
        if is_detached:
            disk.fs.detached()
        else:
            disk.fs.forget([(ino, 2) for ino in inos])
        assert disk.db.orphans() == []
    run(tmp_path, work)
