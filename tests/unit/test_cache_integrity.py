"""Cached bytes go bad: whatever happens to the files of the block cache, a reader gets the right bytes or an error, never others."""
from __future__ import annotations

import logging
import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from ctxfs.core.block_reader import BlockReader, ReadAhead
from ctxfs.errors import NoSpace, RemoteUnavailable
from ctxfs.storage import block_sums, cache_files
from ctxfs.storage.block_cache import BLOCK_SIZE, AdoptFile, BlockCache
from ctxfs.storage.block_sums import Compared, RecentSums, sums_of
from ctxfs.storage.journal import Known
from ctxfs.sync import worker_ops_read
from ctxfs.sync.content import ContextCache
from ctxfs.sync.protocol import Adopt, AdoptItem, Hydrate
from tests.fuzz.tools import fuzz
from tests.unit.test_worker_ops import Bench, Channel

LIMIT = 1 << 30
SECTOR = 512
#: what is cached: one block, blocks of a large object, a small adopted file, a large adopted file whose last block is short
SIZES = {'one': 700, 'blocks': 2 * BLOCK_SIZE + 5, 'small': 3 * SECTOR, 'whole': 2 * BLOCK_SIZE + 3}
ADOPTED = ('small', 'whole')


def content_of(name: str) -> bytes:
    return random.Random(name).randbytes(SIZES[name])


CONTENT = {name: content_of(name) for name in SIZES}


def fill(cache: BlockCache, directory: Path) -> None:
    for name, data in CONTENT.items():
        if name in ADOPTED:
            (directory / name).write_bytes(data)
            assert cache.adopt([AdoptFile(str(directory / name), name, 'e', len(data))]) == []
            (directory / name).unlink()
        else:
            cache.store(name, 'e', 0, data)


def blocks_of(name: str) -> range:
    return range(-(-SIZES[name] // BLOCK_SIZE))


def right(name: str, block: int) -> bytes:
    return CONTENT[name][block * BLOCK_SIZE:(block + 1) * BLOCK_SIZE]


def read(cache: BlockCache, name: str, block: int) -> bytes | None:
    found = cache.open_block(name, 'e', block)
    if found is None:
        return None
    try:
        return os.pread(found.fd, found.length, found.offset)
    finally:
        os.close(found.fd)


def files_of(directory: Path) -> list[Path]:
    return sorted(directory.glob('cache/??/*'))


# --- damage ----------------------------------------------------------------------------------------------------------------------

def keeping_times(path: Path, change: Callable[[], None]) -> None:
    """As a bad disk does it: neither length nor times tell."""
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip(path: Path, at: int) -> None:
    with open(path, 'r+b') as file:
        file.seek(at // 8 % path.stat().st_size)
        byte, = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1 << at % 8]))


def zero_sector(path: Path, at: int) -> None:
    size = path.stat().st_size
    start = at % size // SECTOR * SECTOR
    with open(path, 'r+b') as file:
        file.seek(start)
        file.write(bytes(min(SECTOR, size - start)))


def exchange(path: Path, other: Path) -> None:
    """Each gets the other's bytes under its own name."""
    os.rename(path, spare := path.with_name('spare'))
    os.rename(other, path)
    os.rename(spare, other)


damages = st.lists(st.tuples(st.sampled_from(['flip', 'zero', 'truncate', 'exchange', 'copy', 'remove', 'fifo']),
                             st.integers(0, 100), st.integers(0, 1 << 30)), min_size=1, max_size=4)


def apply(directory: Path, kind: str, which: int, at: int) -> None:
    files = files_of(directory)
    if not files:
        return
    path, other = files[which % len(files)], files[at % len(files)]
    if not (path.is_file() and other.is_file() and path.stat().st_size):        # damaged by an earlier step
        return
    if kind == 'flip':
        keeping_times(path, lambda: flip(path, at))
    elif kind == 'zero':
        keeping_times(path, lambda: zero_sector(path, at))
    elif kind == 'truncate':
        os.truncate(path, at % path.stat().st_size)
    elif kind == 'exchange' and path != other:
        exchange(path, other)
    elif kind == 'copy':       # (of itself, too: a new ctime)
        data = other.read_bytes()
        keeping_times(path, lambda: path.write_bytes(data[:path.stat().st_size].ljust(path.stat().st_size)))
    elif kind != 'exchange':
        path.unlink()
        if kind == 'fifo':
            os.mkfifo(path)


def test_after_any_damage_a_block_is_right_or_missing(tmp_path: Path) -> None:
    """Also in a process that has read the good bytes before; what is missing can be stored again, and is right then."""
    cache, later = BlockCache(tmp_path / 'cache', LIMIT), BlockCache(tmp_path / 'cache', LIMIT)

    @given(damages, st.booleans())
    @fuzz
    def check(damage: list[tuple[str, int, int]], was_read: bool) -> None:
        cache.clear()
        fill(cache, tmp_path)
        if was_read:
            assert all(read(cache, name, block) == right(name, block) for name in SIZES for block in blocks_of(name))
        for one in damage:
            apply(tmp_path, *one)
        for reader in (cache, later):
            for name in SIZES:
                for block in blocks_of(name):
                    assert read(reader, name, block) in (None, right(name, block))
            reader.flush_notes()
            for name in SIZES:
                for block in reader.missing(name, 'e', blocks_of(name)):
                    reader.store(name, 'e', block, right(name, block))
            assert all(read(reader, name, block) == right(name, block) for name in SIZES for block in blocks_of(name))
        for path in files_of(tmp_path):     # what has no row any more, and strangers
            path.unlink()

    check()
    cache.close()
    later.close()


@pytest.mark.parametrize('was_read', [False, True])
def test_one_flipped_bit_is_found_wherever_it_is(tmp_path: Path, was_read: bool, caplog: pytest.LogCaptureFixture) -> None:
    """In each of many places, of each kind of entry; the first of an object is told as a WARNING that names it and the block."""
    cache = BlockCache(tmp_path / 'cache', LIMIT)
    for name, size in SIZES.items():
        for at in (0, size * 8 - 1, *random.Random(name).sample(range(size * 8), 3)):
            cache.clear()
            cache._told.clear()
            caplog.clear()
            fill(cache, tmp_path)
            bad = at // 8 // BLOCK_SIZE
            data, start = (CONTENT[name], 0) if name in ADOPTED else (right(name, bad), bad * BLOCK_SIZE)
            file = next(path for path in files_of(tmp_path) if path.stat().st_size == len(data) and path.read_bytes() == data)
            if was_read:
                assert read(cache, name, bad) == right(name, bad)
            keeping_times(file, lambda path=file, bit=at - start * 8: flip(path, bit))  # type: ignore[misc]
            assert read(cache, name, bad) is None and bad in cache.missing(name, 'e', blocks_of(name)) and not file.exists()
            told, = (record for record in caplog.records if record.levelno == logging.WARNING)
            assert f'bad copy of {name} (' in told.getMessage()
    assert cache.damaged == 5 * len(SIZES)
    cache.close()


def test_many_bad_blocks_of_one_object_are_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log of a mount is not filled by a failing disk; the count says how many."""
    cache = BlockCache(tmp_path / 'cache', LIMIT)
    for block in range(5):
        cache.store('k\n\udc80', 'e', block, b'x' * 100)
    for path in files_of(tmp_path):
        flip(path, 0)
    caplog.set_level(logging.INFO)
    assert cache.missing('k\n\udc80', 'e', range(5)) == [] and [cache.open_block('k\n\udc80', 'e', block) for block in range(5)] == [None] * 5
    assert cache.damaged == 5 and [record.levelname for record in caplog.records] == ['WARNING'] + ['INFO'] * 4
    cache.close()


def test_a_bad_entry_leaves_the_database_too(tmp_path: Path) -> None:
    """Its row would count towards the bound for ever; a copy that somebody stored meanwhile stays."""
    cache, other = BlockCache(tmp_path / 'cache', LIMIT), BlockCache(tmp_path / 'cache', LIMIT)
    fill(cache, tmp_path)
    before = cache.count()
    for path in files_of(tmp_path):
        flip(path, 5)
    for name in SIZES:
        assert read(cache, name, 0) is None
    other.store('one', 'e', 0, CONTENT['one'])
    cache.flush_notes()
    assert cache.count() == before - len(SIZES) + 1 and read(cache, 'one', 0) == CONTENT['one']
    cache.close()
    other.close()


def test_entries_of_a_cache_without_sums_are_fetched_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As an older ctxfs wrote them: nobody can say that they are right. No warning: nothing is wrong with the disk."""
    cache = BlockCache(tmp_path / 'cache', LIMIT)
    fill(cache, tmp_path)
    with sqlite3.connect(tmp_path / 'cache/cache.db') as db:
        db.execute('UPDATE Cache SET value = NULL')
    db.close()
    for name in SIZES:
        assert cache.missing(name, 'e', blocks_of(name)) == list(blocks_of(name))
    cache.flush_notes()
    assert cache.count() == 0 and files_of(tmp_path) == [] and cache.damaged == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    cache.close()


def test_a_row_that_points_elsewhere_is_a_miss_and_takes_nothing_away(tmp_path: Path) -> None:
    """A damaged database leads to no file that is not the cache's, neither for reading nor for removing."""
    (tmp_path / 'victim').write_bytes(b'mine')
    cache = BlockCache(tmp_path / 'cache', LIMIT)
    for filename in ['../../victim', '../victim', '/etc/passwd', 'ab/../../victim', 'ab/short', '', 'x' * 5000, b'\xff', None, 7]:
        cache.store('k', 'e', 0, b'data')
        with sqlite3.connect(tmp_path / 'cache/cache.db') as db:
            db.execute('UPDATE Cache SET filename = ?', (filename,))
        db.close()
        assert cache.open_block('k', 'e', 0) is None
        cache.store('k', 'e', 0, b'data')
        assert (tmp_path / 'victim').read_bytes() == b'mine' and read_any(cache, 'k') == b'data'
    cache.close()


def read_any(cache: BlockCache, key: str) -> bytes | None:
    found = cache.open_block(key, 'e', 0)
    if found is None:
        return None
    try:
        return os.pread(found.fd, found.length, found.offset)
    finally:
        os.close(found.fd)


def test_a_file_that_cannot_be_adopted_for_want_of_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it must be copied and the disk is full: NoSpace, and no part of it stays."""
    def full(*args: object) -> None:
        Path(str(args[1])).write_bytes(b'part')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'link', lambda *args: (_ for _ in ()).throw(OSError(18, 'Invalid cross-device link')))
    monkeypatch.setattr(cache_files.shutil, 'copyfile', full)
    (tmp_path / 'staged').write_bytes(b'data')
    cache = BlockCache(tmp_path / 'cache', LIMIT)
    with pytest.raises(NoSpace):
        cache.adopt([AdoptFile(str(tmp_path / 'staged'), 'k', 'e', 4)])
    assert files_of(tmp_path) == []
    cache.close()


# --- what is remembered ----------------------------------------------------------------------------------------------------------

def test_a_comparison_is_made_once_for_a_file_that_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading here and there in a large file does not read each block as a whole every time; after a while it is read once more."""
    cache = BlockCache(tmp_path / 'cache', LIMIT)
    cache.store('k', 'e', 0, b'data')
    compared = []
    monkeypatch.setattr(BlockCache, 'compare', lambda self, found, real=BlockCache.compare: compared.append(found) or real(self, found))
    assert [read_any(cache, 'k') for _ in range(3)] == [b'data'] * 3 and len(compared) == 1
    now = block_sums.time.monotonic()
    monkeypatch.setattr(block_sums.time, 'monotonic', lambda: now + block_sums.TRUSTED_SECONDS + 1)
    assert read_any(cache, 'k') == b'data' and len(compared) == 2
    cache.close()


def test_the_memory_of_comparisons_is_bounded() -> None:
    """The one that was used longest ago goes."""
    compared = Compared()
    for number in range(block_sums.REMEMBERED + 1):
        compared.note(number, (0,))
        assert compared.has(0, (0,)) or number == 0 or number == block_sums.REMEMBERED + 1
    assert len(compared) == block_sums.REMEMBERED and compared.has(0, (0,)) and not compared.has(1, (0,))
    assert not compared.has(2, (1,))


def test_an_adoption_uses_the_sums_of_the_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of gigabytes is not read once more while its writers wait; one that changed since is."""
    bench = Bench(tmp_path)
    read_again = []
    monkeypatch.setattr(cache_files, 'sums_of_file', lambda fd, size: read_again.append(size) or block_sums.sums_of_file(fd, size))
    for data in (CONTENT['whole'], os.urandom(9 << 20)):
        etag = bench.put(data).etag
        worker_ops_read.adopt(bench.context, Adopt(items=[AdoptItem(path=str(tmp_path / 'staged'), key='k', etag=etag, size=len(data))]), Channel())
        found = [bench.context.cache.open_block('k', etag, block) for block in range(-(-len(data) // BLOCK_SIZE))]
        assert all(found) and read_again == []
        for one in found:
            os.close(one.fd)    # type: ignore[union-attr]
    etag = bench.put(b'1').etag
    os.utime(tmp_path / 'staged', ns=(0, 1))
    worker_ops_read.adopt(bench.context, Adopt(items=[AdoptItem(path=str(tmp_path / 'staged'), key='k', etag=etag, size=1)]), Channel())
    assert read_again == [1]
    bench.close()


def test_recent_sums_are_of_one_state_of_a_file_and_bounded(tmp_path: Path) -> None:
    """Another size or time: not known. Taken once, or pushed out by others."""
    recent = RecentSums()
    (tmp_path / 'f').write_bytes(b'12')
    status = (tmp_path / 'f').stat()
    recent.note('f', status, sums_of(b'12'))
    assert recent.take('f', 3, status.st_mtime_ns) == b'' and recent.take('f', 2, status.st_mtime_ns) == b''
    recent.note('f', status, sums_of(b'12'))
    assert recent.take('f', 2, status.st_mtime_ns) == sums_of(b'12') and recent.take('f', 2, status.st_mtime_ns) == b''
    recent.note('f', status, bytes(block_sums.RECENT_BYTES + 1))
    for number in range(block_sums.RECENT_FILES + 1):
        recent.note(str(number), status, b'')
    assert recent.take('f', 2, status.st_mtime_ns) == b'' and len(recent._sums) == block_sums.RECENT_FILES


# --- readers ---------------------------------------------------------------------------------------------------------------------

class Remote:
    """The store of a BlockReader: puts the right block into the cache, or cannot be reached."""

    def __init__(self, cache: BlockCache) -> None:
        self._cache = cache
        self.fetched: list[int] = []
        self.is_away = False

    async def fetch(self, source: Known, start: int, count: int) -> None:
        await trio.lowlevel.checkpoint()
        if self.is_away:
            raise RemoteUnavailable('the store is away')
        for block in self._cache.missing('p/' + source.key, source.etag, range(start, start + count)):
            self.fetched.append(block)
            self._cache.store('p/' + source.key, source.etag, block, right('whole', block))

    async def hydrate(self, source: Known, path: str) -> None:
        raise AssertionError('not asked for here')


async def unchanged(inode: Any) -> None:
    raise AssertionError('nothing changed in the bucket')


SOURCE = Known('whole', 'e', SIZES['whole'], 7, 1, '', 0)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[BlockCache]:
    """Holds the object p/whole, as one adopted file."""
    made = BlockCache(tmp_path / 'cache', LIMIT)
    (tmp_path / 'staged').write_bytes(CONTENT['whole'])
    made.adopt([AdoptFile(str(tmp_path / 'staged'), 'p/whole', 'e', SIZES['whole'])])
    (tmp_path / 'staged').unlink()
    yield made
    made.close()


def with_reader(cache: BlockCache, scenario: Callable[[BlockReader, Remote], Any]) -> None:
    async def main() -> None:
        remote = Remote(cache)
        async with trio.open_nursery() as nursery:
            reader = BlockReader(ContextCache(cache, prefix='p/'), remote, block_size=BLOCK_SIZE, spawn=nursery.start_soon, refresh=unchanged)
            await scenario(reader, remote)
            reader.let_go()
            nursery.cancel_scope.cancel()
    trio.run(main)


async def read_all(reader: BlockReader, step: int) -> bytes:
    ahead, parts = ReadAhead(), []
    for offset in range(0, SOURCE.size, step):
        parts.append(bytes(await reader.read(SOURCE, offset, size=min(step, SOURCE.size - offset), ahead=ahead)))
    return b''.join(parts)


@pytest.mark.parametrize('step', [4096 * 5, 128 << 10, BLOCK_SIZE, SIZES['whole']])
def test_a_reader_gets_the_right_bytes_of_a_bad_file_from_the_bucket(cache: BlockCache, tmp_path: Path, step: int) -> None:
    """By pieces of any size, with the file good at first and bad later, while its descriptor is held."""
    async def scenario(reader: BlockReader, remote: Remote) -> None:
        assert await read_all(reader, step) == CONTENT['whole'] and remote.fetched == []
        file, = files_of(tmp_path)
        keeping_times(file, lambda: flip(file, (BLOCK_SIZE + 77) * 8))
        assert await read_all(reader, step) == CONTENT['whole'] and 1 in remote.fetched
        assert await read_all(reader, step) == CONTENT['whole']
    with_reader(cache, scenario)


def test_without_a_bucket_a_bad_file_is_an_error(cache: BlockCache, tmp_path: Path) -> None:
    """The other blocks are gone with it; no byte of the bad one comes, and none is served from memory once it was dropped."""
    async def scenario(reader: BlockReader, remote: Remote) -> None:
        remote.is_away = True
        file, = files_of(tmp_path)
        keeping_times(file, lambda: flip(file, 9))
        for _ in range(2):
            with pytest.raises(RemoteUnavailable):
                await reader.read(SOURCE, 5, size=10, ahead=ReadAhead())
        remote.is_away = False
        assert await read_all(reader, 100_000) == CONTENT['whole']
    with_reader(cache, scenario)


@pytest.mark.parametrize('failure', ['cut off', 'bad sector'])
def test_a_file_that_fails_after_its_comparison_is_fetched(cache: BlockCache, tmp_path: Path, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a trusted block again may fail: that is a miss, not the program's error."""
    async def scenario(reader: BlockReader, remote: Remote) -> None:
        assert bytes(await reader.read(SOURCE, 0, size=10, ahead=ReadAhead())) == CONTENT['whole'][:10]
        reader._fresh.clear()
        if failure == 'cut off':
            os.truncate(files_of(tmp_path)[0], 0)
        else:
            real = cache_files.FoundBlock.read

            def fails(self: Any, within: int, size: int) -> Any:
                monkeypatch.setattr(cache_files.FoundBlock, 'read', real)
                raise OSError(5, 'Input/output error')
            monkeypatch.setattr(cache_files.FoundBlock, 'read', fails)
        assert bytes(await reader.read(SOURCE, 10, size=10, ahead=ReadAhead())) == CONTENT['whole'][10:20] and 0 in remote.fetched
    with_reader(cache, scenario)


def test_a_whole_file_is_read_from_the_disk_once(cache: BlockCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read for the comparison answers the pieces: no byte is read twice, and no more than a few blocks are kept."""
    async def scenario(reader: BlockReader, remote: Remote) -> None:
        asked: list[int] = []
        monkeypatch.setattr(os, 'pread', lambda fd, size, offset, real=os.pread: asked.append(size) or real(fd, size, offset))
        assert await read_all(reader, 128 << 10) == CONTENT['whole']
        assert sum(asked) == SIZES['whole'] and not reader._fresh
    with_reader(cache, scenario)


def test_a_file_is_hydrated_with_right_bytes(tmp_path: Path) -> None:
    """A bad copy in the cache does not become the staged file, from which it would be uploaded over the good object."""
    bench = Bench(tmp_path)
    data = CONTENT['whole']
    etag = bench.put(data).etag
    worker_ops_read.adopt(bench.context, Adopt(items=[AdoptItem(path=str(tmp_path / 'staged'), key='k', etag=etag, size=len(data))]), Channel())
    file, = files_of(tmp_path)
    keeping_times(file, lambda: flip(file, (BLOCK_SIZE + 1) * 8))
    done = worker_ops_read.hydrate(bench.context, Hydrate(key='k', etag=etag, size=len(data), path=str(tmp_path / 'out')), Channel())
    assert (tmp_path / 'out').read_bytes() == data and done.fetched >= BLOCK_SIZE
    bench.close()
