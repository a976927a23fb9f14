"""Copies of staging files: one file as it is at this instant, beside the original, sharing its blocks where the disk can.

Owns how bytes are copied (a reflink, else extent by extent inside the kernel, so that holes stay holes). It must not know inodes, or who
keeps writers away meanwhile: that is the caller's promise. A copy has a suffix, so what a crash leaves of one goes with the leftovers
(Staging.remove_leftovers).
"""
from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

SUFFIX = '.copy'
#: ioctl_ficlone(2)
_FICLONE = 0x40049409
#: what one copy_file_range(2) is asked for
_STEP = 16 << 20


@contextmanager
def copy_of(path: str) -> Iterator[str]:
    """Reserve the name of the file's copy; whatever is there goes when the block ends."""
    copy = path + SUFFIX
    try:
        yield copy
    finally:
        try:
            os.unlink(copy)
        except FileNotFoundError:
            pass        # it was never made


def copy_file(fd: int, path: str) -> None:
    """Make `path` a file equal to what `fd` is open on, which must not change meanwhile. Blocks (call it from a thread); leaves `fd` open.
    Raises OSError, ENOSPC among others."""
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if not _clone(fd, target):
            size = os.fstat(fd).st_size
            os.ftruncate(target, size)
            for start, stop in _extents(fd, size):
                _copy_range(fd, target, start, stop)
    finally:
        os.close(target)


def _clone(fd: int, target: int) -> bool:
    """Share all blocks; False where the file system cannot (every error means that: nothing was copied)."""
    try:
        fcntl.ioctl(target, _FICLONE, fd)
    except OSError:
        return False
    return True


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of what is no hole."""
    stop = 0
    while stop < size:
        try:
            start = os.lseek(fd, stop, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:      # only a hole is left
                return
            raise
        stop = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, stop


def _copy_range(fd: int, target: int, start: int, stop: int) -> None:
    while start < stop:
        try:
            copied = os.copy_file_range(fd, target, min(_STEP, stop - start), start, start)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            copied = os.pwrite(target, os.pread(fd, min(_STEP, stop - start), start), start)
        if not copied:
            raise OSError(errno.EIO, 'the staging file ended before its size')
        start += copied
