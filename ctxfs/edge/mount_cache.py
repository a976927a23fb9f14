"""What a mount does with its block cache when somebody asks: content comes, or goes.

Owns these orders. It must not know how content comes into the cache, or what may leave it (sync.downloads).
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from ctxfs.errors import CtxfsError
from ctxfs.sync.downloads import Downloads
from ctxfs.sync.ports import Spawn


class CacheDesk:
    """`note_dropped`: what went is not to be brought back by itself, nor counted."""

    def __init__(self, downloads: Downloads, *, note_dropped: Callable[[], None], spawn: Spawn) -> None:
        self._downloads = downloads
        self._note_dropped = note_dropped
        self._spawn = spawn

    async def warm(self, names: Sequence[bytes], *, wait: bool) -> dict[str, Any]:
        """See edge.control.MountControl."""
        run = partial(self._downloads.warm, names)
        if not wait:
            self._spawn(_unheard, run)
            return {'ok': True, 'files': 0, 'bytes': 0, 'message': 'scheduled'}
        result = await run()
        return {'ok': result.ok, 'files': result.files, 'bytes': result.bytes, 'message': result.message}

    async def drop(self, names: Sequence[bytes]) -> dict[str, Any]:
        """See edge.control.MountControl."""
        dropped = await self._downloads.drop(names)
        self._note_dropped()
        return {'entries': dropped.entries, 'bytes': dropped.bytes}


async def _unheard(run: Callable[[], Any]) -> None:
    """Nobody waits for it: the task says how it ended."""
    with suppress(CtxfsError):
        await run()
