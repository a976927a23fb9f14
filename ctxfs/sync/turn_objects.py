"""The objects by which hosts take turns: what is in the bucket below `.ctxfs/turn/`, and the requests for it.

Owns their names and bodies. It must not know when a turn is taken, kept or given up, nor how long one lasts (turns.py).

    .ctxfs/turn/G        generation n, named by 10^12-1-n so that the newest is listed first: {"host", "nonce", "beat"}, by whoever made it
    .ctxfs/turn/G-free   it is given up
Generations are never used again, and the newest is never removed, so a late request of a host that stood still makes nothing newer.
"""
from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from ctxfs.errors import CtxfsError, NotFound
from ctxfs.records import RESERVED_DIR, ListPage
from ctxfs.storage.object_store import ALWAYS, Condition
from ctxfs.sync.pool import Priority, TransferPool
from ctxfs.sync.protocol import DeleteMany, Head, HeadItem, ListPages, PutBytes, PutDone

TURN_DIR = RESERVED_DIR + 'turn/'
_FREE = '-free'
_LAST = 10**12 - 1
_NAME = re.compile(r'([0-9]{12})(-free)?')


class View(NamedTuple):
    """The newest generation (0: there is none), as of `seen_at`. `age`: seconds since it was written; `old`: keys of those before it."""
    generation: int
    is_free: bool
    age: float
    seen_at: float
    old: list[str]


class Mine(NamedTuple):
    """A generation that this host makes, and how it is known again."""
    generation: int
    nonce: str


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    """`beat` counts the PUTs: no two have the same content, so that a lost one is not taken for one that arrived."""
    host: str
    nonce: str
    beat: int


class TurnObjects:
    """See the module docstring. `prefix`: the context's; `clock`: of this host, in seconds. Raises what the store raises."""

    def __init__(self, pool: TransferPool, *, prefix: str, host: str, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._directory = prefix + TURN_DIR
        self._host = host
        self._clock = clock
        #: (generation, mtime) and when it was first seen, for a store that does not say the time
        self._seen: tuple[tuple[int, int], float] = ((0, 0), 0.0)

    async def look(self) -> View:
        """One LIST."""
        seen_at, now_ns = self._clock(), 0
        names: dict[str, int] = {}
        async with self._pool.stream(ListPages(prefix=self._directory), priority=Priority.INTERACTIVE) as pages:
            page: ListPage
            async for page in pages:
                names.update((info.key[len(self._directory):], info.mtime_ns) for info in page.objects)
                now_ns = now_ns or page.now_ns
        newest = max((_LAST - int(name) for name in names if (found := _NAME.fullmatch(name)) and not found[2]), default=0)
        if not newest:
            return View(0, False, 0.0, seen_at, [])
        own = _name(newest), _name(newest) + _FREE
        mtime_ns = names[own[0]]
        age = (now_ns - mtime_ns) / 1e9 if now_ns else self._seen_for(newest, mtime_ns)
        return View(newest, own[1] in names, age, seen_at, [self._directory + name for name in names if name not in own])

    def _seen_for(self, generation: int, mtime_ns: int) -> float:
        if self._seen[0] != (generation, mtime_ns):
            self._seen = (generation, mtime_ns), self._clock()
        return self._clock() - self._seen[1]

    async def put(self, mine: Mine, beat: int, *, only_new: bool = False) -> PutDone:
        """Raises RemoteChanged where `only_new` finds another's; `is_recovered`: it was there, and is ours."""
        done: PutDone = await self._ask(self._operation(mine, beat, condition=Condition(absent=True, is_claim=True) if only_new else ALWAYS))
        return done

    async def free(self, mine: Mine) -> None:
        await self._ask(self._operation(mine, 0, suffix=_FREE))

    async def remove(self, keys: list[str]) -> None:
        await self._ask(DeleteMany(items=[(key, None) for key in keys]))

    async def beat_of(self, mine: Mine) -> int | None:
        """The last beat of the generation, if what is there is ours."""
        item = await self._head(mine.generation)
        stamp = item.stamp if item is not None else None
        if stamp is None or stamp.sha256 != hashlib.sha256(self._body(mine, stamp.revision)).hexdigest():
            return None
        return stamp.revision

    async def owner(self, generation: int) -> str:
        """The host that made it, as far as that can be told: for people."""
        try:
            item = await self._head(generation)
        except CtxfsError:
            return ''
        return item.stamp.host if item is not None and item.stamp is not None else ''

    async def _head(self, generation: int) -> HeadItem | None:
        item, = await self._ask(Head(keys=[self._directory + _name(generation)]))
        found: HeadItem = item
        if found.failure is None:
            return found
        error = found.failure.error()
        if isinstance(error, NotFound):
            return None
        raise error

    async def _ask(self, operation: Any) -> Any:
        """Ahead of all transfers: they are what the turn is for."""
        return await self._pool.call(operation, priority=Priority.INTERACTIVE)

    def _operation(self, mine: Mine, beat: int, *, suffix: str = '', condition: Condition = ALWAYS) -> PutBytes:
        return PutBytes(key=self._directory + _name(mine.generation) + suffix, body=self._body(mine, beat), revision=beat, condition=condition)

    def _body(self, mine: Mine, beat: int) -> bytes:
        return msgspec.json.encode(_Body(host=self._host, nonce=mine.nonce, beat=beat))


def _name(generation: int) -> str:
    return f'{_LAST - generation:012d}'
