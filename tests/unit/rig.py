"""A mount without a kernel: core, journal and engine as the daemon wires them, over a real directory store, with the workers' functions in
this process, and time that passes only where a test lets it.

Owns the wiring and what programs do (open, write, close, rename). It must not know what a test expects.
"""
from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from ctxfs.core.block_reader import BlockReader
from ctxfs.core.contents import Contents
from ctxfs.core.filesystem import FileSystem
from ctxfs.core.made_files import MadeFiles
from ctxfs.core.namespace import Caller, Namespace
from ctxfs.errors import CtxfsError
from ctxfs.policy import SyncPolicy
from ctxfs.records import ROOT_INO
from ctxfs.rules import Rules
from ctxfs.storage.block_cache import BLOCK_SIZE
from ctxfs.storage.inode import Inode
from ctxfs.storage.made_log import MadeLog
from ctxfs.sync.content import ContextCache, RemoteContentLoader
from ctxfs.sync.doubt import Doubt
from ctxfs.sync.engine import UploadEngine
from ctxfs.sync.localise import Localiser
from ctxfs.sync.planner import Planner
from ctxfs.sync.protocol import Adopt, ItemFailure, Operation, PutItem, PutMany, PutManyDone, describe
from ctxfs.sync.recycle import Recycler
from ctxfs.sync.room import DirtyBound
from ctxfs.sync.rounds import Rounds
from ctxfs.sync.schedule import UploadScheduler
from ctxfs.sync.tasks import TaskLog
from ctxfs.sync.together import Together
from ctxfs.sync.uploader import Uploader
from ctxfs.sync.worker_ops import HANDLERS
from tests.unit.test_sync_regressions import PREFIX, Channel, Host

ME = Caller(0, 0)
#: what is asked of workers but not of the store
LOCAL = (Adopt,)


async def one_by_one(call: Callable[[Operation[Any]], Awaitable[Any]], operation: PutMany) -> PutManyDone:
    """A batch as the uploads that it is made of, for tests that look at these."""
    items = [PutItem()] * len(operation.files)

    async def put(number: int) -> None:
        try:
            items[number] = PutItem(done=await call(operation.files[number]))
        except CtxfsError as error:
            name, message = describe(error)
            items[number] = PutItem(failure=ItemFailure(key=operation.files[number].key, name=name, message=message))
    async with trio.open_nursery() as nursery:
        for number in range(len(items)):
            nursery.start_soon(put, number)
    return PutManyDone(items=items)


async def bound_clean(share: int) -> None:
    """There is no cache to be bounded."""


class _Parts(Channel):
    """The parts of a streaming operation, all made before the first is read."""

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.result: Any = None

    def part(self, value: Any) -> None:
        self.parts.append(value)

    def __aiter__(self) -> _Parts:
        return self

    async def __anext__(self) -> Any:
        if not self.parts:
            raise StopAsyncIteration
        return self.parts.pop(0)


class Disk(Host):
    """A host with a file system and a schedule. Make it inside trio. `asked`: the operations that went to the store."""

    def __init__(self, directory: Path, *, policy: SyncPolicy | None = None, sync_every: float | None = None, bucket: Path | None = None,
                 host: str = 'here') -> None:
        self.rules = Rules(policy or SyncPolicy())
        self.asked: list[Operation[Any]] = []
        #: raised instead of an operation; and awaited before it
        self.failure: CtxfsError | None = None
        self.before: Callable[[Operation[Any]], Awaitable[object]] | None = None
        super().__init__(directory, bucket=bucket, host=host)
        self._wire(sync_every)

    def _wire(self, sync_every: float | None) -> None:
        db, journal, staging = self.db, self.journal, self.staging
        pool: Any = self
        self.slots = self.workers.slots
        self.courtesy = SimpleNamespace(is_busy=lambda: False)
        doubt = Doubt(db, journal, pool, prefix=PREFIX, host=self.host_id)
        self.remote._pool = self.remote.index._pool = self.remote.changes._pool = pool      # asks us, not the workers
        self.finisher._pool = self.conflicts._pool = pool
        planner = Planner(db, journal, gating=self.gating, prefix=PREFIX)
        recycler = Recycler(db, journal, pool, rules=self.rules, reconciler=self.reconciler, finisher=self.finisher, prefix=PREFIX)
        self.tasks = TaskLog(context_id='c', path='/')
        self.uploader = Uploader(db, journal, staging, pool, planner=planner, doubt=doubt, recycler=recycler, prefix=PREFIX)
        self.together = Together(db, pool, uploader=self.uploader)
        rounds = Rounds(db, journal, pool, planner=planner, doubt=doubt, gating=self.gating, conflicts=self.conflicts, uploader=self.uploader,
                        together=self.together,
                        localiser=Localiser(db, journal, self.gating, stage=lambda inode: self.fs.contents.stage(inode)), prefix=PREFIX)
        self.engine = UploadEngine(db, journal, rounds=rounds, finisher=self.finisher, remote=self.remote, tasks=self.tasks, spawn=self.spawn)
        self.schedule = UploadScheduler(self.engine, db, journal, rules=self.rules, sync_every=sync_every, clock=lambda: time.time_ns())
        self.room = DirtyBound(staging, limit=1 << 20, flush=self.engine.flush, bound_clean=bound_clean, schedule=self.schedule)
        content = RemoteContentLoader(pool, prefix=PREFIX)
        blocks = BlockReader(ContextCache(self.workers.context.cache, prefix=PREFIX), content, block_size=BLOCK_SIZE, spawn=self.spawn,
                             refresh=self.remote.refresh)
        contents = Contents(db, journal, staging, blocks=blocks, remote=content, room=self.room)
        self.fs = FileSystem(db, journal, Namespace(db, journal, staging, gating=self.gating, remote=self.remote), contents,
                             remote=self.remote, on_close=lambda inode: self.schedule.wake(),
                             made=MadeFiles(db, journal, staging, gating=self.gating, log=MadeLog(db)))

    # the pool, as the engine has it

    async def call(self, operation: Operation[Any], **options: Any) -> Any:
        if isinstance(operation, PutMany):
            return await one_by_one(self.call, operation)
        if not isinstance(operation, LOCAL):
            self.asked.append(operation)
            if self.before is not None:
                await self.before(operation)
            if self.failure is not None:
                await trio.lowlevel.checkpoint()
                raise self.failure
        return await self.workers.call(operation, **options)

    @asynccontextmanager
    async def stream(self, operation: Operation[Any], **_: Any) -> AsyncIterator[_Parts]:
        parts = _Parts()
        parts.result = HANDLERS[type(operation)](self.workers.context, operation, parts)
        yield parts

    def count(self, *kinds: type[Operation[Any]]) -> int:
        return sum(isinstance(operation, kinds) for operation in self.asked)

    # its life

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The context is listed and the schedule runs until the block ends."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self.remote.run()
            self.asked.clear()
            nursery.start_soon(self.schedule.run)
            yield
            nursery.cancel_scope.cancel()

    def spawn(self, function: Callable[..., Any], *args: Any) -> None:
        self._nursery.start_soon(function, *args)

    # programs

    async def open_new(self, name: bytes) -> tuple[int, Inode]:
        return await self.fs.create(ROOT_INO, name, mode=0o644, flags=os.O_WRONLY, caller=ME)

    async def save(self, name: bytes, data: bytes) -> Inode:
        """A new file, written and closed."""
        fh, inode = await self.open_new(name)
        await self.fs.write(fh, 0, data)
        await self.fs.release(fh)
        return inode

    async def rewrite(self, inode: Inode, data: bytes) -> None:
        fh = await self.fs.open(inode.ino, os.O_WRONLY)
        await self.fs.write(fh, 0, data)
        await self.fs.release(fh)

    async def rename(self, name: bytes, new_name: bytes) -> None:
        await self.fs.rename(ROOT_INO, name, ROOT_INO, new_name, 0)

    # the bucket

    def body(self, key: str) -> bytes | None:
        try:
            return self.workers.context.store.get(PREFIX + key)
        except CtxfsError:
            return None

    def keys(self) -> list[str]:
        found = self.workers.context.store.list(PREFIX)
        return [info.key[len(PREFIX):] for info in found.objects if not info.key.startswith(PREFIX + '.ctxfs/')]


@contextmanager
def virtual_time(monkeypatch: pytest.MonkeyPatch, *, threads: bool = False) -> Iterator[trio.testing.MockClock]:
    """trio's clock jumps whenever everybody waits, and the wall clock goes with it. Who waits for a thread waits, too: without `threads`
    their work is done at once instead."""
    began_ns = time.time_ns()

    def time_ns() -> int:
        try:
            return began_ns + int(trio.current_time() * 1e9)
        except RuntimeError:        # outside of trio: a thread, a log record
            return began_ns

    async def at_once(function: Callable[..., Any], *args: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    with monkeypatch.context() as patch:
        if not threads:
            patch.setattr(trio.to_thread, 'run_sync', at_once)
        patch.setattr(time, 'time_ns', time_ns)
        patch.setattr(time, 'time', lambda: time_ns() / 1e9)
        yield trio.testing.MockClock(autojump_threshold=0)
