"""Waiting for what a daemon does, by bounded polls: its death, its workers' death, objects that arrive in the bucket.

Owns the bounds. A poll and not an event, because the daemon is another program whose inside a test must not see.
"""
from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar('T')
#: the longest pause between two looks that nobody asked to be rarer
POLL_MOST = 0.25


def eventually(what: str, condition: Callable[[], T], *, seconds: float = 60, every: float = 0.005) -> T:
    """The condition's first true answer; AssertionError naming `what` when there is none in time."""
    end = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        answer = condition()
        if answer:
            return answer
        now = time.monotonic()
        assert now < end, f'not within {seconds} s: {what}'
        time.sleep(max(every, min(now - began, POLL_MOST)))     # a dear question leaves half of the time to who is waited for


def is_running(pid: int) -> bool:
    """False also for a zombie."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def children(pid: int) -> set[int]:
    """The daemon's transfer workers."""
    try:
        return {int(child) for task in os.listdir(f'/proc/{pid}/task') for child in Path(f'/proc/{pid}/task/{task}/children').read_text().split()}
    except OSError:
        return set()


def kill_children(pid: int) -> set[int]:
    """SIGKILL to each worker; those that were hit."""
    hit = set()
    for child in children(pid):
        try:
            os.kill(child, signal.SIGKILL)
            hit.add(child)
        except ProcessLookupError:
            continue
    return hit
