"""One flush's archives while they are made: what was chosen, packed, left out, and how each work ended.

Owns these facts, which the steps of a flush hand to each other (archiver.py, archive_commit.py). It must not know any step.
"""
from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

import trio

from ctxfs.errors import CtxfsError
from ctxfs.storage.archive_log_format import ArchiveInfo
from ctxfs.storage.journal import Known
from ctxfs.sync.archive_plan import Choice
from ctxfs.sync.archive_protocol import PackedItem, PartRef
from ctxfs.sync.planner import Work


class NotTaken(Exception):
    """Nothing was committed that the work could have gone along with."""


class Again(Exception):
    """Others committed what concerns this flush: it is planned again."""


#: (key, etag, etag before, size): a member was written in the place of that version, or removed (etag '')
Told = Callable[[str, str, str, int], object]


def untold(key: str, etag: str, before: str, size: int) -> None:
    """Nobody wants to know."""


#: a work and how it ended; None: done
Outcome = tuple[Work, Exception | None]


class PackedChoice(NamedTuple):
    """An item and what became of it; the number of its part, and its own in that."""
    choice: Choice
    result: PackedItem
    part: int
    number: int

    @property
    def is_member(self) -> bool:
        """And not only for who unpacks the archive."""
        return self.result.place is not None


class Flush:
    """See the module docstring."""

    def __init__(self, works: Sequence[Work], *, applied: int) -> None:
        """`applied`: how many commits of others were in the tree when the works were planned."""
        self.applied = applied
        self.nonce = secrets.token_hex(8)
        self.works = list(works)
        self.outcomes: dict[int, Exception | None] = {}
        #: ino → (revision, Unix ns) of what is packed
        self.revisions: dict[int, tuple[int, int]] = {}
        #: inodes that are packed from a copy, while programs go on writing
        self.frozen: set[int] = set()
        self.parts: list[list[Choice]] = []
        self.packed: list[PackedChoice] = []
        #: the log has these already
        self.same: list[PackedChoice] = []
        self.same_numbers: set[tuple[int, int]] = set()
        self.deleted: list[Known] = []
        #: (key, etag) of members behind objects that are not to be kept
        self.outdated: set[tuple[str, str]] = set()
        self.archives: list[ArchiveInfo] = []

    def fail(self, work: Work, error: Exception) -> None:
        """The first cause counts."""
        self.outcomes.setdefault(work.inode.ino, error)

    def is_out(self, work: Work) -> bool:
        return work.inode.ino in self.outcomes

    def included(self) -> list[Work]:
        return [work for work in self.works if not self.is_out(work)]

    def written(self) -> list[PackedChoice]:
        """What goes into the archives."""
        return [item for item in self.packed if not self.is_out(item.choice.work)]

    def members(self) -> list[PackedChoice]:
        """What of it is a member for the log."""
        return [item for item in self.written() if item.is_member]

    def parts_in(self) -> list[int]:
        """Parts of which anything is written."""
        return sorted({item.part for item in self.written()})

    def refs(self, path: Callable[[int], str]) -> list[PartRef]:
        kept = {(item.part, item.number) for item in self.written()}
        return [PartRef(path=path(part), leave_out=[at for at in range(len(self.parts[part])) if (part, at) not in kept])
                for part in self.parts_in()]


async def in_parallel(run: Callable[[int], Awaitable[None]], numbers: Iterable[int]) -> None:
    """All of them at once; when all have ended, the first error of any is raised."""
    errors: list[Exception] = []

    async def one(number: int) -> None:
        try:
            await run(number)
        except CtxfsError as error:
            errors.append(error)
    async with trio.open_nursery() as nursery:
        for number in numbers:
            nursery.start_soon(one, number)
    if errors:
        raise errors[0]
