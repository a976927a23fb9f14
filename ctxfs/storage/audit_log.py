"""The audit log: a file of JSON lines that says what was done to a context, when, from where and as whom.

Owns the file: how it is opened, that each line is written whole, what happens when it cannot be written, and when another file took its place.
It must not know what is worth a line (sync/audit.py, and the commands).

Each line is one write(2) to a file opened for appending, so lines of several mounts and commands do not mix, and what was written survives
the death of the process at once (a power cut after `make_durable`). It costs about 25 µs, a stat included: the file is opened again when it
was moved or removed, as a log rotation does.

Opened for a mount, the log must be writable. Later failures stop nothing: they are logged once, counted, and visible in the mount's status;
when lines can be written again, the first says how many are missing.
"""
from __future__ import annotations

import errno
import logging
import os
import pwd
import socket
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

import msgspec

from ctxfs import __version__
from ctxfs.errors import Denied

log = logging.getLogger(__name__)

#: characters of an error's text; with the longest key a line stays below 8 KiB
MAX_ERROR = 1000
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def who() -> dict[str, Any]:
    """The host, the user and the process that act."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = ''
    return {'host': socket.gethostname(), 'user': {'uid': uid, 'name': name}, 'pid': os.getpid(), 'version': __version__}


def about(store: str, *, context_id: str | None = None, context: str | None = None, host_id: str | None = None) -> dict[str, Any]:
    """What the lines are about: what is not known yet is left out."""
    found = {'hostId': host_id, 'contextId': context_id, 'context': context, 'store': store}
    return {name: value for name, value in found.items() if value is not None}


class Tell(Protocol):
    """`AuditLog.write`, or a function of the same form."""

    def __call__(self, operation: str, *, result: str = 'ok', error: str = '', **data: Any) -> None: ...


class AuditLog:
    """See the module docstring. `common` goes into each line. `path` None: nothing is written. Not thread-safe. The constructor raises Denied
    with what is wrong; `write` raises nothing."""

    def __init__(self, path: str | None, common: Mapping[str, Any]) -> None:
        self.path = path
        self._common = {**who(), **common}
        self._fd = -1
        self._identity = (-1, -1)
        self._is_torn = False
        #: lines that are not on the disk for sure
        self._has_news = False
        self.lines = 0
        #: lines that could not be written, and of these, how many the log was not told of yet
        self.lost = 0
        self._untold = 0
        #: why the last one could not be; '' when it could
        self.error = ''
        if path is not None:
            try:
                self._open(path)
            except OSError as error:
                raise Denied(f'the audit log {path} cannot be written: {_reason(error)}') from error

    def _open(self, path: str) -> None:
        fd = os.open(path, _FLAGS, 0o600)
        try:
            found = os.fstat(fd)
            _check(found)
            if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != 0o600:
                os.fchmod(fd, 0o600)
        except BaseException:
            os.close(fd)
            raise
        self.close()
        self._fd, self._identity = fd, (found.st_dev, found.st_ino)

    def write(self, operation: str, *, result: str = 'ok', error: str = '', **data: Any) -> None:
        """One line. `result`: ok, failed, or unknown where nobody can say. Values that are None are left out."""
        if self.path is None:
            return
        try:
            self._reopen_if_moved(self.path)
            if self._untold:
                self._append(self._line('audit-gap', 'ok', '', {'lost': self._untold}))
                self._untold = 0
            self._append(self._line(operation, result, error[:MAX_ERROR], data))
        except OSError as failure:
            self._failed(_reason(failure))
            return
        if self.error:
            log.info('the audit log %s can be written again; %d lines are missing', self.path, self.lost)
            self.error = ''

    def _line(self, operation: str, result: str, error: str, data: Mapping[str, Any]) -> bytes:
        now = time.time()
        said = {'time': f'{time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))}.{int(now % 1 * 1000):03}Z', **self._common,
                'operation': operation, **{name: value for name, value in data.items() if value is not None}, 'result': result}
        if error:
            said['error'] = error
        try:
            return msgspec.json.encode(said) + b'\n'
        except UnicodeEncodeError:
            return msgspec.json.encode(_encodable(said)) + b'\n'

    def _append(self, line: bytes) -> None:
        if self._is_torn:       # what is left of the line before is a line of its own, and this one is whole
            line = b'\n' + line
        written = os.write(self._fd, line)
        self._is_torn = written < len(line)
        self._has_news = True
        if self._is_torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.lines += 1

    def _reopen_if_moved(self, path: str) -> None:
        try:
            found = os.stat(path, follow_symlinks=False)
            if (found.st_dev, found.st_ino) == self._identity:
                return
        except FileNotFoundError:
            pass    # moved away, and nobody made another one
        self._open(path)
        self._is_torn = False

    def _failed(self, reason: str) -> None:
        self.lost += 1
        self._untold += 1
        if not self.error:
            log.warning('the audit log %s cannot be written: %s; uploads go on without a record until it can', self.path, reason)
        self.error = reason

    def state(self) -> dict[str, Any] | None:
        """For people and scripts; None when there is no audit log."""
        if self.path is None:
            return None
        return {'path': self.path, 'lines': self.lines, 'lost': self.lost, 'error': self.error}

    def make_durable(self) -> None:
        """What was written survives a power cut. Blocks: call it from a thread."""
        if self._has_news:
            self._has_news = False
            with suppress(OSError):     # EBADF: it was moved just now; what else is wrong the next line says
                os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _check(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, 'it is no regular file')
    if found.st_uid != os.geteuid() and os.geteuid() != 0:
        raise OSError(errno.EPERM, f'it belongs to user {found.st_uid}')


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return 'it is a symbolic link'
    return error.strerror or str(error)


def _encodable(value: Any) -> Any:
    """JSON holds any text but lone surrogates, which names that are no UTF-8 have."""
    if isinstance(value, str):
        return value.encode('utf-8', 'backslashreplace').decode()
    if isinstance(value, dict):
        return {name: _encodable(part) for name, part in value.items()}
    return value
