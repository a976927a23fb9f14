"""Times as people write them: `30s`, `5m`, `1h`.

Owns their spelling, both ways, and what --sync-every, --poll-every, --store-timeout, --lag-alarm and --expires may say. It must not know what happens
at those times.
"""
from __future__ import annotations

import re

from ctxfs.config import DEFAULT_POLL, STORE_TIMEOUT
from ctxfs.errors import UsageError
from ctxfs.policy import ONLY_ON_UNMOUNT

#: the longest time that an option or a policy may name; whoever wants longer wants none
MAX_DURATION = 366 * 86400.0
MIN_POLL = 1.0
MIN_STORE_TIMEOUT = 3.0
_SECONDS = {'h': 3600.0, 'm': 60.0, 's': 1.0}


def parse_duration(text: str | float, *, unit: str = '') -> float:
    """Seconds (to the microsecond) of `30s`, `5m`, `1.5h`; of a bare number in the given unit, or refused without one.
    Raises UsageError without naming the text: the caller says where it stands."""
    match = re.fullmatch(r'\s*([0-9]+(?:\.[0-9]+)?)\s*([smh]?)\s*', str(text), re.ASCII)
    kind = match and (match[2] or unit)
    if not match or not kind:
        raise UsageError('not a time; write it like 30s, 5m or 1h')
    seconds = round(float(match[1]) * _SECONDS[kind], 6)
    if seconds > MAX_DURATION:
        raise UsageError('longer than a year')
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest text that parse_duration reads as exactly these seconds: `90s`, `5m`, `0s`."""
    for unit, size in _SECONDS.items():
        if seconds >= size and seconds % size == 0:
            return f'{seconds / size:.0f}{unit}'
    return f'{seconds:.6f}'.rstrip('0').rstrip('.') + 's'


def spell_duration(seconds: float) -> str:
    """For people: `60 s`, `5 minutes`, `1 hour`."""
    for size, name in ((3600, 'hour'), (60, 'minute')):
        count = seconds / size
        if count >= (1 if size == 3600 else 2) and count == int(count):
            return f'{count:.0f} {name}{"" if count == 1 else "s"}'
    return f'{seconds:g} s'


def sync_every_of(text: str | float | None) -> float | None:
    """Seconds of --sync-every: a time, 0 (as soon as a file is closed) or `unmount`; None: not said. Raises UsageError."""
    if text is None:
        return None
    if text == 'unmount':
        return ONLY_ON_UNMOUNT
    try:
        return parse_duration(text, unit='s')
    except UsageError as e:
        raise UsageError(f'--sync-every {text}: {e}; 0 uploads when a file is closed, unmount only then') from e


def poll_every_of(text: str | float | None) -> float:
    """Seconds of --poll-every. Raises UsageError for less than one: each look is a request."""
    if text is None:
        return DEFAULT_POLL
    try:
        seconds = parse_duration(text, unit='s')
    except UsageError as e:
        raise UsageError(f'--poll-every {text}: {e}') from e
    if seconds < MIN_POLL:
        raise UsageError(f'--poll-every {text}: the least is {MIN_POLL:g}s, for each look is a request')
    return seconds


def store_timeout_of(text: str | float | None) -> float:
    """Seconds of --store-timeout. Raises UsageError for one that a store that works would exceed."""
    if text is None:
        return STORE_TIMEOUT
    try:
        seconds = parse_duration(text, unit='s')
    except UsageError as e:
        raise UsageError(f'--store-timeout {text}: {e}') from e
    if seconds < MIN_STORE_TIMEOUT:
        raise UsageError(f'--store-timeout {text}: the least is {MIN_STORE_TIMEOUT:g}s, for a store that works may take as long')
    return seconds


def expires_of(text: str, *, longest: int) -> int:
    """Seconds of --expires. Raises UsageError."""
    try:
        seconds = parse_duration(text)
    except UsageError as e:
        raise UsageError(f'--expires {text}: {e}') from e
    if not 1 <= seconds <= longest:
        raise UsageError(f'--expires {text}: a URL can be good for 1s to {longest // 3600}h')
    return int(seconds)


def lag_alarm_of(text: str | float | None) -> float | None:
    """Seconds of --lag-alarm; 0 for `off`; None: not said. Raises UsageError."""
    if text is None or text == 'off':
        return None if text is None else 0.0
    try:
        return parse_duration(text, unit='s')
    except UsageError as e:
        raise UsageError(f'--lag-alarm {text}: {e}; off turns it off') from e
