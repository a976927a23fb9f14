"""What is on the disk and not only in the kernel's memory: making files durable, and telling after a power cut what is left of one.

Owns the system calls (fsync, syncfs, the search for holes) and the verdict on a file. It must not know rows, names or when anything is made
durable. All of it blocks on the disk: for threads, and for the time before a mount.

What a power cut leaves of bytes that were not fsynced: on ext4, as it is mounted by default, a file can have its new size and zeros where the
bytes should be (delayed allocation makes extents that are marked unwritten, and the size is in the journal before the bytes are on the disk;
seen within seconds here). These zeros are holes to SEEK_HOLE, but for those at the end of a block that was there before.
xfs and btrfs move the size after the bytes: there files are short instead. ext4 with data=writeback, and file systems without extents, can
leave anything, also in place of what looks written: not told here.
"""
from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)


class Measure(NamedTuple):
    """A file as it is: its size, and how many bytes of it lie in holes."""
    size: int
    holes: int


def sync_directory(path: str | Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(path: str) -> None:
    """Make everything durable that the file system of `path` holds: one commit, where as many fsyncs as files would be as many commits."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(fd)


def measure(fd: int) -> Measure:
    """Bytes that were written and are not on the disk yet count as written: the page cache knows of them."""
    size = os.fstat(fd).st_size
    return Measure(size, sum(stop - start for start, stop in holes(fd, size)))


def holes(fd: int, size: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """[start, stop) of each hole before `size`, from `start` on. None where the file system does not tell."""
    while start < size:
        start = os.lseek(fd, start, os.SEEK_HOLE)
        if start >= size:
            return
        stop = _next_data(fd, start, size)
        yield start, stop
        start = stop


def _next_data(fd: int, start: int, size: int) -> int:
    try:
        return min(os.lseek(fd, start, os.SEEK_DATA), size)
    except OSError:     # ENXIO: a hole up to the end
        return size


def whole_size(fd: int, hardened: Measure) -> int | None:
    """After a power cut, of a file that was fsynced when it was `hardened`: how many bytes from its start are what somebody wrote, at least
    those of then. None: not even those, it was cut or replaced since, and what came instead did not reach the disk.

    What was overwritten in place since may be old or new, page by page, as on any disk."""
    found = os.fstat(fd)
    # what somebody read since the reboot would pass for written
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if found.st_size < hardened.size or sum(stop - start for start, stop in holes(fd, hardened.size)) > hardened.holes:
        return None
    end = next((start for start, _ in holes(fd, found.st_size, hardened.size)), found.st_size)
    return hardened.size if _is_blank(fd, hardened.size, min(end, -(-hardened.size // found.st_blksize) * found.st_blksize)) else end


def _is_blank(fd: int, start: int, stop: int) -> bool:
    """Of what was appended in a block that had its place already, ext4 journals the size and not the bytes: then there are zeros, and no hole."""
    return start < stop and not any(os.pread(fd, stop - start, start))
