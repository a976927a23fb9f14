"""The block cache: clean content of remote versions on the local disk, shared by the daemon (reads) and its workers (write).

Owns the cache directory: a database (cache_database.py) whose values are plain files (cache_files.py) of one block, or of one whole file that
was staged here and uploaded. It must not know the network, paths on the mount, or anything dirty: whatever is in here may vanish at any time
(eviction, a corrupt database, `rm -r`) or go bad, and costs a download, nothing else.

INVARIANT: no byte is served that was not compared with the sum that its row has (block_sums.py), by this process, since it opened the file
or since the file changed. What differs is dropped, and is a miss. An entry without sums (of an older version of this cache) is one, too.

An entry's key is a hash of (object key, etag, block); its tag a hash of the object key, so that one object's entries can be dropped. Reading
writes nothing: the times of use are noted in batches, for entries whose time has not been for TOUCH_SECONDS. Eviction unlinks: whoever has
the file open reads on.
"""
from __future__ import annotations

import errno
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from ctxfs import errors
from ctxfs.storage import cache_files
from ctxfs.storage.block_sums import BLOCK_SIZE as BLOCK_SIZE
from ctxfs.storage.block_sums import SUM_BYTES, Compared, RecentSums, is_right, stamp_of, sums_of
from ctxfs.storage.cache_database import MIN_LIMIT as MIN_LIMIT
from ctxfs.storage.cache_database import CacheDatabase, NewRow
from ctxfs.storage.cache_files import AdoptFile as AdoptFile
from ctxfs.storage.cache_files import CachedRange as CachedRange
from ctxfs.storage.cache_files import FoundBlock as FoundBlock
from ctxfs.storage.cache_files import Placed
from ctxfs.storage.disk_space import spare_bytes
from ctxfs.storage.keys import printable

log = logging.getLogger(__name__)

#: an entry's time of use is that exact; smaller means more writes, larger a coarser order of eviction
TOUCH_SECONDS = 600.0
_WHOLE = -1
#: objects with wrong bytes are told as a WARNING, each once, up to so many: a failing disk must not fill the log
_TOLD = 1000


def _entry_hash(key: str, etag: str, block: int) -> bytes:
    return hashlib.blake2b(f'{block}\0{etag}\0{key}'.encode('utf-8', 'surrogatepass'), digest_size=16).digest()


def _tag(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=8).digest(), 'big', signed=True)


class BlockCache:
    """See the module docstring. Thread-safe. Any number of processes may have one on the same directory."""

    def __init__(self, directory: str | os.PathLike[str], limit: int) -> None:
        """Open or create. A cache that cannot be opened is thrown away and a new one begun (logged). OSError: no directory to be had."""
        self._directory = os.fspath(directory)
        self._rows = CacheDatabase(self._directory, limit)
        self._notes_lock = threading.Lock()
        self._to_touch: set[bytes] = set()
        #: entries whose file was found bad and is gone, and its name
        self._to_forget: dict[bytes, str] = {}
        self._compared = Compared()
        self._told: set[str] = set()
        #: blocks with wrong bytes that were found so far
        self.damaged = 0

    # --- reading -----------------------------------------------------------------------------------------------------------------

    def open_block(self, key: str, etag: str, block: int) -> CachedRange | None:
        """The block's bytes, compared, or None if they are not here. Never blocks on a writer and writes no row."""
        found = self.find_block(key, etag, block)
        if found is None or not (found.is_compared or self.compare(found) is not None):
            return None
        return CachedRange(found.fd, found.offset, found.length)

    def find_block(self, key: str, etag: str, block: int) -> FoundBlock | None:
        """The block, not compared yet unless this process has lately. None if it is not here. As `open_block` otherwise."""
        found = self._find_block(key, etag, block)
        if found is None and self._rows.follow_replacement():
            found = self._find_block(key, etag, block)
        return found

    def _find_block(self, key: str, etag: str, block: int) -> FoundBlock | None:
        return self._open_entry(_entry_hash(key, etag, block), key, 0) or self._open_entry(_entry_hash(key, etag, _WHOLE), key, block)

    def _open_entry(self, entry: bytes, key: str, block: int) -> FoundBlock | None:
        """Block number `block` of the entry's file."""
        row = self._rows.row(entry)
        if row is None:
            return None
        try:
            opened = cache_files.open_file(self._directory, row.name, entry)
        except OSError as error:
            log.info('block cache entry %s cannot be opened: %s', row.name, error)
            return None
        if opened is None:
            log.debug('block cache entry %s is gone, torn, written to or misplaced: forgotten', row.name)
            self._forget(entry, row.name)
            return None
        (fd, status), offset = opened, block * BLOCK_SIZE
        if offset >= status.st_size:
            os.close(fd)
            return None
        if row.used_at < time.time() - TOUCH_SECONDS:
            with self._notes_lock:
                self._to_touch.add(entry)
        found = FoundBlock(key, row.name, fd, block=block, offset=offset, length=min(BLOCK_SIZE, status.st_size - offset), sums=row.sums,
                           stamp=stamp_of(status))
        if len(row.sums) != -(-status.st_size // BLOCK_SIZE) * SUM_BYTES:
            self.discard(found, 'its sums are incomplete' if row.sums else '')
            return None
        found.is_compared = self._compared.has((row.name, block), found.stamp)
        return found

    def compare(self, found: FoundBlock) -> bytes | None:
        """The block's bytes if they are those that were stored. None: they are not, and the entry is dropped and closed: a miss."""
        try:
            found.stamp = stamp_of(os.fstat(found.fd))      # before reading: who writes meanwhile is noticed the next time
            data = found.read(0, found.length)
        except OSError as error:    # a bad sector
            self.discard(found, f'it cannot be read: {error.strerror}')
            return None
        if data is None or not is_right(data, found.sums, found.block):
            self.discard(found, 'its bytes are not those that were stored')
            return None
        found.is_compared = True
        self._compared.note((found.name, found.block), found.stamp)
        return data

    def discard(self, found: FoundBlock, reason: str) -> None:
        """Close it and take its file away, so that nobody opens it again; the row goes with the next `flush_notes`. `reason`: what is wrong
        with its bytes, if anything."""
        found.close()
        self._forget(cache_files.entry_of(found.name) or b'', found.name)
        with self._notes_lock:
            self.damaged += bool(reason)
            is_news = bool(reason) and found.key not in self._told and len(self._told) < _TOLD
            self._told.update({found.key} if is_news else ())
        log.log(logging.WARNING if is_news else logging.INFO, 'the block cache had a bad copy of %s (block %d: %s): dropped, to be fetched again',
                printable(found.key), found.block, reason or 'of an older version, without sums')

    def missing(self, key: str, etag: str, blocks: Iterable[int]) -> list[int]:
        """Those of `blocks` that are not here now. (One that is may turn out bad when it is read; it is missing from then on.)"""
        absent = []
        for block in blocks:
            found = self.find_block(key, etag, block)
            if found is None:
                absent.append(block)
            else:
                found.close()
        return absent

    def flush_notes(self) -> int:
        """Write down which entries were used and which were bad: one transaction, so not for the event loop. How many were used; to be
        called every minute or so."""
        with self._notes_lock:
            used, self._to_touch = self._to_touch, set()
            bad, self._to_forget = self._to_forget, {}
        if used or bad:
            self._rows.note(used, bad)
        return len(used)

    def _forget(self, entry: bytes, name: str) -> None:
        """What the row leads to is not what it should be: that file goes now, the row later."""
        if cache_files.entry_of(name) == entry:
            with suppress(OSError):     # a disk that has turned read-only: it will be found bad again
                cache_files.remove(self._directory, name)
        with self._notes_lock:
            self._to_forget[entry] = name

    # --- writing -----------------------------------------------------------------------------------------------------------------

    def store(self, key: str, etag: str, first: int, data: bytes | memoryview) -> None:
        """Keep consecutive blocks, the first being number `first`; only the last may be shorter than BLOCK_SIZE.

        Raises NoSpace when the disk is full even after evicting, RemoteUnavailable when the database failed (a retry may help)."""
        view = memoryview(data)
        with self._inserting() as placed:
            for offset in range(0, len(view), BLOCK_SIZE):
                entry = _entry_hash(key, etag, first + offset // BLOCK_SIZE)
                placed.append(NewRow(entry, _tag(key), self._place_bytes(entry, view[offset:offset + BLOCK_SIZE])))

    def store_many(self, files: Iterable[tuple[str, str, bytes]]) -> None:
        """Keep whole small files, (key, etag, content), in one transaction. Raises as `store` does."""
        with self._inserting() as placed:
            for key, etag, content in files:
                view = memoryview(content)
                for offset in range(0, len(view), BLOCK_SIZE):
                    entry = _entry_hash(key, etag, offset // BLOCK_SIZE)
                    placed.append(NewRow(entry, _tag(key), self._place_bytes(entry, view[offset:offset + BLOCK_SIZE])))

    def adopt(self, items: Sequence[AdoptFile], *, recent: RecentSums | None = None, on_placed: Callable[[], None] = lambda: None) -> list[str]:
        """Take files into the cache by link (by copy where that is impossible), in one transaction. Paths that were gone, had another size or
        are above the bound are returned and left out. `recent`: sums that need not be made again. `on_placed` is called between the links and
        their rows. Raises as `store` does."""
        missing = []
        with self._inserting() as placed:
            for item in items:
                if item.size == 0:
                    continue
                if item.size > self._rows.limit:
                    missing.append(item.path)
                    continue
                entry = _entry_hash(item.key, item.etag, 0 if item.size <= BLOCK_SIZE else _WHOLE)
                taken = self._take_in(entry, item, recent)
                if taken is None:
                    missing.append(item.path)
                else:
                    placed.append(NewRow(entry, _tag(item.key), taken))
            on_placed()
        self._rows.cull()
        return missing

    @contextmanager
    def _inserting(self) -> Iterator[list[NewRow]]:
        """Collect files that were put in place, then give them their rows in one transaction; on any failure they are unlinked."""
        placed: list[NewRow] = []
        try:
            yield placed
            self._rows.put(placed)
        except BaseException:
            for row in placed:
                cache_files.remove(self._directory, row.placed.name)
            raise

    def _place_bytes(self, entry: bytes, data: memoryview) -> Placed:
        placed = Placed(cache_files.new_name(entry, len(data)), len(data), sums_of(data))
        path = os.path.join(self._directory, placed.name)
        for is_last in (False, True):
            try:
                cache_files.write_file(path, data)
                return placed
            except OSError as error:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                self._recover(error, is_last)
        raise AssertionError('unreachable')

    def _take_in(self, entry: bytes, item: AdoptFile, recent: RecentSums | None) -> Placed | None:
        try:
            return cache_files.take_in(self._directory, entry, item.path, item.size, recent)
        except OSError as error:
            raise errors.NoSpace(f'the block cache cannot take in {item.path}: {error}') from error

    def _recover(self, error: OSError, is_last: bool) -> None:
        """After a failed write: make room or the directory, once; then give up."""
        if is_last or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT):
            raise errors.NoSpace(f'the block cache cannot be written: {error}') from error
        if error.errno == errno.ENOENT:
            self._rows.follow_replacement()
            os.makedirs(self._directory, 0o700, exist_ok=True)
        else:
            self._rows.make_room()

    def give_back(self) -> None:
        """Evict half of what is cached, because the disk is full."""
        self._rows.make_room()

    # --- bounds ------------------------------------------------------------------------------------------------------------------

    def spare_bytes(self) -> int:
        """What its disk has beyond what is to stay free there."""
        return spare_bytes(self._directory)

    def set_limit(self, limit: int, *, cull: bool = True) -> None:
        """Bound the cache to `limit` bytes from now on, in all processes (never below MIN_LIMIT); `cull`: evict down to it at once."""
        self._rows.set_limit(limit, cull=cull)

    def volume(self) -> int:
        """Bytes of all entries and of the database, at most a moment old. 0 when it cannot be told."""
        return self._rows.volume()

    def count(self) -> int:
        """How many entries there are. 0 when it cannot be told."""
        return self._rows.count()

    def drop(self, key: str) -> int:
        """Forget every version of one object; how many entries went."""
        return self._rows.drop(_tag(key))

    def clear(self) -> int:
        return self._rows.clear()

    def sweep(self, older_than: float) -> int:
        """Unlink files that no entry names and whose inode last changed before `older_than` (seconds since the epoch): what a killed
        worker had put in place without its row. Costs by the size of the cache: for the background, after an unclean end."""
        return sum(cache_files.remove_any(path) for name, path in cache_files.older_than(self._directory, older_than) if not self._is_named(name))

    def _is_named(self, name: str) -> bool:
        entry = cache_files.entry_of(name)
        return entry is not None and self._rows.is_named(entry, name)

    def close(self) -> None:
        """Close this thread's connection; those of other threads close as the threads end."""
        self._rows.close()
