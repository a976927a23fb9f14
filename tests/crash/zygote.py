"""Hosts whose ctxfs processes are forked from one that has everything imported: a mount costs a tenth of one that is executed.

Owns the forking. Commands, daemons and workers are those of ctxfs, with its own pipes between them, a process and a session each, and real
mounts; only execve(2) and the imports are left out. So hundreds of daemons can be killed in a minute. It must not know what a test does.

    with zygote(environment) as start:
        host = ForkedHost(state_dir, store=url, zygote=start)
"""
from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctxfs import crash_points
from ctxfs.edge import daemon_process
from ctxfs.sync import spare_worker
from tests import conftest, leftovers
from tests.mount import harness
from tests.mount.sites import MountingHost

ROOT = Path(__file__).resolve().parents[2]


class Zygote:
    """The process that is forked. One command at a time, whoever asks."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen([sys.executable, '-m', 'tests.crash.zygote', str(theirs.fileno())], pass_fds=[theirs.fileno()],
                                             cwd=ROOT, env={**os.environ, **environment})
        self._socket = ours
        self._lines = ours.makefile('rb')
        self._lock = threading.Lock()

    def run(self, arguments: Sequence[str], environment: Mapping[str, str], *, timeout: float) -> subprocess.CompletedProcess[str]:
        """`ctxfs ARGUMENTS`."""
        request = {'arguments': [*arguments], 'environment': dict(environment), 'timeout': timeout}
        with self._lock:
            self._socket.sendall(json.dumps(request).encode() + b'\n')
            answer = json.loads(self._lines.readline())
        if answer['status'] is None:
            raise subprocess.TimeoutExpired([*arguments], timeout)
        return subprocess.CompletedProcess([*arguments], answer['status'], answer['stdout'], answer['stderr'])

    def close(self) -> None:
        self._lines.close()
        self._socket.close()
        self._process.wait(10)


@contextlib.contextmanager
def zygote(environment: Mapping[str, str]) -> Iterator[Zygote]:
    started = Zygote(environment)
    try:
        yield started
    finally:
        started.close()


@functools.cache
def shared() -> Zygote:
    """One for the whole run, which ends it; no test has left it behind."""
    marker, before = os.environ.pop(leftovers.TEST_VARIABLE, None), leftovers.pids()
    started = Zygote({})
    conftest.session_ends.append(started.close)
    conftest.session_pids.update(pid for pid in leftovers.pids() - before if conftest.parent(pid) == os.getpid())
    if marker is not None:
        os.environ[leftovers.TEST_VARIABLE] = marker
    return started


#: is read when a program begins, which a forked one did long ago
READ_AT_START = frozenset({crash_points.VARIABLE, 'LD_PRELOAD'})


class ForkedHost(MountingHost):
    """A host as harness.Host, but for its `env`, which commands have and the zygote may differ in. What must begin with its environment or its
    `prefix` is executed all the same."""

    def __init__(self, state_dir: Path, *, store: str, zygote: Zygote, env: Mapping[str, str] | None = None) -> None:
        super().__init__(state_dir, store=store, env=env)
        self._zygote = zygote

    def cli(self, *arguments: str | os.PathLike[str], check: bool = True, env: Mapping[str, str] | None = None,
            timeout: float = harness.TIMEOUT) -> subprocess.CompletedProcess[str]:
        if self.prefix or READ_AT_START & {*self.env, *(env or {})}:
            return super().cli(*arguments, check=check, env=env, timeout=timeout)
        words = [*map(os.fspath, arguments), '--store', self.store, '--state-dir', str(self.state_dir)]
        done = self._zygote.run(words, {**os.environ, **self.env, **(env or {})}, timeout=timeout)
        if check and done.returncode:
            raise harness.CommandFailed(f'ctxfs {" ".join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}')
        return done


# --- in the zygote -----------------------------------------------------------------------------------------------------------------------

class _Child:
    """What launch.py wants of the daemon's Popen, and worker_process.py of a worker's."""

    def __init__(self, pid: int, stdin: Any = None) -> None:
        self.pid = pid
        self.stdin = stdin
        self.returncode: int | None = None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                raise subprocess.TimeoutExpired('a forked process', timeout)
            else:
                time.sleep(0.002)
        return self.returncode


def _fork(body: Callable[[], int]) -> int:
    """A child that runs `body` and ends with its status, whatever happens; its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        status = body()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _close_all_but(fds: set[int]) -> None:
    """What execve(2) does with descriptors that are not inherited."""
    for fd in map(int, os.listdir('/proc/self/fd')):
        if fd not in fds:
            with contextlib.suppress(OSError):      # the directory's own
                os.close(fd)


class _Daemon(daemon_process.DaemonProcess):
    """Forked where ctxfs executes one."""

    def __init__(self) -> None:
        self.answers, writer = os.pipe()
        self._words = _memory_file('words')
        reader, stdin = os.pipe()
        self._process = _Child(_fork(lambda: self._body(reader, writer)), os.fdopen(stdin, 'wb'))  # type: ignore[assignment]
        self.ready_fd = writer
        os.close(reader)
        os.close(writer)

    def _body(self, reader: int, writer: int) -> int:
        from ctxfs.edge import daemon, launch
        os.setsid()
        os.umask(0o077)
        os.chdir('/')
        for target, source in ((0, reader), (1, self._words), (2, self._words)):
            os.dup2(source, target)
        _close_all_but({0, 1, 2, writer})
        sys.stdin = os.fdopen(0, encoding='utf-8', closefd=False)
        _Spares.fork()
        return launch.daemon_main(daemon.run)


class _Spares:
    """Workers that were forked before the daemon opened anything: SQLite's locks do not survive a fork. They wait for their descriptors as
    those do that ctxfs executes."""
    COUNT = 2

    @classmethod
    def fork(cls) -> None:
        parent = os.getpid()
        for _ in range(cls.COUNT):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                child = _Child(_fork(lambda channel=theirs: cls._body(channel, parent)))  # type: ignore[misc]
                spare_worker._waiting.append((child, ours))  # type: ignore[arg-type]

    @staticmethod
    def _body(channel: socket.socket, parent: int) -> int:
        from ctxfs.sync import worker
        _close_all_but({0, 1, 2, channel.fileno()})
        return worker.main(['spare', str(channel.detach()), str(parent)])


def _run(request: dict[str, Any], out: int, err: int) -> int:
    from ctxfs.edge import command
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    _close_all_but({0, 1, 2})
    os.environ.clear()
    os.environ.update(request['environment'])
    return command.run(request['arguments'])


def _memory_file(name: str) -> int:
    return os.memfd_create(name, 0)


def _text_of(fd: int) -> str:
    size = os.fstat(fd).st_size
    text = os.pread(fd, size, 0).decode('utf-8', 'surrogateescape')
    os.close(fd)
    return text


def _preload() -> None:
    import ctxfs.edge.cli_context
    import ctxfs.edge.cli_mount
    import ctxfs.edge.cli_status
    import ctxfs.edge.cli_wait
    import ctxfs.edge.daemon
    import ctxfs.storage.file_store
    import ctxfs.sync.worker_context
    import ctxfs.sync.worker_ops  # noqa: F401
    daemon_process.DaemonProcess = _Daemon  # type: ignore[misc]


def main(channel: socket.socket) -> None:
    _preload()
    gc.freeze()     # else each child's first collection writes to, and so copies, every page
    with channel.makefile('rb') as lines:
        for line in lines:
            request, out, err = json.loads(line), _memory_file('out'), _memory_file('err')
            command = _Child(_fork(lambda: _run(request, out, err)))    # noqa: B023
            try:
                status: int | None = command.wait(request['timeout'])
            except subprocess.TimeoutExpired:
                command.kill()
                command.wait(10)
                status = None
            answer = {'status': status, 'stdout': _text_of(out), 'stderr': _text_of(err)}
            channel.sendall(json.dumps(answer).encode() + b'\n')


if __name__ == '__main__':
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    main(socket.socket(fileno=int(sys.argv[1])))
