"""Directories that remote changes gave entries or took them from: their times, and their end where nothing makes them exist any more.

Owns what is still to be done about them. It must not know what changed their entries, nor listings.
"""
from __future__ import annotations

import time

from ctxfs.records import ROOT_INO
from ctxfs.storage.journal import Journal
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.ports import Invalidator


class ChangedDirectories:
    """See the module docstring. `is_live`: the first listing is complete, so what comes is news, and the directories' times say so (make and
    git's untracked cache go by them)."""

    def __init__(self, db: TreeDB, journal: Journal, invalidator: Invalidator) -> None:
        self._db = db
        self._journal = journal
        self._invalidator = invalidator
        self._lost: set[int] = set()
        self._touched: set[int] = set()
        self.is_live = False

    def gained(self, *inos: int) -> None:
        self._touched.update(inos)

    def lost(self, ino: int) -> None:
        """It lost an entry or its marker: it goes too if nothing makes it exist any more."""
        self._touched.add(ino)
        self._lost.add(ino)

    def touch(self) -> None:
        """Set the times; call it in the transaction that changed the entries."""
        if not self.is_live:
            self._touched.clear()
            return
        while self._touched:
            inode = self._db.inodes_of([ino := self._touched.pop()]).get(ino)
            if inode is not None and inode.nlink:
                inode.mtime_ns = inode.ctime_ns = time.time_ns()
                self._db.store_times(inode)
                self._invalidator.attrs(ino)

    def unmarked(self) -> list[str]:
        """Keys of markers that would keep what `remove_empty` is about to remove, with the directories above that go with it."""
        keys: dict[str, None] = {}
        for lost in self._lost:
            ino, children = lost, 0
            while self._may_go(ino, children) and (key := self._db.dir_key(ino)) not in keys:
                keys[key] = None
                ino, children = self._db.names_of(ino)[0][0], 1
        return list(keys)

    def _may_go(self, ino: int, children: int) -> bool:
        """Whether nothing that is known here makes a directory exist, beside so many children."""
        inode = self._db.inodes_of([ino]).get(ino)
        return inode is not None and ino != ROOT_INO and bool(inode.nlink) and not self._db.has_children(ino, beside=children) \
            and not self._journal.objects_of(ino) and self._journal.pending_row(ino) is None

    def remove_empty(self) -> list[str]:
        """Returns the keys (as of files) that stand for something else from now on."""
        freed: list[str] = []
        with self._db.transaction():
            while self._lost:
                self._remove_if_empty(self._lost.pop(), freed)
            self.touch()
        return freed

    def _remove_if_empty(self, ino: int, freed: list[str]) -> None:
        if not self._may_go(ino, 0):
            return
        inode = self._db.inode(ino)
        freed.append(self._db.dir_key(ino)[:-1])
        parent, name = self._db.names_of(ino)[0]
        self._db.delete_dentry(parent, name)
        self._db.forget_dir_keys()
        inode.nlink = 0     # who waits to use it finds it gone
        self._db.delete_inode(ino)
        above = self._db.inode(parent)
        above.nlink -= 1
        self._db.store_times(above)
        self._invalidator.entry(parent, name, ino)
        self.lost(parent)
