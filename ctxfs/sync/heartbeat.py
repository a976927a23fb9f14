"""The heartbeat of this mount: says in the bucket that the context is in use, as long as the mount may write to it.

Owns when it is written and renewed and that it goes with the mount. It must not know its form (storage/heartbeats.py). Nothing fails with it:
without the right to write it, or without a store that answers, the context only looks unused. The mount appears after the first one, because
a clearing that does not see it may begin (clearing.py).
"""
from __future__ import annotations

import logging

import trio

from ctxfs.errors import CtxfsError, InUse
from ctxfs.storage.heartbeats import RENEW_SECONDS
from ctxfs.sync import protocol
from ctxfs.sync.pool import Priority, TransferPool

log = logging.getLogger(__name__)

#: how long a mount waits for its first heartbeat
BEGIN_SECONDS = 3.0
#: how long the end of a mount waits for its heartbeat to go; what stays expires
END_SECONDS = 3.0


class Heartbeat:
    """`key`: the full one; `body`: always the same."""

    def __init__(self, pool: TransferPool, *, key: str, body: bytes, every: float = RENEW_SECONDS) -> None:
        self._pool = pool
        self._key = key
        self._body = body
        self._every = every
        self._is_begun = False
        self._scope = trio.CancelScope()

    async def begin(self, context_id: str) -> None:
        """The first one, before anything is mounted. Raises InUse for a context that is being cleared."""
        with trio.move_on_after(BEGIN_SECONDS):
            try:
                await self._write(context_id)
                self._is_begun = True
            except InUse:
                await self.end()
                raise

    async def run(self) -> None:
        """Until `end`, or cancelled."""
        with self._scope:
            if self._is_begun:
                await trio.sleep(self._every)
            while True:
                await self._write()
                await trio.sleep(self._every)

    async def _write(self, context_id: str = '') -> None:
        try:
            await self._pool.call(protocol.Heartbeat(key=self._key, body=self._body, context_id=context_id), priority=Priority.INTERACTIVE)
        except InUse:
            raise
        except CtxfsError as error:
            log.debug('the heartbeat was not renewed: %s', error)

    async def end(self) -> None:
        """Everything is in the bucket, or stays journaled: others may do with the context what they like."""
        self._scope.cancel()
        with trio.move_on_after(END_SECONDS):
            try:
                await self._pool.call(protocol.Heartbeat(key=self._key, body=None), priority=Priority.INTERACTIVE)
            except CtxfsError as error:
                log.debug('the heartbeat stays until it expires: %s', error)
