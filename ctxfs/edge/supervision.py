"""Background tasks of a mount: what becomes of one that fails.

Owns the rule that no failure of one ends the mount; everything that is acknowledged stays journaled. It must not know what the tasks do.
"""
from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import trio

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup  # what trio itself uses there

from ctxfs.errors import DiskFull

log = logging.getLogger(__name__)

#: a task that failed begins again after so long, later each time it fails at once
_AGAIN_SECONDS = (1.0, 60.0)


async def supervised(function: Callable[..., Any], *args: Any) -> None:
    """Run a task once; a bug in it is logged."""
    try:
        await function(*args)
    except Exception:
        log.exception('background task %s failed', _name(function))


async def kept_running(function: Callable[..., Any], *args: Any) -> None:
    """Run a task that the mount cannot be without until it ends by itself: after a failure (a full disk, a bug) it begins again."""
    delay, longest = _AGAIN_SECONDS
    while True:
        began = trio.current_time()
        try:
            await function(*args)
            return
        except DiskFull as error:
            log.warning('background task %s: %s', _name(function), error)
        except Exception:
            log.exception('background task %s failed', _name(function))
        if trio.current_time() - began > longest:
            delay = _AGAIN_SECONDS[0]
        await trio.sleep(delay)
        delay = min(longest, delay * 2)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, '__qualname__', repr(function))


def first_leaf(error: BaseException) -> BaseException:
    """What went wrong first, out of the groups that nested nurseries make of it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
