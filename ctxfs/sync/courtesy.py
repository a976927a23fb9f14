"""Courtesy: how much of the CPU background transfers may take while programs use the mount.

Owns that budget and its measure of use. It must not know what is transferred: the pool asks before it begins a background operation, and
tells what one took.

The kernel shares the cores fairly between processes, but a program on a mount needs its own turn and the daemon's, one after the other, for
every request, and an upload of small files has a server, workers and the daemon run at once. On 2 cores (the S3 server one of those who
share them) `find` kept 44 % of its idle speed beside an upload that nothing held back (400 files/s), 40 % with a share of 0.2, 66 to 74 %
with 0.06 (85 to 123 files/s), and with 0.04 (50 files/s) all of it in the one run that was made.
So while requests come in at more than BUSY_RATE a second, background operations get SHARE of one core, by the CPU time that workers say they
took; nothing is held back on a mount that nobody uses. A store that is far away costs time but not CPU, so uploads to it are hardly slowed.
"""
from __future__ import annotations

from collections.abc import Callable

import trio

#: seconds of the workers' CPU time for a second of the clock
SHARE = 0.04
#: requests a second at which the mount counts as in use
BUSY_RATE = 300.0
#: how often use is looked at, and the longest wait before it is looked at again
SAMPLE_SECONDS = 0.02
_MOST_SAVED = 0.01
_FIRST_GUESS = 0.001


class Courtesy:
    """`served()`: how many requests of programs were answered so far."""

    def __init__(self, served: Callable[[], int] = lambda: 0) -> None:
        self.served = served
        self._turn = trio.Lock()
        self._sampled_at = trio.current_time()
        self._sampled = 0
        self._rate = 0.0
        self._saved = _MOST_SAVED
        self._saved_at = self._sampled_at
        #: what one operation took lately: charged when it begins, corrected when it ended
        self._usual = _FIRST_GUESS

    def is_busy(self) -> bool:
        """Whether programs use the mount now."""
        now = trio.current_time()
        elapsed = now - self._sampled_at
        if elapsed >= SAMPLE_SECONDS:
            served = self.served()
            self._rate = (served - self._sampled) / elapsed
            self._sampled, self._sampled_at = served, now
        return self._rate > BUSY_RATE

    async def turn(self) -> float:
        """Wait until one more background operation may begin; in the order of arrival. Returns what it was charged: give it to `took`."""
        if not self.is_busy() and not self._turn.locked():
            return 0.0
        async with self._turn:
            while self.is_busy():
                now = trio.current_time()
                self._saved = min(_MOST_SAVED, self._saved + (now - self._saved_at) * SHARE)
                self._saved_at = now
                if self._saved > 0:
                    break
                await trio.sleep(min(SAMPLE_SECONDS, -self._saved / SHARE + 0.001))
            self._saved -= self._usual
            return self._usual

    def took(self, seconds: float, charged: float) -> None:
        """An operation took so many seconds of a worker's CPU."""
        self._usual += 0.05 * (seconds - self._usual)
        if charged:
            self._saved -= seconds - charged
