"""A response of an HTTP server that need not be trusted: it ends within a time, and takes no more memory than its reader allows.

Owns these two bounds, on top of http.client. It must not know requests, connections or what a response is for.
"""
from __future__ import annotations

import http.client
import io
import socket
import time
from typing import cast

from ctxfs.errors import RemoteUnavailable

#: the slowest line on which a body may come: each 16 KiB give it one more second
BYTES_PER_SECOND = 16 << 10


class BoundedResponse(http.client.HTTPResponse):
    """One response on `sock`, with a body of at most `body_max` bytes. Its headers must be there within the socket's timeout, its body in as long
    and the time that it takes on a slow line; TimeoutError otherwise, also where bytes trickle in without end."""

    def __init__(self, sock: socket.socket, *, method: str, body_max: int) -> None:
        self._source = _Source(sock)
        super().__init__(cast(socket.socket, self._source), method=method)
        self._body_max = body_max

    def begin(self) -> None:
        super().begin()
        self._source.extend((self._body_max if self.length is None else self.length) / BYTES_PER_SECOND)

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


class _Source(io.RawIOBase):
    """The socket's bytes until a deadline; it stands for the socket that http.client makes a file of."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._timeout = sock.gettimeout() or 60.0
        self._deadline = time.monotonic() + self._timeout

    def extend(self, seconds: float) -> None:
        self._deadline = time.monotonic() + self._timeout + seconds

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(min(self._timeout, left))
        return self._sock.recv_into(buffer)
