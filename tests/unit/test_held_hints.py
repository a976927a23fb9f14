"""Index records that wait in memory for their objects: what is found, what is left, and how much there may be."""
from __future__ import annotations

import msgspec
import pytest

from ctxfs.records import IndexRecord
from ctxfs.storage import held_hints
from ctxfs.storage.held_hints import HeldHints, record_of


def add(held: HeldHints, *keys: str) -> bool:
    records = [IndexRecord(path=key, changed_ns=1, etag='' if key.endswith('/') else f'"{key}"', size=1) for key in keys]
    return held.add(msgspec.msgpack.encode(records), first=keys[0], last=keys[-1], count=len(keys),
                    objects=sum(not key.endswith('/') for key in keys))


@pytest.fixture
def held() -> HeldHints:
    made = HeldHints()
    assert add(made, 'a/', 'a/1', 'a/2') and add(made, 'b', 'c/', 'c/1') and add(made, 'é', '\U0001f600')
    return made


def test_a_key_is_found_in_its_page(held: HeldHints) -> None:
    for key in ('a/', 'a/2', 'b', 'c/1', '\U0001f600'):
        assert (found := held.get(key)) is not None and record_of(found).path == key and found[:2] == (record_of(found).etag, 1)
    assert [held.get(key) for key in ('', 'a', 'a/3', 'bb', 'c/2', 'z', '\U0010ffff')] == [None] * 7


@pytest.mark.parametrize(('after', 'last', 'keys'), [
    ('', None, ['a/', 'a/1', 'a/2', 'b', 'c/', 'c/1', 'é', '\U0001f600']), ('a/1', 'c/', ['a/2', 'b', 'c/']), ('a/2', 'b', ['b']),
    ('c/1', None, ['é', '\U0001f600']), ('a/3', 'a/9', []), ('\U0001f600', None, [])])
def test_stretches(held: HeldHints, after: str, last: str | None, keys: list[str]) -> None:
    assert list(held.between(after, last)) == keys


def test_what_was_dropped_is_gone_also_from_pages_that_were_packed_again(held: HeldHints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_hints, 'UNPACKED', 1)
    held.drop(['a/1', 'b', 'nobody', 'c/1', '\U0001f600'])
    assert list(held.between('', None)) == ['a/', 'a/2', 'c/', 'é']
    assert sum(page.records is not None for page in held._pages) == 1
    left = []
    while held:
        left += [record.path for record in held.take()]
    assert left == ['a/', 'a/2', 'c/', 'é'] and held.get('a/') is None


def test_counts_are_of_what_came(held: HeldHints) -> None:
    assert held.objects == 6 and [held.nth_object(number) for number in range(6)] == ['a/1', 'a/2', 'b', 'c/1', 'é', '\U0001f600']
    with pytest.raises(IndexError):
        held.nth_object(6)
    assert held.count_between('', 'a/2') == 3 and held.count_between('a/2', 'c/1') == 3 and held.count_between('', 'z') == 6


def test_what_has_no_place_is_refused() -> None:
    """Beyond the bound, and what does not follow."""
    held = HeldHints(most=100)
    assert not held and add(held, 'b')
    assert not add(held, 'b', 'c') and not add(held, 'a') and not add(held, *(f'c{number}' for number in range(20)))
    assert list(held.between('', None)) == ['b']
    held.clear()
    assert not held and add(held, 'a')
