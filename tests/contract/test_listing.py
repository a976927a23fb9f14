"""What every store lists: exactly its keys, in UTF-8 byte order, page by page, from any key on, with common prefixes."""
from __future__ import annotations

import itertools
import random

import pytest

from ctxfs.storage.object_store import ObjectStore
from tests.contract.conftest import all_keys

KEYS = ['a', 'a.txt', 'a/', 'a/b', 'a/b/c', 'a/b/d', 'a//b', 'a0', 'b/c/d', 'b/c0', 'b/ü/x', 'c',
        '/x', '../x', '\u201bFF', 'z\n', 'é', '\U0001f600', '\uffee']


@pytest.fixture
def filled(store: ObjectStore) -> ObjectStore:
    for key in KEYS:
        store.put(key, key.encode())
    return store


def expected(keys: list[str], prefix: str, delimiter: str, start_after: str = '') -> list[str]:
    """The model: ListObjectsV2 as documented."""
    found: dict[str, None] = {}
    for key in sorted(keys, key=str.encode):
        if key.startswith(prefix) and key.encode() > start_after.encode():
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            found[key if cut < 0 else key[:cut + len(delimiter)]] = None
    return list(found)


@pytest.mark.parametrize('delimiter', ['', '/'])
@pytest.mark.parametrize('prefix', ['', 'a', 'a/', 'a/b', 'a/b/', 'a//', 'b/', 'b/c', '/', '../', 'é', 'none', 'none/', 'z'])
def test_pages_of_any_size_give_the_same_keys(filled: ObjectStore, prefix: str, delimiter: str) -> None:
    """One, two, three or all a page: nothing twice, nothing left out, in order."""
    for limit in (1, 2, 3, 1000):
        assert all_keys(filled, prefix, delimiter=delimiter, limit=limit) == expected(KEYS, prefix, delimiter)


@pytest.mark.parametrize('start_after', [*KEYS, 'a/b/', 'a/zzz', 'b', 'ä', '\uffff'], ids=ascii)
def test_start_after_begins_behind_a_key(filled: ObjectStore, start_after: str) -> None:
    """Whether or not the key exists."""
    assert all_keys(filled, start_after=start_after) == expected(KEYS, '', '', start_after)


def test_a_page_is_never_larger_than_asked_for(filled: ObjectStore) -> None:
    """Common prefixes count as well, and the last page has no token."""
    page = filled.list('', delimiter='/', limit=3)
    assert len(page.objects) + len(page.prefixes) == 3
    assert page.next_token is not None
    assert filled.list('', limit=len(KEYS)).next_token is None


def test_a_listing_describes_as_head_does(filled: ObjectStore) -> None:
    """Size and etag are those of head, so that a listing can stand for it."""
    for info in filled.list('').objects:
        head = filled.head(info.key)
        assert (info.size, info.etag, info.metadata) == (head.size, head.etag, None)
        assert abs(info.mtime_ns - head.mtime_ns) < 1_000_000_000


def test_an_empty_store_lists_nothing(store: ObjectStore) -> None:
    """An empty last page, with and without delimiter."""
    for delimiter in ('', '/'):
        page = store.list('', delimiter=delimiter)
        assert (page.objects, page.prefixes, page.next_token) == ([], [], None)


def test_a_listing_goes_on_while_the_store_changes(store: ObjectStore) -> None:
    """What is there from the first page to the last is listed exactly once, whatever comes and goes between the pages."""
    keys = [f'd{number % 7}/k{number:03}' for number in range(70)]
    for key in keys:
        store.put(key, b'')
    found, token = [], None
    for step in itertools.count():
        page = store.list('', token=token, limit=10)
        found += [info.key for info in page.objects]
        token = page.next_token
        if token is None:
            break
        store.delete(found[-1])
        store.put(f'd3/k00{step}-new', b'')
    stayed = [key for key in found if 'new' not in key]
    assert stayed == sorted(keys)


def test_random_trees_match_the_model(store: ObjectStore) -> None:
    """Random keys from pieces that sort awkwardly; puts, deletes, then every kind of listing."""
    seed = random.randrange(1 << 32)
    rng, alive = random.Random(seed), set()
    pieces = ['a', 'b', 'a.', 'a0', '', '.', 'é', 'x' * 130]
    for _ in range(120):
        key = '/'.join(rng.choice(pieces) for _ in range(rng.randint(1, 4))) or 'k'
        if rng.random() < 0.7:
            store.put(key, b'')
            alive.add(key)
        elif alive:
            gone = rng.choice(sorted(alive))
            store.delete(gone)
            alive.remove(gone)
    for prefix, delimiter in itertools.product(['', 'a', 'a/', 'b/', '/'], ['', '/', 'b']):
        start_after = '' if delimiter else rng.choice(['', 'a', 'a/b', 'x/y'])
        found = all_keys(store, prefix, delimiter=delimiter, start_after=start_after, limit=rng.choice([1, 3, 1000]))
        assert found == expected(sorted(alive), prefix, delimiter, start_after), f'seed {seed}'
