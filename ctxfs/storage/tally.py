"""Counts of a whole tree database: what is pending, failed, local-only, in conflict.

Owns the SQL that looks at every journal row, which is why it runs on a connection of its own, in a thread, or in another process after the
daemon's end. It must not know who asks.
"""
from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ctxfs.records import ROOT_INO
from ctxfs.storage.tree_connection import TreeReader

#: entries of a list; the counts beside them are exact
LISTED = 100

# As Journal.summary: an inode without a name is pending for nobody, a tombstone counts as a file without bytes. Directories and what is
# only to be written into the index count too: until then another host would not know.
_COUNTS = '''
    SELECT count(*), coalesce(sum(CASE WHEN p.reason & 1 THEN i.size ELSE 0 END), 0), coalesce(min(p.since_ns), 0),
           coalesce(sum(p.error <> ''), 0),
           (SELECT count(*) FROM object WHERE doomed AND doomed = 1),
           (SELECT count(*) FROM inode WHERE local AND (mode & 61440) <> 16384),
           (SELECT coalesce(sum(size), 0) FROM inode WHERE local AND (mode & 61440) <> 16384),
           (SELECT count(*) FROM conflict c JOIN dentry d ON d.ino = c.ino),
           EXISTS (SELECT 1 FROM unmountable)
    FROM pending p JOIN inode i ON i.ino = p.ino WHERE i.nlink > 0'''


class Failure(NamedTuple):
    """A change whose last attempt failed. `retry_ns`: when it is tried again by itself; 0: only when somebody asks."""
    path: str
    error: str
    attempt: int
    retry_ns: int


class Tally(NamedTuple):
    """Files and bytes that the bucket does not have, those that stay on this host, and lists of at most LISTED."""
    files: int = 0
    bytes: int = 0
    oldest_ns: int = 0
    local_files: int = 0
    local_bytes: int = 0
    conflicts: int = 0
    failed_files: int = 0
    failed: tuple[Failure, ...] = ()
    unmountable: tuple[tuple[str, str], ...] = ()


def count(reader: TreeReader) -> Tally:
    """Costs by the journal and the local-only files: about a millisecond for a thousand."""
    files, size, oldest_ns, failed, doomed, local_files, local_bytes, conflicts, has_unmountable = reader.rows(_COUNTS)[0]
    return Tally(files + doomed, size, oldest_ns, local_files, local_bytes, conflicts, failed,
                 failed=_failed(reader) if failed else (), unmountable=_unmountable(reader) if has_unmountable else ())


def count_at(state_dir: Path) -> Tally:
    """Of a state directory that no daemon uses. Raises as TreeReader."""
    reader = TreeReader(state_dir / 'tree.db')
    try:
        return count(reader)
    finally:
        reader.close()


def _failed(reader: TreeReader) -> tuple[Failure, ...]:
    rows = reader.rows("SELECT ino, error, attempt, retry_ns FROM pending WHERE error <> '' ORDER BY since_ns LIMIT ?", (LISTED,))
    return tuple(Failure(_path(reader, ino), error, attempt, retry_ns if retry_ns < 2**62 else 0) for ino, error, attempt, retry_ns in rows)


def _unmountable(reader: TreeReader) -> tuple[tuple[str, str], ...]:
    rows = reader.rows('SELECT key, reason FROM unmountable ORDER BY key LIMIT ?', (LISTED,))
    return tuple((key.encode('utf-8', 'backslashreplace').decode(), reason) for key, reason in rows)


def _path(reader: TreeReader, ino: int) -> str:
    """The first name, printable."""
    parts: list[bytes] = []
    while ino != ROOT_INO:
        found = reader.rows('SELECT parent, name FROM dentry WHERE ino = ? ORDER BY parent, name LIMIT 1', (ino,))
        if not found:
            return '(removed)'
        ino, name = found[0]
        parts.append(name)
    return '/' + b'/'.join(reversed(parts)).decode('utf-8', 'backslashreplace')
