"""How many background transfers run at once in a worker: enough to hide the store's latency, not so many that they fight for the CPU.

Owns the limit and how it follows from what transfers take. It must not know processes or requests: it is told durations.

A worker's threads share one interpreter lock. Against a near store, where a small upload is nearly all CPU, 12 at once finished 170 to 260
files/s here and 3 at once 990; against a store 20 ms away 3 at once can not do more than 150. So the limit is found while working, as TCP
Vegas does: what a transfer takes is compared with the least that one of its size took lately. As long as it takes no more than twice that,
waiting is for the store, and one more may run; when it takes longer, transfers wait for each other, and fewer run.
"""
from __future__ import annotations

import math

#: a transfer may take that many times the least that was seen before the limit shrinks
_TOLERANCE = 2.0
_START = 4.0
_LEAST = 2.0
#: how much of the way to the limit that one duration suggests is gone at once
_WEIGHT = 0.1
#: after so many durations the minima are measured anew (a crowd that lasts would become its own measure, and the store may have moved):
#: the limit drops to the least until those under way and _PROBES more have ended
_MEMORY = 2000
_PROBES = 6
#: larger transfers tell about bandwidth, not about latency
MAX_SIZE = 1 << 20


class Pace:
    """The limit for each worker, between 2 and `most`."""

    def __init__(self, most: int) -> None:
        self._most = max(1, most)
        self._limit = min(_START, float(self._most))
        self._least: dict[int, float] = {}
        self._until_probe = _MEMORY
        self._draining = 0
        self._probing = 0

    @property
    def limit(self) -> int:
        return min(self._most, int(_LEAST)) if self._draining or self._probing else int(self._limit)

    def took(self, seconds: float, size: int) -> None:
        """A transfer of `size` bytes took so long, while others ran. Those of similar size are compared with each other."""
        if size > MAX_SIZE:
            return
        if self._draining:  # it ran in the crowd that is to be forgotten
            self._draining -= 1
            return
        kind = max(size, 1).bit_length() // 2
        least = self._least[kind] = min(self._least.get(kind, math.inf), seconds)
        if self._probing:
            self._probing -= 1
        else:
            self._adjust(least, seconds)

    def _adjust(self, least: float, seconds: float) -> None:
        suggested = self._limit * min(1.0, _TOLERANCE * least / max(seconds, 1e-9)) + math.sqrt(self._limit)
        limit = self._limit + _WEIGHT * (suggested - self._limit)
        self._limit = min(float(self._most), max(_LEAST, limit))
        self._until_probe -= 1
        if self._until_probe == 0:
            self._until_probe, self._draining, self._probing = _MEMORY, int(self._limit), _PROBES
            self._least.clear()
