"""Archive mode between core and the bucket, without a mount: flushes, commits, other hosts, conflicts, and what crashes leave."""
from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from ctxfs.records import ROOT_INO
from ctxfs.storage.inode import Content
from ctxfs.sync.protocol import Fetch, Head, ListPages, PutFile
from tests.unit.archive_rig import ArchiveDisk
from tests.unit.rig import ME

Scenario = Callable[[ArchiveDisk, ArchiveDisk], Awaitable[None]]


@pytest.fixture
def pair(tmp_path: Path) -> Callable[[Scenario], None]:
    """Run a scenario with two hosts over one bucket."""
    def run(scenario: Scenario, **options: Any) -> None:
        async def main() -> None:
            (tmp_path / 'bucket').mkdir()
            disks = [ArchiveDisk(tmp_path / name, bucket=tmp_path / 'bucket', host=name, **options) for name in ('one', 'two')]
            try:
                async with AsyncExitStack() as stack:
                    for disk in disks:
                        await stack.enter_async_context(disk.mounted())
                    await scenario(*disks)
            finally:
                for disk in disks:
                    disk.close()
        trio.run(main)
    return run


def test_a_flush_is_one_commit_that_another_host_sees_whole(pair) -> None:
    """Contents, modes, times, symlinks, hard links and empty directories; and not one object of a file's own."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        for number in range(40):
            await one.write(f'd{number % 3}/f{number}', b'content %d ' % number * number, mode=0o600 + number % 8)
        await one.fs.make(ROOT_INO, b'link', mode=stat.S_IFLNK | 0o777, caller=ME, target=b'd0/f0')
        await one.fs.make(ROOT_INO, b'empty', mode=stat.S_IFDIR | 0o711, caller=ME)
        await one.fs.link(one.inode_at(b'd1', b'f1').ino, ROOT_INO, b'hard')
        await one.flush()
        assert len(one.commits()) == 1 and not one.keys() and one.count(PutFile) == 0
        assert all(inode.content != Content.STAGED for inode in one.files().values())
        await two.look()
        assert await two.tree() == await one.tree()
        assert two.inode_at(b'hard') is two.inode_at(b'd1', b'f1') and two.inode_at(b'hard').nlink == 2
        assert stat.S_IMODE(two.inode_at(b'empty').mode) == 0o711
        assert one.unpacked() == {path: what[3] for path, what in (await one.tree()).items() if not path.endswith('/')}
    pair(scenario)


def test_nothing_to_do_costs_nothing(pair) -> None:
    """A flush of nothing is no request, and a look at an unchanged context is one."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        await one.write('f', b'1')
        await one.flush()
        await one.look()
        await two.look()
        for disk in (one, two):
            disk.asked.clear()
        await one.flush()
        assert one.asked == []
        await two.look()
        assert two.count(Head, Fetch) == 0
    pair(scenario)


def test_changes_renames_and_removals_are_followed(pair) -> None:
    """By the other host, and by who unpacks the archives in order."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        for name in 'abcd':
            await one.write(f'd/{name}', name.encode() * 100)
        await one.flush()
        await two.look()
        await one.write('d/a', b'changed')
        await one.move('d/b', 'e/b')
        await one.remove('d/c')
        await one.flush()
        await two.look()
        assert await two.tree() == await one.tree()
        assert set(two.files()) == {'d/', 'd/a', 'd/d', 'e/', 'e/b'}
        await one.move('d', 'moved')
        await one.flush()
        await two.look()
        assert await two.tree() == await one.tree() and set(two.files()) == {'moved/', 'moved/a', 'moved/d', 'e/', 'e/b'}
        assert one.unpacked() == {'moved/a': b'changed', 'moved/d': b'd' * 100, 'e/b': b'b' * 100}
    pair(scenario)


def test_names_exchanged_are_one_commit(pair) -> None:
    """Two clean files that took each other's names: at no instant has one of them no member."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        await one.write('a', b'was a')
        await one.write('b', b'was b')
        await one.flush()
        await two.look()
        await one.move('a', 'c')
        await one.move('b', 'a')
        await one.move('c', 'b')
        await one.flush()
        await two.look()
        assert (await two.read('a'), await two.read('b')) == (b'was b', b'was a')
        assert len(one.commits()) == 2
        assert one.unpacked() == {'a': b'was b', 'b': b'was a'}
    pair(scenario)


def test_both_contents_of_a_file_that_both_changed_are_kept(pair) -> None:
    """Who comes second finds the other's member under the name, and keeps its own beside it."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        await one.write('f', b'base')
        await one.write('other', b'o')
        await one.flush()
        await two.look()
        await one.write('f', b'of one')
        await two.write('f', b'of two')
        await two.write('more', b'of two as well')
        await one.flush()
        await two.flush()
        await one.look()
        assert await one.tree() == await two.tree()
        assert sorted(what[3] for path, what in (await one.tree()).items()) == [b'o', b'of one', b'of two', b'of two as well']
        assert await one.read('f') == b'of one'
        assert sorted(one.unpacked().values()) == [b'o', b'of one', b'of two', b'of two as well']
    pair(scenario)


def test_two_new_files_of_one_name_are_both_kept(pair) -> None:
    """Neither host knew of the other's; equal ones are one."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        for name, disk in (('one', one), ('two', two)):
            await disk.write('new', name.encode())
            await disk.write('same', b'the same')
        await one.flush()
        await two.flush()
        await one.look()
        assert await one.tree() == await two.tree()
        assert sorted(what[3] for what in (await one.tree()).values()) == [b'one', b'the same', b'two']
    pair(scenario)


def test_a_removal_does_not_remove_what_another_host_changed(pair) -> None:
    """It shows again here; and a change survives the other host's removal."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        for name in ('a', 'b'):
            await one.write(name, b'base')
        await one.flush()
        await two.look()
        await one.write('a', b'changed')
        await two.remove('a')
        await one.remove('b')
        await two.write('b', b'changed, too')
        await one.flush()
        await two.flush()
        await one.look()
        assert await one.tree() == await two.tree()
        assert {path: what[3] for path, what in (await one.tree()).items()} == {'a': b'changed', 'b': b'changed, too'}
    pair(scenario)


def test_large_files_and_excluded_paths_are_objects_of_their_own(pair) -> None:
    """Also where a file crosses the bound, or moves across, in either direction: at no time two of them show."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        large, small = b'x' * 200_000, b'small'
        await one.write('large', large)
        await one.write('grows', small)
        await one.write('shrinks', large)
        await one.flush()
        await two.look()
        assert sorted(one.keys()) == ['large', 'shrinks']
        await one.write('grows', large)
        await one.write('shrinks', small)
        await one.move('large', 'moved')
        await one.flush()
        await two.look()
        assert sorted(one.keys()) == ['grows', 'moved']
        assert await two.tree() == await one.tree()
        assert {path: len(what[3]) for path, what in (await two.tree()).items()} == {'grows': 200_000, 'shrinks': 5, 'moved': 200_000}
        assert one.unpacked() == {'shrinks': small}
        await two.write('grows', small)
        await two.flush()
        await one.look()
        assert await one.tree() == await two.tree() and one.keys() == ['moved']
    pair(scenario)


def test_a_file_that_changes_while_it_is_packed_is_left_out(pair) -> None:
    """What was read of it is in no archive's directory; its next state is uploaded by the same flush."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        await one.write('still', b's' * 1000)
        moving = await one.write('moving', b'm' * 1000)
        is_done = False

        async def change(operation: Any) -> None:
            nonlocal is_done
            if type(operation).__name__ == 'Pack' and not is_done:
                is_done = True
                fh = await one.fs.open(moving.ino, 2)
                await one.fs.write(fh, 0, b'M' * 10)
                await one.fs.release(fh)
        one.before = change
        await one.flush()
        await two.look()
        assert await two.read('moving') == b'M' * 10 + b'm' * 990 and await two.read('still') == b's' * 1000
        assert [len(one.zip(name).namelist()) for name in one.archives()] == [1, 1]
    pair(scenario)


def test_another_hosts_commit_in_between_is_applied_and_the_archives_stay(pair) -> None:
    """The number is taken when this host comes to commit: what it sent is committed as the next one, nothing is sent twice."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        await one.write('mine', b'1')
        await two.write('theirs', b'2')
        is_done = False

        async def meanwhile(operation: Any) -> None:
            nonlocal is_done
            if type(operation).__name__ == 'CommitArchive' and not is_done:
                is_done = True
                await two.flush()
        one.before = meanwhile
        await one.flush()
        assert len(one.commits()) == 2 and len(one.archives()) == 2
        assert one.mirror.number == 2 and 'theirs' in one.files()
        await two.look()
        assert await one.tree() == await two.tree()
        assert sum(type(operation).__name__ == 'SendArchive' for operation in one.asked) == 1
    pair(scenario)


def test_what_concerns_the_flush_makes_it_begin_anew(pair) -> None:
    """The other host committed the same path in between: both are kept, and the archive with the refused member is thrown away."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        await one.write('f', b'of one')
        await one.write('g', b'untouched')
        await two.write('f', b'of two')
        is_done = False

        async def meanwhile(operation: Any) -> None:
            nonlocal is_done
            if type(operation).__name__ == 'CommitArchive' and not is_done:
                is_done = True
                await two.flush()
        one.before = meanwhile
        await one.flush()
        await two.look()
        assert await one.tree() == await two.tree()
        assert sorted(what[3] for what in (await two.tree()).values()) == [b'of one', b'of two', b'untouched']
        assert sorted(one.unpacked().values()) == [b'of one', b'of two', b'untouched']
        assert len(one.archives()) == len(one.commits()) == 3
    pair(scenario)


def test_a_new_host_reads_the_whole_log(tmp_path: Path) -> None:
    """As few requests as there are commits, and its tree is the same."""
    async def main() -> None:
        (tmp_path / 'bucket').mkdir()
        one = ArchiveDisk(tmp_path / 'one', bucket=tmp_path / 'bucket')
        async with one.mounted():
            for number in range(5):
                await one.write(f'f{number}', b'%d' % number)
                await one.flush()
            await one.remove('f0')
            await one.flush()
            expected = await one.tree()
        one.close()
        two = ArchiveDisk(tmp_path / 'two', bucket=tmp_path / 'bucket', host='two')
        async with two.mounted():
            assert await two.tree() == expected and len(expected) == 4
            assert two.count(Head) == 0 and two.count(ListPages) == 0
        two.close()
    trio.run(main)
