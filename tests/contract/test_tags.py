"""What every store does with tags and with copies of what is known: kept, replaced, or left out where the store has none."""
from __future__ import annotations

import io

import pytest

from ctxfs.errors import CtxfsError, InvalidArgument, NotFound, RemoteChanged, Unsupported
from ctxfs.storage.object_store import Condition, ObjectStore

TAGS = {'ctxfs-lifecycle': 'Lifecycle_30Days', 'a b': '1+2=3:/_-.'}


def test_tags_come_with_every_kind_of_write(store: ObjectStore) -> None:
    """put, put_file, an empty marker and an odd key; an object put without any has none."""
    store.put('put', b'1', tags=TAGS)
    store.put_file('file', io.BytesIO(b'22'), 2, tags=TAGS)
    store.put('d/', b'', tags=TAGS)
    store.put('odd//key', b'', tags=TAGS)
    store.put('none', b'')
    if store.capabilities().tagging:
        assert [store.tags(key) for key in ('put', 'file', 'd/', 'odd//key', 'none')] == [TAGS, TAGS, TAGS, TAGS, {}]
    else:
        with pytest.raises(Unsupported):
            store.tags('put')
    assert (store.get('put'), store.get('file')) == (b'1', b'22')


def test_a_new_version_has_its_own_tags(store: ObjectStore) -> None:
    """An overwrite with tags leaves none of the old ones. (Without any, some servers keep the old ones and some do not.)"""
    store.put('a', b'1', tags=TAGS)
    store.put('a', b'2', tags={'n': 'w'})
    if store.capabilities().tagging:
        assert store.tags('a') == {'n': 'w'}


def test_a_copy_keeps_tags_unless_they_are_given(store: ObjectStore) -> None:
    """Kept, replaced, and taken away, with the metadata staying as it is or replaced beside them."""
    etag = store.put('a', b'body', metadata={'k': 'v'}, tags=TAGS).etag
    store.copy('a', 'kept')
    store.copy('a', 'replaced', tags={'other': 'tag'})
    store.copy('a', 'taken', source_etag=etag, size=4, tags={})
    store.copy('a', 'both', metadata={'k': 'w'}, tags={'other': 'tag'})
    store.copy('a', 'metadata', metadata={'k': 'w'})
    if store.capabilities().tagging:
        assert {key: store.tags(key) for key in ('kept', 'replaced', 'taken', 'both', 'metadata')} == {
            'kept': TAGS, 'replaced': {'other': 'tag'}, 'taken': {}, 'both': {'other': 'tag'}, 'metadata': TAGS}
    assert {key: store.head(key).metadata for key in ('kept', 'taken', 'both')} == {'kept': {'k': 'v'}, 'taken': {'k': 'v'}, 'both': {'k': 'w'}}


@pytest.mark.parametrize('tags', [{'': 'v'}, {'k' * 129: ''}, {'k': 'v' * 257}, {'k': 'é'}, {'k&x': 'v'}, {'k': 'v\n'},
                                  {str(n): '' for n in range(11)}], ids=ascii)
def test_tags_that_not_every_store_takes_are_refused(store: ObjectStore, tags: dict[str, str]) -> None:
    """Before anything is written, wherever tags are kept."""
    if not store.capabilities().tagging:
        pytest.skip('this store keeps no tags')
    with pytest.raises(InvalidArgument):
        store.put('a', b'', tags=tags)
    with pytest.raises(NotFound):
        store.head('a')


def test_a_copy_of_what_is_known_is_as_careful(store: ObjectStore) -> None:
    """With the source's etag and size given: done once, refused when the source moved or is gone, or the target's condition fails."""
    old = store.put('a', b'1').etag
    new = store.put('a', b'22').etag
    done = store.copy('a', 'b', source_etag=new, size=2, condition=Condition(absent=True))
    assert (done.size, store.get('b')) == (2, b'22')
    with pytest.raises(RemoteChanged):
        store.copy('a', 'c', source_etag=old, size=1)
    with pytest.raises(NotFound):
        store.copy('gone', 'c', source_etag=old, size=1)
    with pytest.raises(RemoteChanged):
        store.copy('a', 'b', source_etag=new, size=2, condition=Condition(absent=True))
    with pytest.raises(RemoteChanged):
        store.copy('a', 'b', source_etag=new, size=2, condition=Condition(etag='"stale"'))
    store.copy('a', 'b', source_etag=new, size=2, condition=Condition(etag=done.etag))
    with pytest.raises(NotFound):
        store.head('c')


def test_expiry_is_either_there_or_refused(store: ObjectStore) -> None:
    """A store without rules says so, so that its caller removes what has expired; one with rules takes the same rule twice."""
    try:
        store.ensure_expiry('ctxfs-Lifecycle_30Days', tag=('ctxfs-lifecycle', 'Lifecycle_30Days'), days=30)
    except CtxfsError as error:
        assert isinstance(error, Unsupported)
        known = store.capabilities()
        assert not (known.lifecycle and known.tagging)      # rules go by tags
        return
    store.ensure_expiry('ctxfs-Lifecycle_30Days', tag=('ctxfs-lifecycle', 'Lifecycle_30Days'), days=30)


def test_an_etag_proves_content_or_nothing(store: ObjectStore) -> None:
    """Where `etag_of` says the etag of an object, the object holds just that; it never says the etag of other content."""
    for body, other in ((b'body', b'bodY'), (b'', b'x')):
        etag = store.put('a', body).etag
        assert store.etag_of(other) != etag
        if store.etag_of(body) == etag:
            assert store.get('a', if_match=etag) == body
