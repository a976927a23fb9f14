"""Python's search for cyclic garbage, while nobody waits.

Owns when all objects of the daemon are looked at. It must not know what they are.

That search stops the loop, and with it every program on the mount: 20 to 50 ms with the inodes of 10,000 files in memory, and Python begins it
whenever many objects were made, so in the middle of an upload. Young objects are looked at as ever (a millisecond). What cycles leave behind
until nobody waits is little: nearly everything goes when its last reference does.
"""
from __future__ import annotations

import gc
from collections.abc import Callable

#: no search of all objects by itself
_NEVER = 1_000_000_000
#: seconds between two of them on a mount that rests; and on one that is never seen to
REST_SECONDS = 60.0
MOST_SECONDS = 1800.0


class Garbage:
    """`activity()` grows with whatever the daemon does. Times in seconds of any clock."""

    def __init__(self, activity: Callable[[], int]) -> None:
        self._activity = activity
        self._seen = -1
        self._searched_at: float | None = None

    @staticmethod
    def begin() -> None:
        """What is there now stays, and is never looked at."""
        young, middle, _ = gc.get_threshold()
        gc.set_threshold(young, middle, _NEVER)
        gc.freeze()
        gc.enable()

    def look(self, now: float) -> bool:
        """Called now and then; whether all objects were looked at."""
        if self._searched_at is None:
            self._searched_at = now
        activity, before = self._activity(), self._seen
        self._seen = activity
        waited = now - self._searched_at
        if waited < REST_SECONDS or (activity != before and waited < MOST_SECONDS):
            return False
        gc.collect()
        self._searched_at = now
        return True
