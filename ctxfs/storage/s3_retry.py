"""When a request that failed is sent again, and when it is left to those who schedule.

Owns the arithmetic of the pauses and the reading of Retry-After. It must not know requests or sockets: numbers and headers in, seconds out.

Here only what passes by itself within seconds is tried again: a busy server, a connection that broke. What lasts longer goes up to the
schedule of uploads and to the bound of a reader's wait, with what the server said of when to come back.
"""
from __future__ import annotations

import random
import time
from email.utils import parsedate_to_datetime

#: tries of one request, the first included
ATTEMPTS = 4
#: the server did nothing and says so: any request may be sent again (429 Too Many Requests; 503 SlowDown, ServiceUnavailable)
BUSY = frozenset({429, 503})
_FIRST_SECONDS = 0.1
#: a longer pause is not waited for here
LONGEST_SECONDS = 3.0
#: a server that says to come back next week is asked before that
RETRY_AFTER_MAX = 300.0


def jittered(seconds: float) -> float:
    """Between half of it and all of it: clients that failed together do not come back together."""
    return seconds * random.uniform(0.5, 1.0)


def pause(attempt: int, retry_after: float) -> float:
    """Seconds before the next try, after `attempt` of them failed; never before the server wants."""
    return max(retry_after, jittered(min(LONGEST_SECONDS, _FIRST_SECONDS * 4.0 ** (attempt - 1))))


def retry_after_of(header: str) -> float:
    """Seconds that a Retry-After header asks for (a number or a date), RETRY_AFTER_MAX at most; 0 for anything else."""
    text = header.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return min(float(text), RETRY_AFTER_MAX)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), RETRY_AFTER_MAX)
