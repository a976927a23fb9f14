"""Filling the block cache with the content of many files, as the room in it allows.

Owns how files become requests to the workers (small ones together, big ones in ranges), how many of these are under way, how much of the
cache they may take, and what happens when the store does not answer. It must not know why these files (warmup.py, downloads.py), nor which
blocks are there already: the workers look, and a block that is cached costs no request.

    of one file:  changed or gone in the bucket → left out, whoever looks for remote changes will tell;  refused → counted, with the cause
    of all:       the store does not answer → again, 0.5 s later, doubling to 60 s, for at most `patience`;  no room → the end
"""
from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec
import trio

from ctxfs.errors import CtxfsError
from ctxfs.storage.archive_log_format import ARCHIVE_DIR
from ctxfs.storage.block_cache import BLOCK_SIZE, BlockCache
from ctxfs.storage.clean_files import CleanFile
from ctxfs.storage.registry_entries import prefix_in
from ctxfs.sync.pool import Priority, TransferPool
from ctxfs.sync.protocol import Warm, WarmDone, WarmItem

log = logging.getLogger(__name__)

#: how much of the cache's present limit may be filled ahead of readers
SHARE = 0.8
#: files and bytes in one request: about a tenth of a second of a store that is 3 ms away
BATCH_FILES = 32
BATCH_BYTES = 4 << 20
#: the same of files that lie in archives, which come many at a time
ARCHIVED_FILES = 1000
ARCHIVED_BYTES = 8 << 20
#: files above this are fetched in ranges of this size
RANGE_BLOCKS = 16
#: after so many files that are refused nothing more is tried: it is the credentials, not the files
MAX_FAILED = 100
#: requests under way or waiting for their admission
RUNNERS = 4
#: blocks looked up in one go in a thread
_LOOK_BLOCKS = 256
_RETRY_SECONDS = (0.5, 60.0)
_GONE = ('NotFound', 'RemoteChanged')


class Source(Protocol):
    """Where the files come from."""

    async def next(self) -> list[CleanFile] | None:
        """Some files, maybe none just now; None at the end. What it raises is tried again as a request is."""


class Room(ABC):
    """How many bytes may be fetched; what was granted is given back with what it was really spent for. `counts_cached`: what is in the cache
    already counts, too."""

    counts_cached = False

    def __init__(self) -> None:
        self._reserved = 0
        self._settled = trio.Event()

    @abstractmethod
    def free(self) -> int:
        """Bytes that nobody has reserved; less than 0 when there is too much already."""

    async def reserve(self, wanted: int) -> int:
        """Up to `wanted` bytes; 0 when there is not even a block. Near the bound it waits for requests that may need less than they have."""
        while (free := self.free()) < wanted and self._reserved:
            await self._settled.wait()
        granted = wanted if free >= wanted else free if free >= BLOCK_SIZE else 0
        self._reserved += granted
        return granted

    def settle(self, granted: int, spent: int) -> None:
        self._reserved -= granted
        self._settled.set()
        self._settled = trio.Event()


class SpareRoom(Room):
    """What is free in the cache up to SHARE of its limit, and on its disk: nothing is evicted, or kept from being written, for what nobody has
    asked for."""

    def __init__(self, pool: TransferPool, cache: BlockCache) -> None:
        super().__init__()
        self._pool = pool
        self._cache = cache

    def free(self) -> int:
        """See Room."""
        return min(int(SHARE * self._pool.cache_limit) - self._cache.volume(), self._cache.spare_bytes()) - self._reserved


class OwnRoom(Room):
    """SHARE of the cache's limit for one download that somebody asked for: it may evict what was used longest ago, but not itself."""

    counts_cached = True

    def __init__(self, pool: TransferPool) -> None:
        super().__init__()
        self._pool = pool
        self._used = 0

    def free(self) -> int:
        """See Room."""
        return int(SHARE * self._pool.cache_limit) - self._used - self._reserved

    def settle(self, granted: int, spent: int) -> None:
        """See Room."""
        self._used += spent
        super().settle(granted, spent)


class Counts:
    """How far it got. `files` and `bytes` are in the cache now, `fetched` of these bytes came with `requests`; `gone` files are other
    versions by now; `skipped` ones found no room; `failed` ones are refused, the first for `error`. `least`: seconds of the shortest
    request."""

    def __init__(self) -> None:
        self.files = self.bytes = self.fetched = self.requests = 0
        self.gone = self.skipped = self.failed = 0
        self.error = ''
        self.least = float('inf')


class _Piece(NamedTuple):
    """A run of blocks of one file; `ends_file`: the last of its pieces."""
    item: WarmItem
    size: int
    ends_file: bool


class Filling:
    """One job. `hold` waits before each request as long as it should not begin; `may_go_on` is asked before each batch of files; `note` is
    called after each request."""

    def __init__(self, pool: TransferPool, cache: BlockCache, source: Source, room: Room, *, prefix: str, priority: Priority,
                 hold: Callable[[], Awaitable[None]], may_go_on: Callable[[], bool] = lambda: True,
                 note: Callable[[Counts], None] = lambda counts: None, runners: int = RUNNERS, patience: float = float('inf')) -> None:
        self._pool = pool
        self._cache = cache
        self._source = source
        self._room = room
        self._prefix = prefix
        self._priority = priority
        self._hold = hold
        self._may_go_on = may_go_on
        self._note = note
        self._runners = runners
        self._patience = patience
        self.counts = Counts()
        #: there was no room for everything
        self.is_short = False
        #: every file was dealt with, one way or the other
        self.is_complete = False
        #: why the store could not be asked just now
        self.trouble: CtxfsError | None = None
        self._trouble_since = 0.0
        self._failures = 0
        self._is_over = False
        self._lock = trio.Lock()
        self._batches: deque[list[_Piece]] = deque()

    async def run(self) -> None:
        """Until everything is dealt with, or there is no more room. Raises the store's error when it did not answer for `patience`
        seconds, and NoSpace when the disk is full. Cancelled: what has come stays in the cache."""
        stop: list[CtxfsError] = []

        async def runner() -> None:
            try:
                while (turn := await self._next()) is not None:
                    await self._send(*turn)
            except CtxfsError as error:
                stop.append(error)
                self._is_over = True

        async with trio.open_nursery() as nursery:
            for _ in range(self._runners):
                nursery.start_soon(runner)
        if stop:
            raise stop[0]

    # --- what is next -------------------------------------------------------------------------------------------------------------------

    async def _next(self) -> tuple[list[_Piece], int] | None:
        """The next batch and the room that was granted to it: one after the other, so that the first in order are those that fit."""
        async with self._lock:
            while not self._is_over and self._may_go_on():
                if self._batches:
                    batch = self._batches.popleft()
                    return batch, await self._reserve(batch)
                try:
                    files = await self._source.next()
                except CtxfsError as error:
                    await self._back_off(error)
                    continue
                if files is None:
                    self._is_over = self.is_complete = True
                else:
                    self._recovered()
                    await self._cut(await self._with_neighbours(files))
        return None

    async def _with_neighbours(self, files: list[CleanFile]) -> list[CleanFile]:
        """More of what lies in archives, up to what one request fetches: a directory's page is less than that."""
        size = sum(file.size for file in files)
        while files and files[-1].place is not None and len(files) < ARCHIVED_FILES and size < ARCHIVED_BYTES:
            try:
                more = await self._source.next()
            except CtxfsError:      # it is asked again when these have come
                break
            if not more:
                break
            files, size = [*files, *more], size + sum(file.size for file in more)
        return files

    async def _cut(self, files: Sequence[CleanFile]) -> None:
        """Make requests of files: small ones together, ranges of big ones."""
        batch: list[_Piece] = []
        size = 0
        for file in files:
            if file.size > RANGE_BLOCKS * BLOCK_SIZE:
                await self._cut_big(file)
                continue
            most, most_bytes = (BATCH_FILES, BATCH_BYTES) if file.place is None else (ARCHIVED_FILES, ARCHIVED_BYTES)
            if batch and (len(batch) >= most or size + file.size > most_bytes):
                self._batches.append(batch)
                batch, size = [], 0
            batch.append(_Piece(self._item(file), file.size, True))
            size += file.size
        if batch:
            self._batches.append(batch)

    def _item(self, file: CleanFile) -> WarmItem:
        place = file.place
        if place is not None:
            place = msgspec.structs.replace(place, archive=f'{prefix_in(self._prefix)}{ARCHIVE_DIR}{place.archive}')
        return WarmItem(key=self._prefix + file.key, etag=file.etag, size=file.size, place=place)

    async def _cut_big(self, file: CleanFile) -> None:
        """All of it or nothing: half a file in the cache helps nobody. Looked up here, so that ranges can go side by side."""
        key = self._prefix + file.key
        absent: list[int] = []
        for start in range(0, -(-file.size // BLOCK_SIZE), _LOOK_BLOCKS):
            blocks = range(start, min(start + _LOOK_BLOCKS, -(-file.size // BLOCK_SIZE)))
            absent += await trio.to_thread.run_sync(self._cache.missing, key, file.etag, blocks)
        missing = sum(min(BLOCK_SIZE, file.size - block * BLOCK_SIZE) for block in absent)
        cost = file.size if self._room.counts_cached else missing
        granted = await self._room.reserve(cost)
        self._room.settle(granted, file.size - missing if granted == cost else 0)
        if granted < cost:
            self._skip(1)
            return
        self.counts.bytes += file.size - missing
        self.counts.files += not absent
        while absent:
            count = next((n for n in range(1, len(absent)) if absent[n] != absent[0] + n or n == RANGE_BLOCKS), len(absent))
            item = WarmItem(key=key, etag=file.etag, size=file.size, start=absent[0], count=count)
            size = min((absent[0] + count) * BLOCK_SIZE, file.size) - absent[0] * BLOCK_SIZE
            absent = absent[count:]
            self._batches.append([_Piece(item, size, not absent)])

    def _skip(self, count: int) -> None:
        self.counts.skipped += count
        self.is_short = True

    # --- one request --------------------------------------------------------------------------------------------------------------------

    async def _reserve(self, batch: list[_Piece]) -> int:
        await self._hold()
        return await self._room.reserve(sum(piece.size for piece in batch))

    async def _send(self, batch: list[_Piece], granted: int) -> None:
        while True:
            if not granted:
                self._skip(len(batch))
                self._is_over = True
                return
            batch = await self._call(batch, granted)
            self._note(self.counts)
            if not batch:
                return
            granted = await self._reserve(batch)

    async def _call(self, batch: list[_Piece], granted: int) -> list[_Piece]:
        """One request; returns what is left to be tried again. Raises as `run`."""
        spent, left = 0, batch
        cause: Exception | None = None
        try:
            done = await self._pool.call(Warm(items=[piece.item for piece in batch], budget=granted, counts_cached=self._room.counts_cached),
                                         priority=self._priority)
            spent, left = self._count(batch, done), batch[done.done:]
            cause = None if done.cause is None else done.cause.error()
        except CtxfsError as error:
            if not error.transient:
                self._fail(str(error), len(batch))
                return []
            cause = error
        finally:
            self._room.settle(granted, spent)
        if len(left) < len(batch):
            self._recovered()
        if cause is not None:
            await self._back_off(cause)
        return left

    def _count(self, batch: list[_Piece], done: WarmDone) -> int:
        """Take over what a request did; returns the bytes of its files that are in the cache now."""
        counts, spent = self.counts, 0
        failures = {failure.key: failure for failure in done.failures}
        for number, piece in enumerate(batch[:done.done]):
            failure = failures.get(piece.item.key)
            if number in done.skipped:
                self._skip(1)
            elif failure is None:
                spent += piece.size
                counts.files += piece.ends_file
            else:
                self._drop(piece.item)
                if failure.name in _GONE:
                    counts.gone += 1
                else:
                    self._fail(failure.message, 1)
        counts.bytes += spent
        counts.fetched += done.fetched
        counts.requests += done.requests
        counts.least = min(counts.least, done.least)
        return spent

    def _drop(self, item: WarmItem) -> None:
        """What is left of a file that cannot be had."""
        if item.count:
            self._batches = deque(batch for batch in self._batches if batch[0].item.key != item.key)

    def _fail(self, message: str, count: int) -> None:
        self.counts.failed += count
        self.counts.error = self.counts.error or message
        self._is_over = self._is_over or self.counts.failed >= MAX_FAILED

    def _recovered(self) -> None:
        if self.trouble is not None:
            log.info('the store answers again; the cache is filled')
            self.trouble, self._failures = None, 0

    async def _back_off(self, error: Exception) -> None:
        """Wait before the next try. Raises the error where none can help, or none did for `patience` seconds."""
        if not isinstance(error, CtxfsError) or not error.transient:
            raise error
        now = trio.current_time()
        if self.trouble is None:
            self._trouble_since = now
            log.info('the cache cannot be filled now, it is tried again: %s', error)
        self.trouble = error
        if now - self._trouble_since >= self._patience:
            raise error
        first, longest = _RETRY_SECONDS
        delay = min(longest, first * 2.0 ** min(self._failures, 16))
        self._failures += 1
        await trio.sleep(min(delay, self._trouble_since + self._patience - now))
