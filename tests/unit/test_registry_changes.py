"""Renaming and removing contexts: unique names under a race, and every place where it can be cut short."""
from __future__ import annotations

import json
import threading

import pytest

from ctxfs.errors import Denied, Exists, NotFound, UsageError
from ctxfs.storage import registry_changes, registry_entries
from ctxfs.storage.object_store import Capabilities
from ctxfs.storage.registry import Registry
from tests.fakes.memory_store import MemoryStore


class Killed(BaseException):
    """Nothing runs afterwards."""


@pytest.fixture
def store():
    return MemoryStore()


def die_at(monkeypatch, point):
    def crash_point(name):
        if name == point:
            raise Killed
    monkeypatch.setattr(registry_changes, 'crash_point', crash_point)


def names_of(store):
    return {key.rpartition('/')[2] for key in (info.key for info in store.list(registry_entries.NAMES).objects)}


def test_a_renamed_context_is_found_by_its_new_name_only(store):
    """The id and everything else stays; the old name is free."""
    made = Registry(store).create('old')
    renamed = registry_changes.rename(store, made, 'new')
    assert (renamed.id, renamed.name, renamed.created_at) == (made.id, 'new', made.created_at)
    assert Registry(store).find('new') == Registry(store).find(made.id) == renamed
    with pytest.raises(NotFound):
        Registry(store).find('old')
    assert Registry(store).create('old').id != made.id
    assert json.loads(store.get(f'.ctxfs/contexts/ids/{made.id}')).keys() == {'id', 'name', 'createdAt', 'lastUsedAt', 'state'}


def test_a_taken_name_is_refused_and_nothing_changes(store):
    """Nor a name that cannot be; its own name is no change."""
    one, two = Registry(store).create('one'), Registry(store).create('two')
    with pytest.raises(Exists, match='there is a context two already'):
        registry_changes.rename(store, one, 'two')
    with pytest.raises(UsageError):
        registry_changes.rename(store, one, 'a/b')
    assert registry_changes.rename(store, one, 'one') == one
    assert (Registry(store).find('one'), Registry(store).find('two')) == (one, two)
    assert names_of(store) == {'one', 'two'}


@pytest.mark.parametrize(('point', 'found_by'), [('context-rename-after-intent', 'old'), ('context-rename-after-claim', 'new'),
                                                  ('context-rename-after-record', 'new')])
def test_a_renaming_that_was_cut_short(store, monkeypatch, point, found_by):
    """One context with one name, whoever comes next, and the other name can be used."""
    made = Registry(store).create('old')
    die_at(monkeypatch, point)
    with pytest.raises(Killed):
        registry_changes.rename(store, made, 'new')
    monkeypatch.undo()
    assert Registry(store).find(found_by).id == made.id
    other = 'old' if found_by == 'new' else 'new'
    with pytest.raises(NotFound):
        Registry(store).find(other)
    fresh = Registry(store).create(other)
    assert fresh.id != made.id and Registry(store).find(found_by).id == made.id
    assert names_of(store) == {'old', 'new'}
    assert registry_changes.rename(store, Registry(store).find(made.id), 'third').name == 'third'
    assert names_of(store) == {'third', other}


def test_of_many_who_rename_to_one_name_one_gets_it(store):
    """And so it is beside others who create it."""
    made = [Registry(store).create(f'c{i}') for i in range(6)]
    barrier, outcomes = threading.Barrier(12), []

    def rename(record):
        barrier.wait()
        try:
            outcomes.append(registry_changes.rename(store, record, 'wanted').id)
        except Exists:
            outcomes.append('')

    def create():
        barrier.wait()
        outcomes.append(Registry(store).create('wanted').id)
    threads = [threading.Thread(target=rename, args=(record,)) for record in made] + [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 12 and {outcome for outcome in outcomes if outcome} == {Registry(store).find('wanted').id}
    records = Registry(store).list_contexts().contexts
    assert len({record.name for record in records}) == len(records)


def test_a_removal_that_was_cut_short_frees_the_name(store, monkeypatch):
    """What is left is found by its id, and goes with the next try."""
    made = Registry(store).create('gone')
    die_at(monkeypatch, 'context-delete-after-claim')
    with pytest.raises(Killed):
        registry_changes.remove(store, made)
    monkeypatch.undo()
    with pytest.raises(NotFound):
        Registry(store).find('gone')
    registry_changes.remove(store, Registry(store).find(made.id))
    assert Registry(store).list_contexts().contexts == []


def test_without_the_right_to_write_a_renaming_in_between_can_be_read(store, monkeypatch):
    """Whoever may only read finds the context by the name that it has as good as got."""
    made = Registry(store).create('old')
    die_at(monkeypatch, 'context-rename-after-claim')
    with pytest.raises(Killed):
        registry_changes.rename(store, made, 'new')
    monkeypatch.undo()

    class ReadOnly:
        def __getattr__(self, verb):
            if verb in ('put', 'delete'):
                def refuse(*args, **kwargs):
                    raise Denied('no')
                return refuse
            return getattr(store, verb)
    assert (Registry(ReadOnly()).find('new').id, Registry(ReadOnly()).find('new').name) == (made.id, 'new')


class HeedsNothing(MemoryStore):
    """A server that carries out every conditional write."""

    def capabilities(self):
        return Capabilities(conditional_create=False, conditional_overwrite=False, conditional_delete=False, conditional_copy=False,
                            batch_delete=True)

    def put(self, key, body, *, condition=None, **how):
        return super().put(key, body, **how)


def test_where_a_store_cannot_create_atomically_both_wait_and_read_the_same():
    """The second one looks and writes while the first one's claim is on its way, and would believe its own if it did not wait."""
    store, second_waits, first_wrote, found = HeedsNothing(), threading.Event(), threading.Event(), []

    def waiting(seconds):
        second_waits.set()
        assert first_wrote.wait(10)
    second = threading.Thread(target=lambda: found.append(Registry(store, sleep=waiting).create('contested').id))

    class Slow:
        def __getattr__(self, verb):
            return getattr(store, verb)

        def put(self, key, body, **how):
            if key.startswith(registry_entries.NAMES):
                second.start()
                assert second_waits.wait(10)
            store.put(key, body, **how)
            first_wrote.set()
    found.append(Registry(Slow(), sleep=lambda seconds: second.join()).create('contested').id)
    assert len(found) == 2 and len(set(found)) == 1


def test_a_page_of_ten_thousand_reads_only_its_own():
    """However many contexts there are: records of one page, one listing of the rest, and the count comes along."""
    store = MemoryStore()
    for number in range(10_000):
        record = {'id': f'SdkCtx-{number:017}', 'name': f'c{number}', 'createdAt': '', 'lastUsedAt': '', 'state': 'available'}
        store.put(f'.ctxfs/contexts/ids/{record["id"]}', json.dumps(record).encode())
    asked = []

    class Counted:
        def __getattr__(self, verb):
            def ask(*args, **kwargs):
                asked.append(verb)
                return getattr(store, verb)(*args, **kwargs)
            return ask
    contexts = Registry(Counted())
    first = contexts.list_contexts(7)
    assert (first.total_count, len(first.contexts), asked.count('get')) == (10_000, 7, 7)
    asked.clear()
    second = contexts.list_contexts(7, first.next_token)
    assert [record.name for record in second.contexts] == [f'c{number}' for number in range(7, 14)]
    assert second.total_count == 10_000 and sorted(asked) == ['get'] * 7 + ['list']
    token, seen = first.next_token, 7
    while token is not None:
        page = contexts.list_contexts(2600, token)
        token, seen = page.next_token, seen + len(page.contexts)
    assert seen == 10_000
    with pytest.raises(UsageError):
        contexts.list_contexts(7, 'no token/')
