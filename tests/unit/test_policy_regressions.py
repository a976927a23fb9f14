"""What once lost, resurrected or deleted something while remote changes, white lists and lifetimes met local changes, replayed without a mount.

Owns the replays. The store is a real directory, another host is whoever writes into it, and time stands still.
"""
from __future__ import annotations

import errno
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup  # what trio itself uses there

from ctxfs.core.filesystem import Change
from ctxfs.edge.live_policy import LivePolicy
from ctxfs.errors import CtxfsError, NoSpace, RemoteChanged, RemoteUnavailable
from ctxfs.policy import BWList, RecyclePolicy, SyncPolicy, WhiteList
from ctxfs.records import LIFECYCLE_NAME, ROOT_INO, Attrs, IndexRecord
from ctxfs.rules import Rules
from ctxfs.storage.inode import Content, Inode
from ctxfs.sync.index_log import IndexLog
from ctxfs.sync.protocol import Copy, DeleteMany, Operation, PutFile
from ctxfs.sync.recycle import DAY_NS, SLACK_NS
from ctxfs.sync.regate import Regater
from tests.unit.rig import ME, Disk
from tests.unit.test_sync_regressions import PREFIX

DAY = 'Lifecycle_1Day'


def listing(*paths: str, excludes: tuple[str, ...] = ()) -> SyncPolicy:
    """Only these paths are synced."""
    return SyncPolicy(bw_list=BWList(white_lists=tuple(WhiteList(path=path, exclude_paths=excludes) for path in paths)))


class Site(Disk):
    """A disk that uploads only when told, looks when told, and can be killed and started again."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._begin()
            yield
            nursery.cancel_scope.cancel()

    async def _begin(self) -> None:
        self.gating.rules = self.rules
        self.regater = Regater(self.db, self.journal, self.gating, self.reconciler, stage=self.fs.contents.stage)
        if self.regater.is_due:
            await self.regater.run()
        await self.remote.run()
        self.asked.clear()

    async def restart(self, policy: SyncPolicy | None = None) -> None:
        """SIGKILL, and a new mount."""
        self.db.close()
        self.rules = Rules(policy or self.rules.policy)
        self.start()
        self._wire(None)
        await self._begin()

    async def flush(self) -> None:
        result = await self.engine.flush(retry_seconds=0)
        assert result.ok, result.message

    async def look(self) -> None:
        """One poll."""
        await self.engine.alone(self.remote.changes.look)

    async def apply(self, policy: SyncPolicy) -> None:
        """Another policy on the live mount."""
        self.rules.replace(policy)
        await self.engine.alone(self.regater.run)

    # the other host

    def theirs(self, key: str, body: bytes, lifecycle: str = '') -> str:
        """Another host writes an object; its etag."""
        named = {LIFECYCLE_NAME: lifecycle} if lifecycle else None
        return self.workers.context.store.put(PREFIX + key, body, metadata=named, tags=named).etag

    def remove(self, *keys: str) -> None:
        for key in keys:
            self.workers.context.store.delete(PREFIX + key)

    def tell(self, *records: IndexRecord) -> None:
        """Another host's index segment."""
        IndexLog(self.workers.context.store, PREFIX, host='there').append(sorted(records, key=lambda record: record.path))

    @contextmanager
    def lost_answers(self) -> Iterator[None]:
        """Uploads arrive, and nobody hears of it."""
        with self.after(PutFile, _lose):
            yield

    @contextmanager
    def after(self, kind: type[Operation[Any]], happens: Callable[[], Awaitable[object]]) -> Iterator[None]:
        """What happens when an operation was carried out, and nobody here knows it yet."""
        call = self.workers.call

        async def and_then(operation: Operation[Any], **options: Any) -> Any:
            result = await call(operation, **options)
            if isinstance(operation, kind):
                await happens()
            return result

        self.workers.call = and_then        # type: ignore[method-assign]
        try:
            yield
        finally:
            self.workers.call = call        # type: ignore[method-assign]

    @contextmanager
    def failing(self, kind: type[Operation[Any]], *, after: int = 0) -> Iterator[None]:
        """The store does not carry out such operations, but for the first ones."""
        left = after

        async def fail(operation: Operation[Any]) -> None:
            nonlocal left
            if isinstance(operation, kind):
                left -= 1
                if left < 0:
                    raise RemoteUnavailable('not now')

        self.before = fail
        try:
            yield
        finally:
            self.before = None

    # programs

    def at(self, path: str) -> Inode:
        return self.inode_at(*(name.encode() for name in path.split('/')))

    def exists(self, path: str) -> bool:
        return self.db.resolve([name.encode() for name in path.split('/')]) is not None

    async def read(self, path: str) -> bytes:
        inode = self.at(path)
        fh = await self.fs.open(inode.ino, os.O_RDONLY)
        try:
            return await self.fs.read(fh, 0, 1 << 20)
        finally:
            await self.fs.release(fh)

    async def mkdir(self, name: str) -> Inode:
        return await self.fs.make(ROOT_INO, name.encode(), mode=0o040755, caller=ME)

    async def save_at(self, path: str, body: bytes) -> Inode:
        directory, _, name = path.rpartition('/')
        parent = self.at(directory).ino if directory else ROOT_INO
        fh, inode = await self.fs.create(parent, name.encode(), mode=0o644, flags=os.O_WRONLY, caller=ME)
        await self.fs.write(fh, 0, body)
        await self.fs.release(fh)
        return inode

    async def move(self, old: str, new: str) -> None:
        (old_dir, _, old_name), (new_dir, _, new_name) = old.rpartition('/'), new.rpartition('/')
        await self.fs.rename(self.at(old_dir).ino if old_dir else ROOT_INO, old_name.encode(),
                             self.at(new_dir).ino if new_dir else ROOT_INO, new_name.encode(), 0)

    def content(self) -> dict[str, bytes]:
        """The user's objects."""
        return {key: self.body(key) or b'' for key in self.keys() if not key.endswith('/')}


async def _lose() -> None:
    raise RemoteUnavailable('the answer is lost')


Play = Callable[..., None]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """play(scenario, policy=…): on a disk of its own."""
    def run(scenario: Callable[[Site], Awaitable[None]], **options: Any) -> None:
        async def main() -> None:
            disk = Site(tmp_path, **options)
            try:
                async with disk.running():
                    await scenario(disk)
            finally:
                disk.close()
        try:
            trio.run(main)
        except BaseExceptionGroup as group:     # a test's own assertion, out of the nursery
            raise group.exceptions[0] from None
    return run


ATTRS = Attrs(mode=0o100644, uid=0, gid=0, mtime_ns=1, atime_ns=1, ctime_ns=1)


def linked(site: Site, group: str, **etags: str) -> None:
    """Another host says that these keys are one file."""
    for key in etags:
        body = site.body(key)
        assert body is not None
    site.tell(*(IndexRecord(path=key, changed_ns=1, etag=etag, size=len(site.body(key) or b''), attrs=ATTRS, link=group)
                for key, etag in etags.items()))


# --- hard links and other hosts ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('is_open', [True, False], ids=['open', 'closed'])
def test_links_that_another_host_rewrote_survive_a_restart_here(play: Play, is_open: bool) -> None:
    """Both keys got a new version while somebody has the old one open: nothing of them is deleted, now or by the next mount."""
    async def scenario(site: Site) -> None:
        linked(site, 'g', a=site.theirs('a', b'one'), b=site.theirs('b', b'one'))
        await site.look()
        assert site.at('a') is site.at('b')
        fh = await site.fs.open(site.at('a').ino, os.O_RDONLY)
        if not is_open:
            await site.fs.release(fh)
        linked(site, 'g', a=site.theirs('a', b'two'), b=site.theirs('b', b'two'))
        await site.look()
        await site.look()
        assert await site.read('a') == await site.read('b') == b'two'
        await site.restart()
        await site.flush()
        assert site.content() == {'a': b'two', 'b': b'two'}
        assert site.at('a').nlink == len(site.db.names_of(site.at('a').ino))
    play(scenario)


def test_a_link_that_another_host_removes_after_a_rewrite_takes_nothing_with_it(play: Play) -> None:
    """One of two rewritten names goes remotely: the other stays, here and in the bucket."""
    async def scenario(site: Site) -> None:
        linked(site, 'g', a=site.theirs('a', b'one'), b=site.theirs('b', b'one'))
        await site.look()
        linked(site, 'g', a=site.theirs('a', b'two'), b=site.theirs('b', b'two'))
        await site.look()
        site.remove('b')
        await site.look()
        assert not site.exists('b') and await site.read('a') == b'two'
        await site.flush()
        assert site.content() == {'a': b'two'}
    play(scenario)


def test_links_that_were_seen_half_rewritten_are_one_file_again(play: Play) -> None:
    """One key's new version is seen before the other's: in the end both names are one file, as the other host says, and of one version."""
    async def scenario(site: Site) -> None:
        linked(site, 'g', a=site.theirs('a', b'one'), b=site.theirs('b', b'one'))
        await site.look()
        first = site.theirs('a', b'two')
        await site.look()
        assert (await site.read('a'), await site.read('b')) == (b'two', b'one')
        linked(site, 'g', a=first, b=site.theirs('b', b'two'))
        for _ in range(3):
            await site.look()
            assert await site.read('a') == await site.read('b') == b'two'
        assert site.at('a') is site.at('b')
        await site.flush()
        assert site.content() == {'a': b'two', 'b': b'two'}
    play(scenario)


def test_a_link_renamed_here_and_changed_there_loses_neither(play: Play) -> None:
    """One of two names moved here, its object changed there: their version keeps its key, ours goes under its new name."""
    async def scenario(site: Site) -> None:
        linked(site, 'g', a=site.theirs('a', b'one'), b=site.theirs('b', b'one'))
        await site.look()
        await site.move('a', 'c')
        site.theirs('a', b'theirs')
        await site.look()
        await site.restart()
        await site.flush()
        assert site.content()['a'] == b'theirs', 'what another host wrote is not ours to delete'
        assert site.content()['b'] == site.content()['c'] == b'one'
        assert await site.read('a') == b'theirs'
    play(scenario)


# --- renames that the bucket does not know yet ------------------------------------------------------------------------------------

def test_a_rename_whose_object_changes_remotely_is_still_uploaded(play: Play) -> None:
    """The file follows the bucket's version, and keeps its new name there too."""
    async def scenario(site: Site) -> None:
        site.theirs('log', b'one')
        await site.look()
        await site.move('log', 'log.1')
        site.theirs('log', b'one and more')
        await site.look()
        assert not site.exists('log') and await site.read('log.1') == b'one and more'
        await site.flush()
        assert site.content() == {'log.1': b'one and more'}
    play(scenario)


def test_a_rotated_log_whose_object_changes_remotely_is_in_the_bucket_when_all_is_uploaded(play: Play) -> None:
    """Renamed away, a new file in its place, the object changed: both contents have a key of the user's."""
    async def scenario(site: Site) -> None:
        site.theirs('log', b'one')
        await site.look()
        await site.move('log', 'log.1')
        await site.save(b'log', b'new')
        site.theirs('log', b'one and more')
        await site.look()
        await site.flush()
        assert b'one and more' in site.content().values() and b'new' in site.content().values()
        assert await site.read('log.1') == b'one and more'
    play(scenario)


def test_a_chmod_survives_a_remote_change_of_the_content(play: Play) -> None:
    """A file made private here stays private when somebody writes it elsewhere."""
    async def scenario(site: Site) -> None:
        site.theirs('key', b'one')
        await site.look()
        await site.fs.setattr(site.at('key').ino, Change(mode=0o600))
        site.theirs('key', b'two')
        await site.look()
        assert await site.read('key') == b'two'
        assert site.at('key').mode & 0o777 == 0o600
        await site.flush()
        assert site.at('key').mode & 0o777 == 0o600
    play(scenario)


def test_renamed_there_and_back_while_deletes_fail(play: Play) -> None:
    """A flush in between left a tombstone for the first name: it is that name's object again, and the upload comes to its end."""
    async def scenario(site: Site) -> None:
        site.theirs('a', b'one')
        await site.look()
        await site.move('a', 'b')
        with site.failing(DeleteMany):
            assert not (await site.engine.flush(retry_seconds=0)).ok
        await site.move('b', 'a')
        await site.flush()
        assert site.content() == {'a': b'one'} and await site.read('a') == b'one'
    play(scenario)


def test_a_symlink_that_comes_back_into_the_white_list_while_deletes_fail(play: Play) -> None:
    """Moved out, flushed but for the delete, moved in again: it is in the bucket."""
    async def scenario(site: Site) -> None:
        await site.mkdir('src')
        await site.mkdir('cache')
        await site.fs.make(site.at('src').ino, b'link', mode=0o120777, caller=ME, target=b'aim')
        await site.flush()
        assert 'src/link' in site.content()
        await site.move('src/link', 'cache/link')
        with site.failing(DeleteMany):
            assert not (await site.engine.flush(retry_seconds=0)).ok
        await site.move('cache/link', 'src/link')
        await site.flush()
        assert site.content() == {'src/link': b'aim'}
    play(scenario, policy=listing('src'))


def test_a_file_in_a_renamed_directory_does_not_make_way(play: Play) -> None:
    """Its directory moved here, its new name is a directory there: it and its object stay."""
    async def scenario(site: Site) -> None:
        site.theirs('src/a', b'ours')
        await site.look()
        await site.move('src', 'other')
        site.theirs('other/a/b', b'theirs')
        await site.look()
        await site.engine.flush(retry_seconds=0)
        assert b'ours' in site.content().values() and b'theirs' in site.content().values()
    play(scenario)


def test_a_link_made_here_of_what_changes_remotely_keeps_its_content(play: Play) -> None:
    """The new name has no object yet: it is one file with the other, and follows it."""
    async def scenario(site: Site) -> None:
        site.theirs('a', b'one')
        await site.look()
        await site.fs.link(site.at('a').ino, ROOT_INO, b'l')
        site.theirs('a', b'two')
        await site.look()
        assert await site.read('a') == await site.read('l') == b'two'
        await site.flush()
        assert site.content() == {'a': b'two', 'l': b'two'}
    play(scenario)


# --- lifetimes --------------------------------------------------------------------------------------------------------------------

def test_what_moved_out_of_a_recycled_directory_does_not_expire(play: Play) -> None:
    """With its directory, and not uploaded yet: the sweep leaves it alone."""
    async def scenario(site: Site) -> None:
        site.theirs('logs/f', b'to be kept', DAY)
        await site.look()
        known = site.journal.known('logs/f')
        assert known is not None
        site.journal.note_lifetime('logs/f', known.etag, DAY, known.uploaded_ns)
        await site.move('logs', 'kept')
        recycler = site.uploader._recycler
        recycler._now_ns = lambda: known.uploaded_ns + DAY_NS + 2 * SLACK_NS
        await site.engine.alone(recycler.sweep)
        assert site.exists('kept/f'), 'moved before it expired'
        await site.flush()
        assert site.content() == {'kept/f': b'to be kept'}
    play(scenario, policy=SyncPolicy(recycle_policy=RecyclePolicy(lifecycle=DAY, paths=('logs',))))


# --- who has a file open for writing ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('before', [b'', b'line one\n'], ids=['empty', 'content'])
def test_what_a_program_appends_is_not_lost_to_a_remote_change(play: Play, before: bytes) -> None:
    """It has the file open, uploaded and clean, when another host's version is seen: what it writes then is kept beside that."""
    async def scenario(site: Site) -> None:
        fh, inode = await site.open_new(b'log')
        if before:
            await site.fs.write(fh, 0, before)
        await site.flush()
        assert inode.content == Content.CLEAN
        site.theirs('log', b'theirs')
        await site.look()
        await site.fs.write(fh, len(before), b'ours')
        await site.fs.release(fh)
        await site.flush()
        assert sorted(site.content().values()) == sorted([before + b'ours', b'theirs'])
        assert site.body('log') == b'theirs'
    play(scenario)


def test_what_a_program_appends_is_not_lost_to_a_remote_removal(play: Play) -> None:
    """The same where the object went: changed here, it is created anew."""
    async def scenario(site: Site) -> None:
        fh, _ = await site.open_new(b'log')
        await site.flush()
        site.remove('log')
        await site.look()
        await site.fs.write(fh, 0, b'ours')
        await site.fs.release(fh)
        await site.flush()
        assert site.content() == {'log': b'ours'} and await site.read('log') == b'ours'
    play(scenario)


def test_a_remote_change_is_seen_when_the_writer_closes_without_a_word(play: Play) -> None:
    """Whoever has it open for writing only puts it off."""
    async def scenario(site: Site) -> None:
        site.theirs('f', b'one')
        site.theirs('g', b'one')
        await site.look()
        handles = [await site.fs.open(site.at(name).ino, os.O_RDWR) for name in ('f', 'g')]
        site.theirs('f', b'their two')
        site.remove('g')
        await site.look()
        assert site.exists('g')
        for fh in handles:
            await site.fs.release(fh)
        await site.look()
        assert await site.read('f') == b'their two' and not site.exists('g')
        await site.flush()
        assert site.content() == {'f': b'their two'}
    play(scenario)


def test_a_write_to_what_is_gone_fails_and_is_not_swallowed(play: Play) -> None:
    """A reader found the version gone, so the name means the new one: a writer of the old one is told, also where it has no content."""
    async def scenario(site: Site) -> None:
        fh, inode = await site.open_new(b'log')
        await site.flush()
        site.theirs('log', b'theirs')
        await site.remote.refresh(inode)
        if site.at('log') is inode:
            await site.fs.write(fh, 0, b'ours')
        else:
            with pytest.raises(RemoteChanged):
                await site.fs.write(fh, 0, b'ours')
        await site.fs.release(fh)
        await site.flush()
        assert b'theirs' in site.content().values()
    play(scenario)


# --- white lists ------------------------------------------------------------------------------------------------------------------

def test_a_directory_moved_between_two_policies_is_not_lost(play: Play) -> None:
    """Renamed into what is synced now, from what is not any more, and not uploaded in between."""
    async def scenario(site: Site) -> None:
        site.theirs('old/d/f', b'precious')
        await site.look()
        await site.mkdir('new')
        await site.move('old/d', 'new/d')
        await site.apply(listing('new'))
        assert await site.read('new/d/f') == b'precious'
        await site.flush()
        assert site.content()['new/d/f'] == b'precious'
    play(scenario)


def test_files_that_took_each_others_names_survive_another_policy(play: Play) -> None:
    """A flush that broke off left one content under a temporary key only."""
    async def scenario(site: Site) -> None:
        for name in ('a', 'b'):
            site.theirs(f'src/{name}', name.encode() * 3)
        await site.look()
        await site.move('src/a', 'src/x')
        await site.move('src/b', 'src/a')
        await site.move('src/x', 'src/b')
        with site.failing(Copy, after=2):
            assert not (await site.engine.flush(retry_seconds=0)).ok
        await site.apply(listing('src'))
        assert (await site.read('src/a'), await site.read('src/b')) == (b'bbb', b'aaa')
        await site.flush()
        assert site.content() == {'src/a': b'bbb', 'src/b': b'aaa'}
    play(scenario)


def test_a_file_renamed_while_a_policy_is_applied_is_not_lost(play: Play) -> None:
    """Applying waits for the bytes of another file; meanwhile a program saves a file from what goes."""
    async def scenario(site: Site) -> None:
        site.theirs('out/a', b'a')
        site.theirs('out/b', b'b')
        await site.look()
        await site.mkdir('src')
        await site.move('out/b', 'src/b')
        stage = site.fs.contents.stage

        async def slow(inode: Inode) -> None:
            if site.exists('out/a'):
                await site.move('out/a', 'src/a')
            await stage(inode)

        site.regater._stage = slow
        await site.apply(listing('src'))
        assert (await site.read('src/a'), await site.read('src/b')) == (b'a', b'b')
        await site.flush()
        assert site.content()['src/a'] == b'a' and site.content()['src/b'] == b'b'
    play(scenario)


def test_what_is_open_for_writing_stays_when_the_white_lists_leave_it(play: Play) -> None:
    """What is written afterwards is on this host."""
    async def scenario(site: Site) -> None:
        await site.mkdir('out')
        fh, _ = await site.fs.create(site.at('out').ino, b'log', mode=0o644, flags=os.O_WRONLY, caller=ME)
        await site.flush()
        await site.apply(listing('src'))
        await site.fs.write(fh, 0, b'more')
        await site.fs.release(fh)
        assert await site.read('out/log') == b'more'
        await site.flush()
        assert site.content() == {'out/log': b''}
    play(scenario)


def test_a_link_into_what_is_synced_survives_other_white_lists(play: Play) -> None:
    """The file leaves them under its old name, and the new one is not uploaded yet."""
    async def scenario(site: Site) -> None:
        site.theirs('out/a', b'one')
        await site.look()
        await site.mkdir('src')
        await site.fs.link(site.at('out/a').ino, site.at('src').ino, b'l')
        await site.apply(listing('src'))
        assert await site.read('src/l') == b'one'
        await site.flush()
        assert site.content() == {'out/a': b'one', 'src/l': b'one'}
    play(scenario)


def test_a_renamed_file_that_changed_remotely_does_not_stop_other_white_lists(play: Play) -> None:
    """Its bytes are to be brought here, and the bucket has a newer version: that is brought."""
    async def scenario(site: Site) -> None:
        site.theirs('out/a', b'one')
        await site.look()
        await site.mkdir('src')
        await site.move('out/a', 'src/a')
        site.theirs('out/a', b'two')
        await site.apply(listing('src'))
        assert await site.read('src/a') == b'two'
    play(scenario)


def test_an_upload_in_doubt_is_left_alone_when_its_place_leaves_the_white_lists(play: Play) -> None:
    """It had arrived: what the bucket has outside them is not this host's to delete."""
    async def scenario(site: Site) -> None:
        site.theirs('out/f', b'before')
        await site.look()
        await site.rewrite(site.at('out/f'), b'after!')
        with site.lost_answers():
            assert not (await site.engine.flush(retry_seconds=0)).ok
        await site.apply(listing('src'))
        site.journal.retry_all()
        await site.flush()
        assert site.content() == {'out/f': b'after!'} and await site.read('out/f') == b'after!'
    play(scenario)


def test_white_lists_that_let_in_more_are_made_up_for_when_the_look_fails(play: Play) -> None:
    """The bucket is as it was, and the store did not answer when the policy was applied: the next look shows what is synced now."""
    async def scenario(site: Site) -> None:
        site.theirs('other/f', b'x')
        await site.look()
        assert not site.exists('other/f')

        live = LivePolicy(site.rules, site.regater, read=SyncPolicy, alone=site.engine.alone, look=trio.lowlevel.checkpoint,
                          forget=site.remote.changes.forget, tell=lambda *_, **__: None)
        await live.reload()
        await site.look()
        assert await site.read('other/f') == b'x'
    play(scenario, policy=listing('src'))


def test_a_policy_for_which_there_is_no_room_is_refused(play: Play) -> None:
    """A renamed file's bytes are to come here and the disk is full: the old policy stays, and the file where it is."""
    async def scenario(site: Site) -> None:
        site.theirs('out/a', b'one')
        await site.look()
        await site.mkdir('src')
        await site.move('out/a', 'src/a')

        async def full(inode: Inode) -> None:
            raise OSError(errno.ENOSPC, 'the disk is full')

        site.regater._stage = full
        told: list[str] = []
        live = LivePolicy(site.rules, site.regater, read=lambda: listing('src'), alone=site.engine.alone, look=trio.lowlevel.checkpoint,
                          forget=site.remote.changes.forget, tell=lambda kind, **_: told.append(kind))
        await live.reload()
        assert told == ['policy-refused'] and site.rules.policy == SyncPolicy()
        await site.flush()
        assert await site.read('src/a') == b'one' and site.content() == {'src/a': b'one'}
    play(scenario)


# --- writes in doubt ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('is_renamed', [True, False], ids=['renamed', 'removed'])
def test_a_poll_does_not_bring_back_what_an_upload_in_doubt_left(play: Play, is_renamed: bool) -> None:
    """The PUT arrived, its answer did not, and the file went meanwhile: it stays gone, and its object goes too."""
    async def scenario(site: Site) -> None:
        await site.save(b'f', b'content')
        with site.lost_answers():
            assert not (await site.engine.flush(retry_seconds=0)).ok
        assert site.body('f') == b'content'
        if is_renamed:
            await site.move('f', 'g')
        else:
            await site.fs.unlink(ROOT_INO, b'f')
        await site.look()
        assert not site.exists('f')
        site.journal.retry_all()
        await site.flush()
        await site.look()
        assert not site.exists('f')
        assert site.content() == ({'g': b'content'} if is_renamed else {})
    play(scenario)


# --- what a look believes -----------------------------------------------------------------------------------------------------------

def test_a_listing_that_could_not_be_applied_is_not_taken_for_seen(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk was full for a moment: the next look applies it, although the bucket is as it was."""
    async def scenario(site: Site) -> None:
        site.theirs('f', b'x')
        with monkeypatch.context() as patch:
            def full(*_: Any, **__: Any) -> None:
                raise NoSpace('the disk is full')
            patch.setattr(site.reconciler, 'apply', full)
            with pytest.raises(CtxfsError):
                await site.engine.alone(site.remote.changes.reload)
        await site.look()
        assert site.exists('f')
    play(scenario)


@pytest.mark.parametrize('is_dir', [False, True], ids=['file', 'directory'])
def test_an_older_record_that_is_read_later_does_not_win(play: Play, is_dir: bool) -> None:
    """Another host's chmod was earlier than ours, and its segment is read after ours was written."""
    async def scenario(site: Site) -> None:
        name, kind = ('d', 0o040000) if is_dir else ('f', 0o100000)
        if is_dir:
            await site.mkdir('d')
        else:
            await site.save(b'f', b'x')
        await site.flush()
        inode = site.at(name)
        known = site.journal.known('f')
        then = Attrs(mode=kind | 0o750, uid=0, gid=0, mtime_ns=inode.mtime_ns, atime_ns=inode.atime_ns, ctime_ns=inode.ctime_ns + 1)
        path, etag, size = (name + '/', '', 0) if is_dir else (name, known.etag if known else '', 1)
        site.tell(IndexRecord(path=path, changed_ns=inode.ctime_ns + 2, etag=etag, size=size, attrs=then))
        await site.fs.setattr(inode.ino, Change(mode=0o700))
        await site.flush()
        await site.look()
        assert site.at(name).mode & 0o777 == 0o700
    play(scenario)


# --- reading beside an upload -------------------------------------------------------------------------------------------------------

def test_a_renamed_file_is_readable_while_its_old_name_is_overwritten(play: Play) -> None:
    """The rotated log is copied, the new one is on its way; a reader of the old content meets the new object under the old key."""
    async def scenario(site: Site) -> None:
        site.theirs('log', b'old content')
        await site.look()
        await site.move('log', 'log.1')
        await site.save(b'log', b'new')
        seen: list[bytes] = []

        async def read_between() -> None:
            seen.append(await site.read('log.1'))

        with site.after(PutFile, read_between):
            await site.flush()
        assert seen == [b'old content']
        assert (await site.read('log'), await site.read('log.1')) == (b'new', b'old content')
        assert site.content() == {'log': b'new', 'log.1': b'old content'}
    play(scenario)
