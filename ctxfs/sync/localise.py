"""Bringing bytes here: what a flush does for files whose names left the white lists, or lie on both sides of them.

Owns the order that makes it safe: first the bytes are in staging and the row says so, then the objects become tombstones (which the finisher
deletes, or keeps where the policy says so). A crash in between leaves a file that is both here and in the bucket, and the next flush goes
on. It must not know white lists (storage/gating.py) or how bytes come here (a callable that the daemon takes from core).
"""
from __future__ import annotations

from collections.abc import Awaitable, Callable

from ctxfs.crash_points import crash_point
from ctxfs.errors import NotFound, RemoteChanged
from ctxfs.storage.gating import Gating
from ctxfs.storage.inode import Content, Inode
from ctxfs.storage.journal import Journal
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.planner import Work
from ctxfs.sync.uploader import Moved, SourceLost


class Localiser:
    """See the module docstring. `stage(inode)` makes the staging file the truth, holding the content as it is now."""

    def __init__(self, db: TreeDB, journal: Journal, gating: Gating, *, stage: Callable[[Inode], Awaitable[None]]) -> None:
        self._db = db
        self._journal = journal
        self._gating = gating
        self._stage = stage

    async def retire(self, work: Work) -> None:
        """No name of the inode is synced any more: it stays on this host, and the bucket's objects of it are not wanted. Raises Moved when
        it has a synced name by now, SourceLost when the bucket's version is gone, and ctxfs.errors."""
        inode = work.inode
        await self._bring(inode)
        crash_point('localise-after-stage')
        with self._db.transaction():
            if not inode.nlink or self._gating.keys_of(inode):
                raise Moved
            if inode.is_regular and inode.content != Content.STAGED:
                raise Moved
            self._gating.make_local(inode)

    async def pin(self, work: Work) -> None:
        """The inode has a local name beside its synced ones: its bytes are to be here too. Always raises Moved: what is to be uploaded is
        planned again (nothing, when the content is what the bucket holds)."""
        await self._bring(work.inode)
        raise Moved

    async def _bring(self, inode: Inode) -> None:
        source = self._journal.source_of(inode)
        if not inode.is_regular or inode.content == Content.STAGED:
            return
        try:
            await self._stage(inode)
        except (RemoteChanged, NotFound):
            if source is None:
                raise
            raise SourceLost(source) from None
