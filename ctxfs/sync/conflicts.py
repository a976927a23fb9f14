"""Conflicts: the bucket moved under a local change. Both contents are kept, and both have a name.

Owns what becomes of the two: the remote version takes the name in the tree, the local content goes on under a copy's name and is
uploaded as a file of its own. It must not know when uploads run. Nothing is asked of the user; nothing is lost meanwhile.
"""
from __future__ import annotations

import logging
import os
import time
import uuid

import msgspec

from ctxfs.crash_points import crash_point
from ctxfs.errors import RemoteUnavailable
from ctxfs.storage.gating import Gating
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.keys import NAME_MAX, name_to_component, printable
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.events import Publish, unheard
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.ports import Invalidator
from ctxfs.sync.protocol import Head, HeadItem
from ctxfs.sync.reconcile import Reconciler

log = logging.getLogger(__name__)


def copy_name(name: bytes, *, host: str, now_s: float, number: int = 0) -> bytes:
    """`report.txt` → `report (conflict HOST 2026-11-21 10.15.00).txt`, within a file name's 255 bytes."""
    stem, ending = os.path.splitext(name)
    if len(ending) > 32:
        stem, ending = name, b''
    stamp = time.strftime('%Y-%m-%d %H.%M.%S', time.gmtime(now_s))
    mark = f' (conflict {host} {stamp}{f" {number}" if number else ""})'.encode()
    room = NAME_MAX - len(mark) - len(ending)
    while len(stem) > room:
        # a whole UTF-8 character at a time, where it is UTF-8
        stem = stem.decode('utf-8', 'surrogateescape')[:-1].encode('utf-8', 'surrogateescape')
    return stem + mark + ending


class ConflictKeeper:
    """See the module docstring."""

    def __init__(self, db: TreeDB, journal: Journal, reconciler: Reconciler, pool: TransferPool, invalidator: Invalidator, *,
                 gating: Gating, prefix: str, host: str, publish: Publish = unheard) -> None:
        self._db = db
        self._journal = journal
        self._reconciler = reconciler
        self._pool = pool
        self._invalidator = invalidator
        self._gating = gating
        self._prefix = prefix
        self._host = host
        self._publish = publish

    async def _head(self, key: str) -> HeadItem | None:
        """The object as it is now; None when there is none. Raises RemoteUnavailable and the like."""
        item, = await self._pool.call(Head(keys=[self._prefix + key]))
        if item.failure is None:
            return item
        if item.failure.name == 'NotFound':
            return None
        raise item.failure.error()

    async def target_changed(self, inode: Inode, key: str) -> None:
        """A conditional write to `key` was refused: find out why and make the next attempt able to succeed."""
        before = self._journal.known(key)
        item = await self._head(key)
        if self._journal.known(key) != before:
            return      # the tree moved on meanwhile; plan again
        if item is None:
            self._journal.drop_object(key)      # deleted remotely, changed here: it is created anew
            return
        assert item.info is not None
        if before is not None and before.etag == item.info.etag:
            raise RemoteUnavailable(f'the store refuses to replace {key} although it is the version that we know')
        at = next(((parent, name) for parent, name in self._db.names_of(inode.ino)
                   if self._key_of(parent, name) == key), None)
        if at is not None:
            self._keep_both(inode, key, at, item)

    def _key_of(self, parent: int, name: bytes) -> str:
        return self._db.dir_key(parent) + name_to_component(name)

    def _keep_both(self, inode: Inode, key: str, at: tuple[int, bytes], item: HeadItem) -> None:
        parent, name = at
        info = item.info
        assert info is not None
        with self._db.transaction():
            other = self._free_name(parent, name)
            self._db.delete_dentry(parent, name)
            self._db.insert_dentry(parent, other, inode.ino)
            # other hosts must not take the copy for one more name of what keeps the name
            inode.link_group = uuid.uuid4().hex if inode.nlink > 1 else None
            self._db.execute('UPDATE inode SET link_group = ? WHERE ino = ?', (inode.link_group, inode.ino))
            self._journal.mark(inode, Reason.NAMES | Reason.CONTENT | Reason.ATTRS)
            self._gating.settle(inode)
            self._db.execute('INSERT OR REPLACE INTO conflict VALUES (?, ?, ?)', (inode.ino, key, time.time_ns()))
            winner = self._insert_winner(parent, name, key, item)
            crash_point('conflict-before-commit')
        crash_point('conflict-after-commit')
        self._invalidator.entry(parent, name)
        self._invalidator.entry(parent, other)
        log.warning('conflict: %s was changed on another host and here; ours is now %r, theirs keeps the name (inode %d)', key,
                    other.decode('utf-8', 'replace'), winner.ino)
        self._publish('conflict', path='/' + printable(self._key_of(parent, other)), original='/' + printable(key))

    def _insert_winner(self, parent: int, name: bytes, key: str, item: HeadItem) -> Inode:
        info = item.info
        assert info is not None
        winner = Inode(self._db.allocate_ino(), 0o100644, 0, 0, 0, 1, info.size, info.mtime_ns, info.mtime_ns, info.mtime_ns,
                       Content.CLEAN, 1, attrs_known=0)
        self._db.insert_inode(winner)
        self._db.insert_dentry(parent, name, winner.ino)
        self._journal.put_object(Known(key, info.etag, info.size, winner.ino, winner.revision, '', 0, item.lifecycle, info.mtime_ns))
        self._reconciler.describe(winner, item.attrs)
        return winner

    def _free_name(self, parent: int, name: bytes) -> bytes:
        number = 0
        while self._db.lookup(parent, found := copy_name(name, host=self._host[:8], now_s=time.time(), number=number)) is not None:
            number += 1
        return found

    async def source_lost(self, inode: Inode, known: Known) -> None:
        """The object that carried a clean, moved inode's content changed or went: the inode follows it."""
        item = await self._head(known.key)
        if self._journal.known(known.key) != known:
            return
        has_other = any(other.key != known.key and other.revision == inode.revision for other in self._journal.objects_of(inode.ino))
        with self._db.transaction():
            if inode.content != Content.CLEAN or inode.revision != known.revision or not inode.nlink or has_other:
                self._journal.drop_object(known.key)    # its bytes are elsewhere too: here, or under another key
                self._reconciler.obstructed.add(known.key)
            elif item is None:
                self._reconciler.object_gone(known)
            else:
                assert item.info is not None
                fresh = self._reconciler.replace_content(inode, known, msgspec.structs.replace(item.info, key=known.key), None)
                if fresh is not None:
                    self._reconciler.describe(fresh, item.attrs)
                    self._journal.mark(fresh, Reason.NAMES)

    def count(self) -> int:
        """Conflict copies that still exist."""
        return int(self._db.row('SELECT count(*) FROM conflict c JOIN dentry d ON d.ino = c.ino')[0])
