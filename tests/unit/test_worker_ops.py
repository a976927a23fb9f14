"""The workers' operations on a real store, in this process, so that faults can be put between them and the store."""
from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ctxfs import errors
from ctxfs.records import Attrs, PutResult
from ctxfs.storage.block_cache import BLOCK_SIZE
from ctxfs.storage.object_store import Condition
from ctxfs.sync import worker_ops_put, worker_ops_read
from ctxfs.sync.abort_slots import AbortFlags, AbortSlots
from ctxfs.sync.protocol import Adopt, AdoptItem, Copy, DeleteMany, Fetch, Head, Hydrate, PutBytes, PutDone, PutFile, PutMany, WorkerOptions
from ctxfs.sync.worker_context import WorkerContext

ATTRS = Attrs(mode=0o100640, uid=7, gid=8, mtime_ns=1_700_000_000_123_456_789, atime_ns=0, ctime_ns=0)
LARGE = worker_ops_put.WHOLE_BYTES + 12345
SIZES = [0, 1, 5000, worker_ops_put.WHOLE_BYTES, LARGE]


class Channel:
    """Collects what an operation says."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self.bytes_moved = 0

    def part(self, value: Any) -> None:
        raise AssertionError('no stream here')

    def moved(self, count: int) -> None:
        self.bytes_moved += count


class Faults:
    """A store whose calls can be watched and made to fail after they were done."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.after: dict[str, Callable[[], None]] = {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            result = method(*args, **kwargs)
            self.after.pop(name, lambda: None)()
            return result
        return call


def lost() -> None:
    raise errors.RemoteUnavailable('the response was lost')


class Bench:
    """A worker's context with a file store, a cache, slots, and a staging directory."""

    def __init__(self, directory: Path) -> None:
        (directory / 'bucket').mkdir()
        self.directory = directory
        self.slots = AbortSlots()
        self.flags = AbortFlags(self.slots.fd)
        self.context = WorkerContext(WorkerOptions(store_url=f'file://{directory}/bucket?fsync=no', cache_dir=str(directory / 'cache'),
                                                   cache_limit=1 << 30, host='me'), self.flags)
        self.store = Faults(self.context.store)
        self.context.store = self.store  # type: ignore[assignment]

    def close(self) -> None:
        self.context.close()
        self.flags.close()
        self.slots.close()

    def stage(self, data: bytes, name: str = 'staged') -> str:
        (self.directory / name).write_bytes(data)
        return str(self.directory / name)

    def put(self, data: bytes, *, key: str = 'k', channel: Channel | None = None, **options: Any) -> Any:
        operation = PutFile(key=key, path=self.stage(data), size=options.pop('size', len(data)), attrs=ATTRS,
                            revision=options.pop('revision', 1), **options)
        return worker_ops_put.put_file(self.context, operation, channel or Channel())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


# --- uploads ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('size', SIZES)
def test_an_upload_is_the_file_with_its_attributes_and_its_stamp(bench: Bench, size: int) -> None:
    """Content, etag, hash, POSIX metadata and stamp are all there, for files of every path through the code."""
    data = os.urandom(size)
    channel = Channel()
    done = bench.put(data, channel=channel, revision=5)
    item, = worker_ops_read.head(bench.context, Head(keys=['k']), Channel())
    assert bench.store.get('k') == data and channel.bytes_moved == size
    assert done.sha256 == hashlib.sha256(data).hexdigest() and item.info is not None and done.etag == item.info.etag
    assert item.attrs is not None and (item.attrs.mode, item.attrs.uid, item.attrs.mtime_ns) == (ATTRS.mode, 7, ATTRS.mtime_ns)
    assert item.stamp is not None and (item.stamp.sha256, item.stamp.host, item.stamp.revision) == (done.sha256, 'me', 5)


def test_of_a_batch_each_file_ends_in_its_own_way(bench: Bench) -> None:
    """And what one meets does not touch the others; progress is told as they arrive."""
    bench.put(b'theirs', key='taken')
    slot, channel = bench.slots.acquire(), Channel()
    slot.abort()

    def file(key: str, data: bytes | None, **options: Any) -> PutFile:
        path = bench.stage(data, key) if data is not None else str(bench.directory / 'gone')
        return PutFile(key=key, path=path, size=len(data or b''), attrs=ATTRS, revision=1, **options)
    files = [file('one', b'1'), file('taken', b'mine', condition=Condition(absent=True)), file('moved', b'2', abort_slot=slot.index),
             file('lost', None), file('two', b'22')]
    done = worker_ops_put.put_many(bench.context, PutMany(files=files, parallel=2), channel)
    outcomes = [item.outcome() for item in done.items]
    assert [type(outcome) for outcome in outcomes] == [PutDone, errors.RemoteChanged, PutDone, errors.NotFound, PutDone]
    assert [isinstance(outcome, PutDone) and outcome.is_aborted for outcome in outcomes] == [False, False, True, False, False]
    assert (bench.store.get('one'), bench.store.get('taken'), bench.store.get('two')) == (b'1', b'theirs', b'22')
    assert channel.bytes_moved == 3
    with pytest.raises(errors.NotFound):
        bench.store.head('moved')


def test_of_a_batch_that_nobody_waits_for_nothing_more_is_begun(bench: Bench) -> None:
    channel = Channel()
    channel.is_cancelled = True
    file = PutFile(key='k', path=bench.stage(b'x'), size=1, attrs=ATTRS, revision=1)
    item, = worker_ops_put.put_many(bench.context, PutMany(files=[file], parallel=1), channel).items
    assert isinstance(item.outcome(), errors.CtxfsError) and 'put' not in bench.store.calls


@pytest.mark.parametrize('refusal', [errors.OutOfTurn, errors.Contradicted])
def test_what_was_never_sent_is_not_looked_for(bench: Bench, refusal: type[errors.CtxfsError]) -> None:
    """The same content in the bucket is somebody else's then: it is no answer to a write that was not made."""
    bench.put(b'same')
    bench.store.calls.clear()

    def refuse() -> None:
        raise refusal('not now')
    for write in (lambda: bench.put(b'same'), lambda: worker_ops_put.put_bytes(
            bench.context, PutBytes(key='k', body=b'same', attrs=ATTRS, revision=1, link='', content_type=None), Channel())):
        bench.store.after['put'] = refuse
        with pytest.raises(refusal):
            write()
    assert 'head' not in bench.store.calls


@pytest.mark.parametrize('size', SIZES)
def test_a_slot_that_is_set_while_the_file_is_read_leaves_the_bucket_alone(bench: Bench, size: int,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """The abort comes after the last read of the hash pass and before the commit: nothing becomes visible."""
    bench.put(b'before')
    slot = bench.slots.acquire()
    real = hashlib.sha256

    def hash_and_abort(*args: Any) -> Any:
        slot.abort()
        return real(*args)

    monkeypatch.setattr(hashlib, 'sha256', hash_and_abort)
    assert bench.put(os.urandom(size), abort_slot=slot.index).is_aborted
    assert bench.store.get('k') == b'before'


def test_a_large_upload_is_aborted_even_while_it_is_sent(bench: Bench) -> None:
    """The slot is asked again after the last byte was read for sending."""
    slot = bench.slots.acquire()
    channel = Channel()
    channel.moved = lambda count: slot.abort()  # type: ignore[method-assign]
    assert bench.put(os.urandom(LARGE), abort_slot=slot.index, channel=channel).is_aborted
    with pytest.raises(errors.NotFound):
        bench.store.head('k')


@pytest.mark.parametrize(('actual', 'expected'), [(5000, 4999), (5000, 5001), (LARGE, LARGE - 1), (LARGE, LARGE + 1), (0, 1)])
def test_a_file_of_another_size_than_announced_is_not_uploaded(bench: Bench, actual: int, expected: int) -> None:
    """It moved since the request was made."""
    assert bench.put(os.urandom(actual), size=expected).is_aborted
    assert 'put' not in bench.store.calls and 'put_file' not in bench.store.calls


def test_a_staging_file_that_is_gone_is_not_found(bench: Bench) -> None:
    """The error is the worker's translation of the system's."""
    with pytest.raises(FileNotFoundError):
        worker_ops_put.put_file(bench.context, PutFile(key='k', path='/nowhere', size=1, attrs=ATTRS, revision=1), Channel())


def test_content_equal_to_the_base_is_not_sent(bench: Bench) -> None:
    """Skipped with the base's etag; not when the content differs, and not without a base."""
    first = bench.put(b'same')
    bench.store.calls.clear()
    again = bench.put(b'same', condition=Condition(etag=first.etag), base_sha256=first.sha256)
    assert again.is_skipped and again.etag == first.etag and not {'put', 'put_file', 'head', 'get'} & set(bench.store.calls)
    assert not bench.put(b'other', condition=Condition(etag=first.etag), base_sha256=first.sha256).is_skipped
    assert not bench.put(b'new', key='n', condition=Condition(absent=True), base_sha256=hashlib.sha256(b'new').hexdigest()).is_skipped


@pytest.mark.parametrize('size', [10, LARGE])
def test_a_lost_response_is_recovered_by_the_stamp(bench: Bench, size: int) -> None:
    """The object is ours: success, with its etag, and no second upload."""
    bench.store.after = {'put': lost, 'put_file': lost}
    data = os.urandom(size)
    done = bench.put(data)
    assert done.is_recovered and bench.store.get('k') == data and done.etag == bench.store.head('k').etag


def test_a_retry_after_a_lost_response_meets_its_own_object(bench: Bench) -> None:
    """The condition fails because the first try arrived: that is success, not a conflict."""
    bench.put(b'mine', revision=3, condition=Condition(absent=True))
    assert bench.put(b'mine', revision=3, condition=Condition(absent=True)).is_recovered


def test_other_content_is_a_conflict(bench: Bench) -> None:
    """Other content under the name raises RemoteChanged and is left alone."""
    bench.put(b'mine', revision=3)
    with pytest.raises(errors.RemoteChanged):
        bench.put(b'else', revision=3, condition=Condition(absent=True))
    assert bench.store.get('k') == b'mine'


def test_the_same_content_is_no_conflict(bench: Bench) -> None:
    """After a crash the revision counts from the row again: what decides is the content, so it is no conflict, whoever wrote it."""
    bench.put(b'mine', revision=3)
    assert bench.put(b'mine', revision=2, condition=Condition(absent=True)).is_recovered


def test_a_kept_stamp_on_other_content_is_a_conflict(bench: Bench) -> None:
    """A tool that rewrites an object and keeps its metadata leaves our stamp on content that is not ours."""
    bench.put(b'mine', revision=3)
    stamped = bench.store.head('k').metadata
    bench.store.put('k', b'else', metadata=stamped)
    with pytest.raises(errors.RemoteChanged):
        bench.put(b'mine', revision=3, condition=Condition(absent=True))


def test_an_outcome_that_cannot_be_found_out_stays_unknown(bench: Bench) -> None:
    """The HEAD fails too: RemoteUnavailable."""
    bench.store.after = {'put': lost, 'head': lost}
    with pytest.raises(errors.RemoteUnavailable):
        bench.put(b'x')


def test_small_bodies_copies_and_deletes(bench: Bench) -> None:
    """A marker, a copy with another lifecycle, a copy whose answer was lost, a conditional batch delete."""
    marker = worker_ops_put.put_bytes(bench.context, PutBytes(key='d/', body=b'', attrs=ATTRS, condition=Condition(absent=True)), Channel())
    bench.store.after = {'put': lost}
    link = worker_ops_put.put_bytes(bench.context, PutBytes(key='l', body=b'target'), Channel())
    assert link.is_recovered and bench.store.head('l').etag == link.etag and bench.store.head('d/').etag == marker.etag
    source = bench.put(b'content', key='s')
    bench.store.after = {'copy': lost}
    copied = worker_ops_put.copy(bench.context, Copy(source='s', key='t', source_etag=source.etag, sha256=source.sha256,
                                                     lifecycle='Lifecycle_1Day'), Channel())
    assert copied.lifecycle == 'Lifecycle_1Day'
    assert bench.store.get('t') == b'content' and copied.etag == bench.store.head('t').etag
    bench.store.after = {'copy': lost}
    plain = worker_ops_put.copy(bench.context, Copy(source='s', key='u'), Channel())
    assert plain.etag == bench.store.head('u').etag
    done = worker_ops_put.delete_many(bench.context, DeleteMany(items=[('s', source.etag), ('t', '"stale"'), ('none', None)]), Channel())
    assert [(item.key, type(item.error())) for item in done.failures] == [('t', errors.RemoteChanged)]
    with pytest.raises(errors.NotFound):
        bench.store.head('s')


# --- reading ---------------------------------------------------------------------------------------------------------------------

def test_heads_come_in_order_with_symlink_targets_and_failures(bench: Bench) -> None:
    """A symlink's body becomes its target; a missing key is an item, not an error of the batch."""
    link = Attrs(mode=stat.S_IFLNK | 0o777, uid=0, gid=0, mtime_ns=0, atime_ns=0, ctime_ns=0)
    worker_ops_put.put_bytes(bench.context, PutBytes(key='link', body=b'../\xff', attrs=link), Channel())
    bench.store.put('plain', b'x')
    items = worker_ops_read.head(bench.context, Head(keys=['link', 'none', 'plain']), Channel())
    assert [item.key for item in items] == ['link', 'none', 'plain']
    assert items[0].attrs is not None and items[0].attrs.target == b'../\xff'
    assert items[1].failure is not None and isinstance(items[1].failure.error(), errors.NotFound)
    assert items[2].attrs is not None and stat.S_ISREG(items[2].attrs.mode) and items[2].stamp is None


def put_plain(bench: Bench, data: bytes) -> PutResult:
    result: PutResult = bench.store.put('k', data)
    bench.store.calls.clear()
    return result


def test_a_fetch_brings_the_blocks_into_the_cache_and_only_those_that_are_missing(bench: Bench) -> None:
    """The runs are ranged GETs; blocks that are there are not fetched again; the end of the object is respected."""
    data = os.urandom(11 * BLOCK_SIZE + 5)
    etag = put_plain(bench, data).etag
    one = worker_ops_read.fetch(bench.context, Fetch(key='k', etag=etag, size=len(data), start=2), Channel())
    assert (one.start, one.stop, one.fetched) == (2, 3, BLOCK_SIZE)
    rest = worker_ops_read.fetch(bench.context, Fetch(key='k', etag=etag, size=len(data), start=0, count=99), Channel())
    assert (rest.stop, rest.fetched) == (12, len(data) - BLOCK_SIZE)
    assert len(bench.store.calls) == 1 + 1 + 3, 'blocks 0-1, 3-6, 7-10, 11'
    for block in range(12):
        found = bench.context.cache.open_block('k', etag, block)
        assert found is not None
        assert os.pread(found.fd, found.length, found.offset) == data[block * BLOCK_SIZE:(block + 1) * BLOCK_SIZE]
        os.close(found.fd)


def test_a_fetch_of_a_version_that_is_gone_is_remote_changed(bench: Bench) -> None:
    """Nothing of the new version gets into the old one's blocks."""
    etag = put_plain(bench, b'a' * 100).etag
    put_plain(bench, b'b' * 100)
    with pytest.raises(errors.RemoteChanged):
        worker_ops_read.fetch(bench.context, Fetch(key='k', etag=etag, size=100), Channel())
    assert bench.context.cache.count() == 0


@pytest.mark.parametrize('size', [0, 1, BLOCK_SIZE, 9 * BLOCK_SIZE + 7])
@pytest.mark.parametrize('cached', ['nothing', 'some', 'adopted'])
def test_hydrating_makes_the_file_from_cache_and_store(bench: Bench, size: int, cached: str) -> None:
    """The file is right whatever the cache has, costs only what it has not, and replaces nothing until it is whole."""
    data = os.urandom(size)
    etag = put_plain(bench, data).etag
    if cached == 'some' and size > BLOCK_SIZE:
        bench.context.cache.store('k', etag, 1, data[BLOCK_SIZE:3 * BLOCK_SIZE])
    if cached == 'adopted':
        worker_ops_read.adopt(bench.context, Adopt(items=[AdoptItem(path=bench.stage(data), key='k', etag=etag, size=size)]), Channel())
    target = bench.directory / 'target'
    done = worker_ops_read.hydrate(bench.context, Hydrate(key='k', etag=etag, size=size, path=str(target)), Channel())
    assert target.read_bytes() == data
    expected = {'nothing': size, 'some': size - (2 * BLOCK_SIZE if size > BLOCK_SIZE else 0), 'adopted': 0}
    assert done.fetched == expected[cached]


def test_a_hydration_that_fails_leaves_no_file(bench: Bench) -> None:
    """Neither the target nor a temporary file is there, and what was there before still is."""
    etag = put_plain(bench, os.urandom(6 * BLOCK_SIZE)).etag
    put_plain(bench, b'new version')
    target = bench.directory / 'target'
    target.write_bytes(b'old')
    with pytest.raises(errors.RemoteChanged):
        worker_ops_read.hydrate(bench.context, Hydrate(key='k', etag=etag, size=6 * BLOCK_SIZE, path=str(target)), Channel())
    assert target.read_bytes() == b'old'
    assert sorted(path.name for path in bench.directory.iterdir()) == ['bucket', 'cache', 'target']


def test_run_all_ends_only_when_everything_has_ended(bench: Bench) -> None:
    """A failing part does not return while another still uses what the caller will take away."""
    release, running, ended = threading.Event(), threading.Event(), []

    def work(number: int) -> None:
        if number == 0:
            running.wait(10)
            threading.Timer(0.05, release.set).start()
            raise errors.NotFound('first')
        running.set()
        release.wait(10)
        ended.append(number)

    with pytest.raises(errors.NotFound, match='first'):
        bench.context.run_all(work, [0, 1])
    assert ended == [1]
