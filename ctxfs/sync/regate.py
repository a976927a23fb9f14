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

from ctxfs.crash_points import crash_point
from ctxfs.errors import NotFound, RemoteChanged
from ctxfs.policy import BWList
from ctxfs.records import RESERVED_DIR
from ctxfs.storage.gating import Gating
from ctxfs.storage.inode import Content, Inode
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.reconcile import Reconciler
from ctxfs.sync.remote_changes import LISTED_AT

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
        self._db.set_meta(LISTED_AT, 0)
        self._db.set_meta(_META, b'')       # cut short, the tree agrees with no white lists at all
        objects = 0
        if not self._gating.is_open:
            self._forget_doubts()
            objects = await self._leave_objects()
        crash_point('regate-after-objects')
        inodes = await self._settle_inodes()
        self._reconciler.remove_empty_directories()
        self._db.set_meta(_META, wanted)
        return Regated(objects, inodes)

    async def _leave_objects(self) -> int:
        """Take the objects that are not synced any more for gone, as far as this host is concerned."""
        after, count = '', 0
        while rows := self._journal.objects_after(after, SLICE):
            after = rows[-1].key
            outside = [row for row in rows if self._is_outside(row.key)]
            count += len(outside)
            while outside:
                outside = await self._leave(outside)
            await trio.lowlevel.checkpoint()
        return count

    def _is_outside(self, key: str) -> bool:
        return not key.startswith(RESERVED_DIR) and not self._gating.rules.gate.is_synced(key)

    async def _leave(self, rows: list[Known]) -> list[Known]:
        """Bring what must not go with its object, then take these for gone. Returns those that came to need it meanwhile."""
        for row in rows:
            await self._bring(row)
        needed = []
        with self._db.transaction():
            for row in rows:
                if self._is_needed(row):
                    needed.append(row)
                else:
                    self._reconciler.object_gone(row)
        return needed

    async def _bring(self, row: Known) -> None:
        """Have the bytes of what is needed here. What changed in the bucket meanwhile is followed, by who found out."""
        for is_last in (False, False, True):
            if not self._is_needed(row):
                return
            try:
                await self._stage(self._db.inode(self._known(row).ino))
                return
            except (RemoteChanged, NotFound):
                if is_last:
                    raise

    def _known(self, row: Known) -> Known:
        return self._journal.known(row.key) or row

    def _is_needed(self, row: Known) -> bool:
        """What was acknowledged must not vanish with the object: a clean file that somebody is about to change, or that has a name which the
        bucket does not know yet (it was renamed or linked, or a directory above it was)."""
        row = self._known(row)
        inode = None if row.doomed else self._db.inodes_of([row.ino]).get(row.ino)
        if inode is None or not inode.is_regular or not inode.nlink or inode.content == Content.STAGED \
                or self._journal.source_of(inode) is None:
            return False
        carried = {known.key for known in self._journal.objects_of(inode.ino) if known.revision == inode.revision}
        return inode.writers > 0 or (inode.content == Content.CLEAN and not carried.issuperset(self._db.keys_of(inode)))

    def _forget_doubts(self) -> None:
        """What was sent to a place that is not synced any more is not ours to find out about: else it would be deleted when it had arrived."""
        outside = [key for key, in self._db.rows('SELECT key FROM attempt') if self._is_outside(key)]
        self._db.many('DELETE FROM attempt WHERE key = ?', ((key,) for key in outside))

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
