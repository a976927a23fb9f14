"""Many blocking exchanges at once in one thread: fibers, which give way to each other while they wait for a socket.

Owns greenlet, the loop that wakes fibers up, and the socket calls that know of it. It must not know HTTP, or what a job is.

Threads would do the same, but they share one interpreter lock: with 12 of them, each small upload costs three times the CPU of one that has the
process for itself, most of it in handing the lock over. A fiber is switched to in a microsecond, and only where it waits. So code between two
waits is never interrupted by another fiber of its thread; a lock that is held across a wait must be this module's.

Outside of `run_all` the calls block, as those of the socket module do, with the timeout that they are given.
"""
from __future__ import annotations

import errno
import heapq
import itertools
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import greenlet

R = TypeVar('R')

#: how often, in seconds, it is looked whose time is over
_TICK = 0.1
_LOCK_SECONDS = 0.002
_NOT_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_thread = threading.local()


class _Hub:
    """The fibers of one thread: who waits for what, until when (seconds, monotonic)."""

    def __init__(self) -> None:
        self.home = greenlet.getcurrent()
        self._epoll = select.epoll()
        self._waiting: dict[int, tuple[Any, float]] = {}
        self._sleeping: list[tuple[float, int, Any]] = []
        self._numbers = itertools.count()
        self._looked_at = 0.0

    def run(self, function: Callable[[], None], count: int) -> None:
        """`function` in so many fibers, until all have ended."""
        fibers = [greenlet.greenlet(function, self.home) for _ in range(count)]
        try:
            for fiber in fibers:
                fiber.switch()
            while self._waiting or self._sleeping:
                self._turn()
        finally:
            self._waiting.clear()
            self._sleeping.clear()
            for fiber in fibers:
                if not fiber.dead:
                    fiber.throw()
            self._epoll.close()

    def _turn(self) -> None:
        """Wake up those whose socket is ready or whose time has come."""
        until_next = self._sleeping[0][0] - time.monotonic() if self._sleeping else _TICK
        for fd, _ in self._epoll.poll(min(_TICK, max(0.0, until_next))):
            waiting = self._waiting.pop(fd, None)
            if waiting is not None:
                waiting[0].switch(True)
        now = time.monotonic()
        while self._sleeping and self._sleeping[0][0] <= now:
            heapq.heappop(self._sleeping)[2].switch(True)
        if now - self._looked_at >= _TICK:
            self._looked_at = now
            for fd in [fd for fd, (_, until) in self._waiting.items() if until <= now]:
                fiber, _ = self._waiting.pop(fd)
                fiber.switch(False)

    def wait(self, fd: int, events: int, seconds: float) -> bool:
        """False when the time is over."""
        try:
            self._epoll.modify(fd, events | select.EPOLLONESHOT)
        except FileNotFoundError:       # not registered yet, or another socket that has got the number of one that was closed
            self._epoll.register(fd, events | select.EPOLLONESHOT)
        self._waiting[fd] = greenlet.getcurrent(), time.monotonic() + seconds
        return bool(self.home.switch())

    def sleep(self, seconds: float) -> None:
        heapq.heappush(self._sleeping, (time.monotonic() + seconds, next(self._numbers), greenlet.getcurrent()))
        self.home.switch()


def _hub() -> _Hub | None:
    hub: _Hub | None = getattr(_thread, 'hub', None)
    return hub if hub is not None and greenlet.getcurrent() is not hub.home else None


def run_all(jobs: Sequence[Callable[[], R]], *, most: int) -> list[R | Exception]:
    """What each job returned or raised, in their order; they run in this thread, at most so many at once. Not within another `run_all`."""
    outcomes: dict[int, R | Exception] = {}
    queue = iter(enumerate(jobs))

    def serve() -> None:
        for number, job in queue:
            try:
                outcomes[number] = job()
            except Exception as error:
                outcomes[number] = error
    assert getattr(_thread, 'hub', None) is None, 'fibers do not nest'
    hub = _thread.hub = _Hub()
    try:
        hub.run(serve, min(most, len(jobs)))
    finally:
        _thread.hub = None
    return [outcomes[number] for number in range(len(jobs))]


def is_fiber() -> bool:
    return _hub() is not None


def sleep(seconds: float) -> None:
    hub = _hub()
    if hub is None:
        time.sleep(seconds)
    else:
        hub.sleep(seconds)


class Lock:
    """A lock that may be held while a fiber waits: another fiber of the same thread does not stop its owner by asking for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if is_fiber():
            while not self._lock.acquire(blocking=False):
                sleep(_LOCK_SECONDS)
        else:
            self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


# --- sockets ---------------------------------------------------------------------------------------------------------------------

def send(sock: socket.socket, data: bytes | memoryview, seconds: float) -> int:
    """How many bytes went out. Raises TimeoutError, and what the socket raises."""
    return _call(sock, sock.send, data, select.EPOLLOUT, seconds)


def receive_into(sock: socket.socket, buffer: Any, seconds: float) -> int:
    """How many bytes came; 0: no more will. Raises TimeoutError, and what the socket raises."""
    return _call(sock, sock.recv_into, buffer, select.EPOLLIN, seconds)


def _call(sock: socket.socket, function: Callable[[Any], int], argument: Any, events: int, seconds: float) -> int:
    hub = _hub()
    if hub is None:
        sock.settimeout(seconds)
        return function(argument)
    if sock.gettimeout() != 0:
        sock.settimeout(0)
    until = time.monotonic() + seconds
    if events == select.EPOLLIN and type(sock) is socket.socket:      # an answer is never there at once; of TLS that cannot be seen
        _wait(hub, sock, events, until)
    while True:
        try:
            return function(argument)
        except _NOT_YET as error:
            _wait(hub, sock, _events_of(error, events), until)


def _events_of(error: BaseException, events: int) -> int:
    """TLS may have to send in order to receive, and the other way round."""
    if isinstance(error, ssl.SSLWantReadError):
        return select.EPOLLIN
    return select.EPOLLOUT if isinstance(error, ssl.SSLWantWriteError) else events


def _wait(hub: _Hub, sock: socket.socket, events: int, until: float) -> None:
    left = until - time.monotonic()
    if left <= 0 or not hub.wait(sock.fileno(), events, left):
        raise TimeoutError('timed out')


def connect(host: str, port: int, seconds: float) -> socket.socket:
    """A TCP connection to the first address of the host that takes one, with so many seconds for each, and for the resolver. Raises OSError."""
    hub = _hub()
    if hub is None:
        return socket.create_connection((host, port), seconds)
    failure: OSError | None = None
    for family, kind, protocol, _, address in _resolve(hub, host, port, seconds):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            _connect(hub, sock, address, time.monotonic() + seconds)
            return sock
        except OSError as error:
            failure = error
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise failure if failure is not None else OSError(f'{host} has no address')


def _resolve(hub: _Hub, host: str, port: int, seconds: float) -> list[Any]:
    """In a thread, because a resolver can neither be waited for as a socket nor told to hurry; it ends by itself, and nobody waits for that."""
    readable, writable = os.pipe()
    answers: list[Any] = []

    def ask() -> None:
        with open(writable, 'wb', buffering=0):       # whose end wakes the fiber up
            try:
                answers.append(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))
            except OSError as error:
                answers.append(error)
    threading.Thread(target=ask, name='ctxfs-resolve', daemon=True).start()
    try:
        if not hub.wait(readable, select.EPOLLIN, seconds):
            raise TimeoutError(f'the address of {host} was not found in time')
    finally:
        os.close(readable)
    answer, = answers
    if isinstance(answer, OSError):
        raise answer
    return list(answer)


def _connect(hub: _Hub, sock: socket.socket, address: Any, until: float) -> None:
    code = sock.connect_ex(address)
    if code == errno.EINPROGRESS:
        _wait(hub, sock, select.EPOLLOUT, until)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def start_tls(context: ssl.SSLContext, sock: socket.socket, host: str, seconds: float) -> ssl.SSLSocket:
    """The connection after the handshake. Raises OSError (certificates: ssl.SSLCertVerificationError); the socket is closed then."""
    hub, until = _hub(), time.monotonic() + seconds
    try:
        if hub is None:
            sock.settimeout(seconds)
        secured = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=hub is None)
    except BaseException:
        sock.close()
        raise
    try:
        while hub is not None:
            try:
                secured.do_handshake()
                break
            except _NOT_YET as error:
                _wait(hub, secured, _events_of(error, select.EPOLLIN), until)
    except BaseException:
        secured.close()
        raise
    return secured
