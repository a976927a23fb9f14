"""What others may see of a process of ctxfs: of its memory nothing, of the credentials in its environment no more than must be.

Owns the two measures. It must not know what the credentials are for.

The daemon and its workers hold the store's credentials and the bytes of files. Other users of the host cannot look into them anyway; other
programs of the same user can (ptrace, /proc/PID/mem, /proc/PID/environ), and on an agent's host these are the agent's own programs, to whom the
credentials were not given. So both are not dumpable (PR_SET_DUMPABLE in prctl(2)): only root looks into them, and they leave no core dump, not
even for a collector that core_pattern names, which a limit of 0 would not stop. Who wants to debug one sets CTXFS_DUMPABLE=1.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = 'CTXFS_DUMPABLE'
_PR_SET_DUMPABLE = 4
#: in the names of variables that are credentials, or lead to some
_SECRET = ('AWS_', 'SECRET', 'TOKEN', 'PASSW', 'CREDENTIAL', 'ACCESS_KEY', 'PRIVATE_KEY', 'API_KEY')


def hide_process() -> None:
    """From here on only root may look into this process."""
    if os.environ.get(VARIABLE) == '1':
        return
    import ctypes  # the commands, which need only the rest, start without it
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), 'prctl(PR_SET_DUMPABLE)')


def helper_environment() -> dict[str, str]:
    """For programs that help and need no credentials (fusermount3, stat). Their messages are in English."""
    return {name: value for name, value in os.environ.items() if not _is_secret(name)} | {'LC_ALL': 'C'}


@contextmanager
def without_secrets() -> Iterator[None]:
    """While the block runs, this process's environment has no credentials either: for a library that starts programs itself."""
    taken = {name: value for name, value in os.environ.items() if _is_secret(name)}
    for name in taken:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(taken)


def _is_secret(name: str) -> bool:
    return any(part in name.upper() for part in _SECRET)
