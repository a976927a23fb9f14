"""The lock of a state directory: one mount, or one repair, at a time.

Owns the lock file. It must not know who holds it: a daemon, workers of a daemon that was killed, which still move bytes, or `ctxfs doctor`.
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ctxfs.errors import Exists

#: the workers of a daemon that was killed a moment ago still hold the lock until they notice
LOCK_SECONDS = 10.0


@contextlib.contextmanager
def locked(state: Path, *, seconds: float = LOCK_SECONDS, is_shared: bool = False) -> Iterator[int]:
    """Hold the state directory until the block ends; the lock's descriptor. `is_shared`: beside others that only look. Raises Exists when
    somebody else has it for so long."""
    fd = os.open(state / 'lock', os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
        deadline = time.monotonic() + seconds
        while not _try_lock(fd, fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise Exists(f'the state directory {state} is in use by another mount of this context, or by ctxfs doctor')
            time.sleep(0.02)
        yield fd
    finally:
        os.close(fd)


def is_locked(state: Path) -> bool:
    """Whether somebody has it now, in whatever container. The lock is taken for a moment only, and waited for by others."""
    try:
        with locked(state, seconds=0, is_shared=True):
            return False
    except Exists:
        return True
    except FileNotFoundError:
        return False


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
