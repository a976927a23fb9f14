"""The file system: every operation a program can ask of a mount, without FUSE and without a network.

Owns the open handles, and puts what the kernel knows (known_inodes.py), names (namespace.py) and bytes (contents.py) together. It must
not know pyfuse3, the store or any schedule; edge/fuse_adapter.py translates to and from it.
"""
from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

from ctxfs.core.contents import Contents
from ctxfs.core.handles import DirHandle, FileHandle, HandleTable, LastListings, is_for_writing
from ctxfs.core.known_inodes import KnownInodes
from ctxfs.core.listed_entries import MOST, ListedEntries
from ctxfs.core.made_files import Made, MadeFiles
from ctxfs.core.namespace import Caller, Namespace
from ctxfs.core.ports import RemoteTree
from ctxfs.crash_points import crash_point
from ctxfs.errors import CtxfsError, DiskFull, InvalidArgument, IsADirectory, NoSuchDevice, RemoteChanged
from ctxfs.records import ROOT_INO, Fh
from ctxfs.storage.attr_bounds import clamp_ns
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal
from ctxfs.storage.tree_db import TreeDB


class Change(NamedTuple):
    """What a setattr changes; None leaves a field alone. Times in ns."""
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None


#: absences noted at most (a set entry each); beyond, the kernel is asked not to remember them
MAX_ABSENCES = 100_000


class FileSystem:
    """See the module docstring. All methods raise ctxfs.errors, or OSError from the local disk."""

    def __init__(self, db: TreeDB, journal: Journal, names: Namespace, contents: Contents, *, remote: RemoteTree,
                 made: MadeFiles, after_fsync: Callable[[Inode], Awaitable[None]] | None = None,
                 on_close: Callable[[Inode], None] | None = None) -> None:
        self._db = db
        self._journal = journal
        self.names = names
        self.contents = contents
        self._remote = remote
        self.made = made
        self._after_fsync = after_fsync
        self._on_close = on_close
        self._known = KnownInodes(db)
        #: names the kernel was told not to ask for again, because there are none
        self._absences: set[tuple[int, bytes]] = set()
        #: directories of which the kernel may remember the listing; and what tells it to forget one
        self._listed: set[int] = set()
        self._last_listings = LastListings()
        self.forget_listing: Callable[[int], None] = lambda ino: None
        self._writes = 0
        #: orphans that are still to be removed, and inodes that grew, whose row could not be written for want of space
        self._unpurged: list[Inode] = []
        self._unsaved: dict[int, Inode] = {}
        self.files: HandleTable[FileHandle] = HandleTable()
        self.dirs: HandleTable[DirHandle] = HandleTable()

    # --- what the kernel knows ------------------------------------------------------------------------------------------------------

    def remember(self, inode: Inode) -> Inode:
        """The kernel learns of the inode once more."""
        self._known.remember(inode)
        return inode

    def forget(self, items: Sequence[tuple[int, int]]) -> None:
        """The kernel drops references; orphans that nobody has open are removed."""
        if self.made.is_waiting:
            self.made.forgotten(ino for ino, _ in items)
        nameless = self._known.forget(items)
        self._listed.difference_update(ino for ino, _ in items if ino not in self._known)
        if gone := [inode for inode in nameless if inode.open_count == 0]:
            self._purge(gone)

    def detached(self) -> None:
        """There is no mount any more, and so nothing is open or known: an unmount does not wait until the kernel has told all of it."""
        self.made.detached()
        with contextlib.suppress(CtxfsError):       # else the next recovery does it
            self.made.settle(self)
        for fh in self.files.numbers():
            self._release(fh)
        for fh in self.dirs.numbers():
            self.releasedir(fh)
        if gone := [inode for inode in self._known.forget_all() if inode.open_count == 0]:
            self._purge(gone)

    def note_absence(self, parent: int, name: bytes) -> bool:
        """The kernel is told that there is no such name. False: it must ask again next time, because too many are noted already."""
        if len(self._absences) >= MAX_ABSENCES:
            return False
        self._absences.add((parent, name))
        return True

    def absences(self) -> int:
        """How many are noted."""
        return len(self._absences)

    def note_absences(self, absences: Iterable[tuple[int, bytes]]) -> None:
        """(parent, name) of each; there is room for them."""
        self._absences.update(absences)

    def take_absence(self, parent: int, name: bytes) -> bool:
        """Whether the kernel was told so; not any more."""
        if (parent, name) not in self._absences:
            return False
        self._absences.remove((parent, name))
        return True

    @property
    def changes(self) -> int:
        """Unchanged, no inode has other attributes than before. (TreeDB.changes, and writes, which the row learns of later.)"""
        return self._db.changes + self._writes

    def known_inodes(self) -> int:
        """How many the kernel refers to."""
        return len(self._known)

    def is_known(self, ino: int) -> bool:
        return ino in self._known or ino == ROOT_INO

    def inode(self, ino: int) -> Inode:
        return self._known.inode(ino)

    # --- names ------------------------------------------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes) -> Inode | None:
        """`.` and `..` included (for NFS export)."""
        if name == b'.':
            return self.remember(self.inode(parent))
        inode = await self.names.lookup(parent, name)
        return None if inode is None else self.remember(inode)

    async def make(self, parent: int, name: bytes, *, mode: int, caller: Caller, rdev: int = 0, target: bytes | None = None) -> Inode:
        """mkdir, mknod, symlink."""
        inode = await self.names.make(parent, name, mode=mode, caller=caller, rdev=rdev, target=target)
        self._absences.discard((parent, name))
        self.contents.opened(inode)
        self.contents.released(inode)       # a mknod'ed regular file comes with an open descriptor
        return self.remember(inode)

    async def create(self, parent: int, name: bytes, *, mode: int, flags: int, caller: Caller) -> tuple[Fh, Inode]:
        """O_CREAT of a name that the kernel believes to be free."""
        inode = await self.names.make(parent, name, mode=mode | stat.S_IFREG, caller=caller)
        self._absences.discard((parent, name))
        self.contents.created(inode, writes=is_for_writing(flags))
        self.remember(inode)
        return self.files.add(FileHandle(inode, flags)), inode

    def take_over(self, made: Sequence[Made]) -> None:
        """The kernel was answered that these files are made; see made_files.py. Raises as that."""
        self._absences.difference_update((one.parent, one.name) for one in made)
        self.made.take_over(self, made)

    async def link(self, ino: int, parent: int, name: bytes) -> Inode:
        inode = self.remember(await self.names.link(self.inode(ino), parent, name))
        self._absences.discard((parent, name))
        return inode

    async def unlink(self, parent: int, name: bytes) -> None:
        self._purge_if_unknown(await self.names.unlink(parent, name))

    async def rmdir(self, parent: int, name: bytes) -> None:
        self._purge_if_unknown(await self.names.rmdir(parent, name))

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        replaced = await self.names.rename(parent, name, new_parent, new_name, flags)
        self._absences.discard((new_parent, new_name))
        if replaced is not None:
            self._purge_if_unknown(replaced)

    def _purge_if_unknown(self, inode: Inode) -> None:
        if inode.nlink == 0 and inode.open_count == 0 and inode.ino not in self._known:
            self._purge([inode])
        elif inode.nlink == 0 and inode.ino in self._known:
            self._known.keep(inode)

    def _purge(self, inodes: list[Inode]) -> None:
        """What the program asked for is done when this is called: that the disk has no space to note it is no failure of it."""
        self._unpurged += inodes
        with contextlib.suppress(DiskFull):
            self.names.purge(self._unpurged)
            self._unpurged = []

    def settle(self) -> None:
        """Note what a full disk kept from being noted; called now and then."""
        if self._unpurged:
            self._purge([])
        with contextlib.suppress(DiskFull):
            self.made.settle(self)
            while self._unsaved:
                inode = next(iter(self._unsaved.values()))
                if inode.content == Content.STAGED and inode.nlink:
                    self._db.store_content(inode)
                del self._unsaved[inode.ino]

    def readlink(self, ino: int) -> bytes:
        inode = self.inode(ino)
        if inode.target is None:
            raise InvalidArgument(f'inode {ino} is no symbolic link')
        return inode.target

    # --- attributes -----------------------------------------------------------------------------------------------------------------

    async def getattr(self, ino: int) -> Inode:
        inode = self.inode(ino)
        if not inode.attrs_known:
            await self._remote.ensure_attrs((inode,))
        return inode

    async def setattr(self, ino: int, change: Change) -> Inode:
        """Apply the change; ctime is the given one (the kernel's, with its writeback cache) or now."""
        inode = await self.getattr(ino)
        if change.size is not None:
            if change == Change(size=inode.size):
                return inode
            await self._resize(inode, change.size)
        if change.mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(change.mode)
        if change.uid is not None:
            inode.uid = change.uid
        if change.gid is not None:
            inode.gid = change.gid
        if change.atime_ns is not None:
            inode.atime_ns = clamp_ns(change.atime_ns)
        if change.mtime_ns is not None:
            inode.mtime_ns = clamp_ns(change.mtime_ns)
        inode.ctime_ns = clamp_ns(change.ctime_ns) if change.ctime_ns is not None else time.time_ns()
        self.store_attrs(inode)
        crash_point('attributes-before-reply')
        return inode

    async def _resize(self, inode: Inode, size: int) -> None:
        if inode.is_dir:
            raise IsADirectory('a directory has no size to set')
        if not inode.is_regular or size < 0:
            raise InvalidArgument(f'size {size}')
        await self._grown(inode)
        await self.contents.truncate(inode, size)

    def store_attrs(self, inode: Inode) -> None:
        """Write the attributes of an inode that were changed in memory, and note that the bucket is to learn them."""
        is_shared = bool(inode.nlink) and not inode.local
        if is_shared and (inode.is_planned or not inode.marked & Reason.ATTRS):
            with self._db.transaction():
                self._db.store_attrs(inode)
                self._journal.mark(inode, Reason.ATTRS)
            return
        try:
            self._db.store_attrs(inode)
        except CtxfsError:
            self._db.restore(inode)
            raise

    def stat_blocks(self, inode: Inode) -> int:
        return self.contents.blocks_512(inode) if inode.is_regular else (8 if inode.is_dir else 0)

    # --- files ------------------------------------------------------------------------------------------------------------------

    async def open(self, ino: int, flags: int) -> Fh:
        inode = await self.getattr(ino)
        if inode.is_dir:
            raise IsADirectory('open the directory with opendir')
        if not inode.is_regular:
            raise NoSuchDevice('fifos, sockets and devices are the kernel\'s')
        if is_for_writing(flags):
            await self._grown(inode)
        self.contents.opened(inode, writes=is_for_writing(flags))
        try:
            if flags & os.O_TRUNC and (inode.size or inode.content != Content.STAGED):
                await self.setattr(ino, Change(size=0))
        except BaseException:
            self.contents.released(inode, writes=is_for_writing(flags))
            raise
        return self.files.add(FileHandle(inode, flags))

    def opened_file(self, fh: int, ino: int) -> None:
        """The kernel has this file open for reading under a number that we did not make, since the inode was new here; now the handle is
        needed here too."""
        if fh not in self.files:
            handle = FileHandle(self.inode(ino), os.O_RDONLY)
            handle.remote_version = 0
            self.contents.opened(handle.inode)
            self.files.put(fh, handle)

    @staticmethod
    async def _grown(inode: Inode) -> None:
        """The kernel knows the size that the file has (see sync/growth.py): what is written at its end is."""
        while inode.growth is not None:
            await inode.growth.wait()

    async def read(self, fh: int, offset: int, size: int) -> bytes | memoryview:
        handle = self.files.get(fh)
        inode = handle.inode
        if handle.remote_version != inode.remote_version and not inode.has_staging:
            raise RemoteChanged('the file was replaced in the bucket after it was opened')
        return await self.contents.read(inode, offset, size=size, ahead=handle.ahead)

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        handle = self.files.get(fh)
        inode = handle.inode
        if handle.remote_version != inode.remote_version and not inode.nlink:   # else it would go where nobody finds it
            raise RemoteChanged('the file was replaced in the bucket after it was opened')
        self._writes += 1
        try:
            return await self.contents.write(inode, offset, data)
        finally:
            self._writes += 1

    async def release(self, fh: int) -> None:
        self._release(fh)

    def _release(self, fh: int) -> None:
        if self.made.is_waiting and self.made.released(fh):
            return
        handle = self.files.remove(fh)
        inode = handle.inode
        try:
            if inode.content == Content.STAGED and inode.nlink:
                if inode.handles == 1:
                    crash_point('close-before-row')
                    self._save_size(inode)
                if self._on_close is not None and handle.writes and inode.writers == 1:
                    self._on_close(inode)
        finally:
            self.contents.released(inode, writes=handle.writes)
            self._purge_if_unknown(inode)

    def _save_size(self, inode: Inode) -> None:
        """Nobody hears of a failure here, so it is made good later; until then the inode stays in memory, with the size that it has."""
        try:
            self._db.store_content(inode)
            self._unsaved.pop(inode.ino, None)
        except DiskFull:
            self._unsaved[inode.ino] = inode

    def written_inos(self) -> list[int]:
        """Files that are open for writing: the kernel may hold pages of them that it did not write yet."""
        return list({handle.inode.ino for handle in self.files if handle.writes})

    async def fsync(self, fh: int) -> None:
        inode = self.files.get(fh).inode
        await self.contents.fsync(inode)
        if self._after_fsync is not None:
            await self._after_fsync(inode)

    # --- directories ------------------------------------------------------------------------------------------------------------

    async def opendir(self, ino: int) -> Fh:
        return self.dirs.add(DirHandle(await self.names.directory(ino), self._db.children))

    async def opened_dir(self, fh: int, ino: int) -> None:
        """The kernel has this directory open under a number that we did not make; now it is needed here too."""
        if fh not in self.dirs:
            self.dirs.put(fh, DirHandle(await self.names.directory(ino), self._db.children, self._last_listings.of(ino)))

    def take_listing(self, ino: int) -> bool:
        """Whether the kernel may remember the listing of this directory; it is about to be told to forget it."""
        was_listed = ino in self._listed
        self._listed.discard(ino)
        return was_listed

    def listed(self, fh: int, offset: int) -> ListedEntries | None:
        """The same as `readdir` of entries that the kernel remembers, at once and as numbers; to be told which of them it got. None: there is one
        that takes longer."""
        handle = self.dirs.get(fh)
        self._listed.add(handle.inode.ino)
        if offset == 0:
            self._rewind(handle)
        entries, at = ListedEntries(), offset
        if offset < 2:
            for name, inode in ((b'.', handle.inode), (b'..', self._parent_of(handle.inode)))[offset:]:
                entries.add_dot(name, inode.ino, inode.mode)
            at = 2
        page = handle.page_at(at)[0][:MOST]
        self._last_listings.note(handle.inode.ino, handle.listing, len(page))
        if not entries.add(self._db, handle.inode.ino, page, may_be_unknown=not self._remote.is_described, blocks=self.stat_blocks):
            return None
        entries.is_whole = handle.ends_at(at + len(page))
        return entries

    def _rewind(self, handle: DirHandle) -> None:
        handle.rewind()
        self._last_listings.forget(handle.inode.ino)

    def told(self, entries: ListedEntries, count: int) -> None:
        """The kernel got the first `count` of them."""
        inos = entries.learnt(count)
        self._known.count(ino for ino in inos if ino not in entries.inodes)
        for ino in inos:        # of several names of an inode each
            if ino in entries.inodes:
                self._known.remember(entries.inodes[ino])

    async def readdir(self, fh: int, offset: int, *, is_kept: bool = False) -> list[tuple[bytes, Inode, int]]:
        """The next entries after `offset` with their inodes; [] at the end. `.` and `..` come first. `is_kept`: the kernel remembers them, and takes
        names alone: attributes are known but of those that would be waited for."""
        handle = self.dirs.get(fh)
        if is_kept:
            self._listed.add(handle.inode.ino)
        if offset == 0:
            self._rewind(handle)
        entries: list[tuple[bytes, Inode, int]] = []
        if offset < 2:
            dots = [(b'.', handle.inode, 1), (b'..', self._parent_of(handle.inode), 2)]
            entries, offset = dots[offset:], 2
        page, first = handle.page_at(offset)
        if is_kept:
            self._last_listings.note(handle.inode.ino, handle.listing, len(page))
        inodes = self._known.inodes([ino for _, ino in page])
        unknown = [inode for inode in inodes.values() if not inode.attrs_known]
        if unknown and (self._remote.is_described or not is_kept):
            await self._remote.ensure_attrs(unknown)
            if is_kept and handle.inode.ino not in self._listed:    # it changed meanwhile, and what we answer is from before
                self._listed.add(handle.inode.ino)
                self.forget_listing(handle.inode.ino)
        for position, (name, ino) in enumerate(page):
            inode = inodes.get(ino)
            if inode is None or not inode.nlink:        # removed since the page was read, or another inode has the name
                inode = await self.names.lookup(handle.inode.ino, name)
            if inode is not None and inode.nlink:
                entries.append((name, inode, first + position + 1))
        if page and not entries:
            return await self.readdir(fh, first + len(page), is_kept=is_kept)
        return entries

    def _parent_of(self, directory: Inode) -> Inode:
        names = self._db.names_of(directory.ino)
        return self.inode(names[0][0]) if names else directory

    def releasedir(self, fh: int) -> None:
        self._purge_if_unknown(self.dirs.remove(fh).inode)

    async def fsyncdir(self, ino: int) -> None:
        """Names are in the tree database already; make its log durable."""
        await self.contents.fsync(self.inode(ino))
