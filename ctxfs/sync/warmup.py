"""The warm-up: while mounted, the content of all clean files comes into the block cache in the background, so that later reads are local.

Owns what is fetched and in which order: once everything, by directories; then what remote changes bring; and before all that, whatever a
program just had to wait for, with the files beside it. It must not know how content gets into the cache (cache_filling.py).

    waiting ─ the tree is complete ▶ running ◀─ changed files, room again, the policy allows it again ─▶ idle (or full: not everything fits)
    off: the policy says autoDownload false, nothing comes but what is read;  paused: nothing begins

What is cached is looked up by the workers and costs no request, so a mount that has it all costs none. Nothing is evicted for it. Its
requests are admitted last (admission.py): none begins while a program waits for an answer, one at a time beside uploads; and while programs
use the mount one begins a second. Measured on two busy cores that the S3 server shares, against the same mount paused: reads that have to wait
1.3 times as long, 100 creations 1.4 to 1.5 times; without yielding 4 and 6 times.
Files whose content is only here are left alone: they are not clean.
"""
from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

import trio

from ctxfs.errors import CtxfsError
from ctxfs.rules import Rules
from ctxfs.storage.block_cache import BlockCache
from ctxfs.storage.clean_files import CleanFiles, Totals, Walk
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.cache_filling import SHARE, Counts, Filling, Source, SpareRoom
from ctxfs.sync.clean_sources import InodeSource, WalkSource
from ctxfs.sync.engine import FlushResult
from ctxfs.sync.pool import Priority, TransferPool
from ctxfs.sync.tasks import SyncTask, TaskLog

log = logging.getLogger(__name__)

#: changed files remembered; more of them mean that everything is looked at again
MAX_CHANGED = 10_000
#: files that programs waited for; of more the oldest are forgotten
MAX_READS = 64
#: directories that are known to be in the cache because a program read in them
MAX_WARM = 1000
#: how often an idle warm-up looks whether there is room again, or the policy changed
LOOK_SECONDS = 15.0
#: and how much room: a tenth of the cache, else it would look through everything for a file or two
ROOM_SHARE = 0.1
PAUSE_SECONDS = 0.25
#: what lies beside a file that was read is fetched at least so long before the next read counts, with so many requests at a time
BESIDE_SECONDS = 2.0
BESIDE_RUNNERS = 2
#: a store that answers faster costs its readers no more than the requests of a warm-up would: what lies beside waits for quiet there
FAR_SECONDS = 0.004
#: a mount is quiet when programs asked nothing of it for so long; on a busy one a single request begins every so often
QUIET_SECONDS = 0.05
BUSY_SECONDS = 1.0
#: how long somebody who waits for the end waits for a store that does not answer
PATIENCE_SECONDS = 120.0


class Remote(Protocol):
    """The remote tree, as far as the warm-up needs it."""

    error: CtxfsError | None

    async def wait_complete(self) -> None: ...

    async def learn_attrs(self, inos: Sequence[int], *, priority: Priority, hold: Callable[[], Awaitable[object]] = ...) -> None: ...


class Warmup:
    """See the module docstring. `run` is a background task; `note_read` and `note_changed` may be called at any time and cost nothing."""

    def __init__(self, db: TreeDB, pool: TransferPool, cache: BlockCache, *, prefix: str, rules: Rules, tasks: TaskLog, remote: Remote,
                 is_paused: Callable[[], bool], activity: Callable[[], int]) -> None:
        self._db = db
        self._pool = pool
        self._cache = cache
        self._prefix = prefix
        self._rules = rules
        self._tasks = tasks
        self._remote = remote
        self._is_paused = is_paused
        self._activity = activity
        self._active = (0.0, -1)
        self._yielding = trio.Lock()
        self._room = SpareRoom(pool, cache)
        self._has_tree = self._has_ended = False
        self._wants_all = True
        self._changed: set[int] = set()
        self._reads: deque[int] = deque(maxlen=MAX_READS)
        self._warm: OrderedDict[int, None] = OrderedDict()
        self._woken = trio.Event()
        self._was_read = trio.Event()
        self._filling: Filling | None = None
        self._task: SyncTask | None = None
        self._is_busy = False
        self._is_short = False
        self._error = ''
        self._totals = Totals(0, 0)
        self._counts = Counts()
        self._beside = Counts()
        self._scope = trio.CancelScope()

    # --- what others tell -----------------------------------------------------------------------------------------------------------------

    @property
    def is_wanted(self) -> bool:
        """The policy in force lets content come by itself."""
        return self._rules.policy.download_policy.auto_download

    def note_read(self, ino: int) -> None:
        """A program had to wait for content of this file: the rest of it is wanted next, and then what lies beside it."""
        if self._has_tree and self.is_wanted and not self._is_short and (not self._reads or self._reads[-1] != ino):
            self._reads.append(ino)
            self._was_read.set()

    def note_changed(self, ino: int) -> None:
        """The bucket has content for this file that was not known before."""
        if not self._has_tree or not self.is_wanted or self._wants_all:
            return      # everything is going to be looked at anyway
        self._changed.add(ino)
        if len(self._changed) > MAX_CHANGED:
            self._changed.clear()
            self._wants_all = True
        self._warm.clear()
        self._woken.set()

    def note_dropped(self) -> None:
        """Somebody wanted room: what left the cache does not come back by itself."""
        self._warm.clear()
        self._is_short = False

    def end(self) -> None:
        """The mount is gone: nobody reads any more."""
        self._has_ended = True
        self._scope.cancel()

    # --- its life -------------------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until `end`, or cancelled."""
        with self._scope:
            await self._remote.wait_complete()
            self._has_tree = True
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_reads)
                while True:
                    await self._until_needed()
                    await self._guarded(self._one_pass)

    async def _until_needed(self) -> None:
        """Idle until there is something to do and the policy allows it."""
        while not (self.is_wanted and (self._wants_all or self._changed)):
            self._is_busy = False
            was_wanted = self.is_wanted
            with trio.move_on_after(LOOK_SECONDS):
                await self._woken.wait()
            self._woken = trio.Event()
            has_room = self._is_short and self._room.free() > ROOM_SHARE * self._pool.cache_limit
            self._wants_all = self._wants_all or has_room or not was_wanted
        self._is_busy = True

    async def _hold(self) -> None:
        while self._is_paused():        # noqa: ASYNC110 - the engine says that it is paused, not when that ends
            await trio.sleep(PAUSE_SECONDS)

    async def _make_way(self) -> None:
        """Until the mount is quiet, or for BUSY_SECONDS: the warm-up must not slow down who works, and must come to an end."""
        async with self._yielding:
            await self._hold()
            until = trio.current_time() + BUSY_SECONDS
            while (now := trio.current_time()) < until:
                since, count = self._active
                if count != (count_now := self._activity()):
                    self._active = since, count = now, count_now
                if (rest := since + QUIET_SECONDS - now) <= 0:
                    return
                await trio.sleep(max(rest, QUIET_SECONDS / 10))     # a rest too small to move the clock would never end

    async def _guarded(self, job: Callable[[CleanFiles], Awaitable[None]]) -> None:
        """Run a job on a reader of its own. A failure is kept for who asks; what is missing is fetched when it is read."""
        files = None
        try:
            files = await trio.to_thread.run_sync(CleanFiles, self._db.path)
            await job(files)
        except CtxfsError as error:
            self._error = str(error)
            log.info('the warm-up stops: %s', error)
        finally:
            if files is not None:
                files.close()

    async def _one_pass(self, files: CleanFiles) -> None:
        source, self._totals = await self._take(files)
        self._filling = filling = self._new_filling(source, Priority.IDLE, hold=self._make_way, note=self._note)
        self._counts, self._error, self._is_short = filling.counts, '', False
        try:
            await filling.run()
            self._error = filling.counts.error
        except CtxfsError as error:
            self._error = str(error)
        finally:    # also when the mount ends, which is no failure: what is missing is fetched when it is read
            self._is_short, self._filling = filling.is_short, None
            self._end_task()

    async def _take(self, files: CleanFiles) -> tuple[Source, Totals]:
        """What there is to do; it is not wanted any more from here on."""
        if self._wants_all:
            self._wants_all = False
            self._changed.clear()
            return WalkSource(Walk(files), self._learn), await trio.to_thread.run_sync(files.totals)
        inos, self._changed = sorted(self._changed), set()
        return InodeSource(files, inos, self._learn), await trio.to_thread.run_sync(files.totals_of, inos)

    def _new_filling(self, source: Source, priority: Priority, **more: Any) -> Filling:
        return Filling(self._pool, self._cache, source, self._room, prefix=self._prefix, priority=priority, **more)

    async def _learn(self, inos: Sequence[int]) -> None:
        await self._remote.learn_attrs(inos, priority=Priority.IDLE, hold=self._make_way)

    async def _learn_beside(self, inos: Sequence[int]) -> None:
        await self._remote.learn_attrs(inos, priority=Priority.BULK)

    # --- what is being read ---------------------------------------------------------------------------------------------------------------

    async def _follow_reads(self) -> None:
        while True:
            await self._was_read.wait()
            self._was_read = trio.Event()
            while self._reads and self.is_wanted:
                ino = self._reads.pop()     # the latest first: the others wait since longer, but somebody waits for this one now
                await self._guarded(partial(self._fetch_around, ino))

    async def _fetch_around(self, ino: int, files: CleanFiles) -> None:
        await self._fill_beside(InodeSource(files, [ino], self._learn_beside))
        for directory in await trio.to_thread.run_sync(files.directories_of, ino):
            if directory not in self._warm and await self._fill_beside(WalkSource(Walk(files, directory, is_deep=False), self._learn_beside)):
                self._warm[directory] = None
                if len(self._warm) > MAX_WARM:
                    self._warm.popitem(last=False)

    @property
    def _is_far(self) -> bool:
        """Nothing is known at first: then it counts as far."""
        return min(self._counts.least, self._beside.least) > FAR_SECONDS

    async def _fill_beside(self, source: Source) -> bool:
        """Before the warm-up's own order. False when it made way for something that was read meanwhile."""
        until = trio.current_time() + BESIDE_SECONDS
        filling = self._new_filling(source, Priority.BULK, hold=self._hold if self._is_far else self._make_way, runners=BESIDE_RUNNERS,
                                    may_go_on=lambda: not self._reads or trio.current_time() < until)
        await filling.run()
        self._beside.fetched += filling.counts.fetched
        self._beside.requests += filling.counts.requests
        self._beside.least = min(self._beside.least, filling.counts.least)
        return filling.is_complete

    # --- what it tells --------------------------------------------------------------------------------------------------------------------

    def _note(self, counts: Counts) -> None:
        """A task is begun with the first byte: a mount that has everything says nothing."""
        if self._task is None and counts.fetched:
            self._task = self._tasks.begin('download')
        if self._task is not None:
            self._note_totals(self._task)

    def _end_task(self) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        self._note_totals(task)
        log.info('warm-up: %s', self._told())
        failed = self._counts.failed
        task.finish(f'{failed} files could not be downloaded: {self._error}' if failed else self._error)

    def _note_totals(self, task: SyncTask) -> None:
        task.files_done, task.bytes_done = self._counts.files, self._counts.bytes
        task.files_total = max(self._totals.files, self._counts.files)
        task.bytes_total = max(self._totals.bytes, self._counts.bytes)

    def _told(self) -> str:
        counts = self._counts
        text = f'{counts.files} of {self._totals.files} files are in the cache, {counts.fetched} bytes came with {counts.requests} requests'
        if self._is_short:
            text += f'; the others do not fit into {SHARE:.0%} of --cache-size'
        return text

    @property
    def state(self) -> str:
        """off, waiting (for the tree), paused, running, full (idle, but not everything fits), idle, or ended (with the mount)."""
        if self._has_ended:
            return 'ended'
        if not self.is_wanted:
            return 'off'
        if not self._has_tree:
            return 'waiting'
        if self._is_paused():
            return 'paused'
        if self._is_busy or self._wants_all or self._changed:
            return 'running'
        return 'full' if self._is_short else 'idle'

    def progress(self) -> dict[str, Any]:
        """Of the running pass, or the last one; `fetchedBytes` and `requests` with those for what was being read."""
        counts = self._counts
        return {'state': self.state, 'filesDone': counts.files, 'filesTotal': max(self._totals.files, counts.files),
                'bytesDone': counts.bytes, 'bytesTotal': max(self._totals.bytes, counts.bytes),
                'fetchedBytes': counts.fetched + self._beside.fetched, 'requests': counts.requests + self._beside.requests,
                'error': self._error}

    async def wait_idle(self) -> FlushResult:
        """Until everything that fits is in the cache. Not ok: paused, refused, or the store did not answer for PATIENCE_SECONDS."""
        well_at = trio.current_time()
        while self.state in ('waiting', 'running'):
            trouble = self._trouble()
            if trouble is None:
                well_at = trio.current_time()
            elif trio.current_time() - well_at > PATIENCE_SECONDS:
                return self._result(str(trouble))
            await trio.sleep(PAUSE_SECONDS)
        state = self.state
        if state == 'off':
            return FlushResult(True, 0, 0, 'autoDownload is off: content comes when it is read, or by ctxfs sync --mode download')
        if state == 'paused':
            return self._result('downloads are paused; ctxfs resume lets them go on')
        if self._error or state == 'ended':
            return self._result(self._error or 'it is not mounted any more')
        return FlushResult(True, self._counts.files, self._counts.bytes, self._told() if self._is_short else '')

    def _trouble(self) -> CtxfsError | None:
        return self._remote.error if not self._has_tree else None if self._filling is None else self._filling.trouble

    def _result(self, message: str) -> FlushResult:
        return FlushResult(False, self._counts.files, self._counts.bytes, message)
