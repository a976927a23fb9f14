"""Removals: what goes from the tree when an object is gone from the bucket, and what stays.

Owns the answer whether an inode may follow the bucket at all, and the removal of names. It must not know listings, nor what is shown
instead (reconcile.py). Call it within a transaction.

INVARIANT: what may follow has nothing that is only here. Who has a file open for writing may have written what only the kernel knows yet
(its writeback cache), or is about to: such a file keeps its version, and its object is looked at again, until it is closed or changed.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ctxfs.storage.gating import Gating
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.changed_directories import ChangedDirectories
from ctxfs.sync.doubt import BY_ATTEMPT
from ctxfs.sync.ports import Invalidator


class Removals:
    """See the module docstring. `look_again_at(key)`: what is known of the key is not what the bucket has. Raises what TreeDB raises."""

    def __init__(self, db: TreeDB, journal: Journal, invalidator: Invalidator, *, gating: Gating, directories: ChangedDirectories,
                 counts: Counter[str], look_again_at: Callable[[str], None]) -> None:
        self._db = db
        self._journal = journal
        self._invalidator = invalidator
        self._gating = gating
        self._directories = directories
        self._counts = counts
        self._look_again_at = look_again_at

    def may_follow(self, inode: Inode) -> bool:
        """Nothing of it is only here. (SEALED: uploaded, the staging file is but a copy; its index record says nothing without its object.)"""
        if inode.writers:
            return False
        if inode.content == Content.CLEAN:
            return True
        if inode.content != Content.SEALED and not inode.is_symlink:
            return False
        row = self._journal.pending_row(inode.ino)
        return row is None or row.reason == Reason.INDEX

    def object_gone(self, row: Known) -> None:
        """The bucket has no such object any more."""
        current = self._journal.known(row.key)      # as it is now: another object of this listing may have moved it to a new inode
        if current is None:
            return
        row = current
        inode = None if row.doomed else self._db.inodes_of([row.ino]).get(row.ino)
        if inode is not None and inode.writers and self._is_all_there_is(row, inode):
            self._look_again_at(row.key)
            return
        self._journal.drop_object(row.key)
        if inode is None:
            return
        if inode.is_dir:
            self._directories.lost(inode.ino)
        elif inode.revision == row.revision and self.may_follow(inode) and self._journal.source_of(inode) is None:
            self._remove_names(inode)
        else:
            self._remove_one_name(inode, row.key)

    def _is_all_there_is(self, row: Known, inode: Inode) -> bool:
        """Without the row the inode would have no content."""
        return inode.content in (Content.CLEAN, Content.SEALED) and row.revision == inode.revision and not any(
            other.key != row.key and other.revision == inode.revision for other in self._journal.objects_of(inode.ino))

    def _remove_names(self, inode: Inode) -> None:
        """All of them, but those outside the white lists where the bytes are here for them."""
        names = self._db.names_of(inode.ino)
        if inode.has_staging:
            names = [name for name in names if self._gating.is_synced(*name)]
        for parent, name in names:
            self.remove_name(inode, parent, name)
            self._directories.lost(parent)
        self._counts['removed'] += 1
        if inode.nlink:
            inode.content = Content.STAGED
            self._db.store_content(inode)
            self._gating.settle(inode)

    def _remove_one_name(self, inode: Inode, key: str) -> None:
        """One of several hard links went remotely: that name goes, the others carry the content. Where no object does, the next upload makes
        the name anew with the rest."""
        if inode.content == Content.STAGED or self._journal.source_of(inode) is None:
            return
        for parent, name in self._db.names_of(inode.ino):
            if self._gating.key_of(parent, name) == key and inode.nlink > 1:
                self.remove_name(inode, parent, name)
                self._directories.lost(parent)

    def _give_up_unknown(self, inode: Inode) -> None:
        """Of a link's object that nobody looked at since another one changed (revision 0) nothing can be said, so it is not deleted."""
        for row in self._journal.objects_of(inode.ino):
            if not row.revision and not row.doomed:
                self._journal.drop_object(row.key)
                self._look_again_at(row.key)

    def remove_name(self, inode: Inode, parent: int, name: bytes) -> None:
        """Of an inode that may follow: with its last name it goes, and so do objects that it has left."""
        self._db.delete_dentry(parent, name)
        inode.nlink -= 1
        self._db.store_times(inode)
        if inode.nlink == 0:
            self._journal.forget(inode.ino)
            forget_copies(self._db, inode)
            self._give_up_unknown(inode)
            self._journal.doom_objects_of(inode.ino)
            if inode.open_count == 0:
                self._db.delete_inode(inode.ino)
        self._invalidator.entry(parent, name, inode.ino if inode.nlink == 0 else 0)
        self._directories.gained(parent)


def forget_copies(db: TreeDB, inode: Inode) -> None:
    """Copies of its object that were begun and not heard of: whether one arrived, only its content tells, and that is also what another host has that
    moved the object there. What is there shows as anybody's; taken for ours, it would be deleted."""
    db.execute('DELETE FROM attempt WHERE ino = ? AND substr(sha256, 1, ?) <> ?', (inode.ino, len(BY_ATTEMPT), BY_ATTEMPT))
