"""How an error crosses the pipe between the daemon and a transfer worker: as its class's name, its message, and when to ask again.

Owns both directions. It must not know the pipe.
"""
from __future__ import annotations

from typing import Any, cast

from ctxfs import errors
from ctxfs.storage.keys import printable

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
