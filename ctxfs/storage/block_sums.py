"""Checksums of cached blocks: XXH3 of each BLOCK_SIZE bytes of a cache file, and which of them this process has compared.

Owns the hash (the one importer of xxhash), the form in which sums are kept beside an entry, and the memory of comparisons. It must not know
where files lie, what they are copies of, or what is done about one that is wrong.

XXH3 finds accidents (a flipped bit, a lost sector, a file in another's place), not forgers: who can write into the cache directory is the
user, or root. It runs at 10 GB/s and more, so comparing is cheaper than reading.
"""
from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import xxhash

BLOCK_SIZE = 1 << 20
SUM_BYTES = 8
#: comparisons that are remembered; some 300 bytes each
REMEMBERED = 4096
#: a block that is read again and again is compared again after this: its file may have gone bad below the page cache
TRUSTED_SECONDS = 600.0
#: files whose sums are remembered between their upload and their adoption, and the most bytes of sums of one
RECENT_FILES = 4096
RECENT_BYTES = 1 << 18


def sums_of(data: bytes | memoryview) -> bytes:
    """The sums of consecutive blocks, the last of which may be short."""
    view = memoryview(data)
    return b''.join(xxhash.xxh3_64_digest(view[start:start + BLOCK_SIZE]) for start in range(0, len(view), BLOCK_SIZE))


def sums_of_file(fd: int, size: int) -> bytes | None:
    """The sums of a file of `size` bytes; None where it has fewer. Raises OSError."""
    sums = bytearray()
    for start in range(0, size, BLOCK_SIZE):
        data = read_exactly(fd, start, min(BLOCK_SIZE, size - start))
        if data is None:
            return None
        sums += xxhash.xxh3_64_digest(data)
    return bytes(sums)


def read_exactly(fd: int, offset: int, size: int) -> bytes | None:
    """Exactly `size` bytes; None where the file ends before. Raises OSError."""
    data = os.pread(fd, size, offset)
    return data if len(data) == size else None


def is_right(data: bytes, sums: bytes, block: int) -> bool:
    """Whether `data` is block number `block` of the file with these sums."""
    return xxhash.xxh3_64_digest(data) == sums[block * SUM_BYTES:(block + 1) * SUM_BYTES]


class Compared:
    """The blocks that this process found right, each as long as its file is the same (`stamp`), and at most for TRUSTED_SECONDS. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[Hashable, tuple[tuple[int, ...], float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def note(self, what: Hashable, stamp: tuple[int, ...]) -> None:
        with self._lock:
            self._found[what] = (stamp, time.monotonic() + TRUSTED_SECONDS)
            self._found.move_to_end(what)
            if len(self._found) > REMEMBERED:
                self._found.popitem(last=False)

    def has(self, what: Hashable, stamp: tuple[int, ...]) -> bool:
        with self._lock:
            found = self._found.get(what)
            if found is None or found[0] != stamp or found[1] < time.monotonic():
                return False
            self._found.move_to_end(what)
            return True


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """What changes when anybody writes to the file or puts another in its place."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class RecentSums:
    """Sums that an upload has made of a staging file on the way, kept for its adoption, which then need not read it again. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: OrderedDict[str, tuple[tuple[int, int], bytes]] = OrderedDict()

    def note(self, path: str, status: os.stat_result, sums: Any) -> None:
        """`status`: of the file before its first byte was read."""
        if len(sums) > RECENT_BYTES:
            return
        with self._lock:
            self._sums[path] = ((status.st_size, status.st_mtime_ns), bytes(sums))
            self._sums.move_to_end(path)
            if len(self._sums) > RECENT_FILES:
                self._sums.popitem(last=False)

    def take(self, path: str, size: int, mtime_ns: int) -> bytes:
        """The sums of that state of the file; b'' where they are not known. They are forgotten."""
        with self._lock:
            known, sums = self._sums.pop(path, ((-1, 0), b''))
        return sums if known == (size, mtime_ns) else b''
