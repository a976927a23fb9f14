"""The pool with real worker processes on a real store: every promise of ctxfs.sync.pool."""
from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from ctxfs import errors
from ctxfs.records import Attrs, IndexRecord
from ctxfs.storage.block_cache import MIN_LIMIT, BlockCache
from ctxfs.storage.stores import open_store
from ctxfs.sync import same_code
from ctxfs.sync.abort_slots import AbortSlot
from ctxfs.sync.pool import STREAM_WINDOW, Priority, TransferPool, open_pool
from ctxfs.sync.protocol import (
    Adopt,
    AdoptItem,
    Check,
    Fetch,
    Head,
    Hydrate,
    ListPages,
    Probe,
    PutDone,
    PutFile,
    ReadIndex,
    WorkerOptions,
    WriteSegment,
)

ATTRS = Attrs(mode=0o100644, uid=0, gid=0, mtime_ns=1, atime_ns=1, ctime_ns=1)
ROOT = Path(__file__).parents[2]


class World:
    """A bucket directory, a cache directory, and pools on them. `held` uploads wait at a FIFO until they are let go."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / 'bucket').mkdir()
        self.url = f'file://{directory}/bucket?fsync=no'
        self.store = open_store(self.url)
        self._fifos = 0

    def options(self, **changes: Any) -> WorkerOptions:
        return WorkerOptions(**{'store_url': self.url, 'cache_dir': str(self.directory / 'cache'), 'cache_limit': 1 << 30, 'host': 'h',
                                'threads': 4, **changes})

    @asynccontextmanager
    async def pool(self, *, workers: int = 1, keep_fds: tuple[int, ...] = (), **changes: Any) -> AsyncIterator[TransferPool]:
        with trio.fail_after(60):
            async with open_pool(self.options(**changes), workers=workers, keep_fds=keep_fds) as pool:
                yield pool

    def stage(self, name: str, data: bytes) -> str:
        (self.directory / name).write_bytes(data)
        return str(self.directory / name)

    def held_put(self, slot: int = -1) -> tuple[PutFile, str]:
        """An upload that waits in the worker's open() until somebody opens the FIFO for writing; it then ends as aborted."""
        self._fifos += 1
        path = str(self.directory / f'fifo{self._fifos}')
        os.mkfifo(path)
        return PutFile(key='held', path=path, size=1, attrs=ATTRS, revision=1, abort_slot=slot), path


async def let_go(path: str) -> None:
    """Wait until a worker has the FIFO open, and end its wait."""
    await eventually(lambda: _open_fifo(path))


def _open_fifo(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:  # ENXIO: no reader yet
        return False
    return True


def _is_in_open(pids: list[int]) -> bool:
    """Whether a thread of one of these waits for somebody to open the other end of a FIFO (fifo_open in Linux)."""
    return any(task.read_text() == 'wait_for_partner' for pid in pids for task in Path(f'/proc/{pid}/task').glob('*/wchan'))


async def eventually(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not is_so():
            await trio.sleep(0.005)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def run(body: Callable[[], Awaitable[None]]) -> None:
    trio.run(body)


def is_alive(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def test_a_file_goes_up_is_listed_adopted_and_comes_back(world: World) -> None:
    """One file through every operation that carries content."""
    async def body() -> None:
        async with world.pool() as pool:
            data = os.urandom(3 << 20)
            path = world.stage('s', data)
            done = await pool.call(PutFile(key='c/a', path=path, size=len(data), attrs=ATTRS, revision=1))
            async with pool.stream(ListPages(prefix='c/')) as pages:
                listed = [info async for page in pages for info in page.objects]
            assert [(info.key, info.etag) for info in listed] == [('c/a', done.etag)] and pages.result.objects == 1
            adopted = await pool.call(Adopt(items=[AdoptItem(path=path, key='c/a', etag=done.etag, size=len(data))]))
            assert adopted.adopted == 1
            assert (await pool.call(Fetch(key='c/a', etag=done.etag, size=len(data), count=9))).fetched == 0
            hydrated = await pool.call(Hydrate(key='c/a', etag=done.etag, size=len(data), path=path + '2'))
            assert hydrated.fetched == 0 and Path(path + '2').read_bytes() == data
            item, = await pool.call(Head(keys=['c/a']))
            assert item.stamp is not None and item.stamp.sha256 == done.sha256
            assert 'conditional_create' in (await pool.call(Probe())).capabilities
    run(body)


def test_errors_arrive_as_the_class_that_the_store_raised(world: World) -> None:
    """Permanent, conditional and batch errors keep their class and message."""
    async def body() -> None:
        async with world.pool() as pool:
            with pytest.raises(errors.NotFound):
                await pool.call(Fetch(key='none', etag='"e"', size=1))
            with pytest.raises(errors.NotFound, match='nowhere'):
                await pool.call(PutFile(key='k', path='/nowhere', size=1, attrs=ATTRS, revision=1))
            with pytest.raises(TypeError):
                await pool.call(ListPages(prefix=''))
    run(body)


def test_a_store_that_cannot_be_opened_fails_the_calls_with_the_reason(world: World) -> None:
    """Waiting callers and later ones get the start's error instead of waiting for ever."""
    async def body() -> None:
        async with world.pool(store_url='s3:nonsense') as pool:
            for _ in range(2):
                with pytest.raises(errors.UsageError):
                    await pool.call(Check())
    run(body)


def test_answers_come_out_of_order(world: World) -> None:
    """A call that waits in the worker does not delay another one."""
    async def body() -> None:
        async with world.pool() as pool, trio.open_nursery() as nursery:
            operation, fifo = world.held_put()
            nursery.start_soon(pool.call, operation)
            await eventually(lambda: pool.statistics().in_flight == 1)
            await pool.call(Check())
            assert pool.statistics().in_flight == 1
            await let_go(fifo)
    run(body)


def test_background_work_never_takes_the_last_thread(world: World) -> None:
    """With 4 threads 3 uploads run, the 4th waits; an interactive call goes through; a place that frees goes to the interactive first."""
    async def body() -> None:
        async with world.pool() as pool, trio.open_nursery() as nursery:
            held = [world.held_put() for _ in range(5)]
            for number, (operation, _) in enumerate(held[:4], 1):
                nursery.start_soon(pool.call, operation)
                await eventually(lambda: pool.statistics().in_flight + pool.statistics().waiting == number)  # noqa: B023
            await eventually(lambda: (pool.statistics().in_flight, pool.statistics().waiting) == (3, 1))
            await pool.call(Check(), priority=Priority.INTERACTIVE)
            order: list[str] = []

            async def note(name: str, priority: Priority) -> None:
                await pool.call(Check(), priority=priority)
                order.append(name)

            nursery.start_soon(lambda: pool.call(held[4][0], priority=Priority.INTERACTIVE))
            await eventually(lambda: pool.statistics().in_flight == 4)
            nursery.start_soon(note, 'background', Priority.BACKGROUND)
            await eventually(lambda: pool.statistics().waiting == 2)
            nursery.start_soon(note, 'interactive', Priority.INTERACTIVE)
            await eventually(lambda: pool.statistics().waiting == 3)
            await let_go(held[0][1])
            await eventually(lambda: bool(order))
            assert order == ['interactive']
            for _, fifo in held[1:]:
                await let_go(fifo)
            await eventually(lambda: len(order) == 2)
    run(body)


def test_a_cancelled_caller_frees_its_place_only_when_the_worker_has_ended(world: World) -> None:
    """The upload's slot is set at once and not reused before the answer; a cancelled waiter leaves the queue."""
    async def body() -> None:
        async with world.pool() as pool:
            slot: AbortSlot = pool.slots.acquire()
            operation, fifo = world.held_put(slot.index)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.call, operation)
                await eventually(lambda: _is_in_open(pool.statistics().pids))      # where it has looked at its slot
                nursery.cancel_scope.cancel()
            assert slot.is_aborted
            slot.release()
            assert pool.slots.in_use() == 1 and pool.statistics().in_flight == 1
            await let_go(fifo)
            await eventually(lambda: pool.slots.in_use() == 0 and pool.statistics().in_flight == 0)
            async with trio.open_nursery() as nursery:
                held = [world.held_put() for _ in range(3)]
                for waiting, _ in held:
                    nursery.start_soon(pool.call, waiting)
                await eventually(lambda: pool.statistics().in_flight == 3)
                with trio.move_on_after(0.05):
                    await pool.call(Check())
                assert pool.statistics().waiting == 0
                for _, fifo in held:
                    await let_go(fifo)
            await pool.call(Check())
    run(body)


def test_an_abort_reaches_an_upload_that_already_runs(world: World) -> None:
    """The daemon sets the byte while the worker is between open and read."""
    async def body() -> None:
        async with world.pool() as pool, trio.open_nursery() as nursery:
            with pool.slots.acquire() as slot:
                path = str(world.directory / 'fifo')
                os.mkfifo(path)
                results: list[PutDone] = []

                async def put() -> None:
                    results.append(await pool.call(PutFile(key='k', path=path, size=0, attrs=ATTRS, revision=1, abort_slot=slot.index)))

                nursery.start_soon(put)
                await eventually(lambda: pool.statistics().in_flight == 1)
                slot.abort()
                await let_go(path)
                await eventually(lambda: bool(results))
            assert results[0].is_aborted and world.store.list('').objects == []
    run(body)


def test_a_killed_worker_fails_its_calls_and_is_replaced(world: World) -> None:
    """RemoteUnavailable for what it had, and the next call is served by another process."""
    async def body() -> None:
        async with world.pool(workers=2) as pool:
            await pool.call(Check())
            for _ in range(3):
                before = set(pool.statistics().pids)
                failed: list[Exception] = []
                held = [world.held_put() for _ in range(4)]

                async def put(operation: PutFile, failed: list[Exception] = failed) -> None:
                    try:
                        await pool.call(operation)
                    except errors.RemoteUnavailable as error:
                        failed.append(error)

                async with trio.open_nursery() as nursery:
                    for operation, _ in held:
                        nursery.start_soon(put, operation)
                    await eventually(lambda: pool.statistics().in_flight == 4)
                    for pid in before:
                        os.kill(pid, signal.SIGKILL)
                assert len(failed) == 4
                await pool.call(Check())
                assert not before & set(pool.statistics().pids)
            assert pool.statistics().restarts >= 3
    run(body)


def test_a_crash_point_kills_one_worker_and_the_retry_succeeds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker dies after the commit; the retry in its replacement meets its own object: recovered, no conflict."""
    monkeypatch.setenv('CTXFS_CRASH_POINT', 'worker-put-after-commit')

    async def body() -> None:
        async with world.pool() as pool:
            operation = PutFile(key='k', path=world.stage('s', b'data'), size=4, attrs=ATTRS, revision=1)
            operation = PutFile(**{**{name: getattr(operation, name) for name in operation.__struct_fields__},
                                   'condition': type(operation.condition)(absent=True)})
            with pytest.raises(errors.RemoteUnavailable):
                await pool.call(operation)
            assert (await pool.call(operation)).is_recovered
    run(body)


def test_a_listing_streams_every_key_once(world: World) -> None:
    """All pages, in key order."""
    keys = [f'c/{number:05}' for number in range(2100)]
    (world.directory / 'bucket/c').mkdir()
    for key in keys:
        (world.directory / 'bucket' / key).touch()

    async def body() -> None:
        async with world.pool() as pool:
            async with pool.stream(ListPages(prefix='c/')) as pages:
                assert [info.key async for page in pages for info in page.objects] == keys
            assert pages.result.objects == len(keys)
    run(body)


def test_a_slow_reader_holds_the_worker_back_and_one_that_leaves_frees_its_place(world: World) -> None:
    """The worker is never more than the window ahead; leaving early ends the operation there."""
    async def body() -> None:
        async with world.pool() as pool:
            await pool.call(WriteSegment(prefix='c/', records=[IndexRecord(path=f'{number:05}', changed_ns=1) for number in range(20_000)]))
            count = 0
            async with pool.stream(ReadIndex(prefix='c/')) as parts:
                async for part in parts:
                    count += len(part.records())
                    await trio.sleep(0.02)
                    assert len(parts._pending.parts) <= STREAM_WINDOW
            assert count == 20_000
            async with pool.stream(ReadIndex(prefix='c/')) as parts:
                async for _ in parts:
                    break
            await eventually(lambda: pool.statistics().in_flight == 0)
    run(body)


def test_the_index_is_written_and_streamed_through_workers(world: World) -> None:
    """Segments of 2,500 records come back merged in parts, with the state at the end; an error of a stream is raised."""
    async def body() -> None:
        async with world.pool() as pool:
            records = [IndexRecord(path=f'{number:05}', changed_ns=1, attrs=ATTRS) for number in range(2500)]
            written = await pool.call(WriteSegment(prefix='c/', records=records))
            async with pool.stream(ReadIndex(prefix='c/')) as parts:
                assert [record async for part in parts for record in part.records()] == records
            assert parts.result.names == [written.name]
            os.rename(world.directory / 'bucket', world.directory / 'away')
            with pytest.raises(errors.CtxfsError):
                async with pool.stream(ListPages(prefix='c/')) as pages:
                    async for _ in pages:
                        pass
                    pages.result  # noqa: B018  (raises what the operation raised)
                    raise errors.NotFound('an absent bucket may also list as empty')
    run(body)


def test_the_cache_limit_reaches_the_workers(world: World) -> None:
    """A smaller limit evicts what is there."""
    async def body() -> None:
        async with world.pool() as pool:
            await pool.call(Check())
            cache = BlockCache(world.directory / 'cache', 1 << 30)
            for number in range(50):
                cache.store('k', 'e', number, bytes(1 << 20))
            pool.set_cache_limit(0)
            await eventually(lambda: cache.volume() <= MIN_LIMIT)
            cache.close()
    run(body)


def test_signals_of_the_terminal_do_not_end_a_worker(world: World) -> None:
    """Ctrl-C and a service manager's SIGTERM are the daemon's to handle; the workers finish the write-back."""
    async def body() -> None:
        async with world.pool() as pool:
            await pool.call(Check())
            pid, = pool.statistics().pids
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(pid, number)
            await pool.call(Check())
            assert pool.statistics().pids == [pid] and pool.statistics().restarts == 0
    run(body)


def test_leaving_the_pool_ends_the_workers_quickly_also_by_an_exception(world: World) -> None:
    """No process is left, and nobody waits for a worker that hangs."""
    async def body() -> None:
        pids: list[int] = []
        began = time.monotonic()
        async with world.pool(workers=2) as pool:
            await pool.call(Check())
            pids += pool.statistics().pids
        assert not any(map(is_alive, pids)) and time.monotonic() - began < 5
        with pytest.raises(Exception, match='Exceptions from Trio nursery'):  # an ExceptionGroup, which Python 3.10 does not name
            async with world.pool() as pool:
                await pool.call(Check())
                pids[:] = pool.statistics().pids
                raise RuntimeError('the daemon fails')
        assert not any(map(is_alive, pids))
    run(body)


DAEMON = """
import fcntl, os, sys, trio
from ctxfs.sync.pool import open_pool
from ctxfs.sync.protocol import Check, WorkerOptions
async def main():
    lock = os.open(sys.argv[3], os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    options = WorkerOptions(store_url=sys.argv[1], cache_dir=sys.argv[2], cache_limit=1 << 30, host='h')
    async with open_pool(options, workers=2, keep_fds=[lock]) as pool:
        await pool.call(Check())
        while pool.statistics().ready < 2:
            await trio.sleep(0.01)
        print(*pool.statistics().pids, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


def test_workers_die_with_a_killed_daemon_and_hold_its_lock_until_then(world: World) -> None:
    """kill -9 of the daemon: when the lock can be had, no worker is left that could change the bucket."""
    lock_path = world.directory / 'lock'
    with subprocess.Popen([sys.executable, '-c', DAEMON, world.url, str(world.directory / 'cache'), str(lock_path)],
                          stdout=subprocess.PIPE, cwd=ROOT) as daemon:
        assert daemon.stdout is not None
        pids = list(map(int, daemon.stdout.readline().split()))
        assert len(pids) == 2 and all(map(is_alive, pids))
        for pid in pids:
            assert os.readlink(f'/proc/{pid}/cwd') == '/' and os.path.realpath(lock_path) in {
                os.path.realpath(link) for link in Path(f'/proc/{pid}/fd').iterdir()}
        daemon.kill()
        with open(lock_path, 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A process that is on its way out has closed its files before it is gone: it can do nothing any more.
            assert not any(is_alive(pid) and os.listdir(f'/proc/{pid}/fd') for pid in pids)


def test_a_worker_of_another_version_refuses_to_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an upgrade, when one that has ended is started anew: whoever asks is told what to do, at once. What still runs goes on."""
    async def main() -> None:
        async with world.pool() as pool:
            await pool.call(Check())
            monkeypatch.setattr(same_code, 'MINE', 'of an old version')
            os.kill(pool.statistics().pids[0], signal.SIGKILL)
            with pytest.raises(errors.RemoteUnavailable, match=r'upgraded while this mount runs.*unmount, and mount again'):
                while True:
                    with suppress(errors.Unanswered):
                        await pool.call(Check())
                    await trio.sleep(0.05)
    trio.run(main)
