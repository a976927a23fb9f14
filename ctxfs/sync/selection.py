"""Which pending inodes one flush takes: all of them (`Everything`), or those that the clock brings and that are ready (`Ready`).

Owns the quiet rule: a file in the middle of being written waits, but not for ever; then it is taken as it is at one instant. It must not know
how anything is uploaded, when the next flush is, or the bucket.

    period > 0      in the middle of being written = changed less than min(2 s, period / 2) ago; waits at most five periods after its
                    first unsent change
    period = 0      = open for writing (the flush comes on close); waits at most OPEN_SECONDS, which is long for a file that is saved,
    (on close)      and short for a log that somebody keeps open for days

A file that wants the name of one that waits (a log that was rotated) waits with it: the bucket has no newer version of that one than the
object that would be overwritten. One flush at a time uses a selection, and one selection serves one flush.
"""
from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import trio

from ctxfs.errors import CtxfsError
from ctxfs.storage.inode import Content, Inode
from ctxfs.storage.journal import Pending
from ctxfs.sync.backoff import retry_after_of

#: a file that was not changed for so long is quiet, where the period is long enough
QUIET_SECONDS = 2.0
#: a file that is never quiet is uploaded as it is after so many periods
LONGEST_PERIODS = 5
#: the same where there is no period, because files are uploaded when they are closed
OPEN_SECONDS = 30.0
#: transient failures in a row that mean that the store is in trouble, and not one file
TROUBLE = 3
#: the same for a flush that somebody waits for, and that other failures of a bad network must not end
OUTAGE = 8


class Turn(Enum):
    """What becomes of one row in this flush."""
    NOW = 'now'
    AS_IT_IS = 'as it is'       # a copy of the staging file at one instant is uploaded; programs go on writing
    LATER = 'later'


class Wait(NamedTuple):
    """What an inode whose time has come waits for: until that inode (mostly itself) is ready, or that time (Unix ns)."""
    ino: int
    until_ns: int


class QuietRule:
    """The rule for one period in seconds; see the module docstring."""

    def __init__(self, period: float) -> None:
        self._is_on_close = period <= 0
        self.quiet_seconds = 0.0 if self._is_on_close else min(QUIET_SECONDS, period / 2)
        self.longest_seconds = OPEN_SECONDS if self._is_on_close else LONGEST_PERIODS * period

    def ready_at(self, inode: Inode) -> float:
        """When the inode is ready if nothing changes: trio time, in the past where it is ready, infinity while only a close helps."""
        if inode.content != Content.STAGED:
            return float('-inf')
        if self._is_on_close:
            return float('inf') if inode.writers else float('-inf')
        return inode.changed_at + self.quiet_seconds


class Everything:
    """An explicit flush: everything at once, again and again until nothing is left. A file that does not hold still is taken as it is,
    once: what is written to it after that instant came after the flush was asked for."""

    is_cautious = False

    def __init__(self, *, patience: float = float('inf')) -> None:
        """`patience`: seconds without any progress after which nothing more is begun."""
        self._patience = patience
        self._failures = 0
        self.progressed_at = trio.current_time()
        #: inodes that were uploaded as they were at one instant
        self.taken: set[int] = set()

    @property
    def is_over(self) -> bool:
        """Whether the pass that runs is to begin nothing more. Never while all goes well, however long that takes."""
        return self._failures >= OUTAGE or (self._failures > 0 and self.is_stalled)

    @property
    def is_stalled(self) -> bool:
        return trio.current_time() >= self.progressed_at + self._patience

    def note_progress(self) -> None:
        """Something got through."""
        self.progressed_at = trio.current_time()

    def begin_pass(self) -> None:
        self._failures = 0

    def turn_of(self, row: Pending, inode: Inode) -> Turn:
        return Turn.LATER if row.ino in self.taken else Turn.NOW

    def holds_back(self, row: Pending, owner_row: Pending, owner: Inode) -> bool:
        """Never: the owner's upload belongs to this flush, too."""
        return False

    def took_as_it_is(self, ino: int) -> None:
        self.taken.add(ino)

    def note_success(self) -> None:
        self._failures = 0
        self.note_progress()

    def note_failure(self, error: Exception) -> None:
        """Tried again by the flush itself, in a later pass: where nothing gets through, it would be asked in vain for every file."""
        self._failures += isinstance(error, CtxfsError) and error.transient

    def note_step_failure(self, error: Exception) -> None:
        """The other steps are few."""


class Ready:
    """A flush that the clock asked for: one pass over the rows that are ready. `may_go_on` is asked between files."""

    def __init__(self, rule: QuietRule, *, period: float, now_ns: int, is_cautious: bool, may_go_on: Callable[[], bool]) -> None:
        self._rule = rule
        self._due_ns = now_ns - int(period * 1e9)
        self._now_ns = now_ns
        self._may_go_on = may_go_on
        self._failures = 0
        self.progressed_at = trio.current_time()
        #: the store is in trouble: what was not done is not to be tried at once
        self.has_failed = False
        self.first_error = ''
        #: seconds in which the store does not want to be asked
        self.retry_after = 0.0
        #: the store failed the last time: one file first, then the others
        self.is_cautious = is_cautious
        #: inodes whose time had come and that wait for their writers, or for another's
        self.waiting: dict[int, Wait] = {}
        self._taken: set[int] = set()

    @property
    def is_over(self) -> bool:
        return self._failures >= (1 if self.is_cautious else TROUBLE) or not self._may_go_on()

    def turn_of(self, row: Pending, inode: Inode) -> Turn:
        if row.ino in self._taken:
            return Turn.LATER       # it goes on changing: its next instant is its next turn
        if self._rule.ready_at(inode) <= trio.current_time():
            self.waiting.pop(row.ino, None)
            return Turn.NOW
        until_ns = row.since_ns + int(self._rule.longest_seconds * 1e9)
        if until_ns <= self._now_ns:
            self.waiting.pop(row.ino, None)
            return Turn.AS_IT_IS
        if row.since_ns <= self._due_ns:
            self.waiting[row.ino] = Wait(row.ino, until_ns)
        return Turn.LATER

    def holds_back(self, row: Pending, owner_row: Pending, owner: Inode) -> bool:
        """Whether `row` must not overwrite the object of `owner`, a staged file of another name by now, because that one's upload waits."""
        if owner.ino in self._taken:
            return False
        if owner_row.retry_ns > self._now_ns:
            self.waiting[row.ino] = Wait(owner.ino, owner_row.retry_ns)
        elif self.turn_of(owner_row, owner) is Turn.LATER:
            self.waiting[row.ino] = Wait(owner.ino, owner_row.since_ns + int(self._rule.longest_seconds * 1e9))
        else:
            return False
        return True

    def begin_pass(self) -> None:
        """There is only one."""

    def note_progress(self) -> None:
        self.progressed_at = trio.current_time()

    def took_as_it_is(self, ino: int) -> None:
        self._taken.add(ino)
        self.waiting[ino] = Wait(ino, self._now_ns + int(self._rule.longest_seconds * 1e9))

    def note_success(self) -> None:
        self._failures = 0
        self.is_cautious = False

    def note_failure(self, error: Exception) -> None:
        """Only what a retry may help says something about the store."""
        self.first_error = self.first_error or str(error) or type(error).__name__
        if isinstance(error, CtxfsError) and error.transient:
            self._failures += 1
            self.has_failed = True
            self.retry_after = max(self.retry_after, retry_after_of(error))

    def note_step_failure(self, error: Exception) -> None:
        """What is no file's (an index segment, a batch of deletes) has no retry time of its own."""
        self.note_failure(error)
        self.has_failed = True


#: what the engine is given
Selection = Everything | Ready
