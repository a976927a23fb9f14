"""A proxy in front of an S3 server that makes it as far away as a data centre, and writes down what is asked.

Owns the delay (each piece of an answer is passed on that much later; what the client sends, at once, so that it is one round trip for each
request and answer, and opening a connection costs none) and the list of requests. It must not know S3: bytes pass unchanged. One process of
its own with one thread and one epoll: about 60 µs of CPU for a small request, so that the two cores are left to those who are measured.

Requests are told apart without reading bodies: on a connection without pipelining, which S3 clients do not use, the first bytes that a
client sends after bytes of an answer begin a request.

    with DelayProxy(server.endpoint, seconds=0.02) as proxy:
        proxy.endpoint, proxy.requests()        # [(method, target), …] since the start, or the last `reset`
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from bench.processes import end, start_module

CHUNK = 256 << 10
#: bytes on their way to one client; beyond, the server is not read any more
UNSENT_MAX = 8 << 20


class DelayProxy:
    """See the module docstring; the process ends with the block."""

    def __init__(self, upstream: str, *, seconds: float = 0.0) -> None:
        self._arguments = (upstream, str(seconds))
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = ''

    def __enter__(self) -> DelayProxy:
        self._process = start_module('bench.delay_proxy', *self._arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.endpoint = self._answer()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process is not None
        end(self._process)

    def requests(self) -> list[tuple[str, str]]:
        return [(method, target) for method, target in self._ask('requests')]

    def reset(self) -> None:
        self._ask('reset')

    def delay(self, seconds: float) -> None:
        """From now on."""
        self._ask(f'delay {seconds}')

    def _ask(self, order: str) -> Any:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(order.encode() + b'\n')
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit('the delaying proxy has ended')
        return json.loads(line)


class _Link:
    """One connection of a client, and the one to the server that belongs to it. `ends`: (client, server)."""

    __slots__ = ('ends', 'is_answered', 'is_open', 'is_paused', 'on_way', 'unsent')

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.ends = (client, server)
        self.unsent = (bytearray(), bytearray())
        self.on_way = 0
        self.is_answered = self.is_open = True
        self.is_paused = False


class Proxy:
    """The process: one loop over all connections."""

    def __init__(self, upstream: str, seconds: float) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or '127.0.0.1', parts.port or 80)
        self._seconds = seconds
        self._requests: list[tuple[str, str]] = []
        self._line: deque[tuple[float, _Link, bytes]] = deque()
        self._epoll = select.epoll()
        self._by_fd: dict[int, tuple[_Link, int]] = {}
        self._listener = socket.create_server(('127.0.0.1', 0), backlog=512)
        self._listener.setblocking(False)
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(0, select.EPOLLIN)
        self._orders = b''

    def run(self) -> None:
        """Until stdin ends."""
        tell(f'http://127.0.0.1:{self._listener.getsockname()[1]}')
        while True:
            for fd, event in self._epoll.poll(self._wait()):
                if fd in self._by_fd:
                    self._serve(fd, event)
                elif fd == self._listener.fileno():
                    self._accept()
                elif fd == 0 and not self._obey():
                    return
            self._deliver()

    def _wait(self) -> float | None:
        return max(0.0, self._line[0][0] - time.monotonic()) if self._line else None

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._upstream, timeout=10)
        except OSError:
            client.close()
            return
        link = _Link(client, server)
        for which, end_ in enumerate(link.ends):
            end_.setblocking(False)
            end_.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._by_fd[end_.fileno()] = (link, which)
            self._epoll.register(end_, select.EPOLLIN)

    def _serve(self, fd: int, event: int) -> None:
        link, which = self._by_fd[fd]
        if event & select.EPOLLOUT:
            self._send(link, which, b'')
        if link.is_open and event & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            try:
                data = link.ends[which].recv(CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b''
            if which == 0:
                self._from_client(link, data)
            else:
                self._from_server(link, data)

    def _from_client(self, link: _Link, data: bytes) -> None:
        if not data:
            self._close(link)
            return
        if link.is_answered:
            link.is_answered = False
            method, _, rest = data[:4096].partition(b' ')
            self._requests.append((method.decode('latin-1'), rest.partition(b' ')[0].decode('latin-1')))
        self._send(link, 1, data)

    def _from_server(self, link: _Link, data: bytes) -> None:
        """What is on its way is passed on when it is due; an end (b'') too."""
        if not data:
            self._epoll.modify(link.ends[1], 0)
        if not data.startswith(b'HTTP/1.1 100'):
            link.is_answered = True
        if not self._seconds and not link.on_way:
            self._arrive(link, data)
            return
        link.on_way += len(data)
        if link.on_way > UNSENT_MAX and not link.is_paused:
            link.is_paused = True
            self._watch(link, 1)
        self._line.append((time.monotonic() + self._seconds, link, data))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._line and self._line[0][0] <= now:
            _, link, data = self._line.popleft()
            link.on_way -= len(data)
            if link.is_open:
                self._arrive(link, data)

    def _arrive(self, link: _Link, data: bytes) -> None:
        if not data:
            self._close(link)
            return
        self._send(link, 0, data)
        if link.is_open and link.is_paused and link.on_way + len(link.unsent[0]) < UNSENT_MAX // 2:
            link.is_paused = False
            self._watch(link, 1)

    def _send(self, link: _Link, which: int, data: bytes) -> None:
        unsent = link.unsent[which]
        had = bool(unsent)
        if had:
            unsent += data
            data = bytes(unsent)
        try:
            sent = link.ends[which].send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(link)
            return
        unsent[:] = data[sent:]
        if had != bool(unsent):
            self._watch(link, which)

    def _watch(self, link: _Link, which: int) -> None:
        is_read = not (which == 1 and link.is_paused)
        self._epoll.modify(link.ends[which], (select.EPOLLIN if is_read else 0) | (select.EPOLLOUT if link.unsent[which] else 0))

    def _close(self, link: _Link) -> None:
        if link.is_open:
            link.is_open = False
            for end_ in link.ends:
                del self._by_fd[end_.fileno()]
                self._epoll.unregister(end_)
                end_.close()

    def _obey(self) -> bool:
        """One line each: `requests`, `reset`, `delay SECONDS`. False at the end of stdin."""
        data = os.read(0, 4096)
        *orders, self._orders = (self._orders + data).split(b'\n')
        for order in orders:
            word, _, argument = order.decode().partition(' ')
            if word == 'delay':
                self._seconds = float(argument)
            tell(self._requests if word == 'requests' else None)
            if word == 'reset':
                self._requests = []
        return bool(data)


def tell(answer: object) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    Proxy(sys.argv[1], float(sys.argv[2])).run()
