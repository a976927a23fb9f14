"""Clean bytes on demand: core's RemoteContent by way of the transfer workers.

Owns the retries of a download that a program waits for, and their bound. It must not know inodes or caching: keys and blocks only.
"""
from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from ctxfs.config import STORE_TIMEOUT
from ctxfs.errors import RemoteChanged, RemoteUnavailable, WrongBytes
from ctxfs.storage.block_cache import BlockCache, CachedRange, FoundBlock
from ctxfs.storage.journal import Known
from ctxfs.storage.members import Place
from ctxfs.sync.pool import Priority, TransferPool
from ctxfs.sync.protocol import Fetch, Hydrate, Operation, WarmItem

R = TypeVar('R')

_RETRY_SECONDS = (0.2, 5.0)
#: an operation whose bytes were wrong so often, each time several GETs long, is given up
DAMAGED_MOST = 3


class RemoteContentLoader:
    """See the module docstring. Raises RemoteChanged, NotFound, Denied at once, RemoteUnavailable after `answer_seconds`."""

    def __init__(self, pool: TransferPool, *, prefix: str, answer_seconds: float = STORE_TIMEOUT,
                 place_of: Callable[[Known], Place | None] = lambda source: None,
                 neighbours_of: Callable[[Known], list[WarmItem]] = lambda source: [],
                 follow: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint) -> None:
        """`place_of`: where a member's bytes are; raises RemoteChanged. `neighbours_of`: what is fetched with one. `follow`: learns whether that has
        changed."""
        self._pool = pool
        self._prefix = prefix
        self._answer_seconds = answer_seconds
        self._place_of = place_of
        self._neighbours_of = neighbours_of
        self._follow = follow

    async def fetch(self, source: Known, start: int, count: int) -> None:
        """See core.ports.RemoteContent."""
        await self._of_its_place(source, lambda place: Fetch(
            key=self._prefix + source.key, etag=source.etag, size=source.size, start=start, count=count, place=place,
            neighbours=self._neighbours_of(source) if place is not None else []))

    async def hydrate(self, source: Known, path: str) -> None:
        """See core.ports.RemoteContent."""
        await self._of_its_place(source, lambda place: Hydrate(key=self._prefix + source.key, etag=source.etag, size=source.size, path=path,
                                                               place=place))

    async def _of_its_place(self, source: Known, operation: Callable[[Place | None], Operation[Any]]) -> None:
        """What lies in an archive may lie in another one by now, unchanged."""
        place = self._place_of(source)
        try:
            await self._persist(operation(place))
        except RemoteChanged:
            if place is None:
                raise
            await self._follow()
            if (moved_to := self._place_of(source)) == place:
                raise
            await self._persist(operation(moved_to))

    async def _persist(self, operation: Operation[R]) -> R:
        deadline = trio.current_time() + self._answer_seconds
        delay, longest = _RETRY_SECONDS
        damaged = 0
        while True:
            try:
                return await self._pool.call(operation, priority=Priority.INTERACTIVE)
            except RemoteUnavailable as error:
                pause = max(delay, error.retry_after)
                damaged += isinstance(error, WrongBytes)
                if trio.current_time() + pause >= deadline or damaged == DAMAGED_MOST:
                    raise
            await trio.sleep(pause)
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
