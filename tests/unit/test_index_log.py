"""The index log on a real store: merged, latest wins, nothing lost by torn objects or two compactors."""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ctxfs.errors import RemoteUnavailable
from ctxfs.records import Attrs, IndexRecord
from ctxfs.storage import index_format
from ctxfs.storage.index_format import INDEX_DIR
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.stores import open_store
from ctxfs.sync import index_log
from ctxfs.sync.index_log import IndexLog

PREFIX = 'contexts/c/'


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    (tmp_path / 'bucket').mkdir()
    return open_store(f'file://{tmp_path}/bucket?fsync=no')


class Clock:
    """Nanoseconds that only grow, one second a look."""

    def __init__(self) -> None:
        self.now = 10**18

    def __call__(self) -> int:
        self.now += 10**9
        return self.now


def log_of(store: ObjectStore, host: str = 'h', clock: Clock | None = None) -> IndexLog:
    return IndexLog(store, PREFIX, host=host, clock_ns=clock or Clock())


def record(path: str, at: int, mode: int | None = 0o100644) -> IndexRecord:
    attrs = None if mode is None else Attrs(mode=mode, uid=0, gid=0, mtime_ns=at, atime_ns=at, ctime_ns=at)
    return IndexRecord(path=path, changed_ns=at, etag=f'e{at}', size=at, attrs=attrs)


def read(log: IndexLog, seen: list[str] | None = None) -> tuple[dict[str, int], list[str]]:
    reading = log.read(seen or [])
    found = list(reading)
    assert [item.path for item in found] == sorted({item.path for item in found}), 'sorted, each path once'
    return {item.path: item.changed_ns for item in found}, reading.state.names


def names(store: ObjectStore) -> list[str]:
    return [info.key[len(PREFIX + INDEX_DIR):] for info in store.list(PREFIX + INDEX_DIR).objects]


def damage(store: ObjectStore, name: str) -> None:
    body = store.get(PREFIX + INDEX_DIR + name)
    store.put(PREFIX + INDEX_DIR + name, body[:-3])


def test_segments_merge_by_the_time_of_the_change_not_of_the_segment(store: ObjectStore) -> None:
    """The latest record of a path counts, whichever segment has it; tombstones are told."""
    log = log_of(store)
    log.append([record('b', 5), record('a', 1)])
    log.append([record('a', 3), record('b', 2), record('c', 4, None)])
    assert read(log)[0] == {'a': 3, 'b': 5, 'c': 4}


def test_only_what_was_not_seen_is_read(store: ObjectStore) -> None:
    """Giving the names back leaves the new segment; an empty index reads as nothing."""
    log = log_of(store)
    assert read(log) == ({}, [])
    log.append([record('a', 1)])
    _, seen = read(log)
    log.append([record('b', 2)])
    found, now_seen = read(log, seen)
    assert found == {'b': 2} and sorted(now_seen) == names(store) and read(log, now_seen) == ({}, now_seen)


def test_compaction_keeps_every_live_record_and_drops_tombstones(store: ObjectStore) -> None:
    """The base reads the same; its covered objects stay for the grace time and go afterwards."""
    log = log_of(store)
    log.append([record(f'd/{number}', number + 1) for number in range(3000)])
    log.append([record('d/7', 9000), record('d/8', 9000, None)])
    before, _ = read(log)
    name, count, removed = log.compact(grace_ns=10**15)
    del before['d/8']
    assert (count, removed) == (2999, 0) and read(log)[0] == before and len(names(store)) == 3
    assert log.compact(grace_ns=10**15)[0] == '', 'one base is all there is to know'
    log.append([record('x', 1)])
    newer, _, removed = log.compact(grace_ns=-1)
    assert removed >= 2 and read(log)[0] == {**before, 'x': 1} and {newer} <= set(names(store)) and name != newer


def test_who_knows_the_old_objects_reads_only_the_new_ones_after_a_compaction(store: ObjectStore) -> None:
    """A base that contains nothing unknown, or whose new parts are still there as segments, is not read."""
    log = log_of(store)
    log.append([record('a', 1)])
    _, seen = read(log)
    log.append([record('b', 2)])
    log.compact(grace_ns=10**15)
    found, now_seen = read(log, seen)
    assert found == {'b': 2} and sorted(now_seen) == names(store)
    assert read(log_of(store))[0] == {'a': 1, 'b': 2}


def test_who_was_away_until_the_segments_were_gone_reads_the_base(store: ObjectStore) -> None:
    """Nothing between an old reading and a compaction is missed."""
    log = log_of(store)
    log.append([record('a', 1)])
    _, seen = read(log)
    log.append([record('b', 2)])
    base, _, _ = log.compact(grace_ns=10**15)
    for name in names(store):
        if name != base:
            store.delete(PREFIX + INDEX_DIR + name)
    found, now_seen = read(log, seen)
    assert found['b'] == 2 and now_seen == [base]


def test_two_hosts_that_compact_at_once_lose_nothing(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both bases are read as one, and the next compaction merges them."""
    clock = Clock()
    one, two = log_of(store, 'one', clock), log_of(store, 'two', clock)
    one.append([record('a', 1)])
    two.append([record('b', 2)])
    listing = two._list()
    one.compact(grace_ns=10**15)
    monkeypatch.setattr(two, '_list', lambda: listing)  # two had listed before one's base was there
    two.compact(grace_ns=10**15)
    monkeypatch.undo()
    assert sum(index_format.kind_of(name) == 'base' for name in names(store)) == 2
    assert read(one)[0] == {'a': 1, 'b': 2}
    assert one.compact(grace_ns=-1)[1] == 2 and read(two)[0] == {'a': 1, 'b': 2}


def test_a_torn_segment_is_skipped_with_its_reason_and_not_read_again(store: ObjectStore) -> None:
    """The others count; compaction neither trusts nor deletes the torn one."""
    log = log_of(store)
    torn, _ = log.append([record(f'p{number}', 1) for number in range(5000)])
    log.append([record('good', 1)])
    damage(store, torn)
    reading = log.read()
    assert {'good'} <= {item.path for item in reading}
    assert [name for name, _ in reading.state.skipped] == [torn] and torn in reading.state.names
    base, _, _ = log.compact(grace_ns=-1)
    assert torn in names(store) and torn not in index_format.read(log._reader(log._list()[-1].info))[0].covers
    assert base == names(store)[-1]


def test_a_torn_base_does_not_take_its_segments_with_it(store: ObjectStore) -> None:
    """What an unreadable base covers is read from the covered objects: by a compaction, and by the next reading."""
    log = log_of(store)
    log.append([record(f'p{number:05}', 1) for number in range(5000)])
    log.append([record('z', 2)])
    base, _, _ = log.compact(grace_ns=10**15)
    damage(store, base)
    first = log.read()
    list(first)
    found, _ = read(log, first.state.names)
    assert len(found) == 5001, 'the second reading heals'
    log.append([record('new', 3)])
    _, count, _ = log.compact(grace_ns=-1)
    assert count == 5002


def test_an_object_that_vanishes_between_listing_and_reading_is_not_called_seen(store: ObjectStore,
                                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """Its records are in a base that a later listing shows."""
    log = log_of(store)
    gone, _ = log.append([record('a', 1)])
    listing = log._list()
    store.delete(PREFIX + INDEX_DIR + gone)
    monkeypatch.setattr(log, '_list', lambda: listing)
    reading = log.read()
    assert list(reading) == [] and reading.state.names == [] and len(reading.state.skipped) == 1


def test_foreign_objects_in_the_index_directory_are_left_alone(store: ObjectStore) -> None:
    """A README is neither read nor deleted."""
    store.put(PREFIX + INDEX_DIR + 'README', b'hello')
    log = log_of(store)
    log.append([record('a', 1)])
    log.compact(grace_ns=-1)
    assert read(log)[0] == {'a': 1} and 'README' in names(store)


def test_a_large_base_is_streamed_in_ranges_and_a_store_failure_is_raised(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading holds ranges, not the object; an unreachable store is an error and not an empty index."""
    monkeypatch.setattr(index_log, '_SMALL', 0)
    monkeypatch.setattr(index_log, '_RANGE', 4096)
    with ThreadPoolExecutor(4) as executor:
        log = IndexLog(store, PREFIX, host='h', executor=executor, clock_ns=Clock())
        for part in range(3):
            log.append([record(f'd/{number:06}', part + 1) for number in range(part, 20_000, 3)])
        log.compact(grace_ns=-1)
        assert len(read(log)[0]) == 20_000
        real = store.get
        calls = []

        def get(key: str, start: int = 0, stop: int | None = None, *, if_match: str | None = None) -> bytes:
            calls.append((start, stop))
            assert stop is not None and stop - start <= 4096
            if len(calls) == 5:
                raise RemoteUnavailable('gone')
            return real(key, start, stop, if_match=if_match)

        monkeypatch.setattr(store, 'get', get)
        with pytest.raises(RemoteUnavailable):
            read(log)
        assert len(calls) == 5


def test_compaction_is_due_by_number_and_by_bytes(store: ObjectStore) -> None:
    """Many segments, or more bytes in segments than in the base."""
    log = log_of(store)
    reading = log.read()
    assert list(reading) == [] and not reading.state.is_compaction_due
    reading.state.segments = index_log.MAX_SEGMENTS + 1
    assert reading.state.is_compaction_due
    assert index_log.IndexState(segments=1, segment_bytes=3 << 20, base_bytes=2 << 20).is_compaction_due
    assert not index_log.IndexState(segments=1, segment_bytes=3 << 20, base_bytes=4 << 20).is_compaction_due


def test_of_very_many_objects_a_few_are_read_at_a_time(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes memory of its own, and anybody can add some: the others are read the next time, the later record counts all the same, and
    compactions come to one base."""
    monkeypatch.setattr(index_log, 'MAX_OPEN', 3)
    log = log_of(store)
    for at in range(1, 9):
        log.append([record('same', at), record(f'p{at}', at)])
    seen: list[str] = []
    merged: dict[str, int] = {}
    for count in (3, 3, 2, 0):
        found, seen = read(log, seen)
        merged.update(found)
        assert len(found) == count + bool(count)
    assert merged == {'same': 8, **{f'p{at}': at for at in range(1, 9)}} and sorted(seen) == names(store)
    for _ in range(20):
        log.compact(grace_ns=-1)
    assert len(names(store)) == 1 and read(log)[0] == merged
