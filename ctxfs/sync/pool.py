"""The pool of transfer workers: the daemon's way to have bytes moved without its interpreter touching them.

Owns the worker processes (started, watched, started again with backoff) and which request is with which worker (who goes next when all are
busy is admission.py's). It must not know what an upload means, what to retry, or any store: it passes typed operations and gives back typed results.

Usage, from a task of the main thread (see WorkerProcess for why)::

    async with open_pool(options) as pool:
        done = await pool.call(PutFile(…), priority=Priority.BACKGROUND)
        async with pool.stream(ListPages(prefix=…)) as pages:
            async for page in pages: …
        pages.result                                    # ListDone

A worker that dies fails its requests with Unanswered (their outcome is unknown) and is replaced. Each worker takes at most
`options.threads` requests; some of these are kept for interactive ones, so uploads never keep a reader waiting for a free thread. How
many uploads run at once follows from what they take (pacing.py).
"""
from __future__ import annotations

import itertools
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import trio

from ctxfs import crash_points, errors
from ctxfs.records import UNREADABLE
from ctxfs.sync import protocol
from ctxfs.sync.abort_slots import AbortSlots
from ctxfs.sync.admission import Gate
from ctxfs.sync.admission import Priority as Priority
from ctxfs.sync.courtesy import Courtesy
from ctxfs.sync.meters import TransferMeter
from ctxfs.sync.protocol import Failed, Operation, Part, Progress, PutDone, PutFile, PutMany, Ready, Reply, WarmDone, WorkerOptions
from ctxfs.sync.traffic_board import TrafficBoard
from ctxfs.sync.worker_process import WorkerProcess

log = logging.getLogger(__name__)

R = TypeVar('R')

#: parts of a stream that may be under way before the reader has consumed one
STREAM_WINDOW = 4
_START_SECONDS = 30.0
_END_SECONDS = 5.0
_BACKOFF_SECONDS = (0.05, 10.0)
#: seconds of CPU that one operation can have taken
_MOST_CPU = 1e6
#: a worker that lived this long was healthy: its end is not counted against the next one
_HEALTHY_SECONDS = 30.0


class PoolStatistics(msgspec.Struct, frozen=True, kw_only=True, rename='camel'):
    workers: int
    ready: int
    in_flight: int
    waiting: int
    calls: int
    restarts: int
    background_limit: int
    pids: list[int]


class Listener(Protocol):
    """Is told of operations when they have ended, also of those that nobody waits for any more."""

    def wants(self, operation: Operation[Any]) -> bool: ...

    def ended(self, operation: Operation[Any], outcome: Any) -> None:
        """`outcome`: the result, or the exception."""


def weight_of(operation: Operation[Any]) -> int:
    """How many files it transfers at once."""
    return operation.parallel if isinstance(operation, PutMany) else 1


class _Pending:
    """One request from admission to its answer. It outlives a caller that was cancelled, because the worker still works on it."""
    __slots__ = ('began_at', 'changed', 'charged', 'error', 'is_done', 'moved', 'operation', 'parts', 'priority', 'progress', 'reply', 'worker')

    def __init__(self, operation: Operation[Any], priority: Priority, worker: WorkerProcess,
                 progress: Callable[[int], None] | None) -> None:
        self.operation = operation
        self.priority = priority
        self.worker = worker
        self.progress = progress
        self.changed = trio.Event()
        self.parts: deque[msgspec.Raw] = deque()
        self.reply: msgspec.Raw | None = None
        self.error: Exception | None = None
        self.is_done = False
        self.charged = 0.0
        self.moved = 0
        self.began_at = trio.current_time()

    def unwrap(self) -> Any:
        if self.error is not None:
            raise self.error
        assert self.reply is not None
        return protocol.decode_result(self.operation, self.reply)

    def outcome(self) -> Any:
        """The result or the error, also of a reply that is no result."""
        try:
            return self.unwrap()
        except errors.CtxfsError as error:
            return error


class Stream(Generic[R]):
    """The parts of a streaming operation, in order; the worker never runs more than STREAM_WINDOW parts ahead."""

    def __init__(self, pending: _Pending, request_id: int) -> None:
        self._pending = pending
        self._id = request_id

    @property
    def result(self) -> R:
        """What the operation returned. Raises its error; to be asked when the parts are exhausted."""
        result: R = self._pending.unwrap()
        return result

    def __aiter__(self) -> Stream[R]:
        return self

    async def __anext__(self) -> Any:
        pending = self._pending
        while not pending.parts:
            if pending.is_done:
                if pending.error is not None:
                    raise pending.error
                raise StopAsyncIteration
            pending.changed = trio.Event()
            await pending.changed.wait()
        value = pending.parts.popleft()
        pending.worker.send(protocol.frame(protocol.Credit(id=self._id)))
        return protocol.decode_part(pending.operation, value)


class TransferPool:
    """See the module docstring. Made by `open_pool`; all methods belong to the trio thread."""

    def __init__(self, options: WorkerOptions, *, workers: int, keep_fds: Sequence[int]) -> None:
        self.slots = AbortSlots()
        self.board = TrafficBoard(workers)
        self.meter = TransferMeter()
        self._options = options
        self._count = workers
        self._keep_fds = tuple(keep_fds)
        self._gate = Gate(options.threads, transfers=options.transfers)
        self.courtesy = Courtesy()
        self.listener: Listener | None = None
        self._pending: dict[int, _Pending] = {}
        self._ids = itertools.count(1)
        self._calls = 0
        self._restarts = 0
        self._is_closing = False
        self._all: set[WorkerProcess] = set()
        self._start_error: Exception | None = None

    async def call(self, operation: Operation[R], *, priority: Priority = Priority.BACKGROUND,
                   progress: Callable[[int], None] | None = None) -> R:
        """Run one operation in a worker and return its result; waits while all are busy.

        Raises the worker's error as the same class of ctxfs.errors; Unanswered when the worker died, which leaves the outcome
        unknown. Cancelled: the operation may or may not happen (an upload's abort slot is set); its slot stays taken until it ended.
        `progress(bytes)`: called on the trio thread with the bytes moved so far, for transfers that take long."""
        if type(operation) in protocol.STREAMED:
            raise TypeError(f'{type(operation).__name__} streams: use pool.stream')
        charged = await self.courtesy.turn() if priority is Priority.BACKGROUND else 0.0
        request_id = await self._submit(operation, priority, progress=progress)
        pending = self._pending[request_id]
        pending.charged = charged
        try:
            await pending.changed.wait()
        except trio.Cancelled:
            self._abandon(request_id)
            raise
        result: R = pending.unwrap()
        self.meter.ended(operation, result, noted=pending.moved)
        if isinstance(operation, PutFile) and isinstance(result, PutDone) and result.is_sent:
            self._gate.pace.took(trio.current_time() - pending.began_at, result.size)
        elif isinstance(result, WarmDone) and result.requests:
            self._gate.bulk_pace.took(result.seconds / result.requests, result.fetched // result.requests)
        return result

    @asynccontextmanager
    async def stream(self, operation: Operation[R], *, priority: Priority = Priority.BACKGROUND) -> AsyncIterator[Stream[R]]:
        """Run a streaming operation (ListPages, ReadIndex). Leaving the block early stops it in the worker."""
        request_id = await self._submit(operation, priority, credit=STREAM_WINDOW)
        try:
            yield Stream(self._pending[request_id], request_id)
        finally:
            self._abandon(request_id)

    @property
    def cache_limit(self) -> int:
        """Bytes that the block cache may have now."""
        return self._options.cache_limit

    def set_cache_limit(self, cache_bytes: int) -> None:
        """Bound the block cache in bytes, in all workers, from now on."""
        self._options = msgspec.structs.replace(self._options, cache_limit=cache_bytes)
        for worker in self._all:
            worker.send(protocol.frame(protocol.Limit(cache_bytes=cache_bytes)))

    def learn(self, capabilities: dict[str, Any]) -> None:
        """Tell all workers, and those to come, what the store can do."""
        self._options = msgspec.structs.replace(self._options, capabilities=capabilities)
        for worker in self._all:
            worker.send(protocol.frame(protocol.Learn(capabilities=capabilities)))

    def set_log_level(self, level: int) -> None:
        """How much all workers log, and those to come."""
        self._options = msgspec.structs.replace(self._options, log_level=level)
        for worker in self._all:
            worker.send(protocol.frame(protocol.LogLevel(level=level)))

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(workers=self._count, ready=len(self._gate.workers), in_flight=len(self._pending), restarts=self._restarts,
                              background_limit=self._gate.pace.limit,
                              waiting=self._gate.waiting(), calls=self._calls, pids=[worker.pid for worker in self._all])

    # --- one request -------------------------------------------------------------------------------------------------------------

    async def _submit(self, operation: Operation[Any], priority: Priority, *, credit: int = 0,
                      progress: Callable[[int], None] | None = None) -> int:
        if not self._gate.workers and self._start_error is not None:
            await trio.lowlevel.checkpoint()
            raise type(self._start_error)(str(self._start_error))
        worker = await self._gate.enter(priority, weight_of(operation))
        request_id = next(self._ids)
        self._calls += 1
        self.meter.began(operation)
        self._pending[request_id] = _Pending(operation, priority, worker, progress)
        for slot in protocol.slots_of(operation):
            self.slots.hold(slot)
        worker.send(protocol.frame(protocol.Request(id=request_id, operation=operation, credit=credit,  # type: ignore[arg-type]
                                                    wants_progress=progress is not None)))
        return request_id

    def _abandon(self, request_id: int) -> None:
        """Nobody waits any more. The place and the slot stay taken until the worker answered: it may still be at it."""
        pending = self._pending.get(request_id)
        if pending is None:
            return
        for slot in protocol.slots_of(pending.operation):
            self.slots.set(slot)
        pending.parts.clear()
        pending.progress = None
        pending.worker.send(protocol.frame(protocol.Cancel(id=request_id)))

    def _finish(self, request_id: int, *, reply: msgspec.Raw | None = None, error: Exception | None = None) -> None:
        pending = self._pending.pop(request_id)
        pending.reply, pending.error, pending.is_done = reply, error, True
        if error is not None:
            self.meter.failed(pending.operation)
        if self.listener is not None and self.listener.wants(pending.operation):
            self.listener.ended(pending.operation, pending.outcome())
        for slot in protocol.slots_of(pending.operation):
            self.slots.drop(slot)
        pending.changed.set()
        self._gate.leave(pending.worker, pending.priority, weight_of(pending.operation))

    # --- one worker --------------------------------------------------------------------------------------------------------------

    async def _keep_one_running(self, number: int) -> None:
        """Start worker `number`, serve it until it is gone, and start the next, later each time when they do not last."""
        delay, longest = _BACKOFF_SECONDS
        while True:
            began = trio.current_time()
            await self._run_one(number)
            if self._is_closing:
                return
            self._restarts += 1
            if trio.current_time() - began > _HEALTHY_SECONDS:
                delay = _BACKOFF_SECONDS[0]
            await trio.sleep(delay)
            delay = min(longest, delay * 2)

    async def _run_one(self, number: int) -> None:
        # A crash point kills one worker of a run: its replacements show that the work gets done all the same.
        try:
            worker = WorkerProcess(number, slots_fd=self.slots.fd, board_fd=self.board.fd, keep_fds=self._keep_fds,
                                   without=crash_points.without_after_a_kill() if self._restarts else ())
        except OSError as error:  # no process or memory to be had just now
            log.warning('cannot start a transfer worker: %s', error)
            if not self._gate.workers:
                self._gate.fail_waiting(errors.RemoteUnavailable(f'cannot start a transfer worker: {error}'))
            return
        self._all.add(worker)
        try:
            worker.send(protocol.frame(protocol.Start(options=self._options)))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.flush_forever)
                await self._serve(worker)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                status = await worker.reap()
            self._forget(worker, status)

    async def _serve(self, worker: WorkerProcess) -> None:
        """Handle what the worker says until it is gone, or not to be believed."""
        try:
            with trio.move_on_after(_START_SECONDS) as start:
                while not worker.is_ready:
                    if not self._handle_all(worker, await worker.receive()):
                        return
            if start.cancelled_caught:
                log.warning('transfer worker %d did not become ready within %d s', worker.pid, _START_SECONDS)
                return
            while self._handle_all(worker, await worker.receive()):
                continue
        except (errors.Corrupted, *UNREADABLE) as error:
            log.error('transfer worker %d is out of step and is replaced: %s', worker.pid, error)

    def _handle_all(self, worker: WorkerProcess, bodies: list[bytes] | None) -> bool:
        for body in bodies or ():
            message = protocol.decode_from_worker(body)
            if isinstance(message, Ready):
                self._became_ready(worker)
            elif message.id == 0 and isinstance(message, Failed):
                self._start_error = protocol.revive(message.name, message.message)
            else:
                self._handle(message, self._pending_of(worker, message.id))
        return bodies is not None

    def _pending_of(self, worker: WorkerProcess, request_id: int) -> _Pending:
        """The request, which must be with that worker. Raises Corrupted."""
        pending = self._pending.get(request_id)
        if pending is None or pending.worker is not worker:
            raise errors.Corrupted(f'it speaks of request {request_id}, which it does not have')
        return pending

    def _handle(self, message: Part | Progress | Reply | Failed, pending: _Pending) -> None:
        if isinstance(message, Reply):
            if pending.priority is Priority.BACKGROUND and 0 <= message.cpu < _MOST_CPU:
                self.courtesy.took(message.cpu, pending.charged)
            self._finish(message.id, reply=message.value)
        elif isinstance(message, Failed):
            self._finish(message.id, error=protocol.revive(message.name, message.message, message.retry_after))
        elif isinstance(message, Part):
            if type(pending.operation) not in protocol.STREAMED or len(pending.parts) >= STREAM_WINDOW:
                raise errors.Corrupted(f'it sends more of request {message.id} than was asked for')
            pending.parts.append(message.value)
            pending.changed.set()
        else:
            self._note_progress(pending, message.done)

    def _note_progress(self, pending: _Pending, done: int) -> None:
        if done > pending.moved:
            self.meter.moved(pending.operation, done - pending.moved)
            pending.moved = done
        if pending.progress is not None:
            pending.progress(done)

    def _became_ready(self, worker: WorkerProcess) -> None:
        if worker.is_ready:
            raise errors.Corrupted('it became ready twice')
        worker.is_ready = True
        self._start_error = None
        self._gate.workers.append(worker)
        self._gate.dispatch()

    def _forget(self, worker: WorkerProcess, status: int | None) -> None:
        """The worker is dead, so nothing of it can still read a slot or commit an upload: only now its requests fail."""
        self._all.discard(worker)
        if worker.is_ready:
            self._gate.workers.remove(worker)
        if not self._is_closing:
            log.info('transfer worker %d ended (status %s)', worker.pid, status)
        gone = errors.Unanswered(f'transfer worker {worker.pid} ended')
        for request_id in [number for number, pending in self._pending.items() if pending.worker is worker]:
            self._finish(request_id, error=errors.Unanswered(str(gone)))
        if not self._gate.workers and not worker.is_ready:
            self._gate.fail_waiting(self._start_error or gone)

    async def _run_until_closed(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(self._count):
                nursery.start_soon(self._keep_one_running, number)
            task_status.started()

    def _ask_all_to_end(self) -> None:
        self._is_closing = True
        for worker in self._all:
            worker.ask_to_end()


@asynccontextmanager
async def open_pool(options: WorkerOptions, *, workers: int | None = None,
                    keep_fds: Sequence[int] = ()) -> AsyncIterator[TransferPool]:
    """Run a pool around the block; returns at once, the first call waits for the first worker to be ready.

    `workers`: 1 on up to 2 cores, else 2. `keep_fds` are inherited by the workers and kept open while they live: give the fd that holds
    the state directory's flock, and the lock outlives a killed daemon until its last worker is dead too. On leaving, the workers finish
    what they have (bounded), then are gone; on leaving by an exception they are killed at once (every transfer is all-or-nothing)."""
    count = workers or (1 if (os.cpu_count() or 1) <= 2 else 2)
    pool = TransferPool(options, workers=count, keep_fds=keep_fds)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(pool._run_until_closed)
            yield pool
            pool._ask_all_to_end()
            nursery.cancel_scope.deadline = trio.current_time() + _END_SECONDS
    finally:
        pool._is_closing = True
        pool.slots.close()
        pool.board.close()
