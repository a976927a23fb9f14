"""How long to wait before something that failed is tried again.

Owns the delays: they double, a part of each is left to chance so that hosts that failed together do not come back together, and no try comes
before the store wants one. It must not know what is tried.
"""
from __future__ import annotations

import random

_BACKOFF_SECONDS = (0.5, 20.0)
#: what is left to chance
_JITTER = 0.3


def backoff(attempt: int) -> float:
    """The shortest delay before the next try; `attempt` failed before the last one."""
    first, longest = _BACKOFF_SECONDS
    return min(longest, first * 2.0 ** min(attempt, 16))


def delay(attempt: int, retry_after: float = 0.0) -> float:
    """Seconds before the next try, where the store asked for `retry_after` (which the store's client bounds)."""
    return max(retry_after, backoff(attempt) * random.uniform(1.0, 1.0 + _JITTER))


def retry_after_of(error: Exception) -> float:
    """What the store asked for, else 0."""
    return float(getattr(error, 'retry_after', 0.0))
