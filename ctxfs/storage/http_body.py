"""A response of an HTTP server that need not be trusted: it comes at some pace, and takes no more memory than its reader allows.

Owns these two bounds and the reading of headers, on top of http.client. It must not know requests, connections or what a response is for.
"""
from __future__ import annotations

import http.client
import io
import socket
import time
from typing import Any, cast, overload

from ctxfs.errors import RemoteUnavailable
from ctxfs.storage import fibers
from ctxfs.storage.traffic import Traffic

#: a link that is slower than this in bytes per second counts as broken
MIN_RATE = 1024
#: http.client's own bounds
_LINE_MAX = 65536
_HEADERS_MAX = 100


class Headers:
    """Of a response, by their names in any case; of those with the same name the first. http.client's own class is one of e-mail messages, and
    parsing it takes half the time of a small request."""

    def __init__(self, lines: list[bytes]) -> None:
        """Raises ValueError where a line is none of a header. One that begins with a blank goes on with what the line before says (RFC 9112 5.2)."""
        self._named: dict[str, tuple[str, str]] = {}
        name = ''
        for line in lines:
            text = line.decode('latin-1').rstrip('\r\n')
            if text[:1] in (' ', '\t') and name:
                self._named[name.lower()] = name, f'{self._named[name.lower()][1]} {text.strip()}'
                continue
            name, colon, value = text.partition(':')
            if not colon or not name or name != name.strip():
                raise ValueError(f'{text[:60]!r} is no header')
            self._named.setdefault(name.lower(), (name, value.strip()))

    @overload
    def get(self, name: str, default: str) -> str: ...

    @overload
    def get(self, name: str, default: None = None) -> str | None: ...

    def get(self, name: str, default: str | None = None) -> str | None:
        found = self._named.get(name.lower())
        return default if found is None else found[1]

    def __getitem__(self, name: str) -> str:
        return self._named[name.lower()][1]

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._named

    def items(self) -> list[tuple[str, str]]:
        return list(self._named.values())


class Pace:
    """How long one direction of an exchange may still take: `silence` seconds, and the time that what has moved takes at MIN_RATE; but never
    beyond `ends_at`, by a clock that goes on while the host sleeps (CLOCK_BOOTTIME)."""

    def __init__(self, silence: float, ends_at: float = float('inf')) -> None:
        self._silence = silence
        self._until = time.monotonic() + silence
        self._ends_at = ends_at

    def timeout(self) -> float:
        """For the next piece. Raises TimeoutError when the time is over."""
        left = min(self._until - time.monotonic(), self._ends_at - time.clock_gettime(time.CLOCK_BOOTTIME))
        if left <= 0:
            raise TimeoutError('too slow')
        return min(self._silence, left)

    def moved(self, count: int) -> None:
        self._until += count / MIN_RATE

    def waited(self, seconds: float) -> None:
        """On this side, by its own bound: no silence of the peer."""
        self._until += seconds


class BoundedResponse(http.client.HTTPResponse):
    """One response on `sock`, with a body of at most `body_max` bytes, that keeps its `pace`; TimeoutError otherwise, also where bytes trickle
    in without end. `traffic` says how fast they may come. The socket stays open."""

    def __init__(self, sock: socket.socket, *, method: str, body_max: int, pace: Pace, traffic: Traffic) -> None:
        super().__init__(cast(socket.socket, _Incoming(sock, pace, traffic)), method=method)
        self._request_method = method
        self._body_max = body_max

    def begin(self) -> None:
        """Read all that comes before the body. As http.client's, but for what the headers become, and that they must have an end."""
        while True:
            version, status, reason = self._read_status()  # type: ignore[attr-defined]
            lines = self._header_lines()
            if status != http.client.CONTINUE:
                break
        if not version.startswith('HTTP/1.') and version != 'HTTP/0.9':
            raise http.client.UnknownProtocol(version)
        self.code = self.status = status
        self.reason = reason.strip()
        self.version = 10 if version in ('HTTP/1.0', 'HTTP/0.9') else 11
        try:
            headers = Headers(lines)
        except ValueError as exc:
            raise http.client.HTTPException(str(exc)) from None
        self.headers = self.msg = cast(http.client.HTTPMessage, headers)
        self.chunked = headers.get('Transfer-Encoding', '').lower() == 'chunked'
        self.chunk_left = None
        self.will_close = self._check_close()  # type: ignore[attr-defined]
        self.length = None if self.chunked else self._announced(headers, status)
        self.will_close = self.will_close or (not self.chunked and self.length is None)

    def _announced(self, headers: Headers, status: int) -> int | None:
        """Bytes of the body, if they are said."""
        if status in (http.client.NO_CONTENT, http.client.NOT_MODIFIED) or status < 200 or self._request_method == 'HEAD':
            return 0
        text = headers.get('Content-Length', '')
        return int(text) if text.isascii() and text.isdigit() else None

    def _header_lines(self) -> list[bytes]:
        lines: list[bytes] = []
        while (line := self.fp.readline(_LINE_MAX + 1)) not in (b'\r\n', b'\n'):
            if not line:
                raise http.client.IncompleteRead(b'')
            if len(line) > _LINE_MAX or len(lines) == _HEADERS_MAX:
                raise http.client.HTTPException('the headers are too long')
            lines.append(line)
        return lines

    def whole_body(self) -> bytes:
        """The body. RemoteUnavailable where it has more than it may; http.client's errors where it does not come whole."""
        most, announced = self._body_max, self.length
        data = b''
        if announced is None:
            data = self.read(most + 1)      # in chunks, or until the server closes
        elif announced <= most:
            data = self.read()              # an early end is noticed
        if max(announced or 0, len(data)) > most:
            raise RemoteUnavailable(f'the server sent more than the {most} bytes that its answer can have')
        return data

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:        # http.client would read to the end of the connection
            raise ValueError('a negative chunk size')
        return size


class _Incoming(io.RawIOBase):
    """A socket's bytes, at their pace; it stands for the socket that http.client makes a file of."""

    def __init__(self, sock: socket.socket, pace: Pace, traffic: Traffic) -> None:
        self._socket = sock
        self._pace = pace
        self._traffic = traffic

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = fibers.receive_into(self._socket, memoryview(buffer)[:self._traffic.piece_down], self._pace.timeout())
        self._pace.moved(count)
        self._pace.waited(self._traffic.received(count))
        return count
