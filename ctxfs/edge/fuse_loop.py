"""How pyfuse3's request loop waits for the kernel: cheaply while requests come one after the other.

Owns the stand-in for the `trio` that pyfuse3's loop uses (its own seam: pyfuse3.asyncio replaces the same name). It must not know what a
request is. pyfuse3 is handed in, so that only the adapter imports it.

pyfuse3 keeps some tasks; one at a time holds a lock and waits until /dev/fuse is readable, then passes the lock on and handles its
request. With trio's own Lock and wait_readable each request costs two task switches, an epoll_ctl and two passes of the scheduler:
measured 60 % of the time of an unpack, because nearly every handler here ends without ever waiting. So

- `ReaderLock` passes the lock on only when its holder really gives up the processor (seen by an instrument after the task's step); a
  holder that comes back in the same step just goes on;
- `wait_readable` first looks whether the next request is there already, or comes within LINGER_SECONDS, which is how long a program
  takes from one request's answer to its next request; only then the scheduler is asked to wait. At least every YIELD_SECONDS it
  gives way, so that uploads and the control socket go on beside a flood of requests. It is the library (fuse_made.c) that looks, where there
  is one, and answers what needs no Python.

An unmount that comes while requests wait (closing a file is one that no program waits for) may be told as ECONNABORTED, where pyfuse3 expects
ENODEV: `_Nursery` makes an end of both.
"""
from __future__ import annotations

import errno
import select
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import trio

#: how long the loop looks out for the next request before it sleeps: no other task runs meanwhile
LINGER_SECONDS = 0.00015
#: the longest that requests may keep other tasks waiting
YIELD_SECONDS = 0.004
#: what `serve` returns (see `install`)
NOTHING, FOR_HANDLER = 0, 1


class ReaderLock(trio.abc.Instrument):
    """The lock of pyfuse3's loop; `async with` only. Fair enough: any waiter is as good as another."""

    def __init__(self) -> None:
        self._is_held = False
        self._is_free_at_step_end = False
        self._waiters: deque[trio.lowlevel.Task] = deque()
        trio.lowlevel.add_instrument(self)

    async def __aenter__(self) -> None:
        if self._is_held:
            task = trio.lowlevel.current_task()
            self._waiters.append(task)

            def abort(_: Any) -> trio.lowlevel.Abort:
                self._waiters.remove(task)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)    # whoever wakes us has passed the lock on
        self._is_held = True
        self._is_free_at_step_end = False

    async def __aexit__(self, *exc: object) -> None:
        self._is_held = False
        self._is_free_at_step_end = True

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """The former holder waits for something: somebody else may look for requests."""
        if self._is_free_at_step_end:
            self._is_free_at_step_end = False
            if self._waiters and not self._is_held:
                self._is_held = True
                trio.lowlevel.reschedule(self._waiters.popleft())


class _Waiter:
    """wait_readable as described in the module's docstring."""

    def __init__(self, before_request: Callable[[], None], serve: Callable[[float, float], int] | None) -> None:
        self._poll: select.poll | None = None
        self._last_yield = 0.0
        self._before_request = before_request
        self._serve = serve

    async def wait_readable(self, fd: int) -> None:
        if self._serve is not None:
            await self._wait_serving(fd, self._serve)
        else:
            await self._wait_readable(fd)
            self._before_request()

    async def _wait_serving(self, fd: int, serve: Callable[[float, float], int]) -> None:
        """Until a request is there that a handler answers."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
        while True:
            if time.perf_counter() - self._last_yield >= YIELD_SECONDS:
                if self._poll.poll(0):
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(fd)
                self._last_yield = time.perf_counter()
            self._before_request()
            found = serve(LINGER_SECONDS, YIELD_SECONDS)
            if found == FOR_HANDLER:
                return
            if found == NOTHING:
                await trio.lowlevel.wait_readable(fd)
                self._last_yield = time.perf_counter()

    async def _wait_readable(self, fd: int) -> None:
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
        now = time.perf_counter()
        if now - self._last_yield < YIELD_SECONDS:
            if select.select((fd,), (), (), LINGER_SECONDS)[0]:
                return
            await trio.lowlevel.wait_readable(fd)
        elif self._poll.poll(0):
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.wait_readable(fd)
        self._last_yield = time.perf_counter()


class _Nursery:
    """Starts the tasks of pyfuse3's loop. Each of them finds out by itself that the mount is gone, and only then ends: what another one is in
    the middle of is not cut off."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(self, loop: Callable[..., Awaitable[None]], _: Any, *args: Any, name: str) -> None:
        self._nursery.start_soon(self._run, loop, *args, name=name)

    async def _run(self, loop: Callable[..., Awaitable[None]], *args: Any) -> None:
        try:
            await loop(self, *args)
        except OSError as error:
            if error.errno != errno.ECONNABORTED:
                raise


@asynccontextmanager
async def _open_nursery() -> AsyncIterator[_Nursery]:
    async with trio.open_nursery() as nursery:
        yield _Nursery(nursery)


def install(pyfuse3: ModuleType, *, before_request: Callable[[], None], serve: Callable[[float, float], int] | None = None) -> None:
    """Make pyfuse3's loop wait as described; call it before `pyfuse3.main`. `before_request` is called in the same step in which a request
    is then handled, or begins to be. `serve(linger, limit)` waits so many seconds for a request and answers those that need no handler
    for so many seconds; it returns NOTHING when none came, FOR_HANDLER when the next one needs a handler, else another number."""
    waiter = _Waiter(before_request, serve)
    lowlevel = SimpleNamespace(**{name: getattr(trio.lowlevel, name) for name in dir(trio.lowlevel) if not name.startswith('_')})
    lowlevel.wait_readable = waiter.wait_readable
    stand_in = SimpleNamespace(**{name: getattr(trio, name) for name in ('ClosedResourceError', 'from_thread', 'to_thread')})
    stand_in.open_nursery = _open_nursery
    stand_in.lowlevel = lowlevel
    stand_in.Lock = ReaderLock
    pyfuse3.trio = stand_in  # type: ignore[attr-defined]
