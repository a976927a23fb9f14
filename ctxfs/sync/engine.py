"""The upload engine: brings the bucket up to what the tree says, when it is told to, and says how far it got.

Owns the flush (one at a time), the order of its steps, and how long an explicit one goes on trying. It must not know what a round of
uploads is (rounds.py), what one upload consists of (uploader.py), FUSE, or why it was asked to flush (schedule.py).

    flush:  wait until the remote tree is known  →  rounds of uploads, made durable here  →  index segment  →  deletes, announced  →
            adoption into the block cache

An explicit flush takes everything, retries and says what is left; one that the clock asks for (`flush_ready`) is one pass over what its
selection takes, and ends early when the store is in trouble or uploads are paused. selection.py has both kinds.

INVARIANT: a row leaves the journal only by `Journal.advance`, that is when nothing changed since it was planned from.
INVARIANT: what is deleted, in the bucket or in staging, is not needed by any state of this host that a power cut may bring back: that the
bucket has the uploads is durable before a staging file goes, and so is what is here instead before an object goes.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from ctxfs.config import STORE_TIMEOUT
from ctxfs.errors import CtxfsError
from ctxfs.storage.inode import Inode
from ctxfs.storage.journal import Journal
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.backoff import delay, retry_after_of
from ctxfs.sync.finishing import Finisher
from ctxfs.sync.ports import Spawn
from ctxfs.sync.remote_tree import RemoteTreeLoader
from ctxfs.sync.rounds import NEVER_NS, Rounds
from ctxfs.sync.selection import Everything, Ready, Selection
from ctxfs.sync.tasks import SyncTask, TaskLog

log = logging.getLogger(__name__)

#: what a flush finds out while it runs is uploaded by it, so many passes long
PASSES = 4
#: how often, in seconds, and how many at a time, uploaded files are handed over to the cache while others are uploaded
ADOPT_SECONDS = 0.5
ADOPT_LEAST, ADOPT_MOST = 200, 1000
#: how long an unmount waits for a listing that nothing of what it has to do needs
LISTING_SECONDS = 5.0


class FlushResult(NamedTuple):
    """`ok`: the bucket has every change from before the flush. `message`: the first cause if not."""
    ok: bool
    files: int
    bytes: int
    message: str


class UploadEngine:
    """See the module docstring."""

    def __init__(self, db: TreeDB, journal: Journal, *, rounds: Rounds, finisher: Finisher, remote: RemoteTreeLoader, tasks: TaskLog,
                 spawn: Spawn, harden: Callable[[], Awaitable[None]] | None = None,
                 end_turn: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint, patience: float = STORE_TIMEOUT) -> None:
        """`harden`: makes durable what the bucket will not have any more (Hardener.harden_local). `end_turn`: awaited after all that may have
        written to the bucket, before anything else may. `patience`: seconds for which a flush that somebody asks for tries again."""
        self._db = db
        self._harden = harden
        self._journal = journal
        self._rounds = rounds
        self._finisher = finisher
        self._remote = remote
        self._tasks = tasks
        self._end_turn = end_turn
        self._patience = patience
        self.spawn = spawn
        self._lock = trio.Lock()
        self._selection: Selection = Everything()
        #: what was recorded of uploads may be in memory only, because the disk refused
        self._is_in_doubt = False
        #: nothing begins by itself: no upload by the clock, no polling, no warm-up; what a user asks for goes on
        self.is_paused = False

    # --- flush ----------------------------------------------------------------------------------------------------------------------

    async def flush(self, *, retry_seconds: float | None = None, is_final: bool = False) -> FlushResult:
        """Upload everything pending; returns when it is done, or when what is left failed for good or for `retry_seconds`. `is_final`: no
        program can change anything any more, so whatever is left is left over, and it goes on for as long as anything gets
        through. Cancelled: only the waiting ends; the upload goes on."""
        # also while it waits for its turn
        deadline = trio.current_time() + (self._patience if retry_seconds is None else retry_seconds)
        return await self._in_own_task(lambda task: self._flush(task, deadline, is_final), 'upload')

    async def flush_finally(self, retry_seconds: float, *, last_seconds: float) -> FlushResult | None:
        """`flush` when nobody can change anything any more. None when it did not end although nothing got through for so long: it is given up, and
        what is in doubt then is settled by the next mount. Where nothing is to be done a listing that takes long is not waited for: of a large
        context it takes minutes. (What is listed is known to the next mount.)"""
        if not self._has_work():
            with trio.move_on_after(LISTING_SECONDS):
                await self._remote.wait_complete()
            if not self._remote.is_complete:
                return FlushResult(True, 0, 0, '')
        results: list[FlushResult] = []
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            async def run() -> None:
                results.append(await self.flush(retry_seconds=retry_seconds, is_final=True))
                nursery.cancel_scope.cancel()
            nursery.start_soon(run)
            while trio.current_time() < max(began, self._selection.progressed_at) + retry_seconds + last_seconds:  # noqa: ASYNC110 - a bound
                await trio.sleep(1.0)
            nursery.cancel_scope.cancel()
        return results[0] if results else None

    def _has_work(self) -> bool:
        """Anything that the bucket does not know, or of which nobody knows whether it does."""
        return bool(self._is_in_doubt or self._journal.summary()[0] or self._finisher.has_deletes()
                    or self._db.row('SELECT 1 FROM attempt LIMIT 1'))

    async def flush_ready(self, selection: Ready) -> FlushResult:
        """One pass over the rows whose retry time has come and that `selection` takes, without a task where there is none. Never raises for
        what the store does: failed rows have their cause and retry time, and the selection is told."""
        await self._remote.wait_complete()
        return await self._in_own_task(lambda task: self._flush_ready(task, selection), 'upload', is_needed=self._has_due)

    def _has_due(self) -> bool:
        return bool(self._journal.due(time.time_ns(), limit=1)) or self._finisher.has_deletes()

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    async def download(self) -> FlushResult:
        """Take over what changed in the bucket. Never beside an upload: a listing that began before a PUT shows the version before it,
        and would be taken for somebody's change."""
        return await self._in_own_task(self._download, 'download')

    async def _in_own_task(self, job: Callable[[SyncTask], Awaitable[FlushResult]], task_type: str, *,
                           is_needed: Callable[[], bool] = lambda: True) -> FlushResult:
        """A client that goes, or a writer that stops waiting, must not cut off a transfer whose end would then be in doubt."""
        ended = trio.Event()
        results: list[FlushResult] = []

        async def run() -> None:
            try:
                async with self._lock:
                    results.append(await self._run_task(job, task_type) if is_needed() else FlushResult(True, 0, 0, ''))
                    await self._end_turn()
            finally:
                ended.set()

        self.spawn(run)
        await ended.wait()
        return results[0] if results else FlushResult(False, 0, 0, 'the transfer was interrupted; what is left is journaled (see the log)')

    async def alone(self, job: Callable[[], Awaitable[None]]) -> None:
        """Run `job` while nothing is uploaded or listed."""
        async with self._lock:
            try:
                await job()
            finally:
                await self._end_turn()

    @property
    def is_awaited(self) -> bool:
        """Somebody waits for what runs now to end: an upload, or another job that must be alone."""
        return self._lock.statistics().tasks_waiting > 0

    async def _run_task(self, job: Callable[[SyncTask], Awaitable[FlushResult]], task_type: str) -> FlushResult:
        task = self._tasks.begin(task_type)
        try:
            result = await job(task)
        except CtxfsError as error:
            result = FlushResult(False, task.files_done, task.bytes_done, str(error))
        except BaseException:
            task.finish('interrupted; what is left is journaled')
            raise
        task.finish('' if result.ok else result.message)
        return result

    async def _download(self, task: SyncTask) -> FlushResult:
        await self._remote.reload()
        task.files_done = task.files_total = self._remote.listed_objects
        return FlushResult(True, task.files_done, 0, '')

    async def _flush(self, task: SyncTask, deadline: float, is_final: bool) -> FlushResult:
        with trio.move_on_at(deadline):
            await self._remote.wait_complete()
        if not self._remote.is_complete:
            cause = self._remote.error or 'the store did not answer in time'
            return FlushResult(False, 0, 0, f'the context could not be listed: {cause}')
        everything = Everything(patience=max(0.0, deadline - trio.current_time()))
        self._begin(everything)
        with self._db.transaction():    # what has no row yet, for want of space, is pending too
            self._journal.retry_all()
        began_ns = time.time_ns()
        task.files_total, task.bytes_total, _ = self._journal.summary()
        while True:
            failures = await self._passes(task)
            retry_ns = self._next_retry_ns(failures, task.attempt)
            # programs may go on, and then there is always something that gets through
            if retry_ns is None or (everything.is_stalled if is_final else trio.current_time() >= deadline):
                break
            task.attempt += 1
            task.next_retry = retry_ns / 1e9
            rest = (retry_ns - time.time_ns()) / 1e9        # in seconds first, it could be 0 before the time has come
            await trio.sleep(max(0.0, rest if is_final else min(rest, deadline - trio.current_time())))
        files = self._journal.summary()[0]
        if files and not (is_final or failures):    # programs went on meanwhile: what they changed then was not asked for
            files = self._journal.left_from(began_ns) + self._finisher.held_deletes()
        if is_final and not failures:
            await self._finisher.prove_members()
        cause = str(failures[0]) if failures else self._first_error()
        return FlushResult(files == 0, task.files_done, task.bytes_done,
                           '' if files == 0 else f'{files} {"change is" if files == 1 else "changes are"} not uploaded: {cause}')

    def _begin(self, selection: Selection) -> None:
        self._selection = selection
        self._rounds.begin(selection)

    async def _flush_ready(self, task: SyncTask, selection: Ready) -> FlushResult:
        self._begin(selection)
        task.files_total, task.bytes_total, _ = self._journal.summary()
        await self._one_pass(task)
        task.files_total, task.bytes_total = task.files_done, task.bytes_done
        return FlushResult(not selection.first_error, task.files_done, task.bytes_done, selection.first_error)

    def _first_error(self) -> str:
        failed = self._journal.failed(1)
        return failed[0][0].error if failed else 'files are open and deleted, or still being changed'

    def _next_retry_ns(self, failures: list[CtxfsError], attempt: int) -> int | None:
        """When something that may succeed is to be tried again; None when there is nothing."""
        retry_ns = self._db.row('SELECT min(retry_ns) FROM pending WHERE retry_ns > 0 AND retry_ns < ?', (NEVER_NS,))[0]
        if any(failure.transient for failure in failures):
            later_ns = time.time_ns() + int(delay(attempt - 1, max(map(retry_after_of, failures))) * 1e9)
            retry_ns = min(retry_ns, later_ns) if retry_ns else later_ns
        return retry_ns

    async def _passes(self, task: SyncTask) -> list[CtxfsError]:
        """Passes until none leaves anything new behind: a conflict, or bytes taken back, are found by one and uploaded by the next. Few,
        because programs may go on."""
        for _ in range(PASSES):
            marks = self._journal.marks
            failures = await self._one_pass(task)
            if failures or self._journal.marks == marks or not self._journal.due(time.time_ns(), limit=1):
                break
        return failures

    async def _one_pass(self, task: SyncTask) -> list[CtxfsError]:
        """Try everything that is due once. Returns what failed beside single files."""
        failures: list[CtxfsError] = []
        self._selection.begin_pass()
        for step in (lambda: self._upload(task), self._finisher.write_index, self._delete, self._finisher.announce_deletes,
                     self._adopt, self._finisher.compact_index):
            if self._selection.is_over:
                break
            try:
                await step()
            except CtxfsError as error:
                log.warning('flush: %s', error)
                failures.append(error)
                task.error_message = str(error)
                self._selection.note_step_failure(error)
        return failures

    async def _upload(self, task: SyncTask) -> None:
        changes, over = self._db.changes, trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._adopt_meanwhile, over)
            try:
                await self._rounds.run(task)
            except CtxfsError as error:
                failure: CtxfsError | None = error
            else:
                failure = None
            finally:
                over.set()
        await self._make_durable(changes)
        if failure is not None:
            raise failure

    async def _make_durable(self, changes: int) -> None:
        """What was recorded since the count was `changes`, and before where that failed."""
        if self._db.changes == changes and not self._is_in_doubt:
            return
        self._is_in_doubt = True
        try:
            await trio.to_thread.run_sync(self._db.make_durable)
        except OSError as error:
            raise CtxfsError(f'that the bucket has the uploads cannot be made durable: {error}') from error
        self._is_in_doubt = False

    async def _adopt(self) -> None:
        if not self._is_in_doubt:
            await self._finisher.adopt(self._finisher.sealed())

    async def _adopt_meanwhile(self, over: trio.Event) -> None:
        """Hand over what is uploaded while the rest is: the worker has time for it while it waits for the store, and the disk gets its space
        back. Only what was recorded before the log was made durable. Its failure is the later step's to tell."""
        while not over.is_set():
            with trio.move_on_after(ADOPT_SECONDS):
                await over.wait()
            sealed = self._finisher.sealed(ADOPT_MOST)
            if over.is_set() or self._is_in_doubt or len(sealed) < ADOPT_LEAST:
                continue
            try:
                await trio.to_thread.run_sync(self._db.make_durable)
                await self._finisher.adopt(sealed)
            except (CtxfsError, OSError):
                return

    async def _delete(self) -> None:
        if self._harden is not None and self._finisher.has_deletes():
            await self._harden()
        failed = await self._finisher.delete_doomed(self._selection.note_progress)
        if failed:
            key, error = failed[0]
            raise type(error)(f'cannot delete {key}: {error}')

    # --- what others ask ----------------------------------------------------------------------------------------------------------

    def pending(self) -> dict[str, float]:
        files, size, since_ns = self._journal.summary()
        return {'files': files, 'bytes': size, 'oldestSeconds': round((time.time_ns() - since_ns) / 1e9, 3) if since_ns else 0}

    @property
    def uploading(self) -> set[int]:
        return self._rounds.uploading

    def is_uploading(self, inode: Inode) -> bool:
        return inode.ino in self.uploading
