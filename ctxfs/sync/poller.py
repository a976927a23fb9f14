"""When a mount looks for what others did to the bucket, and how it bears a store that does not answer.

Owns the clock of the polls, the outages, and the event that tells what came. It must not know what a look consists of (remote_changes.py).

Every `every` seconds one look, which is one request where nothing happened; never beside an upload, not while paused, and not under a
policy without automatic download. Besides, every LIST_SECONDS the whole context is listed if a look does not (that is, from 1,000 objects on):
index segments do not tell what other tools did. Such a listing may take minutes; it lets uploads that wait go first, between two pages.

A store that does not answer is asked less and less often (up to OUTAGE_SECONDS between looks); the log has one line when that began and one
when it is over.
"""
from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from ctxfs.errors import CtxfsError
from ctxfs.rules import Rules
from ctxfs.sync.events import Publish, unheard
from ctxfs.sync.growth import Growth
from ctxfs.sync.remote_changes import PAGE, RemoteChanges
from ctxfs.sync.remote_tree import LIST_SECONDS

log = logging.getLogger(__name__)

OUTAGE_SECONDS = 300.0


class Remote(Protocol):
    """The remote tree as far as polling needs it (remote_tree.RemoteTreeLoader)."""

    changes: RemoteChanges
    #: what `ctxfs status` tells: the last failure, how many looks, and when the last one came to its end (Unix seconds)
    error: CtxfsError | None
    polls: int
    last_poll: float

    async def wait_complete(self) -> None: ...


class Exclusive(Protocol):
    """Whoever may use the bucket alone (engine.UploadEngine)."""

    is_paused: bool

    async def alone(self, job: Callable[[], Awaitable[None]]) -> None: ...

    @property
    def is_awaited(self) -> bool:
        """Somebody waits for the present job to end."""


class Poller:
    """See the module docstring. `counts`: the names that remote changes created, changed and removed so far."""

    def __init__(self, remote: Remote, engine: Exclusive, rules: Rules, *, every: float, counts: Counter[str],
                 growth: Growth | None = None, publish: Publish = unheard) -> None:
        self._remote = remote
        self._engine = engine
        self._rules = rules
        self._every = every
        self._counts = counts
        self._growth = growth
        self._publish = publish
        self._failures = 0
        self._listed_at = 0.0
        #: where a listing goes on that made way for an upload; None: none is under way
        self._list_after: str | None = None
        self._woken = trio.Event()
        self._is_over = False

    @property
    def is_wanted(self) -> bool:
        """The policy in force lets remote changes come by themselves."""
        return self._rules.policy.download_policy.auto_download and not self._is_over

    @property
    def may_look(self) -> bool:
        return self.is_wanted and not self._engine.is_paused

    def end(self) -> None:
        """Nobody sees the tree any more: no further look begins."""
        self._is_over = True

    def look_soon(self) -> None:
        """Something happened that a look will show."""
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled."""
        await self._remote.wait_complete()
        self._listed_at = trio.current_time() - max(0.0, time.time() - self._remote.changes.listed_at())
        while True:
            with trio.move_on_after(self._delay()):
                await self._woken.wait()
            self._woken = trio.Event()
            if self.may_look:
                await self.attempt(self._look)
                self._remote.polls += 1

    def _delay(self) -> float:
        if self._list_after is not None and not self._failures:
            return 0.0
        return min(self._every * 2.0 ** min(self._failures, 16), max(self._every, OUTAGE_SECONDS))

    async def _look(self) -> None:
        if self._growth is not None:
            self._growth.settle()
        changes = self._remote.changes
        is_due = self._list_after is not None or changes.is_forgotten or trio.current_time() - self._listed_at >= LIST_SECONDS
        if changes.listed_objects <= PAGE or not is_due:
            await changes.look()
            return
        if self._list_after is None:
            await changes.read_index()
        self._list_after = await changes.list_all(self._list_after or '', lambda: not self._engine.is_awaited)
        if self._list_after is None:
            await changes.finish(listed='')
            self._listed_at = trio.current_time()

    async def attempt(self, job: Callable[[], Awaitable[None]]) -> bool:
        """Run a job that looks at the bucket while nothing is uploaded; whether it came to its end. Failures are kept for the status, and
        make the next look wait."""
        before = self._counts.copy()
        try:
            await self._engine.alone(job)
        except CtxfsError as error:
            self._failed(error)
            return False
        except Exception as error:
            log.exception('looking for remote changes failed unexpectedly')
            self._failed(CtxfsError(f'{type(error).__name__}: {error}'))
            return False
        finally:
            self._tell(self._counts - before)
        if self._failures:
            log.info('the store answers again; remote changes are followed')
        self._failures, self._remote.error, self._remote.last_poll = 0, None, time.time()
        return True

    def _failed(self, error: CtxfsError) -> None:
        if not self._failures:
            log.info('remote changes cannot be looked for; trying again, less and less often: %s', error)
        self._failures += 1
        self._remote.error = error

    def _tell(self, news: Counter[str]) -> None:
        if news:
            log.info('taken over from the bucket: %d created, %d changed, %d removed', news['created'], news['changed'], news['removed'])
            self._publish('remote-change', created=news['created'], changed=news['changed'], removed=news['removed'])
