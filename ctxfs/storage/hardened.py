"""Which staging files are known to be on the disk, as they were at some time: the rows of `hardened`.

Owns their SQL (schema.sql says what a row means). It must not know how or when a file is made durable.

INVARIANT: a row is written after the fsync that it tells of, and goes in the transaction that makes its inode STAGED anew. So after a power
cut, which leaves the transactions up to some instant, a row never tells more than is true of the bytes that it was written for.
"""
from __future__ import annotations

from collections.abc import Iterable

from ctxfs.storage.durability import Measure
from ctxfs.storage.tree_db import TreeDB


class HardenedFiles:
    """See the module docstring. Errors as TreeDB's."""

    def __init__(self, db: TreeDB) -> None:
        self._db = db

    def note(self, ino: int, measure: Measure) -> None:
        """It was fsynced, and had been like this just before."""
        self._db.execute('INSERT OR REPLACE INTO hardened VALUES (?, ?, ?)', (ino, *measure))

    def forget(self, ino: int) -> None:
        self._db.execute('DELETE FROM hardened WHERE ino = ?', (ino,))

    def measure_of(self, ino: int) -> Measure | None:
        row = self._db.row('SELECT size, holes FROM hardened WHERE ino = ?', (ino,))
        return None if row is None else Measure(*row)

    def inos(self) -> set[int]:
        return {row[0] for row in self._db.rows('SELECT ino FROM hardened')}

    def among(self, inos: Iterable[int]) -> set[int]:
        return {ino for ino in inos if self.measure_of(ino) is not None}

    def sweep(self) -> None:
        """Forget those whose inode has no staging file any more."""
        self._db.execute('DELETE FROM hardened WHERE NOT EXISTS (SELECT 1 FROM inode i WHERE i.ino = hardened.ino AND content IN (1, 2))')
