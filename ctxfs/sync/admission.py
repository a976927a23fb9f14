"""Admission to the transfer workers: who goes next when more is asked for than they should do at once.

Owns the kinds of requests, how many of each are under way, and who waits. It must not know what a request does or how it gets to a worker.

A program that waits goes first: a quarter of each worker's threads is kept for it. Uploads go before bulk downloads, and the warm-up takes
what is left: none of its requests begins while a program waits for an answer, and only one at a time beside uploads.
"""
from __future__ import annotations

import enum
from collections import deque

import trio

from ctxfs.sync.pacing import Pace
from ctxfs.sync.worker_process import WorkerProcess


class Priority(enum.Enum):
    """Who waits: a program on the mount (a read, a listing, a lookup); nobody in particular (uploads, read-ahead, the index); somebody who
    wants much content here (bulk); nobody at all (idle: the warm-up)."""
    INTERACTIVE = 0
    BACKGROUND = 1
    BULK = 2
    IDLE = 3


class _Waiter:
    __slots__ = ('error', 'event', 'weight', 'worker')

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.event = trio.Event()
        self.worker: WorkerProcess | None = None
        self.error: Exception | None = None


class Gate:
    """Hands a free place at a worker to the next request, by kind in the order of Priority, within a kind in order of arrival."""

    def __init__(self, threads: int, *, transfers: int = 0) -> None:
        """`transfers`: what no program waits for, of all workers together, by its weight; 0: no other bound than each worker's."""
        self._threads = threads
        self._transfers = transfers
        self._under_way = 0
        # A quarter stays free of background work. One thread alone cannot be shared out, so there a reader waits for one transfer.
        self._most = max(1, threads - max(1, threads // 4))
        self.pace = Pace(self._most)
        self.bulk_pace = Pace(threads // 2)
        self._queues: dict[Priority, deque[_Waiter]] = {priority: deque() for priority in Priority}
        self.workers: list[WorkerProcess] = []

    async def enter(self, priority: Priority, weight: int = 1) -> WorkerProcess:
        """A place at a live worker, for a request that transfers `weight` files at once. Raises what `fail_waiting` was given. Cancelled: nothing
        is held."""
        if not self._queues[priority] and not self._is_kept(priority):
            worker = self._take(priority, weight)
            if worker is not None:
                return worker
        waiter = _Waiter(weight)
        self._queues[priority].append(waiter)
        try:
            await waiter.event.wait()
        except trio.Cancelled:
            self._withdraw(waiter, priority)
            raise
        if waiter.error is not None:
            raise waiter.error
        assert waiter.worker is not None
        return waiter.worker

    def _withdraw(self, waiter: _Waiter, priority: Priority) -> None:
        if waiter.worker is not None:
            self.leave(waiter.worker, priority, waiter.weight)
        elif waiter.error is None:
            self._queues[priority].remove(waiter)

    def _take(self, priority: Priority, weight: int) -> WorkerProcess | None:
        """The least loaded worker that may take one more of this kind, with the place counted as taken."""
        if self._is_too_much(priority, weight):
            return None
        free = [worker for worker in self.workers if worker.load < self._threads and self._may_take(worker, priority)]
        if not free:
            return None
        worker = min(free, key=lambda candidate: candidate.load)
        self._count(worker, priority, 1)
        self._under_way += weight if priority is not Priority.INTERACTIVE else 0
        return worker

    def _is_too_much(self, priority: Priority, weight: int) -> bool:
        """One that is too heavy by itself goes alone."""
        return bool(self._transfers and priority is not Priority.INTERACTIVE and self._under_way and self._under_way + weight > self._transfers)

    def _is_kept(self, priority: Priority) -> bool:
        """Whether one of an earlier kind waits until there is room for all that it weighs: lighter ones would keep it waiting for ever."""
        return any(self._is_too_much(other, queue[0].weight) for other, queue in self._queues.items() if queue and other.value < priority.value)

    def _may_take(self, worker: WorkerProcess, priority: Priority) -> bool:
        if priority is Priority.INTERACTIVE:
            return True
        if worker.background + worker.bulk >= self._most:
            return False
        if priority is Priority.BACKGROUND:
            return worker.background < self.pace.limit
        if priority is Priority.IDLE and (self._has_interactive() or (worker.background and worker.bulk)):
            return False
        return worker.bulk < self.bulk_pace.limit

    def _has_interactive(self) -> bool:
        return any(worker.load > worker.background + worker.bulk for worker in self.workers)

    @staticmethod
    def _count(worker: WorkerProcess, priority: Priority, number: int) -> None:
        worker.load += number
        if priority is Priority.BACKGROUND:
            worker.background += number
        elif priority is not Priority.INTERACTIVE:
            worker.bulk += number

    def leave(self, worker: WorkerProcess, priority: Priority, weight: int = 1) -> None:
        self._count(worker, priority, -1)
        self._under_way -= weight if priority is not Priority.INTERACTIVE else 0
        self.dispatch()

    def dispatch(self) -> None:
        """Give what is free to those who wait. A place is handed over, not announced, so that nobody can slip in between."""
        for priority, queue in self._queues.items():
            if priority is not Priority.INTERACTIVE and self._is_kept(priority):
                break
            while queue and (worker := self._take(priority, queue[0].weight)) is not None:
                waiter = queue.popleft()
                waiter.worker = worker
                waiter.event.set()

    def fail_waiting(self, error: Exception) -> None:
        """No worker can be had: whoever waits gets `error` instead of waiting for ever."""
        for queue in self._queues.values():
            while queue:
                waiter = queue.popleft()
                waiter.error = type(error)(str(error))
                waiter.event.set()

    def waiting(self) -> int:
        return sum(map(len, self._queues.values()))
