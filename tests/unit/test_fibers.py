"""Fibers: many exchanges at once in one thread, over real sockets; what a wait, a lock and an error do to the others."""
from __future__ import annotations

import contextlib
import functools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ctxfs.storage import fibers


class Crowd:
    """A server that answers nobody before `wanted` have asked."""

    def __init__(self, wanted: int) -> None:
        self._listener = socket.create_server(('127.0.0.1', 0), backlog=wanted)
        self._barrier = threading.Barrier(wanted)
        self.address: tuple[str, int] = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=[self._listener.accept()[0]], daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, threading.BrokenBarrierError):
            asked = sock.recv(100)
            self._barrier.wait(30)
            sock.sendall(asked)

    def close(self) -> None:
        self._barrier.abort()
        self._listener.close()


@pytest.fixture
def crowd() -> Iterator[Callable[[int], Crowd]]:
    with contextlib.ExitStack() as stack:
        def make(wanted: int) -> Crowd:
            made = Crowd(wanted)
            stack.callback(made.close)
            return made
        yield make


def ask(address: tuple[str, int], number: int, *, seconds: float = 30) -> int:
    with fibers.connect(*address, seconds) as sock:
        fibers.send(sock, b'%d' % number, seconds)
        buffer = bytearray(100)
        count = fibers.receive_into(sock, buffer, seconds)
        return int(buffer[:count])


def test_all_are_under_way_at_once(crowd: Callable[[int], Crowd]) -> None:
    """None would be answered else; and all in this thread."""
    threads = set()

    def job(number: int) -> int:
        threads.add(threading.get_ident())
        return ask(address, number)
    address = crowd(20).address
    assert fibers.run_all([functools.partial(job, number) for number in range(20)], most=20) == list(range(20))
    assert threads == {threading.get_ident()}


def test_no_more_than_so_many_are_under_way() -> None:
    running, seen = [0], []

    def job() -> None:
        running[0] += 1
        seen.append(running[0])
        fibers.sleep(0.001)
        running[0] -= 1
    fibers.run_all([job] * 10, most=3)
    assert max(seen) == 3 and len(seen) == 10


def test_an_error_is_the_outcome_of_its_job_only(crowd: Callable[[int], Crowd]) -> None:
    def fail() -> int:
        raise ValueError('no')
    address = crowd(2).address
    first, second, third = fibers.run_all([functools.partial(ask, address, 1), fail, functools.partial(ask, address, 3)], most=3)
    assert (first, third) == (1, 3) and isinstance(second, ValueError)


def test_who_waits_too_long_gets_a_timeout_and_nobody_else_waits_for_it(crowd: Callable[[int], Crowd]) -> None:
    silent, quick = crowd(2).address, crowd(1).address
    first, second = fibers.run_all([functools.partial(ask, silent, 1, seconds=0.2), functools.partial(ask, quick, 2)], most=2)
    assert isinstance(first, TimeoutError) and second == 2


def test_a_connection_that_is_refused_says_so() -> None:
    with socket.create_server(('127.0.0.1', 0)) as server:
        address = server.getsockname()
    outcome, = fibers.run_all([functools.partial(ask, address, 1)], most=1)
    assert isinstance(outcome, ConnectionRefusedError)


def test_a_resolver_that_says_nothing_holds_up_nobody_else(crowd: Callable[[int], Crowd], monkeypatch: pytest.MonkeyPatch) -> None:
    """And whoever asked it waits for no longer than for a connection."""
    address, over = crowd(1).address, threading.Event()
    real = socket.getaddrinfo

    def resolve(host: str, *args: Any, **options: Any) -> Any:
        if host == 'silent.invalid':
            over.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, 'no answer')
        return real(host, *args, **options)
    monkeypatch.setattr(socket, 'getaddrinfo', resolve)
    began = time.monotonic()
    try:
        outcomes = fibers.run_all([*[functools.partial(ask, ('silent.invalid', 80), 1, seconds=0.3)] * 8, functools.partial(ask, address, 2)], most=9)
    finally:
        over.set()
    assert outcomes[-1] == 2 and all(isinstance(outcome, TimeoutError) for outcome in outcomes[:-1])
    assert time.monotonic() - began < 30       # not one after the other, nor to the resolver's own end


def test_a_name_that_there_is_not_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, *args: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, 'unknown')
    monkeypatch.setattr(socket, 'getaddrinfo', resolve)
    assert isinstance(fibers.run_all([functools.partial(ask, ('nowhere.invalid', 80), 1)], most=1)[0], socket.gaierror)


def test_a_lock_is_kept_over_a_wait() -> None:
    """And its owner comes to its end although others of the thread want it."""
    lock, order = fibers.Lock(), []

    def job(number: int) -> None:
        with lock:
            order.append(number)
            fibers.sleep(0.005)
            order.append(number)
    fibers.run_all([functools.partial(job, number) for number in range(4)], most=4)
    assert order[::2] == order[1::2] and sorted(order) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_what_ends_the_process_ends_all() -> None:
    """And what they hold is let go."""
    ended = []

    def stay() -> None:
        try:
            fibers.sleep(60)
        finally:
            ended.append('stay')

    def leave() -> None:
        fibers.sleep(0.001)
        raise SystemExit(3)
    began = time.monotonic()
    with pytest.raises(SystemExit):
        fibers.run_all([stay, leave], most=2)
    assert ended == ['stay'] and time.monotonic() - began < 30
    assert not fibers.is_fiber() and fibers.run_all([lambda: 1], most=1) == [1]


def test_outside_they_block_as_sockets_do(crowd: Callable[[int], Crowd]) -> None:
    assert ask(crowd(1).address, 7) == 7
    with pytest.raises(TimeoutError):
        ask(crowd(2).address, 7, seconds=0.1)


def test_a_handshake_that_fails_closes_its_socket(crowd: Callable[[int], Crowd]) -> None:
    """The server speaks no TLS; in a fiber and outside."""
    address = crowd(1).address

    def secure() -> None:
        sock = fibers.connect(*address, 30)
        try:
            fibers.start_tls(ssl.create_default_context(), sock, 'localhost', 30)
        finally:
            assert sock.fileno() == -1
    with pytest.raises(OSError):
        secure()
    assert isinstance(fibers.run_all([secure], most=1)[0], OSError)
