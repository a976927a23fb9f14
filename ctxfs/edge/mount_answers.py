"""The control socket's side of a mount, put together: reports, events, orders.

Owns which part gets what, and the life of the background ones. It must not know the socket: the daemon serves `control`.
"""
from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from ctxfs.edge.control import Server
from ctxfs.edge.lag_alarm import LagAlarm
from ctxfs.edge.live_tally import LiveTally
from ctxfs.edge.mount_cache import CacheDesk
from ctxfs.edge.mount_conflicts import ConflictDesk
from ctxfs.edge.mount_control import DaemonControl
from ctxfs.edge.mount_events import Narrator, log_published
from ctxfs.edge.mount_explain import Explainer
from ctxfs.edge.mount_status import Parts, StatusReport
from ctxfs.edge.service_notify import Notifier
from ctxfs.edge.service_task import ServiceTask
from ctxfs.sync.events import EventHub

#: a client that does not take its last events keeps the daemon for so long
END_SECONDS = 1.0


class Answers:
    """`control` answers, `run` is a background task; `close` when no task runs any more, before the tree database is closed."""

    def __init__(self, parts: Parts, desk: ConflictDesk, *, events: EventHub, request_unmount: Callable[[], None],
                 collect_dirty_pages: Callable[[], Awaitable[None]]) -> None:
        self._events = events
        self._tally = LiveTally(parts.db, parts.journal, parts.tasks)
        self._narrator = Narrator(events, self._tally, parts.tasks)
        self._service = ServiceTask(self._tally, parts.options.mountpoint)
        self._lag = LagAlarm(self._tally, parts.schedule, parts.options.lag_alarm)
        report = StatusReport(parts, self._tally, self._lag)

        def note_dropped() -> None:
            parts.warmup.note_dropped()
            report.note_cache()
        self.control = DaemonControl(
            report, Explainer(parts), desk,
            engine=parts.engine, tasks=parts.tasks, events=events, switch=parts.schedule,
            request_unmount=request_unmount, collect_dirty_pages=collect_dirty_pages, download=parts.downloads.download,
            wait_download=parts.warmup.wait_idle, tell_workers=parts.pool.set_log_level,
            cache=CacheDesk(parts.downloads, note_dropped=note_dropped, spawn=parts.engine.spawn))

    async def run(self, notifier: Notifier | None = None) -> None:
        with log_published(self._events):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tally.run)
                nursery.start_soon(self._service.run, notifier)
                nursery.start_soon(self._lag.run)
                await self._narrator.run()

    async def measured(self) -> dict[str, Any]:
        """What metrics are made from."""
        return {'status': await self.control.status(), 'statistics': await self.control.statistics()}

    def unmounting(self) -> None:
        """Somebody asked for the end of the mount."""
        self._service.stop()

    def unmounted(self) -> None:
        """The mount point is gone; the final write-back begins."""
        self.control.unmounted()
        self._service.stop()

    async def end(self, server: Server) -> None:
        """The mount is over and its result written: whoever watches gets the last events, whoever asked his answer."""
        if self.control.final is not None:
            self._service.end('' if self.control.final.ok else self.control.final.message)
        await self._events.end(END_SECONDS)
        await server.drain(END_SECONDS)

    def close(self) -> None:
        self._tally.close()
