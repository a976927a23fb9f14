"""Clean files for cache_filling, read from the tree database in a thread, a page at a time.

Owns that hand-over, and that the attributes of what is handed over are known: without them a file that is here could not be looked up when
the store is away. It must not know which files are asked for, or why.
"""
from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from ctxfs.storage.clean_files import PAGE, CleanFile, CleanFiles, Found, Walk

#: asks for the attributes of inodes that have none yet; what it raises is tried again
Learn = Callable[[Sequence[int]], Awaitable[None]]


class WalkSource:
    """The files of a walk, page by page."""

    def __init__(self, walk: Walk, learn: Learn) -> None:
        self._walk = walk
        self._learn = learn
        self._page: Found | None = None

    async def next(self) -> list[CleanFile] | None:
        """See cache_filling.Source."""
        if self._page is None:
            if self._walk.is_done:
                return None
            self._page = await trio.to_thread.run_sync(self._walk.step)
        page = self._page
        if page.undescribed:
            await self._learn(page.undescribed)
        self._page = None
        return page.files


class InodeSource:
    """Those of some inodes that are clean files by now."""

    def __init__(self, files: CleanFiles, inos: Iterable[int], learn: Learn) -> None:
        self._files = files
        self._inos = list(inos)
        self._learn = learn

    async def next(self) -> list[CleanFile] | None:
        """See cache_filling.Source."""
        if not self._inos:
            return None
        part = self._inos[:PAGE]
        await self._learn(part)
        del self._inos[:PAGE]
        return await trio.to_thread.run_sync(self._files.of, part)
