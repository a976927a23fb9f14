"""The bound on dirty bytes: they share the cache's size with clean blocks, which go first.

Owns the arithmetic and the waiting. It must not know what an upload is: it asks for one and looks whether bytes became free.
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


class Schedule(Protocol):
    """Whether anything is uploaded without being asked for."""

    @property
    def is_manual(self) -> bool: ...

    @property
    def is_paused(self) -> bool: ...


class DirtyBound:
    """core's Room. `flush` uploads what is pending; `set_cache_limit` bounds the clean blocks; `schedule` says whether uploads may begin
    without being asked for."""

    def __init__(self, staging: Staging, *, limit: int, flush: Callable[[], Awaitable[FlushResult]],
                 set_cache_limit: Callable[[int], None], schedule: Schedule) -> None:
        self._staging = staging
        self._limit = limit
        self._flush = flush
        self._set_cache_limit = set_cache_limit
        self._schedule = schedule
        self._told = limit
        self._refusal = ''
        self._flushing: trio.Event | None = None

    def has_room(self, size: int, own: int) -> bool:
        """See core.ports.Room."""
        others = self._staging.used - own
        return others <= 0 or others + size <= self._limit

    async def make_room(self, size: int, own: int) -> None:
        """See core.ports.Room. When everything was uploaded there is nothing more to wait for. Where only the user uploads, nobody waits;
        while uploads are paused, for their end."""
        if self._schedule.is_manual:
            raise self._refuse('autoUpload is off: run ctxfs sync')
        with trio.move_on_after(WAIT_SECONDS):
            while not self.has_room(size, own):
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

    def adjust_cache(self) -> None:
        """Give the block cache what the dirty bytes leave, when that changed by much."""
        if not self.refusal:
            self._refusal = ''
        allowed = max(MIN_LIMIT, self._limit - self._staging.used)
        if abs(allowed - self._told) > self._limit // 50 or allowed == MIN_LIMIT != self._told:
            self._told = allowed
            self._set_cache_limit(allowed)
