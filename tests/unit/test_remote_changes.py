"""How the tree catches up with a bucket: which operations a trace costs, and what is left alone.

Owns remote_changes.py's and remote_index.py's decisions, on a real store, tree database and index, with the workers' own functions in this
process. What programs see of it is tests/mount's.
"""
from __future__ import annotations

import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from ctxfs.policy import SyncPolicy
from ctxfs.records import Attrs, IndexRecord, ObjectInfo
from ctxfs.rules import Rules
from ctxfs.storage.gating import Gating
from ctxfs.storage.inode import Content
from ctxfs.storage.journal import Journal
from ctxfs.storage.keys import LAST
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync import listing_parts, remote_changes, remote_tree
from ctxfs.sync.abort_slots import AbortFlags, AbortSlots
from ctxfs.sync.asides import Asides
from ctxfs.sync.descriptions import Defaults
from ctxfs.sync.doubt import Doubt
from ctxfs.sync.index_log import IndexLog
from ctxfs.sync.protocol import CompactIndex, Head, ListPages, Operation, WorkerOptions
from ctxfs.sync.reconcile import Reconciler
from ctxfs.sync.recovery import recover
from ctxfs.sync.remote_changes import RemoteChanges
from ctxfs.sync.remote_index import RemoteIndex
from ctxfs.sync.remote_tree import RemoteTreeLoader
from ctxfs.sync.worker_context import WorkerContext
from ctxfs.sync.worker_ops import HANDLERS

PREFIX = 'contexts/c/'
MODE = 0o100640


class Kernel:
    """sync's Invalidator, for a kernel that knows nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class Parts:
    """A stream that has come to its end, or one page of it at a time."""

    def __init__(self, parts: list[Any], result: Any) -> None:
        self._parts, self.result = iter(parts), result

    def __aiter__(self) -> Parts:
        return self

    async def __anext__(self) -> Any:
        await trio.lowlevel.checkpoint()
        try:
            return next(self._parts)
        except StopIteration:
            raise StopAsyncIteration from None


class Channel:
    is_cancelled = False

    def __init__(self) -> None:
        self.parts: list[Any] = []

    def part(self, value: Any) -> None:
        self.parts.append(value)

    def moved(self, count: int) -> None:
        """Nobody looks at the progress."""


class Workers:
    """The pool, on this thread; notes the operations."""

    def __init__(self, directory: Path) -> None:
        (directory / 'bucket').mkdir()
        self._slots = AbortSlots()
        self._flags = AbortFlags(self._slots.fd)
        self.context = WorkerContext(WorkerOptions(store_url=f'file://{directory}/bucket?fsync=no', cache_dir=str(directory / 'cache'),
                                                   cache_limit=1 << 30, host='here'), self._flags)
        self.asked: list[Operation[Any]] = []

    def _run(self, operation: Operation[Any]) -> Parts:
        self.asked.append(operation)
        channel = Channel()
        result = HANDLERS[type(operation)](self.context, operation, channel)
        return Parts(channel.parts, result)

    async def call(self, operation: Operation[Any], **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return self._run(operation).result

    @asynccontextmanager
    async def stream(self, operation: Operation[Any], **_: Any) -> AsyncIterator[Parts]:
        yield self._run(operation)

    def close(self) -> None:
        self.context.close()
        self._flags.close()
        self._slots.close()


class Bench:
    """A tree that has seen a bucket, and the bucket."""

    def __init__(self, directory: Path) -> None:
        self.bucket = directory / 'bucket'
        self.workers = Workers(directory)
        self.store = self.workers.context.store
        self.db = TreeDB(directory / 'tree.db')
        self.journal = Journal(self.db)
        staging = Staging(directory / 'staging')
        recover(self.db, self.journal, staging, uid=0, gid=0)
        gating = Gating(self.db, self.journal, staging, rules=Rules(SyncPolicy()))
        kernel: Any = Kernel()
        pool: Any = self.workers
        asides = Asides(self.db, self.journal, kernel, gating=gating, prefix=PREFIX, host='here')
        self.reconciler = Reconciler(self.db, self.journal, kernel, gating=gating, asides=asides, defaults=Defaults(0, 0, 0o022))
        self.index = RemoteIndex(self.db, self.journal, pool, prefix=PREFIX)
        self.changes = RemoteChanges(self.db, self.journal, self.reconciler, pool, index=self.index, prefix=PREFIX)
        self.other = IndexLog(self.store, PREFIX, host='other')
        self.stamp = 0

    def put(self, key: str, body: bytes = b'.') -> str:
        return self.store.put(PREFIX + key, body).etag

    def delete(self, key: str) -> None:
        self.store.delete(PREFIX + key)

    def record(self, key: str, etag: str = '', size: int = 1, *, mode: int | None = MODE) -> IndexRecord:
        """What another host says of a key, later than all before; without a mode a tombstone."""
        self.stamp += 1
        attrs = None if mode is None else Attrs(mode=mode, uid=1, gid=2, mtime_ns=3, atime_ns=4, ctime_ns=5)
        return IndexRecord(path=key, changed_ns=self.stamp, etag=etag, size=size if etag else 0, attrs=attrs)

    def run(self, job: Callable[..., Any], *args: Any) -> list[str]:
        """Returns the names of the operations that it took, keys of a Head instead of its name."""
        self.workers.asked.clear()
        trio.run(job, *args)
        return [name for operation in self.workers.asked for name in
                ([key.removeprefix(PREFIX) for key in operation.keys] if isinstance(operation, Head) else [type(operation).__name__])]

    def load(self) -> None:
        """What a mount does first."""
        async def job() -> None:
            await self.index.read()
            await self.changes.list_all()
            await self.changes.finish(listed='')
            self.reconciler.directories.is_live = True

        trio.run(job)

    def tree(self) -> dict[str, tuple[int, int]]:
        """Size and mode of every file."""
        found = {}
        for row in self.db.rows('SELECT ino FROM inode WHERE (mode & 61440) = 32768 AND nlink > 0'):
            inode = self.db.inode(row[0])
            for key in self.db.keys_of(inode):
                found[key] = (inode.size, inode.mode)
        return found

    def close(self) -> None:
        self.db.close()
        self.workers.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def large(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A context of ten objects, where more than three are large."""
    monkeypatch.setattr(remote_changes, 'PAGE', 3)
    for n in range(10):
        bench.put(f'd/f{n}')
    bench.load()
    return bench


def test_an_unchanged_small_context_is_one_listing(bench: Bench) -> None:
    """Also after this host changed it: then the rows say that nothing is new."""
    bench.put('a')
    bench.load()
    assert bench.run(bench.changes.look) == ['ListPages']
    known = bench.journal.known('a')
    assert known is not None
    bench.journal.put_object(known._replace(etag=bench.put('a', b'own upload'), size=10))
    assert bench.run(bench.changes.look) == ['ListPages']
    assert bench.run(bench.changes.look) == ['ListPages']


def test_a_small_context_shows_what_any_tool_did(bench: Bench) -> None:
    """Created, changed and removed objects, by one listing."""
    for key in ('changed', 'removed', 'same'):
        bench.put(key)
    bench.load()
    bench.put('changed', b'longer')
    bench.delete('removed')
    bench.put('new/deep/file')
    assert bench.run(bench.changes.look) == ['ListPages']
    assert {key: size for key, (size, _) in bench.tree().items()} == {'changed': 6, 'same': 1, 'new/deep/file': 1}
    assert bench.reconciler.counts == {'created': 4, 'changed': 1, 'removed': 1}


def test_an_unchanged_large_context_is_one_look_at_the_index(large: Bench) -> None:
    """Its own segments included, and also where index objects were there before."""
    assert large.run(large.changes.look) == ['ReadIndex']
    assert large.run(large.index.write, [large.record('d/f1')]) == ['WriteSegment']
    assert large.run(large.changes.look) == ['ReadIndex']
    assert large.run(large.changes.look) == ['ReadIndex']


def test_of_a_large_context_only_named_objects_are_looked_at(large: Bench) -> None:
    """Attributes of what is known cost nothing; another version, a new key and a tombstone a HEAD each; a tombstone of nothing known none."""
    same = large.journal.known('d/f1')
    assert same is not None
    large.other.append([large.record('d/f1', same.etag), large.record('d/f2', large.put('d/f2', b'two'), 3),
                        large.record('d/new', large.put('d/new'))])
    large.delete('d/f3')
    large.other.append([large.record('d/f3', mode=None), large.record('unheard/of', mode=None)])
    assert large.run(large.changes.look) == ['ReadIndex', 'd/f2', 'd/f3', 'd/new']
    tree = large.tree()
    assert tree['d/f1'] == (1, MODE) and tree['d/f2'] == (3, MODE) and tree['d/new'] == (1, MODE) and 'd/f3' not in tree
    assert large.run(large.changes.look) == ['ReadIndex']


def test_a_tombstone_of_what_is_there_again_removes_nothing(large: Bench) -> None:
    """The index names keys to look at; the bucket says what is."""
    large.other.append([large.record('d/f3', mode=None)])
    assert large.run(large.changes.look) == ['ReadIndex', 'd/f3']
    assert 'd/f3' in large.tree()


def test_many_named_objects_are_listed(large: Bench) -> None:
    """Where a listing takes fewer requests than the HEADs."""
    large.other.append([large.record(f'd/f{n}', large.put(f'd/f{n}', b'more'), 4) for n in range(8)])
    assert large.run(large.changes.look) == ['ReadIndex', 'ListPages']
    assert {key: size for key, (size, _) in large.tree().items()} == {f'd/f{n}': 4 if n < 8 else 1 for n in range(10)}


def test_an_empty_directory_of_another_host_appears(large: Bench) -> None:
    """Its marker is looked at once; attributes of directories that are there are only taken over."""
    large.put('empty/', b'')
    large.other.append([large.record('empty/', mode=0o040700), large.record('d/', mode=0o040750)])
    assert large.run(large.changes.look) == ['ReadIndex', 'empty/']
    ino = large.db.resolve((b'empty',))
    d = large.db.resolve((b'd',))
    assert ino is not None and large.db.inode(ino).mode == 0o040700
    assert d is not None and large.db.inode(d).mode == 0o040750


@pytest.mark.parametrize('is_marked', [True, False])
def test_a_directory_that_another_host_emptied_stays_the_same(large: Bench, is_marked: bool) -> None:
    """Where it has a marker by now, it is the same inode: a program may have it as its working directory. Where it has none, it goes."""
    etag = large.put('emptied/below/f')
    large.other.append([large.record('emptied/below/f', etag)])
    large.run(large.changes.look)
    before = large.db.resolve((b'emptied', b'below'))
    assert before is not None
    if is_marked:
        large.put('emptied/below/', b'')
        large.other.append([large.record('emptied/below/', mode=0o40755)])
    large.delete('emptied/below/f')
    large.other.append([large.record('emptied/below/f', mode=None)])
    took = large.run(large.changes.look)
    assert large.db.resolve((b'emptied', b'below', b'f')) is None
    assert large.db.resolve((b'emptied', b'below')) == (before if is_marked else None)
    assert len(took) < 10, took


def test_a_reload_below_a_path_leaves_all_others_alone(bench: Bench) -> None:
    """Neighbours that sort between the directory's name and its content are neither taken for gone nor brought up to date."""
    keys = ('a', 'a!', 'a-x', 'a.txt', 'a/1', 'a/2', 'a/b/3', 'a0', 'aa', 'b')
    for key in keys[1:]:
        bench.put(key)
    bench.load()
    for key in keys[1:]:
        bench.delete(key)
    bench.put('a/new')
    bench.put('a/2', b'changed')
    operations = bench.run(bench.changes.reload, 'a')
    assert operations == ['ReadIndex', 'a', 'ListPages']
    assert {key: size for key, (size, _) in bench.tree().items()} == {
        'a!': 1, 'a-x': 1, 'a.txt': 1, 'a/2': 7, 'a/new': 1, 'a0': 1, 'aa': 1, 'b': 1}
    bench.run(bench.changes.reload)
    assert set(bench.tree()) == {'a/2', 'a/new'}


def test_a_listing_goes_on_where_it_was_interrupted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing behind the interruption is taken for gone, and the second part brings the rest."""
    for n in range(5):
        bench.put(f'f{n}')
    bench.load()
    bench.put('f0', b'one')
    bench.put('f4', b'five')
    store_list = bench.store.list

    def in_pages_of_two(prefix: str, **more: Any) -> Any:
        return store_list(prefix, **{**more, 'limit': 2})

    monkeypatch.setattr(bench.store, 'list', in_pages_of_two)
    after: list[str | None] = []

    async def first_part() -> None:
        after.append(await bench.changes.list_all('', lambda: False))

    async def the_rest() -> None:
        after.append(await bench.changes.list_all(after[0] or ''))
        await bench.changes.finish()

    bench.run(first_part)
    assert after == ['f1']
    assert {key: size for key, (size, _) in bench.tree().items()} == {'f0': 3, 'f1': 1, 'f2': 1, 'f3': 1, 'f4': 1}
    bench.run(the_rest)
    assert after == ['f1', None]
    assert {key: size for key, (size, _) in bench.tree().items()} == {'f0': 3, 'f1': 1, 'f2': 1, 'f3': 1, 'f4': 4}
    assert bench.changes.listed_objects == 5


def test_what_was_obstructed_is_looked_at_again(large: Bench) -> None:
    """A change that came while the file had something only this host has is taken over when that is past, without new traces."""
    known = large.journal.known('d/f1')
    assert known is not None
    inode = large.db.inode(known.ino)
    inode.content = Content.STAGED
    large.db.store_content(inode)
    large.other.append([large.record('d/f1', large.put('d/f1', b'theirs'), 6)])
    large.run(large.changes.look)
    assert large.tree()['d/f1'][0] == 1
    inode.content = Content.CLEAN
    large.db.store_content(inode)
    assert large.run(large.changes.look) == ['d/f1', 'ReadIndex']
    assert large.tree()['d/f1'][0] == 6


def test_directories_that_gain_or_lose_entries_have_new_times(bench: Bench) -> None:
    """make and git go by them; an edit of a file in them is none of their business, and neither is the first listing."""
    bench.put('d/a')
    bench.put('e/b')
    bench.load()

    def time_of(name: bytes) -> int:
        ino = bench.db.resolve((name,))
        assert ino is not None
        return bench.db.inode(ino).mtime_ns

    d, e = time_of(b'd'), time_of(b'e')
    bench.put('d/new')
    bench.run(bench.changes.look)
    assert time_of(b'd') > d and time_of(b'e') == e


def test_what_another_host_compacted_costs_one_look_more(large: Bench) -> None:
    """A base of what was read already is opened once and never again."""
    same = large.journal.known('d/f1')
    assert same is not None
    large.other.append([large.record('d/f1', same.etag)])
    large.run(large.changes.look)
    large.other.compact(grace_ns=0)
    assert large.run(large.changes.look) == ['ReadIndex']
    assert large.run(large.changes.look) == ['ReadIndex']
    last: Any = large.workers.asked[0]
    bases = [info.key for info in large.store.list(PREFIX + '.ctxfs/index/').objects if info.key.endswith('.base.zst')]
    assert [key.rpartition('/')[2] for key in bases] == [name for name in last.seen if name.endswith('.base.zst')]


# --- a listing in parts ----------------------------------------------------------------------------------------------------------

def test_a_mount_that_only_writes_knows_no_more_names_than_there_are(bench: Bench) -> None:
    """Without downloads nobody reads the index again: what a compaction removed is forgotten all the same, and so are heartbeats of hosts that are
    gone."""
    bench.load()
    dead, alive = (f'{PREFIX}.ctxfs/mounts/{name}' for name in ('dead', 'alive'))
    for key in (dead, alive):
        bench.store.put(key, b'{}')
    os.utime(bench.bucket / dead, (1, 1))

    async def job() -> None:
        for number in range(6):
            for part in range(5):
                await bench.index.write([bench.record(f'{number}-{part}', 'e')])
            await bench.workers.call(CompactIndex(prefix=PREFIX, grace_seconds=-1))
            await bench.index.compact()
            assert len(bench.index._names) <= 6
    trio.run(job)
    assert len(msgspec.json.decode(bench.db.meta('index_names'))) <= 6
    assert not (bench.bucket / dead).exists() and (bench.bucket / alive).exists()


@pytest.mark.parametrize('is_listed_next', [False, True], ids=['rows', 'held'])
def test_a_large_context_is_listed_in_parts_side_by_side(bench: Bench, monkeypatch: pytest.MonkeyPatch, is_listed_next: bool) -> None:
    """Where the index says what there is. Each object once, also those that it does not know, and what is gone from any part is gone."""
    for module in (listing_parts, remote_changes, remote_tree):
        monkeypatch.setattr(module, 'PAGE', 3)
    records = []
    for number in range(40):
        key = f'd{number // 5}/f{number:02}'
        records.append(bench.record(key, bench.put(key)))
    bench.other.append(records)

    async def load() -> None:
        await bench.index.read(is_listed_next=is_listed_next)
        await bench.changes.list_all_at_once()
        await bench.changes.finish(listed='')
    assert bench.run(load) == ['ReadIndex', *['ListPages'] * listing_parts.PARTS]
    listings = sorted((operation for operation in bench.workers.asked if isinstance(operation, ListPages)), key=lambda part: part.start_after)
    assert [part.stop_after for part in listings] == [part.start_after for part in listings[1:]] + ['']
    assert set(bench.tree()) == {record.path for record in records} and {mode for _, mode in bench.tree().values()} == {MODE}
    assert bench.changes.listed_objects == 41       # and the segment of the index
    for number in (0, 9, 10, 11, 20, 39):
        bench.delete(f'd{number // 5}/f{number:02}')
    bench.put('d2/new')
    bench.other.append([bench.record(record.path, record.etag) for record in records])
    bench.run(load)
    assert set(bench.tree()) == {record.path for number, record in enumerate(records) if number not in (0, 9, 10, 11, 20, 39)} | {'d2/new'}


def test_what_a_listing_in_parts_has_passed(bench: Bench) -> None:
    """Only what one part has wholly seen: a directory that a part ends in is nobody's, and no part speaks for another."""
    first, last = bench.changes.parts.begin(['', 'm/k'])
    assert not bench.changes.parts.has_passed('a/') and not bench.changes.parts.has_passed('z/')
    first.after, last.after = 'c/x', 'p/x'
    assert [name for name in ('a/', 'b/', 'c/', 'd/', 'm/', 'n/', 'p/', 'z/') if bench.changes.parts.has_passed(name)] == ['a/', 'b/', 'n/']
    first.is_done = last.is_done = True
    assert [name for name in ('c/', 'l/', 'm/', 'n/', 'z/') if bench.changes.parts.has_passed(name)] == ['c/', 'l/', 'n/', 'z/']


def test_what_comes_soon_is_told_by_the_index(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what lies between, also within the directory; nothing is said of what is behind, or of a part that has come to its end."""
    monkeypatch.setattr(listing_parts, 'SOON', 3)
    bench.other.append([bench.record(f'd{number}/f', '"e"') for number in range(9)])
    bench.run(bench.index.read)
    part, = bench.changes.parts.begin([''])
    part.after = 'd2/f'
    assert [number for number in range(9) if bench.changes.parts.comes_soon(f'd{number}/')] == [2, 3, 4, 5]
    part.is_done = True
    assert not bench.changes.parts.comes_soon('d3/')


# --- the next mount --------------------------------------------------------------------------------------------------------------

def mount_again(bench: Bench, *, ended_cleanly: int = 1) -> list[str]:
    """The operations of the next mount until it knows the whole."""
    bench.db.set_meta('was_listed', 1)
    bench.db.set_meta('ended_cleanly', ended_cleanly)
    pool: Any = bench.workers
    doubt = Doubt(bench.db, bench.journal, pool, prefix=PREFIX, host='here')
    loader = RemoteTreeLoader(bench.db, bench.journal, bench.reconciler, pool, doubt=doubt, prefix=PREFIX)
    bench.index = RemoteIndex(bench.db, bench.journal, pool, prefix=PREFIX)
    bench.changes = loader.changes
    return bench.run(loader.run)


def test_the_next_mount_of_a_large_context_goes_on_where_the_last_one_was(large: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look at the index, whatever the size; what other hosts did is there."""
    monkeypatch.setattr(remote_tree, 'PAGE', 3)
    assert mount_again(large) == ['ReadIndex']
    assert len(large.tree()) == 10 and large.changes.listed_objects == 10
    large.other.append([large.record('d/f1', large.put('d/f1', b'theirs'), 6)])
    assert mount_again(large) == ['ReadIndex', 'd/f1']
    assert large.tree()['d/f1'] == (6, MODE)


@pytest.mark.parametrize('why', ['small', 'old', 'future', 'killed', 'other white lists', 'obstructed'])
def test_the_next_mount_lists_the_whole_where_that_may_not_do(large: Bench, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tools did that write no index would else stay unseen for longer than a mount takes to look."""
    monkeypatch.setattr(remote_tree, 'PAGE', 10 if why == 'small' else 3)
    large.put('new')
    if why == 'old':
        large.db.set_meta('listed_at', time.time() - remote_tree.LIST_SECONDS - 1)
    elif why == 'future':
        large.db.set_meta('listed_at', time.time() + 3600)
    elif why == 'other white lists':
        large.changes.forget()
    elif why == 'obstructed':
        large.reconciler.obstructed.add('new')
    large.changes.end()
    large.reconciler.obstructed.take()
    assert mount_again(large, ended_cleanly=int(why != 'killed')) == ['ReadIndex', 'ListPages']
    assert 'new' in large.tree()


def test_new_files_of_a_listing_cost_few_statements(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of 50 files, and eight of a directory."""
    counts: list[int] = []
    for name in ('execute', 'row', 'rows', 'many'):
        def counted(self: TreeDB, *args: Any, real: Any = getattr(TreeDB, name)) -> Any:
            counts[-1] += 1
            return real(self, *args)
        monkeypatch.setattr(TreeDB, name, counted)
    for number, files, directories in (('a', 20, 5), ('b', 200, 5), ('c', 200, 50)):
        objects = [ObjectInfo(key=f'{number}{directory:02}/f{file:04}', size=1, etag='"e"', mtime_ns=1)
                   for directory in range(directories) for file in range(files // directories)]
        counts.append(0)
        bench.reconciler.apply(objects, after=number, last=number + LAST)
    counts.append(0)        # of what follows
    assert counts[1] <= counts[0] + 180 // 50 * 3 + 3 and counts[2] <= counts[1] + 45 * 8 and len(bench.tree()) == 420, counts


def odd_context(bench: Bench) -> None:
    """Objects, and what the index says of them: true, of another version, of more than one name, of what is not there."""
    attrs = Attrs(mode=0o120777, uid=7, gid=8, mtime_ns=1, atime_ns=2, ctime_ns=3, target=b'else/where')
    extended = Attrs(mode=0o100600, uid=7, gid=8, mtime_ns=1, atime_ns=2, ctime_ns=3, xattrs={'user.x': b'y'})
    for key in ('a', 'dir/', 'dir/b', 'dir/deep/c', 'link1', 'link2', 'nobody', 'stale', 'sym', 'x//y', 'xattr'):
        bench.put(key, b'' if key == 'dir/' else b'.')
    for path in bench.bucket.glob('**/*'):
        os.utime(path, ns=(1, 1), follow_symlinks=False)
    etags = {info.key.removeprefix(PREFIX): info.etag for info in bench.store.list(PREFIX).objects}
    records = [bench.record(key, etags[key]) for key in ('a', 'dir/b', 'dir/deep/c', 'x//y')]
    records += [msgspec.structs.replace(bench.record(key, etags[key]), link='group') for key in ('link1', 'link2')]
    records += [msgspec.structs.replace(bench.record(key, etags[key]), attrs=attrs if key == 'sym' else extended, lifecycle='Lifecycle_30Days')
                for key in ('sym', 'xattr')]
    records += [bench.record('stale', '"another"'), bench.record('gone', '"gone"'), bench.record('removed', mode=None)]
    bench.other.append([*records, bench.record('dir/', mode=0o040700), bench.record('empty/', mode=0o040711), bench.record('/', mode=0o040750)])


def everything(bench: Bench) -> dict[str, str]:
    """Every row, etags without what tells one bucket's file from another's."""
    return {table: re.sub(r'"(1-1|d)-[0-9a-f-]+"', r'"\1"', '\n'.join(map(str, bench.db.rows(f'SELECT * FROM {table} ORDER BY 1, 2'))))
            for table in ('inode', 'dentry', 'object', 'unmountable', 'hint')}


def test_hints_that_have_no_rows_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the records of a first listing wait in memory, in rows, or some here and some there: the tree is the same, and so is what is left."""
    found = []
    monkeypatch.setattr('ctxfs.sync.worker_ops_index._PART_RECORDS', 3)
    monkeypatch.setattr(time, 'time_ns', lambda: 1)
    for number, most in enumerate((0, 700, 1 << 20)):
        (directory := tmp_path / str(number)).mkdir()
        bench = Bench(directory)
        odd_context(bench)
        bench.journal._held._most = most

        async def job(bench: Bench = bench, most: int = most) -> None:
            await bench.index.read(is_listed_next=True)
            assert bool(bench.journal._held) == bool(most)
            await bench.changes.list_all_at_once()
            await bench.changes.finish(listed='')
        trio.run(job)
        assert not bench.journal._held
        found.append(everything(bench))
        bench.close()
    assert found[0] == found[1] == found[2]
    assert found[0]['hint'].startswith("('x//y'") and '\n' not in found[0]['hint']
    assert all(f', {mode}, ' in found[0]['inode'] for mode in (MODE, 0o120777, 0o100600, 0o040700, 0o040750))


def test_a_first_listing_writes_no_row_for_what_it_uses_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the files cost no more rows of hints: those of directories, and of what the listing did not show."""
    written: list[int] = []
    real = Journal.add_hints
    monkeypatch.setattr(Journal, 'add_hints', lambda self, records: (written.append(len(found := list(records))), real(self, found))[1])

    def first_mount(name: str, files: int) -> int:
        records = [bench.record(key, bench.put(key)) for key in (f'{name}/f{number:03}' for number in range(files))]
        bench.other.append([*records, bench.record(f'{name}/', mode=0o040700), bench.record(f'{name}/gone', '"e"')])
        written.clear()

        async def job() -> None:
            await bench.changes.read_index(is_listed_next=True)
            await bench.changes.list_all_at_once()
            await bench.changes.finish(listed='')
        trio.run(job)
        return sum(written)
    assert first_mount('a', 8) == first_mount('b', 80) == 2
    assert len(bench.tree()) == 88 and {mode for _, mode in bench.tree().values()} == {MODE}


def test_a_listing_that_did_not_end_has_lost_no_hint(bench: Bench) -> None:
    """The index counts as read only when all that it says was applied: the next mount reads it once more."""
    bench.other.append([bench.record('a', bench.put('a')), bench.record('b', bench.put('b'))])

    async def half() -> None:
        await bench.index.read(is_listed_next=True)
        bench.reconciler.apply([ObjectInfo(key='a', size=1, etag=bench.store.head(PREFIX + 'a').etag, mtime_ns=1)], after='', last='a')
    trio.run(half)
    bench.journal = Journal(bench.db)
    bench.index = RemoteIndex(bench.db, bench.journal, bench.index._pool, prefix=PREFIX)
    bench.changes._index, bench.changes._journal, bench.reconciler._journal = bench.index, bench.journal, bench.journal
    bench.load()
    assert bench.tree() == {'a': (1, MODE), 'b': (1, MODE)}


def test_new_files_meet_what_has_their_names(bench: Bench) -> None:
    """In the order of the listing: a local file keeps its name, a file gives way to a directory, and what comes after them is there."""
    bench.load()
    mine = bench.reconciler._describer.new_file(ObjectInfo(key='d/mine', size=1, etag='', mtime_ns=1), None)
    parent = bench.reconciler._directory('d/', None)
    assert parent is not None
    bench.db.insert_dentry(parent, b'mine', mine.ino)
    for key in ('a', 'a/b', 'd/first', 'd/mine', 'd/z', 'e'):
        bench.put(key, b'theirs')
    bench.load()
    assert bench.db.lookup(parent, b'mine') == mine.ino
    assert set(bench.tree()) == {'a/b', 'd/first', 'd/mine', 'd/z', 'e'}
    assert bench.journal.known('d/mine') is None and 'd/mine' in bench.reconciler.obstructed.keys
    assert bench.journal.is_unmountable('a')
