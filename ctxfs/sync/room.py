"""The bound on dirty bytes: they share the cache's size with clean blocks, which go first.

Owns the arithmetic and the waiting. It must not know what an upload is: it asks for one and looks whether bytes became free.

INVARIANT: dirty bytes + what clean blocks may have beyond MIN_LIMIT <= limit, but for one file that is larger by itself. So before dirty bytes grow
into the share of the clean ones, those are evicted; a step more than is needed, so that few writes wait for that. Clean blocks keep MIN_LIMIT
whatever happens, or nobody could read.
"""
from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from ctxfs.errors import NoSpace
from ctxfs.storage.block_cache import MIN_LIMIT
from ctxfs.storage.staging import Staging
from ctxfs.sync.engine import FlushResult

log = logging.getLogger(__name__)

#: how long a writer waits for uploads to make room before ENOSPC
WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.05
#: the largest write that the kernel makes
_WRITE_BYTES = 1 << 20
#: clean blocks give way to dirty bytes in so many steps
STEPS = 16


def clean_share(limit: int, dirty: int) -> int:
    """What clean blocks may have beside so many dirty bytes, with a step left for more of these."""
    return max(MIN_LIMIT, limit - dirty - (limit // STEPS if dirty else 0))


class Schedule(Protocol):
    """Whether anything is uploaded without being asked for."""

    @property
    def is_manual(self) -> bool: ...

    @property
    def is_paused(self) -> bool: ...


class DirtyBound:
    """core's Room. `flush` uploads what is pending; `bound_clean` returns when clean blocks have no more than that; `schedule` says whether
    uploads may begin without being asked for."""

    def __init__(self, staging: Staging, *, limit: int, flush: Callable[[], Awaitable[FlushResult]],
                 bound_clean: Callable[[int], Awaitable[None]], schedule: Schedule) -> None:
        self._staging = staging
        self._limit = limit
        self._step = limit // STEPS
        self._flush = flush
        self._bound_clean = bound_clean
        self._schedule = schedule
        self._clean = clean_share(limit, staging.used)
        self._bounding = trio.Lock()
        self._refusal = ''
        self._flushing: trio.Event | None = None

    def has_room(self, size: int, own: int) -> bool:
        """See core.ports.Room."""
        return self._fits(size, own) and self._is_beside_clean(size)

    def headroom(self) -> int:
        """See core.ports.Room."""
        clean = self._clean if self._clean > MIN_LIMIT else 0
        return max(0, self._limit - self._staging.used - clean)

    def _fits(self, size: int, own: int) -> bool:
        others = self._staging.used - own
        return others <= 0 or others + size <= self._limit

    def _is_beside_clean(self, size: int) -> bool:
        return self._clean <= MIN_LIMIT or self._staging.used + size + self._clean <= self._limit

    async def make_room(self, size: int, own: int) -> None:
        """See core.ports.Room. When everything was uploaded there is nothing more to wait for. Where only the user uploads, nobody waits;
        while uploads are paused, for their end."""
        await self._evict_for(size)
        if self._fits(size, own):
            return
        if self._schedule.is_manual:
            raise self._refuse('autoUpload is off: run ctxfs sync')
        with trio.move_on_after(WAIT_SECONDS):
            while not self._fits(size, own):
                if not self._schedule.is_paused and await self._flush_once():
                    return
                await trio.sleep(_POLL_SECONDS)
            return
        raise self._refuse('uploads are paused: run ctxfs resume' if self._schedule.is_paused else
                           f'they could not be uploaded within {WAIT_SECONDS:g} s')

    @property
    def refusal(self) -> str:
        """Why writers were refused last, '' when there is room again."""
        return self._refusal if self._staging.used + _WRITE_BYTES > self._limit else ''
    async def _evict_for(self, size: int) -> None:
        async with self._bounding:
            if not self._is_beside_clean(size):
                await self._set_clean(clean_share(self._limit, self._staging.used + size))

    async def _set_clean(self, share: int) -> None:
        """Smaller: counted as such when the blocks are gone. Larger: at once."""
        if share > self._clean:
            self._clean = share
        await self._bound_clean(share)
        self._clean = share

    def _refuse(self, cause: str) -> NoSpace:
        """Programs see ENOSPC; the cause is logged once, and kept for whoever asks."""
        message = f'no space to write: {self._staging.used} bytes wait for their upload, and --cache-size allows {self._limit}; {cause}'
        if not self._refusal:
            log.warning('%s', message)
        self._refusal = message
        return NoSpace(message)

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

    async def adjust_cache(self) -> None:
        """Give the block cache what the dirty bytes leave, when that became more by a step."""
        if not self.refusal:
            self._refusal = ''
        async with self._bounding:
            share = clean_share(self._limit, self._staging.used)
            if share > self._clean + self._step or share < self._clean - 2 * self._step:
                await self._set_clean(share)
