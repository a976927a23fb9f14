"""Which open files go on when their object became longer, and which must not: the proof and the turn, without a mount.

Owns growth.py's decisions, on a real tree database and a real block cache. That the kernel shows the new bytes is tests/mount's.
"""
from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from ctxfs.errors import RemoteChanged
from ctxfs.records import ROOT_INO, ObjectInfo
from ctxfs.storage.block_cache import BLOCK_SIZE, BlockCache, CachedRange
from ctxfs.storage.inode import Content, Inode
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.content import ContextCache
from ctxfs.sync.growth import MAX_GROWTH, Growth
from ctxfs.sync.protocol import Fetch

PREFIX = 'contexts/c/'
OLD = b'0123456789' * 500


class Kernel:
    """Takes the bytes that are to be told and closes what it was given; `done` is the test's to call."""

    def __init__(self) -> None:
        self.stored: list[tuple[int, int, bytes]] = []
        self.done: Callable[[], None] = lambda: None
        self.entries: list[tuple[int, bytes]] = []

    def grown(self, ino: int, parts: Sequence[tuple[int, CachedRange]], done: Callable[[], None]) -> None:
        for offset, found in parts:
            self.stored.append((ino, offset, os.pread(found.fd, found.length, found.offset)))
            os.close(found.fd)
        self.done = done

    def entry(self, parent: int, name: bytes, deleted: int = 0) -> None:
        self.entries.append((parent, name))


class Store:
    """The pool's Fetch, from one object; `meanwhile` happens while it is on its way."""

    def __init__(self, cache: BlockCache) -> None:
        self._cache = cache
        self.body = b''
        self.etag = '"new"'
        self.fetches = 0
        self.meanwhile: Callable[[], object] = lambda: None

    async def call(self, operation: Any, **_: Any) -> None:
        assert isinstance(operation, Fetch)
        await trio.lowlevel.checkpoint()
        self.fetches += 1
        self.meanwhile()
        if operation.etag != self.etag:
            raise RemoteChanged('another version by now')
        for block in range(operation.start, operation.start + operation.count):
            self._cache.store(operation.key, operation.etag, block, self.body[block * BLOCK_SIZE:(block + 1) * BLOCK_SIZE])


class Bench:
    """One clean file `log` of content `old`, open for reading, all of it in the cache."""

    def __init__(self, directory: Path, old: bytes = OLD, *, cached: bool = True, etag: str = '"old"', sha256: str = '') -> None:
        self.db = TreeDB(directory / 'tree.db')
        self.journal = Journal(self.db)
        self.cache = BlockCache(str(directory / 'cache'), 256 << 20)
        self.store, self.kernel = Store(self.cache), Kernel()
        pool, kernel = self.store, self.kernel
        self.growth = Growth(self.db, self.journal, pool, kernel, blocks=ContextCache(self.cache, prefix=PREFIX), prefix=PREFIX)  # type: ignore[arg-type]
        self.inode = Inode(self.db.allocate_ino(), 0o100644, 0, 0, 0, 1, len(old), 1, 1, 1, Content.CLEAN, 1)
        self.inode.handles = 1
        self.known = Known('log', etag, len(old), self.inode.ino, 1, sha256, 0)
        with self.db.transaction():
            self.db.insert_inode(self.inode)
            self.db.insert_dentry(ROOT_INO, b'log', self.inode.ino)
            self.journal.put_object(self.known)
        if cached:
            self.put_old(old)

    def put_old(self, old: bytes) -> None:
        for block in range(-(-len(old) // BLOCK_SIZE)):
            self.cache.store(PREFIX + 'log', self.known.etag, block, old[block * BLOCK_SIZE:(block + 1) * BLOCK_SIZE])

    def follow(self, body: bytes, *, etag: str = '"new"') -> bool:
        self.store.body = body
        info = ObjectInfo(key='log', size=len(body), etag=etag, mtime_ns=77)
        return trio.run(self.growth.follow, self.inode, self.known, info)

    def close(self) -> None:
        self.db.close()
        self.cache.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(*args: Any, **more: Any) -> Bench:
        made.append(Bench(tmp_path, *args, **more))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


def assert_unchanged(bench: Bench) -> None:
    assert (bench.inode.size, bench.inode.revision, bench.inode.growth) == (bench.known.size, 1, None)
    assert bench.journal.known('log') == bench.known and bench.kernel.stored == []


def test_an_appended_object_makes_the_file_longer(make: Callable[..., Bench]) -> None:
    """Inode, object row and kernel have the new version; who wants to write waits until the kernel has it."""
    bench = make()
    assert bench.follow(OLD + b'and more')
    inode = bench.inode
    assert (inode.size, inode.revision, inode.mtime_ns, inode.content) == (len(OLD) + 8, 2, 77, Content.CLEAN)
    source = bench.journal.source_of(inode)
    assert source is not None and (source.etag, source.size) == ('"new"', len(OLD) + 8)
    assert bench.kernel.stored == [(inode.ino, len(OLD), b'and more')]
    assert inode.growth is not None
    bench.kernel.done()
    assert inode.growth is None


@pytest.mark.parametrize('size', [0, BLOCK_SIZE - 3, BLOCK_SIZE, 2 * BLOCK_SIZE + 5])
def test_growth_over_blocks(make: Callable[..., Bench], size: int) -> None:
    """Wherever the old end lies, exactly the added bytes are told, at their offsets."""
    old, more = os.urandom(size), os.urandom(BLOCK_SIZE + 10)
    bench = make(old)
    assert bench.follow(old + more)
    assert b''.join(data for _, _, data in bench.kernel.stored) == more
    position = size
    for _, offset, data in bench.kernel.stored:
        assert offset == position
        position += len(data)


@pytest.mark.parametrize('body', [b'X' + OLD[1:] + b'more', OLD[:-1] + b'Xmore'])
def test_another_beginning_is_not_growth(make: Callable[..., Bench], body: bytes) -> None:
    """One byte that differs, and the handle must become stale instead."""
    bench = make()
    assert not bench.follow(body)
    assert_unchanged(bench)


@pytest.mark.parametrize('facts', [{'sha256': hashlib.sha256(OLD).hexdigest()}, {'etag': f'"{hashlib.md5(OLD).hexdigest()}"'}])
def test_a_hash_proves_what_is_not_in_the_cache(make: Callable[..., Bench], facts: dict[str, str]) -> None:
    """The old version is gone from the bucket, and its blocks from the cache: its hash says whether the new one begins so."""
    bench = make(cached=False, **facts)
    assert bench.follow(OLD + b'more')


@pytest.mark.parametrize('facts', [{}, {'sha256': hashlib.sha256(b'other').hexdigest()}, {'etag': '"9b2cf535f27731c974343645a3985328-2"'}])
def test_without_proof_it_is_another_file(make: Callable[..., Bench], facts: dict[str, str]) -> None:
    """Neither blocks nor a hash that fits: nothing is assumed."""
    bench = make(cached=False, **facts)
    assert not bench.follow(OLD + b'more')
    assert_unchanged(bench)


def test_what_it_takes_to_be_asked_at_all(make: Callable[..., Bench]) -> None:
    """Written, unopened, changed, hard-linked, shrunk or much larger files cost no request."""
    bench = make()
    inode = bench.inode
    for name, value in [('writers', 1), ('handles', 0), ('content', Content.STAGED), ('nlink', 2), ('revision', 5)]:
        before = getattr(inode, name)
        setattr(inode, name, value)
        assert not bench.follow(OLD + b'more')
        setattr(inode, name, before)
    assert not bench.follow(OLD[:-1]) and not bench.follow(OLD)
    assert not bench.follow(OLD + bytes(MAX_GROWTH + 1))
    assert bench.store.fetches == 0


@pytest.mark.parametrize('meanwhile', ['writer', 'local change', 'newer version', 'object moved on'])
def test_what_happens_during_the_proof_is_seen(make: Callable[..., Bench], meanwhile: str) -> None:
    """The last look and the turn are one step."""
    bench = make()

    def happen() -> None:
        if meanwhile == 'writer':
            bench.inode.writers = 1
        elif meanwhile == 'local change':
            bench.inode.content = Content.STAGED
        elif meanwhile == 'newer version':
            bench.store.etag = '"newest"'
        else:
            bench.journal.put_object(bench.known._replace(etag='"other"'))

    bench.store.meanwhile = happen
    assert not bench.follow(OLD + b'more')
    assert bench.kernel.stored == [] and bench.inode.size == len(OLD)


def test_the_times_show_after_the_last_close(make: Callable[..., Bench]) -> None:
    """The kernel is made to look the file up again once nobody has it open, and only once."""
    bench = make()
    assert bench.follow(OLD + b'more')
    bench.growth.settle()
    assert bench.kernel.entries == []
    bench.inode.handles = 0
    bench.growth.settle()
    bench.growth.settle()
    assert bench.kernel.entries == [(ROOT_INO, b'log')]
