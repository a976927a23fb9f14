"""The upload engine: brings the bucket up to what the tree says, when it is told to, and says how far it got.

Owns the flush (one at a time), the order of its steps, which failure is retried when, and the limits on what is in flight. It must not
know what one upload consists of (uploader.py), how the plan is made (planner.py), FUSE, or why it was asked to flush.

    flush:  wait until the remote tree is known
         →  rounds: settle writes in doubt, expand moved directories into their files (journaled, so a crash resumes), plan, upload; work whose target is another's only copy waits a round, a cycle is broken by a temporary copy
         →  index segment  →  deletes  →  adoption into the block cache
    failure of one inode:  transient: its row gets the cause and a retry time (0.5 s, doubling to 20 s);  permanent: the cause, tried again
                           by the next sync or mount, or when it changes;  conflict: conflicts.py keeps both, then it is planned again
    an inode that keeps changing while it is uploaded: a copy of it at one instant is uploaded instead

An explicit flush takes everything, retries and says what is left; one that the clock asks for (`flush_ready`) is one pass over what its
selection takes, and ends early when the store is in trouble or uploads are paused. selection.py has both kinds.

INVARIANT: a row leaves the journal only by `Journal.advance`, that is when nothing changed since it was planned from.
"""
from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from ctxfs.errors import CtxfsError, NotFound
from ctxfs.storage.gating import Gating
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal, Known, Pending
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.conflicts import ConflictKeeper
from ctxfs.sync.doubt import Doubt
from ctxfs.sync.finishing import Finisher
from ctxfs.sync.localise import Localiser
from ctxfs.sync.planner import Planner, Work, is_index_only
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.ports import Spawn
from ctxfs.sync.protocol import Copy
from ctxfs.sync.remote_tree import RemoteTreeLoader
from ctxfs.sync.selection import Everything, Ready, Selection, Turn
from ctxfs.sync.tasks import SyncTask, TaskLog
from ctxfs.sync.uploader import Moved, SourceLost, TargetConflict, Uploader

log = logging.getLogger(__name__)

#: inodes planned at a time, and inodes in upload at a time
PLAN_BATCH = 500
IN_FLIGHT = 32
#: an inode that keeps changing while it is uploaded is uploaded as it is at one instant after so many tries
MAX_MOVES = 8
_BACKOFF_SECONDS = (0.5, 20.0)
#: the retry time of what only a change can help
NEVER_NS = 2**62


def backoff(attempt: int) -> float:
    """Seconds before the next try; `attempt` failed before the last one."""
    first, longest = _BACKOFF_SECONDS
    return min(longest, first * 2.0 ** min(attempt, 16))


class FlushResult(NamedTuple):
    """`ok`: nothing is pending any more. `message`: the first cause if not."""
    ok: bool
    files: int
    bytes: int
    message: str


class _Meter:
    """Adds one file's progress to its task's."""

    def __init__(self, task: SyncTask) -> None:
        self._task = task
        self._noted = 0

    def note(self, done: int) -> None:
        """`done` bytes of the file have been sent in all."""
        if done > self._noted:
            self._task.bytes_done += done - self._noted
            self._noted = done


class UploadEngine:
    """See the module docstring."""

    def __init__(self, db: TreeDB, journal: Journal, pool: TransferPool, *, planner: Planner, doubt: Doubt, uploader: Uploader, finisher: Finisher, gating: Gating,
                 localiser: Localiser, conflicts: ConflictKeeper, remote: RemoteTreeLoader, tasks: TaskLog, prefix: str,
                 spawn: Spawn) -> None:
        self._db = db
        self._journal = journal
        self._pool = pool
        self._planner = planner
        self._doubt = doubt
        self._uploader = uploader
        self._finisher = finisher
        self._conflicts = conflicts
        self._gating = gating
        self._localiser = localiser
        self._remote = remote
        self._tasks = tasks
        self._prefix = prefix
        self.spawn = spawn
        self._lock = trio.Lock()
        self._moves: dict[int, int] = {}
        #: inodes that this flush uploads as they are at one instant
        self._as_it_is: set[int] = set()
        self._selection: Selection = Everything()
        self.uploading: set[int] = set()
        #: nothing begins by itself: no upload by the clock, no polling, no warm-up; what a user asks for goes on
        self.is_paused = False

    # --- flush ----------------------------------------------------------------------------------------------------------------------

    async def flush(self, *, retry_seconds: float = 60.0) -> FlushResult:
        """Upload everything pending; returns when it is done, or when what is left failed for good or for `retry_seconds`.
        Cancelled: only the waiting ends; the upload goes on."""
        return await self._in_own_task(lambda task: self._flush(task, trio.current_time() + retry_seconds), 'upload')

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
            finally:
                ended.set()

        self.spawn(run)
        await ended.wait()
        return results[0] if results else FlushResult(False, 0, 0, 'the transfer was interrupted; what is left is journaled (see the log)')

    async def alone(self, job: Callable[[], Awaitable[None]]) -> None:
        """Run `job` while nothing is uploaded or listed."""
        async with self._lock:
            await job()

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

    async def _flush(self, task: SyncTask, deadline: float) -> FlushResult:
        with trio.move_on_at(deadline):
            await self._remote.wait_complete()
        if not self._remote.is_complete:
            cause = self._remote.error or 'the store did not answer in time'
            return FlushResult(False, 0, 0, f'the context could not be listed: {cause}')
        selection = Everything()
        self._begin(selection)
        self._journal.retry_all()
        task.files_total, task.bytes_total, _ = self._journal.summary()
        while True:
            failures = await self._one_pass(task)
            retry_ns = self._next_retry_ns(failures, task.attempt)
            if retry_ns is None or trio.current_time() >= deadline:
                break
            task.attempt += 1
            task.next_retry = retry_ns / 1e9
            await trio.sleep(max(0.0, min(retry_ns / 1e9 - time.time(), deadline - trio.current_time())))
        # what was written to these after their instant came after the flush was asked for
        files = self._journal.summary()[0] - sum(self._journal.pending_row(ino) is not None for ino in selection.taken)
        cause = str(failures[0]) if failures else self._first_error()
        return FlushResult(files == 0, task.files_done, task.bytes_done,
                           '' if files == 0 else f'{files} {"change is" if files == 1 else "changes are"} not uploaded: {cause}')

    def _begin(self, selection: Selection) -> None:
        self._selection = selection
        self._moves.clear()
        self._as_it_is.clear()

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
            later_ns = time.time_ns() + int(backoff(attempt - 1) * 1e9)
            retry_ns = min(retry_ns, later_ns) if retry_ns else later_ns
        return retry_ns

    async def _one_pass(self, task: SyncTask) -> list[CtxfsError]:
        """Try everything that is due once. Returns what failed beside single files."""
        failures: list[CtxfsError] = []
        for step in (lambda: self._upload_due(task), self._finisher.write_index, self._delete, self._finisher.announce_deletes,
                     self._finisher.adopt_sealed, self._finisher.compact_index):
            if self._selection.is_over:
                break
            try:
                await step()
            except CtxfsError as error:
                log.warning('flush: %s', error)
                failures.append(error)
                self._selection.note_step_failure(error)
        return failures

    async def _delete(self) -> None:
        failed = await self._finisher.delete_doomed()
        if failed:
            key, error = failed[0]
            raise type(error)(f'cannot delete {key}: {error}')

    # --- moved directories --------------------------------------------------------------------------------------------------------

    async def _expand_moved_directories(self) -> None:
        """A moved directory means new keys for everything below: give each its own journal row, then clear the directory's bit."""
        while rows := self._db.rows('SELECT ino, seq FROM pending WHERE reason & ? LIMIT ?', (Reason.SUBTREE, PLAN_BATCH)):
            for ino, seq in rows:
                await self._expand_directory(ino, seq)

    async def _expand_directory(self, ino: int, seq: int) -> None:
        live = self._db.live_inode(ino)
        if live is not None:
            live.is_planned = True      # should it move again meanwhile, the row's seq changes and it is expanded again
        stack = [ino]
        while stack:
            directory = stack.pop()
            after = b''
            while page := self._db.children(directory, after, PLAN_BATCH):
                after = page[-1][0]
                stack += self._mark_children([child for _, child in page])
                await trio.lowlevel.checkpoint()
        self._db.execute('UPDATE pending SET reason = reason & ~? WHERE ino = ? AND seq = ?', (Reason.SUBTREE, ino, seq))
        if live is not None:
            live.marked = 0

    def _mark_children(self, inos: list[int]) -> list[int]:
        """Mark the uploadable ones; returns the directories."""
        inodes = self._db.inodes_of(inos).values()
        with self._db.transaction():
            for inode in inodes:
                self._gating.settle(inode)
                self._journal.mark(inode, Reason.NAMES)
        return [inode.ino for inode in inodes if inode.is_dir]

    # --- rounds -------------------------------------------------------------------------------------------------------------------

    async def _upload_due(self, task: SyncTask) -> None:
        """Rounds until nothing is due, or what is due cannot be done now."""
        while not self._selection.is_over:
            await self._doubt.resolve()
            await self._expand_moved_directories()
            done = blocked = 0
            after, now_ns = 0, time.time_ns()
            waiting: list[Work] = []
            while rows := self._journal.due(now_ns, limit=PLAN_BATCH, after=after):
                after = rows[-1].ino
                works = self._plan(rows)
                ready = [work for work in works if not work.blocked_by]
                waiting += [work for work in works if work.blocked_by]
                done += await self._run_all(ready, task)
            blocked = len(waiting)
            if blocked and not done:
                done += await self._break_cycle(waiting[0])
            if not done:
                return

    def _plan(self, rows: list[Pending]) -> list[Work]:
        inodes = self._db.inodes_of([row.ino for row in rows])
        works = []
        for row in rows:
            inode = inodes.get(row.ino)
            if inode is None or inode.nlink == 0 or inode.local:
                self._journal.forget(row.ino)
            elif not is_index_only(row) and not row.reason & Reason.SUBTREE:
                turn = self._selection.turn_of(row, inode)
                if turn is Turn.LATER:
                    continue
                if turn is Turn.AS_IT_IS:
                    self._as_it_is.add(row.ino)
                try:
                    works.append(self._planner.plan(row, inode))
                except CtxfsError as error:     # one row that cannot be planned must not stop the others
                    self._journal.fail(row, error=str(error), retry_ns=NEVER_NS)
        return works

    async def _run_all(self, works: list[Work], task: SyncTask) -> int:
        """Run them in parallel; returns how many got somewhere."""
        queue = iter(works)
        outcomes: list[bool] = []

        async def runner() -> None:
            while not self._selection.is_over and (work := next(queue, None)) is not None:
                outcomes.append(await self._run_one(work, task))

        while self._selection.is_cautious and not self._selection.is_over and (first := next(queue, None)) is not None:
            outcomes.append(await self._run_one(first, task))
        async with trio.open_nursery() as nursery:
            for _ in range(min(IN_FLIGHT, len(works))):
                nursery.start_soon(runner)
        return sum(outcomes)

    async def _run_one(self, work: Work, task: SyncTask) -> bool:
        """Upload one inode and handle how it ends. True if the journal moved on."""
        inode = work.inode
        if work.error is not None:
            self._fail(work, work.error)
            return False
        meter = _Meter(task)
        self.uploading.add(inode.ino)
        try:
            await self._carry_out(work, meter)
        except Moved:
            return self._note_move(work)
        except TargetConflict as conflict:
            return await self._settle(work, lambda: self._conflicts.target_changed(inode, conflict.key))
        except SourceLost as lost:
            return await self._settle(work, lambda: self._conflicts.source_lost(inode, lost.known))
        except (CtxfsError, OSError) as error:
            self._fail(work, error)
            return False
        finally:
            self.uploading.discard(inode.ino)
            inode.is_planned = False
            inode.marked = 0 if inode.marked != Reason.INDEX else inode.marked
        meter.note(inode.size if work.row.reason & Reason.CONTENT else 0)
        task.files_done += 1
        self._selection.note_success()
        return True

    async def _carry_out(self, work: Work, meter: _Meter) -> None:
        if work.is_retiring:
            await self._localiser.retire(work)
        elif work.needs_bytes:
            await self._localiser.pin(work)
        elif work.inode.ino in self._as_it_is and work.inode.content == Content.STAGED:
            await self._uploader.run_as_it_is(work.inode, meter.note)
            self._selection.took_as_it_is(work.inode.ino)
        else:
            await self._uploader.run(work, meter.note)

    async def _settle(self, work: Work, settle) -> bool:  # type: ignore[no-untyped-def]
        try:
            await settle()
        except (CtxfsError, OSError) as error:
            self._fail(work, error)
            return False
        return self._note_move(work)

    def _note_move(self, work: Work) -> bool:
        """It changed under us: plan it again in this flush, but not for ever."""
        ino = work.inode.ino
        self._moves[ino] = self._moves.get(ino, 0) + 1
        if self._moves[ino] == MAX_MOVES:
            self._as_it_is.add(ino)
        if self._moves[ino] <= 2 * MAX_MOVES:
            return True
        self._fail(work, CtxfsError('the file keeps being changed while it is uploaded'))
        return False

    def _fail(self, work: Work, error: Exception) -> None:
        is_transient = isinstance(error, CtxfsError) and error.transient
        # A permanent failure waits for somebody to change something: the next sync, flush or mount tries it again.
        retry_ns = time.time_ns() + int(backoff(work.row.attempt) * 1e9) if is_transient else NEVER_NS
        message = str(error) or type(error).__name__
        self._journal.fail(work.row, error=message, retry_ns=retry_ns)
        self._selection.note_failure(error)
        log.warning('inode %d is not uploaded: %s', work.inode.ino, message)

    async def _break_cycle(self, work: Work) -> int:
        """Two or more clean files took each other's names: copy one target aside, so that its owner has another source."""
        for key in work.missing:
            known = self._journal.known(key)
            if known is None or known.ino not in work.blocked_by:
                continue
            aside = f'.ctxfs/tmp/{uuid.uuid4().hex}'
            try:
                done = await self._pool.call(Copy(source=self._prefix + key, key=self._prefix + aside, source_etag=known.etag,
                                                  size=known.size))
            except NotFound:
                self._journal.drop_object(key)
                return 1
            except CtxfsError as error:
                self._fail(work, error)
                return 0
            self._journal.put_object(Known(aside, done.etag, done.size, known.ino, known.revision, known.sha256, 1, known.lifecycle))
            return 1
        return 0

    # --- what others ask ----------------------------------------------------------------------------------------------------------

    def pending(self) -> dict[str, float]:
        files, size, since_ns = self._journal.summary()
        return {'files': files, 'bytes': size, 'oldestSeconds': round((time.time_ns() - since_ns) / 1e9, 3) if since_ns else 0}

    def is_uploading(self, inode: Inode) -> bool:
        return inode.ino in self.uploading
