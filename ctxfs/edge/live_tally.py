"""The counts of a running mount, at a bounded cost however many files wait and however often somebody asks.

Owns when a count is still good: an exact one as long as no row was written, a quarter of a second while a transfer runs. It must not know
what is counted (storage/tally.py) or who asks.

A count looks at every journal row (3 ms for 10,000), so it runs in a thread, on a connection of its own: the loop serves the file system
meanwhile. Whoever asks while one runs shares the next.
"""
from __future__ import annotations

from pathlib import Path

import trio

from ctxfs.storage import tally
from ctxfs.storage.journal import Journal
from ctxfs.storage.tally import Tally
from ctxfs.storage.tree_db import TreeDB, TreeReader
from ctxfs.sync.tasks import TaskLog

#: how old a count may be while files are being transferred, when it is wrong in a moment anyway
MAX_AGE = 0.25


class LiveTally:
    """See the module docstring. `close` it before the database goes."""

    def __init__(self, db: TreeDB, journal: Journal, tasks: TaskLog) -> None:
        self._db = db
        self._journal = journal
        self._tasks = tasks
        self._reader: TreeReader | None = None
        self._latest = Tally()
        #: what the latest count was made from: (rows written, marks in the journal, tasks ended), and when it was begun
        self._seen = (-1, -1, -1)
        self._counted_at = 0.0
        self._begun = 0
        self._done = 0
        self._running: trio.Event | None = None

    async def read(self) -> Tally:
        """Includes everything that was acknowledged before the call, but for what a running transfer did in the last MAX_AGE seconds.
        Raises Corrupted."""
        before = self._begun
        while not (self._is_good() or self._done > before):
            if self._running is not None:
                await self._running.wait()
            else:
                await self._count()
        return self._latest

    def _is_good(self) -> bool:
        written, marks, ended = self._seen
        if written == self._db.changes:
            return True
        if not self._tasks.running or ended != self._tasks.ended or trio.current_time() - self._counted_at > MAX_AGE:
            return False
        # "nothing is pending" is what people wait for: it must never be yesterday's
        return self._latest.files > 0 or marks == self._journal.marks

    async def _count(self) -> None:
        self._begun += 1
        number, self._running = self._begun, trio.Event()
        seen, began_at = (self._db.changes, self._journal.marks, self._tasks.ended), trio.current_time()
        try:
            self._latest = await trio.to_thread.run_sync(self._count_in_thread, self._db.path)
            self._seen, self._counted_at, self._done = seen, began_at, number
        finally:
            self._running.set()
            self._running = None

    def _count_in_thread(self, path: Path) -> Tally:
        if self._reader is None:
            self._reader = TreeReader(path)
        return tally.count(self._reader)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
