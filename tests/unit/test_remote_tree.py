"""How soon a mount answers while it learns what the context has."""
from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from ctxfs.records import ROOT_INO, Attrs, IndexRecord
from ctxfs.sync import listing_parts, remote_changes, remote_tree
from ctxfs.sync.index_log import IndexLog
from ctxfs.sync.protocol import IndexPart, ListPages, Operation, ReadIndex
from tests.unit.rig import Disk, virtual_time
from tests.unit.test_sync_regressions import PREFIX

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


@pytest.mark.parametrize(('seconds', 'own'), [(1.0, 0), (remote_tree.EARLY_SECONDS + 1, 1)], ids=['soon', 'late'])
def test_a_directory_waits_for_an_index_that_comes_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, own: int) -> None:
    """The listing that follows it is about to get there: no request for this one directory. Of a huge context it is listed by itself."""
    for module in (listing_parts, remote_changes):
        monkeypatch.setattr(module, 'PAGE', 3)

    asked: list[str] = []

    async def main() -> None:
        disk = Disk(tmp_path)
        records = [IndexRecord(path=f'd/{number}', changed_ns=1, etag=disk.put(f'd/{number}', b'x').etag, size=1, attrs=ATTRS) for number in range(5)]
        IndexLog(disk.workers.context.store, PREFIX, host='other').append(records)
        stream = disk.stream

        @asynccontextmanager
        async def late(operation: Operation[Any], **options: Any) -> AsyncIterator[Any]:
            if isinstance(operation, ReadIndex):
                await trio.sleep(seconds)
            if isinstance(operation, ListPages) and operation.delimiter:
                asked.append(operation.prefix.removeprefix(PREFIX))
            async with stream(operation, **options) as parts:
                yield parts
        disk.stream = late  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.remote.run)
            await disk.remote.ensure_listed(disk.db.inode(ROOT_INO))
            await disk.remote.ensure_listed(disk.inode_at(b'd'))
            assert len(disk.db.children(disk.inode_at(b'd').ino, b'', 10)) == 5
            nursery.cancel_scope.cancel()
        disk.close()
    with virtual_time(monkeypatch) as clock:
        trio.run(main, clock=clock)
    assert asked == ['', 'd/'][:1 + own]
