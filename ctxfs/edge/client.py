"""The command line's end of the control socket: one connection, one request at a time, standard library only.

Owns how answers and failures come back as values and as ctxfs's own errors. It must not know what the methods mean; the protocol is
that of ctxfs.edge.control.
"""
from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from ctxfs import errors
from ctxfs.edge.runtime_dir import short_path
from ctxfs.errors import CtxfsError

CONNECT_TIMEOUT = 5.0
CALL_TIMEOUT = 15.0
#: bytes of one answer; far more than any mount has to say
MAX_ANSWER = 64 << 20


class DaemonGone(CtxfsError):
    """Nobody listens on the socket, or the connection ended before the answer."""


class NoAnswer(CtxfsError):
    """The daemon is there but did not answer in time."""
    transient = True


class ControlClient:
    """Raises DaemonGone when there is no daemon to connect to."""

    def __init__(self, path: Path) -> None:
        self._buffer = bytearray()
        self._next_id = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(CONNECT_TIMEOUT)
        try:
            with short_path(str(path)) as name:
                self._socket.connect(name)
        except OSError as e:
            self._socket.close()
            raise DaemonGone(f'{path}: {e.strerror or e}') from e

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def call(self, method: str, *, timeout: float | None = CALL_TIMEOUT, **params: Any) -> Any:
        """The method's result. Raises the ctxfs error that the daemon raised, NoAnswer, or DaemonGone."""
        self.send(method, **params)
        return self.receive(timeout)

    def send(self, method: str, **params: Any) -> None:
        """Ask, and leave the answer for receive()."""
        self._next_id += 1
        request = {'jsonrpc': '2.0', 'id': self._next_id, 'method': method, 'params': params}
        try:
            self._socket.settimeout(CALL_TIMEOUT)
            self._socket.sendall(json.dumps(request).encode() + b'\n')
        except TimeoutError:
            raise NoAnswer('the mount does not take requests') from None
        except BrokenPipeError:
            return      # refused before it was asked: why is there to be received
        except OSError as e:
            raise DaemonGone(f'the mount process went away: {e.strerror}') from e

    def receive(self, timeout: float | None) -> Any:
        """The answer to the last send(); NoAnswer leaves it receivable by a later call. None: however long it takes."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            answer = self._message(deadline)
            if 'method' in answer:      # a notification of a stream that nobody here reads
                continue
            return _result(answer)

    def stream(self, method: str, **params: Any) -> Iterator[Any]:
        """The values of a method that streams, as they come, until its end. Raises as call(); DaemonGone when the mount ends first."""
        self.send(method, **params)
        while 'method' in (message := self._message(None)):
            value: Any = message.get('params')
            yield value.get('value') if isinstance(value, dict) else None
        _result(message)

    def close(self) -> None:
        """From any thread: whoever waits for an answer gets DaemonGone."""
        with contextlib.suppress(OSError):      # not connected any more
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _message(self, deadline: float | None) -> dict[str, Any]:
        message: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            message = json.loads(self._line(deadline))
        if not isinstance(message, dict):
            raise CtxfsError('what answers on the socket of the mount is no ctxfs')
        return message

    def _line(self, deadline: float | None) -> bytes:
        at = 0
        while (end := self._buffer.find(b'\n', at)) < 0:
            at = len(self._buffer)
            if at > MAX_ANSWER:
                raise CtxfsError(f'the mount answered with more than {MAX_ANSWER} bytes')
            try:
                self._socket.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                raise NoAnswer('the mount did not answer in time') from None
            except OSError as e:
                raise DaemonGone(f'the mount process went away: {e.strerror}') from e
            if not data:
                raise DaemonGone('the mount process went away')
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[:end + 1]
        return line


def _result(answer: dict[str, Any]) -> Any:
    if 'error' in answer:
        raise _as_error(answer['error'])
    return answer.get('result')


def _as_error(error: Any) -> CtxfsError:
    """The error class that the daemon raised, by its name; CtxfsError for any other failure."""
    if not isinstance(error, dict):
        return CtxfsError(f'the mount failed: {error}')
    data = error.get('data')
    kind = getattr(errors, str(data.get('kind') if isinstance(data, dict) else None), CtxfsError)
    if not (isinstance(kind, type) and issubclass(kind, CtxfsError)):
        kind = CtxfsError
    return kind(str(error.get('message')))
