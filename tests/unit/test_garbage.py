"""When all objects of a daemon are looked at: never in the middle of work, and at last all the same."""
from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from ctxfs.edge.garbage import MOST_SECONDS, REST_SECONDS, Garbage


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


class Cycle:
    def __init__(self) -> None:
        self.me = self


def test_a_mount_that_rests_is_searched_now_and_then() -> None:
    garbage = Garbage(lambda: 5)
    found = weakref.ref(Cycle())
    looked = [garbage.look(second / 2) for second in range(int(REST_SECONDS * 5))]
    assert sum(looked) == 2 and not any(looked[:int(REST_SECONDS * 2)])
    assert found() is None


def test_one_that_works_is_searched_at_last() -> None:
    done = iter(range(10 ** 6))
    garbage = Garbage(lambda: next(done))
    looked = [garbage.look(second) for second in range(int(MOST_SECONDS) + 1)]
    assert looked.count(True) == 1 and looked[-1]


def test_python_does_not_begin_by_itself() -> None:
    """However many objects are made and kept."""
    Garbage.begin()
    before = gc.get_stats()[2]['collections']
    kept = [[number] for number in range(300_000)]
    assert gc.get_stats()[2]['collections'] == before and gc.get_stats()[0]['collections'] and len(kept) == 300_000
