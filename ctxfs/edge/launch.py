"""Starting the daemon: in the background from `ctxfs mount`, or in this process with --foreground.

Owns the pipes between the two: options go in through stdin (never argv, which every user can read), one line comes back when the mount
answers or when it cannot. It must not know what a mount is made of, nor how its process comes about (daemon_process.py): it is handed the options.

    daemon.py:          def run(options: MountOptions, ready: Readiness) -> int: …
    daemon_start.py:    sys.exit(launch.daemon_main(daemon.run))

    stdin of the daemon     {"readyFd": N, "options": {…}} and EOF
    ready pipe              {"ok": true, "note": TEXT}  |  {"ok": false, "error": TEXT, "kind": CLASS, "exit": 1|2}  |  EOF: it died
"""
from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ctxfs.config import MountOptions, private_dir
from ctxfs.edge import daemon_process, runtime_dir
from ctxfs.edge.daemon_process import DaemonProcess
from ctxfs.edge.log_file import open_log
from ctxfs.edge.mount_table import mount_at, probe
from ctxfs.edge.service_notify import Notifier, notifier_of
from ctxfs.errors import CtxfsError, UsageError
from ctxfs.sync.process_guard import helper_environment

log = logging.getLogger(__name__)

READY_TIMEOUT = 30.0
#: how long a daemon that failed to mount gets to end by itself
END_TIMEOUT = 5.0


class MountFailed(CtxfsError):
    """The daemon did not come up; the message says why, `exit_status` what the command ends with."""
    errno = errno.EIO

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


# --- the command line's side -------------------------------------------------------------------------------------------------------

class Started(NamedTuple):
    """A mount that answers; `note`: what its user should know, '' where all is as usual."""
    pid: int
    note: str


def start(options: MountOptions, *, meanwhile: Callable[[], object] = lambda: None, timeout: float = READY_TIMEOUT) -> Started:
    """Start the daemon in a session of its own and return once the mount answers; `meanwhile` is called while it begins. Raises MountFailed, and
    then (also when interrupted) no process, mount or runtime directory is left."""
    private_dir(Path(options.state_dir))
    try:
        child = daemon_process.take()
    except OSError as e:
        raise MountFailed(f'cannot start the mount process: {e}') from e
    with contextlib.closing(child):
        try:
            deadline = time.monotonic() + timeout
            child.hand_over(json.dumps({'readyFd': child.ready_fd, 'options': msgspec.to_builtins(options)}).encode())
            meanwhile()
            note = _check_answer(_read_line(child.answers, deadline), child, options, timeout)
            _check_mount(options)
        except BaseException:
            _stop(child, options)
            raise
    return Started(child.pid, note)




def _read_line(reader: int, deadline: float) -> bytes | None:
    """The first line; what came before EOF; None when the time is over."""
    data = b''
    while b'\n' not in data:
        if not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        piece = os.read(reader, 1 << 16)
        if not piece:
            break
        data += piece
    return data


def _check_answer(line: bytes | None, child: DaemonProcess, options: MountOptions, timeout: float) -> str:
    """The mount's note. Raises MountFailed for what is no mount."""
    if line is None:
        raise MountFailed(f'the mount did not answer within {timeout:g} s; see {options.log_file}')
    try:
        answer = json.loads(line)
    except ValueError:
        child.wait(END_TIMEOUT)
        _keep_words(child.words(), options)
        how = _ending(child.status)
        raise MountFailed(f'the mount process ended ({how}) before the mount was there{_last_words(options)}') from None
    if not answer.get('ok'):
        raise MountFailed(str(answer.get('error') or f'cannot mount; see {options.log_file}'), int(answer.get('exit', 1)))
    return str(answer.get('note') or '')


def _ending(status: int | None) -> str:
    if status is None:
        return 'without a status'
    return f'killed by {signal.Signals(-status).name}' if status < 0 else f'status {status}'


def _keep_words(words: bytes, options: MountOptions) -> None:
    """What it said before it had a log goes there."""
    if words:
        with contextlib.suppress(OSError), open_log(Path(options.log_file)) as log_file:
            log_file.write(words)


def _last_words(options: MountOptions) -> str:
    """The log's last line, which is where an uncaught exception says what it was."""
    with contextlib.suppress(OSError):
        with open(options.log_file, 'rb') as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode('utf-8', 'replace').split('\n')
        words = next((line.strip() for line in reversed(lines) if line.strip()), '')
        return f': {words[:300]}; see {options.log_file}'
    return f'; see {options.log_file}'


def _check_mount(options: MountOptions) -> None:
    entry = mount_at(options.mountpoint)
    if entry is None or not entry.is_ctxfs:
        raise MountFailed(f'{options.mountpoint} is not mounted although the mount process said so; see {options.log_file}')
    failure = probe(options.mountpoint, device=entry.device)
    if failure:
        raise MountFailed(f'{options.mountpoint} does not answer: {os.strerror(failure)}; see {options.log_file}')


def _stop(child: DaemonProcess, options: MountOptions) -> None:
    """End the daemon and its workers (they share its process group), and take away what it left."""
    child.signal(signal.SIGTERM)
    child.wait(END_TIMEOUT)
    child.signal(signal.SIGKILL)
    child.wait(END_TIMEOUT)
    entry = mount_at(options.mountpoint)
    if entry is not None and entry.is_ctxfs:
        subprocess.run(['fusermount3', '-uz', '--', options.mountpoint], capture_output=True, check=False, env=helper_environment())
    path = Path(options.runtime_dir)
    record = next((mount.record for mount in runtime_dir.find_mounts(path.parent) if mount.path == path), None)
    if record is None or record.pid == child.pid:
        runtime_dir.discard(path)


# --- the daemon's side -------------------------------------------------------------------------------------------------------------

class Readiness:
    """The daemon's one word to whoever started it: through `fd`, or to a service manager. Saying it twice, or to somebody who is gone, is
    harmless."""

    def __init__(self, fd: int | None = None, *, notifier: Notifier | None = None) -> None:
        self._fd = fd
        self.notifier = notifier

    def ok(self, note: str = '') -> None:
        """The mount answers. `note`: what whoever started it should know all the same."""
        self._say({'ok': True, 'note': note})
        if self.notifier is not None:
            self.notifier.ready(f'mounted; {note}' if note else 'mounted')

    def failed(self, error: BaseException) -> None:
        message = ' '.join(str(error).split()) or type(error).__name__
        if not isinstance(error, CtxfsError):
            message = f'{type(error).__name__}: {message}'
        self._say({'ok': False, 'error': message, 'kind': type(error).__name__, 'exit': exit_status_of(error)})

    def _say(self, answer: dict[str, Any]) -> None:
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            os.write(fd, json.dumps(answer).encode() + b'\n')
        except BrokenPipeError:
            log.warning('whoever started this mount is gone')
        finally:
            os.close(fd)


def exit_status_of(error: BaseException) -> int:
    return getattr(error, 'exit_status', 2 if isinstance(error, UsageError) else 1)


def receive() -> tuple[MountOptions, Readiness]:
    """What the command line handed over through stdin, which is /dev/null afterwards. Raises UsageError for anything else."""
    data = sys.stdin.buffer.read()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    try:
        envelope = json.loads(data)
        fd = int(envelope['readyFd'])
        os.set_inheritable(fd, False)       # a worker that held it would keep the starter from seeing this process die
        return MountOptions.from_json(json.dumps(envelope['options']).encode()), Readiness(fd)
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise UsageError(f'this module is started by `ctxfs mount`, which hands it its options: {e}') from e


def daemon_main(run: Callable[[MountOptions, Readiness], int]) -> int:
    """The daemon module's main: exit status of `run`, after its failure was told to the starter."""
    try:
        options, ready = receive()
    except UsageError as e:
        print(f'ctxfs: {e}', file=sys.stderr)
        return 2
    try:
        _use_log(Path(options.log_file))
    except OSError as e:
        ready.failed(MountFailed(f'cannot start the mount process: {e}'))
        return 1
    return _run(run, options, ready)


def _use_log(path: Path) -> None:
    """What this process and its workers say goes there from now on."""
    with open_log(path) as log_file:
        for stream in (1, 2):
            os.dup2(log_file.fileno(), stream)


def _run(run: Callable[[MountOptions, Readiness], int], options: MountOptions, ready: Readiness) -> int:
    try:
        return run(options, ready)
    except CtxfsError as e:
        log.error('%s', e)
        ready.failed(e)
        return exit_status_of(e)
    except BaseException as e:
        ready.failed(e)
        raise


def run_foreground(options: MountOptions, run: Callable[[MountOptions, Readiness], int]) -> int:
    """Mount in this process (`run` is the daemon's) until it is unmounted and everything is written back; returns the exit status,
    raises CtxfsError. Where this process is a service of systemd's, the manager is told how it goes."""
    private_dir(Path(options.state_dir))
    notifier = notifier_of(os.environ)
    try:
        return run(options, Readiness(notifier=notifier))
    except CtxfsError as e:
        if notifier is not None:
            notifier.status(str(e))
        raise
    finally:
        if notifier is not None:
            notifier.close()
