"""How an error crosses the pipe between the daemon and a transfer worker: as its class's name, its message, and when to ask again.

Owns both directions. It must not know the pipe.
"""
from __future__ import annotations

import errno
import logging
from typing import Any, cast

from ctxfs import errors
from ctxfs.storage.keys import printable

log = logging.getLogger(__name__)

#: characters of an error's message
MAX_MESSAGE = 4096


def describe(error: BaseException) -> tuple[str, str]:
    """(class name, message) of an error that is to cross. Unknown classes keep their name in the message. A message may hold anything that a
    server or a file name said: it is made printable, because half of a surrogate pair could not cross, and cut."""
    name, text = type(error).__name__, printable(str(error)[:MAX_MESSAGE])
    if isinstance(error, errors.CtxfsError):
        return name, text
    return 'CtxfsError', f'{name}: {text}'


def revive(name: str, message: str, retry_after: float = 0.0) -> errors.CtxfsError:
    """The exception that `describe` described, as the same class of ctxfs.errors."""
    kind: Any = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, errors.CtxfsError)):
        kind = errors.CtxfsError
    error: Any = kind(message)
    if retry_after:
        error.retry_after = retry_after
    return cast(errors.CtxfsError, error)


def translate(error: Exception) -> Exception:
    """The error as one of ctxfs.errors. A system error keeps its meaning; anything else is a defect, logged here where the stack is."""
    if isinstance(error, errors.CtxfsError):
        return error
    if isinstance(error, OSError):
        kinds: dict[int | None, type[errors.CtxfsError]] = {
            errno.ENOSPC: errors.DiskFull, errno.EDQUOT: errors.DiskFull, errno.ENOENT: errors.NotFound, errno.EACCES: errors.Denied}
        return kinds.get(error.errno, errors.CtxfsError)(str(error))
    log.error('an operation failed unexpectedly', exc_info=error)
    return error
