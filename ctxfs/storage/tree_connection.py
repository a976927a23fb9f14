"""The connection to the tree database: statements, errors, the log, and what happens when the file turns out to be damaged.

Owns sqlite3, and its errors, which never leave this module. It must not know what is in the tables: tree_db.py and its neighbours have the
SQL. A file that is found damaged is only read from then on: what is left of it is for `ctxfs doctor --repair`.
"""
from __future__ import annotations

import errno
import itertools
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ctxfs.errors import Corrupted, CtxfsError, Damaged, DiskFull, NotFound, ReadOnly
from ctxfs.storage.disk_space import why_full
from ctxfs.storage.durability import sync_directory

log = logging.getLogger(__name__)

#: rows of one statement; SQLite before 3.32 takes 999 values
AT_ONCE = 50
#: in SQLite's words for a file that is not what it wrote
_DAMAGE = ('malformed', 'not a database', 'no such table', 'no such column')
#: what the log keeps of its size when it is begun anew. The first listing of a large context makes it as large as the database itself, and its size
#: is what tells when it is to be moved into the file
LOG_BYTES = 4 << 20
#: what a statement raises; SQLite quotes a damaged schema in its messages, and Python's sqlite3 takes those for UTF-8
ERRORS = (sqlite3.Error, UnicodeDecodeError)


def _translate(error: Exception, path: Path) -> CtxfsError:
    text = str(error)
    cause = errno.ENOSPC if 'full' in text else why_full(path.parent) if 'disk I/O error' in text else 0
    if cause:
        full = DiskFull(f'the disk of the state directory takes no more: {os.strerror(cause)}')
        full.errno = cause
        return full
    if isinstance(error, UnicodeDecodeError) or any(words in text for words in _DAMAGE):
        return Damaged(f'the tree database is damaged: {text}')
    return Corrupted(f'the tree database failed: {text}')


def _make_private(path: Path) -> None:
    """There, and 0600, before SQLite opens it: the log and the shared memory get the mode of the database. What is laxer is mended."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    for suffix in ('', '-wal', '-shm'):
        with suppress(FileNotFoundError):
            os.chmod(f'{path}{suffix}', 0o600)


class Connected:
    """Whoever has a connection can be asked for rows."""
    _connection: sqlite3.Connection
    path: Path

    def _failed(self, error: Exception) -> CtxfsError:
        """What a failed statement is to its caller."""
        return _translate(error, self.path)

    def rows(self, sql: str, args: Iterable[Any] = ()) -> list[Any]:
        try:
            return self._connection.execute(sql, args).fetchall()  # type: ignore[arg-type]
        except ERRORS as error:
            raise self._failed(error) from error


class TreeReader(Connected):
    """A read-only connection of its own: for another thread of the daemon, or another process, also while the daemon runs. Used by one
    thread at a time. Raises NotFound when there is no database, Corrupted when it cannot be read, or is of another schema version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise NotFound(f'no tree database at {path}')
        if not path.stat().st_size:     # SQLite would take the log of an empty file for rubbish and remove it
            raise Damaged(f'the tree database is damaged: {path} is empty')
        try:
            self._connection = sqlite3.connect(f'{path.absolute().as_uri()}?mode=ro', uri=True, isolation_level=None, timeout=2,
                                               check_same_thread=False)
        except ERRORS as error:
            raise _translate(error, self.path) from error

    def meta(self, name: str) -> Any:
        found = self.rows('SELECT value FROM meta WHERE name = ?', (name,))
        return found[0][0] if found else None

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All that is read in the block is of one instant."""
        self.rows('BEGIN')
        try:
            yield
        finally:
            self.rows('COMMIT')

    def integrity_faults(self) -> list[str]:
        """What SQLite finds wrong with the file, none where it is sound. Costs by the size of the database: 8 ms for each MiB."""
        return [text for text, in self.rows('PRAGMA integrity_check(20)') if text != 'ok']

    def close(self) -> None:
        self._connection.close()


class TreeConnection(Connected):
    """The connection of the one who writes. Raises only ctxfs.errors: DiskFull, Corrupted; and ReadOnly once the file is found damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: what is wrong with the file; '' while nothing is known
        self.damage = ''
        self._wal_fd = -1
        #: `changes` when all of the log was in the file
        self._moved = -1
        _make_private(path)
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=10, cached_statements=256)
        except ERRORS as error:
            raise _translate(error, self.path) from error
        try:
            self._set_modes()
            self._wal_fd = os.open(f'{path}-wal', os.O_RDONLY | os.O_CLOEXEC)
            for directory in (path.parent, path.parent.parent):     # else an fsync of the log says nothing of its name
                sync_directory(directory)
        except BaseException:
            self.close()
            raise

    def _set_modes(self) -> None:
        self.execute('PRAGMA journal_mode = WAL')
        self.execute('PRAGMA synchronous = NORMAL')
        # Checkpoints fsync; they run in a thread with a connection of its own (`checkpoint`), never in the loop.
        self.execute('PRAGMA wal_autocheckpoint = 0')
        self.execute(f'PRAGMA journal_size_limit = {LOG_BYTES}')
        self.execute('PRAGMA cache_size = -32768')
        self.execute('PRAGMA temp_store = MEMORY')
        self.row('SELECT count(*) FROM sqlite_master')      # opens the log

    # --- statements -------------------------------------------------------------------------------------------------------------

    def execute(self, sql: str, args: Iterable[Any] = ()) -> sqlite3.Cursor:
        try:
            return self._connection.execute(sql, args)  # type: ignore[arg-type]
        except ERRORS as error:
            raise self._failed(error) from error

    def row(self, sql: str, args: Iterable[Any] = ()) -> Any:
        try:
            return self._connection.execute(sql, args).fetchone()  # type: ignore[arg-type]
        except ERRORS as error:
            raise self._failed(error) from error

    def many(self, sql: str, args: Iterable[Iterable[Any]]) -> None:
        try:
            self._connection.executemany(sql, args)  # type: ignore[arg-type]
        except ERRORS as error:
            raise self._failed(error) from error

    def let_go(self) -> None:
        """Of what is kept in memory, whatever can be read again: pages, up to 32 MB."""
        self.execute('PRAGMA shrink_memory')

    def insert(self, sql: str, marks: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """`sql` up to its VALUES, which are `marks` for each row. In one statement for many rows: that halves the CPU that a row takes."""
        whole = len(rows) - len(rows) % AT_ONCE
        for start in range(0, whole, AT_ONCE):
            self.execute(f'{sql} VALUES {",".join([marks] * AT_ONCE)}', list(itertools.chain.from_iterable(rows[start:start + AT_ONCE])))
        if whole < len(rows):
            self.many(f'{sql} VALUES {marks}', rows[whole:])

    @property
    def changes(self) -> int:
        """Grows with every row that is written: unchanged, nothing that was read is out of date."""
        return self._connection.total_changes

    def script(self, sql: str) -> None:
        """Several statements, which begin and end their transaction themselves."""
        try:
            self._connection.executescript(sql)
        except ERRORS as error:
            raise self._failed(error) from error

    # --- damage -----------------------------------------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> CtxfsError:
        if self.damage and 'readonly' in str(error):
            return ReadOnly(f'{self.damage}; nothing is changed any more')
        found = _translate(error, self.path)
        if isinstance(found, Damaged):
            self.protect(str(found))
        return found

    def protect(self, damage: str) -> None:
        """The file was found damaged: nothing is written to it from now on, and whoever tries gets ReadOnly."""
        if not self.damage:
            log.error('%s: it is only read from now on', damage)
        self.damage = self.damage or damage
        with suppress(sqlite3.Error):       # it is what cannot be relied on any more
            self._connection.execute('PRAGMA query_only = ON')

    def undo(self) -> None:
        """End the open transaction, if there is one, without its changes."""
        with suppress(*[sqlite3.Error] if self.damage else []):
            if self._connection.in_transaction:
                self._connection.execute('ROLLBACK')

    # --- the log ----------------------------------------------------------------------------------------------------------------

    def make_durable(self) -> None:
        """What was committed survives a power cut when this returns. Blocks for one fsync; call it from a thread."""
        os.fsync(self._wal_fd)

    def checkpoint(self, *, is_last: bool = False) -> None:
        """Move the WAL into the database file; call it from a thread. `is_last`: truncate the WAL too. A damaged one stays as it is."""
        if self.damage:
            return
        changes = self.changes
        with self._private_connection() as connection:
            _, frames, moved = connection.execute(f'PRAGMA wal_checkpoint({"TRUNCATE" if is_last else "PASSIVE"})').fetchone()
        if frames == moved:
            self._moved = changes

    @contextmanager
    def _private_connection(self):  # type: ignore[no-untyped-def]
        try:
            connection = sqlite3.connect(self.path, isolation_level=None, timeout=10)
            try:
                yield connection
            finally:
                connection.close()
        except ERRORS as error:
            raise _translate(error, self.path) from error

    def wal_bytes(self) -> int:
        """Of a log that is worth moving into the file; 0 when all of it is there, whatever room it takes."""
        return os.fstat(self._wal_fd).st_size if self.changes != self._moved else 0

    def close(self) -> None:
        if self._wal_fd >= 0:
            os.close(self._wal_fd)
        if not self.damage:
            self._connection.close()
            return
        # The last connection to go moves the log into the file, unless it may only read.
        last: TreeReader | None = None
        with suppress(CtxfsError):
            last = TreeReader(self.path)
            last.rows('SELECT 1 FROM sqlite_master')
        self._connection.close()
        if last is not None:
            last.close()
