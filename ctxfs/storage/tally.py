"""Counts of a whole tree database: what is pending, failed, local-only, in conflict; and which conflicts there are.

Owns the SQL that looks at every journal row, which is why it runs on a connection of its own, in a thread, or in another process after the
daemon's end. It must not know who asks.
"""
from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ctxfs.records import ROOT_INO
from ctxfs.storage import made_log
from ctxfs.storage.gating import HELD
from ctxfs.storage.keys import component_to_name
from ctxfs.storage.made_log import Left
from ctxfs.storage.staging import Staging
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
           (SELECT count(*) FROM conflict c WHERE EXISTS (SELECT 1 FROM dentry d WHERE d.ino = c.ino)),
           EXISTS (SELECT 1 FROM unmountable)
    FROM pending p CROSS JOIN inode i ON i.ino = p.ino WHERE i.nlink > 0'''


class Rows(Protocol):
    """A TreeReader, or the daemon's own TreeDB."""

    def rows(self, sql: str, args: Iterable[Any] = ()) -> list[Any]: ...


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
        return _with_made(count(reader), made_log.left_at(state_dir, reader), Staging(state_dir / 'staging', create=False))
    finally:
        reader.close()


def _with_made(counts: Tally, left: list[Left], staging: Staging) -> Tally:
    """What a killed daemon made last has its rows in a log only."""
    sizes = {one.ino: staging.size_of(one.ino) for one in left}
    shared, local = [one for one in left if not one.is_local], [one for one in left if one.is_local]
    times = [one.made_ns for one in shared] + [counts.oldest_ns] * bool(counts.oldest_ns)
    return counts._replace(
        files=counts.files + len(shared), bytes=counts.bytes + sum(sizes[one.ino] for one in shared), oldest_ns=min(times, default=0),
        local_files=counts.local_files + len(local), local_bytes=counts.local_bytes + sum(sizes[one.ino] for one in local))


def _failed(reader: Rows) -> tuple[Failure, ...]:
    rows = reader.rows("SELECT ino, error, attempt, retry_ns FROM pending WHERE error <> '' ORDER BY since_ns LIMIT ?", (LISTED,))
    return tuple(Failure(_path(reader, ino), error, attempt, retry_ns if retry_ns < 2**62 else 0) for ino, error, attempt, retry_ns in rows)


def _unmountable(reader: Rows) -> tuple[tuple[str, str], ...]:
    rows = reader.rows('SELECT key, reason FROM unmountable ORDER BY key LIMIT ?', (LISTED,))
    return tuple((key.encode('utf-8', 'backslashreplace').decode(), reason) for key, reason in rows)


def _path(reader: Rows, ino: int) -> str:
    """The first name, printable."""
    names = names_to(reader, ino)
    return '(removed)' if names is None else shown(names)


def names_to(reader: Rows, ino: int, *, first: bytes = b'') -> list[bytes] | None:
    """From below the root to the inode's first name (one that has `first` in it, if there is one); None for one without a name."""
    parts: list[bytes] = []
    while ino != ROOT_INO:
        found = reader.rows('SELECT parent, name FROM dentry WHERE ino = ? ORDER BY instr(name, ?) = 0, parent, name LIMIT 1', (ino, first))
        if not found:
            return None
        ino, name = found[0]
        parts.append(name)
    return parts[::-1]


def shown(names: list[bytes]) -> str:
    return '/' + b'/'.join(names).decode('utf-8', 'backslashreplace')


# --- conflicts ---------------------------------------------------------------------------------------------------------------------

class Copy(NamedTuple):
    """One of two versions of a file, under a name of its own, and the name beside it that both wanted: as names from below the root. `holds`:
    whose it is (conflict_rows.Holds). `is_held`: it stays on this host. `is_dir`: it is a directory, and the other one is a file."""
    ino: int
    names: list[bytes]
    original: list[bytes]
    since_ns: int
    holds: int
    is_held: bool
    is_dir: bool


def copies(reader: Rows, limit: int = LISTED) -> list[Copy]:
    """Of conflicts that nobody settled, the newest first."""
    found = []
    for ino, original, since_ns, holds, local, mode in reader.rows(
            'SELECT c.ino, c.original, c.since_ns, c.holds, i.local, i.mode FROM conflict c JOIN inode i ON i.ino = c.ino '
            'WHERE EXISTS (SELECT 1 FROM dentry d WHERE d.ino = c.ino) ORDER BY c.since_ns DESC LIMIT ?', (limit,)):
        names = names_to(reader, ino, first=b'.conflict-')
        if names is not None:
            beside = [*names[:-1], component_to_name(original.rpartition('/')[2])]
            found.append(Copy(ino, names, beside, since_ns, holds, local == HELD, stat.S_ISDIR(mode)))
    return found


def copies_at(state_dir: Path) -> list[Copy]:
    """Of a state directory that no daemon uses. Raises as TreeReader."""
    reader = TreeReader(state_dir / 'tree.db')
    try:
        return copies(reader)
    finally:
        reader.close()
