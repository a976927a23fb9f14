"""The clean files of a tree: those whose bytes may be fetched from the bucket before anybody reads them.

Owns the SQL that finds them, and the order and the memory of a walk. It reads on a connection of its own, so that it can run in a thread
beside the daemon's loop; it must not know caches, transfers or who asks.

A file is clean here as it was committed: what is staged, sealed, local or empty is left out, and so is a file without an object that has its
content. Of hard links one object stands for all, the one that a reader would take (Journal.source_of).
"""
from __future__ import annotations

import stat
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ctxfs.records import ROOT_INO
from ctxfs.storage.inode import Content
from ctxfs.storage.members import Place
from ctxfs.storage.tree_connection import TreeReader

#: directory entries read at a time
PAGE = 256
#: pages read in one step of a walk, which nobody can interrupt
PAGES_IN_A_STEP = 50
#: hard-linked inodes that a walk remembers to have met; more of them are told twice
MAX_LINKED = 10_000

_IS_CLEAN = f'i.content = {int(Content.CLEAN)} AND i.nlink > 0 AND NOT i.local AND i.size > 0'
_SOURCE = (f'LEFT JOIN object o ON {_IS_CLEAN} AND o.key = (SELECT key FROM object WHERE ino = i.ino AND revision = i.revision '
           'ORDER BY doomed, key LIMIT 1)')
_PLACE = 'LEFT JOIN member m ON m.key = o.key AND m.etag = o.etag LEFT JOIN archive a ON a.id = m.archive'
_FILE = 'o.key, o.etag, o.size, a.name, m.at, m.packed, m.method, m.crc'
_PAGE = (f'SELECT d.name, d.ino, i.mode, i.nlink, i.attrs_known, {_FILE} FROM dentry d JOIN inode i ON i.ino = d.ino {_SOURCE} {_PLACE} '
         'WHERE d.parent = ? AND d.name > ? ORDER BY d.name LIMIT ?')
_TOTALS = f'SELECT count(*), coalesce(sum(i.size), 0) FROM inode i WHERE {_IS_CLEAN}'
# UNION, not UNION ALL: an inode with two names below the root counts once
_BELOW = ('WITH RECURSIVE below(ino) AS (SELECT ? UNION SELECT d.ino FROM dentry d JOIN below b ON d.parent = b.ino) '
          f'SELECT count(*), coalesce(sum(i.size), 0) FROM below b JOIN inode i ON i.ino = b.ino WHERE {_IS_CLEAN}')


class CleanFile(NamedTuple):
    """One version of an object, by its key relative to the context, that holds the content of `ino`; `place`: where it lies if it is a member."""
    ino: int
    key: str
    etag: str
    size: int
    place: Place | None = None


class Totals(NamedTuple):
    files: int
    bytes: int


class _Entry(NamedTuple):
    name: bytes
    ino: int
    is_dir: bool
    nlink: int
    attrs_known: bool
    file: CleanFile | None


class Found(NamedTuple):
    """Of one page of a directory: its clean files, and the inodes of which nobody knows more than their line in a listing."""
    files: list[CleanFile]
    undescribed: list[int]


class CleanFiles:
    """See the module docstring. For one thread at a time; raises as TreeReader. `close` it."""

    def __init__(self, path: Path) -> None:
        self._reader = TreeReader(path)

    def totals(self, root: int = ROOT_INO) -> Totals:
        """Of everything at and below an inode. Looks at every inode there: seconds for a million."""
        rows = self._reader.rows(_TOTALS) if root == ROOT_INO else self._reader.rows(_BELOW, (root,))
        return Totals(*rows[0])

    def entries(self, parent: int, after: bytes) -> list[_Entry]:
        """The next PAGE entries of a directory, in byte order of their names."""
        return [_Entry(name, ino, stat.S_ISDIR(mode), nlink, bool(known), None if found[0] is None else _clean_file(ino, *found))
                for name, ino, mode, nlink, known, *found in self._reader.rows(_PAGE, (parent, after, PAGE))]

    def of(self, inos: Sequence[int]) -> list[CleanFile]:
        """Those among at most PAGE inodes that are clean files."""
        marks = ','.join('?' * len(inos))
        return [_clean_file(*row) for row in self._reader.rows(
            f'SELECT i.ino, {_FILE} FROM inode i {_SOURCE} {_PLACE} WHERE i.ino IN ({marks}) AND o.key IS NOT NULL', inos)]

    def totals_of(self, inos: Sequence[int]) -> Totals:
        """Of those among the inodes that are clean files."""
        found = [file for start in range(0, len(inos), PAGE) for file in self.of(inos[start:start + PAGE])]
        return Totals(len(found), sum(file.size for file in found))

    def directories_of(self, ino: int) -> list[int]:
        """The directories that have the inode, a few at most."""
        return [row[0] for row in self._reader.rows('SELECT DISTINCT parent FROM dentry WHERE ino = ? LIMIT 4', (ino,))]

    def close(self) -> None:
        self._reader.close()


class Walk:
    """The clean files below a directory, depth first, the files of a page before the directories in it. Keeps a page of directories for
    each level, whatever the size of the tree. What is renamed meanwhile may be met twice or not at all."""

    def __init__(self, files: CleanFiles, root: int = ROOT_INO, *, is_deep: bool = True) -> None:
        self._files = files
        self._is_deep = is_deep
        self._levels = [_Level(root)]
        self._linked: set[int] = set()

    @property
    def is_done(self) -> bool:
        return not self._levels

    def step(self) -> Found:
        """The next page that has anything; also empty after PAGES_IN_A_STEP without."""
        for _ in range(PAGES_IN_A_STEP):
            page = self._next_page()
            if page is None:
                break
            files = [entry.file for entry in page if entry.file is not None and self._is_new(entry)]
            undescribed = [entry.ino for entry in page if not entry.attrs_known]
            if files or undescribed:
                return Found(files, undescribed)
        return Found([], [])

    def _next_page(self) -> list[_Entry] | None:
        while self._levels:
            level = self._levels[-1]
            if level.directories:
                self._levels.append(_Level(level.directories.popleft()))
            elif level.is_read:
                self._levels.pop()
            else:
                page = self._files.entries(level.ino, level.after)
                level.is_read = len(page) < PAGE
                level.after = page[-1].name if page else b''
                if self._is_deep:
                    level.directories.extend(entry.ino for entry in page if entry.is_dir)
                return page
        return None

    def _is_new(self, entry: _Entry) -> bool:
        if entry.nlink == 1:
            return True
        if entry.ino in self._linked:
            return False
        if len(self._linked) < MAX_LINKED:
            self._linked.add(entry.ino)
        return True


class _Level:
    """One directory of a walk: where its reading stands, and the directories of the last page that are still to be walked."""

    __slots__ = ('ino', 'after', 'is_read', 'directories')

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.after = b''
        self.is_read = False
        self.directories: deque[int] = deque()


def _clean_file(ino: int, key: str, etag: str, size: int, archive: str | None, *at: int) -> CleanFile:
    return CleanFile(ino, key, etag, size, None if archive is None else Place(archive, *at))
