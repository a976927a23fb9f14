"""What a mount does when the disk of its state directory is full: clean blocks go, the tree database's log is used again, and for removals
the reserve.

Owns the order of these. It must not know requests.
"""
from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable

import trio

from ctxfs.errors import CtxfsError, DiskFull
from ctxfs.storage.block_cache import BlockCache
from ctxfs.storage.disk_space import Reserve
from ctxfs.storage.tree_db import TreeDB


class DiskSpace:
    """The adapter's Space."""

    def __init__(self, db: TreeDB, cache: BlockCache, reserve: Reserve, *, let_go: Callable[[], None]) -> None:
        """`let_go`: whoever holds evicted blocks open closes them."""
        self._db = db
        self._cache = cache
        self._reserve = reserve
        self._let_go = let_go
        #: with which the system refused last
        self._code = errno.ENOSPC
        self._freeing = trio.Lock()
        #: how often something was freed
        self._freed = 0

    def check(self) -> None:
        """See fuse_adapter.Space."""
        if self._reserve.is_given_up:
            self._reserve.restore()     # who has just made room need not wait for the next look
        if self._reserve.is_given_up:
            error = DiskFull(f'the disk of the state directory takes no more: {os.strerror(self._code)}')
            error.errno = self._code
            raise error

    async def free(self, code: int, *, is_removal: bool) -> bool:
        """See fuse_adapter.Space. Of several that are refused at once one frees something: blocks have no rows any more before their space is
        there, so the others would find nothing to free."""
        self._code, before = code, self._freed
        async with self._freeing:
            if self._freed == before:
                self._freed += await self._free_something(is_removal)
            return self._freed != before

    async def _free_something(self, is_removal: bool) -> bool:
        """A checkpoint lets the database's log begin anew in the space that it has."""
        has_blocks = await trio.to_thread.run_sync(self._cache.count) > 0
        if has_blocks:
            await trio.to_thread.run_sync(self._cache.give_back)
            self._let_go()
            return True
        if not is_removal:
            return False
        with contextlib.suppress(CtxfsError):
            await trio.to_thread.run_sync(self._db.checkpoint)
        return self._reserve.give_up()

    def settle(self) -> None:
        """Now and then: the reserve is made again when there is room."""
        self._reserve.restore()
