"""Lifetimes without a mount: what has expired goes, whoever uploaded it and whatever the policy says today; days pass by the clock given.

The store is a real directory; where a bucket's own rules matter, a small S3 server.
"""
from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from ctxfs.errors import NotFound, RemoteUnavailable
from ctxfs.policy import FOREVER, RecyclePolicy, SyncPolicy
from ctxfs.records import LIFECYCLE_NAME, IndexRecord, ObjectInfo
from ctxfs.rules import Rules
from ctxfs.storage.inode import Content, Reason
from ctxfs.storage.journal import Known
from ctxfs.storage.s3_retry import ATTEMPTS
from ctxfs.storage.stores import open_store
from ctxfs.sync.attributes import get_attrs
from ctxfs.sync.pool import Priority
from ctxfs.sync.protocol import DeleteMany, EnsureExpiry, Head, WriteSegment
from ctxfs.sync.recycle import DAY_NS, LATE_NS, SLACK_NS, SWEEP_SECONDS, Recycler
from tests.fakes.s3_server import FakeS3, Fault, Quirk
from tests.unit.test_sync_regressions import PREFIX, Host

DAY = 'Lifecycle_1Day'
POLICY = SyncPolicy(recycle_policy=RecyclePolicy(lifecycle=DAY, paths=('logs',)))


class Clock:
    """Starts at the store's present; a test turns it."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class Bench(Host):
    """A host with a recycler, and objects that carry a lifetime."""

    def start(self) -> None:
        super().start()
        self.clock = Clock()
        self.rules = Rules(POLICY)
        self.asked: list[Any] = []
        self._call, self.workers.call = self.workers.call, self.call  # type: ignore[method-assign]
        pool: Any = self.workers
        self.recycler = Recycler(self.db, self.journal, pool, rules=self.rules, reconciler=self.reconciler, finisher=self.finisher,
                                 prefix=PREFIX, now_ns=self.clock)
        self.remote._note_index()       # there is none

    async def call(self, operation: Any, **options: Any) -> Any:
        self.asked.append(operation)
        return await self._call(operation, **options)

    def upload(self, key: str, body: bytes = b'body', lifecycle: str = DAY) -> ObjectInfo:
        """By this host: the object, and the row that its upload left."""
        info = self.remote_upload(key, body, lifecycle)
        self.reconciler.apply_directory([info], [])
        self.journal.note_lifetime(key, info.etag, lifecycle, info.mtime_ns)
        return info

    def remote_upload(self, key: str, body: bytes = b'body', lifecycle: str = DAY) -> ObjectInfo:
        """By anybody; its line in a listing."""
        store = self.workers.context.store
        done = store.put(PREFIX + key, body, metadata={LIFECYCLE_NAME: lifecycle} if lifecycle else None,
                         tags={LIFECYCLE_NAME: lifecycle} if lifecycle else None)
        info = store.head(PREFIX + key)
        self.clock.now_ns = max(self.clock.now_ns, info.mtime_ns)
        return ObjectInfo(key=key, size=len(body), etag=done.etag, mtime_ns=info.mtime_ns)

    def pass_time(self, ns: int) -> None:
        self.clock.now_ns += ns

    def sweep(self) -> None:
        async def main() -> None:
            await self.recycler.sweep()
        trio.run(main)

    def keys(self) -> set[str]:
        return {info.key[len(PREFIX):] for info in self.workers.context.store.list(PREFIX).objects if '.ctxfs/' not in info.key}

    def is_shown(self, *path: bytes) -> bool:
        return self.db.resolve(path) is not None


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def test_what_has_expired_goes_and_the_rest_stays(bench: Bench) -> None:
    """Not a moment before its time; then from the bucket and from the mount, kernel included, and other hosts are told."""
    bench.upload('logs/old')
    bench.upload('logs/month', lifecycle='Lifecycle_30Days')
    bench.upload('keep/forever', lifecycle='')
    bench.pass_time(DAY_NS)
    bench.sweep()
    assert bench.asked == []
    bench.pass_time(SLACK_NS)
    bench.sweep()
    assert bench.keys() == {'logs/month', 'keep/forever'}
    assert not bench.is_shown(b'logs', b'old') and bench.is_shown(b'logs', b'month') and bench.is_shown(b'keep', b'forever')
    logs = bench.db.resolve((b'logs',))
    assert ('entry', logs, b'old') in bench.kernel.told
    [segment] = [operation for operation in bench.asked if isinstance(operation, WriteSegment)]
    assert [(record.path, record.attrs) for record in segment.records] == [('logs/old', None)]
    assert bench.journal.known('logs/old') is None and bench.journal.unannounced(9) == []
    assert bench.recycler.removed == 1
    bench.pass_time(29 * DAY_NS)
    bench.sweep()
    assert bench.keys() == {'keep/forever'} and not bench.is_shown(b'logs')


def test_nothing_is_asked_while_nothing_is_due(bench: Bench) -> None:
    """A sweep of tagged objects that are young costs no request."""
    for number in range(5):
        bench.upload(f'logs/{number}')
    bench.sweep()
    assert bench.asked == []


def test_more_than_one_batch_expires_in_one_sweep(bench: Bench) -> None:
    """150 objects: three rounds of HEADs and deletes."""
    for number in range(150):
        bench.upload(f'logs/{number:03}')
    bench.upload('logs/young')
    bench.journal.note_lifetime('logs/young', bench.journal.known('logs/young').etag, DAY, bench.clock.now_ns + DAY_NS)  # type: ignore[union-attr]
    bench.pass_time(DAY_NS + SLACK_NS)
    bench.sweep()
    assert bench.keys() == {'logs/young'}
    assert [len(operation.keys) for operation in bench.asked if isinstance(operation, Head)] == [64, 64, 22]


@pytest.mark.parametrize('policy', [SyncPolicy(), SyncPolicy(recycle_policy=RecyclePolicy(lifecycle='Lifecycle_30Days', paths=('logs',)))],
                         ids=['forever', 'longer'])
def test_it_expires_by_its_tag_whatever_the_policy_says_today(bench: Bench, policy: SyncPolicy) -> None:
    """The lifetime belongs to the object."""
    bench.upload('logs/old')
    bench.rules.replace(policy)
    bench.pass_time(DAY_NS + SLACK_NS)
    bench.sweep()
    assert bench.keys() == set()


def test_an_upload_of_another_host_expires_by_its_index_record(bench: Bench) -> None:
    """Time from the listing, lifecycle from the index."""
    info = bench.remote_upload('logs/theirs')
    bench.upload('other')
    attrs = get_attrs(bench.inode_at(b'other'))
    record = IndexRecord(path=info.key, changed_ns=1, etag=info.etag, size=info.size, attrs=attrs, lifecycle=DAY)
    bench.journal.add_hints([record])
    bench.reconciler.apply([info], after='logs/', last='logs/theirs')
    bench.pass_time(DAY_NS + SLACK_NS)
    bench.sweep()
    assert bench.keys() == set()


LOOKS: dict[str, Callable[[Bench], Awaitable[None]]] = {
    'a program': lambda bench: bench.remote.ensure_attrs([bench.inode_at(b'logs', b'theirs')]),
    'the warm-up': lambda bench: bench.remote.learn_attrs([bench.inode_at(b'logs', b'theirs').ino], priority=Priority.IDLE),
    'the poller': lambda bench: bench.remote.changes.examine(['logs/theirs']),
}


@pytest.mark.parametrize('who', LOOKS)
def test_an_upload_of_another_host_expires_by_its_metadata(bench: Bench, who: str) -> None:
    """Without an index record, the first look at the file, whose ever, reads the metadata, and the lifecycle with it."""
    info = bench.remote_upload('logs/theirs')
    bench.reconciler.apply([info], after='', last=None)
    inode = bench.inode_at(b'logs', b'theirs')

    trio.run(LOOKS[who], bench)
    assert inode.attrs_known
    known = bench.journal.known('logs/theirs')
    assert known is not None and (known.lifecycle, known.uploaded_ns) == (DAY, info.mtime_ns)
    bench.pass_time(DAY_NS + SLACK_NS)
    bench.sweep()
    assert bench.keys() == set()


def _write_locally(bench: Bench) -> None:
    bench.stage(bench.inode_at(b'logs', b'a'), b'unsent')


def _move_locally(bench: Bench) -> None:
    inode = bench.inode_at(b'logs', b'a')
    parent = bench.db.resolve((b'logs',))
    assert parent is not None
    with bench.db.transaction():
        bench.db.delete_dentry(parent, b'a')
        bench.db.insert_dentry(1, b'moved', inode.ino)
        bench.journal.mark(inode, Reason.NAMES)


def _open_locally(bench: Bench) -> None:
    inode = bench.inode_at(b'logs', b'a')
    inode.handles += 1
    bench.held = inode  # type: ignore[attr-defined]  # a live inode is only as long as somebody has it


NEEDS: dict[str, Callable[[Bench], None]] = {'unsent changes': _write_locally, 'renamed away': _move_locally, 'open': _open_locally}


@pytest.mark.parametrize('need', NEEDS)
@pytest.mark.parametrize('is_late', [False, True], ids=['before', 'while the store is asked'])
def test_what_is_needed_here_is_left_alone(bench: Bench, need: str, is_late: bool) -> None:
    """Also when it comes to be needed between the question to the store and its answer."""
    bench.upload('logs/a')
    bench.pass_time(DAY_NS + SLACK_NS)
    if is_late:
        # the first operation is the rule's, the second the HEAD
        bench.workers.meanwhile = lambda: setattr(bench.workers, 'meanwhile', lambda: NEEDS[need](bench))
    else:
        NEEDS[need](bench)
    bench.sweep()
    assert bench.keys() == {'logs/a'}
    assert any(isinstance(operation, Head) for operation in bench.asked) == is_late
    assert not any(isinstance(operation, DeleteMany) for operation in bench.asked)
    known = bench.journal.known('logs/a')
    assert known is not None and not known.doomed


def test_a_version_that_somebody_else_wrote_is_left_alone(bench: Bench) -> None:
    """The etag is another: the next listing shows what it is."""
    bench.upload('logs/a')
    bench.pass_time(DAY_NS + SLACK_NS)
    bench.remote_upload('logs/a', b'newer')
    bench.sweep()
    assert bench.keys() == {'logs/a'} and bench.is_shown(b'logs', b'a')


def test_a_version_that_appears_between_question_and_delete_stays(bench: Bench) -> None:
    """The delete is conditional: what was seen is what goes."""
    bench.upload('logs/a')
    bench.pass_time(DAY_NS + SLACK_NS)
    put = bench.workers.context.store.put
    bench.workers.meanwhile = lambda: setattr(bench.workers, 'meanwhile', lambda: setattr(
        bench.workers, 'meanwhile', lambda: put(PREFIX + 'logs/a', b'newer')))
    bench.sweep()
    assert bench.workers.context.store.get(PREFIX + 'logs/a') == b'newer'


def test_a_row_that_was_wrong_is_put_right(bench: Bench) -> None:
    """The store says younger, or without a lifetime: it stays, and is not asked for again before its time."""
    young = bench.upload('logs/young')
    freed = bench.upload('logs/freed', lifecycle='')
    bench.journal.note_lifetime('logs/young', young.etag, DAY, 1)
    bench.journal.note_lifetime('logs/freed', freed.etag, DAY, 1)
    bench.sweep()
    assert bench.keys() == {'logs/young', 'logs/freed'}
    rows = {key: bench.journal.known(key) for key in ('logs/young', 'logs/freed')}
    assert {key: (row.lifecycle, row.uploaded_ns) for key, row in rows.items() if row} == {
        'logs/young': (DAY, young.mtime_ns), 'logs/freed': ('', freed.mtime_ns)}
    bench.asked.clear()
    bench.sweep()
    assert bench.asked == []


def test_an_object_whose_tag_was_taken_away_stays(bench: Bench) -> None:
    """Somebody wants to keep it and says so as with any bucket: without the tag the metadata do not count."""
    store = bench.workers.context.store
    info = bench.upload('logs/a')
    etag = store.copy(PREFIX + 'logs/a', PREFIX + 'logs/a', metadata={LIFECYCLE_NAME: DAY}, tags={}).etag
    assert etag != info.etag
    bench.db.execute('UPDATE object SET etag = ?, uploaded_ns = 1', (etag,))
    bench.sweep()
    assert bench.keys() == {'logs/a'}


def test_one_of_two_hard_links_expires(bench: Bench) -> None:
    """The other name has an object of its own, without a lifetime."""
    info = bench.upload('logs/a')
    other = bench.workers.context.store.put(PREFIX + 'keep', b'body')
    inode = bench.inode_at(b'logs', b'a')
    with bench.db.transaction():
        bench.db.insert_dentry(1, b'keep', inode.ino)
        inode.nlink = 2
        bench.db.store_times(inode)
        bench.journal.put_object(Known('keep', other.etag, info.size, inode.ino, inode.revision, '', 0))
    bench.pass_time(DAY_NS + SLACK_NS)
    bench.sweep()
    assert bench.keys() == {'keep'}
    assert not bench.is_shown(b'logs', b'a') and bench.inode_at(b'keep').nlink == 1


def test_an_object_that_is_hidden_here_expires_too(bench: Bench) -> None:
    """Removed here under a policy that keeps what is removed: its time still comes."""
    bench.upload('logs/a')
    with bench.db.transaction():
        bench.db.execute('UPDATE object SET doomed = 2')
        bench.db.execute('DELETE FROM dentry WHERE name = ?', (b'a',))
    bench.pass_time(DAY_NS + SLACK_NS)
    bench.sweep()
    assert bench.keys() == set() and bench.journal.known('logs/a') is None


def test_a_store_that_fails_leaves_a_tombstone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The delete's answer is an error: the name is gone, the object is a tombstone that the next flush deletes."""
    bench.upload('logs/a')
    bench.pass_time(DAY_NS + SLACK_NS)
    real = bench.workers.context.store.delete_many
    monkeypatch.setattr(bench.workers.context.store, 'delete_many', lambda items: [(key, RemoteUnavailable('busy')) for key, _ in items])
    with pytest.raises(RemoteUnavailable):
        bench.sweep()
    assert not bench.is_shown(b'logs', b'a')
    assert [row.key for row in bench.journal.doomed(9)] == ['logs/a']
    monkeypatch.setattr(bench.workers.context.store, 'delete_many', real)

    async def flush() -> None:
        assert await bench.finisher.delete_doomed() == []
    trio.run(flush)
    assert bench.keys() == set()


# --- who does it ------------------------------------------------------------------------------------------------------------------

def lifecycle_for(bench: Bench, key: str, before: Known | None = None) -> str:
    async def main() -> str:
        return await bench.recycler.lifecycle_for(key, before)
    return trio.run(main)


def test_a_directory_does_not_expire_by_itself(bench: Bench) -> None:
    """ctxfs does, and says why."""
    assert bench.recycler.state()['state'] == ''
    assert lifecycle_for(bench, 'logs/a') == DAY
    assert bench.recycler.state() == {'state': 'ctxfs', 'reason': 'a directory removes nothing by itself', 'lifecycle': DAY, 'removed': 0}
    lifecycle_for(bench, 'logs/b')
    assert len(bench.asked) == 1


def test_what_had_a_lifetime_and_has_none_now_loses_its_tag(bench: Bench) -> None:
    """FOREVER replaces it; what never had one gets no tag at all."""
    had = Known('keep/a', '"e"', 1, 5, 1, '', 0, DAY, 1)
    assert lifecycle_for(bench, 'keep/a', had) == FOREVER
    assert lifecycle_for(bench, 'keep/a', had._replace(lifecycle='')) == ''
    assert lifecycle_for(bench, 'keep/a') == ''
    assert bench.asked == []


@pytest.fixture
def on_server(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeS3]]:
    """Gives the host a bucket on a server instead of the directory."""
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'any')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'any')
    with contextlib.ExitStack() as stack:
        def use(*quirks: Quirk) -> FakeS3:
            fake = stack.enter_context(FakeS3(quirks=quirks))
            bench.workers.context.store.close()
            bench.workers.context.store = open_store(fake.url)
            return fake
        yield use


def test_a_bucket_with_rules_does_it(bench: Bench, on_server: Callable[..., FakeS3]) -> None:
    """One rule by the tag; ctxfs lets the server do it, and steps in only when it is late."""
    fake = on_server()
    assert lifecycle_for(bench, 'logs/a') == DAY
    assert (bench.recycler.state()['state'], fake.lifecycle.count(b'<Rule>')) == ('server', 1)
    bench.upload('logs/a')
    bench.pass_time(DAY_NS + SLACK_NS + 2 * 10**9)
    bench.sweep()
    assert bench.keys() == {'logs/a'} and not [operation for operation in bench.asked if isinstance(operation, Head)]
    bench.pass_time(LATE_NS)
    bench.sweep()
    assert bench.keys() == set()


@pytest.mark.parametrize('quirk', [Quirk.NO_TAGS, Quirk.NO_LIFECYCLE, Quirk.NO_LIFECYCLE_RIGHTS, Quirk.READ_ONLY_LIFECYCLE], ids=str)
def test_a_bucket_without_rules_or_rights_gets_it_done(bench: Bench, on_server: Callable[..., FakeS3], quirk: Quirk) -> None:
    """ctxfs sweeps at once, by metadata where there are no tags."""
    on_server(quirk)
    bench.upload('logs/a')
    assert lifecycle_for(bench, 'logs/a') == DAY
    assert bench.recycler.state()['state'] == 'ctxfs' and bench.recycler.state()['reason']
    bench.pass_time(DAY_NS + SLACK_NS + 2 * 10**9)
    bench.sweep()
    assert bench.keys() == set()


def test_an_unreachable_store_is_asked_again(bench: Bench, on_server: Callable[..., FakeS3]) -> None:
    """No verdict from a moment without an answer: the upload goes on, the next one asks anew."""
    fake = on_server()
    bench.workers.context.store.capabilities()
    fake.fail_next('GET', Fault.UNAVAILABLE, when=lambda request: 'lifecycle' in request.query, times=ATTEMPTS)
    assert lifecycle_for(bench, 'logs/a') == DAY
    assert bench.recycler.state()['state'] == ''
    assert lifecycle_for(bench, 'logs/a') == DAY
    assert bench.recycler.state()['state'] == 'server'
    assert len([operation for operation in bench.asked if isinstance(operation, EnsureExpiry)]) == 2


def test_sweeps_go_on_for_as_long_as_the_mount(bench: Bench) -> None:
    """At once when the context is listed, hourly after it, each alone; one that fails does not end them."""
    swept: list[float] = []
    clock = trio.testing.MockClock(autojump_threshold=0)

    async def alone(job: Callable[[], Awaitable[None]]) -> None:
        swept.append(trio.current_time())
        await job()
        if len(swept) == 2:
            raise RemoteUnavailable('not now')

    async def main() -> None:
        start = trio.current_time()
        with trio.move_on_after(3 * SWEEP_SECONDS + 100):
            await bench.recycler.run(lambda: trio.sleep(10), alone)  # noqa: ASYNC105 - awaited by who gets it
        assert [round(at - start) for at in swept] == [10, 10 + SWEEP_SECONDS, 10 + 2 * SWEEP_SECONDS, 10 + 3 * SWEEP_SECONDS]
    trio.run(main, clock=clock)


def test_a_missing_object_counts_as_removed(bench: Bench) -> None:
    """The server, or another host, was faster: the name goes here as well."""
    bench.upload('logs/a')
    bench.workers.context.store.delete(PREFIX + 'logs/a')
    bench.pass_time(DAY_NS + SLACK_NS)
    bench.sweep()
    assert not bench.is_shown(b'logs', b'a') and bench.journal.known('logs/a') is None
    with pytest.raises(NotFound):
        bench.workers.context.store.head(PREFIX + 'logs/a')


def test_a_symlink_expires_as_well(bench: Bench) -> None:
    """It has no content state of its own, and an object like a file's."""
    bench.upload('logs/link', b'target')
    inode = bench.inode_at(b'logs', b'link')
    inode.mode, inode.content, inode.target = 0o120777, Content.NONE, b'target'
    bench.db.store_all(inode)
    bench.pass_time(DAY_NS + SLACK_NS)
    bench.sweep()
    assert not bench.is_shown(b'logs', b'link')
