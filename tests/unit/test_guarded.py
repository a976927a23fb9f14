"""Writes that go through the guarded pool: what waits for a turn, what is done again, and how often the store is asked what it can do."""
from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from ctxfs.errors import Contradicted, OutOfTurn, RemoteUnavailable
from ctxfs.records import Attrs
from ctxfs.storage.object_store import PARTS_ABOVE, UNKNOWN, Capabilities, Condition
from ctxfs.sync.abilities import AGAIN_SECONDS, Abilities
from ctxfs.sync.guarded import GuardedPool
from ctxfs.sync.protocol import (
    Copy,
    DeleteDone,
    DeleteMany,
    Head,
    ItemFailure,
    Probe,
    ProbeDone,
    PutBytes,
    PutDone,
    PutFile,
    PutItem,
    PutMany,
    PutManyDone,
)

EVERYTHING = Capabilities(conditional_create=True, conditional_overwrite=True, conditional_delete=True, conditional_copy=True, batch_delete=True,
                          conditional_batch_delete=True, conditional_copy_source=True, conditional_parts=True)
OSS = msgspec.structs.replace(UNKNOWN, forbid_overwrite=True, forbid_overwrite_everywhere=True, batch_delete=True, is_limited=False)
ABSENT, OVER = Condition(absent=True), Condition(etag='"e"')
ATTRS = Attrs(mode=0o100644, uid=0, gid=0, mtime_ns=1, atime_ns=1, ctime_ns=1)


class Pool:
    """Answers Probe with what `can` says; what it raises instead of other answers is in `failures`."""

    def __init__(self, can: Capabilities) -> None:
        self.can = can
        self.asked: list[Any] = []
        self.learnt: list[dict[str, Any]] = []
        self.failures: list[Exception] = []
        self.result: Any = None

    async def call(self, operation: Any, **_: Any) -> Any:
        await trio.sleep(0.01)
        self.asked.append(operation)
        if isinstance(operation, Probe):
            return ProbeDone(capabilities=msgspec.structs.asdict(self.can))
        if self.failures:
            raise self.failures.pop(0)
        return self.result

    def learn(self, capabilities: dict[str, Any]) -> None:
        self.learnt.append(capabilities)

    def count(self, kind: type) -> int:
        return sum(isinstance(operation, kind) for operation in self.asked)


class Turns:
    def __init__(self) -> None:
        self.taken: list[list[str]] = []
        self.strays: list[str] = []

    @asynccontextmanager
    async def turn(self, known: Capabilities, keys: Iterable[str]) -> AsyncIterator[None]:
        self.taken.append(list(keys))
        yield

    def note_strays(self, keys: Iterable[str]) -> None:
        self.strays += keys


class Memory:
    def __init__(self) -> None:
        self.log: list[object] = []

    def recall(self) -> Capabilities | None:
        return None

    def keep(self, capabilities: Capabilities) -> None:
        self.log.append(capabilities)

    def forget(self) -> None:
        self.log.append('forgotten')


class World:
    def __init__(self, can: Capabilities, known: Capabilities | None = None) -> None:
        self.pool, self.turns, self.memory = Pool(can), Turns(), Memory()
        pool: Any = self.pool
        turns: Any = self.turns
        self.guarded = GuardedPool(pool, abilities=Abilities(pool, memory=self.memory, known=known), turns=turns)


def run(scenario: Callable[[], Any]) -> None:
    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def put(condition: Condition = OVER, size: int = 1) -> PutFile:
    return PutFile(key='k', path='/p', size=size, attrs=ATTRS, revision=1, condition=condition)


@pytest.mark.parametrize(('operation', 'has_turn'), [
    (put(ABSENT), False), (put(OVER), True), (put(Condition()), False), (put(ABSENT, PARTS_ABOVE + 1), False),
    (PutBytes(key='k', body=b'', condition=OVER), True), (PutBytes(key='k', body=b''), False), (Copy(source='s', key='k', condition=OVER), True),
    (Copy(source='s', key='k', condition=ABSENT), False), (DeleteMany(items=[('k', '"e"')]), True), (DeleteMany(items=[('k', None)]), False),
    (Head(keys=['k']), False)], ids=str)
def test_what_waits_for_a_turn_on_oss(operation: Any, has_turn: bool) -> None:
    """What replaces or removes a version; nothing does where the store sees to all of it."""
    async def scenario() -> None:
        for known, wanted in ((OSS, [['k']] if has_turn else []), (EVERYTHING, [])):
            world = World(known, known)
            world.pool.result = DeleteDone(failures=[])
            await world.guarded.call(operation)
            assert world.turns.taken == wanted
            assert world.pool.asked == [operation]
    run(scenario)


def test_of_a_batch_only_what_needs_a_turn_is_sent_one_by_one() -> None:
    """All of it where one file does; else together, and what was not sent that way once more by itself."""
    async def scenario() -> None:
        world = World(EVERYTHING, EVERYTHING)
        batch = PutMany(files=[put(ABSENT), put(OVER), put(ABSENT)], parallel=2)
        done = PutItem(done=PutDone(etag='e', size=1, sha256=''))
        refused = [PutItem(failure=ItemFailure(key='k', name=name, message='no')) for name in ('OutOfTurn', 'RemoteChanged')]
        world.pool.result = PutManyDone(items=[done, *refused])
        await world.guarded.call(batch)
        assert world.pool.asked == [batch, batch.files[1]] and not world.turns.taken
        world = World(OSS, OSS)
        world.pool.result = done.done
        answer = await world.guarded.call(batch)
        assert world.pool.count(PutFile) == 3 and world.pool.count(PutMany) == 0 and world.turns.taken == [['k']]
        assert [item.done for item in answer.items] == [done.done] * 3
    run(scenario)


def test_a_contradiction_within_a_batch_is_asked_about_before_anything_is_sent_again() -> None:
    """The workers have forgotten what they knew: what is sent by what the daemon knew would have no turn."""
    async def scenario() -> None:
        world = World(OSS, EVERYTHING)
        done = PutDone(etag='e', size=1, sha256='')
        contradicted = PutItem(failure=ItemFailure(key='k', name='Contradicted', message='501'))
        results: list[Any] = [PutManyDone(items=[contradicted, PutItem(done=done), contradicted]), done, done]
        call = world.pool.call

        async def answer(operation: Any, **options: Any) -> Any:
            world.pool.result = results.pop(0) if not isinstance(operation, Probe) else None
            return await call(operation, **options)
        world.pool.call = answer  # type: ignore[method-assign]
        answered = await world.guarded.call(PutMany(files=[put(OVER), put(ABSENT), put(OVER)], parallel=2))
        assert [item.done for item in answered.items] == [done] * 3
        assert (world.pool.count(Probe), world.pool.count(PutFile), len(world.turns.taken)) == (1, 2, 2)
    run(scenario)


def test_many_writers_ask_once() -> None:
    """Also when nothing is known yet; all workers are told, and the answer is kept."""
    async def scenario() -> None:
        world = World(OSS)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(world.guarded.call, put())
        assert (world.pool.count(Probe), world.pool.count(PutFile)) == (1, 20)
        assert world.pool.learnt == [msgspec.structs.asdict(OSS)]
        assert world.memory.log == [OSS]
    run(scenario)


def test_a_contradiction_is_asked_about_once_and_the_write_is_done_again() -> None:
    """Twenty writers are told at once that the store refuses what it could: one question, and each write is done by the new answer."""
    async def scenario() -> None:
        world = World(OSS, EVERYTHING)
        world.pool.failures = [Contradicted('501') for _ in range(20)]
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(world.guarded.call, put())
        assert (world.pool.count(Probe), world.pool.count(PutFile), len(world.turns.taken)) == (1, 40, 20)
        assert world.memory.log == ['forgotten', OSS]
    run(scenario)


def test_a_store_that_contradicts_itself_again_and_again_is_left_alone_for_a_while() -> None:
    """The write fails as it would in an outage, and is tried again later."""
    async def scenario() -> None:
        world = World(EVERYTHING, EVERYTHING)
        world.pool.failures = [Contradicted('501') for _ in range(9)]
        for _ in range(3):
            with pytest.raises(Contradicted) as caught:
                await world.guarded.call(put())
            assert caught.value.transient
        assert world.pool.count(Probe) == 1
        await trio.sleep(AGAIN_SECONDS)
        world.pool.failures = [Contradicted('501')]
        await world.guarded.call(put())
        assert world.pool.count(Probe) == 2
    run(scenario)


def test_items_of_a_batch_say_the_same() -> None:
    """A batch that is refused as such is deleted again; what was sent without an answer keeps its keys."""
    async def scenario() -> None:
        world = World(OSS, EVERYTHING)
        world.pool.result = DeleteDone(failures=[ItemFailure(key='a', name='Contradicted', message='501')])
        with pytest.raises(Contradicted):
            await world.guarded.call(DeleteMany(items=[('a', '"e"')]))
        assert world.pool.count(Probe) == 1
        world.pool.result = DeleteDone(failures=[ItemFailure(key='a', name='Unanswered', message='lost')])
        assert (await world.guarded.call(DeleteMany(items=[('a', '"e"'), ('b', '"f"')]))).failures
        assert world.turns.strays == ['a']
    run(scenario)


def test_a_turn_that_ran_out_is_taken_again() -> None:
    """A few times; then the write fails as it would in an outage."""
    async def scenario() -> None:
        world = World(OSS, OSS)
        world.pool.failures = [OutOfTurn('over')]
        await world.guarded.call(put())
        assert len(world.turns.taken) == 2
        world.pool.failures = [OutOfTurn('over') for _ in range(3)]
        with pytest.raises(RemoteUnavailable):
            await world.guarded.call(put())
    run(scenario)


def test_without_the_right_to_write_it_is_asked_again_after_a_while() -> None:
    """Rights can be given."""
    async def scenario() -> None:
        world = World(UNKNOWN)
        for _ in range(3):
            await world.guarded.call(put(Condition()))
        assert world.pool.count(Probe) == 1
        await trio.sleep(AGAIN_SECONDS)
        world.pool.can = EVERYTHING
        await world.guarded.call(put(OVER))
        assert (world.pool.count(Probe), world.turns.taken) == (2, [])
    run(scenario)
