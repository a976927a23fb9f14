"""Clean files for cache_filling, read from the tree database in a thread, a page at a time.

Owns nothing but that hand-over. It must not know which files are asked for, or why.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import trio

from ctxfs.storage.clean_files import PAGE, CleanFile, CleanFiles, Walk


class WalkSource:
    """The files of a walk, page by page, read in a thread."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk

    async def next(self) -> list[CleanFile] | None:
        """See cache_filling.Source."""
        if self._walk.is_done:
            return None
        return await trio.to_thread.run_sync(self._walk.step)


class InodeSource:
    """Those of some inodes that are clean files by now."""

    def __init__(self, files: CleanFiles, inos: Iterable[int]) -> None:
        self._files = files
        self._inos = deque(inos)

    async def next(self) -> list[CleanFile] | None:
        """See cache_filling.Source."""
        if not self._inos:
            return None
        part = [self._inos.popleft() for _ in range(min(PAGE, len(self._inos)))]
        return await trio.to_thread.run_sync(self._files.of, part)
