"""Archive mode between core and the bucket, without a mount: flushes, commits, other hosts, conflicts, and what crashes leave."""
from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from ctxfs.core.filesystem import Change
from ctxfs.core.xattrs import XAttrs
from ctxfs.errors import NoSpace, NotFound, RemoteUnavailable, Unanswered, Unsupported
from ctxfs.policy import BWList, RecyclePolicy, SyncPolicy, UploadPolicy, WhiteList
from ctxfs.records import ROOT_INO
from ctxfs.storage import archive_log_format as log_format
from ctxfs.storage.archive_log_format import ARCHIVE_DIR
from ctxfs.storage.inode import Content
from ctxfs.sync import archive_recovery, archive_rivals, archiver, get_files, put_files
from ctxfs.sync.archive_log import ArchiveLog
from ctxfs.sync.archive_upkeep import GRACE_SECONDS
from ctxfs.sync.context_files import ContextFiles
from ctxfs.sync.context_members import ContextMembers
from ctxfs.sync.protocol import Fetch, Head, ListPages, PutFile
from ctxfs.sync.regate import Regater
from tests.fakes.memory_store import MemoryStore
from tests.unit.archive_rig import ARCHIVED, ArchiveDisk
from tests.unit.rig import ME, PREFIX

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

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


def test_a_link_to_a_file_that_was_committed_before_is_one_elsewhere(pair, tmp_path: Path) -> None:
    """The commit has the new name only; of the old one the index tells. Also for who comes later, and when one of three is renamed."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        inode = await one.write('a', b'linked')
        await one.flush()
        await two.look()
        await one.fs.link(inode.ino, ROOT_INO, b'b')
        await one.flush()
        await two.look()
        assert two.inode_at(b'a') is two.inode_at(b'b') and two.inode_at(b'a').nlink == 2
        await one.fs.link(inode.ino, ROOT_INO, b'c')
        await one.move('b', 'd')
        await one.flush()
        await two.look()
        three = ArchiveDisk(tmp_path / 'three', bucket=tmp_path / 'bucket', host='three')
        async with three.mounted():
            for disk in (two, three):
                assert set(disk.files()) == {'a', 'c', 'd'} and disk.inode_at(b'a').nlink == 3
        three.close()
    pair(scenario)


@pytest.mark.parametrize('how', ['look', 'download', 'mount'])
def test_attributes_that_changed_without_the_content_are_followed(how: str, pair, tmp_path: Path) -> None:
    """However the other host learns of them: no listing shows a member."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        inode = await one.write('f', b'content')
        await one.flush()
        three = ArchiveDisk(tmp_path / 'three', bucket=tmp_path / 'bucket', host='three')
        disk = three if how == 'mount' else two
        if how == 'mount':
            async with three.mounted():
                pass
        else:
            await two.look()
        await one.fs.setattr(inode.ino, Change(mode=0o600, mtime_ns=5 * 10**9))
        await one.flush()
        if how == 'mount':
            async with three.mounted():
                pass
        elif how == 'look':
            await two.look()
        else:
            assert (await two.engine.download()).ok
        found = disk.inode_at(b'f')
        assert (stat.S_IMODE(found.mode), found.mtime_ns) == (0o600, 5 * 10**9)
        three.close()
    pair(scenario)


@pytest.mark.parametrize('is_mounted', [True, False])
def test_white_lists_that_change_hide_and_show_members(is_mounted: bool, tmp_path: Path) -> None:
    """Also those that another host changed meanwhile; and nothing is removed from the bucket for it."""
    narrow = SyncPolicy(upload_policy=UploadPolicy(upload_mode='Archive'), bw_list=BWList(white_lists=(WhiteList(path='src'),)))

    async def main() -> None:
        (tmp_path / 'bucket').mkdir()
        one = ArchiveDisk(tmp_path / 'one', bucket=tmp_path / 'bucket', policy=narrow)
        two = ArchiveDisk(tmp_path / 'two', bucket=tmp_path / 'bucket', host='two')
        one.gating.rules = one.rules
        expected = {'src/': b'', 'src/f': b'one', 'other/': b'', 'other/f': b'two'}

        async def apply(policy: SyncPolicy) -> None:
            one.rules.replace(policy)
            await one.engine.alone(Regater(one.db, one.journal, one.gating, one.reconciler, stage=one.fs.contents.stage).run)
            if is_mounted:
                one.remote.changes.forget()
                await one.look()
        async with two.mounted():
            for path in ('src/f', 'other/f', 'other/g'):
                await two.write(path, b'1')
            await two.flush()
            async with one.mounted():
                assert set(one.files()) == {'src/', 'src/f'}
                if is_mounted:
                    await apply(ARCHIVED)
                    assert set(one.files()) == {'src/', 'src/f', 'other/', 'other/f', 'other/g'}
                    await apply(narrow)
                    assert set(one.files()) == {'src/', 'src/f'}
                await two.write('other/f', b'two')
                await two.remove('other/g')
                await two.flush()
                await one.write('src/f', b'one')
                await one.flush()
                if is_mounted:
                    await apply(ARCHIVED)
                    assert {path: what[3] for path, what in (await one.tree()).items()} == expected
            if not is_mounted:
                await apply(ARCHIVED)
                async with one.mounted():
                    assert {path: what[3] for path, what in (await one.tree()).items()} == expected
            await two.look()
            assert {path: what[3] for path, what in (await two.tree()).items()} == expected
        one.close()
        two.close()
    trio.run(main)


def test_whoever_reads_file_after_file_gets_the_neighbours_too(pair) -> None:
    """Some of hundreds of reads ask for something, of others everything is there; one that jumps about gets what he reads."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        count = 400
        for number in range(count):
            await one.write(f'd{number // 100}/f{number:03}', b'content %d' % number)
        await one.flush()
        await two.look()
        two.asked.clear()
        for number in range(count):
            assert await two.read(f'd{number // 100}/f{number:03}') == b'content %d' % number
        asked = [operation for operation in two.asked if isinstance(operation, Fetch)]
        assert len(asked) < 10 and [len(operation.neighbours) for operation in asked][:4] == [0, 15, 31, 63]
        assert count <= sum(1 + len(operation.neighbours) for operation in asked) < 2 * count
        other = ArchiveDisk(one.directory / 'third', bucket=one.directory.parent / 'bucket', host='three')
        async with other.mounted():
            for number in range(0, count, 40):
                assert await other.read(f'd{number // 100}/f{number:03}') == b'content %d' % number
            assert all(not operation.neighbours for operation in other.asked if isinstance(operation, Fetch))
        other.close()
    pair(scenario)


@pytest.mark.parametrize('what', ['flipped', 'cut', 'no room'])
def test_a_bad_neighbour_is_not_the_readers_matter(pair, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Only who reads it hears of it: of a wrong bit, of bytes that are gone, or of a cache that has room for one but not for all."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        for name in 'abc':
            await one.write(name, os.urandom(5000))
        await one.flush()
        await two.look()
        await two.read('a')
        name, = one.archives()
        file = one.directory.parent / 'bucket' / PREFIX / ARCHIVE_DIR / name
        place = two.mirror.rows.get('c').place
        data = bytearray(file.read_bytes())
        if what == 'no room':
            def refuse(files: Any) -> None:
                raise NoSpace('full')
            monkeypatch.setattr(two.workers.context.cache, 'store_many', refuse)
        elif what == 'cut':
            file.write_bytes(data[:place.offset + 100])
        else:
            data[place.offset + 100] ^= 1
            file.write_bytes(data)
        assert await two.read('b') == await one.read('b')
        if what == 'no room':
            assert await two.read('c') == await one.read('c')
        else:
            with pytest.raises(RemoteUnavailable):
                await two.read('c')
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


def test_excluded_paths_may_change_between_mounts(tmp_path: Path) -> None:
    """What is a member stays one until it changes or moves; each version is there once, also for a host with the other policy."""
    excluding = SyncPolicy(upload_policy=UploadPolicy(upload_mode='Archive', archive_exclude_paths=('/own',)))

    async def main() -> None:
        (tmp_path / 'bucket').mkdir()
        one = ArchiveDisk(tmp_path / 'one', bucket=tmp_path / 'bucket')
        two = ArchiveDisk(tmp_path / 'two', bucket=tmp_path / 'bucket', host='two', policy=excluding)
        store = one.workers.context.store

        def objects() -> set[str]:
            return {key for info in store.list(PREFIX).objects if not (key := info.key[len(PREFIX):]).startswith('.ctxfs/')}

        async def check(expected: dict[str, bytes], own: set[str]) -> None:
            for disk in (one, two):
                await disk.look()
                assert {path: what[3] for path, what in (await disk.tree()).items() if not path.endswith('/')} == expected
            assert objects() == own and set(one.mirror.rows.etags(list(expected))) == set(expected) - own
        async with one.mounted(), two.mounted():
            for path in ('own/changed', 'own/kept', 'own/removed', 'moved'):
                await one.write(path, b'1')
            await one.flush()
            await two.look()
            await two.write('own/changed', b'2')
            await two.move('moved', 'own/moved')
            await two.remove('own/removed')
            await two.flush()
            await check({'own/changed': b'2', 'own/kept': b'1', 'own/moved': b'1'}, {'own/changed', 'own/moved'})
            one.rules.replace(excluding)
            two.rules.replace(ARCHIVED)
            await one.write('own/changed', b'3')
            await one.move('own/moved', 'back')
            await one.flush()
            await check({'own/changed': b'3', 'own/kept': b'1', 'back': b'1'}, {'own/changed'})
            await two.write('own/changed', b'4')
            await two.flush()
            await check({'own/changed': b'4', 'own/kept': b'1', 'back': b'1'}, set())
        one.close()
        two.close()
    trio.run(main)


def at_first(kind: str, action: Callable[[], Awaitable[Any]]) -> Callable[[Any], Awaitable[None]]:
    """What happens just before the first operation of that kind."""
    todo = [action]

    async def before(operation: Any) -> None:
        if type(operation).__name__ == kind and todo:
            await todo.pop()()
    return before


@pytest.mark.parametrize('comes_second', ['member', 'object'])
@pytest.mark.parametrize('base', [None, 5, 200_000])
def test_a_member_and_an_object_that_come_at_one_instant_are_both_kept(base: int | None, comes_second: str, pair) -> None:
    """Neither host can see the other's before its own is there. The object has the name, and the member one beside it."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        if base is not None:
            await one.write('f', b'b' * base)
            await one.flush()
            await two.look()
        await one.write('f', b'large' * 40_000)
        await two.write('f', b'small')
        await two.write('other', b'o')
        if comes_second == 'member':
            two.before = at_first('CommitArchive', one.flush)
            await two.flush()
        else:
            one.before = at_first('PutFile', two.flush)
            await one.flush()
        for disk in (one, two, one, two):
            await disk.look()
            await disk.flush()
        assert await one.tree() == await two.tree()
        found = {path: what[3] for path, what in (await one.tree()).items()}
        assert sorted(found.values()) == [b'large' * 40_000, b'o', b'small'], {path: what[:10] for path, what in found.items()}
        assert 'f' in found and sum('.conflict-' in path for path in found) == 1
        assert one.unpacked().get('f') in (None, found['f'])
    pair(scenario)


def test_who_finds_them_need_be_neither(pair, tmp_path: Path) -> None:
    """The two that wrote them are gone; a third host keeps both, and lists the conflict."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        await one.write('d/f', b'large' * 40_000)
        await two.write('d/f', b'small')
        two.before = at_first('CommitArchive', one.flush)
        await two.flush()
        three = ArchiveDisk(tmp_path / 'three', bucket=tmp_path / 'bucket', host='three')
        async with three.mounted():
            assert (await three.tree())['d/f'][3] == b'large' * 40_000
            await three.flush()
            kept, = (path for path in three.files() if '.conflict-two-' in path)
            assert await three.read(kept) == b'small'
            assert [conflict.original for conflict in three.journal.conflicts.of(three.files()[kept].ino)] == ['d/f']
            await one.look()
            assert await one.tree() == await three.tree()
        three.close()
    pair(scenario)


def test_what_another_tool_puts_over_a_member_replaces_it(pair) -> None:
    """As it replaces an object in File mode; but what it put before the member was committed is kept, and so is the member."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        store = one.workers.context.store
        await one.write('f', b'member')
        await one.flush()
        await one.look()
        store.put(PREFIX + 'f', b'put later')
        await one.look()
        await one.flush()
        assert {path: what[3] for path, what in (await one.tree()).items()} == {'f': b'put later'} and one.unpacked() == {}

        async def put() -> None:
            store.put(PREFIX + 'g', b'put before')
        await one.write('g', b'committed')
        one.before = at_first('CommitArchive', put)
        await one.flush()
        await one.look()
        await one.flush()
        await two.look()
        assert await one.tree() == await two.tree()
        assert sorted(what[3] for what in (await two.tree()).values()) == [b'committed', b'put before', b'put later']
        assert await two.read('g') == b'put before'
    pair(scenario)


def test_a_member_that_no_listing_showed_alone_is_kept(pair) -> None:
    """Another tool had put an object there before the commit, and put one more afterwards: it never saw the member."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        store = one.workers.context.store

        async def put() -> None:
            store.put(PREFIX + 'f', b'first')
        await one.write('f', b'committed')
        one.before = at_first('CommitArchive', put)
        await one.flush()
        store.put(PREFIX + 'f', b'second')
        for disk in (one, two):
            await disk.look()
            await disk.flush()
        assert sorted(what[3] for what in (await two.tree()).values()) == [b'committed', b'second'] and await two.read('f') == b'second'
    pair(scenario)


@pytest.mark.parametrize('was_beside', [False, True])
def test_what_another_tool_puts_after_a_mount_replaces_the_member(was_beside: bool, tmp_path: Path) -> None:
    """At once, also on a host that never saw the member alone: who committed it tells that it was. Where it was not, both are kept as before."""
    async def main() -> None:
        (tmp_path / 'bucket').mkdir()
        one = ArchiveDisk(tmp_path / 'one', bucket=tmp_path / 'bucket')
        store = one.workers.context.store

        async def put() -> None:
            store.put(PREFIX + 'f', b'first')
        async with one.mounted():
            await one.write('f', b'member')
            if was_beside:
                one.before = at_first('CommitArchive', put)
            await one.write('g', b'g')
            assert (await one.engine.flush(is_final=True)).ok
        one.close()
        store.put(PREFIX + 'f', b'later')
        two = ArchiveDisk(tmp_path / 'two', bucket=tmp_path / 'bucket', host='two')
        async with two.mounted():
            await two.flush()
            assert sorted(what[3] for what in (await two.tree()).values()) == [b'g', b'later', *([b'member'] if was_beside else [])]
            assert await two.read('f') == b'later'
        two.close()
    trio.run(main)


def test_the_same_content_is_no_conflict(pair) -> None:
    """Between a file here and an object that another tool put, before it is committed and at the same instant."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        store = one.workers.context.store
        store.put(PREFIX + 'before', b'the same')

        async def put() -> None:
            store.put(PREFIX + 'meanwhile', b'the same')
        for name in ('before', 'meanwhile'):
            await one.write(name, b'the same')
        await one.look()
        one.before = at_first('CommitArchive', put)
        await one.flush()
        for disk in (one, two, one):
            await disk.look()
            await disk.flush()
        assert await one.tree() == await two.tree() and set(two.files()) == {'before', 'meanwhile'}
    pair(scenario)


def test_what_files_put_meets_in_between_is_kept(pair, tmp_path: Path) -> None:
    """It replaces the member that it saw, at once; one that a host commits meanwhile gets another name."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        for name in 'fg':
            await one.write(name, b'before')
        await one.flush()
        (tmp_path / 'new').write_bytes(b'put')
        files = ContextFiles(one.workers.context.store, 'c', host='cli')
        put_files.put(files, os.fsencode(tmp_path / 'new'), 'f')
        await one.look()
        assert {path: what[3] for path, what in (await one.tree()).items()} == {'f': b'put', 'g': b'before'}
        await one.write('g', b'of one')
        announce, told = files.announce, []
        files.announce = told.append        # type: ignore[method-assign]
        put_files.put(files, os.fsencode(tmp_path / 'new'), 'g')
        await one.flush()
        announce(told[0])
        for disk in (two, one, two):
            await disk.look()
            await disk.flush()
        assert await one.tree() == await two.tree() and await two.read('g') == b'put'
        assert sorted(what[3] for what in (await two.tree()).values()) == [b'of one', b'put', b'put']
    pair(scenario)


def test_a_file_that_grows_back_to_what_it_was_is_not_taken_for_what_a_member_replaced(pair) -> None:
    """Where the same content has the same etag, the object that came again looks like the one that the member took the place of."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        store = MemoryStore()
        for disk in (one, two):
            disk.workers.context.store = store      # type: ignore[assignment]
        large = b'large' * 40_000
        await one.write('f', large)
        await one.flush()
        await one.write('f', b'small')
        await one.flush()
        await two.look()
        assert await two.read('f') == b'small'
        await one.write('f', large)
        await two.write('more', b'm')

        async def flush_two() -> None:
            two.mirror.rows._db.execute('UPDATE archive SET made_ns = 1')       # a host that comes along much later
            await two.flush()
        one.before = at_first('CommitArchive', flush_two)
        await one.flush()
        assert one.keys() == ['f']
        await two.look()
        assert await one.tree() == await two.tree() and await two.read('f') == large
    pair(scenario)


def test_names_exchanged_between_members_and_objects(pair) -> None:
    """Each waits for the other's place: one object is copied aside, and both get where they belong; so in rings of more."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        contents = {'a': b'small', 'b': b'x' * 200_000, 'c': b'small, too', 'd': b'y' * 200_000}
        for name, content in contents.items():
            await one.write(name, content)
        await one.flush()
        await two.look()
        await one.engine.alone(one.remote.changes.look)
        await one.fs.rename(ROOT_INO, b'a', ROOT_INO, b'b', 2)
        await one.flush()
        await two.look()
        assert (await two.read('a'), await two.read('b')) == (contents['b'], contents['a'])
        await one.move('a', 'tmp')
        for old, new in (('b', 'a'), ('c', 'b'), ('d', 'c'), ('tmp', 'd')):
            await one.move(old, new)
        await one.flush()
        await two.look()
        assert await two.tree() == await one.tree()
        assert [await two.read(name) for name in 'abcd'] == [contents[name] for name in 'acdb']
        assert one.keys() == ['c', 'd'] and one.own('.ctxfs/tmp/') == []
        assert one.unpacked() == {'a': b'small', 'b': b'small, too'}
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


# --- crashes -----------------------------------------------------------------------------------------------------------------------

class Killed(BaseException):
    """What a crash point does here."""


POINTS = ('archive-before-send', 'archive-before-commit', 'archive-before-record', 'archive-between-records')


@pytest.mark.parametrize('point', POINTS)
def test_a_host_that_dies_goes_on_where_it_was(point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was committed is known to be its own, what was not is committed once, and what was sent for nothing is removed; also where the file
    has changed since."""
    async def main() -> None:
        (tmp_path / 'bucket').mkdir()
        one = ArchiveDisk(tmp_path / 'one', bucket=tmp_path / 'bucket', host='one')

        def killed(name: str) -> None:
            if name == point:
                raise Killed
        with pytest.raises(BaseExceptionGroup):
            async with one.mounted():
                await one.write('kept', b'kept')
                await one.write('changed', b'before')
                await one.write('removed', b'r')
                await one.flush()
                for number in range(120):
                    await one.write(f'd/{number}', b'%d' % number)
                await one.write('changed', b'as it was committed')
                await one.remove('removed')
                with monkeypatch.context() as patch:
                    patch.setattr('ctxfs.sync.archive_commit.crash_point', killed)
                    await one.engine.flush()
        one.close()
        again = ArchiveDisk(tmp_path / 'one', bucket=tmp_path / 'bucket', host='one')
        async with again.mounted():
            await again.write('changed', b'after')
            await again.flush()
            expected = await again.tree()
            assert len(expected) == 123 and await again.read('changed') == b'after'
            assert {use.name for use in again.mirror.rows.uses()} == set(again.archives()), 'an archive of nobody is left'
        again.close()
        two = ArchiveDisk(tmp_path / 'two', bucket=tmp_path / 'bucket', host='two')
        async with two.mounted():
            assert await two.tree() == expected
        two.close()
    trio.run(main)


def test_an_answer_that_is_lost_is_found(pair) -> None:
    """The commit arrived, and its host did not hear of it: nothing is committed twice, and nothing is a conflict."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        await one.write('f', b'1')
        await one.write('g', b'2')
        call, has_failed = one.workers.call, False

        async def losing(operation: Any, **more: Any) -> Any:
            nonlocal has_failed
            result = await call(operation, **more)
            if type(operation).__name__ == 'CommitArchive' and not has_failed:
                has_failed = True
                raise Unanswered('the worker ended')
            return result
        one.workers.call = losing  # type: ignore[method-assign]
        await one.flush()
        assert has_failed and len(one.commits()) == 1
        await one.write('f', b'changed since')
        await one.flush()
        assert len(one.commits()) == 2
        await two.look()
        assert await two.tree() == await one.tree() and await two.read('f') == b'changed since'
        assert len(await two.tree()) == 2
    pair(scenario)


# --- tidying up --------------------------------------------------------------------------------------------------------------------

def test_mostly_dead_archives_are_packed_anew(pair) -> None:
    """Readers, caches and the other host go on; the old archives go after the grace time, and what was deleted does not come back for who reads
    archives only."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        for number in range(10):
            await one.write(f'f{number}', b'%d' % number * 300)
        await one.flush()
        await one.write('later', b'l' * 300)
        await one.flush()
        await two.look()
        for number in range(1, 10):
            await one.remove(f'f{number}')
        await one.flush()
        first, *_ = one.archives()
        inode = one.inode_at(b'f0')
        await one.upkeep.once()
        assert first in one.archives() and one.inode_at(b'f0') is inode
        assert await two.read('f0') == b'0' * 300, 'a host that has not looked reads the old archive'
        assert one.unpacked() == {'f0': b'0' * 300, 'later': b'l' * 300}
        one.upkeep._now = lambda: time.time() + GRACE_SECONDS + 10
        await one.upkeep.once()
        assert first not in one.archives()
        assert one.unpacked() == {'f0': b'0' * 300, 'later': b'l' * 300}
        two.workers.context.cache.clear()
        two.blocks.let_go()
        assert await two.read('f0') == b'0' * 300, 'its log tells where it is now'
        assert await two.tree() == await one.tree()
    pair(scenario)


def test_the_log_is_compacted(pair) -> None:
    """A new host needs the base and what came after; one that was away for longer than commits stay reads it, too."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        await two.write('own', b'not uploaded')
        for number in range(4):
            await one.write(f'f{number % 2}', b'%d' % number)
            await one.flush()
        await one.write('gone', b'x')
        await one.flush()
        await one.remove('gone')
        await one.flush()
        log = ArchiveLog(one.workers.context.store, PREFIX)
        number, _, removed = log.write_base(host='one', grace_ns=1 << 62)
        assert (number, removed, len(one.commits())) == (6, 0, 6)
        assert log.write_base(host='one', grace_ns=-1 << 62) == (6, 0, 6) and one.commits() == []
        await two.look()
        assert two.mirror.number == 6 and set(two.files()) == {'f0', 'f1', 'own'}
        await two.flush()
        await one.look()
        assert await one.tree() == await two.tree()
        assert one.commits() == ['00000000000000000007.commit.zst']
    pair(scenario)


def test_archives_of_nobody_go_when_they_are_old(pair) -> None:
    """What a host that never came back left behind."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        await one.write('f', b'1')
        await one.flush()
        name = log_format.archive_name(7, host='lost', created_ns=1)
        one.workers.context.store.put(f'{PREFIX}{log_format.ARCHIVE_DIR}{name}', b'PK')
        await one.upkeep.once()
        assert name in one.archives()
        archive, = (tmp for tmp in one.directory.parent.glob(f'bucket/**/{name}'))
        os.utime(archive, (1, 1))
        await one.upkeep.once()
        assert name not in one.archives() and await one.read('f') == b'1'
    pair(scenario)


def test_a_lost_log_is_made_anew_from_the_archives(tmp_path: Path) -> None:
    """Contents, modes, times, symlinks, hard links, extended attributes and empty directories, without what was deleted or renamed."""
    async def main() -> None:
        (tmp_path / 'bucket').mkdir()
        one = ArchiveDisk(tmp_path / 'one', bucket=tmp_path / 'bucket')
        async with one.mounted():
            for name in 'abc':
                await one.write(f'd/{name}', name.encode() * 50, mode=0o640)
            await one.fs.make(ROOT_INO, b'link', mode=stat.S_IFLNK | 0o777, caller=ME, target=b'd/a')
            await one.fs.make(ROOT_INO, b'empty', mode=stat.S_IFDIR | 0o700, caller=ME)
            await one.fs.link(one.inode_at(b'd', b'a').ino, ROOT_INO, b'linked')
            XAttrs(one.db, one.fs).set(one.inode_at(b'd', b'a'), b'user.note', b'\0\xff')
            await one.flush()
            await one.remove('d/b')
            await one.move('d/c', 'moved')
            await one.fs.setattr(one.inode_at(b'moved').ino, Change(mtime_ns=(1 << 33) * 10**9 + 7))
            await one.flush()
            await one.remove('moved')
            await one.write('moved', b'c' * 50, mode=0o640)
            await one.fs.setattr(one.inode_at(b'moved').ino, Change(mtime_ns=(1 << 33) * 10**9 + 7))
            await one.flush()
            expected = await one.tree()
        one.close()
        _lose(tmp_path)
        for archive in tmp_path.glob('bucket/**/*.zip'):        # younger ones may belong to a flush
            os.utime(archive, (1, 1))
        two = ArchiveDisk(tmp_path / 'two', bucket=tmp_path / 'bucket', host='two')
        async with two.mounted():
            assert await two.tree() == expected
            assert two.inode_at(b'd', b'a') is two.inode_at(b'linked') and two.inode_at(b'linked').nlink == 2
            assert XAttrs(two.db, two.fs).get(two.inode_at(b'linked'), b'user.note') == b'\0\xff'
            await two.write('new', b'n')
            await two.flush()
            assert two.mirror.number == archive_recovery.ROUND + 1
        two.close()
    trio.run(main)


def test_a_lost_log_is_made_anew_without_what_cannot_be_read(tmp_path: Path) -> None:
    """One bad member costs no other; and what no host could have written does not make the new log unreadable."""
    async def main() -> None:
        (tmp_path / 'bucket').mkdir()
        one = ArchiveDisk(tmp_path / 'one', bucket=tmp_path / 'bucket')
        async with one.mounted():
            for name in 'abc':
                await one.write(name, name.encode() * 8)
            await one.flush()
            number = one.mirror.number
        one.close()
        _lose(tmp_path)
        archive, = tmp_path.glob('bucket/**/*.zip')
        archive.write_bytes(archive.read_bytes().replace(b'bbbbbbbb', b'bbbbbbbX'))
        with zipfile.ZipFile(archive.with_name(log_format.archive_name(number + 1, host='odd', created_ns=1)), 'w') as odd:
            for name, mode in (('x' * 2000, stat.S_IFREG), ('untyped', 0), ('directory', stat.S_IFDIR), ('d', stat.S_IFREG | 0o644)):
                info = zipfile.ZipInfo(name)
                info.external_attr = mode << 16
                odd.writestr(info, b'd')
        for archive in tmp_path.glob('bucket/**/*.zip'):
            os.utime(archive, (1, 1))
        two = ArchiveDisk(tmp_path / 'two', bucket=tmp_path / 'bucket', host='two')
        async with two.mounted():
            assert {path: what[3] for path, what in (await two.tree()).items()} == {'a': b'a' * 8, 'c': b'c' * 8, 'd': b'd'}
        two.close()
    trio.run(main)


def test_a_lifetime_outlives_the_log(tmp_path: Path) -> None:
    """Else its archive would be packed anew, and its members begin to live anew."""
    policy = SyncPolicy(upload_policy=UploadPolicy(upload_mode='Archive'),
                        recycle_policy=RecyclePolicy(lifecycle='Lifecycle_1Day', paths=('logs',)))

    async def main() -> None:
        (tmp_path / 'bucket').mkdir()
        one = ArchiveDisk(tmp_path / 'one', bucket=tmp_path / 'bucket', policy=policy)
        async with one.mounted():
            await one.write('logs/a', b'a')
            await one.write('kept', b'k')
            await one.flush()
            known = sorted((use.name, use.lifecycle) for use in one.mirror.rows.uses())
            _lose(tmp_path)
            for archive in tmp_path.glob('bucket/**/*.zip'):
                os.utime(archive, (1, 1))
            await one.look()        # from the mirror
            assert sorted((use.name, use.lifecycle) for use in one.mirror.rows.uses()) == known
        one.close()
        _lose(tmp_path)
        two = ArchiveDisk(tmp_path / 'two', bucket=tmp_path / 'bucket', host='two', policy=policy)
        async with two.mounted():
            assert sorted((use.name, use.lifecycle) for use in two.mirror.rows.uses()) == known
            known, = two.journal.objects_of(two.inode_at(b'logs', b'a').ino)
            assert known.lifecycle == 'Lifecycle_1Day'
        two.close()
    trio.run(main)


def _lose(tmp_path: Path, pattern: str = '*') -> None:
    for path in tmp_path.glob(f'bucket/**/archive/log/{pattern}'):
        path.unlink()


def test_a_log_that_is_lost_while_hosts_know_it_is_made_anew(pair, tmp_path: Path) -> None:
    """From what one of them has of it, and from the archives that came after; nobody loses a file, and everybody goes on."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        await one.write('kept', b'kept', mode=0o640)
        await one.fs.link(one.inode_at(b'kept').ino, ROOT_INO, b'link')
        await one.write('removed', b'r')
        await one.write('changed', b'1')
        await one.flush()
        await two.look()
        await one.remove('removed')
        await one.write('changed', b'2')
        await one.write('new', b'n')
        await one.flush()
        _lose(tmp_path)
        await two.look()
        assert {path: what[3] for path, what in (await two.tree()).items()} == {'kept': b'kept', 'link': b'kept', 'changed': b'2', 'new': b'n'}
        assert two.inode_at(b'link') is two.inode_at(b'kept')
        await one.look()
        await one.write('later', b'l')
        await one.flush()
        await two.look()
        three = ArchiveDisk(tmp_path / 'three', bucket=tmp_path / 'bucket', host='three')
        async with three.mounted():
            contents = [{path: what[3] for path, what in (await disk.tree()).items()} for disk in (one, two, three)]
            assert contents[0] == contents[1] == contents[2] == one.unpacked() and len(contents[0]) == 5
        three.close()
    pair(scenario)


def test_a_commit_that_is_missing_stops_no_new_host(pair, tmp_path: Path) -> None:
    """Hosts that have read it need not notice; a new one makes the log anew, and the others follow."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        for number in range(3):
            await one.write(f'f{number}', b'%d' % number)
            await one.flush()
            await two.look()
        _lose(tmp_path, '*2.commit.zst')
        await one.write('f3', b'3')
        await one.flush()
        three = ArchiveDisk(tmp_path / 'three', bucket=tmp_path / 'bucket', host='three')
        async with three.mounted():
            assert set(three.files()) == {f'f{number}' for number in range(4)}
            await two.write('f4', b'4')
            await two.flush()
            for disk in (one, three):
                await disk.look()
                assert {path: what[3] for path, what in (await disk.tree()).items()} == {f'f{number}': b'%d' % number for number in range(5)}
            assert one.mirror.number == archive_recovery.ROUND + 1
        three.close()
    pair(scenario)


def test_a_lost_log_is_not_taken_for_a_new_context(pair, tmp_path: Path) -> None:
    """Archives that are younger than any flush takes may belong to the first one of a context, but not where there was a second. Who may not write
    says what to do."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        for name in 'ab':
            await one.write(name, name.encode())
            await one.flush()
        _lose(tmp_path)
        two.mirror._may_repair = False
        two.mirror.set_number(2)
        with pytest.raises(RemoteUnavailable, match='a mount that may write makes the log anew'):
            await two.mirror.catch_up()
        with pytest.raises(RemoteUnavailable, match='a mount that may write makes the log anew'):
            members = ContextMembers(one.workers.context.store, PREFIX, host='cli')
            members._number = 2
            members.look()
        three = ArchiveDisk(tmp_path / 'three', bucket=tmp_path / 'bucket', host='three')
        async with three.mounted():
            assert {path: what[3] for path, what in (await three.tree()).items()} == {'a': b'a', 'b': b'b'}
        three.close()
        _lose(tmp_path)
        for archive in tmp_path.glob('bucket/**/*.zip'):
            archive.unlink()
        with pytest.raises(RemoteUnavailable, match=r'restore what is below \.ctxfs/archive/ from a backup'):
            await one.mirror.catch_up()
    pair(scenario)


def test_of_two_hosts_that_make_a_log_anew_one_does_it(pair, tmp_path: Path) -> None:
    """The other one reads what that wrote."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        for name in 'abc':
            await one.write(name, name.encode())
            await one.flush()
            await two.look()
        _lose(tmp_path)
        store, put = one.workers.context.store, one.workers.context.store.put
        is_done = False

        def raced(key: str, *args: Any, **more: Any) -> Any:
            nonlocal is_done
            if not is_done:
                is_done = True
                assert archive_recovery.repair(two.workers.context.store, PREFIX, since=3, host='two', tree_db=two.mirror.tree_db)
            return put(key, *args, **more)
        store.put = raced       # type: ignore[method-assign]
        await one.look()
        assert is_done and one.own('.ctxfs/archive/log/') == [f'{archive_recovery.ROUND:020}.base.zst']
        assert one.mirror.number == archive_recovery.ROUND
        await two.look()
        assert await one.tree() == await two.tree() and set(one.files()) == {'a', 'b', 'c'}
    pair(scenario)


def test_a_first_commit_just_now_is_no_loss(pair) -> None:
    """Between the look at the log, which was empty, and the look at the archives."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        await one.write('f', b'1')
        await one.flush()
        store = two.workers.context.store
        assert archive_recovery.repair(store, PREFIX, since=0, host='two') and len(one.own('.ctxfs/archive/log/')) == 1
        await two.look()
        assert two.mirror.number == 1
    pair(scenario)


def test_an_archive_that_only_tells_of_deletions_stays_as_long_as_that_must_be_told(pair) -> None:
    """Also for a host that knows of it by a base: without it, who unpacks the archives would find again what was deleted."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        await one.write('kept', b'kept' * 100)
        await one.write('gone', b'gone')
        await one.flush()
        await one.remove('gone')
        await one.flush()
        ArchiveLog(one.workers.context.store, PREFIX).write_base(host='one', grace_ns=-1 << 62)
        for archive in one.directory.parent.glob('bucket/**/*.zip'):
            os.utime(archive, (1, 1))
        await two.look()
        await two.upkeep.once()
        assert one.unpacked() == {'kept': b'kept' * 100}
    pair(scenario)


# --- lifecycles, and files without a mount -----------------------------------------------------------------------------------------

def test_files_of_different_lifecycles_never_share_an_archive(tmp_path: Path) -> None:
    """Each archive carries its members' lifecycle; when it is over they are deleted by a commit."""
    policy = SyncPolicy(upload_policy=UploadPolicy(upload_mode='Archive'),
                        recycle_policy=RecyclePolicy(lifecycle='Lifecycle_1Day', paths=('logs',)))

    async def main() -> None:
        one = ArchiveDisk(tmp_path, policy=policy)
        async with one.mounted():
            await one.write('logs/a', b'a')
            await one.write('logs/b', b'b')
            await one.write('kept', b'k')
            await one.flush()
            uses = one.mirror.rows.uses()
            assert sorted((use.lifecycle, use.members) for use in uses) == [('', 1), ('Lifecycle_1Day', 2)]
            store = one.workers.context.store
            tagged = {use.lifecycle: store.tags(f'{PREFIX}{log_format.ARCHIVE_DIR}{use.name}') for use in uses}
            assert tagged == {'': {}, 'Lifecycle_1Day': {'ctxfs-lifecycle': 'Lifecycle_1Day'}}
            one.recycler._now_ns = lambda: time.time_ns() + 2 * 86400 * 10**9
            await one.engine.alone(one.recycler.sweep)
            assert set(one.files()) == {'kept'} and one.mirror.rows.etags(['logs/a', 'logs/b']) == {}
        one.close()
    trio.run(main)


def test_files_without_a_mount(pair, tmp_path: Path) -> None:
    """Listed, read, removed and put by member paths; mounts follow."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        for path in ('d/a', 'd/sub/b', 'top'):
            await one.write(path, path.encode())
        await one.flush()
        files = ContextFiles(one.workers.context.store, 'c', host='cli')
        assert [(entry.path, entry.is_dir) for entry in files.entries('/')] == [('/d', True), ('/top', False)]
        page = files.page('/d', 1)
        assert [entry.path for entry in page.entries] == ['/d/a'] and page.next_token
        assert [entry.path for entry in files.page('/d', 5, page.next_token).entries] == ['/d/sub']
        assert [entry.path for entry in files.below('/')] == ['/d/a', '/d/sub/b', '/top']
        moved = get_files.get(files, files.find('/d'), os.fsencode(tmp_path / 'out'))
        assert moved.files == 2 and (tmp_path / 'out/sub/b').read_bytes() == b'd/sub/b'
        (tmp_path / 'put').write_bytes(b'put')
        put_files.put(files, os.fsencode(tmp_path / 'put'), 'top')
        assert files.read(files.file('/top'), 0, 10) == b'put'
        files.delete_file('/d/a')
        with pytest.raises(NotFound):
            files.find('/d/a')
        with pytest.raises(Unsupported):
            files.download_url('/d/sub/b', 60)
        for disk in (one, two):
            await disk.look()
            assert {path: what[3] for path, what in (await disk.tree()).items() if not path.endswith('/')} == {'d/sub/b': b'd/sub/b', 'top': b'put'}
        assert list(files.delete_below('/d')) == [1]
        await two.look()
        assert 'd/sub/b' not in two.files()
        assert ContextMembers(files.store, PREFIX, host='cli').clear() is False
        await two.write('again', b'1')
        await two.flush()
        assert ContextMembers(files.store, PREFIX, host='cli').clear() is True
        await one.look()
        assert not [path for path in one.files() if path == 'again']
    pair(scenario)


# --- archives alone ----------------------------------------------------------------------------------------------------------------

_RESTORE = re.compile(r'```sh\n(for archive in .*?)```', re.DOTALL)


def _restored(tmp_path: Path) -> dict[str, Any]:
    """What the documentation's lines make of the archives: paths, types, modes, and contents."""
    script = _RESTORE.search((Path(__file__).parents[2] / 'docs/FORMAT.md').read_text())
    assert script is not None
    work = tmp_path / 'restored'
    work.mkdir()
    for archive in tmp_path.glob('bucket/**/*.zip'):
        shutil.copy(archive, work)
        subprocess.run(['unzip', '-tq', archive], check=True, capture_output=True)
    done = subprocess.run(['bash', '-c', script[1]], cwd=work, capture_output=True, check=False, env={**os.environ, 'LC_ALL': 'C.UTF-8'})
    assert b'cannot' not in done.stderr and b'error' not in done.stderr, done.stderr
    return {os.fsdecode(os.path.relpath(os.fsencode(path), os.fsencode(work / 'tree'))) + '/' * (path.is_dir() and not path.is_symlink()): (
        stat.S_IFMT((found := path.lstat()).st_mode), stat.S_IMODE(found.st_mode),
        os.fsencode(os.readlink(path)) if path.is_symlink() else b'' if path.is_dir() else path.read_bytes())
        for path in (work / 'tree').rglob('*')}


@pytest.mark.skipif(shutil.which('unzip') is None, reason='unzip is not installed')
def test_unzip_restores_whatever_became_what(tmp_path: Path) -> None:
    """Files, links and directories that took each other's places, empty directories that filled and went, and names that are hard to say."""
    async def main() -> None:
        (tmp_path / 'bucket').mkdir()
        one = ArchiveDisk(tmp_path / 'one', bucket=tmp_path / 'bucket')

        async def remove(*names: str) -> None:
            for name in names:
                *above, last = name.rstrip('/').encode().split(b'/')
                parent = one.db.resolve(above)
                await (one.fs.rmdir if name.endswith('/') else one.fs.unlink)(parent, last)

        async def make(kind: int, name: str, **more: Any) -> None:
            await one.fs.make(ROOT_INO, name.encode(), mode=kind | (0o777 if kind == stat.S_IFLNK else 0o755), caller=ME, **more)
        async with one.mounted():
            for path in ('d/x', 'deep/er/x', 'file', 'f2', 'both/x', 'target', 'keep/x'):
                await one.write(path, path.encode())
            await make(stat.S_IFLNK, 'link', target=b'target')
            await make(stat.S_IFLNK, 'l2', target=b'target')
            await make(stat.S_IFDIR, 'empty')
            await make(stat.S_IFDIR, 'filled')
            await one.flush()
            await one.write('filled/x', b'x')
            await one.flush()
            await remove('d/x', 'd/', 'deep/er/x', 'deep/er/', 'deep/', 'file', 'f2', 'both/x', 'link', 'l2', 'empty/', 'filled/x', 'filled/',
                         'keep/x')
            for path, data in (('d', b'was a directory'), ('deep', b'was two'), ('file/x', b'was a file'), ('link', b'was a link'),
                               ('l2/x', b'in what was a link'), ('empty', b'was empty'), ('filled', b'was filled'), ('both/y', b'y')):
                await one.write(path, data)
            await make(stat.S_IFLNK, 'f2', target=b'target')
            parent = one.db.resolve([b'both'])
            for name in (b'back\\slash', b'new\nline', b'newline', b'\x01control', b'-x', b'* [a]?',
                         b'not utf-8 \xff', 'ünï ☃ \u201b'.encode(), b' ', b'a' * 255):
                fh, _ = await one.fs.create(parent, name, mode=0o600, flags=os.O_WRONLY, caller=ME)
                await one.fs.write(fh, 0, name)
                await one.fs.release(fh)
            await one.flush()
            expected = {path: (what[0], what[1], what[3]) for path, what in (await one.tree()).items()}
        one.close()
        assert _restored(tmp_path) == expected
    trio.run(main)


@pytest.mark.skipif(shutil.which('unzip') is None, reason='unzip is not installed')
def test_unzip_restores_a_file_where_a_directory_was_removed_without_a_mount(pair, tmp_path: Path) -> None:
    """`ctxfs files rm` tells of directories that went, too."""
    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        for path in ('d/e/x', 'd/e/y', 'kept/x', 'kept/y'):
            await one.write(path, b'x')
        await one.flush()
        assert len(ContextMembers(one.workers.context.store, PREFIX, host='cli').delete(['d/e/x', 'd/e/y', 'kept/x'])) == 3
        await one.look()
        await one.write('d', b'now a file')
        await one.flush()
        assert {path: what[2] for path, what in _restored(tmp_path).items()} == {'d': b'now a file', 'kept/': b'', 'kept/y': b'x'}
    pair(scenario)


def test_very_many_deletions_are_several_commits(pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of them goes to a worker in one message, which has a bound."""
    monkeypatch.setattr(archiver, 'DELETIONS', 3)

    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        for number in range(10):
            await one.write(f'd/{number}', b'x')
        await one.write('kept', b'k')
        await one.flush()
        for number in range(10):
            await one.remove(f'd/{number}')
        await one.flush()
        await two.look()
        assert set(two.files()) == {'d/', 'kept'} and set(one.unpacked()) == {'kept'} and not one.journal.doomed(1)
        assert len(one.commits()) == 5
    pair(scenario)


def test_very_many_members_behind_objects_are_several_archives(pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as one archive has, and as many as one flush looks at."""
    monkeypatch.setattr(archive_rivals, 'MOST', 3)
    monkeypatch.setattr(archive_rivals, 'ARCHIVE_BYTES', 4)

    async def scenario(one: ArchiveDisk, two: ArchiveDisk) -> None:
        for number in range(5):
            await one.write(f'{number}', b'ab')

        async def put() -> None:
            for number in range(5):
                one.workers.context.store.put(f'{PREFIX}{number}', b'object')
        one.before = at_first('CommitArchive', put)
        await one.flush()
        await one.look()
        for _ in range(2):
            await one.flush()
        await two.look()
        assert sorted(what[3] for what in (await two.tree()).values()) == [b'ab'] * 5 + [b'object'] * 5
        assert await one.tree() == await two.tree()
    pair(scenario)
