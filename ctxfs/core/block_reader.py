"""Clean bytes by blocks: from the block cache, else fetched once however many wait, with read-ahead for sequential readers.

Owns the fetches in flight and a few open cache files. It must not know inodes' states or names: it reads ranges of one version of one
object. Every byte of an answer comes from that version; when the bucket has another one by now, RemoteChanged is raised.

A block is compared with its checksum as a whole when its first piece is read, and what was read for that answers the next pieces, so that a
reader of a whole file pays for the comparison only. One that turns out bad is fetched like one that was never here.
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from ctxfs.core.ports import RemoteContent
from ctxfs.errors import CtxfsError, NotFound, RemoteChanged, RemoteUnavailable
from ctxfs.storage.block_cache import FoundBlock
from ctxfs.storage.inode import Inode
from ctxfs.storage.journal import Known

#: open cache files kept; a descriptor each
OPEN_RANGES = 64
#: blocks whose bytes are kept from their comparison until their last piece was read; 1 MiB each
FRESH_BLOCKS = 8
#: the widest read-ahead, in blocks
MAX_WINDOW = 16
#: a fetched block may be evicted before it is read when the cache is tiny: fetch again so often
FETCH_ATTEMPTS = 5


class Cache(Protocol):
    """The block cache as far as reading needs it (see BlockCache); whoever finds a block closes it."""

    def find_block(self, key: str, etag: str, block: int) -> FoundBlock | None: ...

    def compare(self, found: FoundBlock) -> bytes | None: ...

    def discard(self, found: FoundBlock, reason: str) -> None: ...


class ReadAhead:
    """How one handle reads: the window doubles while it goes on where it stopped, and collapses when it jumps."""

    __slots__ = ('next_offset', 'window', 'fetched_to')

    def __init__(self) -> None:
        self.next_offset = 0
        self.window = 1
        self.fetched_to = 0

    def advance(self, offset: int, size: int) -> int:
        """Note a read; returns how many blocks to have at hand, this one included."""
        if offset == self.next_offset:
            self.window = min(self.window * 2, MAX_WINDOW)
        elif abs(offset - self.next_offset) > 4 << 20:     # the kernel's own read-ahead arrives slightly out of order
            self.window, self.fetched_to = 1, 0
        self.next_offset = offset + size
        return self.window


class BlockReader:
    """See the module docstring. `spawn(function, *args)` starts a background task of the daemon; `on_miss(ino)` is called when a reader had
    to wait for a block, once it is here."""

    def __init__(self, cache: Cache, remote: RemoteContent, *, block_size: int, spawn: Callable[..., None],
                 refresh: Callable[[Inode], Awaitable[None]], on_miss: Callable[[int], None] = lambda ino: None) -> None:
        self._cache = cache
        self._remote = remote
        self._block_size = block_size
        self._spawn = spawn
        self.refresh = refresh
        self._on_miss = on_miss
        self._open: OrderedDict[tuple[str, str, int], FoundBlock] = OrderedDict()
        self._fresh: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()
        self._fetching: dict[tuple[str, str, int], _Fetch] = {}
        #: pieces of blocks that were read: at hand, or fetched first
        self.hits = 0
        self.misses = 0

    async def read(self, source: Known, offset: int, *, size: int, ahead: ReadAhead) -> bytes | memoryview:
        """The bytes [offset, offset + size) of the object, which must be inside it. Raises RemoteChanged, RemoteUnavailable."""
        window = ahead.advance(offset, size)
        parts: list[bytes | memoryview] = []
        position, end = offset, offset + size
        while position < end:
            block, within = divmod(position, self._block_size)
            wanted = min(self._block_size - within, end - position)
            part = await self._read_in_block(source, block, within=within, size=wanted, window=window)
            if not part:
                raise RemoteChanged(f'{source.key} ends at {position}, before its size {source.size}')
            parts.append(part)
            position += len(part)
        self._read_ahead(source, position // self._block_size, window, ahead)
        return parts[0] if len(parts) == 1 else b''.join(parts)

    async def _read_in_block(self, source: Known, block: int, *, within: int, size: int, window: int) -> bytes | memoryview:
        for attempt in range(FETCH_ATTEMPTS):
            part = self._cached(source, block, within, size)
            if part is not None:
                if attempt:
                    self._on_miss(source.ino)
                self.hits += not attempt
                return part
            self.misses += not attempt
            await self._fetch(source, block, max(1, window // 2))
        raise RemoteUnavailable(f'block {block} of {source.key} leaves the cache before it can be read: --cache-size is too small')

    def _cached(self, source: Known, block: int, within: int, size: int) -> bytes | memoryview | None:
        """Up to `size` bytes of the block, short only where it ends; None if it is not here."""
        identity = (source.key, source.etag, block)
        fresh = self._fresh.get(identity)
        if fresh is not None:
            if within + size >= len(fresh):
                del self._fresh[identity]       # who reads on comes for the next block
            return memoryview(fresh)[within:within + size]
        found = self._found(source, block)
        if found is None:
            return None
        size = max(0, min(size, found.length - within))
        return self._read_found(identity, found, within, size) if found.is_trusted() else self._compare(identity, found, within, size)

    def _read_found(self, identity: tuple[str, str, int], found: FoundBlock, within: int, size: int) -> bytes | None:
        try:
            data, reason = found.read(within, size), 'it was cut off'
        except OSError as error:
            data, reason = None, f'it cannot be read: {error.strerror}'
        if data is None:
            del self._open[identity]
            self._cache.discard(found, reason)
        return data

    def _compare(self, identity: tuple[str, str, int], found: FoundBlock, within: int, size: int) -> bytes | memoryview | None:
        data = self._cache.compare(found)
        if data is None:
            del self._open[identity]        # compare() has closed it
            return None
        if within + size < found.length:
            self._fresh[identity] = data
            if len(self._fresh) > FRESH_BLOCKS:
                self._fresh.popitem(last=False)
        return memoryview(data)[within:within + size]

    def _found(self, source: Known, block: int) -> FoundBlock | None:
        identity = (source.key, source.etag, block)
        found = self._open.get(identity)
        if found is not None:
            self._open.move_to_end(identity)
            return found
        found = self._cache.find_block(source.key, source.etag, block)
        if found is not None:
            self._open[identity] = found
            if len(self._open) > OPEN_RANGES:
                self._open.popitem(last=False)[1].close()
        return found

    async def _fetch(self, source: Known, block: int, count: int) -> None:
        """Have the block fetched, together with up to `count` - 1 that follow; waits if somebody fetches it already."""
        under_way = self._fetching.get((source.key, source.etag, block))
        if under_way is not None:
            await under_way.wait()
            return
        last = (source.size - 1) // self._block_size
        stop = block + 1
        while stop <= min(last, block + count - 1) and (source.key, source.etag, stop) not in self._fetching:
            stop += 1
        fetch = _Fetch()
        wanted = [(source.key, source.etag, number) for number in range(block, stop)]
        self._fetching.update(dict.fromkeys(wanted, fetch))
        # In a task of its own: one reader's death (a signal) must not end the fetch that others wait for.
        self._spawn(self._run_fetch, fetch, source, wanted)
        await fetch.wait()

    async def _run_fetch(self, fetch: _Fetch, source: Known, wanted: list[tuple[str, str, int]]) -> None:
        try:
            await self._remote.fetch(source, wanted[0][2], len(wanted))
        except NotFound as error:
            fetch.error = RemoteChanged(str(error))
        except CtxfsError as error:
            fetch.error = error
        finally:
            for identity in wanted:
                self._fetching.pop(identity, None)
            fetch.done.set()

    def _read_ahead(self, source: Known, block: int, window: int, ahead: ReadAhead) -> None:
        """A reader that goes on gets the next blocks before it asks."""
        if window < 4:
            return
        last = (source.size - 1) // self._block_size
        start, stop = max(block + 1, ahead.fetched_to), min(block + 1 + window, last + 1)
        if stop - start < window // 2 and stop != last + 1:
            return      # enough at hand; fetch the next half window in one go
        ahead.fetched_to = max(stop, ahead.fetched_to)
        while start < stop and (self._is_at_hand(source, start)):
            start += 1
        if start < stop:
            self._spawn(self._prefetch, source, start, stop - start)

    def _is_at_hand(self, source: Known, block: int) -> bool:
        return (source.key, source.etag, block) in self._fetching or self._found(source, block) is not None

    async def _prefetch(self, source: Known, block: int, count: int) -> None:
        try:
            await self._fetch(source, block, count)
        except CtxfsError:
            return      # nobody asked for these bytes yet; who does gets the error

    def let_go(self) -> None:
        """Close what is open: space of what was evicted is free only then. Who reads opens again."""
        for found in self._open.values():
            found.close()
        self._open.clear()
        self._fresh.clear()


class _Fetch:
    """One fetch under way and how it ended."""

    __slots__ = ('done', 'error')

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: CtxfsError | None = None

    async def wait(self) -> None:
        await self.done.wait()
        if self.error is not None:
            raise type(self.error)(str(self.error))
