"""A listing in parts side by side: how far each has come, and what that says of a directory.

Owns the parts of the listing that is under way. It must not know how they are listed, or what is listed.
"""
from __future__ import annotations

import itertools
from collections.abc import Sequence

import trio

from ctxfs.storage.journal import Journal
from ctxfs.storage.keys import LAST

#: objects in a page of a listing (S3's limit)
PAGE = 1000
#: stretches that are listed side by side, and how many objects ahead a listing is waited for
PARTS, SOON = 4, 5 * PAGE


class Part:
    """One stretch of a listing, after `start` up to `last` (None: the end); what is not behind `after` is in the tree."""

    def __init__(self, start: str, last: str | None) -> None:
        self.start = self.after = start
        self.last = last
        self.is_done = False


class ListingParts:
    """See the module docstring."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._parts: list[Part] = []
        #: set when it has moved on, and made anew
        self.progress = trio.Event()

    def begin(self, bounds: Sequence[str]) -> list[Part]:
        """A part from each of these keys to the next."""
        self._parts = [Part(after, last) for after, last in itertools.pairwise([*bounds, None]) if after is not None]
        self.moved_on()
        return self._parts

    def bounds(self) -> list[str]:
        """Where parts of like size would begin, as far as the index says what there is; [''] for what is listed as one."""
        return ['', *self._journal.hint_quantiles(PARTS, page=PAGE)]

    def has_passed(self, directory: str) -> bool:
        """Whether all below the directory with this key is in the tree."""
        return any(part.start < directory and directory + LAST <= (part.last or directory + LAST if part.is_done else part.after)
                   for part in self._parts)

    def comes_soon(self, directory: str) -> bool:
        """Whether it will be within a few pages, as far as the index tells."""
        return any(part.start < directory and part.after < directory + LAST and (part.last is None or directory + LAST <= part.last)
                   and self._journal.hints_are_few(part.after, directory + LAST, SOON) for part in self._parts if not part.is_done)

    def moved_on(self) -> None:
        self.progress.set()
        self.progress = trio.Event()
