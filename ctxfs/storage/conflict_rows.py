"""Conflicts that nobody settled yet: which inodes are one of two versions that wanted one name.

Owns the SQL of `conflict` (schema.sql says what a row means). It must not know how a conflict is found or settled: who gives one of the two
its name says so, and so does who takes that name away.
"""
from __future__ import annotations

import time
from enum import IntEnum
from typing import NamedTuple

from ctxfs.storage.tree_db import TreeDB


class Holds(IntEnum):
    """Whose version has the name of its own."""
    OURS = 0
    THEIRS = 1


class Conflict(NamedTuple):
    """One row; see schema.sql."""
    ino: int
    original: str
    since_ns: int
    holds: Holds


class ConflictRows:
    """See the module docstring. Errors as TreeDB's."""

    def __init__(self, db: TreeDB) -> None:
        self._db = db
        #: inodes that a row may name, so that a rename or an unlink of any other asks for nothing
        self._inos: set[int] = {ino for ino, in db.rows('SELECT ino FROM conflict')}

    def add(self, ino: int, original: str, holds: Holds) -> None:
        """A copy that another conflict moves once more stays a copy of what it was one of. Call it in the transaction that gives the name."""
        self._inos.add(ino)
        if self._db.row('SELECT 1 FROM conflict WHERE ino = ? AND original = ?', (ino, original)) is None:
            self._db.execute('INSERT INTO conflict VALUES (?, ?, ?, ?)', (ino, original, time.time_ns(), int(holds)))

    def has(self, ino: int) -> bool:
        return ino in self._inos and bool(self.of(ino))

    def of(self, ino: int) -> list[Conflict]:
        return [_conflict(row) for row in self._db.rows('SELECT ino, original, since_ns, holds FROM conflict WHERE ino = ?', (ino,))]

    def forget(self, ino: int) -> None:
        """It is settled: the inode has another name or none. Costs nothing for one that never was in a conflict."""
        if ino in self._inos:
            self._db.execute('DELETE FROM conflict WHERE ino = ?', (ino,))

    def follow(self, ino: int, new: int) -> None:
        """The name is another inode's now, because another host wrote that version."""
        if ino in self._inos:
            self._inos.add(new)
            self._db.execute('UPDATE OR IGNORE conflict SET ino = ? WHERE ino = ?', (new, ino))


def _conflict(row: tuple[int, str, int, int]) -> Conflict:
    return Conflict(row[0], row[1], row[2], Holds(row[3]))
