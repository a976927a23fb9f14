"""The alarm for changes that wait too long for their upload, because the store is away, refuses them, or is too slow.

Owns the limit, and that the log says when it is exceeded and when that is over, once each. It must not know why uploads fail: the journal does.
"""
from __future__ import annotations

import logging
from typing import Any, Protocol

import trio

from ctxfs.edge.human import human_files, human_seconds
from ctxfs.edge.live_tally import LiveTally
from ctxfs.edge.tally_json import pending_of
from ctxfs.errors import CtxfsError

log = logging.getLogger(__name__)

#: without --lag-alarm: so many periods of the policy, but at least so long. Files that are never quiet are uploaded after five periods.
PERIODS = 10
LEAST_SECONDS = 600.0
LOOK_SECONDS = 15.0


class Clock(Protocol):
    """What says how long a change waits if all is well."""

    @property
    def period(self) -> float | None: ...


class LagAlarm:
    """`given`: of --lag-alarm, in seconds, 0 for none. `run` as a background task."""

    def __init__(self, tally: LiveTally, schedule: Clock, given: float | None) -> None:
        self._tally = tally
        self._schedule = schedule
        self._given = given
        self._is_told = False

    @property
    def limit(self) -> float:
        """Seconds; 0: a change may wait for as long as it likes, as where somebody asks for uploads, or the unmount does."""
        if self._given is not None:
            return self._given
        period = self._schedule.period
        return 0.0 if period is None else max(LEAST_SECONDS, PERIODS * period)

    def state(self, oldest_seconds: float) -> dict[str, Any]:
        """As `status` has it."""
        limit = self.limit
        return {'limit': limit, 'alarm': 0 < limit < oldest_seconds}

    async def run(self) -> None:
        while True:
            try:
                await self._look()
            except CtxfsError as error:     # the status says so, too
                log.debug('lag: %s', error)
            await trio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        counts = await self._tally.read()
        oldest = pending_of(counts)['oldestSeconds']
        is_late = self.state(oldest)['alarm']
        if is_late and not self._is_told:
            cause = next((failure.error for failure in counts.failed), '')
            log.warning('the oldest change has waited %s for its upload (%s is the limit), %s %s%s', human_seconds(oldest),
                        human_seconds(self.limit), human_files(counts.files), 'waits' if counts.files == 1 else 'wait', f': {cause}' if cause else '')
        elif self._is_told and not is_late:
            log.info('no change waits too long for its upload any more')
        self._is_told = is_late
