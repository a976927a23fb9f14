"""Downloads that somebody asks for: what changed in the bucket below a path is taken over, and its content comes into the block cache.
And the way back: clean content leaves the cache.

Owns the order (first the names, while nothing is uploaded; then the content, beside uploads) and what is told about it. It must not know what
a changed object means (reconcile.py) or how content gets into the cache (cache_filling.py). Local changes are never given up for it: a file
that has any is not clean, and whose object changed as well is settled by the upload, which keeps both. What is staged is not in the cache,
so that nothing that leaves the cache is the only copy of anything.
"""
from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple, Protocol

import trio

from ctxfs.errors import CtxfsError, NotFound
from ctxfs.records import RESERVED_DIR
from ctxfs.storage.block_cache import BlockCache
from ctxfs.storage.clean_files import CleanFiles, Totals, Walk
from ctxfs.storage.keys import path_to_key
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.cache_filling import SHARE, Counts, Filling, OwnRoom
from ctxfs.sync.clean_sources import InodeSource, WalkSource
from ctxfs.sync.engine import FlushResult, UploadEngine
from ctxfs.sync.pool import Priority, TransferPool
from ctxfs.sync.tasks import SyncTask, TaskLog

log = logging.getLogger(__name__)

#: how long a store that does not answer is asked again
PATIENCE_SECONDS = 60.0


class Remote(Protocol):
    """The remote tree, as far as a download needs it."""

    is_complete: bool
    error: CtxfsError | None

    async def wait_complete(self) -> None: ...

    async def reload(self, prefix: str = '') -> None: ...

    async def learn_attrs(self, inos: Sequence[int], *, priority: Priority) -> None: ...


class Dropped(NamedTuple):
    """`bytes` of the cache are free again, of so many entries (blocks, or whole files)."""
    entries: int
    bytes: int


class Downloads:
    """See the module docstring. One at a time; the others wait. `let_go` closes files of the cache that readers keep open."""

    def __init__(self, db: TreeDB, pool: TransferPool, cache: BlockCache, *, prefix: str, remote: Remote, engine: UploadEngine,
                 tasks: TaskLog, let_go: Callable[[], None] = lambda: None) -> None:
        self._db = db
        self._pool = pool
        self._cache = cache
        self._prefix = prefix
        self._remote = remote
        self._engine = engine
        self._tasks = tasks
        self._let_go = let_go
        self._lock = trio.Lock()

    async def download(self, names: Sequence[bytes] = ()) -> FlushResult:
        """Everything at and below a path; `files` and `bytes` are in the cache afterwards, whether they had to come or not. Not ok: what the
        store says, or files that cannot be had. Raises NotFound when neither bucket nor mount has the path. Cancelled: only the waiting ends."""
        return await self._apart(partial(self._download, names, takes_over=True))

    async def warm(self, names: Sequence[bytes] = ()) -> FlushResult:
        """As `download`, of the versions that the mount knows: nothing is looked for in the bucket."""
        return await self._apart(partial(self._download, names, takes_over=False))

    async def drop(self, names: Sequence[bytes] = ()) -> Dropped:
        """Clean content of everything at and below a path leaves the cache (of the root: all there is); it is fetched again when it is read.
        Raises NotFound."""
        ino = self._db.resolve(names)
        if ino is None:
            raise self._absent(path_to_key(names))
        async with self._lock:
            before = await trio.to_thread.run_sync(self._cache.volume)
            is_dir = self._db.inode(ino).is_dir
            entries = await trio.to_thread.run_sync(self._drop_below, ino, is_dir) if names else await trio.to_thread.run_sync(self._cache.clear)
            self._let_go()
            return Dropped(entries, max(0, before - await trio.to_thread.run_sync(self._cache.volume)))

    def _drop_below(self, ino: int, is_dir: bool) -> int:
        """In a thread; how many entries went."""
        with closing(CleanFiles(self._db.path)) as files:
            if not is_dir:
                return sum(self._cache.drop(self._prefix + file.key) for file in files.of([ino]))
            walk, entries = Walk(files, ino), 0
            while not walk.is_done:
                entries += sum(self._cache.drop(self._prefix + file.key) for file in walk.step().files)
            return entries

    async def _apart(self, job: Callable[[SyncTask], Awaitable[FlushResult]]) -> FlushResult:
        """In a task of the mount's own, one after the other."""
        ended = trio.Event()
        results: list[FlushResult | NotFound] = []

        async def run() -> None:
            try:
                async with self._lock:
                    results.append(await self._in_task(job))
            finally:
                ended.set()

        self._engine.spawn(run)
        await ended.wait()
        result = results[0] if results else FlushResult(False, 0, 0, 'the download was interrupted (see the log)')
        if isinstance(result, NotFound):
            raise result
        return result

    async def _in_task(self, job: Callable[[SyncTask], Awaitable[FlushResult]]) -> FlushResult | NotFound:
        task = self._tasks.begin('download')
        try:
            result = await job(task)
        except CtxfsError as error:
            task.finish(str(error))
            return error if isinstance(error, NotFound) else FlushResult(False, task.files_done, task.bytes_done, str(error))
        except BaseException:
            task.finish('interrupted; what is missing is fetched when it is read')
            raise
        task.finish('' if result.ok else result.message)
        return result

    async def _download(self, names: Sequence[bytes], task: SyncTask, *, takes_over: bool) -> FlushResult:
        key = path_to_key(names)
        if f'{key}/'.startswith(RESERVED_DIR):
            raise NotFound(f'/{key} is ctxfs\'s own, and not part of the mount')
        await self._wait_listed()
        if takes_over:
            await self._engine.alone(lambda: self._remote.reload(key))
        ino = self._db.resolve(names)
        if ino is None:
            raise self._absent(key)
        files = await trio.to_thread.run_sync(CleanFiles, self._db.path)
        try:
            totals = await trio.to_thread.run_sync(files.totals, ino)
            task.files_total, task.bytes_total = totals
            source = WalkSource(Walk(files, ino), self._learn) if self._db.inode(ino).is_dir else InodeSource(files, [ino], self._learn)
            return await self._fill(source, totals, task)
        finally:
            files.close()

    async def _learn(self, inos: Sequence[int]) -> None:
        await self._remote.learn_attrs(inos, priority=Priority.BULK)

    async def _wait_listed(self) -> None:
        """Not in the engine's time: uploads go on meanwhile."""
        with trio.move_on_after(PATIENCE_SECONDS):
            await self._remote.wait_complete()
        if not self._remote.is_complete:
            raise self._remote.error or CtxfsError(f'the context could not be listed within {PATIENCE_SECONDS:g} s')

    def _absent(self, key: str) -> NotFound:
        row = self._db.row('SELECT reason FROM unmountable WHERE key IN (?, ?)', (key, f'{key}/'))
        shown = key.encode('utf-8', 'backslashreplace').decode()
        return NotFound(f'/{shown} cannot be shown: {row[0]}' if row else f'/{shown} is neither in the bucket nor in the mount')

    async def _fill(self, source: WalkSource | InodeSource, totals: Totals, task: SyncTask) -> FlushResult:
        def note(counts: Counts) -> None:
            task.files_done, task.bytes_done = counts.files, counts.bytes

        filling = Filling(self._pool, self._cache, source, OwnRoom(self._pool), prefix=self._prefix, priority=Priority.BULK,
                          hold=trio.lowlevel.checkpoint, note=note, runners=8, patience=PATIENCE_SECONDS)
        await filling.run()
        counts = filling.counts
        note(counts)
        log.info('download: %d of %d files are in the cache, %d bytes came with %d requests', counts.files, totals.files, counts.fetched,
                 counts.requests)
        if counts.failed:
            return FlushResult(False, counts.files, counts.bytes, f'{counts.failed} files could not be downloaded: {counts.error}')
        message = ''
        if filling.is_short:
            message = (f'{counts.files} of {totals.files} files ({counts.bytes} of {totals.bytes} bytes) are in the cache; the others do not '
                       f'fit into {SHARE:.0%} of --cache-size and are fetched when they are read')
        return FlushResult(True, counts.files, counts.bytes, message)
