"""Events that nobody else publishes: progress once a second, what is pending, and what the log warns of.

Owns the pace of these and the bridge from the log, whose records may come from any thread. It must not know clients. Nothing of it runs
while nobody listens.
"""
from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from ctxfs.edge.live_tally import LiveTally
from ctxfs.errors import CtxfsError
from ctxfs.sync.events import EventHub
from ctxfs.sync.tasks import TaskLog

PACE_SECONDS = 1.0
log = logging.getLogger(__name__)


class Narrator:
    """`run` as a background task of the daemon."""

    def __init__(self, events: EventHub, tally: LiveTally, tasks: TaskLog) -> None:
        self._events = events
        self._tally = tally
        self._tasks = tasks
        self._told: tuple[int, int] | None = None
        self._progress: dict[int, tuple[int, int, int]] = {}

    async def run(self) -> None:
        while True:
            await self._events.wanted()
            self._tell_progress()
            try:
                await self._tell_pending()
            except CtxfsError as error:     # the status says so, too; the next change tries again
                log.debug('events: %s', error)
            await trio.sleep(PACE_SECONDS)

    def _tell_progress(self) -> None:
        running = {id(task): task for task in self._tasks.running}
        for number, task in running.items():
            now = (task.files_done, task.bytes_done, task.attempt)
            if self._progress.get(number) != now:
                self._progress[number] = now
                self._events.publish('task-progress', **task.to_dict())
        self._progress = {number: seen for number, seen in self._progress.items() if number in running}

    async def _tell_pending(self) -> None:
        counts = await self._tally.read()
        if (counts.files, counts.bytes) != self._told:
            self._told = (counts.files, counts.bytes)
            self._events.publish('pending', files=counts.files, bytes=counts.bytes)


class _Bridge(logging.Handler):
    """Publishes warnings and worse. A record may come from a thread of the daemon, or after its loop has ended."""

    def __init__(self, events: EventHub) -> None:
        super().__init__(logging.WARNING)
        self._events = events
        self._token = trio.lowlevel.current_trio_token()

    def emit(self, record: logging.LogRecord) -> None:
        data = {'message': record.getMessage(), 'logger': record.name}
        try:
            self._token.run_sync_soon(lambda: self._events.publish('error', **data))
        except trio.RunFinishedError:
            return      # nobody is left to hear it


@contextmanager
def log_published(events: EventHub) -> Iterator[None]:
    """While this lasts, what ctxfs logs as a warning or worse is an `error` event, too."""
    bridge = _Bridge(events)
    logger = logging.getLogger('ctxfs')
    logger.addHandler(bridge)
    try:
        yield
    finally:
        logger.removeHandler(bridge)
