"""The upload schedule: when a mount uploads by itself, and that it does not where the policy says so.

Owns the period, the clock and what an unmount does; the engine flushes, selection.py says which files are ready. It must not know what a
flush consists of, or the bucket.

    period > 0          a flush is due that long after the oldest change that the bucket does not have
    period 0            "on close": a flush follows COALESCE_SECONDS after a close, a rename, an unlink, a chmod …
    only on unmount     no clock
    autoUpload false    manual: only `ctxfs sync`; an unmount leaves the changes in the journal and says how many

After a flush: files that were being written are looked at when they may be quiet; failed rows when their retry time comes; while the store
fails, flushes are 0.5 s apart, doubling to 20 s, and begin with one file. Nothing is scanned per tick: the journal says cheaply that it
changed (`marks`), and its rows are looked through once after each flush. The policy is asked every time, so that a replaced one counts.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Callable

import trio

from ctxfs.policy import DEFAULT_PERIOD, ONLY_ON_UNMOUNT
from ctxfs.rules import Rules
from ctxfs.storage.journal import Journal
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.backoff import delay
from ctxfs.sync.engine import FlushResult, UploadEngine
from ctxfs.sync.events import Publish, unheard
from ctxfs.sync.rounds import NEVER_NS
from ctxfs.sync.selection import QuietRule, Ready, Wait

log = logging.getLogger(__name__)

#: what comes so soon after a close belongs to the same save (the rename over the old file)
COALESCE_SECONDS = 0.05
#: the longest sleep: a replaced policy, or a change, is noticed so late at most (a quarter of the period where that is less)
LOOK_SECONDS = 1.0
#: flushes are never closer to each other: whatever is wrong, the loop sleeps
GAP_SECONDS = 0.05
#: what is under way when the time of the last flush is over has so long to end
LAST_SECONDS = 300.0
_NEVER = float('inf')


class UploadScheduler:
    """See the module docstring. `sync_every`: the mount's own period in seconds, which goes before the policy's; `clock`: Unix ns."""

    def __init__(self, engine: UploadEngine, db: TreeDB, journal: Journal, *, rules: Rules, sync_every: float | None = None,
                 clock: Callable[[], int] = time.time_ns, publish: Publish = unheard) -> None:
        self._engine = engine
        self._db = db
        self._journal = journal
        self._rules = rules
        self._sync_every = sync_every
        self._clock = clock
        self._publish = publish
        self._is_stopped = False
        self._woken = trio.Event()
        journal.on_mark = self._note_mark
        #: of the oldest change that no flush has looked at yet (Unix ns; 0: there is none), and when the loop first saw it (trio time)
        self._oldest_ns = journal.oldest_ns
        self._seen_at = trio.current_time()
        self._looked_ns = clock()
        self._marks = journal.marks
        #: inodes that wait for their writers (see Ready.waiting)
        self._waiting: dict[int, Wait] = {}
        #: of failed rows the first retry time (Unix ns), how many flushes failed in a row, and not before when the next one begins
        self._retry_ns: int | None = None
        self._failures = 0
        self._not_before = 0.0

    # --- the policy's answers -----------------------------------------------------------------------------------------------------------

    @property
    def is_manual(self) -> bool:
        return not self._rules.policy.upload_policy.auto_upload

    @property
    def period(self) -> float | None:
        """Seconds from a change to its upload, 0 on close; None: nothing is uploaded before the unmount."""
        if self.is_manual:
            return None
        period = self._sync_every if self._sync_every is not None else self._rules.policy.upload_policy.period
        if period is None:
            return DEFAULT_PERIOD
        return None if period == ONLY_ON_UNMOUNT or period < 0 else period

    # --- what others ask ------------------------------------------------------------------------------------------------------------------

    @property
    def is_paused(self) -> bool:
        return self._engine.is_paused

    def pause(self) -> None:
        """No transfer begins by itself any more, and a flush by the clock ends after the files that are under way."""
        if not self.is_paused:
            self._engine.pause()
            self._publish('paused')

    def resume(self) -> None:
        if self.is_paused:
            self._engine.resume()
            self._publish('resumed')
            self._woken.set()

    def wake(self) -> None:
        """A file was closed: with period 0 that is when it is uploaded."""
        if self.period == 0:
            self._woken.set()

    _note_mark = wake

    def next_at(self) -> float:
        """Unix seconds of the next upload that begins by itself; 0: none is due."""
        period = self.period
        if period is None or self.is_paused or self._is_stopped:
            return 0.0
        self._look()
        wait = self._due_at(period) - trio.current_time()
        return 0.0 if wait == _NEVER else self._clock() / 1e9 + max(0.0, wait)

    # --- the clock --------------------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until `write_back`, or cancelled."""
        while not self._is_stopped:
            period = self.period
            due_at = _NEVER
            if period is not None and not self.is_paused:
                self._look()
                due_at = self._due_at(period)
                if due_at <= trio.current_time():
                    await self._flush(period)
                    continue
            await self._sleep_until(due_at, period)

    async def _sleep_until(self, due_at: float, period: float | None) -> None:
        longest = min(LOOK_SECONDS, period / 4) if period else LOOK_SECONDS
        with trio.move_on_after(max(0.0, min(longest, due_at - trio.current_time()))):
            await self._woken.wait()
            if period == 0:
                await trio.sleep(COALESCE_SECONDS)
        self._woken = trio.Event()

    def _look(self) -> None:
        """Whether anything came since the last look: then it came after that, to be early rather than late."""
        now_ns = self._clock()
        if self._marks != self._journal.marks:
            self._marks = self._journal.marks
            if not self._oldest_ns:
                self._oldest_ns, self._seen_at = self._looked_ns, trio.current_time()
        self._looked_ns = now_ns

    def _due_at(self, period: float) -> float:
        """When the next flush begins, in trio time."""
        due_at = min(self._changes_due_at(period), self._from_unix(self._retry_ns or NEVER_NS), self._waiting_until(period))
        return max(due_at, self._not_before)

    def _changes_due_at(self, period: float) -> float:
        if not self._oldest_ns:
            return _NEVER
        # a clock that was set back must not put it off for longer than the period
        return min(self._from_unix(self._oldest_ns) + period, self._seen_at + period)

    def _waiting_until(self, period: float) -> float:
        rule, first = QuietRule(period), _NEVER
        for wait in self._waiting.values():
            inode = self._db.live_inode(wait.ino)
            ready_at = rule.ready_at(inode) if inode is not None else float('-inf')
            first = min(first, ready_at, self._from_unix(wait.until_ns))
        return first

    def _from_unix(self, ns: int) -> float:
        return _NEVER if ns >= NEVER_NS else trio.current_time() + (ns - self._clock()) / 1e9

    # --- a flush ----------------------------------------------------------------------------------------------------------------------------

    async def _flush(self, period: float) -> None:
        selection = Ready(QuietRule(period), period=period, now_ns=self._clock(), is_cautious=self._failures > 0, may_go_on=self._may_go_on)
        result = await self._engine.flush_ready(selection)
        if result.files or not result.ok:
            log.info('by the clock: %d files, %d bytes uploaded; %s', result.files, result.bytes, result.message or 'all that was ready')
        now_ns = self._clock()
        self._failures = self._failures + 1 if selection.has_failed else 0
        pause = delay(self._failures - 1, selection.retry_after) if self._failures else GAP_SECONDS
        self._not_before = trio.current_time() + pause
        self._waiting = selection.waiting
        self._marks = self._journal.marks
        self._oldest_ns, self._seen_at = self._journal.oldest_due_ns(now_ns, without=self._waiting), trio.current_time()
        self._retry_ns = self._journal.next_retry_ns(now_ns, NEVER_NS)
        if selection.has_failed:        # also of steps that have no row: the index, deletes
            self._retry_ns = min(self._retry_ns or NEVER_NS, now_ns + int(pause * 1e9))
        if not self._oldest_ns and self._journal.doomed_count():
            self._oldest_ns = now_ns        # deletes that wait for somebody who has the file open

    def _may_go_on(self) -> bool:
        return not (self.is_paused or self.is_manual or self._is_stopped)

    async def write_back(self, retry_seconds: float) -> FlushResult:
        """What an unmount does: everything is uploaded at once, or, in manual mode, left in the journal. `ok`: nothing is left. It ends when
        nothing got through for `retry_seconds`, whatever the store does; what is under way then has LAST_SECONDS more."""
        self._is_stopped = True
        self._woken.set()
        if not self.is_manual:
            result = await self._engine.flush_finally(retry_seconds, last_seconds=LAST_SECONDS)
            if result is not None:
                return result
        left = self._journal.summary()[0]
        if not self.is_manual:      # a request that hangs: its outcome is settled by the next mount
            return FlushResult(left == 0, 0, 0, f'{left} {"change is" if left == 1 else "changes are"} not uploaded: the store does not answer'
                               if left else '')
        return FlushResult(left == 0, 0, 0, '' if not left else f'autoUpload is off: {left} {"change stays" if left == 1 else "changes stay"} '
                           'on this host; mount it again and run ctxfs sync')
