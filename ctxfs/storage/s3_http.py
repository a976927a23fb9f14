"""Kept-alive HTTP connections to one endpoint, shared by threads: the part of an S3 request that is no S3.

Owns sockets, TLS, proxies, timeouts, and the verdict whether a request that failed may be sent again. It must not know buckets, keys,
signatures or what a status means. Standard library only: per request it costs a fifth of what the layers of boto3 do (botocore 1.44:
0.8 ms of CPU through its own session, 0.2 ms here).

Every exchange ends: the peer may be silent for so long, and each direction moves MIN_RATE bytes a second on average, or the request fails.
So a server that sends a byte now and then holds nobody for longer than one that sends nothing, and a large body has the time that its size
needs.
"""
from __future__ import annotations

import collections
import contextlib
import http.client
import select
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ctxfs.errors import Denied, InvalidArgument, RemoteUnavailable, Unanswered
from ctxfs.storage import fibers
from ctxfs.storage.http_body import BoundedResponse, Headers, Pace
from ctxfs.storage.traffic import Kind, Traffic

#: idle connections kept; one more is closed after its request
_KEEP = 128
#: load balancers drop idle connections after a minute or so, some without a FIN that could be seen
_IDLE_SECONDS = 45.0
#: servers do so after as little as 5 s (hypercorn, node); a close that crosses a request leaves its outcome unknown, so one that must not be
#: sent twice takes no connection that was idle for longer than this
_FRESH_SECONDS = 2.0
#: what an answer may have, where the caller does not say
BODY_MAX = 64 << 20
#: bodies up to this go out in one piece with their header
_JOINED = 64 << 10
#: statuses that answer a question, rather than tell of a fault
_ANSWERS = frozenset({304, 404, 412})
_WITH_BODY = frozenset({'PUT', 'POST'})


class Timeouts(NamedTuple):
    """Seconds to connect (per address), and for which the server may stay silent; so long the least rate is not asked for, either. `ends_at`: no
    byte goes out afterwards, by CLOCK_BOOTTIME, however much there was to send or to wait for before."""
    connect: float = 5.0
    read: float = 20.0
    ends_at: float = float('inf')

    def pace(self) -> Pace:
        """Of one direction, from now on."""
        return Pace(self.read, self.ends_at)


class Response(NamedTuple):
    status: int
    #: case-insensitive
    headers: Headers
    body: bytes


class HttpPool:
    """Connections to `endpoint` (scheme://host[:port]), through the proxy that the environment names for it. Thread-safe. `traffic` counts, and
    says how fast bodies may pass."""

    def __init__(self, endpoint: str, *, ca_file: str | None = None, traffic: Traffic | None = None) -> None:
        parts = urlsplit(endpoint)
        self._traffic = traffic or Traffic()
        self.endpoint = endpoint
        self._host = parts.hostname or ''
        self._is_tls = parts.scheme == 'https'
        self._port = parts.port or (443 if self._is_tls else 80)
        self._tls = ssl.create_default_context(cafile=ca_file) if self._is_tls else None
        self._proxy = _proxy_for(parts.scheme, self._host)
        self._idle: collections.deque[tuple[float, http.client.HTTPConnection]] = collections.deque()
        self._origin = endpoint if self._proxy and not self._is_tls else ''

    def request(self, method: str, target: str, *, headers: Mapping[str, str], body: bytes = b'', is_repeatable: bool = False,
                timeouts: Timeouts = Timeouts(), body_max: int = BODY_MAX,  # noqa: B008 (a NamedTuple is a constant)
                kind: Kind = Kind.OTHER) -> Response:
        """One exchange. `is_repeatable`: sent once more after a lost connection, where a second time does no harm. `body_max`: bytes of the
        answer's body; more are not taken. `kind`: as what it is counted.

        Raises RemoteUnavailable when no whole response came; Unanswered where the server may have acted on the request.
        """
        for attempt in (1, 2):
            if attempt > 1:
                self._traffic.counters.note_retry(kind)
            try:
                return self._counted(kind, method, target, headers, body, timeouts, _IDLE_SECONDS if is_repeatable else _FRESH_SECONDS, body_max)
            except ssl.SSLCertVerificationError as exc:
                raise Denied(f'the certificate of {self.endpoint} is not trusted ({exc.verify_message}); AWS_CA_BUNDLE can name another '
                             'set of authorities') from exc
            except (OSError, http.client.HTTPException) as exc:
                if attempt == 2 or not is_repeatable or isinstance(exc, (TimeoutError, socket.gaierror)):
                    error = RemoteUnavailable if isinstance(exc, (ConnectionRefusedError, socket.gaierror)) else Unanswered
                    raise error(f'{self.endpoint} cannot be reached or broke off: {_reason(exc)}') from exc
        raise AssertionError('not reached: the second attempt returns or raises')

    def close(self) -> None:
        while self._idle:
            with contextlib.suppress(IndexError):
                self._idle.pop()[1].close()

    def _counted(self, kind: Kind, method: str, target: str, headers: Mapping[str, str], body: bytes, timeouts: Timeouts,
                 idle_seconds: float, body_max: int) -> Response:
        began, status, received = time.monotonic(), 0, 0
        try:
            response = self._exchange(method, target, headers, body, timeouts, idle_seconds, body_max)
            status, received = response.status, len(response.body)
            return response
        finally:
            self._traffic.counters.note(kind, seconds=time.monotonic() - began, sent=len(body), received=received,
                                        is_error=not 200 <= status < 300 and status not in _ANSWERS)

    def _exchange(self, method: str, target: str, headers: Mapping[str, str], body: bytes, timeouts: Timeouts,
                  idle_seconds: float, body_max: int) -> Response:
        head = _head(method, self._origin + target, headers, len(body) if body or method in _WITH_BODY else None)
        with self._connection(timeouts, idle_seconds) as connection:
            is_broken = _send(connection.sock, head, body, timeouts.pace(), self._traffic, may_wait=timeouts.ends_at == float('inf'))
            with BoundedResponse(connection.sock, method=method, body_max=body_max, pace=timeouts.pace(), traffic=self._traffic) as response:
                response.begin()
                # read even where nobody wants it: the connection can only be used again behind the last byte
                data = response.whole_body()
            if response.will_close or is_broken:
                connection.close()
            return Response(response.status, cast(Headers, response.headers), data)

    @contextlib.contextmanager
    def _connection(self, timeouts: Timeouts, idle_seconds: float) -> Iterator[http.client.HTTPConnection]:
        """A connected connection; it goes back to the idle ones unless the block raises or closes it."""
        connection = self._take_idle(idle_seconds) or self._connect(timeouts.connect)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if connection.sock is None or len(self._idle) >= _KEEP:
            connection.close()
        else:
            self._idle.append((time.monotonic(), connection))
            self._close_stale()

    def _close_stale(self) -> None:
        """Of the oldest ones, which nobody may ever come back to, for the one used last is taken first."""
        with contextlib.suppress(IndexError):
            while True:
                since, connection = self._idle.popleft()
                idle = time.monotonic() - since
                if idle < _FRESH_SECONDS or not (idle >= _IDLE_SECONDS or _is_closed(connection)):
                    self._idle.appendleft((since, connection))
                    return
                connection.close()

    def _take_idle(self, idle_seconds: float) -> http.client.HTTPConnection | None:
        """The one used last, if that is not longer ago and it is still usable."""
        while True:
            try:
                since, connection = self._idle.pop()
            except IndexError:
                return None
            if (idle := time.monotonic() - since) >= _IDLE_SECONDS or _is_closed(connection):
                connection.close()
            elif idle < idle_seconds:
                return connection
            else:       # the others are older still; it is good enough for another request
                self._idle.append((since, connection))
                return None

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self._host, self._port)
        if self._proxy and self._tls is not None:
            connection = self._connect_through(self._proxy, self._tls, timeout)
        else:
            host, port = self._proxy or (self._host, self._port)
            connection.sock = fibers.connect(host, port, timeout)
            if self._tls is not None:
                connection.sock = fibers.start_tls(self._tls, connection.sock, self._host, timeout)
        # without TCP_NODELAY each PUT would wait 40 ms for a delayed ACK between header and body
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection

    def _connect_through(self, proxy: tuple[str, int], tls: ssl.SSLContext, timeout: float) -> http.client.HTTPConnection:
        """By CONNECT, without giving way to other fibers."""
        connection = http.client.HTTPSConnection(*proxy, timeout=timeout, context=tls)
        connection.set_tunnel(self._host, self._port)
        connection.connect()
        return connection


def _send(sock: socket.socket, head: bytes, body: bytes, pace: Pace, traffic: Traffic, *, may_wait: bool) -> bool:
    """True when the server closed its side before it had read everything: it may have said why, as in a refusal of a large body. What must be
    over at some time does not wait for the bound on uploads: what follows does."""
    if len(body) <= _JOINED:
        pace.waited(traffic.before_sending(len(body), may_wait=may_wait))
        _send_all(sock, head + body, pace)
        return False
    _send_all(sock, head, pace)
    rest = memoryview(body)
    try:
        while rest:
            piece = rest[:traffic.piece_up]
            pace.waited(traffic.before_sending(len(piece), may_wait=may_wait))
            rest = rest[len(piece):]
            while piece:
                count = fibers.send(sock, piece, pace.timeout())
                pace.moved(count)
                piece = piece[count:]
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


def _send_all(sock: socket.socket, data: bytes, pace: Pace) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[fibers.send(sock, rest, pace.timeout()):]


def _head(method: str, target: str, headers: Mapping[str, str], length: int | None) -> bytes:
    """The request's first part. Built here because http.client takes as long for it as all else does. Its bytes are what was signed;
    InvalidArgument where a line break would end a header early."""
    lines = [f'{method} {target} HTTP/1.1', 'Accept-Encoding: identity', *(f'{name}: {value}' for name, value in headers.items())]
    if length is not None:
        lines.append(f'Content-Length: {length}')
    text = '\r\n'.join(lines)
    if text.count('\n') != len(lines) - 1 or text.count('\r') != len(lines) - 1:
        raise InvalidArgument('a header of the request has a line break')
    try:
        return (text + '\r\n\r\n').encode('ascii')
    except UnicodeEncodeError as exc:
        raise InvalidArgument('a header of the request is not ASCII') from exc


def _proxy_for(scheme: str, host: str) -> tuple[str, int] | None:
    proxies = getproxies()
    if scheme not in proxies or proxy_bypass(host):
        return None
    parts = urlsplit(proxies[scheme] if '//' in proxies[scheme] else f'//{proxies[scheme]}')
    return (parts.hostname, parts.port or 8080) if parts.hostname else None


def _is_closed(connection: http.client.HTTPConnection) -> bool:
    """By the server: it can be read although nothing was asked."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(0))


def _reason(exc: Exception) -> str:
    if isinstance(exc, TimeoutError):
        return 'no answer in time'
    if isinstance(exc, http.client.RemoteDisconnected):
        return 'the connection was closed without an answer'
    return getattr(exc, 'strerror', None) or str(exc) or type(exc).__name__
