"""The registry of contexts on a real store: unique names, crashes between its writes, lookups with little rights."""
from __future__ import annotations

import json
import re
import threading

import msgspec
import pytest

from ctxfs.errors import Corrupted, Denied, NotFound, RemoteUnavailable, UsageError
from ctxfs.storage import registry
from ctxfs.storage.registry import Registry, escape_name
from ctxfs.storage.stores import open_store


@pytest.fixture
def store(tmp_path):
    made = open_store(f'file://{tmp_path}/store', create=True)
    yield made
    made.close()


class Limited:
    """A store that refuses what `may` denies: (verb, key or prefix) → bool."""

    def __init__(self, store, may, error=Denied):
        self._store, self._may, self._error = store, may, error

    def capabilities(self):
        return self._store.capabilities()

    def __getattr__(self, verb):
        def checked(key, *args, **kwargs):
            if not self._may(verb, key):
                raise self._error(f'{verb} {key}: refused')
            return getattr(self._store, verb)(key, *args, **kwargs)
        return checked


def test_create_gets_or_creates(store):
    """Twice the same name is one context, and the times are ISO 8601."""
    contexts = Registry(store, clock=lambda: 1_700_000_000.5)
    made = contexts.create('my-project')
    assert re.fullmatch(r'SdkCtx-[a-z0-9]{17}', made.id)
    assert made.created_at == made.last_used_at == '2023-11-14T22:13:20Z'
    assert contexts.create('my-project') == made
    assert contexts.find('my-project') == contexts.find(made.id) == made


def test_the_documented_layout(store):
    """Two small JSON objects that any tool can read."""
    made = Registry(store).create('a b')
    claim = json.loads(store.get('.ctxfs/contexts/names/a%20b'))
    assert claim == {'id': made.id, 'name': 'a b', 'createdAt': made.created_at}
    assert json.loads(store.get(f'.ctxfs/contexts/ids/{made.id}')) == {**claim, 'lastUsedAt': made.created_at, 'state': 'available'}


def test_a_race_has_one_winner(store):
    """However many create a name at once, they all get one context."""
    barrier, found = threading.Barrier(12), []

    def create():
        barrier.wait()
        found.append(Registry(store).create('contested').id)
    threads = [threading.Thread(target=create) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12 and len(set(found)) == 1
    assert Registry(store).list_contexts().total_count == 1


def test_a_crash_after_the_claim_is_completed(store):
    """The next lookup, from anywhere, finds the context that the claim began."""
    crashing = Registry(Limited(store, lambda verb, key: not (verb == 'put' and key.startswith(registry.IDS)), RuntimeError))
    with pytest.raises(RuntimeError):
        crashing.create('half')
    claim = json.loads(store.get('.ctxfs/contexts/names/half'))
    found = Registry(store).find('half')
    assert (found.id, found.created_at) == (claim['id'], claim['createdAt'])
    assert Registry(store).list_contexts().contexts == [found]


def test_a_lost_answer_to_the_claim_creates_once(store):
    """The claim that arrived although its answer did not is the context's."""
    class Losing(Limited):
        def put(self, key, *args, **kwargs):
            result = self._store.put(key, *args, **kwargs)
            if key.startswith(registry.NAMES):
                raise RemoteUnavailable('connection reset')
            return result
    made = Registry(Losing(store, lambda verb, key: True)).create('lost')
    assert Registry(store).find('lost') == made


def test_a_record_with_another_name_does_not_answer_for_it(store):
    """As a crash in the middle of a rename leaves it."""
    made = Registry(store).create('old')
    store.put('.ctxfs/contexts/names/new', json.dumps({'id': made.id, 'name': 'new', 'createdAt': made.created_at}).encode())
    assert Registry(store).find('old') == made
    with pytest.raises(NotFound):
        Registry(store).find('new')


def test_a_miss_names_the_nearest(store):
    """A mistyped name must lead to the right one."""
    Registry(store).create('my-project')
    with pytest.raises(NotFound, match=r'no context my-projct \(did you mean my-project\?\)'):
        Registry(store).find('my-projct')


def test_files_without_a_record_are_a_context(store):
    """A context that other tools filled can be used; an empty prefix is none."""
    store.put('contexts/by-hand/a.txt', b'x')
    found = Registry(store).find('by-hand')
    assert (found.id, found.name, found.state) == ('by-hand', 'by-hand', 'available')
    for wrong in ('by', '', '.', '..', 'by-hand/', '.ctxfs', 'by-hand/a.txt'):
        with pytest.raises(NotFound):
            Registry(store).find(wrong)


def test_credentials_for_one_prefix_are_enough(store):
    """Where the registry may not be read, the context's own prefix decides."""
    made = Registry(store).create('scoped')
    store.put(f'{made.prefix}a.txt', b'x')
    scoped = Registry(Limited(store, lambda verb, key: key.startswith(made.prefix)))
    assert scoped.find(made.id).id == made.id
    scoped.touch(msgspec.structs.replace(made, last_used_at=''))
    with pytest.raises(Denied):
        scoped.find('scoped')


def test_pages(store):
    """Every context once, in pages that say whether there are more."""
    contexts = Registry(store)
    ids = {contexts.create(f'c{i:02}').id for i in range(25)}
    seen, token, pages = [], None, 0
    while True:
        page = contexts.list_contexts(10, token)
        assert page.total_count == 25
        seen += [record.id for record in page.contexts]
        pages, token = pages + 1, page.next_token
        if token is None:
            break
    assert pages == 3 and len(seen) == 25 and set(seen) == ids
    assert contexts.list_contexts().next_token is None
    assert contexts.list_contexts(25).next_token is None


def test_touch_keeps_what_it_does_not_know(store):
    """Keys of a later version survive; other fields do not move."""
    made = Registry(store, clock=lambda: 0).create('used')
    key = f'.ctxfs/contexts/ids/{made.id}'
    store.put(key, json.dumps({**json.loads(store.get(key)), 'policy': {'x': 1}}).encode())
    Registry(store, clock=lambda: 3600).touch(made)
    assert json.loads(store.get(key)) == {'id': made.id, 'name': 'used', 'createdAt': '1970-01-01T00:00:00Z',
                                          'lastUsedAt': '1970-01-01T01:00:00Z', 'state': 'available', 'policy': {'x': 1}}


def test_a_use_just_after_another_is_not_noted(store):
    """It would be three requests of each mount. A time of the future, or none at all, is put right."""
    made = Registry(store, clock=lambda: 10_000).create('used')
    for now, is_noted in ((10_500, False), (10_700, True), (9_000, True), (9_100, False), (20_000, True)):
        before = Registry(store).find('used').last_used_at
        Registry(store, clock=lambda now=now: now).touch(Registry(store).find('used'))
        assert (Registry(store).find('used').last_used_at != before) is is_noted
    key = f'.ctxfs/contexts/ids/{made.id}'
    store.put(key, json.dumps({**json.loads(store.get(key)), 'lastUsedAt': '1970-99-99T99:99:99Z'}).encode())
    Registry(store, clock=lambda: 30_000).touch(Registry(store).find('used'))
    assert Registry(store).find('used').last_used_at == '1970-01-01T08:20:00Z'


def test_a_damaged_record_is_named(store):
    """Neither taken for missing (a second context would be made) nor a traceback."""
    made = Registry(store).create('damaged')
    for body in (b'{"id": 5}', b'not json', b'[]'):
        store.put(f'.ctxfs/contexts/ids/{made.id}', body)
        with pytest.raises(Corrupted, match=made.id):
            Registry(store).find('damaged')


@pytest.mark.parametrize('name', ['', ' a', 'a ', 'a/b', '.', '..', 'a\nb', 'a\0', 'x' * 129, 'SdkCtx-0123456789abcdefg', 'SdkCtx-x', '\udcff'])
def test_names_that_cannot_be(store, name):
    """Empty, like a path, like an id, or not to be typed again."""
    with pytest.raises(UsageError):
        Registry(store).create(name)


@pytest.mark.parametrize('name', ['a', '.hidden', 'ünï ☃', '%41', 'A', 'a.b', 'x' * 128, '☃' * 128, 'con:aux?*|', "it's"])
def test_names_that_can_be(store, name):
    """Each is itself after a round trip, and one harmless key component."""
    made = Registry(store).create(name)
    assert Registry(store).find(name) == made and made.name == name
    escaped = escape_name(name)
    assert '/' not in escaped and not escaped.startswith('.') and len(escaped) <= 255 and escaped.isascii()


def test_different_names_have_different_claims():
    """Also where they are cut, or look like another's escape."""
    names = ['a', 'A', '%61', 'a%', '.a', '%2Ea', '☃' * 128, '☃' * 127 + '☄', '☃' * 127]
    assert len({escape_name(name) for name in names}) == len(names)
