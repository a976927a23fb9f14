"""Small files uploaded together: one request to a worker and a few transactions for many of them, instead of so much for each.

Owns which work is of that kind, and the way of a batch: attempts noted in slices, sent, recorded in slices. What one upload is, and what
its end means for the tree, is uploader.py's; it must not know rounds or failures' consequences: it gives back how each ended.

Each file has its own abort slot, condition and attempt, as if it were sent alone: of a batch any part may arrive, be refused or move. A small
file costs a third of the CPU this way (0.9 ms in the worker and 0.5 ms in the daemon before), most of which was messages and threads that wake
each other up.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import NamedTuple, TypeVar

import trio

from ctxfs.crash_points import crash_point
from ctxfs.errors import CtxfsError, RemoteChanged
from ctxfs.storage.inode import Content
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.guarded import GuardedPool
from ctxfs.sync.planner import Work
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.protocol import PutDone, PutFile, PutItem, PutMany
from ctxfs.sync.uploader import Moved, TargetConflict, Uploader

#: bytes of a file that goes along with others
SMALL = 256 << 10
#: requests of a batch that are under way at once: enough to hide 20 ms of latency at 1,500 files a second
PARALLEL = 48
#: uploads begun, and recorded, in one transaction: about 3 ms of the loop
SLICE = 16

T = TypeVar('T')

#: how each work ended: None, or what Uploader.run would have raised
Outcomes = list[Exception | None]


class _Sent(NamedTuple):
    number: int
    work: Work
    file: PutFile


class Together:
    """See the module docstring."""

    def __init__(self, db: TreeDB, pool: TransferPool | GuardedPool, *, uploader: Uploader, transfers: int = 0) -> None:
        """`transfers`: that may be under way at once, of all kinds; 0: any number."""
        self._db = db
        self._pool = pool
        self._uploader = uploader
        # one is left for others: batches follow each other as long as there are files
        self._parallel = min(PARALLEL, max(1, transfers - 1)) if transfers else PARALLEL

    @staticmethod
    def is_small(work: Work) -> bool:
        """Whether it is one PUT of a small staged file."""
        inode = work.inode
        return (work.error is None and not work.is_retiring and not work.needs_bytes and len(work.missing) == 1 and inode.is_regular
                and inode.content == Content.STAGED and inode.size <= SMALL)

    async def run(self, works: Sequence[Work], progressed: Callable[[], None]) -> Outcomes:
        """Upload what is small, all at once. Raises nothing that is one file's. `progressed`: is called now and then while files arrive."""
        outcomes: Outcomes = [None] * len(works)
        lifecycles: dict[int, str] = {}
        for number, work in enumerate(works):
            try:
                lifecycles[number] = await self._uploader.lifecycle_of(work)
            except CtxfsError as error:
                outcomes[number] = error
        with ExitStack() as slots:
            try:
                sent = await self._begin(works, lifecycles, outcomes, slots)
                items = await self._send([one.file for one in sent], progressed) if sent else []
            except (CtxfsError, OSError) as error:
                return [error if outcome is None else outcome for outcome in outcomes]
        arrived = [(one, item.outcome()) for one, item in zip(sent, items, strict=True)]
        for (one, result) in arrived:
            if not isinstance(result, PutDone):
                outcomes[one.number] = TargetConflict(one.work.missing[0]) if isinstance(result, RemoteChanged) else result
        await self._record([(one, result) for one, result in arrived if isinstance(result, PutDone)], outcomes)
        return outcomes

    async def _send(self, files: list[PutFile], progressed: Callable[[], None]) -> list[PutItem]:
        return (await self._pool.call(PutMany(files=files, parallel=self._parallel), progress=lambda done: progressed())).items

    async def _begin(self, works: Sequence[Work], lifecycles: dict[int, str], outcomes: Outcomes, slots: ExitStack) -> list[_Sent]:
        """Note the attempts. A file that changes while others are looked at has its abort slot by then, or is found to have moved."""
        sent = []
        for part in _slices(list(lifecycles.items()), SLICE):
            with self._db.transaction():
                for number, lifecycle in part:
                    try:
                        sent.append(_Sent(number, works[number], self._uploader.begin(works[number], lifecycle, slots)))
                    except (Moved, CtxfsError, OSError) as error:
                        outcomes[number] = error
            await trio.lowlevel.checkpoint()
        crash_point('upload-before-send')
        return sent

    async def _record(self, arrived: list[tuple[_Sent, PutDone]], outcomes: Outcomes) -> None:
        for part in _slices(arrived, SLICE):
            crash_point('upload-before-record')
            try:
                with self._db.transaction():
                    moved = [one.number for one, done in part if not self._uploader.end(one.work, done)]
            except CtxfsError as error:
                for one, _ in part:
                    outcomes[one.number] = error
            else:
                for number in moved:
                    outcomes[number] = Moved()
            crash_point('upload-after-record')
            await trio.lowlevel.checkpoint()


def _slices(items: list[T], size: int) -> Iterator[list[T]]:
    left = iter(items)
    while part := list(islice(left, size)):
        yield part
