"""Clean bytes on demand: core's RemoteContent by way of the transfer workers.

Owns the retries of a download that a program waits for, and their bound. It must not know inodes or caching: keys and blocks only.
"""
from __future__ import annotations

from typing import TypeVar

import trio

from ctxfs.errors import RemoteUnavailable
from ctxfs.storage.block_cache import BlockCache, CachedRange, FoundBlock
from ctxfs.storage.journal import Known
from ctxfs.sync.pool import Priority, TransferPool
from ctxfs.sync.protocol import Fetch, Hydrate, Operation

R = TypeVar('R')

#: how long a program waits for a store that does not answer, before EIO
ANSWER_SECONDS = 60.0
_RETRY_SECONDS = (0.2, 5.0)


class RemoteContentLoader:
    """See the module docstring. Raises RemoteChanged, NotFound, Denied at once, RemoteUnavailable after ANSWER_SECONDS."""

    def __init__(self, pool: TransferPool, *, prefix: str) -> None:
        self._pool = pool
        self._prefix = prefix

    async def fetch(self, source: Known, start: int, count: int) -> None:
        """See core.ports.RemoteContent."""
        await self._persist(Fetch(key=self._prefix + source.key, etag=source.etag, size=source.size, start=start, count=count))

    async def hydrate(self, source: Known, path: str) -> None:
        """See core.ports.RemoteContent."""
        await self._persist(Hydrate(key=self._prefix + source.key, etag=source.etag, size=source.size, path=path))

    async def _persist(self, operation: Operation[R]) -> R:
        deadline = trio.current_time() + ANSWER_SECONDS
        delay, longest = _RETRY_SECONDS
        while True:
            try:
                return await self._pool.call(operation, priority=Priority.INTERACTIVE)
            except RemoteUnavailable:
                if trio.current_time() + delay >= deadline:
                    raise
            await trio.sleep(delay)
            delay = min(longest, delay * 2)


class ContextCache:
    """The block cache by keys relative to the context."""

    def __init__(self, cache: BlockCache, *, prefix: str) -> None:
        self._cache = cache
        self._prefix = prefix

    def open_block(self, key: str, etag: str, block: int) -> CachedRange | None:
        return self._cache.open_block(self._prefix + key, etag, block)

    def find_block(self, key: str, etag: str, block: int) -> FoundBlock | None:
        return self._cache.find_block(self._prefix + key, etag, block)

    def compare(self, found: FoundBlock) -> bytes | None:
        return self._cache.compare(found)

    def discard(self, found: FoundBlock, reason: str) -> None:
        self._cache.discard(found, reason)
