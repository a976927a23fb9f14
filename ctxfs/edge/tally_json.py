"""Counts and conflicts of a tree database as JSON, of a running mount and of a state directory whose daemon is gone; and counts of requests.

Owns the names of these keys. It must not know who asks.
"""
from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctxfs.storage import tally, traffic
from ctxfs.storage.conflict_rows import Holds
from ctxfs.storage.tally import Copy, Tally, shown
from ctxfs.storage.traffic import Kind


def tally_to_dict(counts: Tally | Path) -> dict[str, Any]:
    """`counts`, or the path of a state directory: then raises NotFound, Corrupted."""
    if isinstance(counts, Path):
        counts = tally.count_at(counts)
    return {'pending': pending_of(counts), 'localOnly': {'files': counts.local_files, 'bytes': counts.local_bytes},
            'conflicts': counts.conflicts, 'failedFiles': counts.failed_files,
            'failed': [{'path': failure.path, 'error': failure.error, 'attempt': failure.attempt, 'nextRetry': failure.retry_ns / 1e9}
                       for failure in counts.failed],
            'unmountable': [{'key': key, 'reason': reason} for key, reason in counts.unmountable]}


def pending_of(counts: Tally) -> dict[str, float]:
    age = round(max(0.0, time.time() - counts.oldest_ns / 1e9), 3) if counts.oldest_ns else 0
    return {'files': counts.files, 'bytes': counts.bytes, 'oldestSeconds': age}


def requests_of(tallies: Mapping[Kind, traffic.Tally], *, with_times: bool = False) -> dict[str, dict[str, Any]]:
    """By kind. `times`: [seconds, requests that took no longer], the last for all."""
    found = {}
    for kind, counts in tallies.items():
        one: dict[str, Any] = {'count': counts.requests, 'errors': counts.errors, 'retries': counts.retries, 'bytesSent': counts.sent,
                               'bytesReceived': counts.received, 'seconds': round(counts.seconds, 3)}
        if with_times:
            one['times'] = list(zip([*traffic.BOUNDS, None], itertools.accumulate(counts.buckets), strict=True))
        found[kind.name.lower()] = one
    return found


def copy_to_dict(copy: Copy) -> dict[str, Any]:
    """As the control socket and `ctxfs conflicts --json` say it."""
    return {'path': shown(copy.names), 'original': shown(copy.original), 'since': copy.since_ns / 1e9,
            'holds': 'local' if copy.holds == Holds.OURS else 'remote', 'held': copy.is_held}
