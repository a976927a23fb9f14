"""How log lines look and how many there may be: for people, for systemd's journal, as JSON.

Owns the handler of a process, the daemon's or a worker's. It must not know what is logged.

    text     2026-07-31 09:15:00,123 WARNING ctxfs.sync.engine message
    journal  <4>ctxfs.sync.engine: message          the journal has the time, and takes the level out of <N> (sd-daemon(3))
    json     {"time":"2026-07-31T09:15:00.123Z","level":"warning","logger":"ctxfs.sync.engine","pid":4711,"message":"message"}

In a storm one message comes at most once a second, with the number of those that were left out in between. So do, after a hundred of them,
messages that differ in their values only.
"""
from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

Style = Literal['text', 'journal', 'json']

STORM_SECONDS = 1.0
#: that differ in their values only, before they count as a storm
BURST = 100
#: messages that are remembered; beyond, those that are longest ago are forgotten
MAX_REMEMBERED = 1000
#: syslog's priorities, which the journal has
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def set_up(level: int | str, style: Style, *, clock: Callable[[], float] = time.monotonic) -> None:
    """All that this process logs goes to stderr, in that style."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter({'text': TextFormatter, 'journal': JournalFormatter, 'json': JsonFormatter}[style]())
    handler.addFilter(StormFilter(clock))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)


def style_of(env: Mapping[str, str], *, as_json: bool) -> Style:
    """The journal's where stderr leads to it, as systemd says in $JOURNAL_STREAM."""
    if as_json:
        return 'json'
    try:
        found = os.fstat(2)
    except OSError:
        return 'text'
    return 'journal' if env.get('JOURNAL_STREAM') == f'{found.st_dev}:{found.st_ino}' else 'text'


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__('%(asctime)s %(levelname)s %(name)s %(message)s')


class JournalFormatter(logging.Formatter):
    """Each line of a traceback carries the level: the journal makes an entry of each."""

    def __init__(self) -> None:
        super().__init__('%(name)s: %(message)s')

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return '\n'.join(f'<{priority}>{line}' for line in super().format(record).split('\n'))


class JsonFormatter(logging.Formatter):
    """One object a line, whatever is in the message."""

    def format(self, record: logging.LogRecord) -> str:
        seconds, milliseconds = divmod(int(record.created * 1000), 1000)
        data = {'time': f'{time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))}.{milliseconds:03}Z', 'level': record.levelname.lower(),
                'logger': record.name, 'pid': record.process, 'message': record.getMessage()}
        if record.exc_info:
            data['exception'] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(data).decode()
        except UnicodeEncodeError:      # a name that is no UTF-8
            return msgspec.json.encode({key: value.encode('utf-8', 'backslashreplace').decode() if isinstance(value, str) else value
                                        for key, value in data.items()}).decode()


class StormFilter(logging.Filter):
    """See the module docstring. Of a handler, whose lock it runs under. What somebody debugs with (DEBUG) is never left out."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        #: message → (how many may come at once, when that was so, how many were left out since the last that came)
        self._seen: dict[tuple[str, ...], tuple[float, float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.INFO:
            return True
        text = record.getMessage()
        left_out = self._left_out((record.name, text), 1)
        if left_out is not None:
            more = self._left_out((record.name, str(record.msg), record.levelname), BURST)
            left_out = None if more is None else left_out + more
        if left_out:
            record.msg, record.args = f'{text} ({left_out} more like this since the last one)', None
        return left_out is not None

    def _left_out(self, key: tuple[str, ...], burst: int) -> int | None:
        """How many were left out since the last one; None: this one is, too."""
        now = self._clock()
        may, at, left_out = self._seen.pop(key, (float(burst), now, 0))
        may = min(burst, may + (now - at) / STORM_SECONDS)
        is_through = may >= 1
        self._seen[key] = (may - 1, now, 0) if is_through else (may, now, left_out + 1)
        while len(self._seen) > MAX_REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return left_out if is_through else None


# --- how much ----------------------------------------------------------------------------------------------------------------------

def level() -> str:
    return logging.getLevelName(logging.getLogger().level).lower()


def set_level(name: str) -> int:
    """From now on; its number."""
    logging.getLogger().setLevel(name.upper())
    return logging.getLogger().level
