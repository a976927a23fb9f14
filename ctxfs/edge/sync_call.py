"""Something that runs in a thread and may be awaited under asyncio, under trio, or asked for its result by a program without a loop.

Owns the bridges from the thread to whichever loop runs. It must not import one: whoever awaits has imported his own.
"""
from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar, cast

R = TypeVar('R')


class ThreadCall(Coroutine[Any, Any, R], Generic[R]):
    """`work()` begins at once, in a thread of its own, whether it is awaited or not. A Coroutine, because asyncio.run and create_task
    take nothing less. Cancelling whoever awaits ends the waiting only. `work` must not raise."""

    def __init__(self, work: Callable[[], R], then: Callable[[R], object] | None = None) -> None:
        self._work = work
        self._then = then
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._waiters: list[Callable[[], object]] = []
        self._results: list[R] = []
        self._coroutine: Coroutine[Any, Any, R] | None = None
        threading.Thread(target=self._run, name='ctxfs-call', daemon=True).start()

    def _run(self) -> None:
        result = self._work()
        with self._lock:
            self._results.append(result)
            self._done.set()
            waiters, self._waiters = self._waiters, []
        for wake in waiters:
            wake()
        if self._then is not None:
            self._then(result)

    def wait(self) -> R:
        """The result; blocks the calling thread until it is there."""
        self._done.wait()
        return self._results[0]

    # --- awaiting -------------------------------------------------------------------------------------------------------------------

    async def _awaited(self) -> R:
        if not self._done.is_set():
            await (self._in_trio(sys.modules['trio']) if _runs_trio() else self._in_asyncio(sys.modules['asyncio']))
        return self._results[0]

    async def _in_trio(self, trio: Any) -> None:
        token, arrived = trio.lowlevel.current_trio_token(), trio.Event()

        def wake() -> None:
            try:
                token.run_sync_soon(arrived.set)
            except trio.RunFinishedError:
                return      # whoever waited was cancelled, and his loop is over
        self._when_done(wake)
        await arrived.wait()

    async def _in_asyncio(self, asyncio: Any) -> None:
        loop = asyncio.get_running_loop()
        arrived = loop.create_future()

        def arrive() -> None:
            if not arrived.done():      # a cancelled waiter's is
                arrived.set_result(None)

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(arrive)
            except RuntimeError:
                return      # the loop is closed
        self._when_done(wake)
        await arrived

    def _when_done(self, wake: Callable[[], object]) -> None:
        with self._lock:
            if not self._done.is_set():
                self._waiters.append(wake)
                return
        wake()

    # --- as a coroutine -------------------------------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, Any, R]:
        return self._awaited().__await__()

    def _inner(self) -> Coroutine[Any, Any, R]:
        if self._coroutine is None:
            self._coroutine = self._awaited()
        return self._coroutine

    def send(self, value: Any) -> Any:
        return self._inner().send(value)

    def throw(self, *error: Any) -> Any:
        return self._inner().throw(*error)

    def close(self) -> None:
        if self._coroutine is not None:
            self._coroutine.close()


def _runs_trio() -> bool:
    trio = sys.modules.get('trio')
    if trio is None:
        return False
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


async def in_thread(work: Callable[[], R]) -> R:
    """What `work` returns, or raises."""
    def outcome() -> tuple[R | None, BaseException | None]:
        try:
            return work(), None
        except BaseException as error:
            return None, error
    result, error = await ThreadCall(outcome)
    if error is not None:
        raise error
    return cast(R, result)
