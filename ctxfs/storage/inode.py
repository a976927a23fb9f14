"""The inode as the daemon holds it: one live object per inode, the image of its row, shared by everything in the process.

Owns the field names, the content states and the reasons for which an inode can be pending. It must not know SQL, FUSE or the store.
Whoever changes a persistent field writes it with a `TreeDB` call in the same transaction; the runtime fields at the end are nobody's
row and may be lost at any time.

Content states of a regular file (`Content`), with what a crash leaves behind:

        write / truncate (row first, then bytes)          upload done, revision unchanged            linked into the block cache
  CLEAN ───────────────────────────────────────▶ STAGED ───────────────────────────────▶ SEALED ───────────────────────────▶ CLEAN
  bytes: object + cache                          bytes: staging only                     bytes: object + staging             …
                                                   ▲      write again: no copy needed      │
                                                   └───────────────────────────────────────┘
"""
from __future__ import annotations

import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from ctxfs.records import Ino


class Content:
    """Where the bytes of an inode are. Plain ints, not an Enum: compared on every request."""
    NONE = 0        # not a regular file
    STAGED = 1      # the staging file is the only copy
    SEALED = 2      # uploaded; the staging file is still there and equal to the object
    CLEAN = 3       # the object named by (ino, revision) is the truth


class Reason:
    """Why an inode is pending; bits of `pending.reason`."""
    CONTENT = 1     # bytes (or a symlink's target) the bucket does not have
    NAMES = 2       # created, linked, renamed, or one of several names removed
    ATTRS = 4       # mode, owner, times, xattrs
    SUBTREE = 8     # a directory that moved: everything below has other keys now
    INDEX = 16      # the bucket has the object; the index record is still to be written


class UploadInFlight(Protocol):
    """What a writer tells an upload of the same inode before it changes a byte."""

    def abort(self) -> None: ...


class Waitable(Protocol):
    """Something that ends by itself, soon."""

    async def wait(self) -> object: ...


class Inode:
    """See the module docstring. Times in ns since the epoch, sizes in bytes."""

    #: handles for reading that were opened without the daemon's Python (edge/fuse_ops.py), by ino; one kernel for all inodes of a process
    counted_elsewhere: ClassVar[Callable[[int], int]] = staticmethod(lambda ino: 0)

    __slots__ = ('ino', 'mode', 'uid', 'gid', 'rdev', 'nlink', 'size', 'atime_ns', 'mtime_ns', 'ctime_ns', 'content', 'revision',
                 'attrs_known', 'target', 'xattrs', 'link_group', 'local',
                 'marked', 'is_planned', 'upload', 'adoption', 'handles', 'growth', 'staging_fd', 'remote_version',
                 'blocks', 'charged', 'answer', 'writers', 'changed_at', 'hold', 'is_touched', 'turns', '__weakref__')

    def __init__(self, ino: Ino, mode: int, uid: int, gid: int, rdev: int, nlink: int, size: int, atime_ns: int, mtime_ns: int,
                 ctime_ns: int, content: int, revision: int, attrs_known: int = 1, target: bytes | None = None,
                 xattrs: bytes | None = None, link_group: str | None = None, local: int = 0) -> None:
        self.ino = ino
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.rdev = rdev
        self.nlink = nlink
        self.size = size
        self.atime_ns = atime_ns
        self.mtime_ns = mtime_ns
        self.ctime_ns = ctime_ns
        self.content = content
        self.revision = revision
        self.attrs_known = attrs_known
        self.target = target
        self.xattrs = xattrs
        self.link_group = link_group
        self.local = local
        # --- runtime only ---
        #: Reason bits known to be in this inode's pending row, so that setting them again needs no statement
        self.marked = 0
        #: its row in `touched` is known to be there
        self.is_touched = False
        #: work was planned from the pending row as it is: the next change must reach the row (its seq), which clears this
        self.is_planned = False
        #: the upload that reads the staging file now
        self.upload: UploadInFlight | None = None
        #: set while the sealed staging file is being linked into the cache: nobody may write to it until that ended
        self.adoption: Waitable | None = None
        #: handles that have it open, but for those that are counted elsewhere, and how many of these may write
        self.handles = 0
        self.writers = 0
        #: set while the kernel is told of bytes that another host added: who is to change the size waits for its end
        self.growth: Waitable | None = None
        #: when a byte of it changed last, by trio's clock; long ago where nobody noted it
        self.changed_at = float('-inf')
        #: set while the staging file is copied as it is at one instant: writers wait until that ended
        self.hold: Waitable | None = None
        #: the staging file, open for reading and writing while anybody uses it; -1 when not
        self.staging_fd = -1
        #: +1 whenever a remote change replaced the content; a handle opened before gets ESTALE, never a mixture
        self.remote_version = 0
        #: how often it turned STAGED: what was learnt of the staging file before is of another one, or of other content
        self.turns = 0
        #: (revision, 512-byte blocks of the staging file) as last looked up
        self.blocks = (-1, 0)
        #: bytes of the staging file as counted in Staging.used; -1: not looked up since it was loaded
        self.charged = -1
        #: what the FUSE boundary answered last for this inode, with the fields it was made from (see edge.fuse_adapter)
        self.answer: tuple[tuple[int, ...], object] | None = None

    @property
    def open_count(self) -> int:
        """All handles that have it open."""
        return self.handles + type(self).counted_elsewhere(self.ino)

    def row(self) -> tuple[object, ...]:
        """The persistent fields in the column order of schema.sql."""
        return (self.ino, self.mode, self.uid, self.gid, self.rdev, self.nlink, self.size, self.atime_ns, self.mtime_ns, self.ctime_ns,
                self.content, self.revision, self.attrs_known, self.target, self.xattrs, self.link_group, self.local)

    def assign(self, row: tuple[Any, ...]) -> None:
        """Take every persistent field from a row (after a rolled-back transaction)."""
        (self.ino, self.mode, self.uid, self.gid, self.rdev, self.nlink, self.size, self.atime_ns, self.mtime_ns, self.ctime_ns,
         self.content, self.revision, self.attrs_known, self.target, self.xattrs, self.link_group, self.local) = row

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def is_local_type(self) -> bool:
        """Fifos, sockets and device nodes mean something on this host only; a bucket has no place for them."""
        return not (stat.S_ISREG(self.mode) or stat.S_ISDIR(self.mode) or stat.S_ISLNK(self.mode))

    @property
    def has_staging(self) -> bool:
        return self.content == Content.STAGED or self.content == Content.SEALED
