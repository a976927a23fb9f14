"""How the loop of requests ends: pyfuse3's own shape of it, with a kernel that says what the test wants."""
from __future__ import annotations

import errno
import os
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup  # what trio itself uses there

from ctxfs.edge import fuse_loop


def run_loop(code: int, done: list[str]) -> None:
    """Two tasks as pyfuse3 makes them: one is told `code` by the kernel while the other is in the middle of a request."""
    pyfuse3: Any = SimpleNamespace()
    fuse_loop.install(pyfuse3, before_request=lambda: None)
    told = trio.Event()

    async def second(nursery: Any, minimum: int) -> None:
        await told.wait()
        await trio.lowlevel.checkpoint()
        done.append('request')

    async def first(nursery: Any, minimum: int) -> None:
        nursery.start_soon(second, nursery, minimum, name='2')
        told.set()
        raise OSError(code, 'fuse_session_receive_buf failed')

    async def main() -> None:
        async with pyfuse3.trio.open_nursery() as nursery:
            nursery.start_soon(first, nursery, 4, name='1')

    trio.run(main)


def test_an_aborted_connection_ends_the_loop_and_cuts_nothing_off() -> None:
    done: list[str] = []
    run_loop(errno.ECONNABORTED, done)
    assert done == ['request']


def test_any_other_failure_is_one() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        run_loop(errno.EIO, [])
    assert caught.value.exceptions[0].errno == errno.EIO  # type: ignore[union-attr]


class Kernel:
    """Says what `serve` finds, one answer after the other, and notes in which order it was asked."""

    def __init__(self, *found: int) -> None:
        self.found = list(found)
        self.asked: list[str] = []
        self.on_serve: Any = lambda: None

    def before(self) -> None:
        self.asked.append('before')

    def serve(self, linger: float, limit: float) -> int:
        self.asked.append('serve')
        self.on_serve()
        return self.found.pop(0)

    def wait_on(self, fd: int) -> Any:
        pyfuse3: Any = SimpleNamespace()
        fuse_loop.install(pyfuse3, before_request=self.before, serve=self.serve)
        return pyfuse3.trio.lowlevel.wait_readable(fd)


def test_it_sleeps_while_nothing_comes() -> None:
    """Until the descriptor says that something is there; each look is prepared."""
    kernel = Kernel(fuse_loop.NOTHING, fuse_loop.FOR_HANDLER)

    async def main() -> None:
        reading, writing = os.pipe()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.wait_on, reading)
            await trio.testing.wait_all_tasks_blocked()
            before = list(kernel.asked)
            os.write(writing, b'x')
        assert before == []
        os.close(reading)
        os.close(writing)

    trio.run(main)
    assert kernel.asked == ['before', 'serve'] * 2


def test_a_flood_lets_other_tasks_run() -> None:
    """Requests come without end, and none of them is a handler's: whatever else the daemon has to do goes on."""
    turns: list[int] = []
    kernel = Kernel(*[2] * 50, fuse_loop.FOR_HANDLER)
    kernel.on_serve = lambda: time.sleep(fuse_loop.YIELD_SECONDS)

    async def other() -> None:
        while kernel.found:
            turns.append(len(kernel.found))
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        reading, writing = os.pipe()
        os.write(writing, b'x')
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            nursery.start_soon(kernel.wait_on, reading)
        os.close(reading)
        os.close(writing)

    trio.run(main)
    assert len(turns) >= 50
