"""What a mount does when the disk of its state directory is full: clean blocks go, the tree database's log is used again, and for removals
the reserve.

Owns the order of these. It must not know requests.
"""
from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import trio

from ctxfs.errors import CtxfsError
from ctxfs.storage.block_cache import BlockCache
from ctxfs.storage.disk_space import Reserve
from ctxfs.storage.tree_db import TreeDB

log = logging.getLogger(__name__)


class DiskSpace:
    """The adapter's Space."""

    def __init__(self, db: TreeDB, cache: BlockCache, reserve: Reserve, *, let_go: Callable[[], None]) -> None:
        """`let_go`: whoever holds evicted blocks open closes them."""
        self._db = db
        self._cache = cache
        self._reserve = reserve
        self._let_go = let_go

    @property
    def may_grow(self) -> bool:
        return not self._reserve.is_given_up

    async def free(self, *, is_removal: bool) -> bool:
        """A checkpoint lets the log begin anew in the space that it has. What grows is tried again only where bytes were given back."""
        freed = await trio.to_thread.run_sync(self._cache.give_back)
        self._let_go()
        if is_removal:
            self._reserve.give_up()
            with contextlib.suppress(CtxfsError):
                await trio.to_thread.run_sync(self._db.checkpoint)
        return is_removal or freed > 0

    def settle(self) -> None:
        """Now and then: the reserve is made again when there is room."""
        self._reserve.restore()
