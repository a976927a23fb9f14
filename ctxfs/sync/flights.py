"""Which blocks this worker is fetching just now, so that a reader and the warm-up do not fetch the same ones side by side.

Owns the claims and who waits for them. It must not know the store or the cache. Another worker's claims are not seen: there the price is a
request.
"""
from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

#: how long an operation waits for blocks that another one fetches before it fetches them itself
WAIT_SECONDS = 30.0


class Flights:
    """See the module docstring. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[tuple[str, str, int], Future[None]] = {}

    def fetch(self, key: str, etag: str, blocks: Iterable[int], *, missing: Callable[[Iterable[int]], list[int]],
              get: Callable[[Sequence[int]], int]) -> int:
        """Have the blocks of a version in the cache: those that nobody fetches by `get`, which returns the bytes that came; the others by
        waiting. `missing` says which are not there. Returns the sum of the bytes; raises what `get` raises."""
        wanted, fetched = missing(blocks), 0
        while wanted:
            mine, others = self._claim(key, etag, wanted)
            try:
                # one that landed between the look and the claim is not fetched once more
                absent = missing(mine)
                fetched += get(absent) if absent else 0
            finally:
                self._land(key, etag, mine)
            has_landed = _wait(others.values())
            wanted = missing(others)
            if wanted and not has_landed:
                return fetched + get(wanted)
        return fetched

    def _claim(self, key: str, etag: str, blocks: Iterable[int]) -> tuple[list[int], dict[int, Future[None]]]:
        mine: list[int] = []
        others: dict[int, Future[None]] = {}
        landed: Future[None] = Future()
        with self._lock:
            for block in blocks:
                found = self._under_way.setdefault((key, etag, block), landed)
                if found is landed:
                    mine.append(block)
                else:
                    others[block] = found
        return mine, others

    def _land(self, key: str, etag: str, blocks: Iterable[int]) -> None:
        with self._lock:
            landed = {self._under_way.pop((key, etag, block)) for block in blocks}
        for future in landed:
            future.set_result(None)


def _wait(flights: Iterable[Future[None]]) -> bool:
    """Until all have ended, well or not. False when that takes too long."""
    for flight in flights:
        try:
            flight.result(WAIT_SECONDS)
        except FutureTimeout:       # another class than TimeoutError before Python 3.11
            return False
    return True
