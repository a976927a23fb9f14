"""The pool as whatever writes to the bucket sees it: a write that the store does not make atomic waits for this host's turn.

Owns which operations need a turn on which store, and what a write does that was refused for want of one, or because the store is not what it was
known to be: it is done again. It must not know how turns are taken (turns.py), nor how the store is asked (abilities.py).
"""
from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar, cast

import trio

from ctxfs.errors import Contradicted, CtxfsError, OutOfTurn, Unanswered
from ctxfs.storage.object_store import PARTS_ABOVE, Capabilities, Condition, Write
from ctxfs.sync.abilities import Abilities
from ctxfs.sync.abort_slots import AbortSlots
from ctxfs.sync.archive_protocol import CommitArchive
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.protocol import (
    Copy,
    DeleteDone,
    DeleteMany,
    ItemFailure,
    Operation,
    PutBytes,
    PutDone,
    PutFile,
    PutItem,
    PutMany,
    PutManyDone,
    describe,
)
from ctxfs.sync.turns import Turns

R = TypeVar('R')

_ATTEMPTS = 3
_NOTHING_SENT = (Contradicted.__name__, OutOfTurn.__name__)
_WRITES = (PutFile, PutBytes, Copy, DeleteMany, CommitArchive)


def needs_turn(known: Capabilities, operation: Operation[Any]) -> bool:
    if isinstance(operation, PutFile):
        return known.needs_turn(Write.PARTS if operation.size > PARTS_ABOVE else Write.PUT, operation.condition)
    if isinstance(operation, PutBytes):
        return known.needs_turn(Write.PUT, operation.condition)
    if isinstance(operation, Copy):
        return known.needs_turn(Write.COPY, operation.condition)
    if isinstance(operation, CommitArchive):
        return known.needs_turn(Write.PUT, Condition(absent=True))
    if isinstance(operation, DeleteMany):
        return known.deletes_need_turn and any(etag is not None for _, etag in operation.items)
    return False


class GuardedPool:
    """See the module docstring; `call` is TransferPool's."""

    def __init__(self, pool: TransferPool, *, abilities: Abilities, turns: Turns) -> None:
        self._pool = pool
        self._abilities = abilities
        self._turns = turns

    @property
    def slots(self) -> AbortSlots:
        return self._pool.slots

    async def call(self, operation: Operation[R], **options: Any) -> R:
        """Raises what TransferPool.call raises; RemoteUnavailable when another host's turn does not end."""
        if isinstance(operation, PutMany):
            return cast(R, await self._put_many(operation, options))
        if type(operation) not in _WRITES:
            return await self._pool.call(operation, **options)
        for attempt in range(1, _ATTEMPTS + 1):
            known = await self._abilities.get()
            try:
                return await self._call(operation, known, options)
            except Contradicted as error:
                await self._abilities.contradicted(error, used=known)
                if attempt == _ATTEMPTS:
                    raise
            except OutOfTurn:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError('not reached: the last attempt returns or raises')

    async def _put_many(self, operation: PutMany, options: dict[str, Any]) -> PutManyDone:
        """Together where no file needs a turn; else, and what was not sent that way, one by one."""
        known = await self._abilities.get()
        if any(needs_turn(known, file) for file in operation.files):
            items: list[PutItem | None] = [None] * len(operation.files)
        else:
            done = await self._pool.call(operation, **options)
            items = [None if _is_unsent(item) else item for item in done.items]
            for failure in [item.failure for item in done.items if item.failure is not None and item.failure.name == Contradicted.__name__][:1]:
                with suppress(Contradicted):        # it was asked just now: then each file finds out for itself
                    await self._abilities.contradicted(failure.error(), used=known)

        async def put_one(number: int) -> None:
            items[number] = await self._put_one(operation.files[number], options)
        async with trio.open_nursery() as nursery:
            for number, item in enumerate(items):
                if item is None:
                    nursery.start_soon(put_one, number)
        return PutManyDone(items=[item for item in items if item is not None])

    async def _put_one(self, file: PutFile, options: dict[str, Any]) -> PutItem:
        try:
            return PutItem(done=cast(PutDone, await self.call(file, **options)))
        except CtxfsError as error:
            name, message = describe(error)
            return PutItem(failure=ItemFailure(key=file.key, name=name, message=message), retry_after=getattr(error, 'retry_after', 0.0))

    async def _call(self, operation: Operation[R], known: Capabilities, options: dict[str, Any]) -> R:
        if not needs_turn(known, operation):
            return _checked(await self._pool.call(operation, **options))
        async with self._turns.turn(known, _keys_of(operation)):
            result = await self._pool.call(operation, **options)
            self._turns.note_strays(failure.key for failure in _failures_of(result) if failure.name == Unanswered.__name__)
            return _checked(result)


def _keys_of(operation: Operation[Any]) -> list[str]:
    return [key for key, _ in operation.items] if isinstance(operation, DeleteMany) else [operation.key]  # type: ignore[attr-defined]


def _failures_of(result: Any) -> list[ItemFailure]:
    """A batch fails item by item."""
    return result.failures if isinstance(result, DeleteDone) else []


def _is_unsent(item: PutItem) -> bool:
    return item.failure is not None and item.failure.name in _NOTHING_SENT


def _checked(result: R) -> R:
    for failure in _failures_of(result):
        if failure.name == Contradicted.__name__:
            raise failure.error()
    return result
