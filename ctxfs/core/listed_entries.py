"""Entries of a directory as numbers, for a listing that makes nothing of their inodes.

Owns which entries need nothing but their rows, and what is answered of them. It must not know how the kernel wants them (edge/fuse_listing.py), nor
what is remembered of an inode that the kernel was told of.

Made as an inode and answered as one, an entry takes 11 µs more, of which none is of use where nobody opens the file: `find` over 100,000 known
files took 3.8 s of the daemon's CPU, and takes 2.7 s.
"""
from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from ctxfs.storage.inode import Content, Inode
from ctxfs.storage.tree_db import TreeDB

#: of each entry, in this order: ino, mode, nlink, uid, gid, rdev, size, atime, mtime and ctime in ns, whether more than mode and number is known,
#: blocks of 512 bytes (-1: as the size needs), bytes of the name
COLUMNS = 13
#: entries at a time: more do not go into an answer of 32 KiB, however short their names
MOST = 204


class ListedEntries:
    """See the module docstring."""

    def __init__(self) -> None:
        #: whether nothing follows them
        self.is_whole = False
        self.names: list[bytes] = []
        self.numbers = array('q')
        #: of each, the inode that the kernel learns of by it; 0: none
        self._inos: list[int] = []
        #: those that are live, by number
        self.inodes: dict[int, Inode] = {}

    def __len__(self) -> int:
        return len(self.names)

    def add_dot(self, name: bytes, ino: int, mode: int) -> None:
        self.names.append(name)
        self._inos.append(0)
        self.numbers.extend((ino, mode, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, len(name)))

    def add(self, db: TreeDB, parent: int, page: Sequence[tuple[bytes, int]], *, may_be_unknown: bool, blocks: Callable[[Inode], int]) -> bool:
        """These names and inodes. False: not all of them are that simple. `may_be_unknown`: it is enough to know the kind of an inode."""
        if not page:
            return True
        rows = db.listed(parent, page[0][0], page[-1][0])
        if [row[:2] for row in rows] != page:       # something came or went since the page was read
            return False
        live = db.live_among([ino for _, ino in page])
        for row in rows:
            if row[1] in live or row[14] == Content.STAGED:
                self.inodes[row[1]] = inode = db.inode(row[1])
                row = (row[0], inode.ino, inode.mode, inode.nlink, inode.uid, inode.gid, inode.rdev, inode.size, inode.atime_ns, inode.mtime_ns,
                       inode.ctime_ns, inode.attrs_known, blocks(inode), len(row[0]))
            if not (row[11] or may_be_unknown):
                return False
            self._inos.append(row[1] if row[11] else 0)
            self.numbers.extend(row[1:1 + COLUMNS])
        self.names += [name for name, _ in page]
        return True

    def learnt(self, count: int) -> list[int]:
        """Inodes that the kernel learns of by the first `count` entries: neither by dots, nor by one without attributes."""
        return [ino for ino in self._inos[:count] if ino]
