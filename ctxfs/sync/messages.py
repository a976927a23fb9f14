"""What every request to a transfer worker is made of.

Owns its base. It must not know any request: protocol.py has them, archive_protocol.py those of Archive mode.
"""
from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

R = TypeVar('R')


class Operation(msgspec.Struct, Generic[R], frozen=True, kw_only=True, array_like=True, tag=True):
    """Base of all requests; the parameter is the type of the result."""
