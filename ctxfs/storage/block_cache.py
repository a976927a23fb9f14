"""The block cache: clean content of remote versions on the local disk, shared by the daemon (reads) and its workers (write).

Owns the cache directory: a diskcache.Cache whose values are plain files of one block, or of one whole file that was staged here and
uploaded. It must not know the network, paths on the mount, or anything dirty: whatever is in here may vanish at any time (eviction, a
corrupt database, `rm -r`) and costs a download, nothing else.

How it uses diskcache (5.6; its source is the reference for the behaviour named here):
- An entry's key is a hash of (object key, etag, block); its tag a hash of the object key, so that one object's entries can be dropped.
- `_Files` replaces how values are stored (diskcache's documented extension point): a value is a file that is already in place, so
  storing it is one row. The name holds the entry's hash, its length, and for an adopted file its mtime. All are compared when it is
  opened: a file that was torn by a crash or written after its adoption, or a row that points astray, is a miss. (File systems that
  write data before the new size, as ext4, XFS and btrfs do, leave a torn file short.) Nothing is fsynced.
- Eviction takes what was touched longest ago. diskcache's own LRU writes a row at every read: 125 µs where a plain one costs 18 µs, and
  readers queue behind writers. So reading writes nothing; the time of use is kept in expire_time (far in the future, nothing expires)
  and renewed in batches, for entries that have not been for TOUCH_SECONDS.
- Eviction unlinks: whoever has the file open reads on.
"""
from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import diskcache
from diskcache import core as _core

from ctxfs import errors

log = logging.getLogger(__name__)

BLOCK_SIZE = 1 << 20
#: below this bound a block could be evicted between its arrival and its first read, and a reader would never get on
MIN_LIMIT = 32 << 20
#: an entry's time of use is that exact; smaller means more writes, larger a coarser order of eviction
TOUCH_SECONDS = 600.0
_NEVER = 100 * 365 * 86400.0
_WHOLE = -1
#: what one more row may add to the database
_ROW_BYTES = 64 << 10
_LOCK_SECONDS = 20.0
_POLICY = 'ctxfs-least-recently-touched'
_BROKEN = (_core.sqlite3.DatabaseError, diskcache.Timeout)

_core.EVICTION_POLICY.setdefault(_POLICY, {
    'init': None, 'get': None, 'cull': 'SELECT {fields} FROM Cache ORDER BY expire_time LIMIT ?'})


class CachedRange(NamedTuple):
    """`length` bytes of a block at `offset` of the open file `fd`. The receiver closes fd; eviction does not hurt it."""
    fd: int
    offset: int
    length: int


class AdoptFile(NamedTuple):
    """A file on this disk whose content is the version `etag` of `key`, and that nobody will write again."""
    path: str
    key: str
    etag: str
    size: int


class _Placed(NamedTuple):
    """A value for diskcache: a file that lies at `name` below the cache directory."""
    name: str
    size: int


class _Files(diskcache.Disk):
    """Values are files put in place by BlockCache; what is fetched is the file's name."""

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, str, None]:
        return value.size, _core.MODE_BINARY, value.name, None

    def fetch(self, mode: int, filename: str, value: Any, read: bool) -> str:
        return filename

    def remove(self, file_path: str) -> None:
        # Unlike the original, keeps the directory: another process may be about to put a file into it.
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self._directory, file_path))


def _entry_hash(key: str, etag: str, block: int) -> bytes:
    return hashlib.blake2b(f'{block}\0{etag}\0{key}'.encode('utf-8', 'surrogatepass'), digest_size=16).digest()


def _tag(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=8).digest(), 'big', signed=True)


class BlockCache:
    """See the module docstring. Thread-safe. Any number of processes may have one on the same directory."""

    def __init__(self, directory: str | os.PathLike[str], limit: int) -> None:
        """Open or create. A cache that cannot be opened is thrown away and a new one begun (logged). OSError: no directory to be had."""
        self._directory = os.fspath(directory)
        self._limit = max(limit, MIN_LIMIT)
        # One writer of this process at a time: SQLite's own waiting sleeps up to 100 ms at a stretch.
        self._write_lock = threading.Lock()
        self._touch_lock = threading.Lock()
        self._to_touch: set[bytes] = set()
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
            _throw_away(self._directory)
            return self._open_once()

    def _open_once(self) -> diskcache.Cache:
        os.makedirs(self._directory, 0o700, exist_ok=True)
        for number in range(256):
            with suppress(FileExistsError):
                os.mkdir(os.path.join(self._directory, f'{number:02x}'), 0o700)
        cache = diskcache.Cache(self._directory, timeout=_LOCK_SECONDS, disk=_Files, eviction_policy=_POLICY, size_limit=self._limit,
                                cull_limit=16, tag_index=True, statistics=0, sqlite_synchronous=1)
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
            if not self._follow_replacement() and 'full' in str(error):
                self._make_room()
            raise errors.RemoteUnavailable(f'the block cache could not be written: {error}') from error
        except _core.sqlite3.DatabaseError as error:
            self._replace(error)
            raise errors.RemoteUnavailable(f'the block cache was unreadable and is new now: {error}') from error

    def _replace(self, error: Exception) -> None:
        with self._write_lock:
            if self._current_identity() == self._identity:  # else another process replaced it first
                log.warning('the block cache in %s is unreadable (%s): starting an empty one', self._directory, error)
                _throw_away(self._directory)
            self._cache = self._open()

    def _follow_replacement(self) -> bool:
        """Another process may have begun a new cache: use that one. True when it was so."""
        if self._current_identity() == self._identity:
            return False
        with self._write_lock:
            self._cache = self._open()
        return True

    # --- reading -----------------------------------------------------------------------------------------------------------------

    def open_block(self, key: str, etag: str, block: int) -> CachedRange | None:
        """The block's bytes, or None if they are not here. Never blocks on a writer and writes nothing."""
        found = self._open_block(key, etag, block)
        if found is None and self._follow_replacement():
            found = self._open_block(key, etag, block)
        return found

    def _open_block(self, key: str, etag: str, block: int) -> CachedRange | None:
        opened = self._open_entry(_entry_hash(key, etag, block))
        if opened is not None:
            return CachedRange(opened[0], 0, opened[1])
        opened = self._open_entry(_entry_hash(key, etag, _WHOLE))
        if opened is None:
            return None
        fd, size = opened
        offset = block * BLOCK_SIZE
        if offset >= size:
            os.close(fd)
            return None
        return CachedRange(fd, offset, min(BLOCK_SIZE, size - offset))

    def _open_entry(self, entry: bytes) -> tuple[int, int] | None:
        name = self._find(entry)
        if name is None:
            return None
        try:
            fd = os.open(os.path.join(self._directory, name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # evicted since, or lost: a miss
            return None
        status = os.fstat(fd)
        digest, size, mtime_ns, _ = name[3:].split('-')
        if digest != entry.hex() or int(size) != status.st_size or mtime_ns not in ('0', str(status.st_mtime_ns)):
            os.close(fd)
            log.info('block cache entry %s is torn, written to or misplaced: ignored', name)
            return None
        return fd, status.st_size

    def _find(self, entry: bytes) -> str | None:
        """The entry's file name; notes it for `flush_touches` when its time of use is old."""
        try:
            name, used_until = self._cache.get(entry, expire_time=True)
        except (_core.sqlite3.OperationalError, diskcache.Timeout):  # locked, or removed under us: not readable now
            return None
        except _core.sqlite3.DatabaseError as error:
            self._replace(error)
            return None
        if name is not None and used_until - _NEVER < time.time() - TOUCH_SECONDS:
            with self._touch_lock:
                self._to_touch.add(entry)
        return name

    def missing(self, key: str, etag: str, blocks: Iterable[int]) -> list[int]:
        """Those of `blocks` that cannot be read from here now."""
        absent = []
        for block in blocks:
            found = self.open_block(key, etag, block)
            if found is None:
                absent.append(block)
            else:
                os.close(found.fd)
        return absent

    def flush_touches(self) -> int:
        """Write down that entries were used: one transaction, so not for the event loop. How many; to be called every minute or so."""
        with self._touch_lock:
            entries, self._to_touch = self._to_touch, set()
        if entries:
            with self._guarded(), self._write_lock, self._cache.transact():
                for entry in entries:
                    self._cache.touch(entry, expire=_NEVER)
        return len(entries)

    # --- writing -----------------------------------------------------------------------------------------------------------------

    def store(self, key: str, etag: str, first: int, data: bytes | memoryview) -> None:
        """Keep consecutive blocks, the first being number `first`; only the last may be shorter than BLOCK_SIZE.

        Raises NoSpace when the disk is full even after evicting, RemoteUnavailable when the database failed (a retry may help)."""
        view = memoryview(data)
        with self._inserting() as placed:
            for offset in range(0, len(view), BLOCK_SIZE):
                entry = _entry_hash(key, etag, first + offset // BLOCK_SIZE)
                placed.append((entry, _tag(key), self._place_bytes(entry, view[offset:offset + BLOCK_SIZE])))

    def adopt(self, items: Sequence[AdoptFile], *, on_placed: Callable[[], None] = lambda: None) -> list[str]:
        """Take files into the cache by link (by copy where that is impossible), in one transaction. Paths that were gone, had another
        size or are above the bound are returned and left out. `on_placed` is called between the links and their rows. Raises as `store`."""
        missing = []
        with self._inserting() as placed:
            for item in items:
                if item.size == 0:
                    continue
                if item.size > self._limit:
                    missing.append(item.path)
                    continue
                entry = _entry_hash(item.key, item.etag, 0 if item.size <= BLOCK_SIZE else _WHOLE)
                linked = self._place_file(entry, item)
                if linked is None:
                    missing.append(item.path)
                else:
                    placed.append((entry, _tag(item.key), linked))
            on_placed()
        self._cull()
        return missing

    @contextmanager
    def _inserting(self) -> Iterator[list[tuple[bytes, int, _Placed]]]:
        """Collect files that were put in place, then give them their rows in one transaction; on any failure they are unlinked."""
        placed: list[tuple[bytes, int, _Placed]] = []
        try:
            yield placed
            # Within an outer transaction diskcache unlinks a replaced file before the commit: a kill in between loses that entry, no
            # more. One entry needs no outer transaction.
            with self._guarded(), self._write_lock, self._cache.transact() if len(placed) > 1 else nullcontext():
                for entry, tag, value in placed:
                    self._make_way(value.size)
                    self._cache.set(entry, value, expire=_NEVER, tag=tag)
        except BaseException:
            for _, _, value in placed:
                self._cache.disk.remove(value.name)
            raise

    def _make_way(self, size: int) -> None:
        """Evict before `size` bytes are counted, so that the bound, which all processes share, holds at every instant."""
        bound = self._cache.reset('size_limit') - size - _ROW_BYTES
        if self._cache.volume() > bound:
            self._cache.reset('size_limit', bound, update=False)
            try:
                self._cache.cull()
            finally:
                self._cache.reset('size_limit', bound + size + _ROW_BYTES, update=False)

    def _name(self, entry: bytes, size: int, mtime_ns: int = 0) -> str:
        # Random at the end: a second copy of an entry must not share the file that the first one's eviction unlinks.
        digest = entry.hex()
        return f'{digest[:2]}/{digest}-{size}-{mtime_ns}-{secrets.token_hex(6)}'

    def _place_bytes(self, entry: bytes, data: memoryview) -> _Placed:
        placed = _Placed(self._name(entry, len(data)), len(data))
        path = os.path.join(self._directory, placed.name)
        for is_last in (False, True):
            try:
                _write_file(path, data)
                return placed
            except OSError as error:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                self._recover(error, is_last)
        raise AssertionError('unreachable')

    def _place_file(self, entry: bytes, item: AdoptFile) -> _Placed | None:
        try:
            before = os.stat(item.path)
            placed = _Placed(self._name(entry, item.size, before.st_mtime_ns), item.size)
            path = os.path.join(self._directory, placed.name)
            os.link(item.path, path)
        except FileNotFoundError:
            return None
        except OSError:  # EXDEV, EMLINK, EPERM: another file system, or one without links
            shutil.copyfile(item.path, path)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = os.stat(path)
        if (after.st_size, after.st_mtime_ns) != (item.size, before.st_mtime_ns):
            os.unlink(path)
            return None
        return placed

    def _recover(self, error: OSError, is_last: bool) -> None:
        """After a failed write: make room or the directory, once; then give up."""
        if is_last or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT):
            raise errors.NoSpace(f'the block cache cannot be written: {error}') from error
        if error.errno == errno.ENOENT:
            self._follow_replacement()
            os.makedirs(self._directory, 0o700, exist_ok=True)
        else:
            self._make_room()

    def _make_room(self) -> None:
        """The disk is full: give back half of what is cached here."""
        with suppress(*_BROKEN):
            wanted = self._cache.volume() // 2
            self._cull(limit=wanted)

    def give_back(self) -> None:
        """Evict half of what is cached, because the disk is full."""
        self._make_room()

    # --- bounds ------------------------------------------------------------------------------------------------------------------

    def set_limit(self, limit: int, *, cull: bool = True) -> None:
        """Bound the cache to `limit` bytes from now on, in all processes (never below MIN_LIMIT); `cull`: evict down to it at once."""
        self._limit = max(limit, MIN_LIMIT)
        with self._guarded(), self._write_lock:
            self._cache.reset('size_limit', self._limit)
        if cull:
            self._cull()

    def _cull(self, limit: int | None = None) -> None:
        with self._write_lock:
            self._cache.reset('size_limit', self._limit if limit is None else limit, update=False)
            try:
                self._cache.cull()
            except _BROKEN as error:  # what is stored is stored; the next insertion evicts
                log.info('the block cache could not evict: %s', error)
            finally:
                self._cache.reset('size_limit', self._limit, update=False)

    def volume(self) -> int:
        """Bytes of all entries and of the database, at most a moment old. 0 when it cannot be told."""
        try:
            return int(self._cache.volume())
        except _BROKEN:
            return 0

    def count(self) -> int:
        """How many entries there are. 0 when it cannot be told."""
        try:
            return len(self._cache)
        except _BROKEN:
            return 0

    def drop(self, key: str) -> int:
        """Forget every version of one object; how many entries went."""
        with self._guarded(), self._write_lock:
            return int(self._cache.evict(_tag(key)))

    def clear(self) -> int:
        with self._guarded(), self._write_lock:
            return int(self._cache.clear())

    def sweep(self, older_than: float) -> int:
        """Unlink files that no entry names and whose inode last changed before `older_than` (seconds since the epoch): what a killed
        worker had put in place without its row. Costs by the size of the cache: for the background, after an unclean end."""
        removed = 0
        for directory in Path(self._directory).iterdir():
            for file in os.scandir(directory) if len(directory.name) == 2 else ():
                name = f'{directory.name}/{file.name}'
                if file.stat(follow_symlinks=False).st_ctime < older_than and not self._is_named(name):
                    with suppress(FileNotFoundError):
                        os.unlink(file.path)
                        removed += 1
        return removed

    def _is_named(self, name: str) -> bool:
        try:
            return bool(self._cache.get(bytes.fromhex(name[3:].split('-')[0])) == name)
        except ValueError:  # not a name of ours: nothing can point to it
            return False

    def close(self) -> None:
        """Close this thread's connection; those of other threads close as the threads end."""
        self._cache.close()


def _write_file(path: str, data: memoryview) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        written = 0
        while written < len(data):
            written += os.write(fd, data[written:])
    finally:
        os.close(fd)


def _throw_away(directory: str) -> None:
    """Move the directory aside first: who has it open keeps reading what it opened, and nobody mixes old files with a new database."""
    aside = f'{directory}.broken-{secrets.token_hex(4)}'
    with suppress(FileNotFoundError):
        os.rename(directory, aside)
    shutil.rmtree(aside, ignore_errors=True)
