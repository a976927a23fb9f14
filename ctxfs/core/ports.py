"""What core needs from elsewhere, as it wants it: the remote tree, remote content, room on the disk.

Owns these Protocols only. Sync implements them, the daemon connects them; core never sees a store, a worker or a schedule.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ctxfs.storage.inode import Inode
from ctxfs.storage.journal import Known


class RemoteTree(Protocol):
    """Makes the tree database know what the bucket holds, as far as a request needs it."""

    #: the whole context is in the tree database: nothing below ever waits
    is_complete: bool
    #: nobody waits long for attributes; until then who lists a directory need not wait for those of its entries
    is_described: bool

    async def ensure_listed(self, directory: Inode) -> None:
        """The directory's entries are all in the tree database when this returns. Raises RemoteUnavailable, Denied."""

    async def ensure_subtree(self, directory: Inode) -> None:
        """The same for everything below the directory."""

    async def ensure_attrs(self, inodes: Iterable[Inode]) -> None:
        """Every inode's own attributes are known (one HEAD for each that the index did not describe)."""

    async def refresh(self, inode: Inode) -> None:
        """A read found another version in the bucket: bring the inode up to date, unless it has local changes."""


class RemoteContent(Protocol):
    """Moves clean bytes to this host. Raises RemoteChanged when the object is not that version any more, NotFound, RemoteUnavailable."""

    async def fetch(self, source: Known, start: int, count: int) -> None:
        """Blocks [start, start + count) of the object are in the block cache."""

    async def hydrate(self, source: Known, path: str) -> None:
        """The whole object is the file at `path`."""


class Room(Protocol):
    """The bound on dirty bytes."""

    def has_room(self, size: int, own: int) -> bool:
        """Whether a file that has `own` dirty bytes may have `size` more. Its own do not count: it cannot be uploaded before it is
        written, so a file larger than the bound must be possible (the disk then is the bound)."""

    def headroom(self) -> int:
        """Bytes that may be written without asking for each of them."""

    async def make_room(self, size: int, own: int) -> None:
        """Wait, boundedly, until uploads made room. Raises NoSpace when they fail."""
