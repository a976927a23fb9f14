"""Turns between hosts, in virtual time, on a store that delays, loses and repeats as networks do: no write ever lands on another version than the one
that was looked at before it, whoever crashes or is suspended meanwhile.

Owns a model of the store's side (one register for each key, a clock, late arrivals) and hosts that write as the workers do. The real ones are
in tests/mount/test_providers.py. CTXFS_FUZZ_EXAMPLES: how many schedules for each kind of store.
"""
from __future__ import annotations

import itertools
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import msgspec
import pytest
import trio
import trio.testing

from ctxfs.errors import Contradicted, CtxfsError, OutOfTurn, RemoteChanged, RemoteUnavailable, Unanswered
from ctxfs.records import ListPage, ObjectInfo, Stamp
from ctxfs.storage.object_store import UNKNOWN, Capabilities
from ctxfs.storage.s3_guard import TURN_MARGIN
from ctxfs.sync import turns as module
from ctxfs.sync.protocol import DeleteMany, Head, HeadItem, ItemFailure, ListPages, PutBytes, PutDone
from ctxfs.sync.turns import GRACE_SECONDS, LEASE_SECONDS, LONGEST_SECONDS, STRAY_SECONDS, Turns

EXAMPLES = int(os.environ.get('CTXFS_FUZZ_EXAMPLES', '4'))
KINDS = {
    'creates': msgspec.structs.replace(UNKNOWN, conditional_create=True, is_limited=False),
    'forbids': msgspec.structs.replace(UNKNOWN, forbid_overwrite=True, is_limited=False),
    'neither': msgspec.structs.replace(UNKNOWN, is_limited=False),
}
PREFIX = 'contexts/c/'


class Entry(NamedTuple):
    body: bytes
    stamp: Stamp
    written_at: float


class Weather:
    """What happens to requests: nothing by default."""

    def __init__(self, seed: int = 0, *, trouble: float = 0.0) -> None:
        self.random = random.Random(seed)
        self._trouble = trouble

    def delay(self) -> float:
        return self.random.uniform(1.0, 8.0) if self.happens(0.3) else self.random.uniform(0.01, 0.3)

    def happens(self, factor: float) -> bool:
        return self.random.random() < self._trouble * factor


class Bucket:
    """The store: `objects` by key; `writes` of the users' keys, with the version that each replaced and the one its writer had seen."""

    def __init__(self, weather: Weather, *, is_versioned: bool = False, has_clock: bool = True) -> None:
        self.weather = weather
        self.is_versioned = is_versioned
        self.has_clock = has_clock
        self.objects: dict[str, Entry] = {}
        self.overwritten: list[str] = []
        self.requests: list[str] = []
        self.nursery: trio.Nursery
        self._numbers = itertools.count(1)

    async def ask(self, what: str, act: Callable[[], Any], *, late: float = STRAY_SECONDS * 0.9) -> Any:
        """A request on its way there, done, and its answer on its way back. It may arrive although nobody waits any more."""
        self.requests.append(what)
        await trio.sleep(self.weather.delay())
        if self.weather.happens(0.2):
            raise Unanswered('lost on its way')
        if self.weather.happens(0.2):
            self.nursery.start_soon(self._arrive_late, act, self.weather.random.uniform(0.0, late))
            raise Unanswered('given up, and it arrives all the same')
        result = act()
        if self.weather.happens(0.2):
            raise Unanswered('the answer is lost')
        await trio.sleep(self.weather.delay())
        return result

    async def _arrive_late(self, act: Callable[[], Any], delay: float) -> None:
        await trio.sleep(delay)
        with suppress(CtxfsError):
            act()

    async def write(self, key: str, host: Host) -> None:
        """Look, and write over what was seen, as the store does within a turn (s3_guard.py)."""
        seen = await self.ask('HEAD', lambda: self.objects.get(key))
        number = next(self._numbers)

        def put() -> None:
            if self.objects.get(key) != seen:
                self.overwritten.append(f'{host.name} wrote {number} over a version that it had not seen, at {trio.current_time():.1f}')
            self.objects[key] = Entry(b'%d' % number, Stamp(), trio.current_time())
        with trio.move_on_after(host.left(key)) as scope:
            await self.ask('PUT', put)
        if scope.cancelled_caught:
            raise Unanswered('no answer in time')

    def put(self, op: PutBytes, host: str) -> PutDone:
        found = self.objects.get(op.key)
        is_recovered = False
        if op.condition.absent and found is not None and not self.is_versioned:
            if found.body != op.body:
                raise RemoteChanged(op.key)
            is_recovered = True
        else:
            self.objects[op.key] = Entry(op.body, Stamp(sha256=_sha(op.body), host=host, revision=op.revision), trio.current_time())
        return PutDone(etag='"e"', size=len(op.body), sha256='', is_recovered=is_recovered)

    def head(self, key: str) -> HeadItem:
        found = self.objects.get(key)
        if found is None:
            return HeadItem(key=key, failure=ItemFailure(key=key, name='NotFound', message='no'))
        return HeadItem(key=key, stamp=found.stamp)

    def list(self, prefix: str) -> ListPage:
        def ns(seconds: float) -> int:      # whole seconds, as HTTP dates have
            return int(1_800_000_000 + seconds) * 10**9
        objects = [ObjectInfo(key=key, size=1, etag='"e"', mtime_ns=ns(self.objects[key].written_at))
                   for key in sorted(self.objects) if key.startswith(prefix)]
        return ListPage(objects=objects, prefixes=[], next_token=None, now_ns=ns(trio.current_time()) if self.has_clock else 0)

    def remove(self, keys: list[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)


def _sha(body: bytes) -> str:
    import hashlib
    return hashlib.sha256(body).hexdigest()


class Host:
    """A host's turns, the pool that they use, and what a tree database would remember."""

    def __init__(self, name: str, bucket: Bucket, nursery: trio.Nursery, notes: dict[str, Any] | None = None) -> None:
        self.name = name
        self.bucket = bucket
        self.notes = {} if notes is None else notes
        self.until = 0.0
        self.nursery = nursery
        self._offset = bucket.weather.random.uniform(0, 1e6)
        pool: Any = self
        self.turns = Turns(pool, prefix=PREFIX, host=name, tell=self._tell, spawn=nursery.start_soon, notes=self, clock=self.clock)

    def clock(self) -> float:
        return trio.current_time() + self._offset

    def _tell(self, until: float) -> None:
        self.until = until

    def left(self, key: str) -> float:
        left = self.until - self.clock()
        if left < TURN_MARGIN:
            raise OutOfTurn(key)
        return left

    def meta(self, name: str) -> Any:
        return self.notes.get(name)

    def set_meta(self, name: str, value: Any) -> None:
        self.notes[name] = value

    async def call(self, op: Any, **_: Any) -> Any:
        if isinstance(op, PutBytes):
            return await self._put(op)
        if isinstance(op, Head):
            return [await self.bucket.ask('HEAD', lambda: self.bucket.head(op.keys[0]))]
        assert isinstance(op, DeleteMany)
        return await self.bucket.ask('POST', lambda: self.bucket.remove([key for key, _ in op.items]))

    async def _put(self, op: PutBytes) -> PutDone:
        """As worker_ops_put.put_bytes: a lost answer is asked for once."""
        try:
            return await self.bucket.ask('PUT', lambda: self.bucket.put(op, self.name))
        except RemoteUnavailable:
            item = await self.bucket.ask('HEAD', lambda: self.bucket.objects.get(op.key))
            if item is None or item.body != op.body:
                raise
            return PutDone(etag='"e"', size=1, sha256='', is_recovered=True)

    @asynccontextmanager
    async def stream(self, op: ListPages, **_: Any) -> AsyncIterator[AsyncIterator[ListPage]]:
        async def pages() -> AsyncIterator[ListPage]:
            yield await self.bucket.ask('LIST', lambda: self.bucket.list(op.prefix))
        yield pages()

    async def write(self, key: str, known: Capabilities) -> None:
        async with self.turns.turn(known, [key]):
            self.left(key)
            await self.bucket.write(key, self)


def run(scenario: Callable[[trio.Nursery], Awaitable[object]]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await scenario(nursery)
            nursery.cancel_scope.cancel()
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def flush(host: Host, known: Capabilities, *, writes: int, keys: int = 2) -> int:
    """A flush as the engine does it, tried until everything is written; how many writes failed."""
    left, failures = writes, 0
    while left:
        for _ in range(min(left, host.bucket.weather.random.randint(1, 4))):
            try:
                await host.write(f'k{host.bucket.weather.random.randrange(keys)}', known)
                left -= 1
            except (OutOfTurn, RemoteUnavailable):
                failures += 1
        await host.turns.end()
        await trio.sleep(host.bucket.weather.random.uniform(0.1, 20.0))
    return failures


# --- what always holds ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('has_clock', [True, False], ids=['clock', 'no clock'])
def test_no_write_lands_on_a_version_that_its_writer_had_not_seen(kind: str, has_clock: bool) -> None:
    """Three hosts, two keys; requests are slow, lost, or arrive late; a host crashes in the middle of anything and comes back."""
    known = KINDS[kind]

    async def life(bucket: Bucket, name: str) -> None:
        notes: dict[str, Any] = {}
        for writes in (4, 3, 3):
            async with trio.open_nursery() as nursery:
                host = Host(name, bucket, nursery, notes)
                with trio.move_on_after(bucket.weather.random.uniform(5, 400)):
                    await flush(host, known, writes=writes)
                nursery.cancel_scope.cancel()
            await trio.sleep(bucket.weather.random.uniform(0.1, 30.0))      # what it had sent may still arrive

    async def scenario(nursery: trio.Nursery, bucket: Bucket) -> None:
        bucket.nursery = nursery
        async with trio.open_nursery() as hosts:
            for name in ('one', 'two', 'three'):
                hosts.start_soon(life, bucket, name)
    for seed in range(EXAMPLES):
        bucket = Bucket(Weather(seed, trouble=0.15), has_clock=has_clock)
        random.seed(seed)
        run(lambda nursery: scenario(nursery, bucket))  # noqa: B023
        assert bucket.overwritten == [], f'seed {seed}'
        assert any(key.startswith('k') for key in bucket.objects)


@pytest.mark.parametrize('kind', KINDS)
def test_without_turns_it_would_not_hold(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same schedules find an overwrite when a host that sees another's turn takes its own all the same."""
    monkeypatch.setattr(module, '_is_open', lambda view: True)
    found: list[str] = []

    async def scenario(nursery: trio.Nursery, bucket: Bucket) -> None:
        bucket.nursery = nursery
        async with trio.open_nursery() as hosts:
            for name in ('one', 'two', 'three'):
                hosts.start_soon(lambda name=name: flush(Host(name, bucket, nursery), KINDS[kind], writes=6))  # type: ignore[misc]
    for seed in range(100):     # trio runs tasks in an order of its own: of 300 schedules of [neither] 86 find one
        bucket = Bucket(Weather(seed, trouble=0.1))
        run(lambda nursery: scenario(nursery, bucket))  # noqa: B023
        found += bucket.overwritten
        if found:
            return
    assert found


# --- what a turn costs, and how it ends ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('kind', 'requests'), [('creates', ['LIST', 'PUT', 'LIST', 'HEAD', 'PUT', 'PUT']),
                                                ('forbids', ['LIST', 'PUT', 'PUT', 'LIST', 'HEAD', 'PUT', 'PUT']),
                                                ('neither', ['LIST', 'PUT', 'HEAD', 'LIST', 'HEAD', 'PUT', 'PUT'])])
def test_a_turn_costs_a_few_requests(kind: str, requests: list[str]) -> None:
    """However many files are written in it; nothing where nothing is written."""
    async def scenario(nursery: trio.Nursery) -> None:
        bucket = Bucket(Weather())
        bucket.nursery = nursery
        host = Host('one', bucket, nursery)
        await host.turns.end()
        assert bucket.requests == []
        await host.write('k', KINDS[kind])
        await host.turns.end()
        assert bucket.requests == requests
        for _ in range(5):
            await host.write('k', KINDS[kind])
        await host.turns.end()
        assert len(bucket.requests) == 2 * len(requests) + 2 * 4
        assert host.until == 0
    run(scenario)


def test_a_turn_is_over_for_the_next_host_as_soon_as_it_is_given_up() -> None:
    """It waits while the other one writes, and no longer; the old objects are removed when they are many."""
    async def scenario(nursery: trio.Nursery) -> None:
        bucket = Bucket(Weather())
        bucket.nursery = nursery
        one, two = Host('one', bucket, nursery), Host('two', bucket, nursery)
        done = trio.Event()

        async def write_and_end() -> None:
            await two.write('k', KINDS['creates'])
            await two.turns.end()
            done.set()
        async with one.turns.turn(KINDS['creates'], ['x']):
            nursery.start_soon(write_and_end)
            await trio.sleep(10)
            assert 'k' not in bucket.objects
        await one.turns.end()
        began = trio.current_time()
        await done.wait()
        assert trio.current_time() - began < 5
        for _ in range(40):
            await one.write('k', KINDS['creates'])
            await one.turns.end()
        assert len([key for key in bucket.objects if '/turn/' in key]) < 25
    run(scenario)


def test_who_waits_too_long_is_told_whose_turn_it_is() -> None:
    """After twenty seconds; what comes right after it is not kept waiting for as long."""
    async def scenario(nursery: trio.Nursery) -> None:
        bucket = Bucket(Weather())
        bucket.nursery = nursery
        one, two = Host('0123456789abcdef', bucket, nursery), Host('two', bucket, nursery)
        async with one.turns.turn(KINDS['creates'], ['x']):
            for least, most in ((20, 25), (0, 1)):
                began = trio.current_time()
                with pytest.raises(RemoteUnavailable, match='host 01234567 '):
                    await two.write('k', KINDS['creates'])
                assert least <= trio.current_time() - began <= most
    run(scenario)


def test_a_long_turn_is_renewed_and_lets_others_in() -> None:
    """It does not end while something is being written; after that others get a chance, although there is more to write."""
    async def scenario(nursery: trio.Nursery) -> None:
        bucket = Bucket(Weather())
        bucket.nursery = nursery
        one, two = Host('one', bucket, nursery), Host('two', bucket, nursery)
        async with one.turns.turn(KINDS['creates'], ['x']):
            await trio.sleep(3 * LEASE_SECONDS)
            assert one.until - one.clock() > TURN_MARGIN
        done: list[float] = []

        async def other() -> None:
            await two.write('k', KINDS['creates'])
            await two.turns.end()
            done.append(trio.current_time())
        nursery.start_soon(other)
        began = trio.current_time()
        while not done:
            await one.write('j', KINDS['creates'])
        assert done[0] - began < LONGEST_SECONDS / 2
    run(scenario)


@pytest.mark.parametrize('kind', KINDS)
def test_the_turn_of_a_host_that_is_gone_runs_out(kind: str) -> None:
    """By the store's clock, whatever this host's says; not before, and not long after."""
    async def scenario(nursery: trio.Nursery) -> None:
        bucket = Bucket(Weather())
        bucket.nursery = nursery
        async with trio.open_nursery() as gone:
            one = Host('one', bucket, gone)
            await one.write('k', KINDS[kind])
            gone.cancel_scope.cancel()
        crashed_at = trio.current_time()
        two = Host('two', bucket, nursery)
        while True:
            with suppress(RemoteUnavailable):
                await two.write('k', KINDS[kind])
                break
            await trio.sleep(1)
        assert LEASE_SECONDS < trio.current_time() - crashed_at < LEASE_SECONDS + GRACE_SECONDS + 10
    run(scenario)


def test_the_next_daemon_goes_on_with_the_turn_of_one_that_crashed() -> None:
    """It finds its own nonce and need not wait for the end of its turn, only for what the dead one had sent and may still be done."""
    async def scenario(nursery: trio.Nursery) -> None:
        bucket = Bucket(Weather())
        bucket.nursery = nursery
        async with trio.open_nursery() as gone:
            one = Host('one', bucket, gone)
            await one.write('k', KINDS['creates'])
            gone.cancel_scope.cancel()
        again = Host('one', bucket, nursery, one.notes)
        began = trio.current_time()
        await again.write('k', KINDS['creates'])
        assert STRAY_SECONDS <= trio.current_time() - began < STRAY_SECONDS + 5
        await again.turns.end()
        assert [key for key in bucket.objects if key.endswith('-free')]
        after = Host('one', bucket, nursery, one.notes)     # the last one ended as it should
        began = trio.current_time()
        await after.write('k', KINDS['creates'])
        assert trio.current_time() - began < 5
    run(scenario)


def test_a_key_with_an_answer_outstanding_is_not_written_again_at_once() -> None:
    """What was sent first would land on what was sent next; other keys do not wait. The turn is not given up meanwhile."""
    async def scenario(nursery: trio.Nursery) -> None:
        bucket = Bucket(Weather())
        bucket.nursery = nursery
        one = Host('one', bucket, nursery)
        with pytest.raises(Unanswered):
            async with one.turns.turn(KINDS['creates'], ['k']):
                raise Unanswered('nobody knows')
        await one.turns.end()
        assert not any(key.endswith('-free') for key in bucket.objects)
        began = trio.current_time()
        await one.write('j', KINDS['creates'])
        assert trio.current_time() - began < 5
        await one.write('k', KINDS['creates'])
        assert STRAY_SECONDS < trio.current_time() - began + 5 < STRAY_SECONDS + 10
        await one.turns.end()
        assert any(key.endswith('-free') for key in bucket.objects)
    run(scenario)


def test_of_lost_answers_nothing_is_kept_for_long() -> None:
    """A network that loses some for months, of keys that are written once each: what is remembered is bounded by what is recent."""
    async def scenario(nursery: trio.Nursery) -> None:
        one = Host('one', Bucket(Weather()), nursery)
        for number in range(500):
            one.turns.note_strays([f'{number}-{part}' for part in range(10)])
            await trio.sleep(1)
            assert len(one.turns._strays) <= 10 * (STRAY_SECONDS + 1)
    run(scenario)


def test_a_turn_that_cannot_be_renewed_ends_before_others_may_take_it() -> None:
    """The store does not answer any more: what is not sent by the end of the turn is refused."""
    async def scenario(nursery: trio.Nursery) -> None:
        bucket = Bucket(Weather())
        bucket.nursery = nursery
        one = Host('one', bucket, nursery)
        with pytest.raises(OutOfTurn):
            async with one.turns.turn(KINDS['creates'], ['x']):
                bucket.weather._trouble = 1e9       # everything is lost
                await trio.sleep(LEASE_SECONDS - TURN_MARGIN + 1)
                one.left('k')
        await trio.sleep(60)
        await one.turns.end()       # nothing to give up: no request, no wait
    run(scenario)


def test_a_store_that_lets_two_create_the_same_is_found_out() -> None:
    """x-oss-forbid-overwrite in a bucket with versions: nobody gets the turn, and the store is to be asked anew."""
    async def scenario(nursery: trio.Nursery) -> None:
        bucket = Bucket(Weather(), is_versioned=True)
        bucket.nursery = nursery
        one = Host('one', bucket, nursery)
        with pytest.raises(Contradicted, match='versioning'):
            await one.write('k', KINDS['forbids'])
        assert 'k' not in bucket.objects
        began = trio.current_time()
        await one.write('k', KINDS['neither'])      # as it is by then known to be
        assert trio.current_time() - began < 10
    run(scenario)


def test_whoever_is_suspended_in_its_turn_finds_it_over() -> None:
    """The clock goes on while a host sleeps; what it knew before means nothing after."""
    async def scenario(nursery: trio.Nursery) -> None:
        bucket = Bucket(Weather())
        bucket.nursery = nursery
        one, two = Host('one', bucket, nursery), Host('two', bucket, nursery)
        await one.write('k', KINDS['creates'])
        one._offset += 3600
        with pytest.raises(OutOfTurn):
            one.left('k')
        bucket.objects = {key: entry._replace(written_at=entry.written_at - 3600) for key, entry in bucket.objects.items()}
        await two.write('k', KINDS['creates'])
        await two.turns.end()
        await one.write('k', KINDS['creates'])
        assert bucket.overwritten == []
    run(scenario)
