"""What `ctxfs doctor` finds: one line a check, each ok, warn or fail, with what to do.

Owns the finding and how checks are run one after the other: one that fails does not keep the others from running. It must not know any
single check (doctor_host.py, doctor_store.py …) nor how findings look (cli_doctor.py).
"""
from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ctxfs.errors import CtxfsError


class Level(enum.Enum):
    """How bad it is: `warn` works, but less well than it could; `fail` does not work."""
    OK = 'ok'
    WARN = 'warn'
    FAIL = 'fail'


class Finding(NamedTuple):
    """One line. `check`: what was looked at, a word; `text`: what was found; `fix`: what to do, '' where nothing."""
    level: Level
    check: str
    text: str
    fix: str = ''


#: a check's name, and the check itself, which may raise CtxfsError instead of finding something
Check = tuple[str, Callable[[], Iterable[Finding]]]


def examine(checks: Iterable[Check]) -> Iterator[Finding]:
    """Run the checks; what one raises is its finding."""
    for name, check in checks:
        try:
            yield from check()
        except CtxfsError as error:
            yield Finding(Level.FAIL, name, str(error))
