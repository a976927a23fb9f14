"""The warm-up and downloads that are asked for: which files, in which order, at whose cost. Virtual time; a real bucket, cache and tree."""
from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from ctxfs.errors import CtxfsError, Denied, NotFound, RemoteUnavailable
from ctxfs.policy import DownloadPolicy, SyncPolicy
from ctxfs.records import ROOT_INO
from ctxfs.storage.clean_files import PAGE, CleanFiles, Walk
from ctxfs.sync import cache_filling, warmup, worker_ops_warm
from ctxfs.sync.admission import Gate, Priority
from ctxfs.sync.downloads import Downloads
from ctxfs.sync.flights import Flights
from ctxfs.sync.protocol import Head, Operation, Warm, WarmItem
from ctxfs.sync.warmup import LOOK_SECONDS, PATIENCE_SECONDS, Warmup
from ctxfs.sync.worker_ops_warm import warm
from tests.unit.rig import Disk, virtual_time
from tests.unit.test_sync_regressions import PREFIX, Channel

MANUAL = SyncPolicy(download_policy=DownloadPolicy(auto_download=False))
MIB = 1 << 20


class Warmed(Disk):
    """A disk with a warm-up, which begins with `begin`. `cache_limit` is the pool's word."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory, sync_every=-1, **options)
        self.cache_limit = 1 << 30
        self.activity: Callable[[], int] = lambda: 0
        self.cache = self.workers.context.cache
        self.restart()

    def restart(self) -> None:
        pool: Any = self
        self.warmup = Warmup(self.db, pool, self.cache, prefix=PREFIX, rules=self.rules, tasks=self.tasks, remote=self.remote,
                             is_paused=lambda: self.engine.is_paused, activity=self.activity)
        self.reconciler.on_content = self.warmup.note_changed
        self.downloads = Downloads(self.db, pool, self.cache, prefix=PREFIX, remote=self.remote, engine=self.engine, tasks=self.tasks)

    def begin(self) -> None:
        self.spawn(self.warmup.run)

    async def idle(self) -> Any:
        self.begin()
        await trio.sleep(0.01)
        return await self.warmup.wait_idle()

    async def rest(self) -> None:
        """Until there is nothing to do, again."""
        await trio.sleep(0.01)
        await self.warmup.wait_idle()

    def is_cached(self, key: str, block: int = 0) -> bool:
        known = self.journal.known(key)
        assert known is not None, key
        return not self.cache.missing(PREFIX + key, known.etag, [block])

    @property
    def warmed(self) -> list[str]:
        """Keys in the order in which the workers were asked for them."""
        return [item.key[len(PREFIX):] for operation in self.asked if isinstance(operation, Warm) for item in operation.items]

    def download_tasks(self) -> list[dict[str, Any]]:
        return [task for task in self.tasks.to_list() if task['taskType'] == 'download']


Scenario = Callable[[Warmed], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """play(scenario, files={key: body or size}, policy=…): run it on a disk whose bucket has these files, listed."""
    def run(scenario: Scenario, *, files: dict[str, Any] | None = None, **options: Any) -> None:
        async def main() -> None:
            disk = Warmed(tmp_path, **options)
            try:
                for key, body in (files or {}).items():
                    disk.put(key, os.urandom(body) if isinstance(body, int) else body)
                async with disk.running():
                    await scenario(disk)
            finally:
                disk.close()

        # on a busy machine a request would end early, and what is left of it come after others
        monkeypatch.setattr(worker_ops_warm, 'LONGEST_SECONDS', float('inf'))
        with virtual_time(monkeypatch) as clock:
            trio.run(main, clock=clock)
    return run


def small(*keys: str) -> dict[str, bytes]:
    return {key: key.encode() for key in keys}


# --- what comes -----------------------------------------------------------------------------------------------------------------------

def test_everything_comes_by_directories_and_a_restart_fetches_nothing(play: Callable[..., None]) -> None:
    """The files of a directory before those below it; small ones share a request; a second run finds all and says nothing."""
    async def scenario(disk: Warmed) -> None:
        result = await disk.idle()
        assert (result.ok, result.files, result.message) == (True, 5, '')
        assert disk.warmed == ['z', 'a/1', 'a/2', 'a/b/3', 'c/4']
        assert all(map(disk.is_cached, disk.warmed))
        task, = disk.download_tasks()
        assert (task['status'], task['filesDone'], task['filesTotal'], task['bytesDone'], task['bytesTotal']) == ('Success', 5, 5, 15, 15)
        assert disk.warmup.progress()['requests'] == 5
        disk.warmup.end()
        disk.restart()
        assert (await disk.idle()).ok
        assert disk.warmup.progress() == {'state': 'idle', 'filesDone': 5, 'filesTotal': 5, 'bytesDone': 15, 'bytesTotal': 15,
                                          'fetchedBytes': 0, 'requests': 0, 'error': ''}
        assert len(disk.download_tasks()) == 1
    play(scenario, files=small('a/1', 'a/2', 'a/b/3', 'c/4', 'z'))


def test_what_is_only_here_is_left_alone(play: Callable[..., None]) -> None:
    """Staged and empty files are not asked for."""
    async def scenario(disk: Warmed) -> None:
        await disk.save(b'new', b'only here')
        await disk.rewrite(disk.inode_at(b'changed'), b'here')
        disk.asked.clear()
        await disk.idle()
        assert disk.warmed == ['clean']
    play(scenario, files={**small('clean', 'changed'), 'empty': b''})


def test_hard_links_come_once(play: Callable[..., None]) -> None:
    """One object stands for all names of an inode, the one that a reader would take."""
    async def scenario(disk: Warmed) -> None:
        await disk.fs.link(disk.inode_at(b'm').ino, ROOT_INO, b'a')
        await disk.engine.flush()
        disk.asked.clear()
        await disk.idle()
        source = disk.journal.source_of(disk.inode_at(b'm'))
        assert source is not None and disk.warmed == [source.key]
    play(scenario, files=small('m'))


def test_nothing_comes_under_a_policy_without_automatic_download(play: Callable[..., None]) -> None:
    """Until the policy is replaced; then everything, within LOOK_SECONDS."""
    async def scenario(disk: Warmed) -> None:
        result = await disk.idle()
        assert result.ok and 'autoDownload is off' in result.message
        disk.warmup.note_read(disk.inode_at(b'f').ino)
        disk.put('g', b'later')
        await disk.remote.reload()
        await trio.sleep(3 * LOOK_SECONDS)
        assert disk.warmed == [] and disk.warmup.state == 'off'
        disk.rules.replace(SyncPolicy())
        await trio.sleep(LOOK_SECONDS + 1)
        assert disk.warmed == ['f', 'g'] and disk.warmup.state == 'idle'
    play(scenario, files=small('f'), policy=MANUAL)


def test_a_pause_holds_the_warm_up(play: Callable[..., None]) -> None:
    """Nothing begins while paused, and who waits is told at once; afterwards it goes on."""
    async def scenario(disk: Warmed) -> None:
        disk.engine.pause()
        result = await disk.idle()
        assert not result.ok and 'ctxfs resume' in result.message
        await trio.sleep(60)
        assert disk.warmed == []
        disk.engine.resume()
        await disk.rest()
        assert disk.is_cached('f')
    play(scenario, files=small('f'))


def test_a_busy_mount_is_warmed_slowly(play: Callable[..., None]) -> None:
    """As long as programs ask for something, one request a second; as soon as they rest, all of them."""
    async def scenario(disk: Warmed) -> None:
        disk.activity = lambda: int(trio.current_time() * 100)
        disk.restart()
        disk.begin()
        await trio.sleep(5.5)
        assert 3 <= disk.count(Warm, Head) <= 6
        disk.warmup._activity = lambda: 0
        began = trio.current_time()
        await disk.warmup.wait_idle()
        assert trio.current_time() - began < 2 and disk.warmup.progress()['filesDone'] == 20 * cache_filling.BATCH_FILES
    play(scenario, files={f'{number:04}': b'x' for number in range(20 * cache_filling.BATCH_FILES)})


def test_a_reader_keeps_five_sixths_of_its_rate_beside_the_warm_up(play: Callable[..., None]) -> None:
    """Counted on a store that does one thing at a time, and where a request of the warm-up takes as long as one may: a program that reads all
    the time gets at least 1/1.2 of what it gets alone."""
    async def scenario(disk: Warmed) -> None:
        store, reads = trio.Lock(), 0

        async def take_its_time(operation: Operation[Any]) -> None:
            async with store:
                await trio.sleep(longest)

        async def read_for(seconds: float) -> int:
            nonlocal reads
            before = reads
            with trio.move_on_after(seconds):
                while True:
                    async with store:
                        await trio.sleep(0.005)
                    reads += 1
            return reads - before

        disk.activity, disk.before = (lambda: reads), take_its_time
        disk.restart()
        alone = await read_for(20)
        disk.begin()
        beside = await read_for(20)
        assert disk.count(Warm, Head) >= 15, 'it is not starved'
        assert alone / 1.2 <= beside
    longest = worker_ops_warm.LONGEST_SECONDS
    play(scenario, files={f'{number:04}': b'x' for number in range(14 * cache_filling.BATCH_FILES)})


def test_warming_a_path_asks_for_nothing_but_its_content(play: Callable[..., None]) -> None:
    """What the mount knows of comes, without a listing; what is dropped is missing again, and only that; a change that is not uploaded stays."""
    async def scenario(disk: Warmed) -> None:
        result = await disk.downloads.warm([b'a'])
        assert (result.ok, result.files, disk.warmed) == (True, 2, ['a/1', 'a/2'])
        assert [type(operation) for operation in disk.asked if not isinstance(operation, (Warm, Head))] == []
        await disk.downloads.warm([b'b'])
        ino = disk.db.resolve([b'b'])
        assert ino is not None
        await disk.rewrite(disk.db.inode(ino), b'changed')
        dropped = await disk.downloads.drop([b'a', b'1'])
        assert dropped.entries == 1 and not disk.is_cached('a/1') and disk.is_cached('a/2')
        await disk.downloads.drop([b'a'])
        assert not disk.is_cached('a/2')
        await disk.downloads.warm([b'a'])
        await disk.downloads.drop()
        assert not disk.is_cached('a/1') and disk.staging.used > 0
        await disk.engine.flush()
        assert disk.body('b') == b'changed'
        with pytest.raises(NotFound):
            await disk.downloads.drop([b'nowhere'])
    play(scenario, files=small('a/1', 'a/2', 'b'))


def test_what_was_dropped_does_not_come_back_by_itself(play: Callable[..., None]) -> None:
    """Also where the warm-up had stopped for want of room: it was dropped to have some."""
    async def scenario(disk: Warmed) -> None:
        disk.cache_limit = 8 * MIB
        await disk.idle()
        assert disk.warmup.state == 'full'
        await disk.downloads.drop()
        disk.warmup.note_dropped()
        disk.asked.clear()
        await trio.sleep(3 * LOOK_SECONDS)
        assert disk.warmed == [] and disk.warmup.state == 'idle'
    play(scenario, files={f'{number:02}': MIB for number in range(10)})


def test_remote_changes_come_without_looking_at_the_rest(play: Callable[..., None]) -> None:
    """What a reload brought new or changed is fetched, and only that."""
    async def scenario(disk: Warmed) -> None:
        await disk.idle()
        disk.asked.clear()
        disk.put('b', b'another body')
        disk.put('d/new', b'new')
        await disk.remote.reload()
        await disk.rest()
        assert sorted(disk.warmed) == ['b', 'd/new'] and all(map(disk.is_cached, disk.warmed))
    play(scenario, files=small('a', 'b', 'c'))


def test_too_many_changes_mean_everything_again(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of changed files is bounded: beyond it the whole tree is walked."""
    monkeypatch.setattr(warmup, 'MAX_CHANGED', 3)

    async def scenario(disk: Warmed) -> None:
        await disk.idle()
        disk.asked.clear()
        for number in range(5):
            disk.put(f'n{number}', b'new')
        await disk.remote.reload()
        await disk.rest()
        assert disk.warmed == ['a', *(f'n{number}' for number in range(5))]
    play(scenario, files=small('a'))


# --- what is being read goes first ------------------------------------------------------------------------------------------------------

def test_the_rest_of_a_file_that_is_read_and_then_its_directory_go_first(play: Callable[..., None]) -> None:
    """While the walk is at the beginning, a reader at the end gets what lies around it."""
    async def scenario(disk: Warmed) -> None:
        hold = trio.Event()

        async def slow(operation: Operation[Any]) -> None:
            if isinstance(operation, Warm) and operation.items[0].key.startswith(PREFIX + 'a/'):
                await hold.wait()

        disk.before = slow
        disk.begin()
        await trio.sleep(1)
        begun = len(disk.warmed)
        assert all(key.startswith('a/') for key in disk.warmed)
        disk.warmup.note_read(disk.inode_at(b'z', b'read').ino)
        await trio.sleep(1)
        assert disk.warmed[begun:] == ['z/read', 'z/1', 'z/2', 'z/read']
        assert disk.is_cached('z/1') and not disk.is_cached('y/0')
        hold.set()
        await disk.rest()
        assert disk.is_cached('y/0') and disk.is_cached('a/9')
    many = {f'a/{number}': b'a' for number in range(cache_filling.BATCH_FILES * (cache_filling.RUNNERS + 1))}
    play(scenario, files={**many, **small('y/0', 'z/1', 'z/2', 'z/read')})


def test_a_read_that_had_to_wait_is_noted(play: Callable[..., None]) -> None:
    """The block reader tells which file, once the block is here; a read from the cache is not told."""
    async def scenario(disk: Warmed) -> None:
        noted: list[int] = []
        inode = disk.inode_at(b'f')
        disk.fs.contents._blocks._on_miss = noted.append
        for _ in range(2):
            fh = await disk.fs.open(inode.ino, os.O_RDONLY)
            assert await disk.fs.read(fh, 0, 10) == b'f'
            await disk.fs.release(fh)
        assert noted == [inode.ino] and disk.is_cached('f')
    play(scenario, files=small('f'))


# --- room -------------------------------------------------------------------------------------------------------------------------------

def test_it_stops_before_the_cache_is_full_and_evicts_nothing(play: Callable[..., None]) -> None:
    """Within SHARE of the present limit; the first files stay; the state says full. With more room the rest follows."""
    async def scenario(disk: Warmed) -> None:
        disk.cache_limit = 10 * MIB
        result = await disk.idle()
        assert result.ok and result.files == 7 and '7 of 12 files' in result.message and '--cache-size' in result.message
        assert disk.cache.volume() <= cache_filling.SHARE * disk.cache_limit
        assert [number for number in range(12) if disk.is_cached(f'{number:02}')] == list(range(7))
        assert disk.warmup.state == 'full' and disk.download_tasks()[0]['status'] == 'Success'
        disk.asked.clear()
        await trio.sleep(10 * LOOK_SECONDS)
        disk.warmup.note_read(disk.inode_at(b'11').ino)
        await trio.sleep(LOOK_SECONDS)
        assert disk.asked == []
        disk.cache_limit = 20 * MIB
        await trio.sleep(LOOK_SECONDS + 1)
        assert disk.warmup.state == 'idle' and all(disk.is_cached(f'{number:02}') for number in range(12))
    play(scenario, files={f'{number:02}': MIB for number in range(12)})


def test_a_file_that_does_not_fit_is_left_out_whole(play: Callable[..., None]) -> None:
    """Not half of it; the smaller ones behind it come."""
    async def scenario(disk: Warmed) -> None:
        disk.cache_limit = 24 * MIB
        await disk.idle()
        assert not disk.is_cached('big') and disk.is_cached('small') and disk.warmup.state == 'full'
        assert all(item.key == f'{PREFIX}small' for operation in disk.asked if isinstance(operation, Warm) for item in operation.items)
    play(scenario, files={'big': 20 * MIB, 'small': 1000})


def test_a_big_file_comes_in_ranges_and_only_what_is_missing(play: Callable[..., None]) -> None:
    """Ranges of at most RANGE_BLOCKS that leave out what a reader brought."""
    async def scenario(disk: Warmed) -> None:
        known = disk.journal.known('big')
        assert known is not None
        source = disk.workers.context.store.get(f'{PREFIX}big', 5 * MIB, 7 * MIB)
        disk.cache.store(f'{PREFIX}big', known.etag, 5, source)
        result = await disk.idle()
        ranges = [(item.start, item.count) for operation in disk.asked if isinstance(operation, Warm) for item in operation.items]
        assert ranges == [(0, 5), (7, 16), (23, 16), (39, 2)]
        assert (result.files, result.bytes) == (1, 40 * MIB + 5)
        assert not disk.cache.missing(f'{PREFIX}big', known.etag, range(41))
        assert disk.warmup.progress()['fetchedBytes'] == 38 * MIB + 5
    play(scenario, files={'big': 40 * MIB + 5})


# --- errors -----------------------------------------------------------------------------------------------------------------------------

def test_an_outage_is_waited_out_with_few_requests(play: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    """Tries at growing distances, two log lines, and everything is there in the end. Who waits is told the cause after a while."""
    async def scenario(disk: Warmed) -> None:
        disk.failure = RemoteUnavailable('the store is away')
        began = trio.current_time()
        result = await disk.idle()
        assert (result.ok, result.message) == (False, 'the store is away')
        assert trio.current_time() - began == pytest.approx(PATIENCE_SECONDS, abs=2)
        await trio.sleep(3600)
        assert len(disk.asked) < 80
        disk.failure = None
        await trio.sleep(61)
        assert disk.is_cached('f') and disk.warmup.state == 'idle'
        assert [record.levelname for record in caplog.records if record.name == 'ctxfs.sync.cache_filling'] == ['INFO', 'INFO']
    with caplog.at_level('INFO'):
        play(scenario, files=small('f'))


def test_objects_that_changed_meanwhile_are_no_failure(play: Callable[..., None]) -> None:
    """Gone, or another version: the next look at the bucket tells what became of them."""
    async def scenario(disk: Warmed) -> None:
        disk.workers.context.store.delete(f'{PREFIX}gone')
        disk.put('other', b'another version')
        result = await disk.idle()
        assert (result.ok, result.files, result.message) == (True, 1, '')
        assert disk.is_cached('stays') and disk.download_tasks()[0]['status'] == 'Success'
    play(scenario, files=small('gone', 'other', 'stays'))


def test_refused_files_are_told_and_do_not_stop_the_others(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The task fails with the number and the first cause; the rest is there."""
    async def scenario(disk: Warmed) -> None:
        store = disk.workers.context.store
        get = store.get

        def refusing(key: str, *args: Any, **kwargs: Any) -> bytes:
            if key.endswith('secret'):
                raise Denied(f'no right to read {key}')
            return get(key, *args, **kwargs)

        monkeypatch.setattr(store, 'get', refusing)
        result = await disk.idle()
        assert not result.ok and 'no right to read' in result.message
        task, = disk.download_tasks()
        assert task['status'] == 'Failed' and task['errorMessage'].startswith('1 files could not be downloaded: no right')
        assert disk.is_cached('a') and disk.is_cached('z')
    play(scenario, files=small('a', 'secret', 'z'))


def test_wrong_credentials_are_not_tried_for_every_file(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """After MAX_FAILED refusals the warm-up gives up."""
    monkeypatch.setattr(cache_filling, 'MAX_FAILED', 40)
    monkeypatch.setattr(cache_filling, 'RUNNERS', 1)

    async def scenario(disk: Warmed) -> None:
        disk.failure = Denied('the key is not valid')
        result = await disk.idle()
        assert not result.ok and len(disk.asked) <= 4
    play(scenario, files={f'{number:03}': b'x' for number in range(10 * cache_filling.BATCH_FILES)})


# --- asked for --------------------------------------------------------------------------------------------------------------------------

def test_a_download_takes_over_a_path_and_only_that(play: Callable[..., None]) -> None:
    """Names and content below it; elsewhere neither, also with automatic download off."""
    async def scenario(disk: Warmed) -> None:
        disk.put('d/new', b'new')
        disk.put('d/old', b'another body')
        disk.put('e/new', b'not asked for')
        result = await disk.downloads.download([b'd'])
        assert (result.ok, result.files, result.bytes, result.message) == (True, 3, 3 + 12 + 6, '')
        assert all(map(disk.is_cached, ('d/new', 'd/old', 'd/e/f'))) and not disk.is_cached('e/old')
        assert disk.db.resolve([b'e', b'new']) is None
        task, = disk.download_tasks()
        assert (task['status'], task['filesDone'], task['filesTotal']) == ('Success', 3, 3)
        disk.asked.clear()
        assert (await disk.downloads.download([b'd', b'new'])).files == 1
        assert disk.warmed == ['d/new']
    play(scenario, files=small('d/old', 'e/old') | {'d/e/f': b'deeper'}, policy=MANUAL)


def test_a_download_keeps_local_changes(play: Callable[..., None]) -> None:
    """A file that was changed here stays as it is, whatever the bucket has; so does one that was never uploaded."""
    async def scenario(disk: Warmed) -> None:
        await disk.rewrite(disk.inode_at(b'both'), b'mine')
        mine = await disk.save(b'mine', b'only here')
        disk.put('both', b'theirs, and longer')
        assert (await disk.downloads.download()).ok
        for inode, body in ((disk.inode_at(b'both'), b'mine'), (mine, b'only here')):
            fh = await disk.fs.open(inode.ino, os.O_RDONLY)
            assert await disk.fs.read(fh, 0, 100) == body
            await disk.fs.release(fh)
    play(scenario, files=small('both', 'other'), policy=MANUAL)


@pytest.mark.parametrize(('names', 'text'), [([b'nope'], '/nope is neither in the bucket nor in the mount'),
                                             ([b'.ctxfs', b'index'], "ctxfs's own"), ([b'odd'], 'cannot be shown: ')])
def test_a_path_that_is_nowhere_is_an_error_that_names_it(play: Callable[..., None], names: list[bytes], text: str) -> None:
    """Also where the bucket has something that no file system can show."""
    async def scenario(disk: Warmed) -> None:
        with pytest.raises(NotFound, match=text):
            await disk.downloads.download(names)
        assert disk.download_tasks()[0]['status'] == 'Failed'
    play(scenario, files=small('f') | {'odd/': b'content'}, policy=MANUAL)


def test_a_download_that_does_not_fit_says_how_much_does(play: Callable[..., None]) -> None:
    """It is done as far as there is room, which is no failure; what was cached before may go for it."""
    async def scenario(disk: Warmed) -> None:
        disk.cache_limit = 10 * MIB
        result = await disk.downloads.download()
        assert result.ok and result.files == 8
        assert result.message.startswith(f'8 of 12 files ({8 * MIB} of {12 * MIB} bytes) are in the cache') and '--cache-size' in result.message
        assert (await disk.downloads.download([b'11'])).files == 1 and disk.is_cached('11')
    play(scenario, files={f'{number:02}': MIB for number in range(12)}, policy=MANUAL)


def test_a_download_from_a_store_that_is_away_ends_with_the_cause(play: Callable[..., None]) -> None:
    """After a bounded time, and the next one works."""
    async def scenario(disk: Warmed) -> None:
        async def away(operation: Operation[Any]) -> None:
            if isinstance(operation, Warm):
                raise RemoteUnavailable('the store is away')

        disk.before = away
        began = trio.current_time()
        result = await disk.downloads.download()
        assert (result.ok, result.message) == (False, 'the store is away') and trio.current_time() - began < 70
        disk.before = None
        assert (await disk.downloads.download()).ok
    play(scenario, files=small('f'), policy=MANUAL)


def test_a_download_goes_on_without_the_client_that_asked(play: Callable[..., None]) -> None:
    """Only the waiting is cancelled."""
    async def scenario(disk: Warmed) -> None:
        hold = trio.Event()

        async def slow(operation: Operation[Any]) -> None:
            await hold.wait()

        disk.before = slow
        with trio.move_on_after(1):
            await disk.downloads.download()
        hold.set()
        await trio.sleep(1)
        assert disk.is_cached('f') and disk.download_tasks()[0]['status'] == 'Success'
    play(scenario, files=small('f'), policy=MANUAL)


# --- the walk ---------------------------------------------------------------------------------------------------------------------------

def test_a_walk_meets_every_clean_file_once(play: Callable[..., None]) -> None:
    """Directories longer than a page and deep ones; totals agree with what is met, of all and of a part."""
    async def scenario(disk: Warmed) -> None:
        files = CleanFiles(disk.db.path)
        try:
            for root, prefix in ((ROOT_INO, ''), (disk.inode_at(b'deep').ino, 'deep/')):
                walk, met = Walk(files, root), []
                while not walk.is_done:
                    met += walk.step().files
                expected = sorted(key for key in disk.keys() if key.startswith(prefix))      # noqa: SIM118 - no dict
                assert sorted(file.key for file in met) == expected
                assert files.totals(root) == (len(expected), sum(file.size for file in met))
        finally:
            files.close()
    wide = {f'wide/{number:04}': b'x' for number in range(2 * PAGE + 1)}
    deep = {'/'.join(['deep'] * depth) + '/f': b'xy' for depth in range(1, 40)}
    play(scenario, files=wide | deep | {f'd{number:04}/f': b'z' for number in range(PAGE + 2)})


# --- in the worker ------------------------------------------------------------------------------------------------------------------------

class Cancelled(Channel):
    is_cancelled = True


@pytest.fixture
def disk(tmp_path: Path) -> Any:
    made: list[Warmed] = []

    async def main() -> None:
        made.append(Warmed(tmp_path))

    trio.run(main)
    yield made[0]
    made[0].close()


def items(disk: Warmed, *bodies: bytes) -> list[WarmItem]:
    return [WarmItem(key=f'{PREFIX}{number}', etag=disk.put(str(number), body).etag, size=len(body)) for number, body in enumerate(bodies)]


def test_a_request_stays_within_its_budget(disk: Warmed) -> None:
    """An item that does not fit is skipped, one behind it that does is not; with counts_cached also what is there costs."""
    asked = items(disk, b'x' * 10, b'y' * 100, b'z' * 20)
    done = warm(disk.workers.context, Warm(items=asked, budget=30), Channel())
    assert (done.done, done.fetched, done.requests, done.skipped, done.cause) == (3, 30, 2, [1], None)
    done = warm(disk.workers.context, Warm(items=asked, budget=30, counts_cached=True), Channel())
    assert (done.done, done.fetched, done.requests, done.skipped) == (3, 0, 0, [1])
    done = warm(disk.workers.context, Warm(items=asked, budget=100), Channel())
    assert (done.fetched, done.requests, done.skipped) == (100, 1, [])


def test_a_request_stops_where_all_that_follows_would_fail_too(disk: Warmed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer ends it, with what was done; a cancelled one ends, too, without a cause."""
    asked = items(disk, b'a', b'b', b'c')
    store = disk.workers.context.store
    get = store.get

    def failing(key: str, *args: Any, **kwargs: Any) -> bytes:
        if key == asked[1].key:
            raise RemoteUnavailable('no answer')
        return get(key, *args, **kwargs)

    monkeypatch.setattr(store, 'get', failing)
    done = warm(disk.workers.context, Warm(items=asked, budget=100), Channel())
    assert (done.done, done.fetched) == (1, 1) and done.cause is not None and done.cause.message == 'no answer'
    done = warm(disk.workers.context, Warm(items=asked, budget=100), Cancelled())
    assert (done.done, done.fetched, done.cause) == (1, 0, None)


def test_a_request_makes_way_for_operations_that_somebody_waits_for(disk: Warmed) -> None:
    """It waits for their end, and not for its own kind."""
    attended, asked = disk.workers.context.attended, items(disk, b'a')
    with disk.workers.context.attend(Warm(items=asked, budget=1)):
        assert attended._is_quiet.is_set()
    began, ended = threading.Event(), threading.Event()

    def other() -> None:
        with attended:
            began.set()
            ended.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    try:
        assert began.wait(10) and not attended._is_quiet.is_set()
        attended.make_way(0.01)     # bounded: it goes on beside one that takes long
    finally:
        ended.set()
        thread.join()
    attended.make_way(60)
    assert attended._is_quiet.is_set()


def test_blocks_that_another_operation_fetches_are_waited_for() -> None:
    """One GET for two operations that want the same; where the first fails the second fetches itself."""
    flights, cached, log = Flights(), set(), []
    entered, release = threading.Event(), threading.Event()

    def missing(blocks: Any) -> list[int]:
        return [block for block in blocks if block not in cached]

    def slow(blocks: Any) -> int:
        entered.set()
        release.wait(10)
        log.append(('slow', list(blocks)))
        if 9 in blocks:
            raise RemoteUnavailable('lost')
        cached.update(blocks)
        return len(blocks)

    def quick(blocks: Any) -> int:
        log.append(('quick', list(blocks)))
        cached.update(blocks)
        return len(blocks)

    def first(blocks: range, errors: list[CtxfsError]) -> None:
        try:
            flights.fetch('k', 'e', blocks, missing=missing, get=slow)
        except CtxfsError as error:
            errors.append(error)

    for blocks, expected, second in ((range(4), 2, range(2, 6)), (range(8, 10), 2, range(8, 10))):
        errors: list[CtxfsError] = []
        entered.clear()
        release.clear()
        thread = threading.Thread(target=first, args=(blocks, errors))
        thread.start()
        assert entered.wait(10)
        threading.Timer(0.05, release.set).start()
        assert flights.fetch('k', 'e', second, missing=missing, get=quick) == expected
        thread.join()
        assert bool(errors) == (9 in blocks)
    assert log == [('quick', [4, 5]), ('slow', [0, 1, 2, 3]), ('slow', [8, 9]), ('quick', [8, 9])]
    assert not flights._under_way


# --- admission ----------------------------------------------------------------------------------------------------------------------------

class Place:
    """A worker as the gate sees it."""

    def __init__(self) -> None:
        self.load = self.background = self.bulk = 0


async def admitted(gate: Gate, priority: Priority) -> bool:
    with trio.move_on_after(0):
        await gate.enter(priority)
        return True
    return False


def test_the_warm_up_is_admitted_last() -> None:
    """Not while a program waits, one at a time beside uploads, and places are kept for readers whatever happens."""
    async def main() -> None:
        gate, place = Gate(16), Place()
        gate.workers.append(place)  # type: ignore[arg-type]
        assert await admitted(gate, Priority.INTERACTIVE) and not await admitted(gate, Priority.IDLE)
        assert await admitted(gate, Priority.BULK)      # that somebody wants
        gate.leave(place, Priority.BULK)  # type: ignore[arg-type]
        gate.leave(place, Priority.INTERACTIVE)  # type: ignore[arg-type]
        assert await admitted(gate, Priority.BACKGROUND)
        assert await admitted(gate, Priority.IDLE) and not await admitted(gate, Priority.IDLE)
        gate.leave(place, Priority.BACKGROUND)  # type: ignore[arg-type]
        assert await admitted(gate, Priority.IDLE)
        while await admitted(gate, Priority.BACKGROUND) or await admitted(gate, Priority.BULK):
            assert place.load <= 12
        assert sum([await admitted(gate, Priority.INTERACTIVE) for _ in range(20)]) == 16 - place.background - place.bulk
    trio.run(main)


def test_a_waiting_warm_up_begins_when_the_reader_has_its_answer() -> None:
    """The place is handed over at once; an upload that waits goes before it."""
    async def main() -> None:
        gate, place, order = Gate(4), Place(), []
        gate.workers.append(place)  # type: ignore[arg-type]
        for _ in range(4):
            await gate.enter(Priority.INTERACTIVE)

        async def enter(priority: Priority) -> None:
            await gate.enter(priority)
            order.append(priority)

        async with trio.open_nursery() as nursery:
            for priority in (Priority.IDLE, Priority.BULK, Priority.BACKGROUND):
                nursery.start_soon(enter, priority)
                await trio.testing.wait_all_tasks_blocked()
            for _ in range(4):
                gate.leave(place, Priority.INTERACTIVE)  # type: ignore[arg-type]
                await trio.testing.wait_all_tasks_blocked()
            assert order[:2] == [Priority.BACKGROUND, Priority.BULK]
            gate.leave(place, Priority.BULK)  # type: ignore[arg-type]
        assert order[2] == Priority.IDLE
    trio.run(main)
