"""Space on the disk of the state directory: whether there is any, and a reserve for what must be possible without.

Owns how much is left free by what nobody asked for, and the reserve: a file whose blocks are allocated. A file system that is full to the last
block refuses also what would free space, because the tree database logs before it removes. Then the reserve is given up, and made again when
there is room. It must not know what is written.
"""
from __future__ import annotations

import errno
import logging
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

#: what the system says when nothing more fits
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
#: a removal writes about 40 KiB to the log of the tree database; half of the log's usual size
RESERVE_BYTES = 4 << 20
#: what a write must find free
_TRIAL_BYTES = 256 << 10
#: what nobody has asked for leaves a part of the file system free, within these bounds: who writes needs it
KEPT_FREE = 1 / 16
_LEAST_FREE, _MOST_FREE = 64 << 20, 4 << 30


def why_full(directory: Path) -> int:
    """The errno with which the system refuses new bytes there now, else 0; found out by a trial, for SQLite does not tell a quota that is used
    up from a broken disk."""
    try:
        with tempfile.TemporaryFile(dir=directory, prefix='.trial-') as file:
            os.posix_fallocate(file.fileno(), 0, _TRIAL_BYTES)
    except OSError as error:
        return error.errno if error.errno in FULL else 0
    return 0


def spare_bytes(directory: str | Path) -> int:
    """How much of the free space may be taken for what nobody has asked for; less than 0 when there is too little already."""
    try:
        found = os.statvfs(directory)
    except OSError:     # it is being replaced
        return 0
    if not found.f_blocks:      # a tmpfs without a bound
        return sys.maxsize
    kept = min(max(int(KEPT_FREE * found.f_blocks * found.f_frsize), _LEAST_FREE), _MOST_FREE)
    return found.f_bavail * found.f_frsize - kept


class Reserve:
    """See the module docstring. Never raises for want of space."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / 'reserve'
        self.is_there = False
        #: whatever is written now takes from what removals need
        self.is_given_up = False
        self.restore()

    def give_up(self) -> bool:
        """Whether that freed anything."""
        if not self.is_there:
            return False
        self.is_there, self.is_given_up = False, True
        log.warning('the disk of the state directory is full: the reserve is given up for removals')
        try:
            os.unlink(self._path)
        except OSError as error:    # some file systems refuse this, too
            log.warning('%s: %s', self._path, error)
            return False
        return True

    def restore(self) -> None:
        """Allocate it where it is missing and there is twice as much room."""
        if self.is_there:
            return
        with suppress(OSError):
            if not (self._path.exists() and self._path.stat().st_blocks * 512 >= RESERVE_BYTES):
                found = os.statvfs(self._path.parent)
                if found.f_bavail * found.f_frsize < 2 * RESERVE_BYTES:
                    return
                self._allocate()
            self._path.chmod(0o600)     # whatever somebody made of it meanwhile
            if self.is_given_up:
                log.warning('the disk of the state directory has room again')
            self.is_there, self.is_given_up = True, False

    def _allocate(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, RESERVE_BYTES)
        except OSError:
            os.unlink(self._path)
            raise
        finally:
            os.close(fd)
