"""What a worker's operations work with.

Owns the worker's context: its store, its view of the block cache and the abort slots, the threads for parallel ranges. It must not know
the pipe or the daemon: an operation gets its request, this context, and a channel.
"""
from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import msgspec

from ctxfs.storage.block_cache import BlockCache
from ctxfs.storage.block_sums import RecentSums
from ctxfs.storage.object_store import Capabilities
from ctxfs.storage.stores import open_store
from ctxfs.storage.traffic import Traffic
from ctxfs.sync.abort_slots import AbortFlags
from ctxfs.sync.flights import Flights
from ctxfs.sync.lifo_threads import LifoThreads
from ctxfs.sync.protocol import Operation, Warm, WorkerOptions

log = logging.getLogger(__name__)

T = TypeVar('T')
R = TypeVar('R')

#: threads that fetch ranges and heads on behalf of operations; beside the operations' own threads, so that these can wait for them
_HELPERS = 8


class OperationChannel(Protocol):
    """What an operation sees of its request's channel (worker.Channel)."""

    @property
    def is_cancelled(self) -> bool: ...

    def part(self, value: Any) -> None: ...

    def moved(self, count: int) -> None: ...


class Attended:
    """How many operations are under way that somebody waits for; `with` it counts one more."""

    def __init__(self) -> None:
        self._count = 0
        self._is_quiet = threading.Event()
        self._is_quiet.set()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._count += 1
            self._is_quiet.clear()

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                self._is_quiet.set()

    def make_way(self, seconds: float) -> None:
        """Wait until there is none, that long at most."""
        self._is_quiet.wait(seconds)


class WorkerContext:
    """Raises what `open_store` raises, and OSError when there is no cache directory to be had."""

    def __init__(self, options: WorkerOptions, flags: AbortFlags, traffic: Traffic | None = None) -> None:
        self.options = options
        self.host = options.host
        self.flags = flags
        self.traffic = traffic or Traffic()
        self.attended = Attended()
        self.flights = Flights()
        self.recent_sums = RecentSums()
        self.helpers = LifoThreads(_HELPERS, 'range')
        self.cache = BlockCache(options.cache_dir, options.cache_limit)
        self.store = open_store(options.store_url, capabilities=options.capabilities, turn_left=flags.turn_left, traffic=self.traffic,
                                **options.store_options)

    def run_all(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`function` of each item, in the helpers' threads. Returns or raises only when all have ended, so that what they use (a file
        descriptor) may go then; after a failure those that have not begun are left out."""
        futures = [self.helpers.submit(function, item) for item in items]
        done, not_done = wait(futures, return_when=FIRST_EXCEPTION)
        if not_done:
            for future in not_done:
                future.cancel()
            wait(futures)
            raise next(error for future in done if not future.cancelled() and (error := future.exception()))
        return [future.result() for future in futures]

    def attend(self, operation: Operation[Any]) -> AbstractContextManager[None]:
        """Around an operation: those that nobody waits for make way for the others."""
        return self.traffic.leisurely() if isinstance(operation, Warm) else self.attended

    def learn(self, capabilities: dict[str, Any]) -> None:
        self.store.learn(msgspec.convert(capabilities, Capabilities))

    def set_cache_limit(self, cache_bytes: int) -> None:
        """In a helper's thread: evicting may take long, and the caller reads the pipe."""
        self.helpers.submit(self._set_cache_limit, cache_bytes)

    def _set_cache_limit(self, cache_bytes: int) -> None:
        try:
            self.cache.set_limit(cache_bytes)
        except Exception:
            log.exception('the block cache could not be bounded to %d bytes', cache_bytes)

    def close(self) -> None:
        self.helpers.shutdown(wait=True, cancel_futures=True)
        self.store.close()
        self.cache.close()
