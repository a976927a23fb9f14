"""An HTTP proxy in front of an S3 server that fails as networks and providers do.

Owns the faults: an answer 503 without doing anything, a connection cut before the request was passed on, a request that was done but
whose answer is lost, a body cut in the middle, a delay. It must not know S3: bytes and headers pass unchanged (also Host, which is
signed). `plan(method, path)` names the fault of each request, or None.
"""
from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

FAULTS = ('unavailable', 'cut', 'lost', 'truncated', 'slow')
SLOW_DOWN = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
HOP_BY_HOP = {'connection', 'keep-alive', 'transfer-encoding', 'date', 'server', 'expect'}

Plan = Callable[[str, str], 'str | None']


class FaultProxy:
    """`with FaultProxy(endpoint) as proxy:` serves at `proxy.endpoint`; `proxy.plan` may change at any time; `proxy.done` counts faults."""

    def __init__(self, upstream: str) -> None:
        self.plan: Plan = lambda method, path: None
        self.done: dict[str, int] = dict.fromkeys(FAULTS, 0)
        self.upstream = urlsplit(upstream).netloc
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
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def choose(self, method: str, path: str) -> str | None:
        with self._lock:
            fault = self.plan(method, path)
            if fault:
                self.done[fault] += 1
            return fault


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
        fault = self.server.proxy.choose(self.command, self.path)
        if fault == 'cut':
            self._cut()
            return
        if fault == 'unavailable':
            self._answer(503, [('Content-Type', 'application/xml')], SLOW_DOWN)
            return
        if fault == 'slow':
            self.server.proxy.closing.wait(0.4)
        status, headers, answer = self._forward(body)
        if fault == 'lost':
            self._cut()
        else:
            self._answer(status, headers, answer, keep=len(answer) // 2 if fault == 'truncated' else None)

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

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, keep: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in HOP_BY_HOP and name.lower() != 'content-length':
                self.send_header(name, value)
        length = next((v for n, v in headers if n.lower() == 'content-length'), None) if self.command == 'HEAD' else None
        self.send_header('Content-Length', length or str(len(body)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body if keep is None else body[:keep])
        if keep is not None:
            self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        self.wfile.flush()

    def log_message(self, format: str, *arguments: object) -> None:
        """The test says what went wrong."""
