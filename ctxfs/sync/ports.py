"""What sync needs from elsewhere, as it wants it.

Owns these Protocols only; the daemon connects them.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ctxfs.storage.block_cache import CachedRange


class Invalidator(Protocol):
    """Makes the kernel forget what is not true any more. Calls return at once and take effect soon."""

    def inode(self, ino: int) -> None:
        """Content and attributes."""

    def attrs(self, ino: int) -> None:
        """Attributes only; cached pages stay."""

    def entry(self, parent: int, name: bytes, deleted: int = 0) -> None:
        """The name means something else, or nothing (then `deleted` is the inode it meant)."""

    def replaced(self, ino: int) -> None:
        """The content of the file went to another inode: handles that are open are stale."""

    def grown(self, ino: int, parts: Sequence[tuple[int, CachedRange]], done: Callable[[], None]) -> None:
        """Bytes were added at the end: from each offset those of the range, whose descriptor is closed here. `done` is called, by the
        loop, when the kernel has the new size (or does not know the inode)."""

    def appeared(self, parent: int, name: bytes) -> None:
        """There was no such name, and the kernel may remember that."""


class Spawn(Protocol):
    """Starts a background task of the daemon."""

    def __call__(self, function: Callable[..., Any], *args: Any) -> None: ...
