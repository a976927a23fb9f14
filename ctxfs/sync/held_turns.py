"""Turns for commands that write without a mount: on a store where hosts take turns, they wait for theirs like any other host.

Owns when a turn is needed, and that nothing is started on a store that compares and swaps. It must not know what is written, nor how turns are taken
(turn_loop.py).

A write within a turn is not looked at before, as a mount's is: who puts a file means to replace what is there. So nothing here needs to end before
the turn does but that no mount is between its look and its write meanwhile.
"""
from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from ctxfs.storage.object_store import Capabilities, Condition, ObjectStore, Write

if TYPE_CHECKING:
    from ctxfs.sync.turn_loop import TurnLoop


def takes_turns(known: Capabilities) -> bool:
    """Whether a mount writes anything there in turns."""
    conditions = (Condition(etag='any'), Condition(absent=True))
    return known.deletes_need_turn or any(known.needs_turn(write, condition) for write in Write for condition in conditions)


class HeldTurns:
    """See the module docstring. Thread-safe; `close` it when nobody writes any more. `abilities`: what the store can do below the prefix,
    where that is not to be asked of `store`, whose scratch objects may be out of reach."""

    def __init__(self, store: ObjectStore, prefix: str, *, host: str, abilities: Callable[[], Capabilities] | None = None) -> None:
        self._store = store
        self._abilities = abilities or store.capabilities
        self._prefix = prefix
        self._host = host
        self._lock = threading.Lock()
        self._running: TurnLoop | None = None

    @contextlib.contextmanager
    def turn(self, keys: Iterable[str]) -> Iterator[None]:
        """Around writes of these keys (full ones). Raises RemoteUnavailable when the turn of another host does not end."""
        known = self._abilities()
        if not takes_turns(known):
            yield
            return
        from ctxfs.sync.turn_loop import TurnLoop  # a loop and the workers' operations, which most stores make unnecessary
        with self._lock:
            running = self._running = self._running or TurnLoop(self._store, self._prefix, self._host)
        with running.turn(known, list(keys)):
            yield

    def close(self) -> None:
        """Others may write at once."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running.end()
