"""How an error crosses the pipe between the daemon and a transfer worker: as its class's name, and its message.

Owns both directions. It must not know the pipe.
"""
from __future__ import annotations

from typing import Any

from ctxfs import errors


def describe(error: BaseException) -> tuple[str, str]:
    """(class name, message) of an error that is to cross. Unknown classes keep their name in the message."""
    name = type(error).__name__
    if isinstance(error, errors.CtxfsError):
        return name, str(error)
    return 'CtxfsError', f'{name}: {error}'


def revive(name: str, message: str) -> errors.CtxfsError:
    """The exception that `describe` described, as the same class of ctxfs.errors."""
    kind: Any = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, errors.CtxfsError)):
        kind = errors.CtxfsError
    error: errors.CtxfsError = kind(message)
    return error
