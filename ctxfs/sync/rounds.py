"""The rounds of one flush: which pending inodes are uploaded one after the other, which at the same time, and what becomes of a failure.

Owns the order that dependencies ask for, the uploads in flight, and the retry times of rows. It must not know why or how often a flush runs
(engine.py), which rows it takes (selection.py), or what one upload consists of (uploader.py).

    round:  settle writes in doubt, expand moved directories (journaled, so a crash resumes), plan, upload; work whose target is another's
            only copy waits a round, a cycle is broken by a temporary copy
    failure of one inode:  transient: its row gets the cause and a retry time (backoff.py);  permanent: the cause, tried again
                           by the next sync or mount, or when it changes;  conflict: conflicts.py keeps both, then it is planned again
    an inode that keeps changing while it is uploaded: a copy of it at one instant is uploaded instead
"""
from __future__ import annotations

import errno
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import trio

from ctxfs.crash_points import crash_point
from ctxfs.errors import CtxfsError, NotFound, RemoteChanged
from ctxfs.storage.gating import Gating
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal, Known, Pending
from ctxfs.storage.members import is_member
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.archive_flush import Again, NotTaken
from ctxfs.sync.archive_plan import MEMBER_MAX
from ctxfs.sync.archiver import Archiver
from ctxfs.sync.backoff import delay, retry_after_of
from ctxfs.sync.conflicts import ConflictKeeper
from ctxfs.sync.doubt import Doubt
from ctxfs.sync.intake import Intake
from ctxfs.sync.localise import Localiser
from ctxfs.sync.moved_directories import MovedDirectories
from ctxfs.sync.planner import Planner, Work, is_index_only
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.protocol import Copy
from ctxfs.sync.selection import Everything, Selection, Turn
from ctxfs.sync.tasks import SyncTask
from ctxfs.sync.together import Together
from ctxfs.sync.uploader import Moved, SourceLost, TargetConflict, Uploader

log = logging.getLogger(__name__)

#: inodes that are planned ahead of the uploads; those that are uploaded at a time, each by itself; and batches of small ones
PLAN_AHEAD = 500
#: inodes planned, or marked, without a pause: about 3 ms of the loop
PLAN_SLICE = 16
IN_FLIGHT = 32
BATCHES = 2
#: small files in a batch; while programs use the mount fewer, because a batch takes its CPU at one go
TOGETHER = 64
TOGETHER_BUSY = 8
#: inodes, and their bytes, in one commit of Archive mode; the next ones are another commit's
COMMIT_WORKS = 100_000
COMMIT_BYTES = 4 << 30
#: an inode that keeps changing while it is uploaded is uploaded as it is at one instant after so many tries
MAX_MOVES = 4
#: what the system says and may not say again
PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
#: the retry time of what only a change can help
NEVER_NS = 2**62


class _Meter:
    """Adds one file's progress to its task's, and tells that there is some."""

    def __init__(self, task: SyncTask, progressed: Callable[[], None]) -> None:
        self._task = task
        self._progressed = progressed
        self._noted = 0

    def note(self, done: int) -> None:
        """`done` bytes of the file have been sent in all."""
        if done > self._noted:
            self._task.bytes_done += done - self._noted
            self._noted = done
            self._progressed()


class Rounds:
    """See the module docstring. `begin`, then `run` as often as there is something to retry."""

    def __init__(self, db: TreeDB, journal: Journal, pool: TransferPool, *, planner: Planner, doubt: Doubt, uploader: Uploader, together: Together,
                 gating: Gating, localiser: Localiser, conflicts: ConflictKeeper, prefix: str, archiver: Archiver | None = None,
                 prepare: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint) -> None:
        """`archiver`: of a context in Archive mode. `prepare`: awaited before the first work of a round."""
        self._db = db
        self._journal = journal
        self._pool = pool
        self._planner = planner
        self._doubt = doubt
        self._uploader = uploader
        self._together = together
        self._moved_directories = MovedDirectories(db, journal, gating)
        self._localiser = localiser
        self._conflicts = conflicts
        self._prefix = prefix
        self._archiver = archiver
        self._prepare = prepare
        self._selection: Selection = Everything()
        self._moves: dict[int, int] = {}
        #: inodes that this flush uploads as they are at one instant
        self._as_it_is: set[int] = set()
        #: what was changed later than this (Unix ns) is the next run's: programs that go on must not keep this one from its end
        self._horizon_ns = 0
        self.uploading: set[int] = set()
        #: keys that this round writes. INVARIANT: no two works of one round write one key. The later one is planned when the outcome of the
        #: other is known; before, it would take our own object for somebody else's.
        self._claimed: set[str] = set()

    def begin(self, selection: Selection) -> None:
        """A new flush."""
        self._selection = selection
        self._moves.clear()
        self._as_it_is.clear()

    async def run(self, task: SyncTask) -> None:
        """Rounds until nothing is due of what was changed before, or what is due cannot be done now."""
        self._horizon_ns = 0
        while not self._selection.is_over:
            await self._doubt.resolve()
            await self._moved_directories.expand()
            self._horizon_ns = self._horizon_ns or time.time_ns()
            if self._journal.due(time.time_ns(), limit=1):
                await self._prepare()
                if self._archiver is not None and self._archiver.has_rivals:
                    await self._archiver.flush(())
            self._claimed.clear()
            if self._archiver is not None:
                self._archiver.begin_round()
            waiting: list[Work] = []
            packing: list[Work] = []
            done = await self._plan_and_run(task, waiting, packing)
            ready, blocked = _divided(packing)
            done += await self._archive(ready, task)
            if not done and not self._selection.is_over:
                done += await self._break_cycle([*waiting, *blocked], task)
            if not done:
                return

    async def _plan_and_run(self, task: SyncTask, waiting: list[Work], packing: list[Work]) -> int:
        """Upload what is planned of what is due; how many got somewhere. `waiting` gets what others must go before, `packing` what goes into
        archives."""
        intake = Intake(self._is_small, most=PLAN_AHEAD)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._plan_all, intake, waiting, packing)
            done = await self._run_all(intake, task)
            nursery.cancel_scope.cancel()       # nobody takes any more
        return done

    def _is_small(self, work: Work) -> bool:
        return self._together.is_small(work) and (self._archiver is None or not self._archiver.replaces_member(work))

    # --- archives -----------------------------------------------------------------------------------------------------------------

    def _divide(self, works: list[Work], packing: list[Work]) -> list[Work]:
        """What goes into archives is added to `packing`; the rest is returned."""
        if self._archiver is None:
            return works
        plan, rest = self._archiver.plan, []
        for work in works:
            if plan.takes(work):
                packing.append(work)
            else:
                rest.append(work._replace(needs_bytes=True) if plan.needs_bytes(work) else work)
        return rest

    async def _archive(self, works: list[Work], task: SyncTask) -> int:
        """Commit these works together, and what is deleted; how many got somewhere."""
        if self._archiver is None or self._selection.is_over or not (works or self._archiver.has_deletes()):
            return 0
        with ExitStack() as stack:
            for work in works:
                stack.enter_context(self._under_way(work.inode))
            try:
                outcomes = await self._archiver.flush(works, as_it_is=lambda inode: inode.ino in self._as_it_is and inode.content == Content.STAGED)
            except (CtxfsError, OSError) as error:
                for work in works:
                    self._fail(work, task, error)
                if not works:
                    raise
                return 0
        left = Intake(self._is_small, most=len(works) + 1)
        await left.put([work for work, error in outcomes if isinstance(error, NotTaken)])
        left.end()
        done = [await self._conclude(work, task, error) for work, error in outcomes if not isinstance(error, NotTaken)]
        await self._archiver.delete_rest()
        return sum(done) + await self._run_all(left, task)

    async def _conclude(self, work: Work, task: SyncTask, error: Exception | None) -> bool:
        """What follows for a work that was to be committed with others. True if the journal moved on, or may."""
        if error is None:
            self._note_success(work, task, _Meter(task, self._selection.note_progress))
            if work.inode.ino in self._as_it_is:
                self._selection.took_as_it_is(work.inode.ino)
        return error is None or isinstance(error, Again) or await self._handle(work, task, error)

    # --- planning -----------------------------------------------------------------------------------------------------------------

    async def _plan_all(self, intake: Intake, waiting: list[Work], packing: list[Work]) -> None:
        """Plan all that is due, while what was planned is carried out; of what is packed, as much as one commit has. Whoever uses the mount is
        served between slices; a row is read and planned from without a pause in between."""
        after, now_ns = 0, time.time_ns()
        while not _fills_commit(packing) and (rows := self._journal.due(now_ns, limit=PLAN_SLICE, after=after)):
            after = rows[-1].ino
            works = self._divide(self._plan(rows), packing)
            waiting += [work for work in works if work.blocked_by]
            await intake.put([work for work in works if not work.blocked_by])
            await trio.lowlevel.checkpoint()
        intake.end()

    def _plan(self, rows: list[Pending]) -> list[Work]:
        inodes = self._db.inodes_of([row.ino for row in rows])
        works = []
        for row in rows:
            inode = inodes.get(row.ino)
            if inode is None or inode.nlink == 0 or inode.local:
                self._journal.forget(row.ino)
            elif not is_index_only(row) and not row.reason & Reason.SUBTREE and not self._is_too_new(row):
                turn = self._selection.turn_of(row, inode)
                if turn is Turn.LATER:
                    continue
                if turn is Turn.AS_IT_IS:
                    self._as_it_is.add(row.ino)
                try:
                    work = self._planner.plan(row, inode)
                    if not self._is_held_back(work) and self._claimed.isdisjoint(work.missing):
                        self._claimed.update(work.missing)
                        works.append(work)
                except CtxfsError as error:     # one row that cannot be planned must not stop the others
                    self._journal.fail(row, error=str(error), retry_ns=NEVER_NS)
        return works

    def _is_too_new(self, row: Pending) -> bool:
        """Of a row that a wrong clock dated into the future nothing can be said."""
        return self._horizon_ns < row.since_ns <= time.time_ns()

    def _is_held_back(self, work: Work) -> bool:
        """Whether it would overwrite the last version that the bucket has of a file whose own upload waits."""
        for key in work.missing:
            known = self._journal.known(key)
            if known is None or known.ino == work.inode.ino or known.doomed:
                continue
            owner = self._db.inodes_of([known.ino]).get(known.ino)
            row = self._journal.pending_row(known.ino)
            if owner is not None and row is not None and owner.nlink and owner.content == Content.STAGED \
                    and (self._is_too_new(row) or self._selection.holds_back(work.row, row, owner)):
                return True
        return False

    async def _run_all(self, intake: Intake, task: SyncTask) -> int:
        """Carry out what comes in, in parallel; returns how many got somewhere."""
        outcomes: list[bool] = []

        async def one_by_one() -> None:
            while not self._selection.is_over and (work := await intake.take_large()) is not None:
                outcomes.append(await self._run_one(work, task))
            intake.end()        # where the flush is over before its work is: nobody is to wait for more

        async def together() -> None:
            while not self._selection.is_over and (works := await intake.take_small(self._most_together())):
                outcomes.extend(await self._run_together(works, task))
            intake.end()

        while self._selection.is_cautious and not self._selection.is_over and (first := await intake.take_any()) is not None:
            outcomes.append(await self._run_one(first, task))
        async with trio.open_nursery() as nursery:
            for _ in range(IN_FLIGHT):
                nursery.start_soon(one_by_one)
            for _ in range(BATCHES):
                nursery.start_soon(together)
        return sum(outcomes)

    def _most_together(self) -> int:
        return TOGETHER_BUSY if self._pool.courtesy.is_busy() else TOGETHER

    async def _run_one(self, work: Work, task: SyncTask) -> bool:
        """Upload one inode and handle how it ends. True if the journal moved on."""
        if work.error is not None:
            self._fail(work, task, work.error)
            return False
        meter = _Meter(task, self._selection.note_progress)
        with self._under_way(work.inode):
            try:
                await self._carry_out(work, meter)
            except (Moved, TargetConflict, SourceLost, CtxfsError, OSError) as error:
                return await self._handle(work, task, error)
        self._note_success(work, task, meter)
        return True

    async def _run_together(self, works: list[Work], task: SyncTask) -> list[bool]:
        """The same for several small files."""
        if len(works) == 1:
            return [await self._run_one(works[0], task)]
        with ExitStack() as stack:
            for work in works:
                stack.enter_context(self._under_way(work.inode))
            outcomes = await self._together.run(works, self._selection.note_progress)
            for work, outcome in zip(works, outcomes, strict=True):
                if outcome is None:
                    self._note_success(work, task, _Meter(task, self._selection.note_progress))
            return [outcome is None or await self._handle(work, task, outcome) for work, outcome in zip(works, outcomes, strict=True)]

    @contextmanager
    def _under_way(self, inode: Inode) -> Iterator[None]:
        self.uploading.add(inode.ino)
        try:
            yield
        finally:
            self.uploading.discard(inode.ino)
            inode.is_planned = False
            inode.marked = 0 if inode.marked != Reason.INDEX else inode.marked

    async def _handle(self, work: Work, task: SyncTask, error: Exception) -> bool:
        """What follows from how it ended. True if the journal moved on."""
        if isinstance(error, Moved):
            return self._note_move(work, task)
        if isinstance(error, TargetConflict):
            is_settled = await self._settle(work, task, partial(self._conflicts.target_changed, work.inode, error.key, self._revision_of(work)))
            self._horizon_ns = time.time_ns()       # what the other version is to be here belongs to this run
            return is_settled
        if isinstance(error, SourceLost):
            return await self._settle(work, task, partial(self._conflicts.source_lost, work.inode, error.known))
        self._fail(work, task, error)
        return False

    def _note_success(self, work: Work, task: SyncTask, meter: _Meter) -> None:
        meter.note(work.inode.size if work.row.reason & Reason.CONTENT else 0)
        task.files_done += 1
        self._selection.note_success()

    async def _carry_out(self, work: Work, meter: _Meter) -> None:
        if work.is_retiring:
            await self._localiser.retire(work)
        elif work.needs_bytes:
            await self._localiser.pin(work)
        elif work.inode.ino in self._as_it_is and work.inode.content == Content.STAGED:
            await self._uploader.run_as_it_is(work.inode, meter.note)
            self._selection.took_as_it_is(work.inode.ino)
        else:
            if self._archiver is not None:
                await self._archiver.check(work)
            await self._uploader.run(work, meter.note)

    async def _settle(self, work: Work, task: SyncTask, settle: Callable[[], Awaitable[None]]) -> bool:
        try:
            await settle()
        except (CtxfsError, OSError) as error:
            self._fail(work, task, error)
            return False
        return self._note_move(work, task)

    def _revision_of(self, work: Work) -> int | None:
        """What was refused; None where the file does not hold still: then whatever it is by now."""
        return work.revision if self._moves.get(work.inode.ino, 0) < MAX_MOVES else None

    def _note_move(self, work: Work, task: SyncTask) -> bool:
        """It changed under us: plan it again in this flush, but not for ever."""
        ino = work.inode.ino
        self._moves[ino] = self._moves.get(ino, 0) + 1
        if self._moves[ino] == MAX_MOVES:
            self._as_it_is.add(ino)
        if self._moves[ino] <= 2 * MAX_MOVES:
            return True
        self._fail(work, task, CtxfsError('the file keeps being changed while it is uploaded'))
        return False

    def _fail(self, work: Work, task: SyncTask, error: Exception) -> None:
        is_transient = error.transient if isinstance(error, CtxfsError) else isinstance(error, OSError) and error.errno in PASSING
        # A permanent failure waits for somebody to change something: the next sync, flush or mount tries it again.
        retry_ns = time.time_ns() + int(delay(work.row.attempt, retry_after_of(error)) * 1e9) if is_transient else NEVER_NS
        message = str(error) or type(error).__name__
        try:
            self._journal.fail(work.row, error=message, retry_ns=retry_ns)
            self._selection.note_failure(error)
        except CtxfsError as full:      # then nobody remembers when to try again: the schedule waits instead
            self._selection.note_step_failure(full)
        task.error_message = message
        log.warning('inode %d is not uploaded: %s', work.inode.ino, message)

    async def _break_cycle(self, waiting: list[Work], task: SyncTask) -> int:
        """Two or more clean files took each other's names: copy one target aside, so that its owner has another source. (A member is no target for
        that; it waits for an object somewhere, or goes with the commit.)"""
        targets = ((work, known) for work in waiting for key in work.missing
                   if (known := self._journal.known(key)) is not None and known.ino in work.blocked_by and not is_member(known.etag))
        work, known = next(targets, (None, None))
        return 0 if work is None or known is None else await self._copy_aside(work, known, task)

    async def _copy_aside(self, work: Work, known: Known, task: SyncTask) -> int:
        aside = f'.ctxfs/tmp/{uuid.uuid4().hex}'
        try:
            done = await self._pool.call(Copy(source=self._prefix + known.key, key=self._prefix + aside, source_etag=known.etag, size=known.size))
        except (NotFound, RemoteChanged):
            owner = self._db.inodes_of([known.ino]).get(known.ino)
            return int(owner is not None and await self._settle(work, task, partial(self._conflicts.source_lost, owner, known)))
        except CtxfsError as error:
            self._fail(work, task, error)
            return 0
        crash_point('cycle-before-record')
        self._journal.put_object(Known(aside, done.etag, done.size, known.ino, known.revision, known.sha256, 1, known.lifecycle))
        return 1


def _fills_commit(works: list[Work]) -> bool:
    if len(works) < COMMIT_BYTES // MEMBER_MAX:
        return False
    return len(works) >= COMMIT_WORKS or sum(work.inode.size for work in works) >= COMMIT_BYTES


def _divided(works: list[Work]) -> tuple[list[Work], list[Work]]:
    """Those that wait for none but others of them, which are committed at once; and the others."""
    ready = works
    while True:
        inos = {work.inode.ino for work in ready}
        left = [work for work in ready if work.blocked_by <= inos]
        if len(left) == len(ready):
            return ready, [work for work in works if work.inode.ino not in inos]
        ready = left
