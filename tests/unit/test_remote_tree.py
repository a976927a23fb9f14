"""How soon a mount answers while it learns what the context has."""
from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from ctxfs.records import ROOT_INO, Attrs, IndexRecord
from ctxfs.sync import remote_tree
from ctxfs.sync.protocol import IndexPart, Operation, ReadIndex
from tests.unit.rig import Disk, virtual_time

ATTRS = Attrs(mode=0o100644, uid=0, gid=0, mtime_ns=1, atime_ns=0, ctime_ns=0)
PART = 1000


class Endless:
    """The parts of an index of `count` records, and then no end."""

    def __init__(self, count: int) -> None:
        self._left = count

    def __aiter__(self) -> Endless:
        return self

    async def __anext__(self) -> IndexPart:
        if not self._left:
            await trio.sleep_forever()
        count = min(PART, self._left)
        self._left -= count
        return IndexPart.of([IndexRecord(path=f'f{self._left + n:06}', changed_ns=1, etag='"e"', size=1, attrs=ATTRS) for n in range(count)])


@pytest.mark.parametrize(('count', 'is_waited_for'), [(remote_tree.MANY + 1, False), (PART, True)], ids=['many', 'few'])
def test_names_of_a_large_context_do_not_wait_for_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, is_waited_for: bool) -> None:
    """As soon as it is known to be large. A small one is read as a whole a moment later, which spares the request for a directory."""
    async def main() -> float:
        disk = Disk(tmp_path)
        disk.put('file', b'content')
        stream = disk.stream

        @asynccontextmanager
        async def endless(operation: Operation[Any], **options: Any) -> AsyncIterator[Any]:
            if isinstance(operation, ReadIndex):
                yield Endless(count)
            else:
                async with stream(operation, **options) as parts:
                    yield parts
        disk.stream = endless   # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.remote.run)
            await disk.remote.ensure_listed(disk.db.inode(ROOT_INO))
            took = trio.current_time()
            nursery.cancel_scope.cancel()
        assert disk.db.lookup(ROOT_INO, b'file') is not None
        disk.close()
        return took
    with virtual_time(monkeypatch) as clock:
        took = trio.run(main, clock=clock)
    assert (took >= remote_tree.GRACE_SECONDS) == is_waited_for
