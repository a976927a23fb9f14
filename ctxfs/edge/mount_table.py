"""The kernel's table of mounts, and one question to a mount point that can never hang the asker.

Owns the reading of /proc/self/mountinfo (proc_pid_mountinfo(5)). It must not stat a path of a mount itself: a FUSE mount whose daemon
is stuck holds whoever touches it, so what must be asked is asked by a child process with a deadline.
"""
from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import time

import msgspec

from ctxfs.sync.process_guard import helper_environment

#: what ctxfs mounts are called in the table: the daemon mounts with fsname=ctxfs, subtype=ctxfs
FSNAME = SUBTYPE = 'ctxfs'
FSTYPE = f'fuse.{SUBTYPE}'
PROBE_TIMEOUT = 5.0


class MountEntry(msgspec.Struct, frozen=True, kw_only=True):
    mount_id: int
    device: int
    mountpoint: str
    fstype: str
    source: str

    @property
    def is_ctxfs(self) -> bool:
        return self.fstype == FSTYPE


def read_mounts(table: str = '/proc/self/mountinfo') -> list[MountEntry]:
    """All mounts that this process sees, in the order in which they were made."""
    with open(table, 'rb') as file:
        return [_entry(line) for line in file if b' - ' in line]


def _entry(line: bytes) -> MountEntry:
    # the optional fields between the options and ` - ` vary in number
    before, _, after = line.rstrip(b'\n').partition(b' - ')
    left, right = before.split(b' '), after.split(b' ')
    major, _, minor = left[2].partition(b':')
    return MountEntry(mount_id=int(left[0]), device=os.makedev(int(major), int(minor)), mountpoint=_unescape(left[4]),
                      fstype=_unescape(right[0]), source=_unescape(right[1]))


def _unescape(field: bytes) -> str:
    return os.fsdecode(re.sub(rb'\\([0-7]{3})', lambda m: bytes([int(m[1], 8)]), field))


def mount_at(path: str) -> MountEntry | None:
    """The topmost mount whose mount point is exactly `path` (absolute, without symlinks)."""
    found = [entry for entry in read_mounts() if entry.mountpoint == path]
    return found[-1] if found else None


def real_mountpoint(path: str) -> str:
    """`path` absolute, with the symlinks of its parents resolved but its last component untouched: realpath() would lstat the mount
    point itself, which may hang."""
    absolute = os.path.abspath(os.path.expanduser(path))
    known = {entry.mountpoint for entry in read_mounts() if entry.is_ctxfs}
    if absolute in known:
        return absolute
    parent = os.path.join(os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute))
    return parent if parent in known or absolute == '/' else os.path.realpath(absolute)


def probe(path: str, *, device: int | None = None, timeout: float = PROBE_TIMEOUT) -> int:
    """0 when the file system at `path` answers (and, if given, `path` lies on `device`: else EXDEV), else the errno; ETIMEDOUT when
    nothing comes. Asks for statfs: the kernel may answer a stat from its cache for minutes after the daemon died. stat(1) asks, not a
    fork of this process: a fork of one that has threads may deadlock."""
    until = time.monotonic() + timeout
    asked = [_ask('-f', '-c', '%t', path), *([] if device is None else [_ask('-L', '-c', '%d', path)])]      # at the same time
    answers = [_answer(child, until - time.monotonic()) for child in asked]
    failure = next((failure for failure, _ in answers if failure), 0)
    return failure or (errno.EXDEV if device is not None and int(answers[1][1]) != device else 0)


def _ask(*args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(['stat', *args[:-1], '--', args[-1]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=helper_environment())


def _answer(child: subprocess.Popen[bytes], timeout: float) -> tuple[int, bytes]:
    """(errno or 0, what stat(1) printed)."""
    try:
        out, err = child.communicate(timeout=max(0.0, timeout))
    except subprocess.TimeoutExpired:
        _abandon(child)
        return errno.ETIMEDOUT, b''
    if child.returncode == 0:
        return 0, out
    return next((number for number in errno.errorcode if err.rstrip().endswith(os.strerror(number).encode())), errno.EIO), b''


def _abandon(child: subprocess.Popen[bytes]) -> None:
    """A process that waits in a LOOKUP survives SIGKILL until the answer comes, so nobody waits for it here: init inherits it."""
    child.kill()
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
    child.returncode = child.poll() or -signal.SIGKILL
