"""The log file of a mount: private, and of bounded size, also while the mount runs for months.

Owns how it is opened and when its content is moved aside: to NAME.1, in the place of what was there. It must not know what is logged.

The daemon and its workers have the same file open as their stderr, and libraries write there too, so it cannot be replaced while they run: what is
in it is copied, and it is cut to nothing. All append, so they go on at its new end. What is written between the last look and the cut is lost.
"""
from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import IO

#: what is longer is moved aside
MAX_LOG_BYTES = 16 << 20
_PIECE = 1 << 20


def open_log(path: Path) -> IO[bytes]:
    """For appending, 0600 also where it was not; a long one is moved aside first."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > MAX_LOG_BYTES:
            path.replace(_aside(path))
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.fchmod(fd, 0o600)
    return os.fdopen(fd, 'ab')


def cut(path: Path, fd: int = 2) -> bool:
    """Move what is in the log aside where it is too long; whether it was. `fd`: writes to it, else nothing is done. Raises OSError."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size <= MAX_LOG_BYTES or not _is_same(found, path):
        return False
    new = path.with_name(f'{path.name}.new')
    try:
        with path.open('rb') as source, open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), 'wb') as copy:
            while piece := source.read(_PIECE):
                copy.write(piece)
            copy.flush()
            new.replace(_aside(path))
            os.ftruncate(fd, 0)
    finally:
        new.unlink(missing_ok=True)
    return True


def _is_same(found: os.stat_result, path: Path) -> bool:
    try:
        return os.path.samestat(found, path.stat())
    except FileNotFoundError:
        return False


def _aside(path: Path) -> Path:
    return path.with_name(path.name + '.1')
