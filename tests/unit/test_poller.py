"""When a mount looks for remote changes: the clock, pauses, policies, outages, and long listings that make way for uploads.

Owns the poller's decisions, on a clock that jumps. What a look does is tested with real buckets (tests/mount).
"""
from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from ctxfs.errors import CtxfsError, RemoteUnavailable
from ctxfs.policy import DownloadPolicy, SyncPolicy
from ctxfs.rules import Rules
from ctxfs.sync.poller import LIST_SECONDS, OUTAGE_SECONDS, Poller

EVERY = 10.0


class Changes:
    """Notes when it is asked for what; `error` is raised by every look."""

    def __init__(self) -> None:
        self.listed_objects = 10
        self.since = time.time()
        self.looks: list[float] = []
        self.listings: list[tuple[str, float]] = []
        self.finished = 0
        self.is_forgotten = False
        self.error: CtxfsError | None = None
        self.on_look: Callable[[], None] = lambda: None

    def listed_at(self) -> float:
        return self.since

    async def look(self) -> None:
        await trio.lowlevel.checkpoint()
        self.looks.append(trio.current_time())
        self.on_look()
        if self.error is not None:
            raise self.error

    async def read_index(self) -> None:
        await trio.lowlevel.checkpoint()

    async def list_all(self, after: str, may_go_on: Callable[[], bool]) -> str | None:
        """Three pages, a second each."""
        for page in range(int(after or '0'), 3):
            await trio.sleep(1)
            self.listings.append((after, trio.current_time()))
            if page < 2 and not may_go_on():
                return str(page + 1)
        self.is_forgotten = False
        return None

    async def finish(self, *, listed: str | None = None) -> None:
        assert listed == ''
        self.finished += 1


class Remote:
    def __init__(self) -> None:
        self.changes: Any = Changes()
        self.error: CtxfsError | None = None
        self.polls = 0
        self.last_poll = 0.0

    async def wait_complete(self) -> None:
        await trio.lowlevel.checkpoint()


class Engine:
    is_paused = False

    def __init__(self) -> None:
        self.lock = trio.Lock()

    async def alone(self, job: Callable[[], Awaitable[None]]) -> None:
        async with self.lock:
            await job()

    @property
    def is_awaited(self) -> bool:
        return self.lock.statistics().tasks_waiting > 0


class Bench:
    """A poller on the fakes, run for some time."""

    def __init__(self) -> None:
        self.remote, self.engine, self.rules = Remote(), Engine(), Rules(SyncPolicy())
        self.changes: Changes = self.remote.changes
        self.counts: Counter[str] = Counter()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.poller = Poller(self.remote, self.engine, self.rules, every=EVERY, counts=self.counts,
                             publish=lambda kind, **data: self.events.append((kind, data)))

    def run(self, seconds: float, *beside: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.poller.run)
                    for task in beside:
                        nursery.start_soon(task)

        trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_one_look_in_every_period(bench: Bench) -> None:
    """Nothing else, and the status knows how many."""
    bench.run(55)
    assert bench.changes.looks == [10, 20, 30, 40, 50]
    assert bench.remote.polls == 5 and bench.remote.last_poll > 0
    assert bench.changes.listings == [] and bench.events == []


def test_no_look_while_paused_and_none_without_automatic_download(bench: Bench) -> None:
    """Both are asked at each time, so a resumed mount and a replaced policy count at once."""
    async def change() -> None:
        bench.engine.is_paused = True
        await trio.sleep(25)
        bench.engine.is_paused = False
        await trio.sleep(20)
        bench.rules.replace(msgspec.structs.replace(SyncPolicy(), download_policy=DownloadPolicy(auto_download=False)))

    bench.run(100, change)
    assert bench.changes.looks == [30, 40]


def test_a_look_waits_for_an_upload(bench: Bench) -> None:
    """It begins when the upload ended."""
    async def upload() -> None:
        async with bench.engine.lock:
            await trio.sleep(17.5)

    bench.run(20, upload)
    assert bench.changes.looks == [17.5]


def test_an_outage_is_asked_less_and_less_and_logged_twice(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The cause is in the status meanwhile; afterwards everything is as before."""
    caplog.set_level(logging.INFO, 'ctxfs')
    bench.changes.error = RemoteUnavailable('the endpoint does not answer')
    bench.run(2000)
    waits = [after - before for before, after in zip([0, *bench.changes.looks], bench.changes.looks, strict=False)]
    assert waits == [10, 20, 40, 80, 160, *[OUTAGE_SECONDS] * (len(waits) - 5)] and len(waits) > 7
    assert str(bench.remote.error) == 'the endpoint does not answer'
    assert [record.levelname for record in caplog.records] == ['INFO']
    bench.changes.error = None
    bench.run(OUTAGE_SECONDS + 2.5 * EVERY)
    assert bench.remote.error is None
    assert len(caplog.records) == 2 and 'again' in caplog.records[1].message
    assert bench.changes.looks[-3:] == [OUTAGE_SECONDS, OUTAGE_SECONDS + EVERY, OUTAGE_SECONDS + 2 * EVERY]


def test_a_defect_is_logged_and_the_next_look_comes(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Not even an error that nobody foresaw ends the looks."""
    def fail_once() -> None:
        if len(bench.changes.looks) == 1:
            raise KeyError('unforeseen')

    bench.changes.on_look = fail_once
    bench.run(45)
    assert bench.changes.looks == [10, 30, 40]
    assert 'unforeseen' in caplog.text


def test_what_came_is_told(bench: Bench) -> None:
    """One event with the counts of one look."""
    bench.changes.on_look = lambda: bench.counts.update(created=2, removed=1) if len(bench.changes.looks) == 1 else None
    bench.run(35)
    assert bench.events == [('remote-change', {'created': 2, 'changed': 0, 'removed': 1})]


def test_a_large_context_is_listed_now_and_then(bench: Bench) -> None:
    """A look at the index sees ctxfs's own changes only: every LIST_SECONDS the listing takes its place."""
    bench.changes.listed_objects = 5000
    bench.run(LIST_SECONDS + 2 * EVERY)
    assert [at for _, at in bench.changes.listings] == [LIST_SECONDS + 1, LIST_SECONDS + 2, LIST_SECONDS + 3]
    assert bench.changes.finished == 1
    assert len(bench.changes.looks) == LIST_SECONDS / EVERY


def test_a_large_context_is_listed_at_once_when_what_was_seen_counts_no_more(bench: Bench) -> None:
    """Other white lists: a look at the index would not show what is synced now."""
    bench.changes.listed_objects = 5000
    bench.changes.is_forgotten = True
    bench.run(2 * EVERY + 5)
    assert [at for _, at in bench.changes.listings] == [EVERY + 1, EVERY + 2, EVERY + 3] and len(bench.changes.looks) == 1


def test_a_long_listing_lets_an_upload_go_first(bench: Bench) -> None:
    """Between two pages, and goes on where it was."""
    bench.changes.listed_objects = 5000
    uploaded_at = []

    async def upload() -> None:
        await trio.sleep(LIST_SECONDS + 0.5)
        await bench.engine.alone(trio.lowlevel.checkpoint)
        uploaded_at.append(trio.current_time())

    bench.run(LIST_SECONDS + 5, upload)
    assert uploaded_at == [LIST_SECONDS + 1]
    assert [after for after, _ in bench.changes.listings] == ['', '1', '1']
    assert bench.changes.finished == 1


def test_the_whole_is_listed_when_an_earlier_mounts_listing_is_old(bench: Bench) -> None:
    """Not LIST_SECONDS after this mount began."""
    bench.changes.listed_objects = 5000
    bench.changes.since -= LIST_SECONDS - 60
    bench.run(100)
    assert bench.changes.listings and 60 <= bench.changes.listings[0][1] <= 60 + 2 * EVERY
