"""The bound that dirty bytes and clean blocks share, whatever is written, read and uploaded in any order."""
from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from ctxfs.errors import NoSpace
from ctxfs.storage.block_cache import MIN_LIMIT
from ctxfs.sync.engine import FlushResult
from ctxfs.sync.room import STEPS, DirtyBound, clean_share

MIB = 1 << 20


class Disk:
    """Counts what lies there: dirty bytes of files, and clean blocks that fill whatever they may have."""

    def __init__(self, limit: int, *, uploads: bool) -> None:
        self.limit = limit
        self.uploads = uploads
        self.used = 0
        self.files: dict[int, int] = {}
        self.clean = self.share = clean_share(limit, 0)
        self.asked = 0
        self.bound = DirtyBound(self, limit=limit, flush=self.flush, bound_clean=self.bound_clean,  # type: ignore[arg-type]
                                schedule=SimpleNamespace(is_manual=not uploads, is_paused=False))

    async def bound_clean(self, share: int) -> None:
        self.asked += 1
        await trio.lowlevel.checkpoint()        # evicting takes time
        self.share = share
        self.clean = min(self.clean, share)

    async def flush(self) -> FlushResult:
        """Uploaded files are clean now."""
        await trio.lowlevel.checkpoint()
        self.files.clear()
        self.used = 0
        return FlushResult(True, 0, 0, '')

    async def write(self, file: int, size: int) -> None:
        own = self.files.get(file, 0)
        if not self.bound.has_room(size, own):
            await self.bound.make_room(size, own)
        self.files[file] = self.files.get(file, 0) + size
        self.used += size

    def fill(self) -> None:
        self.clean = self.share

    def check(self) -> None:
        assert self.used <= max(self.limit, max(self.files.values(), default=0))
        assert self.used + self.clean <= max(self.limit, self.used + MIN_LIMIT)


actions = st.lists(st.one_of(st.tuples(st.just('write'), st.integers(0, 3), st.integers(1, 24 * MIB)), st.just(('fill',)), st.just(('tick',)),
                             st.just(('upload',))), max_size=40)


@given(limit=st.integers(2 * MIN_LIMIT, 16 * MIN_LIMIT), uploads=st.booleans(), steps=actions)
def test_dirty_and_clean_bytes_never_exceed_the_bound_together(limit: int, uploads: bool, steps: list[Any]) -> None:
    """Clean blocks go first; then writers wait for uploads, or are refused; a file larger than all of it is possible alone."""
    async def main() -> None:
        disk = Disk(limit, uploads=uploads)
        for step in steps:
            if step[0] == 'write':
                try:
                    await disk.write(*step[1:])
                except NoSpace:
                    assert not uploads and disk.bound.refusal
            elif step[0] == 'tick':
                await disk.bound.adjust_cache()
            elif step[0] == 'upload':
                await disk.flush()
            else:
                disk.fill()
            disk.check()
    trio.run(main)


def test_few_writes_wait_for_evictions() -> None:
    """A gibibyte in writes of a mebibyte: one eviction for each step."""
    async def main() -> None:
        disk = Disk(1 << 30, uploads=True)
        for _ in itertools.repeat(None, 900):
            await disk.write(1, MIB)
        assert disk.asked <= STEPS + 1
    trio.run(main)


def test_writers_at_once_wait_for_one_eviction() -> None:
    """And none of them goes on before it."""
    async def main() -> None:
        disk = Disk(4 * MIN_LIMIT, uploads=True)
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(disk.write, number, MIB)
        assert disk.asked == 1
        disk.check()
    trio.run(main)


@pytest.mark.parametrize('limit', [MIB, MIN_LIMIT])
def test_a_small_bound_is_for_dirty_bytes(limit: int) -> None:
    """Clean blocks have their least share; without uploads a second file is refused at the bound."""
    async def main() -> None:
        disk = Disk(limit, uploads=False)
        await disk.write(1, limit)
        with pytest.raises(NoSpace):
            await disk.write(2, 1)
        assert disk.clean == MIN_LIMIT
    trio.run(main)
