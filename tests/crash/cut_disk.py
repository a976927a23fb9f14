"""A real ext4 whose power can go off: a file with a file system in it, mounted by loop, and the ioctl that makes it forget at once what it
did not write out.

Owns the image and its mount. It must not know what lies on it. Needs root and loop devices. FS_IOC_SHUTDOWN without flushing the log is
what xfstests cut the power with: nothing more reaches the disk, not even what the journal holds in memory; the next mount replays the log.
Not modelled: writes that were on their way to the disk and arrive in part or in another order (they are done or not), and other file systems.
"""
from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
from pathlib import Path

from tests.crash.watch import eventually

_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2
_SYNC_FILE_RANGE_WRITE = 2


class CannotMount(Exception):
    """This machine has no loop devices for us; the message says what it says."""


class CutDisk:
    """Mounted at `path` until the power is `cut`, and again after `power_on`."""

    def __init__(self, work: Path, *, mebibytes: int = 64) -> None:
        self._image = work / 'disk.img'
        self.path = work / 'disk'
        self.path.mkdir()
        with open(self._image, 'wb') as file:
            file.truncate(mebibytes << 20)
        subprocess.run(['mkfs.ext4', '-q', '-F', str(self._image)], check=True, capture_output=True)
        self._is_on = False
        self.power_on()
        # what is first on it must not depend on luck
        self._idle = os.path.join(self.path, 'lost+found')

    def power_on(self) -> None:
        done = subprocess.run(['mount', '-t', 'ext4', '-o', 'loop', str(self._image), str(self.path)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotMount(done.stderr.strip())
        self._is_on = True

    def commit(self) -> None:
        """Write the journal out: names, sizes and times, without the bytes of files that wait to be placed."""
        fd = os.open(self._idle, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.utime(self._idle)
            os.fsync(fd)
        finally:
            os.close(fd)

    def cut(self) -> None:
        """Nothing more reaches the disk. Who has files open gets EIO."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack('I', _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def power_off(self) -> None:
        """When nobody has anything open on it any more."""
        if self._is_on:
            # the daemon may have begun a replacement for a worker that was killed before it, which ends only now
            eventually('nobody uses the disk', lambda: subprocess.run(['umount', str(self.path)], check=False, capture_output=True).returncode == 0)
            self._is_on = False


def begin_writing(path: str) -> None:
    """Have the kernel place the file's bytes and send them off, and do not wait until they are there."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE):
            raise OSError(ctypes.get_errno(), 'sync_file_range')
    finally:
        os.close(fd)
