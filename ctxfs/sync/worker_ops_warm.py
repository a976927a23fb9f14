"""The operation that fills the block cache ahead of its readers.

Owns the order inside one request: item by item, what is missing only, within the budget, after everything that somebody waits for. It must
not know why these files, nor when it is tried again.
"""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from ctxfs.errors import CtxfsError, NoSpace
from ctxfs.storage.block_cache import BLOCK_SIZE
from ctxfs.sync import protocol
from ctxfs.sync.member_content import Placed, members_content
from ctxfs.sync.protocol import ItemFailure, Warm, WarmDone, WarmItem
from ctxfs.sync.worker_context import OperationChannel, WorkerContext
from ctxfs.sync.worker_ops_read import block_count, fetch_run, runs_of

#: after so long a request ends with what it has done: something more urgent may wait for its place
LONGEST_SECONDS = 0.1
#: how long one request at most makes way for other operations: it goes on, slowly, beside an upload that takes hours
MAKE_WAY_SECONDS = 0.1
#: of an archive in one ranged GET
RANGE_BYTES = 8 << 20


def warm(context: WorkerContext, op: Warm, channel: OperationChannel) -> WarmDone:
    filling = _Filling(context, op, channel)
    filling.run()
    if op.counts_cached:
        with suppress(CtxfsError):      # then they are evicted somewhat earlier
            context.cache.flush_notes()
    return filling.result()


class _Filling:
    """One request while it runs."""

    def __init__(self, context: WorkerContext, op: Warm, channel: OperationChannel) -> None:
        self._context = context
        self._op = op
        self._channel = channel
        self._left = op.budget
        self._done = 0
        self._fetched = 0
        self._requests = 0
        self._seconds = 0.0
        self._least = float('inf')
        self._skipped: list[int] = []
        self._failures: list[ItemFailure] = []
        self._cause: ItemFailure | None = None

    def result(self) -> WarmDone:
        return WarmDone(done=self._done, fetched=self._fetched, requests=self._requests, seconds=self._seconds, least=self._least,
                        skipped=self._skipped, failures=self._failures, cause=self._cause)

    def run(self) -> None:
        until = time.monotonic() + LONGEST_SECONDS
        for number, item in enumerate(self._op.items):
            if number and time.monotonic() > until:
                return
            try:
                if not self._take(number, item):
                    return      # cancelled
            except CtxfsError as error:
                failure = _failure(item, error)
                if error.transient or isinstance(error, NoSpace):
                    self._cause = failure       # it would be the same for all that follow
                    return
                self._failures.append(failure)
            self._done += 1

    def _take(self, number: int, item: WarmItem) -> bool:
        """Have one item in the cache, or skip it. False: nobody waits any more."""
        stop = min(item.start + item.count, block_count(item.size)) if item.count else block_count(item.size)
        absent = self._context.cache.missing(item.key, item.etag, range(item.start, stop))
        runs = list(runs_of(absent))
        cost = sum(bytes_of(item, run) for run in ([range(item.start, stop)] if self._op.counts_cached else runs))
        if cost > self._left:
            self._skipped.append(number)
            return True
        if item.place is not None and runs:
            return self._take_neighbours(number, item)
        self._left -= cost
        for run in runs:
            self._context.attended.make_way(MAKE_WAY_SECONDS)
            if self._channel.is_cancelled:
                return False
            began = time.monotonic()
            came = fetch_run(self._context, item, run)
            if came:        # else a reader had asked for the same meanwhile
                self._requests += 1
                self._fetched += came
                self._seconds += (took := time.monotonic() - began)
                self._least = min(self._least, took)
        return True


    def _take_neighbours(self, number: int, item: WarmItem) -> bool:
        """Have one member in the cache, and what follows in its archive and in the request, by one ranged GET. False as `_take`."""
        self._context.attended.make_way(MAKE_WAY_SECONDS)
        if self._channel.is_cancelled:
            return False
        together = list(neighbours(self._op.items[number:], self._left))
        self._left -= sum(one.size for one in together)
        began = time.monotonic()
        contents = members_content(self._context.store, [_placed(one) for one in together])
        self._context.cache.store_many((one.key, one.etag, content) for one, content in zip(together, contents, strict=True))
        self._requests += 1
        self._fetched += sum(one.size for one in together)
        self._seconds += (took := time.monotonic() - began)
        self._least = min(self._least, took)
        return True


def _placed(item: WarmItem) -> Placed:
    assert item.place is not None
    return Placed(item.place, item.etag, item.size)


def neighbours(items: Sequence[WarmItem], budget: int) -> Iterator[WarmItem]:
    """The first item, and those after it that lie in the same archive, as long as one range of RANGE_BYTES has them all and `budget` lasts."""
    first = items[0].place
    assert first is not None
    start, stop, spent = first.offset, first.offset + first.packed, 0
    for number, item in enumerate(items):
        place = item.place
        if place is None or place.archive != first.archive:
            return
        start, stop, spent = min(start, place.offset), max(stop, place.offset + place.packed), spent + item.size
        if number and (stop - start > RANGE_BYTES or spent > budget):
            return
        yield item


def bytes_of(item: WarmItem, run: range) -> int:
    """What these blocks of the version hold."""
    return min(run.stop * BLOCK_SIZE, item.size) - run.start * BLOCK_SIZE


def _failure(item: WarmItem, error: CtxfsError) -> ItemFailure:
    name, message = protocol.describe(error)
    return ItemFailure(key=item.key, name=name, message=message)
