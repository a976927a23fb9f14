"""What the S3 store does about a server that does not do what it was known to do, and about turns that are not this host's."""
from __future__ import annotations

import contextlib
import hashlib
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from ctxfs.errors import Contradicted, Denied, NotFound, OutOfTurn, RemoteChanged, RemoteUnavailable, Unanswered
from ctxfs.records import Stamp
from ctxfs.storage import s3_copy, s3_http, traffic
from ctxfs.storage.object_store import PARTS_ABOVE, Capabilities, Condition, Write
from ctxfs.storage.posix_meta import encode_stamp
from ctxfs.storage.s3_store import S3Store
from tests.fakes.profiles import PROFILES, provider
from tests.fakes.s3_server import FakeS3, Fault, Quirk, Request

ABSENT, OVER = Condition(absent=True), Condition(etag='any')
BIG = PARTS_ABOVE + 1


class Memory:
    def __init__(self) -> None:
        self.kept: Capabilities | None = None
        self.forgotten = 0

    def recall(self) -> Capabilities | None:
        return self.kept

    def keep(self, capabilities: Capabilities) -> None:
        self.kept = capabilities

    def forget(self) -> None:
        self.kept = None
        self.forgotten += 1


@contextlib.contextmanager
def opened(name: str = 'aws', **options: Any) -> Iterator[tuple[FakeS3, S3Store]]:
    with provider(name) as (fake, env), pytest.MonkeyPatch.context() as patch:
        for variable, value in env.items():
            patch.setenv(variable, value)
        endpoint = fake.url.partition('endpoint=')[2].partition('&')[0]
        with contextlib.closing(S3Store(fake.bucket, endpoint=endpoint, **options)) as store:
            yield fake, store


# --- which writes need a turn ---------------------------------------------------------------------------------------------------------

def test_hosts_take_turns_where_anything_could_come_between_a_look_and_a_write() -> None:
    """Nowhere on AWS. On OSS to overwrite and to delete, not to create. On Ceph for all, because a copy could replace what an atomic PUT has just
    made."""
    wanted: dict[str, set[str]] = {
        'aws': set(), 'oss': {'overwrite'}, 'ceph': {'create', 'overwrite'}, 'ignoring': {'create', 'overwrite'},
        'oss-versioned': {'create', 'overwrite'}}
    for name in PROFILES:
        with opened(name) as (_, store):
            known = store.capabilities()
        for write in Write:
            assert {word for word, condition in (('create', ABSENT), ('overwrite', OVER)) if known.needs_turn(write, condition)} == wanted[name]
        assert known.deletes_need_turn == (name != 'aws')
        assert not known.needs_turn(Write.PUT, Condition()) and not known.needs_turn(Write.PUT, Condition(absent=True, is_claim=True))


def writers(store: S3Store) -> dict[str, Callable[[Condition], object]]:
    return {'put': lambda condition: store.put('k', b'2', condition=condition),
            'parts': lambda condition: store.put_file('k', io.BytesIO(bytes(BIG)), BIG, condition=condition),
            'copy': lambda condition: store.copy('source', 'k', condition=condition),
            'delete': lambda condition: store.delete('k', if_match=condition.etag)}


@pytest.mark.parametrize('name', ['oss', 'ceph', 'ignoring'])
@pytest.mark.parametrize('how', ['put', 'parts', 'copy', 'delete'])
def test_without_a_turn_nothing_is_sent_that_is_not_atomic(name: str, how: str) -> None:
    """No look at the target either."""
    left = 60.0
    with opened(name, turn_left=lambda: left) as (fake, store):
        store.capabilities()
        etag = store.put('k', b'1').etag
        store.put('source', b'source')
        left = 9.0
        count, before = len(fake.requests), dict(fake.objects)
        with pytest.raises(OutOfTurn):
            writers(store)[how](Condition(etag=etag))
        assert fake.objects == before
        assert not [request for request in fake.requests[count:] if (request.method, request.key) != ('HEAD', 'source')]
        left = 60.0
        writers(store)[how](Condition(etag=etag))
        assert fake.objects != before


def test_a_turn_that_ends_between_the_look_and_the_write_stops_the_write() -> None:
    """As after a suspension of the host."""
    times = iter([60.0, 5.0])
    with opened('oss', turn_left=lambda: next(times)) as (fake, store):
        store.capabilities()
        etag = store.put('k', b'1').etag
        with pytest.raises(OutOfTurn):
            store.put('k', b'2', condition=Condition(etag=etag))
        assert fake.requests[-1].method == 'HEAD'
        assert fake.objects['k'].body == b'1'


def test_a_write_ends_with_the_turn() -> None:
    """A server that does not answer: given up when the turn is over, not after a minute."""
    left = iter([60.0, 0.5])
    with opened('oss', turn_left=lambda: next(left)) as (fake, store), pytest.MonkeyPatch.context() as patch:
        patch.setattr('ctxfs.storage.s3_guard.TURN_MARGIN', 0.1)
        store.capabilities()
        etag = store.put('k', b'1').etag
        hold = fake.hold_next('PUT')
        with pytest.raises(Unanswered, match='no answer in time'):
            store.put('k', b'2', condition=Condition(etag=etag))
        hold.release.set()


@contextlib.contextmanager
def short_turn(seconds: float) -> Iterator[tuple[FakeS3, S3Store, str]]:
    """A server of Alibaba's, a turn that lasts as long from the look before a write on, and the etag of `k`."""
    with opened('oss', turn_left=lambda: seconds) as (fake, store), pytest.MonkeyPatch.context() as patch:
        patch.setattr('ctxfs.storage.s3_guard.TURN_MARGIN', 0.1)
        store.capabilities()
        yield fake, store, store.put('k', b'1').etag


def test_a_body_that_goes_slowly_ends_with_the_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much has moved: what moves is never silent, and would go on for as long as its size needs."""
    moved = s3_http.Pace.moved

    def slowly(pace: s3_http.Pace, count: int) -> None:
        time.sleep(0.02)
        moved(pace, count)
    with short_turn(0.5) as (fake, store, etag):
        monkeypatch.setattr(traffic.Budget, 'PIECE_MOST', 16 << 10)
        monkeypatch.setattr(s3_http.Pace, 'moved', slowly)
        with pytest.raises(Unanswered, match='no answer in time'):
            store.put('k', bytes(1 << 20), condition=Condition(etag=etag))
        assert fake.objects['k'].body == b'1'


@pytest.mark.parametrize('when', ['before', 'again'])
def test_credentials_that_are_waited_for_do_not_outlast_the_turn(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gives them takes his time, before the write or after it was refused: then nothing is sent (any more)."""
    with short_turn(0.5) as (fake, store, etag):
        client = store._client
        current = client._current_credentials

        def wait(*_: object) -> Any:
            time.sleep(0.7)
            return current('')

        def before(what: str) -> Any:
            return wait() if what == 'PUT k' else current(what)
        if when == 'before':
            monkeypatch.setattr(client, '_current_credentials', before)
        else:
            monkeypatch.setattr(client, '_renewed_credentials', wait)
            fake.fail_next('PUT', Fault.EXPIRED)
        with pytest.raises(RemoteUnavailable):
            store.put('k', b'2', condition=Condition(etag=etag))
        assert fake.objects['k'].body == b'1'


# --- contradictions -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('how', ['put', 'parts', 'copy'])
def test_a_condition_that_is_refused_as_such_makes_the_store_be_asked_anew(how: str) -> None:
    """501 to what was known to be honoured: nothing was written, the answer is forgotten, and the second try does it as it can be done."""
    memory = Memory()
    with opened(memory=memory) as (fake, store):
        etag = store.put('k', b'1').etag
        store.put('source', b'source')
        assert store.capabilities() == memory.kept
        fake.quirks |= {Quirk.REFUSES_CONDITIONS}
        before = dict(fake.objects)
        with pytest.raises(Contradicted):
            writers(store)[how](Condition(etag=etag))
        assert fake.objects == before
        assert (memory.kept, memory.forgotten) == (None, 1)
        writers(store)[how](Condition(etag=etag))
        assert fake.objects['k'].etag != etag
        assert memory.kept is not None and not memory.kept.conditional_overwrite


def test_an_etag_that_is_refused_although_it_is_right_is_a_contradiction() -> None:
    """The server compares etags otherwise than it did: no conflict, and the right spelling is found out."""
    with opened() as (fake, store):
        etag = store.put('k', b'1', condition=ABSENT).etag
        fake.quirks |= {Quirk.UNQUOTED_ETAGS}
        with pytest.raises(Contradicted):
            store.put('k', b'2', condition=Condition(etag=etag))
        store.put('k', b'2', condition=Condition(etag=etag))
        assert fake.objects['k'].body == b'2'
        with pytest.raises(RemoteChanged):
            store.put('k', b'3', condition=Condition(etag=etag))


def test_a_right_to_tag_that_is_taken_away_is_noticed() -> None:
    """403 to a write with tags: asked anew, then written without."""
    with opened() as (fake, store):
        store.put('k', b'1', tags={'a': 'b'})
        fake.fail_next('PUT', Fault.DENY, times=2, when=lambda request: 'x-amz-tagging' in request.headers)
        with pytest.raises(Contradicted):
            store.put('k', b'2', tags={'a': 'b'})
        store.put('k', b'2', tags={'a': 'b'})
        assert (fake.objects['k'].body, fake.objects['k'].tags) == (b'2', {})


def test_a_batch_that_is_refused_as_such_is_a_contradiction() -> None:
    """Of each of its items; the next time each is deleted by itself."""
    with opened() as (fake, store):
        for key in 'ab':
            store.put(key, b'')
        store.capabilities()
        fake.quirks |= {Quirk.NO_BATCH}
        assert [type(error) for _, error in store.delete_many([('a', None), ('b', None)])] == [Contradicted, Contradicted]
        assert store.delete_many([('a', None), ('b', None)]) == []
        assert fake.objects == {}


# --- what is missing, for those who may not list the bucket ------------------------------------------------------------------------------

def test_what_is_not_there_is_not_forbidden() -> None:
    """403 to everything that is missing, as S3 answers to credentials for one prefix: a listing tells the two apart."""
    with opened(scratch_prefix='mine/.ctxfs/') as (fake, store):
        fake.only_prefix = 'mine/'
        etag = store.put('mine/k', b'1').etag
        for ask in (lambda: store.head('mine/no'), lambda: store.get('mine/no'), lambda: store.get('mine/no', if_match=etag),
                    lambda: store.copy('mine/no', 'mine/j'), lambda: store.copy('mine/no', 'mine/j', source_etag=etag, size=1)):
            with pytest.raises(NotFound):
                ask()
        with pytest.raises(RemoteChanged):
            store.put('mine/no', b'', condition=Condition(etag=etag))
        with pytest.raises(Denied):
            store.head('other/k')
        known = store.capabilities()
        assert (known.conditional_overwrite, known.conditional_parts, known.is_limited) == (True, True, True)


# --- copies and parts that servers do not do right ----------------------------------------------------------------------------------------

def test_a_copy_whose_condition_would_be_ignored_goes_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small objects are read and put, others copied in parts; metadata, type and tags go along. Refused where it must be."""
    monkeypatch.setattr(s3_copy, 'READ_AND_PUT', 10)
    with opened() as (fake, store):
        fake.quirks |= {Quirk.UNCONDITIONAL_COPY}
        store.learn(msgspec.structs.replace(store.capabilities(), conditional_copy=False, conditional_copy_source=False))
        for body in (b'small', b'larger than ten bytes', b''):
            source = store.put('a', body, metadata={'m': 'v'}, content_type='text/css', tags={'t': 'w'})
            first = store.copy('a', 'b', condition=ABSENT, source_etag=source.etag, size=len(body))
            info = store.head('b')
            assert (store.get('b'), info.metadata, info.content_type, store.tags('b')) == (body, {'m': 'v'}, 'text/css', {'t': 'w'})
            assert info.etag == first.etag
            for condition in (ABSENT, Condition(etag='"stale"')):
                with pytest.raises(RemoteChanged):
                    store.copy('a', 'b', condition=condition)
            with pytest.raises(RemoteChanged):
                store.copy('a', 'c', condition=ABSENT, source_etag='"stale"', size=len(body))
            store.copy('a', 'b', condition=Condition(etag=first.etag), metadata={'x': 'y'}, tags={})
            assert (store.head('b').metadata, store.tags('b'), fake.uploads) == ({'x': 'y'}, {}, {})
            store.delete('b')


def test_a_source_that_changes_under_a_copy_leaves_no_wrong_copy() -> None:
    """On a server that ignores the source's condition; the copy is taken away again."""
    with opened('ceph') as (fake, store):
        etag = store.put('a', b'old').etag
        store.capabilities()
        hold = fake.hold_next('PUT', when=lambda request: 'x-amz-copy-source' in request.headers)
        with ThreadPoolExecutor() as threads:
            copied = threads.submit(store.copy, 'a', 'b', source_etag=etag)
            assert hold.arrived.wait(30)
            store.put('a', b'new')
            hold.release.set()
            assert isinstance(copied.exception(), RemoteChanged)
        assert set(fake.objects) == {'a'}


def test_the_version_that_an_upload_in_parts_made_is_known_though_nobody_says_it() -> None:
    """Ceph leaves the etag out; where the object is another's by then, its outcome is unknown, and not that etag."""
    with opened('ceph') as (fake, store):
        done = store.put_file('k', io.BytesIO(bytes(BIG)), BIG)
        assert done.etag == store.head('k').etag
        hold = fake.hold_next('HEAD')
        with ThreadPoolExecutor() as threads:
            uploaded = threads.submit(store.put_file, 'k', io.BytesIO(bytes(BIG)), BIG)
            assert hold.arrived.wait(30)
            store.put('k', b'of somebody else')
            hold.release.set()
            assert isinstance(uploaded.exception(), Unanswered)


def test_what_is_read_to_be_copied_is_verified() -> None:
    """What the network did to the bytes does not become the object."""
    with opened() as (fake, store):
        fake.quirks |= {Quirk.UNCONDITIONAL_COPY}
        store.learn(msgspec.structs.replace(store.capabilities(), conditional_copy=False, conditional_copy_source=False))
        stamp = encode_stamp(Stamp(sha256=hashlib.sha256(b'content').hexdigest(), host='h'))
        etag = store.put('old', b'content', metadata={'ctxfs': stamp}).etag
        fake.fail_next('GET', Fault.FLIP_BIT, when=_is_of_old)
        store.copy('old', 'new', source_etag=etag, size=7, condition=ABSENT)
        assert store.get('new') == b'content'


def _is_of_old(request: Request) -> bool:
    return request.key == 'old' and 'tagging' not in request.query
