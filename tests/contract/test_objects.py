"""What every store does with single objects: content, ranges, metadata, copies, deletes, odd keys."""
from __future__ import annotations

import time

import pytest

from ctxfs.errors import InvalidArgument, NotFound, RemoteChanged
from ctxfs.storage.object_store import ObjectStore
from tests.contract.conftest import all_keys

ODD_KEYS = [
    'a', 'a/b', 'a/b/c', 'a//b', '/x', '//', 'x/', 'x//', '../x', 'a/../b', '.', '..', 'a/./b', 'a/.', ' ', 'a b', '+', 'a+b', '%41', 'a%2Fb',
    '?q=1#f', '&amp;<>"\'', 'é', '日本', '\U0001f600', '\u201bFF', 'tab\there', 'line\nbreak', 'cr\rhere', 'control\x01\x1f', 'del\x7f',
    'c1\x85', '\ufffe', 'back\\slash', '*', '~', 'n' * 255, 'n' * 256, 'd/' + 'n' * 300 + '/e', 'k' * 1000, 'é' * 400, '.bucket', '.bucket/odd/x',
    '.ctxfs/x', 'a.txt', 'a0',
]


def test_an_object_comes_back_as_it_was_put(store: ObjectStore) -> None:
    """Content, size, etag, metadata, content type and time."""
    before = time.time()
    result = store.put('a/b.txt', b'hello', metadata={'mode': '33188', 'x-y': 'a=b;c d'}, content_type='text/plain')
    info = store.head('a/b.txt')
    assert (info.key, info.size, info.etag) == ('a/b.txt', 5, result.etag)
    assert (info.metadata, info.content_type, result.size) == ({'mode': '33188', 'x-y': 'a=b;c d'}, 'text/plain', 5)
    assert abs(info.mtime_ns / 1e9 - before) < 60
    assert store.get('a/b.txt') == b'hello'


def test_an_object_without_metadata_has_none(store: ObjectStore) -> None:
    """The dict is empty, not missing: head knows."""
    store.put('a', b'')
    assert store.head('a').metadata == {}
    assert store.get('a') == b''


def test_a_put_replaces_everything(store: ObjectStore) -> None:
    """Old metadata does not shine through, and the etag is another even for the same size."""
    first = store.put('a', b'one', metadata={'a': '1'}, content_type='text/plain')
    second = store.put('a', b'two')
    assert first.etag != second.etag
    assert store.head('a').metadata == {}
    assert store.get('a') == b'two'


@pytest.mark.parametrize('key', ODD_KEYS, ids=ascii)
def test_any_key_is_held_exactly(store: ObjectStore, key: str) -> None:
    """Put, head, get, list, copy and delete, also of keys that no directory tree can hold."""
    put = store.put(key, b'body', metadata={'k': 'v'})
    head = store.head(key)
    assert (head.key, head.etag, head.metadata) == (key, put.etag, {'k': 'v'})
    assert store.get(key, 1, 3, if_match=put.etag) == b'od'
    [listed] = store.list('').objects
    assert (listed.key, listed.size, listed.etag) == (key, 4, put.etag)
    assert store.list(key[:1]).objects[0].key == key
    store.copy(key, 'copied')
    assert store.get('copied') == b'body'
    assert store.delete_many([(key, put.etag), ('copied', None)]) == []
    assert all_keys(store) == []


def test_odd_keys_live_beside_each_other(store: ObjectStore) -> None:
    """All at once, each with its own content, listed in byte order, and removed one by one."""
    for key in ODD_KEYS:
        store.put(key, key.encode())
    assert all_keys(store) == sorted(ODD_KEYS, key=str.encode)
    for key in ODD_KEYS:
        assert store.get(key) == key.encode()
    for count, key in enumerate(ODD_KEYS, 1):
        store.delete(key)
        assert len(all_keys(store)) == len(ODD_KEYS) - count


@pytest.mark.parametrize('key', ['', 'k' * 1024, 'é' * 512, 'bad\udc80'], ids=ascii)
def test_a_key_that_no_store_can_hold_is_refused(store: ObjectStore, key: str) -> None:
    """Empty, above 1,023 bytes of UTF-8, or not Unicode: refused before anything is sent."""
    with pytest.raises(InvalidArgument):
        store.put(key, b'')


@pytest.mark.parametrize(('start', 'stop', 'expected'), [
    (0, None, b'0123456789'), (0, 10, b'0123456789'), (3, 5, b'34'), (3, None, b'3456789'), (8, 20, b'89'), (9, 10, b'9'), (10, None, b''),
    (10, 20, b''), (15, None, b''), (5, 5, b''), (5, 3, b''),
])
def test_a_range_is_half_open_and_ends_with_the_object(store: ObjectStore, start: int, stop: int | None, expected: bytes) -> None:
    """[start, stop), shorter at the end, empty behind it; the same under a condition."""
    put = store.put('a', b'0123456789')
    assert store.get('a', start, stop) == expected
    assert store.get('a', start, stop, if_match=put.etag) == expected
    with pytest.raises(RemoteChanged):
        store.get('a', start, stop, if_match='"stale"')


def test_a_range_of_an_empty_object_is_empty(store: ObjectStore) -> None:
    """There is no byte 0, and no error either."""
    put = store.put('a', b'')
    assert store.get('a', 0, 100) == store.get('a', 0, 100, if_match=put.etag) == b''


def test_if_match_gives_one_version_only(store: ObjectStore) -> None:
    """After an overwrite the old etag reads nothing."""
    old = store.put('a', b'old')
    new = store.put('a', b'new')
    with pytest.raises(RemoteChanged):
        store.get('a', if_match=old.etag)
    assert store.get('a', if_match=new.etag) == b'new'


def test_what_is_absent_is_not_found(store: ObjectStore) -> None:
    """head, get (with an empty range and a condition too) and copy say so; `a/b` does not make `a` or `a/` exist."""
    store.put('a/b', b'')
    for key in ('x', 'a', 'a/', 'a/b/c', 'a/b/', 'x/y'):
        with pytest.raises(NotFound):
            store.head(key)
        with pytest.raises(NotFound):
            store.get(key)
        with pytest.raises(NotFound):
            store.get(key, 3, 3)
        with pytest.raises(NotFound):
            store.copy(key, 'z')


def test_deleting_is_idempotent(store: ObjectStore) -> None:
    """Absent is success, with an etag as well, for one and for many."""
    store.put('a/b/c', b'')
    store.delete('a/b/c')
    store.delete('a/b/c')
    store.delete('a/b/c', if_match='"any"')
    store.delete('a')
    assert store.delete_many([('a/b/c', None), ('a/b/c', '"any"'), ('never', None)]) == []
    assert store.delete_many([]) == []
    assert all_keys(store) == []


def test_delete_many_leaves_what_changed(store: ObjectStore) -> None:
    """Each pair is judged alone: the changed object stays and is reported, the others go."""
    stale = store.put('changed', b'1').etag
    store.put('changed', b'2')
    fresh = store.put('fresh', b'').etag
    store.put('any', b'')
    store.put('ctl\x01', b'')
    failed = store.delete_many([('changed', stale), ('fresh', fresh), ('any', None), ('ctl\x01', None), ('absent', None)])
    assert [(key, type(error)) for key, error in failed] == [('changed', RemoteChanged)]
    assert all_keys(store) == ['changed']


def test_delete_many_takes_more_than_a_batch(store: ObjectStore) -> None:
    """1,100 keys, above the 1,000 of one S3 request."""
    keys = [f'n{number:04}' for number in range(1100)]
    for key in keys:
        store.put(key, b'')
    assert store.delete_many([(key, None) for key in keys]) == []
    assert all_keys(store) == []


def test_a_copy_keeps_metadata_unless_it_is_given(store: ObjectStore) -> None:
    """Content, metadata and type come along; new metadata replaces the old and leaves the type."""
    store.put('a', b'body', metadata={'k': 'v'}, content_type='text/plain')
    kept = store.copy('a', 'b/kept')
    store.copy('a', 'replaced', metadata={'n': 'w'})
    store.copy('a', 'typed', content_type='text/html')
    info = store.head('b/kept')
    assert (info.etag, kept.size, info.metadata, info.content_type) == (kept.etag, 4, {'k': 'v'}, 'text/plain')
    assert [(i.metadata, i.content_type) for i in map(store.head, ('replaced', 'typed'))] == [({'n': 'w'}, 'text/plain'), ({'k': 'v'}, 'text/html')]
    assert store.get('replaced') == store.get('typed') == b'body'


def test_a_copy_onto_itself_changes_the_metadata(store: ObjectStore) -> None:
    """chmod's way on stores that have no other."""
    etag = store.put('a', b'body', metadata={'k': 'v'}).etag
    copied = store.copy('a', 'a', source_etag=etag, metadata={'k': 'w'})
    assert (store.head('a').metadata, store.head('a').etag, store.get('a')) == ({'k': 'w'}, copied.etag, b'body')


def test_a_copy_of_another_version_is_refused(store: ObjectStore) -> None:
    """The source changed since its etag was read: nothing is written."""
    old = store.put('a', b'1')
    store.put('a', b'2')
    with pytest.raises(RemoteChanged):
        store.copy('a', 'b', source_etag=old.etag)
    with pytest.raises(NotFound):
        store.head('b')


@pytest.mark.parametrize('metadata', [{'k': 'v' * 2048}, {'K': 'v'}, {'k': 'é'}, {'k': ' v'}, {'k': 'a\r\nb: c'}, {'k y': 'v'}], ids=str)
def test_metadata_that_headers_cannot_carry_is_refused(store: ObjectStore, metadata: dict[str, str]) -> None:
    """Rather than changed on the way or sent as another header: the same on every store."""
    with pytest.raises(InvalidArgument):
        store.put('a', b'', metadata=metadata)
    assert all_keys(store) == []


def test_metadata_may_fill_2_kib(store: ObjectStore) -> None:
    """S3's own limit."""
    store.put('a', b'', metadata={'k': 'v' * 2047})
    assert store.head('a').metadata == {'k': 'v' * 2047}


def test_a_directory_marker_is_an_object(store: ObjectStore) -> None:
    """It has metadata and an etag, stays when its children go, and goes while they stay."""
    marker = store.put('d/', b'', metadata={'mode': '16877'}, content_type='application/x-directory')
    store.put('d/child', b'')
    info = store.head('d/')
    assert (info.etag, info.metadata, info.content_type, info.size) == (marker.etag, {'mode': '16877'}, 'application/x-directory', 0)
    store.delete('d/child')
    assert all_keys(store) == ['d/']
    store.put('d/child', b'')
    assert store.head('d/').etag == marker.etag
    store.delete('d/', if_match=marker.etag)
    assert all_keys(store) == ['d/child']
    store.delete('d/child')
    assert all_keys(store) == []


def test_a_marker_with_content_is_one_too(store: ObjectStore) -> None:
    """`d/` may hold bytes, be emptied, and hold bytes again, with objects below it."""
    store.put('d/x', b'x')
    for body in (b'content', b'', b'more'):
        put = store.put('d/', body)
        assert (store.get('d/'), store.head('d/').etag, all_keys(store)) == (body, put.etag, ['d/', 'd/x'])
    store.delete('d/x')
    assert all_keys(store) == ['d/']


def test_a_file_and_a_directory_of_one_name(store: ObjectStore) -> None:
    """`a` beside `a/b`, in either order of arrival and departure."""
    for first, second in (('a', 'a/b'), ('a/b', 'a')):
        store.put(first, b'1')
        store.put(second, b'2')
        assert (store.get(first), store.get(second), all_keys(store)) == (b'1', b'2', ['a', 'a/b'])
        store.delete(first)
        store.put(second, b'3')
        assert (store.get(second), all_keys(store)) == (b'3', [second])
        store.delete(second)
        assert all_keys(store) == []
