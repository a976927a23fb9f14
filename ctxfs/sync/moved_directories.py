"""Moved directories: each file below one has another key now.

Owns how the journal's row of a directory becomes rows of what is below it. It must not know plans or uploads. Journaled, so a crash resumes.
"""
from __future__ import annotations

import trio

from ctxfs.crash_points import crash_point
from ctxfs.storage.gating import Gating
from ctxfs.storage.inode import Reason
from ctxfs.storage.journal import Journal
from ctxfs.storage.tree_db import TreeDB

#: directories looked up at a time, and names marked without a pause: about 3 ms of the loop
BATCH = 500
SLICE = 40


class MovedDirectories:
    """See the module docstring."""

    def __init__(self, db: TreeDB, journal: Journal, gating: Gating) -> None:
        self._db = db
        self._journal = journal
        self._gating = gating

    async def expand(self) -> None:
        """A moved directory means new keys for everything below: give each its own journal row, then clear the directory's bit."""
        while rows := self._db.rows('SELECT ino, seq FROM pending WHERE reason & ? LIMIT ?', (Reason.SUBTREE, BATCH)):
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
            while page := self._db.children(directory, after, SLICE):
                after = page[-1][0]
                stack += self._mark_children([child for _, child in page])
                await trio.lowlevel.checkpoint()
        crash_point('subtree-before-clear')
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
