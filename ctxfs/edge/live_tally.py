"""The counts of a running mount, at a bounded cost however many files wait and however often somebody asks.

Owns when a count is still good: an exact one as long as no row was written, up to a second while a transfer runs. It must not know what
is counted (storage/tally.py) or who asks.

A count looks at every journal row (3 ms for 10,000), so it runs in a thread, on a connection of its own: the loop serves the file system
meanwhile. Whoever asks while one runs shares the next. During a transfer the thread may wait long for the interpreter (measured with an S3
server on the same two cores: 30 ms), so there the last count is the answer, and the next one is made in the background.
"""
from __future__ import annotations

import logging
from pathlib import Path

import trio

from ctxfs.errors import CtxfsError
from ctxfs.storage import tally
from ctxfs.storage.journal import Journal
from ctxfs.storage.tally import Tally
from ctxfs.storage.tree_connection import TreeReader
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.tasks import TaskLog

log = logging.getLogger(__name__)

#: while files are transferred, when every count is wrong in a moment: how old one may be, and from when on the next is made
MAX_AGE = 1.0
RENEW_AGE = 0.25


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
        self._is_old = trio.Event()

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
        age = trio.current_time() - self._counted_at
        if not self._tasks.running or ended != self._tasks.ended or age > MAX_AGE:
            return False
        if age > RENEW_AGE:
            self._is_old.set()
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

    async def run(self) -> None:
        """A background task: counts anew what is used and grows old."""
        while True:
            await self._is_old.wait()
            self._is_old = trio.Event()
            if self._running is None:
                try:
                    await self._count()
                except CtxfsError as error:     # who asks next counts himself, and is told
                    log.debug('count: %s', error)

    def _count_in_thread(self, path: Path) -> Tally:
        if self._reader is None:
            self._reader = TreeReader(path)
        return tally.count(self._reader)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
