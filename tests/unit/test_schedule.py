"""When uploads begin by themselves, and what one takes: the clock passes virtually, everything else is real but the kernel."""
from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from ctxfs.errors import NoSpace, RemoteUnavailable
from ctxfs.policy import ONLY_ON_UNMOUNT, SyncPolicy, UploadPolicy
from ctxfs.records import ROOT_INO
from ctxfs.storage.inode import Content
from ctxfs.storage.snapshot import SUFFIX, copy_file
from ctxfs.sync import room, uploader
from ctxfs.sync.engine import ADOPT_LEAST, LISTING_SECONDS
from ctxfs.sync.protocol import Copy, DeleteMany, Operation, PutFile, PutMany, WriteSegment
from ctxfs.sync.recovery import recover
from ctxfs.sync.rounds import BATCHES, PLAN_AHEAD, TOGETHER
from ctxfs.sync.schedule import LOOK_SECONDS
from ctxfs.sync.selection import LONGEST_PERIODS, OPEN_SECONDS, QUIET_SECONDS
from ctxfs.sync.together import SMALL
from tests.unit.rig import Disk, virtual_time
from tests.unit.test_sync_regressions import PREFIX

MANUAL = SyncPolicy(upload_policy=UploadPolicy(auto_upload=False))
Scenario = Callable[[Disk], Awaitable[None]]
Play = Callable[..., None]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """play(scenario, sync_every=…, policy=…): run it on a disk, in virtual time."""
    def run(scenario: Scenario, *, threads: bool = False, **options: Any) -> None:
        async def main() -> None:
            disk = Disk(tmp_path, **options)
            try:
                async with disk.running():
                    await scenario(disk)
            finally:
                disk.close()

        with virtual_time(monkeypatch, threads=threads) as clock:
            trio.run(main, clock=clock)
    return run


async def until(condition: Callable[[], bool], *, within: float) -> float:
    """How long it took until the condition held, in virtual seconds; fails after `within`."""
    began = trio.current_time()
    while not condition():
        assert trio.current_time() - began <= within, f'not within {within} s'
        await trio.sleep(max(0.01, within / 200))
    return trio.current_time() - began


# --- by the clock -------------------------------------------------------------------------------------------------------------------

def test_a_change_is_uploaded_a_period_after_it_was_made(play: Play) -> None:
    """Not before, and a second change meanwhile does not put it off."""
    async def scenario(disk: Disk) -> None:
        inode = await disk.save(b'f', b'one')
        await trio.sleep(50)
        await disk.rewrite(inode, b'two')
        took = await until(lambda: disk.body('f') is not None, within=20)
        assert 60 - LOOK_SECONDS <= 50 + took <= 60 + LOOK_SECONDS
        assert disk.body('f') == b'two' and disk.count(PutFile) == 1
    play(scenario)


def test_the_policys_period_counts_unless_the_mount_has_its_own(play: Play) -> None:
    """A policy that is replaced on the live mount counts at once."""
    async def scenario(disk: Disk) -> None:
        assert disk.schedule.period == 300
        await disk.save(b'f', b'x')
        await trio.sleep(60)
        assert not disk.asked
        disk.rules.replace(SyncPolicy(upload_policy=UploadPolicy(period=5)))
        await until(lambda: disk.body('f') == b'x', within=LOOK_SECONDS + 0.5)
    play(scenario, policy=SyncPolicy(upload_policy=UploadPolicy(period=300)))


def test_the_next_upload_is_told(play: Play) -> None:
    """Unix seconds; 0 where nothing is due, and where nothing begins by itself."""
    async def scenario(disk: Disk) -> None:
        assert disk.schedule.next_at() == 0
        await disk.save(b'f', b'x')
        assert abs(disk.schedule.next_at() - (time.time() + 30)) < LOOK_SECONDS + 0.1
        disk.schedule.pause()
        assert disk.schedule.next_at() == 0
        disk.schedule.resume()
        await until(lambda: disk.body('f') is not None, within=31)
        await trio.sleep(1)
        assert disk.schedule.next_at() == 0
    play(scenario, sync_every=30)


def test_nothing_to_do_costs_nothing(play: Play) -> None:
    """An idle hour: no request, no task."""
    async def scenario(disk: Disk) -> None:
        await disk.save(b'f', b'x')
        await trio.sleep(70)
        disk.asked.clear()
        tasks = len(disk.tasks.to_list())
        await trio.sleep(3600)
        assert not disk.asked and len(disk.tasks.to_list()) == tasks
        assert (await disk.engine.flush()).ok and not disk.asked
    play(scenario)


def test_an_editors_save_is_one_put(play: Play) -> None:
    """A file written beside and renamed over the old one, again and again between two flushes."""
    async def scenario(disk: Disk) -> None:
        await disk.save(b'f', b'old')
        await disk.engine.flush()
        disk.asked.clear()
        for number in range(3):
            await disk.save(b'.f.tmp', b'new %d' % number)
            await disk.rename(b'.f.tmp', b'f')
        await trio.sleep(70)
        assert disk.body('f') == b'new 2' and disk.keys() == ['f']
        assert (disk.count(PutFile), disk.count(Copy, DeleteMany), disk.count(WriteSegment)) == (1, 0, 1)
    play(scenario)


def test_what_came_and_went_is_no_request_of_its_own(play: Play) -> None:
    """A file created and deleted between two flushes, and one written with what the bucket has already."""
    async def scenario(disk: Disk) -> None:
        inode = await disk.save(b'same', b'content')
        await disk.engine.flush()
        disk.asked.clear()
        await disk.save(b'lock', b'x')
        await disk.fs.unlink(ROOT_INO, b'lock')
        await trio.sleep(70)
        assert not disk.asked
        await disk.rewrite(inode, b'content')
        versions = disk.workers.context.store.head('contexts/c/same')
        await trio.sleep(70)
        assert disk.keys() == ['same'] and disk.count(Copy, DeleteMany) == 0
        assert disk.workers.context.store.head('contexts/c/same') == versions       # the worker compared, and sent nothing
        assert disk.journal.summary()[0] == 0
    play(scenario)


# --- files in the middle of being written -------------------------------------------------------------------------------------------

def test_a_file_that_is_being_written_waits_until_it_is_quiet(play: Play) -> None:
    """The others go; it follows as soon as it is quiet, not a period later."""
    async def scenario(disk: Disk) -> None:
        await disk.save(b'done', b'x')
        fh, _ = await disk.open_new(b'growing')
        for number in range(64):
            await disk.fs.write(fh, number, b'.')
            await trio.sleep(1)
        assert disk.keys() == ['done']
        took = await until(lambda: disk.body('growing') is not None, within=10)
        assert QUIET_SECONDS - 1 <= took <= QUIET_SECONDS + LOOK_SECONDS and disk.body('growing') == b'.' * 64
        await disk.fs.release(fh)
    play(scenario)


def test_a_file_that_is_never_quiet_is_uploaded_as_it_is_every_five_periods(play: Play) -> None:
    """Whole states, no abort, and what is written after the instant stays pending until its own turn."""
    seen: dict[bytes, float] = {}

    async def look(disk: Disk) -> None:
        while True:
            if (body := disk.body('log')) is not None:
                seen.setdefault(body, trio.current_time())
            await trio.sleep(0.5)

    async def scenario(disk: Disk) -> None:
        disk.spawn(look, disk)
        began = trio.current_time()
        fh, inode = await disk.open_new(b'log')
        for number in range(1000):
            await disk.fs.write(fh, 0, b'%04d' % number * 100)
            await trio.sleep(0.4)
        times = [at - began for at in seen.values()]
        gaps = [b - a for a, b in zip([0.0, *times], times)]
        longest = LONGEST_PERIODS * 10 + 2 * LOOK_SECONDS
        assert len(times) >= 7 and max(gaps) <= longest, gaps
        assert all(body == body[:4] * 100 for body in seen)
        row = disk.journal.pending_row(inode.ino)
        assert row is not None and inode.content == Content.STAGED and not row.error
        assert time.time_ns() - row.since_ns <= longest * 1e9
        await disk.fs.release(fh)
        assert (await disk.engine.flush()).ok and disk.body('log') == b'0999' * 100
        assert not list(disk.staging.root.rglob('*' + SUFFIX))
    play(scenario, sync_every=10)


def test_a_busy_log_does_not_take_the_others_along_early(play: Play) -> None:
    """While a file waits for its writers, the others keep their period."""
    async def scenario(disk: Disk) -> None:
        fh, _ = await disk.open_new(b'log')
        for number in range(1200):
            await disk.fs.write(fh, number, b'.')
            await disk.save(b'f%d' % number, b'x')
            await trio.sleep(0.25)
        flushes = disk.tasks.ended
        # 10 s after the oldest file that was not quiet yet at the flush before; and the log's own turns
        assert flushes <= 300 / (10 - QUIET_SECONDS) + 2 * 300 / 50 + 2, flushes
        await disk.fs.release(fh)
    play(scenario, sync_every=10)


def test_writers_wait_while_the_copy_is_made_and_it_has_nothing_of_theirs(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is the state at one instant however long it takes; other files can be written meanwhile."""
    begun, go_on = threading.Event(), threading.Event()

    def slow_copy(fd: int, path: str) -> None:
        begun.set()
        assert go_on.wait(30)
        copy_file(fd, path)

    async def scenario(disk: Disk) -> None:
        monkeypatch.setattr(uploader, 'copy_file', slow_copy)
        fh, inode = await disk.open_new(b'f')
        await disk.fs.write(fh, 0, b'before')
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.uploader.run_as_it_is, inode, lambda done: None)
            assert await trio.to_thread.run_sync(begun.wait, 30)
            nursery.start_soon(disk.fs.write, fh, 0, b'after!')
            await disk.save(b'other', b'x')
            await trio.sleep(1)
            assert Path(disk.staging.path(inode.ino)).read_bytes() == b'before'
            go_on.set()
        assert disk.body('f') == b'before' and Path(disk.staging.path(inode.ino)).read_bytes() == b'after!'
        assert inode.content == Content.STAGED and disk.journal.pending_row(inode.ino) is not None
        await disk.fs.release(fh)
        assert (await disk.engine.flush()).ok and disk.body('f') == b'after!'
    # without a clock: virtual time jumps while only a thread is waited for, and a flush of the schedule would come between
    play(scenario, threads=True, sync_every=ONLY_ON_UNMOUNT)


def test_what_is_pending_after_the_instant_is_what_came_after_it(play: Play) -> None:
    """The row stays, as old as the instant; its sequence number is left alone."""
    async def scenario(disk: Disk) -> None:
        fh, inode = await disk.open_new(b'f')
        await disk.fs.write(fh, 0, b'one')
        await trio.sleep(30)
        before, instant_ns = disk.journal.pending_row(inode.ino), time.time_ns()

        async def write(operation: Operation[Any]) -> None:
            await trio.sleep(5)
            await disk.fs.write(fh, 0, b'two')

        disk.before = write
        await disk.uploader.run_as_it_is(inode, lambda done: None)
        row = disk.journal.pending_row(inode.ino)
        assert before is not None and row is not None and row.since_ns == instant_ns > before.since_ns
        assert row.seq == before.seq + 1 and disk.body('f') == b'one' and inode.content == Content.STAGED      # the write's own mark
        await disk.fs.release(fh)
    play(scenario, sync_every=ONLY_ON_UNMOUNT)


def test_an_unchanged_file_that_was_uploaded_as_it_is_is_clean(play: Play) -> None:
    """Nobody wrote since the instant: nothing is pending, and nothing is sent again."""
    async def scenario(disk: Disk) -> None:
        fh, inode = await disk.open_new(b'f')
        await disk.fs.write(fh, 0, b'x')
        await disk.uploader.run_as_it_is(inode, lambda done: None)
        assert inode.content == Content.SEALED
        await disk.fs.release(fh)
        disk.asked.clear()
        assert (await disk.engine.flush()).ok and disk.count(PutFile) == 0 and inode.content == Content.CLEAN
    play(scenario)


def test_an_explicit_flush_does_not_chase_a_file_for_ever(play: Play) -> None:
    """Each attempt is disturbed: then it goes up as it was at one instant, and the flush has done what it was asked for."""
    async def scenario(disk: Disk) -> None:
        fh, inode = await disk.open_new(b'f')
        await disk.fs.write(fh, 0, b'0')

        async def disturb(operation: Operation[Any]) -> None:
            if isinstance(operation, PutFile):
                await disk.fs.write(fh, 0, b'%d' % disk.count(PutFile))

        disk.before = disturb
        result = await disk.engine.flush()
        assert result.ok and not result.message
        assert disk.body('f') is not None and inode.content == Content.STAGED and disk.journal.summary()[0] == 1
        disk.before = None
        await disk.fs.release(fh)
        assert (await disk.engine.flush()).ok and disk.journal.summary()[0] == 0
        assert disk.body('f') == Path(disk.directory / 'bucket/contexts/c/f').read_bytes()
    play(scenario, sync_every=ONLY_ON_UNMOUNT)


def test_a_flush_answers_for_what_was_there_when_it_was_asked(play: Play) -> None:
    """Programs go on: what they make meanwhile is no failure. A deletion that cannot be carried out is one."""
    async def scenario(disk: Disk) -> None:
        await disk.save(b'f', b'x')
        await trio.sleep(1)

        numbers = itertools.count()

        async def work_on(operation: Operation[Any]) -> None:
            await trio.sleep(0.1)
            await disk.save(b'g%d' % next(numbers), b'x')

        disk.before = work_on
        result = await disk.engine.flush()
        assert result.ok and disk.body('f') == b'x' and disk.journal.summary()[0] > 0
        disk.before = None
        assert (await disk.engine.flush()).ok and disk.journal.summary()[0] == 0
        fh = await disk.fs.open(disk.inode_at(b'f').ino, os.O_RDONLY)
        await disk.fs.unlink(ROOT_INO, b'f')
        assert not (await disk.engine.flush()).ok and disk.body('f') == b'x'
        await disk.fs.release(fh)
        assert (await disk.engine.flush()).ok and disk.body('f') is None
    play(scenario, sync_every=ONLY_ON_UNMOUNT)


def test_a_failed_index_segment_is_tried_again_soon(play: Play) -> None:
    """Not a period later."""
    async def scenario(disk: Disk) -> None:
        await disk.save(b'f', b'x')

        async def refuse(operation: Operation[Any]) -> None:
            if isinstance(operation, WriteSegment):
                raise RemoteUnavailable('slow down')

        disk.before = refuse
        await until(lambda: disk.count(WriteSegment) == 3, within=65)
        disk.before = None
        await until(lambda: disk.journal.summary()[0] == 0, within=5)
    play(scenario)


def test_hard_links_of_a_busy_file_go_up_together(play: Play) -> None:
    """Both names get the state of the same instant."""
    async def scenario(disk: Disk) -> None:
        fh, inode = await disk.open_new(b'a')
        await disk.fs.link(inode.ino, ROOT_INO, b'b')
        await disk.fs.write(fh, 0, b'one')
        await disk.uploader.run_as_it_is(inode, lambda done: None)
        assert disk.body('a') == disk.body('b') == b'one'
        await disk.fs.write(fh, 0, b'two')
        await disk.fs.release(fh)
        assert (await disk.engine.flush()).ok and disk.body('a') == disk.body('b') == b'two'
    play(scenario, sync_every=ONLY_ON_UNMOUNT)


def test_a_name_that_a_busy_file_took_over_keeps_its_content_until_then(play: Play) -> None:
    """A clean file moved away and its old name is being written: the copy is made, the old object is neither deleted nor overwritten early."""
    async def scenario(disk: Disk) -> None:
        await disk.save(b'a', b'first')
        await disk.engine.flush()
        disk.asked.clear()
        await disk.rename(b'a', b'b')
        fh, _ = await disk.open_new(b'a')
        for number in range(30):
            await disk.fs.write(fh, number, b'.')
            await trio.sleep(0.5)
            assert disk.body('a') == b'first'
        assert disk.body('b') == b'first' and disk.count(DeleteMany) == 0
        await disk.fs.release(fh)
        await until(lambda: disk.body('a') == b'.' * 30, within=15)
        assert disk.body('b') == b'first' and (disk.count(Copy), disk.count(DeleteMany)) == (1, 0)
    play(scenario, sync_every=10)


def test_a_rotated_log_is_not_overwritten_before_it_is_uploaded(play: Play) -> None:
    """The old log has another name and is still written to; the new one has its name: the bucket keeps the old content until it is safe."""
    async def scenario(disk: Disk) -> None:
        inode = await disk.save(b'log', b'old')
        await disk.engine.flush()
        disk.asked.clear()
        fh = await disk.fs.open(inode.ino, os.O_WRONLY)
        await disk.fs.write(fh, 3, b'.')
        await disk.rename(b'log', b'log.1')
        await disk.save(b'log', b'new')
        for number in range(60):
            await disk.fs.write(fh, 3, b'%02d' % number)
            await trio.sleep(0.5)
            assert disk.body('log') == b'old'
        assert disk.tasks.ended <= 6, 'nobody asks all the time whether it may'
        await until(lambda: disk.body('log') == b'new', within=10)
        assert disk.body('log.1') == b'old59' and disk.count(PutFile) == 2
        await disk.fs.release(fh)
    play(scenario, sync_every=10)


# --- on close -----------------------------------------------------------------------------------------------------------------------

def test_on_close_means_at_once_and_not_before(play: Play) -> None:
    """An open file waits; its close uploads it; so do a rename and an unlink."""
    async def scenario(disk: Disk) -> None:
        fh, _ = await disk.open_new(b'f')
        await disk.fs.write(fh, 0, b'x')
        await trio.sleep(5)
        assert disk.keys() == []
        await disk.fs.release(fh)
        assert await until(lambda: disk.body('f') == b'x', within=1) <= 0.3
        await disk.rename(b'f', b'g')
        assert await until(lambda: disk.keys() == ['g'], within=1) <= 0.3
        await disk.fs.unlink(ROOT_INO, b'g')
        assert await until(lambda: disk.keys() == [], within=1) <= 0.3
    play(scenario, sync_every=0)


def test_on_close_a_save_is_one_put(play: Play) -> None:
    """The rename comes a moment after the close: it is coalesced with it."""
    async def scenario(disk: Disk) -> None:
        await disk.save(b'f', b'old')
        await trio.sleep(1)
        disk.asked.clear()
        await disk.save(b'.f.tmp', b'new')
        await trio.sleep(0.01)
        await disk.rename(b'.f.tmp', b'f')
        await until(lambda: disk.body('f') == b'new', within=1)
        await trio.sleep(1)
        assert disk.keys() == ['f'] and (disk.count(PutFile), disk.count(Copy, DeleteMany)) == (1, 0)
    play(scenario, sync_every=0)


def test_on_close_a_file_that_stays_open_goes_up_as_it_is(play: Play) -> None:
    """Somebody keeps a log open for days."""
    async def scenario(disk: Disk) -> None:
        fh, _ = await disk.open_new(b'log')
        await disk.fs.write(fh, 0, b'one')
        assert OPEN_SECONDS - 1 <= await until(lambda: disk.body('log') == b'one', within=40) <= OPEN_SECONDS + 2
        await disk.fs.write(fh, 0, b'two')
        assert OPEN_SECONDS - 1 <= await until(lambda: disk.body('log') == b'two', within=80) <= 2 * OPEN_SECONDS + 2
        assert disk.count(PutFile) <= 3
        await disk.fs.release(fh)
    play(scenario, sync_every=0)


# --- not by itself ------------------------------------------------------------------------------------------------------------------

def test_only_on_unmount_there_is_no_clock(play: Play) -> None:
    """Nothing for hours; the unmount uploads everything."""
    async def scenario(disk: Disk) -> None:
        await disk.save(b'f', b'x')
        await trio.sleep(4 * 3600)
        assert not disk.asked and disk.schedule.next_at() == 0
        assert (await disk.schedule.write_back(60)).ok and disk.body('f') == b'x'
    play(scenario, sync_every=ONLY_ON_UNMOUNT)


def test_manual_means_that_an_unmount_leaves_the_changes_here_and_says_so(play: Play) -> None:
    """Not even then is anything sent; a sync sends it, and then the unmount is in order."""
    async def scenario(disk: Disk) -> None:
        await disk.save(b'e', b'x')
        await disk.save(b'f', b'x')
        await trio.sleep(3600)
        left = disk.journal.summary()[0]
        result = await disk.schedule.write_back(60)
        assert (result.ok, result.files) == (False, 0) and not disk.asked
        assert result.message == f'autoUpload is off: {left} changes stay on this host; mount it again and run ctxfs sync'
        assert (await disk.engine.flush()).ok and disk.body('f') == b'x'
        assert await disk.schedule.write_back(60) == (True, 0, 0, '')
    play(scenario, policy=MANUAL)


def test_manual_becomes_automatic_with_another_policy(play: Play) -> None:
    """What was pending for longer than the period goes at once."""
    async def scenario(disk: Disk) -> None:
        await disk.save(b'f', b'x')
        await trio.sleep(3600)
        disk.rules.replace(SyncPolicy())
        await until(lambda: disk.body('f') == b'x', within=2 * LOOK_SECONDS)
    play(scenario, policy=MANUAL)


def test_pause_holds_and_resume_goes_on(play: Play) -> None:
    """An explicit flush still uploads."""
    async def scenario(disk: Disk) -> None:
        disk.schedule.pause()
        inode = await disk.save(b'f', b'x')
        await trio.sleep(600)
        assert not disk.asked and disk.schedule.is_paused
        assert (await disk.engine.flush()).ok and disk.body('f') == b'x'
        await disk.rewrite(inode, b'y')
        await trio.sleep(600)
        assert disk.body('f') == b'x'
        disk.schedule.resume()
        assert await until(lambda: disk.body('f') == b'y', within=5) <= 0.5
    play(scenario)


def test_pause_stops_a_flush_between_files(play: Play) -> None:
    """What is under way ends; the rest waits, whole, for the resume."""
    async def scenario(disk: Disk) -> None:
        for number in range(200):
            await disk.save(b'f%d' % number, b'x')

        async def pause(operation: Operation[Any]) -> None:
            disk.schedule.pause()

        disk.before = pause
        await trio.sleep(120)
        sent = disk.count(PutFile)
        assert 1 <= sent <= BATCHES * TOGETHER and disk.count(WriteSegment, DeleteMany) == 0
        disk.before = None
        disk.schedule.resume()
        await until(lambda: disk.journal.summary()[0] == 0, within=5)
        assert len(disk.keys()) == 200 and disk.count(PutFile) == 200
    play(scenario)


# --- trouble ------------------------------------------------------------------------------------------------------------------------

def test_of_many_small_files_each_ends_in_its_own_way(play: Play) -> None:
    """One is written anew, one removed, one refused by the store while they are on their way together; the others arrive by then."""
    async def scenario(disk: Disk) -> None:
        inodes = {name: await disk.save(name, b'old') for name in (b'a', b'b', b'rewritten', b'removed', b'refused')}
        began: list[str] = []

        async def meanwhile(operation: Operation[Any]) -> None:
            if not isinstance(operation, PutFile):
                return
            name = operation.key.removeprefix(PREFIX)
            began.append(name)
            if name == 'rewritten' and began.count(name) == 1:
                await disk.rewrite(inodes[b'rewritten'], b'new')
            if name == 'removed':
                await disk.fs.unlink(ROOT_INO, b'removed')
            if name == 'refused' and began.count(name) == 1:
                raise NoSpace('the quota is used up')

        disk.before = meanwhile
        result = await disk.engine.flush(retry_seconds=0)
        assert not result.ok and disk.journal.failed(1)[0][0].error == 'the quota is used up'
        assert result.files == 3        # what moved on its way is counted when it is there, and what went never
        assert [disk.body(key) for key in ('a', 'b', 'rewritten', 'refused')] == [b'old', b'old', b'new', None]
        assert (await disk.engine.flush()).ok
        assert disk.keys() == ['a', 'b', 'refused', 'rewritten'] and disk.slots.in_use() == 0
        assert (began.count('a'), began.count('b')) == (1, 1) and not disk.db.rows('SELECT * FROM attempt')
    play(scenario)


def test_what_is_uploaded_is_handed_over_while_the_rest_is_uploaded(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is recorded while the log is made durable is not, that time."""
    async def scenario(disk: Disk) -> None:
        disk.room._limit = 1 << 30
        for number in range(3 * ADOPT_LEAST):
            await disk.save(b'f%d' % number, b'x')
        order: list[str] = []
        seen: list[tuple[int, int]] = []
        make_durable, adopt, sealed = disk.db.make_durable, disk.finisher.adopt, disk.finisher.sealed

        def noted() -> None:
            order.append('durable')
            make_durable()

        def looked(most: int = -1) -> list[int]:
            order.append('look')
            return sealed(most)

        async def watched(inos: list[int]) -> None:
            if pending := disk.journal.summary()[0]:
                assert order[-2:] == ['look', 'durable']
            seen.append((len(inos), pending))
            await adopt(inos)

        async def slowly(operation: Operation[Any]) -> None:
            await trio.sleep(2)
        monkeypatch.setattr(disk.db, 'make_durable', noted)
        monkeypatch.setattr(disk.finisher, 'adopt', watched)
        monkeypatch.setattr(disk.finisher, 'sealed', looked)
        disk.before = slowly
        assert (await disk.engine.flush()).ok
        assert any(count >= ADOPT_LEAST and pending for count, pending in seen) and not sealed()
    play(scenario, threads=True)


def test_a_file_that_takes_the_name_of_one_that_is_on_its_way_waits_for_it(play: Play) -> None:
    """Planned meanwhile, it would find its own host's object there and take it for somebody's change."""
    async def scenario(disk: Disk) -> None:
        disk.room._limit = 1 << 30
        await disk.save(b'a', b'first')
        for number in range(PLAN_AHEAD + 300):
            await disk.save(b'f%d' % number, b'x')
        await disk.save(b'b', b'second')
        sent: list[str] = []
        call = disk.workers.call

        async def slowly(operation: Operation[Any], **options: Any) -> Any:
            result = await call(operation, **options)
            if isinstance(operation, PutFile):
                sent.append(operation.key.removeprefix(PREFIX))
                if sent[-1] == 'a' and sent.count('a') == 1:
                    await disk.rename(b'b', b'a')
                    await trio.sleep(100)       # it is in the bucket, and nobody here has heard of it; all others are planned and sent by then
                else:
                    await trio.sleep(1)
            return result

        disk.workers.call = slowly  # type: ignore[method-assign]
        assert (await disk.engine.flush()).ok
        assert disk.body('a') == b'second' and len(disk.keys()) == PLAN_AHEAD + 301
        assert not disk.db.rows('SELECT * FROM conflict') and not disk.db.rows('SELECT * FROM attempt')
        assert not [name for name, _ in disk.db.children(ROOT_INO, b'', 5000) if b'conflict' in name]
    play(scenario, sync_every=ONLY_ON_UNMOUNT)


def test_small_files_go_together_and_large_ones_do_not(play: Play) -> None:
    async def scenario(disk: Disk) -> None:
        for number in range(TOGETHER + 5):
            await disk.save(b's%d' % number, b'x')
        await disk.save(b'large', bytes(SMALL + 1))
        batches: list[int] = []
        call = disk.call

        async def counted(operation: Operation[Any], **options: Any) -> Any:
            batches.append(len(operation.files) if isinstance(operation, PutMany) else isinstance(operation, PutFile) and operation.size > SMALL)
            return await call(operation, **options)
        disk.uploader._pool.call = disk.together._pool.call = counted  # type: ignore[method-assign,assignment]
        assert (await disk.engine.flush()).ok and len(disk.keys()) == TOGETHER + 6
        assert max(batches) <= TOGETHER and sum(batches) == TOGETHER + 6
    play(scenario)


def test_an_outage_costs_few_requests_and_ends_by_itself(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """An hour without the store, 200 files pending: one try each 20 seconds, and then everything."""
    async def scenario(disk: Disk) -> None:
        for number in range(200):
            await disk.save(b'f%d' % number, b'x')
        disk.failure = RemoteUnavailable('the store is away')
        await trio.sleep(3660)
        assert 150 <= len(disk.asked) <= 3600 / 20 + BATCHES * TOGETHER + 30, len(disk.asked)
        assert disk.tasks.running == [] and disk.journal.failed(1)[0][0].error == 'the store is away'
        disk.failure = None
        await until(lambda: disk.journal.summary()[0] == 0, within=60)
        assert len(disk.keys()) == 200
    play(scenario)


def test_a_flush_of_more_than_is_planned_ahead_ends_in_an_outage(play: Play) -> None:
    """Whoever waits for work, or for room for it, is told that there will be none."""
    async def scenario(disk: Disk) -> None:
        disk.room._limit = 1 << 30
        for number in range(PLAN_AHEAD + 2 * BATCHES * TOGETHER + 50):
            await disk.save(b'f%d' % number, b'x')
        disk.failure = RemoteUnavailable('the store is away')
        with trio.fail_after(60):
            assert not (await disk.engine.flush(retry_seconds=0)).ok
    play(scenario, sync_every=ONLY_ON_UNMOUNT)


def test_a_store_that_takes_no_uploads_is_asked_with_one_file(play: Play) -> None:
    """It answers, but not to uploads: after the first flush one file tries for all."""
    async def scenario(disk: Disk) -> None:
        for number in range(200):
            await disk.save(b'f%d' % number, b'x')

        async def refuse(operation: Operation[Any]) -> None:
            if isinstance(operation, PutFile):
                await trio.sleep(0.1)
                raise RemoteUnavailable('slow down')

        disk.before = refuse
        await trio.sleep(660)
        assert 30 <= disk.count(PutFile) <= BATCHES * TOGETHER + 600 / 20 + 10, disk.count(PutFile)
        disk.before = None
        await until(lambda: disk.journal.summary()[0] == 0, within=60)
    play(scenario)


def test_a_file_that_fails_for_good_does_not_keep_the_clock_busy(play: Play) -> None:
    """It waits for a sync, or for its next change."""
    async def scenario(disk: Disk) -> None:
        inode = await disk.save(b'f', b'x')

        async def refuse(operation: Operation[Any]) -> None:
            if isinstance(operation, PutFile):
                raise NoSpace('the quota is used up')

        disk.before = refuse
        await trio.sleep(70)
        tried, tasks = len(disk.asked), disk.tasks.ended
        await trio.sleep(3600)
        assert disk.count(PutFile) == 1 and (len(disk.asked), disk.tasks.ended) == (tried, tasks)
        assert disk.journal.failed(1)[0][0].error == 'the quota is used up'
        disk.before = None
        disk.fs.store_attrs(inode)
        await until(lambda: disk.body('f') == b'x', within=62)
    play(scenario)


def test_a_failed_file_that_is_written_on_does_not_keep_the_clock_busy(play: Play) -> None:
    """Its retry time passes while it is not quiet."""
    async def scenario(disk: Disk) -> None:
        fh, _ = await disk.open_new(b'f')
        await disk.fs.write(fh, 0, b'x')
        disk.failure = RemoteUnavailable('away')
        await until(lambda: bool(disk.journal.failed(1)), within=15)
        disk.failure = None
        tasks = disk.tasks.ended
        for number in range(60):
            await disk.fs.write(fh, number, b'.')
            await trio.sleep(0.5)
        assert disk.body('f') is None and disk.tasks.ended <= tasks + 5
        await until(lambda: disk.body('f') == b'.' * 60, within=15)
        await disk.fs.release(fh)
    play(scenario, sync_every=10)


def test_a_copy_that_a_crash_left_is_removed(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon died while the copy was made: recovery takes it away, and the file is uploaded from its staging file."""
    class Died(BaseException):
        pass

    def die(fd: int, path: str) -> None:
        copy_file(fd, path)
        Path(path).rename(path + '.left')       # out of reach of the clean-up, which a killed process does not do either
        raise Died

    async def scenario(disk: Disk) -> None:
        fh, inode = await disk.open_new(b'f')
        await disk.fs.write(fh, 0, b'x')
        with monkeypatch.context() as patch, pytest.raises(Died):
            patch.setattr(uploader, 'copy_file', die)
            await disk.uploader.run_as_it_is(inode, lambda done: None)
        await disk.fs.release(fh)
        assert list(disk.staging.root.rglob('*.left'))
        recover(disk.db, disk.journal, disk.staging, uid=0, gid=0)
        assert not list(disk.staging.root.rglob('*.left')) and inode.hold is None
        assert (await disk.engine.flush()).ok and disk.body('f') == b'x'
    play(scenario, sync_every=ONLY_ON_UNMOUNT)


def test_a_clock_that_is_set_back_does_not_put_uploads_off(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock goes back by a day: still a period from when the change was seen."""
    async def scenario(disk: Disk) -> None:
        await disk.save(b'f', b'x')
        await trio.sleep(5)
        before = disk.schedule._clock
        disk.schedule._clock = lambda: before() - 86400 * 10**9
        await until(lambda: disk.body('f') is not None, within=60)
    play(scenario)


def test_changes_of_an_earlier_mount_go_at_once(play: Play) -> None:
    """They are older than any period."""
    async def scenario(disk: Disk) -> None:
        await disk.save(b'f', b'x')
        disk.db.execute('UPDATE pending SET since_ns = since_ns - 1000000000 * 3600')
        disk.journal.recount()
        disk.schedule._oldest_ns = disk.journal.oldest_ns
        await until(lambda: disk.body('f') == b'x', within=LOOK_SECONDS + 3)
    play(scenario)


# --- the bound on dirty bytes -------------------------------------------------------------------------------------------------------

def fill(disk: Disk) -> Awaitable[object]:
    """One more file than the bound allows."""
    async def run() -> None:
        await disk.save(b'one', b'x' * (900 << 10))
        await disk.save(b'two', b'x' * (900 << 10))
    return run()


def test_at_the_bound_a_manual_mount_refuses_at_once(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """ENOSPC with the cause in the log, no waiting, no upload."""
    async def scenario(disk: Disk) -> None:
        began = trio.current_time()
        with pytest.raises(NoSpace, match='autoUpload is off: run ctxfs sync'):
            await fill(disk)
        assert trio.current_time() - began < 1 and not disk.asked
        assert 'autoUpload is off' in disk.room.refusal and 'autoUpload is off' in caplog.text
    play(scenario, policy=MANUAL)


def test_at_the_bound_a_paused_mount_waits_for_the_resume(play: Play) -> None:
    """And refuses when it does not come."""
    async def scenario(disk: Disk) -> None:
        disk.schedule.pause()
        began = trio.current_time()
        with pytest.raises(NoSpace, match='uploads are paused'):
            await fill(disk)
        assert trio.current_time() - began >= room.WAIT_SECONDS and not disk.asked
        disk.schedule.resume()
        await disk.save(b'three', b'x' * (900 << 10))
    play(scenario)


# --- an unmount ---------------------------------------------------------------------------------------------------------------------

def test_a_last_upload_goes_on_for_as_long_as_anything_gets_through(play: Play) -> None:
    """Far longer than the time for which it would try a store that is away; a file that fails meanwhile is tried again."""
    async def scenario(disk: Disk) -> None:
        for number in range(200):
            await disk.save(b'f%d' % number, b'x')
        failures = [3]

        async def slow(operation: Operation[Any]) -> None:
            if isinstance(operation, PutFile):
                await trio.sleep(90)
                if failures[0]:
                    failures[0] -= 1
                    raise RemoteUnavailable('hiccup')

        disk.before = slow
        began = trio.current_time()
        result = await disk.schedule.write_back(120)
        assert result.ok and trio.current_time() - began > 250 and len(disk.keys()) == 200
    play(scenario, sync_every=ONLY_ON_UNMOUNT)


def test_an_unmount_before_everything_is_listed_waits_only_where_something_is_to_be_done(play: Play) -> None:
    """A context of a million files that was looked at for a moment is done with in a moment; what was changed there, removed there, or is in doubt is
    not said to be in the bucket."""
    async def scenario(disk: Disk) -> None:
        await disk.save(b'f', b'x')
        assert (await disk.engine.flush()).ok
        disk.asked.clear()
        disk.remote.is_complete, disk.remote._complete = False, trio.Event()
        began = trio.current_time()
        assert await disk.schedule.write_back(60) == (True, 0, 0, '')
        assert trio.current_time() - began <= LISTING_SECONDS and not disk.asked
        disk.db.execute("INSERT INTO attempt VALUES ('f', 9, 1, '')")
        assert not (await disk.schedule.write_back(60)).ok
        disk.db.execute('DELETE FROM attempt')
        disk.journal.announce(['gone'], 1)
        assert not (await disk.schedule.write_back(60)).ok
        disk.journal.announced([('gone', 1)])
        await disk.save(b'g', b'x')
        result = await disk.schedule.write_back(60)
        assert not result.ok and 'could not be listed' in result.message and trio.current_time() >= began + 3 * 60
    play(scenario, sync_every=ONLY_ON_UNMOUNT)


def test_a_last_upload_to_a_store_that_is_away_ends(play: Play) -> None:
    """When nothing got through for the time; every file stays journaled, and only a few were tried."""
    async def scenario(disk: Disk) -> None:
        for number in range(200):
            await disk.save(b'f%d' % number, b'x')

        async def away(operation: Operation[Any]) -> None:
            await trio.sleep(20)
            raise RemoteUnavailable('the store is away')

        disk.before = away
        began = trio.current_time()
        result = await disk.schedule.write_back(120)
        assert not result.ok and disk.journal.summary()[0] == 200 and disk.count(PutFile) < 150
        assert 120 <= trio.current_time() - began < 200
    play(scenario, sync_every=ONLY_ON_UNMOUNT)


def test_a_last_upload_that_hangs_is_given_up(play: Play) -> None:
    """Whatever hangs although no request may."""
    async def scenario(disk: Disk) -> None:
        await disk.save(b'f', b'x')

        async def hang(operation: Operation[Any]) -> None:
            await trio.sleep_forever()

        disk.before = hang
        result = await disk.schedule.write_back(120)
        assert not result.ok and 'does not answer' in result.message and disk.journal.summary()[0] == 1
    play(scenario, sync_every=ONLY_ON_UNMOUNT)


def test_the_store_says_when_it_wants_to_be_asked(play: Play) -> None:
    """By the clock, too: no try before that, whatever the backoff says."""
    async def scenario(disk: Disk) -> None:
        await disk.save(b'f', b'x')
        busy = RemoteUnavailable('busy')
        busy.retry_after = 250.0
        disk.failure = busy
        await trio.sleep(70)
        asked = len(disk.asked)
        assert asked
        await trio.sleep(200)
        assert len(disk.asked) == asked
        disk.failure = None
        await until(lambda: disk.journal.summary()[0] == 0, within=120)
    play(scenario)


def test_a_try_that_failed_is_told_while_the_flush_goes_on(play: Play) -> None:
    """Of a file, and of what is no file's; a success takes it back."""
    async def scenario(disk: Disk) -> None:
        await disk.save(b'a', b'x')
        disk.failure = RemoteUnavailable('away')
        disk.spawn(disk.engine.flush)
        await until(lambda: any(task.error_message == 'away' for task in disk.tasks.running), within=5)
        disk.failure = None
        await until(lambda: not disk.tasks.running, within=60)
        assert disk.tasks.to_list()[-1]['status'] == 'Success' and not disk.tasks.to_list()[-1]['errorMessage']
    play(scenario, sync_every=ONLY_ON_UNMOUNT)


def test_what_is_open_when_the_mount_goes_is_closed(play: Play) -> None:
    """The kernel does not tell the last closes of an unmounted file system: what had no name is gone, what is written is uploaded."""
    async def scenario(disk: Disk) -> None:
        for name in (b'kept', b'gone'):
            fh, inode = await disk.open_new(name)
            await disk.fs.write(fh, 0, name)
        await disk.fs.unlink(ROOT_INO, b'gone')
        await disk.fs.opendir(ROOT_INO)
        assert disk.db.orphans() == [inode.ino]
        disk.fs.detached()
        assert disk.db.orphans() == [] and not len(disk.fs.files) and not len(disk.fs.dirs) and not disk.fs.known_inodes()
        assert (await disk.engine.flush()).ok and disk.keys() == ['kept'] and disk.body('kept') == b'kept'
    play(scenario, sync_every=ONLY_ON_UNMOUNT)
