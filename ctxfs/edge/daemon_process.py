"""The process of a daemon as the command line has it: begun before anybody knows what it will mount, then handed its options.

Owns the process, the pipes to it and what it says before it has a log. Begun as the first thing that `ctxfs mount` does, its imports take no
time of their own: they run while the registry is asked. A command that ends without a mount kills it. It must not know options, answers or
mounts (launch.py does), and imports nothing that takes long.

    stdin of the daemon     what `hand_over` is given, and EOF: without a byte before it, the daemon ends
    answers                 the read end of the pipe on which it says how it went
"""
from __future__ import annotations

import contextlib
import os
import signal
import site
import subprocess
import sys

import ctxfs

MODULE = 'ctxfs.edge.daemon_start'


class DaemonProcess:
    """Raises OSError when no process is to be had. `close` it when the answer is there."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as failed:
            self.answers, writer = os.pipe()
            failed.callback(os.close, self.answers)
            #: its stdout and stderr, until it has opened its log
            self._words = os.memfd_create('ctxfs-daemon')
            failed.callback(os.close, self._words)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, '-m', MODULE], stdin=subprocess.PIPE, stdout=self._words, stderr=self._words, cwd='/',
                    env=child_environment(), start_new_session=True, pass_fds=(writer,), umask=0o077)
            finally:
                os.close(writer)
            #: of the pipe's other end, in the daemon
            self.ready_fd = writer
            failed.pop_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """As Popen.returncode."""
        return self._process.returncode

    def hand_over(self, data: bytes) -> None:
        """To be called once. One that died at once is told by the end of `answers`, with a better message than EPIPE."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(data)

    def words(self) -> bytes:
        """What it said so far where it has no log yet: an error of an import, a library's complaint."""
        return os.pread(self._words, 1 << 20, 0)

    def wait(self, seconds: float) -> bool:
        """Whether it ended in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            return True
        return False

    def signal(self, number: int) -> None:
        """To it and its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def close(self) -> None:
        """The pipes; the process goes on."""
        for fd in (self.answers, self._words):
            os.close(fd)
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        if self._process.returncode is None:
            self._process.returncode = 0    # it is init's now: keeps Popen from warning about a process that still runs


def child_environment() -> dict[str, str]:
    """Ours, so that credentials arrive; and the package is found from / also where it runs from a checkout."""
    env = dict(os.environ, PYTHONSAFEPATH='1')
    root = os.path.dirname(os.path.dirname(os.path.abspath(ctxfs.__file__)))
    if root not in [*site.getsitepackages(), site.getusersitepackages()]:
        env['PYTHONPATH'] = os.pathsep.join(filter(None, (root, env.get('PYTHONPATH'))))
    return env


_begun: list[tuple[DaemonProcess, dict[str, str]]] = []


def begin() -> None:
    """Start one for the mount that will probably follow."""
    with contextlib.suppress(OSError):      # whoever needs it tries again, and says so
        _begun.append((DaemonProcess(), dict(os.environ)))


def take() -> DaemonProcess:
    """The one that was begun, else a new one. Raises OSError."""
    while _begun:
        process, environment = _begun.pop()
        if environment == os.environ:       # else it lacks what was learnt meanwhile: a service's credentials
            return process
        _end(process)
    return DaemonProcess()


def abandon() -> None:
    """There is no mount to come: nothing of it is left when this returns."""
    while _begun:
        _end(_begun.pop()[0])


def _end(process: DaemonProcess) -> None:
    process.signal(signal.SIGKILL)
    process.wait(5)
    process.close()
