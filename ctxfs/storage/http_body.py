"""A response of an HTTP server that need not be trusted: it comes at some pace, and takes no more memory than its reader allows.

Owns these two bounds, on top of http.client. It must not know requests, connections or what a response is for.
"""
from __future__ import annotations

import http.client
import io
import socket
import time
from typing import Any, cast

from ctxfs.errors import RemoteUnavailable
from ctxfs.storage.traffic import Traffic

#: a link that is slower than this in bytes per second counts as broken
MIN_RATE = 1024


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
        self._body_max = body_max

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
        self._socket.settimeout(self._pace.timeout())
        count = self._socket.recv_into(buffer, min(len(buffer), self._traffic.piece_down))
        self._pace.moved(count)
        self._pace.waited(self._traffic.received(count))
        return count
