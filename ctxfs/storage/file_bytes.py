"""Moving bytes between descriptors: whole writes, exact ranges, copies inside the kernel where it can.

Owns the loops around short reads and writes, and nothing else; it must not know keys, objects or errors of ctxfs.
"""
from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import BinaryIO

_CHUNK = 8 << 20


def read_range(fd: int, start: int, stop: int) -> bytes:
    parts = []
    while start < stop:
        part = os.pread(fd, min(stop - start, 1 << 30), start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b''.join(parts)


def write_all(fd: int, body: bytes) -> None:
    view = memoryview(body)
    while view:
        view = view[os.write(fd, view):]


def copy_bytes(file: BinaryIO, target: int, size: int, progress: Callable[[int], None]) -> int:
    """Copy up to `size` bytes from the start of `file`; returns how many there were. Inside the kernel where both sides can (which shares
    the blocks on btrfs and xfs), else through memory, one chunk at a time."""
    try:
        source = file.fileno()
    except OSError:
        file.seek(0)
        return _pump(lambda done, n: _write_read(file.read(n), target), size, progress)
    try:
        return _pump(lambda done, n: os.copy_file_range(source, target, n, offset_src=done), size, progress)
    except OSError as exc:
        # not between these two file systems, or not on this kernel; anything else is for the caller
        if exc.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    os.ftruncate(target, 0)
    os.lseek(target, 0, os.SEEK_SET)
    return _pump(lambda done, n: _write_read(os.pread(source, n, done), target), size, progress)


def _write_read(data: bytes, target: int) -> int:
    write_all(target, data)
    return len(data)


def _pump(step: Callable[[int, int], int], size: int, progress: Callable[[int], None]) -> int:
    done = 0
    while done < size:
        count = step(done, min(size - done, _CHUNK))
        if not count:
            break
        done += count
        progress(count)
    return done
