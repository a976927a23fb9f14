"""The block cache: exact versions, bounded, and never a wrong byte after any accident."""
from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ctxfs.storage import block_cache
from ctxfs.storage.block_cache import BLOCK_SIZE, MIN_LIMIT, AdoptFile, BlockCache
from ctxfs.storage.cache_database import PAGES

LARGE = 1 << 30


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[BlockCache]:
    opened = BlockCache(tmp_path / 'cache', LARGE)
    yield opened
    opened.close()


def content(cache: BlockCache, key: str, etag: str, block: int) -> bytes | None:
    found = cache.open_block(key, etag, block)
    if found is None:
        return None
    try:
        return os.pread(found.fd, found.length, found.offset)
    finally:
        os.close(found.fd)


def files_of(cache_dir: Path) -> list[Path]:
    return [path for path in cache_dir.glob('??/*') if path.is_file()]


def test_each_threads_connection_takes_little_memory(cache: BlockCache) -> None:
    """A worker has two dozen of them, and they grow with the database for as long as it lives."""
    def bounds() -> tuple[int, int]:
        connection = cache._rows._cache._con
        return connection.execute('PRAGMA cache_size').fetchone()[0], connection.execute('PRAGMA mmap_size').fetchone()[0]
    with ThreadPoolExecutor(1) as pool:
        assert bounds() == pool.submit(bounds).result() == (PAGES, 0)


def test_a_new_cache_makes_no_directory_before_a_file_needs_it(cache: BlockCache, tmp_path: Path) -> None:
    """A first mount would wait for all of them. One that somebody removed is made again; what is not there to be adopted is none."""
    def directories() -> list[Path]:
        return [path for path in (tmp_path / 'cache').iterdir() if path.is_dir()]
    assert directories() == []
    cache.store('a', 'e', 0, b'one')
    made, = directories()
    shutil.rmtree(made)
    assert content(cache, 'a', 'e', 0) is None
    cache.store('a', 'e', 0, b'one')
    (tmp_path / 'file').write_bytes(b'adopted')
    gone = AdoptFile(str(tmp_path / 'gone'), 'c', 'e', 7)
    assert cache.adopt([AdoptFile(str(tmp_path / 'file'), 'b', 'e', 7), gone]) == [gone.path]
    assert content(cache, 'a', 'e', 0) == b'one' and content(cache, 'b', 'e', 0) == b'adopted'


def test_a_block_is_found_by_its_exact_key_version_and_number(cache: BlockCache) -> None:
    """Another key, etag or block is a miss, also when the parts would join to the same string."""
    cache.store('a/b', 'e', 1, b'x' * BLOCK_SIZE + b'tail')
    assert content(cache, 'a/b', 'e', 1) == b'x' * BLOCK_SIZE
    assert content(cache, 'a/b', 'e', 2) == b'tail'
    for key, etag, block in [('a/b', 'e', 0), ('a/b', 'e2', 1), ('a', 'e', 1), ('a/b', '', 1), ('b', 'e\0a/', 1)]:
        assert content(cache, key, etag, block) is None
    assert cache.missing('a/b', 'e', range(4)) == [0, 3]


@pytest.mark.parametrize('size', [1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE])
def test_an_adopted_file_is_linked_and_read_by_blocks(cache: BlockCache, tmp_path: Path, size: int) -> None:
    """Every block of a staged file is there after its adoption, without a copy, and outlives the staging name."""
    data = os.urandom(size)
    staged = tmp_path / 'staged'
    staged.write_bytes(data)
    assert cache.adopt([AdoptFile(str(staged), 'k', 'e', size)]) == []
    assert staged.stat().st_nlink == 2
    staged.unlink()
    blocks = -(-size // BLOCK_SIZE)
    assert b''.join(content(cache, 'k', 'e', block) or b'?' for block in range(blocks)) == data
    assert content(cache, 'k', 'e', blocks) is None


def test_adoption_leaves_out_what_is_gone_or_has_another_size(cache: BlockCache, tmp_path: Path) -> None:
    """The good file of a batch is adopted, the others are named and leave nothing behind."""
    for name, data in [('good', b'12'), ('short', b'1'), ('empty', b'')]:
        (tmp_path / name).write_bytes(data)
    items = [AdoptFile(str(tmp_path / name), name, 'e', size) for name, size in [('good', 2), ('short', 2), ('gone', 2), ('empty', 0)]]
    assert cache.adopt(items) == [str(tmp_path / 'short'), str(tmp_path / 'gone')]
    assert content(cache, 'good', 'e', 0) == b'12' and len(files_of(tmp_path / 'cache')) == 1


def test_an_adopted_file_that_is_written_again_is_a_miss(cache: BlockCache, tmp_path: Path) -> None:
    """Staging and cache share bytes until the staging name goes: a forbidden write in between is not served as the old version."""
    staged = tmp_path / 'staged'
    staged.write_bytes(b'old!')
    cache.adopt([AdoptFile(str(staged), 'k', 'e', 4)])
    staged.write_bytes(b'new!')
    os.utime(staged, ns=(0, staged.stat().st_mtime_ns + 1))
    assert content(cache, 'k', 'e', 0) is None


def test_the_bound_holds_and_the_longest_untouched_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storing beyond the limit evicts; a block that is read keeps its place once its touch was flushed."""
    monkeypatch.setattr(block_cache, 'TOUCH_SECONDS', 0.0)
    cache = BlockCache(tmp_path / 'cache', MIN_LIMIT)
    blocks = MIN_LIMIT // BLOCK_SIZE
    for number in range(blocks - 4):
        cache.store('k', 'e', number, bytes(BLOCK_SIZE))
    assert content(cache, 'k', 'e', 0) is not None
    assert cache.flush_notes() == 1
    for number in range(blocks, blocks + 10):
        cache.store('k', 'e', number, bytes(BLOCK_SIZE))
        assert cache.volume() <= MIN_LIMIT + BLOCK_SIZE
    assert content(cache, 'k', 'e', 0) is not None and content(cache, 'k', 'e', 1) is None
    assert sum(path.stat().st_size for path in files_of(tmp_path / 'cache')) <= MIN_LIMIT
    cache.close()


def test_a_smaller_limit_evicts_at_once_but_never_below_the_floor(cache: BlockCache) -> None:
    """set_limit(0) leaves MIN_LIMIT, so that a reader always gets on."""
    for number in range(60):
        cache.store('k', 'e', number, bytes(BLOCK_SIZE))
    cache.set_limit(0)
    assert MIN_LIMIT // 2 < cache.volume() <= MIN_LIMIT


def test_an_evicted_block_that_is_open_reads_on(cache: BlockCache) -> None:
    """Eviction unlinks; the open descriptor keeps the bytes."""
    cache.store('k', 'e', 0, b'still here')
    found = cache.open_block('k', 'e', 0)
    assert found is not None
    assert cache.clear() == 1 and content(cache, 'k', 'e', 0) is None
    assert os.pread(found.fd, found.length, found.offset) == b'still here'
    os.close(found.fd)


def test_drop_forgets_one_object_in_all_versions(cache: BlockCache) -> None:
    """Other objects stay."""
    for key, etag in [('a', '1'), ('a', '2'), ('b', '1')]:
        cache.store(key, etag, 0, b'x')
    assert cache.drop('a') == 2
    assert [content(cache, key, '1', 0) for key in 'ab'] == [None, b'x']


@pytest.mark.parametrize('damage', [lambda data: data[:-1], lambda data: b'', lambda data: data + b'x'])
def test_a_torn_file_is_a_miss(cache: BlockCache, tmp_path: Path, damage: object) -> None:
    """A length that is not the stored one is never served."""
    cache.store('k', 'e', 0, b'whole')
    file, = files_of(tmp_path / 'cache')
    file.write_bytes(damage(b'whole'))  # type: ignore[operator]
    assert content(cache, 'k', 'e', 0) is None
    cache.store('k', 'e', 0, b'whole')
    assert content(cache, 'k', 'e', 0) == b'whole'


def test_content_survives_a_new_process_and_a_removed_file_is_a_miss(cache: BlockCache, tmp_path: Path) -> None:
    """A second BlockCache on the directory finds what the first stored."""
    cache.store('k', 'e', 0, b'kept')
    other = BlockCache(tmp_path / 'cache', LARGE)
    assert content(other, 'k', 'e', 0) == b'kept'
    files_of(tmp_path / 'cache')[0].unlink()
    assert content(other, 'k', 'e', 0) is None
    other.close()


def test_a_database_that_cannot_be_read_is_replaced_when_opening(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Garbage instead of a database: an empty cache that works, and a line in the log."""
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache/cache.db').write_bytes(b'no database' * 1000)
    cache = BlockCache(tmp_path / 'cache', LARGE)
    cache.store('k', 'e', 0, b'x')
    assert content(cache, 'k', 'e', 0) == b'x' and 'starting an empty one' in caplog.text
    assert list(tmp_path.iterdir()) == [tmp_path / 'cache']
    cache.close()


def test_a_cache_that_is_removed_or_replaced_under_a_reader_is_followed(cache: BlockCache, tmp_path: Path) -> None:
    """`rm -r` of the cache, or another process's fresh start, costs a miss, and both processes meet in the new one."""
    cache.store('k', 'e', 0, b'old')
    os.rename(tmp_path / 'cache', tmp_path / 'gone')
    other = BlockCache(tmp_path / 'cache', LARGE)
    other.store('k', 'e2', 0, b'new')
    assert content(cache, 'k', 'e2', 0) == b'new'
    cache.store('k', 'e3', 0, b'both')
    assert content(other, 'k', 'e3', 0) == b'both'
    other.close()


STORE_FOR_EVER = """
import sys
from ctxfs.storage.block_cache import BlockCache
cache = BlockCache(sys.argv[1], 1 << 30)
number = 0
while True:
    cache.store(f'k{number % 50}', 'e', 0, bytes([number % 256]) * (1 << 19))
    number += 1
    if number == 60:
        print('stored', flush=True)
"""


def test_a_writer_that_is_killed_leaves_whole_blocks_and_its_orphans_are_swept(tmp_path: Path) -> None:
    """SIGKILL at any instant: every block that is served is whole; files without a row go with the sweep, named ones stay."""
    for _ in range(3):
        with subprocess.Popen([sys.executable, '-c', STORE_FOR_EVER, str(tmp_path / 'cache')], stdout=subprocess.PIPE,
                              cwd=Path(__file__).parents[2]) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == b'stored\n'
            writer.kill()
        cache = BlockCache(tmp_path / 'cache', LARGE)
        blocks = [content(cache, f'k{number}', 'e', 0) for number in range(50)]
        assert [block if block is None else (len(block), len(set(block))) for block in blocks] == [(BLOCK_SIZE // 2, 1)] * 50
        cache.close()
    cache = BlockCache(tmp_path / 'cache', LARGE)
    orphan = tmp_path / 'cache/ab' / ('ab' + '0' * 30 + '-5-0-123456789abc')
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b'12345')
    (tmp_path / 'cache/ab/strange').write_bytes(b'')
    assert cache.sweep(older_than=0) == 0
    assert cache.sweep(older_than=time.time() + 10) >= 2
    assert len(files_of(tmp_path / 'cache')) == cache.count() == 50
    cache.close()


def test_opening_beside_a_busy_writer_waits_and_keeps_the_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A locked database is not a broken one: nothing is thrown away."""
    with subprocess.Popen([sys.executable, '-c', STORE_FOR_EVER, str(tmp_path / 'cache')], stdout=subprocess.PIPE,
                          cwd=Path(__file__).parents[2]) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b'stored\n'
        for number in range(10):
            cache = BlockCache(tmp_path / 'cache', LARGE)
            cache.store('mine', 'e', number, b'x')
            cache.close()
        writer.kill()
    cache = BlockCache(tmp_path / 'cache', LARGE)
    assert cache.count() == 60 and cache.missing('mine', 'e', range(10)) == [] and 'starting an empty one' not in caplog.text
    cache.close()


def test_many_writers_and_a_reader_at_once(tmp_path: Path) -> None:
    """Threads of two caches on one directory store while a third reads: what is found is always right."""
    writers = [BlockCache(tmp_path / 'cache', MIN_LIMIT) for _ in range(2)]
    reader = BlockCache(tmp_path / 'cache', MIN_LIMIT)

    def write(seed: int) -> None:
        for number in range(40):
            writers[seed % 2].store(f'k{seed}', 'e', number, bytes([seed, number]) * (BLOCK_SIZE // 2))
        writers[seed % 2].close()

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(write, seed) for seed in range(4)]
        found = 0
        while not all(future.done() for future in done):
            for seed in range(4):
                for number in range(40):
                    data = content(reader, f'k{seed}', 'e', number)
                    assert data is None or data == bytes([seed, number]) * (BLOCK_SIZE // 2)
                    found += data is not None
        for future in done:
            future.result()
    assert found and reader.volume() <= MIN_LIMIT + BLOCK_SIZE
    for cache in (*writers, reader):
        cache.close()


def test_the_bound_holds_at_every_instant_for_all_processes(tmp_path: Path) -> None:
    """Three processes store blocks and adopt files, small and larger than the bound, while it is made smaller: what is counted is never above it,
    and what lies on the disk by no more than what each of them is just putting there."""
    limit, directory = MIN_LIMIT + (8 << 20), tmp_path / 'cache'
    cache = BlockCache(directory, limit)
    script = (
        'import os, random, sys\n'
        'from ctxfs.storage.block_cache import AdoptFile, BlockCache, BLOCK_SIZE\n'
        'directory, staging, limit, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])\n'
        'rng, cache = random.Random(seed), BlockCache(directory, limit)\n'
        'print("open", flush=True)\n'
        'for number in range(40):\n'
        '    if rng.random() < 0.6:\n'
        '        cache.store(f"k{seed}-{number}", "e", 0, bytes(rng.randrange(1, 4 * BLOCK_SIZE)))\n'
        '        continue\n'
        '    items = []\n'
        '    for part in range(rng.randrange(1, 8)):\n'
        '        path, size = f"{staging}/{seed}-{number}-{part}", rng.choice((100, 300_000, 2 << 20, 64 << 20))\n'
        '        with open(path, "wb") as file: file.truncate(size)\n'
        '        items.append(AdoptFile(path, f"a{seed}-{number}-{part}", "e", size))\n'
        '    cache.adopt(items)\n'
        '    for item in items: os.unlink(item.path)\n')
    (tmp_path / 'staging').mkdir()
    workers = [subprocess.Popen([sys.executable, '-c', script, str(directory), str(tmp_path / 'staging'), str(limit), str(seed)],
                                stdout=subprocess.PIPE) for seed in range(3)]
    for worker in workers:      # who opens the cache sets its bound
        assert worker.stdout is not None and worker.stdout.readline() == b'open\n'
        worker.stdout.close()
    looks = 0
    while any(worker.poll() is None for worker in workers):
        assert cache.volume() <= limit
        assert sum(size_of(path) for path in files_of(directory)) <= limit + len(workers) * (12 << 20)
        looks += 1
        if looks == 30:
            limit = MIN_LIMIT
            cache.set_limit(limit)
    assert [worker.returncode for worker in workers] == [0] * 3 and cache.count() > 0
    cache.close()


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:       # evicted since it was listed
        return 0


def test_on_a_disk_that_takes_not_even_a_transaction_files_go_first(cache: BlockCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest ones, no more than the database needs to go on; what is left is as it was, and nothing that is gone is served."""
    for block in range(30):
        cache.store('k', 'e', block, bytes([block]) * BLOCK_SIZE)
    database = cache._rows._cache
    evict = database.cull

    def cull() -> int:
        if len(files_of(tmp_path / 'cache')) == 30:
            raise sqlite3.OperationalError('database or disk is full')
        return int(evict())

    monkeypatch.setattr(database, 'cull', cull)
    cache.give_back()
    assert cache.volume() <= 15 * BLOCK_SIZE and len(files_of(tmp_path / 'cache')) == 10    # rows go by tens
    assert cache.missing('k', 'e', range(30)) == list(range(20))
    assert content(cache, 'k', 'e', 29) == bytes([29]) * BLOCK_SIZE
