"""The events of one mount: what happens, told to whoever listens, as it happens.

Owns the kinds of events and the bound on what a listener may be behind: publishing never waits and never fails, a listener that is too
slow loses the oldest events and is told how many. It must not know who publishes or how events reach a listener.

Every event is a dict with `kind` (one of KINDS), `time` (Unix seconds), the data of its kind, and `dropped` where events before it were lost:

    task-began, task-progress, task-ended      an upload or download: the fields of SyncTask.to_dict
    pending {files, bytes}                  what the bucket does not have, when that changed; like task-progress at most once a second
    conflict {path, original, holds}        two hosts changed `original`; the version of `holds` (local, remote) goes on as `path`
    policy-applied {}, policy-refused {message}   the policy's file changed
    remote-change {created, changed, removed}    taken over from the bucket, in files
    paused, resumed {}
    error {message, logger}                 something that an operator should look at
"""
from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import trio

from ctxfs.errors import InvalidArgument, RemoteUnavailable

KINDS = ('task-began', 'task-progress', 'task-ended', 'pending', 'conflict', 'policy-applied', 'policy-refused', 'remote-change', 'paused',
         'resumed', 'error')
#: events that wait for one listener
QUEUE_EVENTS = 256
MAX_LISTENERS = 32


class Publish(Protocol):
    """`EventHub.publish`, or a function of the same form."""

    def __call__(self, kind: str, **data: Any) -> None: ...


def unheard(kind: str, **data: Any) -> None:
    """A Publish without listeners: what a component uses that was given no hub."""


class Subscription:
    """One listener's queue; made by EventHub.subscribe, to be left by EventHub.leave."""

    def __init__(self, kinds: frozenset[str]) -> None:
        self.kinds = kinds
        self._events: deque[dict[str, Any]] = deque()
        self._dropped = 0
        self._is_ended = False
        self._arrived = trio.Event()

    def put(self, event: dict[str, Any]) -> None:
        if len(self._events) >= QUEUE_EVENTS:
            self._events.popleft()
            self._dropped += 1
        self._events.append(event)
        self._arrived.set()

    def end(self) -> None:
        """Nothing comes any more."""
        self._is_ended = True
        self._arrived.set()

    async def next(self) -> dict[str, Any] | None:
        """The oldest event that was not taken yet; waits for one. None: all were taken, and nothing comes any more."""
        while not self._events:
            if self._is_ended:
                return None
            self._arrived = trio.Event()
            await self._arrived.wait()
        event, dropped, self._dropped = self._events.popleft(), self._dropped, 0
        return {**event, 'dropped': dropped} if dropped else event


class EventHub:
    """See the module docstring. All methods belong to the trio thread and none waits."""

    def __init__(self, *, clock: Callable[[], float] = time.time, witness: Publish | None = None) -> None:
        """`witness` is told every event as it is published, and must not wait."""
        self._clock = clock
        self._witness = witness
        self._listeners: set[Subscription] = set()
        self._is_ended = False
        self._wanted = trio.Event()
        self._unheard = trio.Event()

    def publish(self, kind: str, **data: Any) -> None:
        """Tell all who listen to this kind. Costs next to nothing while nobody does."""
        if self._witness is not None:
            self._witness(kind, **data)
        for listener in self._listeners:
            if kind in listener.kinds:
                listener.put({**self.stamp(kind), **data})

    def stamp(self, kind: str) -> dict[str, Any]:
        """What every event begins with."""
        return {'kind': kind, 'time': round(self._clock(), 3)}

    def subscribe(self, kinds: Iterable[str] | None = None) -> Subscription:
        """From now on. None: every kind. Raises InvalidArgument for a kind that there is not, RemoteUnavailable (transient) when
        MAX_LISTENERS listen already."""
        if isinstance(kinds, str):
            raise InvalidArgument('kinds must be an array of strings')
        wanted = frozenset(KINDS if kinds is None else kinds)
        unknown = wanted - set(KINDS)
        if unknown:
            raise InvalidArgument(f'no events of kind {", ".join(sorted(map(str, unknown)))}; there are {", ".join(KINDS)}')
        if len(self._listeners) >= MAX_LISTENERS:
            raise RemoteUnavailable(f'{MAX_LISTENERS} clients watch this mount already; try again')
        listener = Subscription(wanted)
        self._listeners.add(listener)
        self._wanted.set()
        self._unheard = trio.Event()
        if self._is_ended:
            listener.end()
        return listener

    def leave(self, listener: Subscription) -> None:
        self._listeners.discard(listener)
        if not self._listeners:
            self._wanted = trio.Event()
            self._unheard.set()

    async def end(self, timeout: float) -> None:
        """Nothing is published any more; return when all listeners have taken what they still had, or after `timeout` seconds."""
        self._is_ended = True
        for listener in self._listeners:
            listener.end()
        with trio.move_on_after(timeout if self._listeners else 0):
            await self._unheard.wait()

    async def wanted(self) -> None:
        """Return while somebody listens: what is only looked up for events need not be looked up before."""
        await self._wanted.wait()
