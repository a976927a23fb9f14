"""Threads that take work in such an order that few of them are kept: the one that rested last goes first, and who rests long ends.

Owns the threads and the order of what waits for one. A thread of a worker holds a connection to the cache's database (three descriptors, a
mebibyte) for as long as it lives; taking turns, all of them would be held for good after one busy moment. It must not know what the work is.
"""
from __future__ import annotations

import collections
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar('T')

#: seconds that a thread rests before it ends
REST = 30.0

_Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class LifoThreads(Executor):
    """At most `limit` threads, each begun when it is first needed; calls beyond that wait in the order they came."""

    def __init__(self, limit: int, name: str, *, rest: float = REST) -> None:
        self._limit = limit
        self._name = name
        self._rest = rest
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._resting: list[queue.SimpleQueue[_Call | None]] = []
        self._waiting: collections.deque[_Call] = collections.deque()
        self._is_closed = False

    def __len__(self) -> int:
        """Threads that there are now, at work or at rest."""
        return len(self._threads)

    def start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Like `submit` for who wants no result: what `function` raises is logged. Raises RuntimeError after `shutdown`."""
        call = (function, args, kwargs)
        with self._lock:
            if self._is_closed:
                raise RuntimeError('these threads were told to end')
            if self._resting:
                self._resting.pop().put(call)
            elif len(self._threads) < self._limit:
                self._begin(call)
            else:
                self._waiting.append(call)

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        self.start(_fulfil, future, function, args, kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing any more; what was begun, and without `cancel_futures` what waits, is done first. May be called again."""
        with self._lock:
            self._is_closed = True
            dropped = list(self._waiting) if cancel_futures else []
            if cancel_futures:
                self._waiting.clear()
            while self._resting:
                self._resting.pop().put(None)
            threads = list(self._threads)
        for _, args, _ in dropped:
            if args and isinstance(args[0], Future):
                args[0].cancel()
        if wait:
            for thread in threads:
                thread.join()

    def _begin(self, call: _Call) -> None:
        thread = threading.Thread(target=self._work, args=(call,), name=self._name, daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:    # the machine has no room for another
            self._threads.discard(thread)
            if not self._threads:
                raise
            self._waiting.append(call)

    def _work(self, first: _Call) -> None:
        mine: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        call: _Call | None = first
        while call is not None:
            function, args, kwargs = call
            try:
                function(*args, **kwargs)
            except Exception:
                log.exception('work in a thread failed')
            del call, function, args, kwargs    # a thread at rest holds on to nothing
            call = self._next(mine)

    def _next(self, mine: queue.SimpleQueue[_Call | None]) -> _Call | None:
        """What to do next; None when this thread shall end, which is then no longer counted."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            if self._is_closed:
                self._threads.discard(threading.current_thread())
                return None
            self._resting.append(mine)
        try:
            call = mine.get(timeout=self._rest)
        except queue.Empty:
            with self._lock:
                if mine in self._resting:
                    self._resting.remove(mine)
                    self._threads.discard(threading.current_thread())
                    return None
            call = mine.get()   # it came in this instant
        if call is None:
            with self._lock:
                self._threads.discard(threading.current_thread())
        return call


def _fulfil(future: Future[Any], function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function(*args, **kwargs)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
