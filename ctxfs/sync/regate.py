"""Regating: making the tree agree with other white lists than those it was built with, at a mount or while mounted.

Owns what a change of the policy means for what is here and in the bucket; a rename across the boundary is storage/gating.py's. It must not
know where a policy comes from. Runs while nothing is uploaded or listed. Idempotent; cut short it is done again, because the white lists
that the tree agrees with are written down last.

    not synced any more:  clean        → not shown any more; the object stays (a policy says what this host syncs, not what the bucket holds)
                          changed or renamed here → stays, on this host only; the object stays
                          removed here → the object stays
    synced now:           local-only   → pending: it is uploaded
                          in the bucket → the next listing shows it
"""
from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
import trio

from ctxfs.policy import BWList
from ctxfs.storage.gating import Gating
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.reconcile import Reconciler

#: rows in one transaction: a few ms of the loop
SLICE = 250
_META = 'white_lists'


class Regated(NamedTuple):
    """How many objects are not this host's business any more, and how many inodes changed sides."""
    objects: int
    inodes: int


class Regater:
    """See the module docstring. `stage(inode)` brings a clean file's bytes here. Raises what TreeDB and that raise."""

    def __init__(self, db: TreeDB, journal: Journal, gating: Gating, reconciler: Reconciler, *,
                 stage: Callable[[Inode], Awaitable[None]]) -> None:
        self._db = db
        self._journal = journal
        self._gating = gating
        self._reconciler = reconciler
        self._stage = stage

    @property
    def _wanted(self) -> bytes:
        return msgspec.json.encode(self._gating.rules.policy.bw_list)

    @property
    def is_due(self) -> bool:
        """Whether the tree was built with other white lists than the rules have now."""
        found = self._db.meta(_META)
        return (bytes(found) if found is not None else msgspec.json.encode(BWList())) != self._wanted

    async def run(self) -> Regated:
        """See the module docstring."""
        wanted = self._wanted
        self._db.set_meta(_META, b'')       # cut short, the tree agrees with no white lists at all
        objects = await self._leave_objects() if not self._gating.is_open else 0
        inodes = await self._settle_inodes()
        self._reconciler.remove_empty_directories()
        self._db.set_meta(_META, wanted)
        return Regated(objects, inodes)

    async def _leave_objects(self) -> int:
        """Take the objects that are not synced any more for gone, as far as this host is concerned."""
        after, count = '', 0
        while rows := self._journal.objects_after(after, SLICE):
            after = rows[-1].key
            outside = [row for row in rows if not self._gating.rules.gate.is_synced(row.key)]
            for row in outside:
                await self._keep_moved(row)
            with self._db.transaction():
                for row in outside:
                    self._reconciler.object_gone(row)
            count += len(outside)
            await trio.lowlevel.checkpoint()
        return count

    async def _keep_moved(self, row: Known) -> None:
        """A clean file that was renamed and not uploaded under its new name: what was acknowledged must not vanish with its old object."""
        pending = self._journal.pending_row(row.ino)
        if pending is None or not pending.reason & Reason.NAMES or row.doomed:
            return
        inode = self._db.inode(row.ino)
        if inode.is_regular and inode.nlink and inode.content == Content.CLEAN:
            await self._stage(inode)

    async def _settle_inodes(self) -> int:
        after, count = 0, 0
        while inos := [row[0] for row in self._db.rows('SELECT ino FROM inode WHERE ino > ? ORDER BY ino LIMIT ?', (after, SLICE))]:
            after = inos[-1]
            with self._db.transaction():
                for inode in self._db.inodes_of(inos).values():
                    before = inode.local
                    self._gating.settle(inode)
                    count += inode.local != before
            await trio.lowlevel.checkpoint()
        return count
