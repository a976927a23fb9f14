"""The registry's objects, written by anybody: a context of one prefix below contexts/, or an error that names the object."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ctxfs.edge import policy_choice
from ctxfs.errors import Corrupted, CtxfsError, NotFound, UsageError
from ctxfs.records import ListPage, ObjectInfo
from ctxfs.storage import registry
from ctxfs.storage.policy_store import policy_key
from ctxfs.storage.registry import ContextRecord, Registry, escape_name
from tests.fuzz.tools import DEEP, bounded, fuzz, mutated, texts, values

GOOD = {'id': 'SdkCtx-' + 'a' * 17, 'name': 'n', 'createdAt': '2024-01-01T00:00:00Z', 'lastUsedAt': '2024-01-01T00:00:00Z', 'state': 'available'}


class Objects:
    """A store of a few objects with any body, which forgets what is written and says so."""

    url = 'test://'

    def __init__(self, bodies: dict[str, bytes]) -> None:
        self.bodies = bodies
        self.written: dict[str, bytes] = {}
        self.taken = 0

    def get(self, key: str, start: int = 0, stop: int | None = None, *, if_match: str | None = None) -> bytes:
        if key not in self.bodies:
            raise NotFound(key)
        found = self.bodies[key][start:stop]
        self.taken += len(found)
        return found

    def head(self, key: str) -> ObjectInfo:
        return ObjectInfo(key=key, size=len(self.get(key)), etag='"e"', mtime_ns=0)

    def put(self, key: str, body: bytes, **how: Any) -> None:
        self.written[key] = body

    def list(self, prefix: str, **how: Any) -> ListPage:
        keys = sorted(key for key in self.bodies if key.startswith(prefix))
        return ListPage(objects=[ObjectInfo(key=key, size=0, etag='', mtime_ns=0) for key in keys], prefixes=[], next_token=None)


records = st.one_of(
    st.fixed_dictionaries({}, optional={name: st.one_of(values, texts) for name in GOOD}).map(lambda changes: bad(**changes)),
    mutated(st.just(json.dumps(GOOD).encode())), st.binary(max_size=30), values.map(lambda value: json.dumps(value).encode()))


def bad(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


@given(records, records, st.sampled_from(['n', GOOD['id'], '..', 'a/b', '.', '']))
@example(bad(id='../..'), b'', 'n')
@example(bad(id='other/inner'), b'', 'n')
@example(bad(id=''), b'', 'n')
@example(b'', bad(id='SdkCtx-' + 'b' * 17), GOOD['id'])
@example(bad(), bad(name='a\x1b[2Jb'), GOOD['id'])
@fuzz
def test_whatever_the_registry_holds_a_context_is_one_prefix(claim: bytes, record: bytes, reference: str) -> None:
    """No id that leads to another context's files, above them, or to what a record of another context says; no other error."""
    store: Any = Objects({registry.NAMES + escape_name('n'): claim, registry.IDS + GOOD['id']: record})
    for ask in (lambda: [Registry(store).find(reference)], lambda: Registry(store).list_contexts().contexts, lambda: [Registry(store).create('n')]):
        try:
            found = ask()
        except CtxfsError:
            continue
        for one in found:
            assert one.prefix == f'contexts/{one.id}/' and '/' not in one.id and one.id not in ('', '.', '..', '.ctxfs')
            assert one.id.isascii() and one.id.isprintable() and len(one.id) <= 255
            assert reference != GOOD['id'] or one.id == GOOD['id'] or ask.__code__.co_names[1] != 'find'
            assert one.name == one.id or registry.check_name(one.name)
            assert (one.created_at + one.last_used_at).isprintable()
    for key in store.written:
        assert key.startswith(('.ctxfs/contexts/names/', '.ctxfs/contexts/ids/')) and '..' not in key.split('/')


@pytest.mark.parametrize('number', range(len(DEEP)))
def test_deep_or_endless_records_are_refused(number: int) -> None:
    """In little memory; of a record that is far too long no more than its beginning is read."""
    body = b'{"id":' + DEEP[number] + b'}'
    for reference in ('n', GOOD['id']):
        store: Any = Objects({registry.NAMES + escape_name('n'): body, registry.IDS + GOOD['id']: body})
        with pytest.raises(Corrupted):
            bounded(lambda store=store, reference=reference: Registry(store).find(reference))   # type: ignore[misc]
    large: Any = Objects({registry.NAMES + escape_name('n'): b' ' * (50 << 20)})
    with pytest.raises(Corrupted):
        Registry(large).find('n')
    assert large.taken <= 2 << 20


@given(st.one_of(st.binary(max_size=60), values.map(lambda value: json.dumps(value).encode())))
@example(DEEP[0])
@example(b'\xff\xfe')
@fuzz
def test_a_stored_policy_of_any_bytes_is_one_or_refused(body: bytes) -> None:
    """It is mounted with by who did not write it."""
    store: Any = Objects({policy_key('c'): body})
    context = ContextRecord(id='c', name='c', created_at='', last_used_at='')
    try:
        policy_choice.stored(store, context)
    except UsageError as error:
        assert '\n' not in str(error) and 'ctxfs policy set c FILE' in str(error)


def test_unregistered_names_are_no_paths(tmp_path: Path) -> None:
    """A context that only has files is found by its id, never by a path to them."""
    store: Any = Objects({'contexts/c/d/f': b'', 'contexts/../f': b'', 'contexts//f': b''})
    assert Registry(store).find('c').id == 'c'
    for reference in ('c/d', '..', '', '.', 'c/', '../c'):
        with pytest.raises(CtxfsError):
            Registry(store).find(reference)
