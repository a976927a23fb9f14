"""Checks of this host for `ctxfs doctor`: can it mount at all.

Owns what is asked of the system. It must not know stores or contexts.
"""
from __future__ import annotations

import os
import platform
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ctxfs import __version__
from ctxfs.config import Paths
from ctxfs.edge import fuse_ops, preflight
from ctxfs.edge.doctor import Finding, Level
from ctxfs.edge.human import human_bytes
from ctxfs.sync.process_guard import helper_environment

#: less free space than this is told: a cache needs some, and so does whoever writes
FEW_BYTES = 1 << 30
MTAB = '/etc/mtab'


def check_versions() -> Iterator[Finding]:
    try:
        fuse = subprocess.run(['fusermount3', '--version'], capture_output=True, text=True, timeout=10, check=False,
                              env=helper_environment()).stdout.split()[-1:]
    except (OSError, subprocess.TimeoutExpired):
        fuse = []
    yield Finding(Level.OK, 'versions', f'ctxfs {__version__}, Python {platform.python_version()}, libfuse {"".join(fuse) or "not found"}, '
                                        f'{platform.system()} {platform.release()}')


def check_directories(paths: Paths) -> Iterator[Finding]:
    """Where this host keeps things: the user's alone, writable, with room. What is not there yet the first mount makes."""
    wrong = [found for path in {paths.state, paths.cache or paths.state, paths.runtime} if (found := _unusable(path))]
    if wrong:
        yield from (Finding(Level.FAIL, 'directories', *found) for found in sorted(wrong))
        return
    disk = os.statvfs(_existing(paths.state))
    free = disk.f_bavail * disk.f_frsize
    if free < FEW_BYTES:
        yield Finding(Level.WARN, 'directories', f'{human_bytes(free)} are free on the disk of {paths.state}',
                      'make room there, or choose another disk with --state-dir')
    else:
        yield Finding(Level.OK, 'directories', f'{paths.state} is private and writable; {human_bytes(free)} are free')


def _unusable(path: Path) -> tuple[str, str] | None:
    """(what is wrong with the directory, what to do)."""
    existing = _existing(path)
    if not existing.is_dir():
        return f'{existing} must be a directory, but something else is in the way', 'move it away'
    if not os.access(existing, os.W_OK | os.X_OK):
        return f'{existing} may not be written', f'chown it to {os.getuid()}, or choose another place with --state-dir'
    if existing != path:
        return None
    found = path.lstat()
    if found.st_uid != os.getuid():
        return f'{path} belongs to user {found.st_uid}', 'choose another place with --state-dir, or remove it'
    return (f'{path} is shared by many users', 'choose a directory of its own in it') if found.st_mode & stat.S_ISVTX else None


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def check_fuse() -> Iterator[Finding]:
    """Raises what preflight.check_fuse raises."""
    preflight.check_fuse()
    if os.geteuid() != 0 and not os.path.exists(MTAB):
        yield Finding(Level.WARN, 'fuse', f'there is no {MTAB}, so fusermount3 -u refuses to unmount what a user mounted',
                      f'ln -s ../proc/self/mounts {MTAB}, as a Debian has it that was booted once')
    yield Finding(Level.OK, 'fuse', f'{preflight.FUSE_DEVICE} and fusermount3 are there')


def check_library() -> Iterator[Finding]:
    """The library that opens and lists without Python: ctxfs works without it."""
    if fuse_ops.is_loaded():
        yield Finding(Level.OK, 'library', 'known files are opened without the interpreter')
    else:
        yield Finding(Level.WARN, 'library', 'it was not built, so trees of many files are walked more slowly',
                      'install gcc, pkg-config and libfuse3-dev (libfuse before 3.17), and install ctxfs again')
