"""What every message between the daemon and its transfer workers is made of.

Owns the two bases, and that a message is an array on the wire. It must not know any message: protocol.py has them, archive_protocol.py those of
Archive mode.
"""
from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from ctxfs import errors
from ctxfs.sync.error_travel import revive

R = TypeVar('R')


class Message(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=True):
    """Base of all that crosses: encoded as an array, because names would cost more than the values."""


class ItemFailure(Message, frozen=True, kw_only=True, array_like=True):
    """One item of a batch that failed; `error()` is the exception."""
    key: str
    name: str
    message: str

    def error(self) -> errors.CtxfsError:
        return revive(self.name, self.message)


class Operation(msgspec.Struct, Generic[R], frozen=True, kw_only=True, array_like=True, tag=True):
    """Base of all requests; the parameter is the type of the result."""
