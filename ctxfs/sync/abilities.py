"""What the store can do, as one daemon knows it: remembered from an earlier day, or asked by one of its workers and told to all.

Owns when it is asked, and what becomes of an answer that the store contradicts. It must not know the questions (storage/s3_probe.py), where
answers are kept (storage/remembered.py), or what follows from them.

    remembered, or not yet known  ──first conditional write──▶  asked  ──▶  known, kept, told to all workers
                    known  ──the store refuses what it could──▶  forgotten, here and on disk  ──▶  asked …

Without the right to write nothing is learnt: that answer is not kept, and asked again after a while.
"""
from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
import trio

from ctxfs.storage.object_store import UNKNOWN, Capabilities, Memory
from ctxfs.sync.pool import Priority, TransferPool
from ctxfs.sync.protocol import Probe

log = logging.getLogger(__name__)

#: a store that goes on contradicting itself is asked no more often
AGAIN_SECONDS = 30.0


class Abilities:
    """See the module docstring. `known`: what the workers were started with."""

    def __init__(self, pool: TransferPool, *, memory: Memory | None = None, known: Capabilities | None = None,
                 clock: Callable[[], float] = trio.current_time) -> None:
        self._pool = pool
        self._memory = memory
        self._known = known
        self._clock = clock
        self._asking = trio.Lock()
        self._asked_at = float('-inf')

    @property
    def known(self) -> Capabilities | None:
        return self._known

    async def get(self) -> Capabilities:
        """Raises what the store raises when it has to be asked (RemoteUnavailable, NotFound)."""
        if self._known is not None and not self._is_stale():
            return self._known
        async with self._asking:
            if self._known is None or self._is_stale():
                await self._ask()
            assert self._known is not None
            return self._known

    async def contradicted(self, error: Exception, *, used: Capabilities) -> None:
        """The store refused what it could do by the answer `used`. Nothing was written; it is asked anew, unless there is a newer answer. Not all
        the time: raises `error` where that was done just now."""
        async with self._asking:
            if self._known is not used:
                return
            if self._clock() - self._asked_at < AGAIN_SECONDS:
                raise error
            log.warning('what the store can do is asked anew: %s', error)
            self._known = None
            if self._memory is not None:
                self._memory.forget()
            await self._ask()

    def _is_stale(self) -> bool:
        return self._known == UNKNOWN and self._clock() - self._asked_at >= AGAIN_SECONDS

    async def _ask(self) -> None:
        done = await self._pool.call(Probe(), priority=Priority.INTERACTIVE)
        self._asked_at = self._clock()
        self._known = msgspec.convert(done.capabilities, Capabilities)
        self._pool.learn(done.capabilities)
        if self._memory is not None:
            self._memory.keep(self._known)
