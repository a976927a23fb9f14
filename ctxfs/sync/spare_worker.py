"""A worker's process that is begun before there is a pool, or a store: it imports what workers need, then waits for its descriptors.

Owns both ends of that wait: `begin` and `hand_over` in the daemon, `wait` in the worker. It must not know what a worker does with what it is
given. At most one waits. It dies with the daemon's process, also when it is never needed.
"""
from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ctxfs.sync import same_code

#: descriptors that it can be given; the kernel takes 253
MOST_FDS = 64
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_waiting: list[tuple[subprocess.Popen[bytes], socket.socket]] = []


def execute(arguments: Sequence[str], fds: Sequence[int], without: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """A worker's process, in this environment `without` some variables, with `fds` open for as long as it lives. Raises OSError."""
    environment = {name: value for name, value in os.environ.items() if name not in without}
    paths = [_PACKAGE_ROOT, *filter(None, [os.environ.get('PYTHONPATH')])]
    return subprocess.Popen([sys.executable, '-m', 'ctxfs.sync.worker', *arguments], stdin=subprocess.DEVNULL, cwd='/', pass_fds=fds,
                            env={**environment, 'PYTHONPATH': os.pathsep.join(paths)})


def begin() -> None:
    """In the main thread: who waits dies when the *thread* that forked it ends (PR_SET_PDEATHSIG)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            _waiting.append((execute(['spare', str(theirs.fileno()), str(os.getpid())], [theirs.fileno()]), ours))
        except OSError:     # no process to be had just now: the pool says so, if it has to
            ours.close()


def hand_over(fds: Sequence[int], *, parent_pid: int, number: int) -> subprocess.Popen[bytes] | None:
    """The one that waits, which has `fds` now (socket, slots, board, and what it keeps open); None where there is none."""
    while _waiting:
        process, channel = _waiting.pop()
        with channel, contextlib.suppress(OSError):     # it died
            socket.send_fds(channel, [f'{parent_pid} {number} {same_code.MINE}'.encode()], [2, *fds])
            return process
        process.kill()
        process.wait()
    return None


def wait(channel_fd: int) -> list[str] | None:
    """In the worker: the arguments of worker.main, with the numbers that the descriptors have here; None when the daemon ended instead. What is
    said goes where the daemon's words go by now."""
    with socket.socket(fileno=channel_fd) as channel:
        data, fds, _, _ = socket.recv_fds(channel, 256, MOST_FDS)
    if not data:
        return None
    parent_pid, number, code = data.decode().split()
    words, serving, slots, board, *_ = fds
    for stream in (1, 2):
        os.dup2(words, stream)
    os.close(words)
    return [str(serving), str(slots), parent_pid, str(board), number, code]
