"""The bound on dirty bytes: they share the cache's size with clean blocks, which go first.

Owns the arithmetic and the waiting. It must not know what an upload is: it asks for one and looks whether bytes became free.
"""
from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from ctxfs.errors import NoSpace
from ctxfs.storage.block_cache import MIN_LIMIT
from ctxfs.storage.staging import Staging
from ctxfs.sync.engine import FlushResult

#: how long a writer waits for uploads to make room before ENOSPC
WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.05


class DirtyBound:
    """core's Room. `flush` uploads what is pending; `set_cache_limit` bounds the clean blocks."""

    def __init__(self, staging: Staging, *, limit: int, flush: Callable[[], Awaitable[FlushResult]],
                 set_cache_limit: Callable[[int], None]) -> None:
        self._staging = staging
        self._limit = limit
        self._flush = flush
        self._set_cache_limit = set_cache_limit
        self._told = limit
        self._flushing: trio.Event | None = None

    def has_room(self, size: int, own: int) -> bool:
        """See core.ports.Room."""
        others = self._staging.used - own
        return others <= 0 or others + size <= self._limit

    async def make_room(self, size: int, own: int) -> None:
        """See core.ports.Room. When everything was uploaded there is nothing more to wait for."""
        with trio.move_on_after(WAIT_SECONDS):
            while not self.has_room(size, own):
                if await self._flush_once():
                    return
                await trio.sleep(_POLL_SECONDS)
            return
        raise NoSpace(f'{self._staging.used} bytes wait for their upload and --cache-size allows {self._limit}')

    async def _flush_once(self) -> bool:
        """One flush for all writers that wait; whether it uploaded everything."""
        if self._flushing is not None:
            await self._flushing.wait()
            return False
        self._flushing = trio.Event()
        try:
            return (await self._flush()).ok
        finally:
            self._flushing.set()
            self._flushing = None

    def adjust_cache(self) -> None:
        """Give the block cache what the dirty bytes leave, when that changed by much."""
        allowed = max(MIN_LIMIT, self._limit - self._staging.used)
        if abs(allowed - self._told) > self._limit // 50 or allowed == MIN_LIMIT != self._told:
            self._told = allowed
            self._set_cache_limit(allowed)
