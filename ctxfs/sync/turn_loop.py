"""The loop in which a command without one takes this host's turns, in a thread of its own.

Owns that thread and the way to it from other threads, and what stands for the workers that turns.py asks: their operations, in this process. It
must not know what is written in a turn.
"""
from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from ctxfs.errors import RemoteUnavailable
from ctxfs.storage.object_store import Capabilities, ObjectStore
from ctxfs.sync.protocol import Operation
from ctxfs.sync.turns import GRACE_SECONDS, LEASE_SECONDS, Turns
from ctxfs.sync.worker_ops import HANDLERS
from ctxfs.sync.worker_options import WorkerOptions

#: a host that died in its turn holds others up for that long
PATIENCE_SECONDS = LEASE_SECONDS + GRACE_SECONDS + 30.0


class TurnLoop:
    """A loop in a thread of its own, with this host's turns in it."""

    def __init__(self, store: ObjectStore, prefix: str, host: str) -> None:
        self._context = _Context(store, host)
        self._prefix = prefix
        self._host = host
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=partial(trio.run, self._main), name='ctxfs-turns', daemon=True)
        self._thread.start()
        self._is_up.wait()

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            self._token = trio.lowlevel.current_trio_token()
            self._over = trio.Event()
            pool: Any = _Pool(self._context)

            def spawn(function: Callable[..., Any], *args: Any) -> None:
                nursery.start_soon(function, *args)
            self._turns = Turns(pool, prefix=self._prefix, host=self._host, tell=lambda until: None, spawn=spawn, notes=_Notes())
            self._is_up.set()
            await self._over.wait()
            await self._turns.end()
            nursery.cancel_scope.cancel()

    @contextlib.contextmanager
    def turn(self, known: Capabilities, keys: list[str]) -> Iterator[None]:
        held = trio.from_thread.run(self._enter, known, keys, trio_token=self._token)
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(BaseException):        # it raises the same again
                trio.from_thread.run(held.__aexit__, type(error), error, None, trio_token=self._token)
            raise
        trio.from_thread.run(held.__aexit__, None, None, None, trio_token=self._token)

    async def _enter(self, known: Capabilities, keys: list[str]) -> Any:
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            held = self._turns.turn(known, keys)
            try:
                await held.__aenter__()
                return held
            except RemoteUnavailable:
                if time.monotonic() > until:
                    raise
                await trio.sleep(1.0)

    def end(self) -> None:
        trio.from_thread.run_sync(self._over.set, trio_token=self._token)
        self._thread.join()
        self._context.helpers.shutdown()


class _Notes:
    """Nothing survives: a turn that a killed command held runs out."""

    def meta(self, name: str) -> Any:
        return ''

    def set_meta(self, name: str, value: Any) -> None:
        """Not kept."""


class _Context:
    """What the few operations of a turn need of a worker's context."""

    def __init__(self, store: ObjectStore, host: str) -> None:
        self.store = store
        self.host = host
        self.options = WorkerOptions(store_url='', cache_dir='', cache_limit=0, host=host)
        self.helpers = ThreadPoolExecutor(2, thread_name_prefix='ctxfs-turn')

    def run_all(self, function: Any, items: Iterable[Any]) -> list[Any]:
        return [function(item) for item in items]


class _Parts:
    """A streaming operation's parts, all made before the first is read."""

    is_cancelled = False

    def __init__(self) -> None:
        self.parts: list[Any] = []

    def part(self, value: Any) -> None:
        self.parts.append(value)

    def moved(self, count: int) -> None:
        """Nobody counts."""

    def __aiter__(self) -> _Parts:
        return self

    async def __anext__(self) -> Any:
        if not self.parts:
            raise StopAsyncIteration
        return self.parts.pop(0)


class _Pool:
    """Workers' operations in threads of this process, as turns.py calls them."""

    def __init__(self, context: _Context) -> None:
        self._context: Any = context

    async def call(self, operation: Operation[Any], **options: Any) -> Any:
        return await self._run(operation, _Parts())

    @asynccontextmanager
    async def stream(self, operation: Operation[Any], **options: Any) -> AsyncIterator[_Parts]:
        parts = _Parts()
        await self._run(operation, parts)
        yield parts

    async def _run(self, operation: Operation[Any], channel: _Parts) -> Any:
        return await trio.to_thread.run_sync(HANDLERS[type(operation)], self._context, operation, channel)
