"""What every store does under a condition: the write happens over exactly the version named, or not at all, whoever else writes."""
from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ctxfs.errors import NotFound, RemoteChanged
from ctxfs.records import PutResult
from ctxfs.storage.object_store import Condition, ObjectStore
from tests.contract.conftest import all_keys

ABSENT = Condition(absent=True)
Writer = Callable[[ObjectStore, str, bytes, Condition], PutResult]
#: goes in parts where SMALL_PARTS are (one part may be small): what more of them would do is test_put_file.py's
BIG = b'0123456789abcdef' * (2 << 16)
SMALL_PARTS = 1 << 20


def _copy(store: ObjectStore, key: str, body: bytes, condition: Condition) -> PutResult:
    store.put('the source', body)
    return store.copy('the source', key, condition=condition)


def _put_file(store: ObjectStore, key: str, body: bytes, condition: Condition) -> PutResult:
    return store.put_file(key, io.BytesIO(body), len(body), condition=condition)


WRITERS: dict[str, Writer] = {
    'put': lambda store, key, body, condition: store.put(key, body, condition=condition),
    'put_file': _put_file,
    'multipart': lambda store, key, body, condition: _put_file(store, key, body + BIG, condition),
    'copy': _copy,
}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Writer:
    monkeypatch.setattr('ctxfs.storage.s3_store.PARTS_ABOVE', SMALL_PARTS)
    return WRITERS[request.param]


@pytest.mark.parametrize('key', ['d/key', 'odd//key', 'd/'])
def test_absent_writes_only_where_nothing_is(store: ObjectStore, write: Writer, key: str) -> None:
    """The first one is done, the second refused, and the first one's content stays."""
    first = write(store, key, b'1', ABSENT)
    with pytest.raises(RemoteChanged):
        write(store, key, b'2', ABSENT)
    assert store.head(key).etag == first.etag
    assert store.get(key, 0, 1) == b'1'
    store.delete(key)
    write(store, key, b'3', ABSENT)
    assert store.get(key, 0, 1) == b'3'


@pytest.mark.parametrize('key', ['d/key', 'odd//key'])
def test_etag_writes_only_over_that_version(store: ObjectStore, write: Writer, key: str) -> None:
    """Right once, stale after it, and never where the object is gone."""
    first = store.put(key, b'1')
    second = write(store, key, b'2', Condition(etag=first.etag))
    with pytest.raises(RemoteChanged):
        write(store, key, b'3', Condition(etag=first.etag))
    assert (store.head(key).etag, store.get(key, 0, 1)) == (second.etag, b'2')
    store.delete(key)
    with pytest.raises(RemoteChanged):
        write(store, key, b'4', Condition(etag=second.etag))
    with pytest.raises(NotFound):
        store.head(key)


def test_a_marker_is_written_under_conditions_too(store: ObjectStore) -> None:
    """`dir/` as any object."""
    first = store.put('d/', b'', condition=ABSENT)
    with pytest.raises(RemoteChanged):
        store.put('d/', b'', condition=ABSENT)
    second = store.put('d/', b'', metadata={'mode': '1'}, condition=Condition(etag=first.etag))
    assert store.head('d/').metadata == {'mode': '1'}
    with pytest.raises(RemoteChanged):
        store.put('d/', b'', condition=Condition(etag='"stale"'))
    with pytest.raises(RemoteChanged):
        store.delete('d/', if_match='"stale"')
    store.delete('d/', if_match=second.etag)
    assert all_keys(store) == []


def test_delete_if_match_spares_another_version(store: ObjectStore) -> None:
    """A stale etag removes nothing."""
    old = store.put('a', b'1')
    new = store.put('a', b'2')
    with pytest.raises(RemoteChanged):
        store.delete('a', if_match=old.etag)
    assert store.get('a') == b'2'
    store.delete('a', if_match=new.etag)
    assert all_keys(store) == []


def test_a_version_is_not_mistaken_for_one_with_the_same_content(store: ObjectStore, store_url: str) -> None:
    """Where etags are not the content's hash, putting the same bytes again is a new version; where they are, it is the same one."""
    first, second = store.put('a', b'same'), store.put('a', b'same')
    assert store.head('a').etag == second.etag
    if store_url.startswith('file:'):
        assert first.etag != second.etag


def _race(url: str, key: str, etag: str) -> int:
    """Winners among 2 processes of 8 threads each."""
    racers = [subprocess.Popen([sys.executable, '-m', 'tests.contract.racer', url, key, etag, '8'], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) for _ in range(2)]
    try:
        for racer in racers:
            assert racer.stdout and racer.stdout.readline() == 'ready\n'
        for racer in racers:
            assert racer.stdin
            racer.stdin.write('go\n')
            racer.stdin.flush()
        return sum(int(racer.communicate(timeout=60)[0]) for racer in racers)
    finally:
        for racer in racers:
            if racer.poll() is None:
                racer.kill()
                racer.communicate()


@pytest.mark.parametrize('key', ['new directory/key', 'odd//key'])
def test_one_of_sixteen_creates(store: ObjectStore, store_url: str, key: str) -> None:
    """Two processes, sixteen threads, one winner, and one whole object with that winner's metadata."""
    if not store.capabilities().can_create:
        pytest.skip('this store creates nothing atomically: hosts take turns there')
    assert _race(store_url, key, '-') == 1
    body = store.get(key)
    assert len(set(body.decode())) == 1
    assert store.head(key).metadata == {'racer': body[:1].decode()}


def test_one_of_sixteen_overwrites(store: ObjectStore, store_url: str) -> None:
    """Compare and swap: fifteen meet a version that is not theirs any more."""
    if not store.capabilities().conditional_overwrite:
        pytest.skip('this store cannot compare and swap: hosts take turns there')
    assert _race(store_url, 'key', store.put('key', b'old').etag) == 1
    body = store.get('key')
    assert store.head('key').metadata == {'racer': body[:1].decode()}
