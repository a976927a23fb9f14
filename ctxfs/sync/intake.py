"""The way of planned work from the planner to those who carry it out.

Owns the two queues (small files, which are taken several at a time, and all else) and their bound. It must not know what work is done how.
Belongs to the trio thread.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import trio

from ctxfs.sync.planner import Work


class Intake:
    """See the module docstring. `is_small` sorts; `most`: works that wait before `put` does."""

    def __init__(self, is_small: Callable[[Work], bool], *, most: int) -> None:
        self._is_small = is_small
        self._most = most
        self._small: deque[Work] = deque()
        self._large: deque[Work] = deque()
        self._changed = trio.Event()
        self._is_ended = False

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def put(self, works: Iterable[Work]) -> None:
        """Returns when there is room for more, or nobody who would take it."""
        for work in works:
            (self._small if self._is_small(work) else self._large).append(work)
        self._tell()
        while len(self._small) + len(self._large) >= self._most and not self._is_ended:
            await self._changed.wait()

    def end(self) -> None:
        """There is no more."""
        self._is_ended = True
        self._tell()

    async def take_small(self, most: int) -> list[Work]:
        """Up to so many small ones, as soon as there is one; none: there will be none."""
        while not self._small and not self._is_ended:
            await self._changed.wait()
        taken = [self._small.popleft() for _ in range(min(most, len(self._small)))]
        self._tell()
        return taken

    async def take_large(self) -> Work | None:
        """None: there will be none."""
        while not self._large and not self._is_ended:
            await self._changed.wait()
        taken = self._large.popleft() if self._large else None
        self._tell()
        return taken

    async def take_any(self) -> Work | None:
        """None: there will be none."""
        while not self._large and not self._small and not self._is_ended:
            await self._changed.wait()
        queue = self._large or self._small
        taken = queue.popleft() if queue else None
        self._tell()
        return taken
