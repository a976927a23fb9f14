"""An HTTP proxy in front of an S3 server that fails as networks and providers do.

Owns the faults, which FAULTS names. It must not know S3: bytes and headers pass unchanged (also Host, which is signed). `plan(method, path)`
names the fault of each request, or None. Whoever hangs does so until `release`, or the end.
"""
from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import NamedTuple
from urllib.parse import urlsplit

#: fault → what it is
FAULTS = {
    'unavailable': '503 without having done anything', 'internal': '500 the same', 'busy': '503 with a Retry-After header',
    'expired': '400 ExpiredToken', 'cut': 'the connection ends before the request was passed on',
    'lost': 'it is done, and its answer is lost',
    'truncated': 'half of the body and an end', 'reset': 'half of the body and a reset', 'slow': 'a delay',
    'flipped': 'one bit of the body is another',
    'hang': 'no answer', 'half-header': 'the first bytes of an answer', 'trickle': 'the body, a byte now and then'}
ERRORS = {'unavailable': (503, 'SlowDown'), 'internal': (500, 'InternalError'), 'busy': (503, 'SlowDown'), 'expired': (400, 'ExpiredToken')}
RETRY_AFTER = 2
HOP_BY_HOP = {'connection', 'keep-alive', 'transfer-encoding', 'date', 'server', 'expect'}

Plan = Callable[[str, str], 'str | None']


class Asked(NamedTuple):
    """A request that came: when (time.monotonic), what, and its fault."""
    at: float
    method: str
    path: str
    fault: str | None


class FaultProxy:
    """`with FaultProxy(endpoint) as proxy:` serves at `proxy.endpoint`; `proxy.plan` may change at any time; `proxy.done` counts faults,
    `proxy.asked` has all requests. `refused_token`: requests with this session token have expired credentials."""

    def __init__(self, upstream: str) -> None:
        self.plan: Plan = lambda method, path: None
        self.done: dict[str, int] = dict.fromkeys(FAULTS, 0)
        self.asked: list[Asked] = []
        self.refused_token = ''
        self.upstream = urlsplit(upstream).netloc
        self.rng = random.Random(7)
        self._released = threading.Event()
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(('127.0.0.1', 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={'poll_interval': 0.05})
        self.endpoint = f'http://127.0.0.1:{self._server.server_address[1]}'

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.closing.set()
        self.release()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def choose(self, method: str, path: str, token: str) -> str | None:
        with self._lock:
            fault = 'expired' if token and token == self.refused_token else self.plan(method, path)
            if fault:
                self.done[fault] += 1
            self.asked.append(Asked(time.monotonic(), method, path, fault))
            return fault

    def release(self) -> None:
        """Nobody hangs any more; who did is cut off."""
        with self._lock:
            self._released.set()
            self._released = threading.Event()
            if self.closing.is_set():
                self._released.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Until the release (True), or so long."""
        with self._lock:
            released = self._released
        return released.wait(seconds)

    def count(self, method: str, part: str = '', *, fault: str | None = 'any') -> int:
        """Requests of a method whose path has this part in it."""
        with self._lock:
            return sum(asked.method == method and part in asked.path and fault in ('any', asked.fault) for asked in self.asked)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    proxy: FaultProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    server: _Server

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        proxy = self.server.proxy
        fault = proxy.choose(self.command, self.path, self.headers.get('X-Amz-Security-Token', ''))
        if fault in ERRORS:
            self._refuse(*ERRORS[fault], retry_after=fault == 'busy')
        elif fault in ('cut', 'hang', 'half-header'):
            if fault == 'half-header':
                self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Le')
                self.wfile.flush()
            if fault != 'cut':
                proxy.wait()
            self._cut()
        else:
            if fault == 'slow':
                proxy.closing.wait(0.4)
            self._pass_on(fault, *self._forward(body))

    def _pass_on(self, fault: str | None, status: int, headers: list[tuple[str, str]], answer: bytes) -> None:
        if fault == 'lost':
            self._cut()
        elif fault == 'flipped' and answer and self.command == 'GET':
            flipped = bytearray(answer)
            flipped[self.server.proxy.rng.randrange(len(answer))] ^= 1 << self.server.proxy.rng.randrange(8)
            self._answer(status, headers, bytes(flipped))
        elif fault == 'trickle':
            self._answer(status, headers, answer, keep=0, is_open=True)
            for number in range(len(answer)):
                self.wfile.write(answer[number:number + 1])
                self.wfile.flush()
                if self.server.proxy.wait(0.1):
                    break
            self._cut()
        else:
            self._answer(status, headers, answer, keep=len(answer) // 2 if fault in ('truncated', 'reset') else None)
            if fault == 'reset':
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))

    def _refuse(self, status: int, code: str, *, retry_after: bool) -> None:
        more = [('Retry-After', str(RETRY_AFTER))] if retry_after else []
        self._answer(status, [('Content-Type', 'application/xml'), *more], f'<Error><Code>{code}</Code><Message>{code}</Message></Error>'.encode())

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.proxy.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, keep: int | None = None, *, is_open: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in HOP_BY_HOP and name.lower() != 'content-length':
                self.send_header(name, value)
        length = next((v for n, v in headers if n.lower() == 'content-length'), None) if self.command == 'HEAD' else None
        self.send_header('Content-Length', length or str(len(body)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body if keep is None else body[:keep])
        if keep is not None and not is_open:
            self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        self.wfile.flush()

    def log_message(self, format: str, *arguments: object) -> None:
        """The test says what went wrong."""
