"""The database of the block cache: which entries there are, and what was used last.

Owns the diskcache.Cache in the cache directory: opening it, replacing one that cannot be read, following another process's replacement, its
rows and its eviction. It must not know keys and versions (entries and tags are hashes), nor what a file's bytes should be.

How it uses diskcache (5.6; its source is the reference for the behaviour named here):
- `_Files` replaces how values are stored (diskcache's documented extension point): a value is a file that is already in place, so
  storing it is one row, with the file's name and the sums of its blocks.
- Eviction takes what was touched longest ago. diskcache's own LRU writes a row at every read: 125 µs where a plain one costs 18 µs, and
  readers queue behind writers. So reading writes nothing; the time of use is kept in expire_time (far in the future, nothing expires)
  and renewed when it is told.
"""
from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import diskcache
from diskcache import core as _core

from ctxfs import errors
from ctxfs.storage import cache_files
from ctxfs.storage.cache_files import Placed

log = logging.getLogger(__name__)

#: below this bound a block could be evicted between its arrival and its first read, and a reader would never get on
MIN_LIMIT = 32 << 20
#: what one more row may add to the database, beside its sums
_ROW_BYTES = 64 << 10
_NEVER = 100 * 365 * 86400.0
_LOCK_SECONDS = 20.0
#: of 4 KiB that a connection keeps; each thread of a worker has one, and diskcache's own bounds (32 MiB, and 64 MiB mapped) are for one of them
PAGES = 256
#: bytes of files that go before their rows where the disk has no room for a transaction: more than the log takes
_UNLINKED = 8 << 20
_POLICY = 'ctxfs-least-recently-touched'
_BROKEN = (_core.sqlite3.DatabaseError, diskcache.Timeout)

_core.EVICTION_POLICY.setdefault(_POLICY, {
    'init': None, 'get': None, 'cull': 'SELECT {fields} FROM Cache ORDER BY expire_time LIMIT ?'})


class Row(NamedTuple):
    """A row as it was read."""
    name: str
    sums: bytes
    used_at: float


class NewRow(NamedTuple):
    """A file in its place that is to have a row."""
    entry: bytes
    tag: int
    placed: Placed


class _Files(diskcache.Disk):
    """Values are files put in place by the caller; what is fetched is the file's name and its sums."""

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, str, bytes]:
        return value.size, _core.MODE_BINARY, value.name, value.sums

    def fetch(self, mode: int, filename: str, value: Any, read: bool) -> tuple[Any, Any]:
        return filename, value

    def remove(self, file_path: str) -> None:
        if isinstance(file_path, str):      # else the row was not written by this cache
            cache_files.remove(self._directory, file_path)


class CacheDatabase:
    """Thread-safe. Any number of processes may have one on the same directory. Methods that write raise RemoteUnavailable where the database
    failed: a retry may help."""

    def __init__(self, directory: str, limit: int) -> None:
        """Open or create. A database that cannot be opened is thrown away with all files, and a new one begun (logged). OSError: no
        directory to be had."""
        self._directory = directory
        #: bytes, as this process knows it
        self.limit = max(limit, MIN_LIMIT)
        # One writer of this process at a time: SQLite's own waiting sleeps up to 100 ms at a stretch.
        self._write_lock = threading.Lock()
        self._cache = self._open()

    def _open(self) -> diskcache.Cache:
        """A database that is merely locked is waited for: diskcache sets its tables up without a timeout of its own, and the daemon and
        its workers open at the same time. Only one that stays unreadable is replaced."""
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                return self._open_once()
            except (_core.sqlite3.OperationalError, diskcache.Timeout) as error:
                if time.monotonic() < deadline and 'locked' in str(error):
                    time.sleep(0.01)
                    continue
                reason: Exception = error
            except _core.sqlite3.DatabaseError as error:
                reason = error
            log.warning('the block cache in %s is unreadable (%s): starting an empty one', self._directory, reason)
            cache_files.throw_away(self._directory)
            return self._open_once()

    def _open_once(self) -> diskcache.Cache:
        os.makedirs(self._directory, 0o700, exist_ok=True)
        cache = diskcache.Cache(self._directory, timeout=_LOCK_SECONDS, disk=_Files, eviction_policy=_POLICY, size_limit=self.limit,
                                cull_limit=16, tag_index=True, statistics=0, sqlite_synchronous=1,
                                sqlite_mmap_size=0, sqlite_cache_size=PAGES)
        self._identity = self._current_identity()
        return cache

    def _current_identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(os.path.join(self._directory, _core.DBNAME))
        except OSError:
            return None
        return status.st_dev, status.st_ino

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn a failing database into a fresh one and RemoteUnavailable: the caller's work is worth a retry."""
        try:
            yield
        except diskcache.Timeout as error:
            raise errors.RemoteUnavailable(f'the block cache was locked for {_LOCK_SECONDS:.0f} s') from error
        except _core.sqlite3.OperationalError as error:  # no space, an I/O error, or the directory was removed under us
            if not self.follow_replacement() and 'full' in str(error):
                self.make_room()
            raise errors.RemoteUnavailable(f'the block cache could not be written: {error}') from error
        except _core.sqlite3.DatabaseError as error:
            self._replace(error)
            raise errors.RemoteUnavailable(f'the block cache was unreadable and is new now: {error}') from error

    def _replace(self, error: Exception) -> None:
        with self._write_lock:
            if self._current_identity() == self._identity:  # else another process replaced it first
                log.warning('the block cache in %s is unreadable (%s): starting an empty one', self._directory, error)
                cache_files.throw_away(self._directory)
            self._cache = self._open()

    def follow_replacement(self) -> bool:
        """Another process may have begun a new cache: use that one. True when it was so."""
        if self._current_identity() == self._identity:
            return False
        with self._write_lock:
            self._cache = self._open()
        return True

    # --- rows --------------------------------------------------------------------------------------------------------------------

    def row(self, entry: bytes) -> Row | None:
        """None where there is none, or none that this cache wrote. Writes nothing and waits for no writer."""
        try:
            value, used_until = self._cache.get(entry, expire_time=True)
        except (_core.sqlite3.OperationalError, diskcache.Timeout):  # locked, or removed under us: not readable now
            return None
        except _core.sqlite3.DatabaseError as error:
            self._replace(error)
            return None
        if value is None:
            return None
        name, sums = value
        if not isinstance(name, str) or not isinstance(used_until, float):
            return None         # nothing that this cache writes
        return Row(name, sums if isinstance(sums, bytes) else b'', used_until - _NEVER)

    def put(self, rows: Sequence[NewRow]) -> None:
        """All in one transaction."""
        # Within an outer transaction diskcache unlinks a replaced file before the commit: a kill in between loses that entry, no more.
        # Without one another process could lower the bound between a look at it and the row.
        with self._guarded(), self._write_lock, self._cache.transact():
            for row in rows:
                self._make_way(row.placed.size + len(row.placed.sums))
                self._cache.set(row.entry, row.placed, expire=_NEVER, tag=row.tag)

    def _make_way(self, size: int) -> None:
        """Evict before `size` bytes are counted, so that the bound, which all processes share, holds at every instant."""
        bound = self._cache.reset('size_limit') - size - _ROW_BYTES
        if self._cache.volume() > bound:
            self._cache.reset('size_limit', bound, update=False)
            try:
                self._cache.cull()
            finally:
                self._cache.reset('size_limit', bound + size + _ROW_BYTES, update=False)

    def note(self, used: Collection[bytes], bad: Mapping[bytes, str]) -> None:
        """In one transaction: these entries were used now, and those, if their files still have these names, are none."""
        with self._guarded(), self._write_lock, self._cache.transact():
            for entry in used:
                self._cache.touch(entry, expire=_NEVER)
            for entry, name in bad.items():
                if self.is_named(entry, name, default=True):      # else somebody has stored it anew
                    self._cache.delete(entry)

    def is_named(self, entry: bytes, name: str, *, default: bool = False) -> bool:
        """Whether the entry's row names this file; `default` where it has no row."""
        return bool(self._cache.get(entry, (name if default else None, b''))[0] == name)

    def drop(self, tag: int) -> int:
        """Forget all entries with this tag; how many went."""
        with self._guarded(), self._write_lock:
            return int(self._cache.evict(tag))

    def clear(self) -> int:
        with self._guarded(), self._write_lock:
            return int(self._cache.clear())

    # --- bounds ------------------------------------------------------------------------------------------------------------------

    def make_room(self) -> None:
        """The disk is full: give back half of what is cached here."""
        with suppress(*_BROKEN):
            wanted = self._cache.volume() // 2
            self.cull(limit=wanted)

    def set_limit(self, limit: int, *, cull: bool = True) -> None:
        """Bound the cache to `limit` bytes from now on, in all processes (never below MIN_LIMIT); `cull`: evict down to it at once."""
        self.limit = max(limit, MIN_LIMIT)
        with self._guarded(), self._write_lock:
            self._cache.reset('size_limit', self.limit)
        if cull:
            self.cull()

    def cull(self, limit: int | None = None) -> None:
        """Evict down to the bound, or once to `limit` bytes."""
        with self._write_lock:
            self._cache.reset('size_limit', self.limit if limit is None else limit, update=False)
            try:
                self._cache.cull()
            except _BROKEN as error:  # what is stored is stored; the next insertion evicts
                log.info('the block cache could not evict: %s', error)
                if ('full' in str(error) or 'I/O' in str(error)) and self._unlink_oldest():     # SQLite's word for a quota is the latter
                    with suppress(*_BROKEN):
                        self._cache.cull()
            finally:
                self._cache.reset('size_limit', self.limit, update=False)

    def _unlink_oldest(self) -> bool:
        """Without room for the log of the database no row can go: files go first, then, and their rows are misses until they follow."""
        freed = 0
        for (name,) in self._cache._sql('SELECT filename FROM Cache ORDER BY expire_time'):
            with suppress(OSError, TypeError):      # gone before, or not this cache's
                found = os.lstat(os.path.join(self._directory, name))
                freed += found.st_blocks * 512 * (found.st_nlink == 1)
                cache_files.remove(self._directory, name)
            if freed >= _UNLINKED:
                break
        return freed > 0

    def volume(self) -> int:
        """Bytes of all entries and of the database, at most a moment old. 0 when it cannot be told."""
        try:
            return int(self._cache.volume())
        except _BROKEN:
            return 0

    def count(self) -> int:
        """0 when it cannot be told."""
        try:
            return len(self._cache)
        except _BROKEN:
            return 0

    def close(self) -> None:
        """Close this thread's connection; those of other threads close as the threads end."""
        self._cache.close()
