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
        #: the most that the kernel knew since the last time
        self._most = 0
        self.free = FreeMemory()

    def look(self) -> None:
        """To be called now and then, in the loop's thread."""
        known, is_listed = self._known(), self._is_listed()
        self._most = max(self._most, known)
        if self._most - known < MANY and is_listed == self._was_listed:
            return
        self._most, self._was_listed = known, is_listed
        self._db.let_go()
        self.free.give_back()
