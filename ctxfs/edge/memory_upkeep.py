"""When a mount gives back memory: when much work has come to its end, and what it took is free now.

Owns these moments: the whole context has been listed, and the kernel has forgotten very many inodes. It must not know how it is done
(sync/free_memory.py, TreeDB.let_go). In between, what is free is used again.
"""
from __future__ import annotations

from collections.abc import Callable

from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.free_memory import FreeMemory

#: inodes forgotten since the last time: what they took is worth the milliseconds
MANY = 20_000


class MemoryUpkeep:
    """`known`: how many inodes the kernel knows; `is_listed`: whether the whole context is in the tree."""

    def __init__(self, db: TreeDB, *, known: Callable[[], int], is_listed: Callable[[], bool]) -> None:
        self._db = db
        self._known = known
        self._is_listed = is_listed
        self._was_listed = False
        #: how many the kernel knew at the last look, and at most since the last time
        self._last = self._most = 0
        #: some was given back while the work may not have been at its end
        self._goes_on = False
        self.free = FreeMemory()

    def look(self) -> None:
        """To be called now and then, in the loop's thread. Work that comes to its end slowly is noticed on the way, and once more when nothing
        has changed from one look to the next: that can be worth as much again (measured: 20 of 94 MB after 200,000 files)."""
        known, is_listed = self._known(), self._is_listed()
        is_still, self._last, self._most = known == self._last, known, max(self._most, known)
        if self._most - known >= MANY or is_listed != self._was_listed:
            self._most, self._was_listed = known, is_listed
            self._goes_on = self.free.has_grown()
            if self._goes_on:
                self._give_back()
        elif self._goes_on and is_still:
            self._goes_on = False
            self._give_back()

    def _give_back(self) -> None:
        self._db.let_go()
        self.free.give_back()
