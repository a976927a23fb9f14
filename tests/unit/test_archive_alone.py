"""What a look at a context's objects proves of a commit, and of which it proves nothing."""
from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import trio

from ctxfs.records import ListPage
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.archive_alone import Alone
from ctxfs.sync.rivals import AloneList


class OnePage:
    """Of an empty bucket."""

    def __aiter__(self) -> OnePage:
        return self

    async def __anext__(self) -> ListPage:
        return ListPage(objects=[], prefixes=[], next_token=None)


class Store:
    """No objects; `meanwhile` happens while they are listed. `told`: the lists that were written."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self._meanwhile = meanwhile
        self.told: list[list[int]] = []

    @asynccontextmanager
    async def stream(self, operation: Any) -> AsyncIterator[Any]:
        await trio.lowlevel.checkpoint()
        self._meanwhile()
        yield OnePage()

    async def call(self, operation: Any) -> None:
        self.told.append(msgspec.json.decode(operation.body, type=AloneList).commits)


def test_a_listing_says_nothing_of_a_commit_that_came_after_it(tmp_path: Path) -> None:
    """An object may have come between the two, unseen by both: taken for a later one, it would cost the member. The next look tells of it."""
    async def main() -> None:
        db = TreeDB(tmp_path / 'tree.db')
        mirror: Any = SimpleNamespace(rows=SimpleNamespace(get_all=lambda keys: {}), context_prefix='contexts/c/')
        again = iter([lambda: alone.committed(2, ['b.zip'])])
        store: Any = Store(lambda: next(again, lambda: None)())
        alone = Alone(db, store, list_pool=store, mirror=mirror, host='one', prefix='contexts/c/')
        alone.committed(1, ['a.zip'])
        await alone.prove()
        assert store.told == [[1]]
        await alone.prove()
        assert store.told == [[1], [1, 2]]
        await alone.prove()
        assert len(store.told) == 2, 'there is nothing new to be told'
        db.close()
    trio.run(main)
