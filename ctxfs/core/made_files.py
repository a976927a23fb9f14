"""Taking over files that the kernel was answered for without the file system: new ones, made and perhaps written and closed since the last look.

Owns what such a file becomes in memory, and what waits when the disk has no space for its row. It must not know who makes files, nor how
(edge/fuse_made.py). Their names were free, their staging files are there, and storage/made_log.py's log has them, so nothing of them is lost
before they are taken over.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import trio

from ctxfs.core.handles import FileHandle, is_for_writing
from ctxfs.crash_points import crash_point
from ctxfs.records import Ino
from ctxfs.storage.gating import Gating
from ctxfs.storage.inode import Content, Inode
from ctxfs.storage.journal import Journal
from ctxfs.storage.made_log import MadeLog, Placed
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_db import TreeDB

if TYPE_CHECKING:
    from ctxfs.core.filesystem import FileSystem


class Made(NamedTuple):
    """A new regular file. Times in ns since the epoch, sizes in bytes."""
    ino: Ino
    parent: int
    fh: int
    size: int
    #: of 512 bytes, of the staging file
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    made_ns: int
    mode: int
    uid: int
    gid: int
    flags: int
    #: the staging file's descriptor; -1 when it was closed
    fd: int
    is_open: bool
    is_changed: bool
    #: the kernel holds a reference
    is_known: bool
    name: bytes


class MadeFiles:
    """See the module docstring. For the loop's thread."""

    def __init__(self, db: TreeDB, journal: Journal, staging: Staging, *, gating: Gating, log: MadeLog,
                 on_close: Callable[[Inode], None] | None = None) -> None:
        self._db = db
        self._journal = journal
        self._staging = staging
        self._gating = gating
        self._log = log
        self._on_close = on_close
        #: made, acknowledged, and not in the tree database for want of space
        self._waiting: list[Made] = []

    @property
    def is_waiting(self) -> bool:
        """Nothing is to be made or asked for before `settle` succeeded."""
        return bool(self._waiting)

    def waiting(self) -> tuple[int, int]:
        """(files, bytes) of those that wait, and that the bucket is to have."""
        synced = [one.size for one in self._waiting if self._gating.is_synced(one.parent, one.name)]
        return len(synced), sum(synced)

    def take_over(self, fs: FileSystem, made: Sequence[Made]) -> None:
        """Make them files like others. When it raises (DiskFull, and as TreeDB) they wait for `settle`."""
        self._waiting += made
        self.settle(fs)

    def settle(self, fs: FileSystem) -> None:
        """Take over what waits. Raises as `take_over`."""
        if not self._waiting:
            return
        self._db.first = None
        try:
            placed = self._place()
        except BaseException:       # nothing else may be written meanwhile: their names are taken
            self._db.first = lambda: self.settle(fs)
            raise
        made, self._waiting = self._waiting, []
        for one, (inode, *_) in zip(made, placed, strict=True):
            self._introduce(fs, one, inode)

    def _place(self) -> list[Placed]:
        """Make the rows of what waits."""
        placed = [Placed(self._inode(one), one.parent, one.name, one.made_ns) for one in self._waiting]
        for inode, parent, name, _ in placed:
            self._gating.place(inode, parent, name)
        crash_point('made-before-commit')
        self._log.take(placed, self._journal)
        crash_point('made-after-commit')
        return placed

    @staticmethod
    def _inode(one: Made) -> Inode:
        return Inode(one.ino, one.mode, one.uid, one.gid, 0, 1, one.size, one.atime_ns, one.mtime_ns, one.ctime_ns, Content.STAGED,
                     2 if one.is_changed else 1)

    def _introduce(self, fs: FileSystem, one: Made, inode: Inode) -> None:
        self._db.hold(inode)
        self._staging.adopt(inode, blocks=one.blocks)
        inode.changed_at = trio.current_time()
        if one.is_known:
            fs.remember(inode)
        writes = is_for_writing(one.flags)
        if one.is_open:
            self._staging.opened(inode, one.fd)
            self._staging.charge(inode)
            inode.blocks = (inode.revision, inode.charged // 512)
            fs.contents.opened(inode, writes=writes)
            fs.files.put(one.fh, FileHandle(inode, one.flags))
        elif writes and self._on_close is not None:
            self._on_close(inode)

    def released(self, fh: int) -> bool:
        """The kernel closed a file; whether that was one that waits."""
        for number, one in enumerate(self._waiting):
            if one.fh == fh and one.is_open:
                self._waiting[number] = self._closed(one)
                return True
        return False

    @staticmethod
    def _closed(one: Made) -> Made:
        blocks = os.fstat(one.fd).st_blocks
        os.close(one.fd)
        return one._replace(fd=-1, is_open=False, blocks=blocks)

    def forgotten(self, inos: Iterable[int]) -> None:
        """The kernel dropped its reference, the only one, to those of these that wait."""
        gone = set(inos)
        self._waiting = [one._replace(is_known=False) if one.ino in gone else one for one in self._waiting]

    def detached(self) -> None:
        """There is no mount any more: nothing of what waits is open or known."""
        self._waiting = [(self._closed(one) if one.is_open else one)._replace(is_known=False) for one in self._waiting]
