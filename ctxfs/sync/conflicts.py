"""Conflicts: the bucket moved under a local change. Both contents are kept, and both have a name.

Owns the question what moved, and which of the two gets which name, by the policy: keep-both, prefer-local, prefer-remote. It must not know
when uploads run, nor what it takes to give a version another name (asides.py). Nothing is asked of the user; nothing is lost meanwhile.
"""
from __future__ import annotations

import time

import msgspec

from ctxfs.crash_points import crash_point
from ctxfs.errors import RemoteUnavailable
from ctxfs.records import ObjectInfo
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.keys import name_to_component
from ctxfs.storage.members import is_member
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.archive_view import ArchiveView
from ctxfs.sync.asides import UNKNOWN_HOST, Asides
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.protocol import Head, HeadItem
from ctxfs.sync.reconcile import Reconciler

#: remembered at once
_GIVEN = 1000


class ConflictKeeper:
    """See the module docstring."""

    def __init__(self, db: TreeDB, journal: Journal, reconciler: Reconciler, pool: TransferPool | ArchiveView, *, asides: Asides,
                 prefix: str) -> None:
        self._db = db
        self._journal = journal
        self._reconciler = reconciler
        self._pool = pool
        self._asides = asides
        self._prefix = prefix
        #: keys with versions that may have this host's content, and were given one more attempt to find out
        self._given: dict[str, str] = {}

    async def _head(self, key: str) -> HeadItem | None:
        """The object as it is now; None when there is none. Raises RemoteUnavailable and the like."""
        item, = await self._pool.call(Head(keys=[self._prefix + key]))
        if item.failure is None:
            return item
        if item.failure.name == 'NotFound':
            return None
        raise item.failure.error()

    async def target_changed(self, inode: Inode, key: str, revision: int | None = None) -> None:
        """A conditional write of this revision (None: of whatever the inode is) to `key` was refused: find out why and make the next attempt
        able to succeed."""
        before = self._journal.known(key)
        item = await self._head(key)
        if item is not None and before is not None and is_member(before.etag) and item.info is not None and item.info.etag == before.etag \
                and isinstance(self._pool, ArchiveView):
            item = await self._pool.over_member(key)
        if self._journal.known(key) != before or revision not in (None, inode.revision):
            return      # the tree moved on meanwhile, or the file is what the bucket has by now: plan again
        if item is None:
            self._journal.drop_object(key)      # deleted remotely, changed here: it is created anew
            return
        if item.info is None or (before is not None and before.etag == item.info.etag):
            raise RemoteUnavailable(f'the store refuses to replace {key} although it is the version that we know')
        if self._may_be_ours(inode, key, item):
            return
        at = next(((parent, name) for parent, name in self._db.names_of(inode.ino)
                   if self._key_of(parent, name) == key), None)
        if at is not None:
            self._keep(inode, at, msgspec.structs.replace(item.info, key=key), item)

    def _may_be_ours(self, inode: Inode, key: str, item: HeadItem) -> bool:
        """The refused write looked for its own content, but perhaps at the version before this one. The next attempt looks at this one."""
        assert item.info is not None
        if item.stamp is None or not inode.is_regular or inode.size != item.info.size or self._given.pop(key, '') == item.info.etag:
            return False
        if len(self._given) == _GIVEN:
            self._given.clear()
        self._given[key] = item.info.etag
        return True

    def _key_of(self, parent: int, name: bytes) -> str:
        return self._db.dir_key(parent) + name_to_component(name)

    def _keep(self, inode: Inode, at: tuple[int, bytes], info: ObjectInfo, item: HeadItem) -> None:
        """Both versions, under names of which the tree has neither twice."""
        parent, name = at
        if self._asides.preference == 'prefer-local':
            host = item.stamp.host[:8] if item.stamp is not None and item.stamp.host.isalnum() else UNKNOWN_HOST
            other = self._asides.free_name(parent, name, at_s=info.mtime_ns / 1e9, host=host)
            with self._db.transaction():
                theirs = self._reconciler.insert_published(parent, other, info, item)
                self._asides.moved_theirs(theirs, parent, other, info.key)
            return
        with self._db.transaction():
            self._asides.move(inode, parent, name, at_s=time.time(), refused=info.key)
            self._reconciler.insert_published(parent, name, info, item)
            crash_point('conflict-before-commit')
        crash_point('conflict-after-commit')

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
