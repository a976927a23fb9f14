"""What the kernel knows: how often it was told of each inode, and the inodes that are kept in memory for it.

Owns the lookup counts, and which inodes stay live. It must not know what an inode is asked for.

The kernel may know a million files, of which programs use a few. So a count is all that each costs (about 100 bytes); the inodes themselves
(about 1 KB with their answers) are kept up to `most` or little more. One that is let go is read from its row when it is asked for again, as
one that the kernel had forgotten meanwhile: nothing of it is in memory only while it is clean, has a name, and nobody has it open. What is
dirty, open or without a name stays, and is bounded by what bounds those.
"""
from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from ctxfs.errors import NotFound, RemoteChanged
from ctxfs.storage.inode import Inode
from ctxfs.storage.tree_db import TreeDB

#: inodes kept for the kernel
MOST = 50_000
#: after so many calls (part of them) some are let go, when there are more
_SHARE = 8
#: times as large as it need be is the table of the counts before it is made anew
_SPARE = 4
#: inodes without a name looked up in one statement
_SLICE = 500


class KnownInodes:
    """See the module docstring. For the loop's thread."""

    def __init__(self, db: TreeDB, *, most: int = MOST) -> None:
        self._db = db
        self._most = most
        self._counts: dict[int, int] = {}
        #: entries that the table of the counts has had room for
        self._room = 0
        #: in the order in which they came
        self._kept: dict[int, Inode] = {}
        self._share = max(1, most // _SHARE)
        #: times that there were too many since some were let go
        self._over = 0

    def __contains__(self, ino: int) -> bool:
        return ino in self._counts

    def __len__(self) -> int:
        return len(self._counts)

    def kept(self) -> int:
        """How many are in memory."""
        return len(self._kept)

    def remember(self, inode: Inode) -> None:
        """The kernel learns of the inode once more."""
        ino = inode.ino
        self._counts[ino] = self._counts.get(ino, 0) + 1
        self._kept[ino] = inode
        if len(self._kept) > self._most:
            self._note_over()

    def count(self, inos: Iterable[int]) -> None:
        """The kernel learns of these once more, of which nothing is in memory."""
        counts = self._counts
        for ino in inos:
            counts[ino] = counts.get(ino, 0) + 1

    def keep(self, inode: Inode) -> None:
        """Until there are too many, or, without a name, until the kernel forgets it."""
        self._kept[inode.ino] = inode
        if len(self._kept) > self._most:
            self._note_over()

    def inode(self, ino: int) -> Inode:
        """Raises NotFound; RemoteChanged (ESTALE) for one that is not any more, of which the kernel was told and has not heard the end yet: it looks
        the name up again."""
        found = self._kept.get(ino)
        if found is None:
            try:
                found = self._db.inode(ino)
            except NotFound:
                if ino in self._counts:
                    raise RemoteChanged(f'inode {ino} is gone') from None
                raise
            if ino in self._counts:
                self.keep(found)
        return found

    def inodes(self, inos: list[int]) -> dict[int, Inode]:
        """Those of them that there are."""
        kept = self._kept
        found = {ino: kept[ino] for ino in inos if ino in kept}
        if len(found) < len(inos):
            found.update(self._db.inodes_of([ino for ino in inos if ino not in found]))
        return found

    def forget(self, items: Iterable[tuple[int, int]]) -> list[Inode]:
        """The kernel drops references; returns those without a name of which none is left."""
        nameless, read = [], []
        self._room = max(self._room, len(self._counts))
        for ino, count in items:
            left = self._counts.get(ino, 0) - count
            if left > 0:
                self._counts[ino] = left
            elif self._counts.pop(ino, None) is not None:
                inode = self._kept.pop(ino, None)
                if inode is None:
                    read.append(ino)
                elif inode.nlink == 0:
                    nameless.append(inode)
        if self._room > _SPARE * max(self._most, len(self._counts)):
            self._counts, self._room = dict(self._counts), len(self._counts)       # a dict of which all was taken keeps its size
            self._kept = dict(self._kept)
        return nameless + list(self._nameless(read))

    def forget_all(self) -> list[Inode]:
        return self.forget(list(self._counts.items()))

    def _nameless(self, inos: list[int]) -> Iterable[Inode]:
        """Its last name may have gone after it was let go."""
        for start in range(0, len(inos), _SLICE):
            for ino in self._db.without_name(inos[start:start + _SLICE]):
                yield self._db.inode(ino)

    def _note_over(self) -> None:
        """Where tens of thousands are dirty, not each call pays for a look at thousands: two are looked at for each."""
        self._over += 1
        if self._over >= self._share:
            self._over = 0
            self._let_go()

    def _let_go(self) -> None:
        """Of those that came first; what has to stay comes last again."""
        for ino, inode in list(islice(self._kept.items(), 2 * self._share)):
            del self._kept[ino]
            if inode.has_staging or inode.open_count or inode.nlink == 0:
                self._kept[ino] = inode
