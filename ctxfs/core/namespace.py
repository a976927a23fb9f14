"""Names: looking them up, making, linking, moving and removing them, each as one transaction of the tree database.

Owns the rules of a POSIX name space as ext4 has them (errnos, link counts, times, set-group-ID inheritance). It must not know bytes
of files beyond creating an empty staging file, nor FUSE, nor the bucket: what the bucket must learn is marked in the journal.

Permission checks are the kernel's (`default_permissions`), and so are the checks that need the dentry cache (a directory renamed into
itself).
"""
from __future__ import annotations

import os
import stat
import time
from typing import NamedTuple

from ctxfs.core.ports import RemoteTree
from ctxfs.crash_points import crash_point
from ctxfs.errors import Exists, InvalidArgument, IsADirectory, NameTooLong, NotADirectory, NotEmpty, NotFound, NotPermitted, TooManyLinks
from ctxfs.records import RESERVED_DIR, ROOT_INO
from ctxfs.storage.gating import Gating
from ctxfs.storage.hardened import HardenedFiles
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal
from ctxfs.storage.keys import NAME_MAX
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_db import TreeDB

RENAME_NOREPLACE = 1    # renameat2(2)
RENAME_EXCHANGE = 2
#: ext4's own limit for hard links
LINK_MAX = 65000
_RESERVED_NAME = RESERVED_DIR.rstrip('/').encode()


class Caller(NamedTuple):
    """Who asks: the file-system user and group of the calling process."""
    uid: int
    gid: int


class Namespace:
    """See the module docstring. Methods that may wait for a directory to be listed are async; all raise ctxfs.errors."""

    def __init__(self, db: TreeDB, journal: Journal, staging: Staging, *, gating: Gating, remote: RemoteTree) -> None:
        self._db = db
        self._journal = journal
        self._staging = staging
        self._hardened = HardenedFiles(db)
        self._gating = gating
        self._remote = remote

    # --- looking ------------------------------------------------------------------------------------------------------------------

    async def directory(self, ino: int) -> Inode:
        """The directory, with all its entries known. Raises NotFound, NotADirectory."""
        parent = self._db.inode(ino)
        if not stat.S_ISDIR(parent.mode):
            raise NotADirectory(f'inode {ino} is no directory')
        if not self._remote.is_complete:
            await self._remote.ensure_listed(parent)
        return parent

    async def lookup(self, parent_ino: int, name: bytes) -> Inode | None:
        """The inode of that name; None where there is none."""
        if len(name) > NAME_MAX:
            raise NameTooLong(f'a name of {len(name)} bytes')
        parent = await self.directory(parent_ino)
        inode = self._find(parent, name)
        if inode is not None and not inode.attrs_known:
            await self._remote.ensure_attrs((inode,))
            inode = self._find(parent, name)        # as it is now: what was learnt may have made it a link of another
        return inode

    def _find(self, parent: Inode, name: bytes) -> Inode | None:
        ino = self._db.lookup(parent.ino, name)
        return None if ino is None else self._db.inode(ino)

    def _require(self, parent: Inode, name: bytes) -> Inode:
        inode = self._find(parent, name)
        if inode is None:
            raise NotFound(f'no entry {name!r}')
        return inode

    # --- making -------------------------------------------------------------------------------------------------------------------

    async def make(self, parent_ino: int, name: bytes, *, mode: int, caller: Caller, rdev: int = 0,
                   target: bytes | None = None) -> Inode:
        """A new inode of the type in `mode`. Raises Exists, NameTooLong, NotPermitted (the reserved name). A new regular file comes
        with its staging file open (`staging_fd`)."""
        parent = await self.directory(parent_ino)
        self._check_new_name(parent, name)
        if parent.nlink == 0:
            raise NotFound('the directory was removed')
        inode = self._new_inode(parent, mode=mode, caller=caller, rdev=rdev, target=target)
        self._gating.place(inode, parent.ino, name)
        if stat.S_ISREG(mode):
            inode.content = Content.STAGED
            self._staging.opened(inode, self._staging.create(inode.ino))
            inode.charged = 0
        crash_point('create-before-commit')
        try:
            with self._db.transaction():
                self._db.insert_inode(inode)
                self._db.insert_dentry(parent.ino, name, inode.ino)
                self._touch(parent, links=1 if stat.S_ISDIR(mode) else 0)
                self._journal.mark(inode, Reason.CONTENT | Reason.NAMES | Reason.ATTRS)
        except BaseException:
            self._drop_staging(inode)
            raise
        crash_point('create-before-reply')
        return inode

    def _check_new_name(self, parent: Inode, name: bytes) -> None:
        if len(name) > NAME_MAX:
            raise NameTooLong(f'a name of {len(name)} bytes')
        if parent.ino == ROOT_INO and name == _RESERVED_NAME:
            raise NotPermitted(f'{RESERVED_DIR} in the root of a context is reserved for ctxfs')
        if self._db.lookup(parent.ino, name) is not None:
            raise Exists(f'{name!r} exists')

    def _new_inode(self, parent: Inode, *, mode: int, caller: Caller, rdev: int, target: bytes | None) -> Inode:
        """In a set-group-ID directory new entries get its group, and new directories the bit too (inode_init_owner in Linux)."""
        now = time.time_ns()
        gid = caller.gid
        if parent.mode & stat.S_ISGID:
            gid = parent.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        return Inode(self._db.allocate_ino(), mode, caller.uid, gid, rdev, 2 if stat.S_ISDIR(mode) else 1,
                     len(target) if target is not None else 0, now, now, now, Content.NONE, 1, target=target)

    def _touch(self, directory: Inode, links: int = 0) -> None:
        """The directory's entries changed; `links` subdirectories more."""
        directory.mtime_ns = directory.ctime_ns = time.time_ns()
        directory.nlink += links
        self._db.store_times(directory)
        self._journal.touch(directory)

    def _drop_staging(self, inode: Inode) -> None:
        if inode.staging_fd >= 0:
            os.close(inode.staging_fd)
            inode.staging_fd = -1
            self._staging.remove(inode.ino)

    async def link(self, inode: Inode, parent_ino: int, name: bytes) -> Inode:
        """One more name for a file. Names of one inode share a link group, by which other hosts know them as one."""
        parent = await self.directory(parent_ino)
        if inode.is_dir:
            raise NotPermitted('a directory cannot be hard-linked')
        if inode.nlink >= LINK_MAX:
            raise TooManyLinks(f'{inode.nlink} links')
        self._check_new_name(parent, name)
        if inode.nlink == 0 or parent.nlink == 0:
            raise NotFound('the file or the directory was removed')
        with self._db.transaction():
            self._db.insert_dentry(parent.ino, name, inode.ino)
            inode.nlink += 1
            inode.ctime_ns = time.time_ns()
            self._db.store_times(inode)
            if inode.link_group is None:
                self._db.renew_link_group(inode)
            self._touch(parent)
            self._gating.release(inode)
            self._gating.settle(inode)
            self._journal.mark(inode, Reason.NAMES)
        crash_point('link-before-reply')
        return inode

    # --- removing -----------------------------------------------------------------------------------------------------------------

    async def unlink(self, parent_ino: int, name: bytes) -> Inode:
        """Remove a name; returns the inode, which lives on while it has other names or is open."""
        parent = await self.directory(parent_ino)
        inode = self._require(parent, name)
        if inode.is_dir:
            raise IsADirectory(f'{name!r} is a directory')
        with self._db.transaction():
            self._db.delete_dentry(parent.ino, name)
            self._drop_link(inode)
            self._touch(parent)
            self._mark_if_emptied(parent)
        crash_point('unlink-before-reply')
        return inode

    async def rmdir(self, parent_ino: int, name: bytes) -> Inode:
        parent = await self.directory(parent_ino)
        await self.directory(self._require(parent, name).ino)
        inode = self._require(parent, name)     # again: the remote tree may have changed while we waited
        self._check_removable(inode)
        with self._db.transaction():
            self._db.delete_dentry(parent.ino, name)
            self._drop_link(inode)
            self._touch(parent, links=-1)
            self._db.forget_dir_keys()
            self._mark_if_emptied(parent)
        crash_point('rmdir-before-reply')
        return inode

    def _check_removable(self, directory: Inode) -> None:
        if not directory.is_dir:
            raise NotADirectory('it is no directory')
        if self._db.has_children(directory.ino):
            raise NotEmpty('the directory is not empty')

    def _drop_link(self, inode: Inode) -> None:
        """One name fewer. At none, nobody wants its objects: they become tombstones, and an upload in flight is told to stop."""
        inode.nlink = 0 if inode.is_dir else inode.nlink - 1
        inode.ctime_ns = time.time_ns()
        self._db.store_times(inode)
        self._journal.conflicts.forget(inode.ino)
        if inode.nlink:
            self._gating.settle(inode)
            self._journal.mark(inode, Reason.NAMES)
            return
        if inode.upload is not None:
            inode.upload.abort()
        self._journal.doom_objects_of(inode.ino)
        self._journal.forget(inode.ino)
        inode.marked = 0
        inode.is_planned = False

    def purge(self, inodes: list[Inode]) -> None:
        """Nothing in the kernel or in a handle knows these orphans any more: remove their rows and their staging files. The files go also
        when the rows cannot (a full disk, which this makes less full): what recovery finds of an orphan is removed anyway."""
        hardened = self._hardened.among(inode.ino for inode in inodes if inode.has_staging)
        try:
            with self._db.transaction():
                for inode in inodes:
                    self._db.delete_inode(inode.ino)
                for ino in hardened:
                    self._hardened.forget(ino)
        finally:
            crash_point('purge-before-unlink')
            for inode in inodes:
                if inode.has_staging:
                    self._staging.discard(inode, is_hardened=inode.ino in hardened)

    # --- moving -------------------------------------------------------------------------------------------------------------------

    async def rename(self, parent_ino: int, name: bytes, new_parent_ino: int, new_name: bytes, flags: int) -> Inode | None:
        """Move an entry; returns the inode whose name it took over, if any. Raises as rename(2) on ext4 fails."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise InvalidArgument(f'rename flags {flags:#x}')
        if len(new_name) > NAME_MAX:
            raise NameTooLong(f'a name of {len(new_name)} bytes')
        parent, new_parent = await self.directory(parent_ino), await self.directory(new_parent_ino)
        if not self._remote.is_complete:
            await self._wait_for_subtrees(self._require(parent, name), self._find(new_parent, new_name))
        if parent.nlink == 0 or new_parent.nlink == 0:
            raise NotFound('the directory was removed')     # while we waited
        inode, target = self._require(parent, name), self._find(new_parent, new_name)
        if flags & RENAME_EXCHANGE:
            if target is None:
                raise NotFound(f'no entry {new_name!r}')
            self._exchange((parent, name, inode), (new_parent, new_name, target))
            return None
        if target is None:
            self._check_new_name(new_parent, new_name)
        elif flags & RENAME_NOREPLACE:
            raise Exists(f'{new_name!r} exists')
        elif target is inode:
            return None  # two names of one file: rename(2) does nothing
        else:
            self._check_replaceable(inode, target)
        self._move((parent, name), (new_parent, new_name), inode, target)
        return target

    async def _wait_for_subtrees(self, *inodes: Inode | None) -> None:
        """A directory may only move when everything below it is known: a later listing would look for it under the old name."""
        for inode in inodes:
            if inode is not None and inode.is_dir:
                await self._remote.ensure_subtree(inode)

    def _check_replaceable(self, inode: Inode, target: Inode) -> None:
        if inode.is_dir:
            self._check_removable(target)
        elif target.is_dir:
            raise IsADirectory('a file cannot replace a directory')

    def _move(self, old: tuple[Inode, bytes], new: tuple[Inode, bytes], inode: Inode, target: Inode | None) -> None:
        (parent, name), (new_parent, new_name) = old, new
        with self._db.transaction():
            if target is not None:
                self._db.delete_dentry(new_parent.ino, new_name)
                self._drop_link(target)
            old_key = self._gating.key_of(parent.ino, name)
            self._db.move_dentry((parent.ino, name), (new_parent.ino, new_name), ino=inode.ino)
            links = 1 if inode.is_dir else 0
            self._touch(parent, -links)
            self._touch(new_parent, links if target is None else 0)
            self._mark_moved(inode, old_key)
            self._mark_if_emptied(parent)
            crash_point('rename-before-commit')
        crash_point('rename-before-reply')

    def _mark_if_emptied(self, directory: Inode) -> None:
        if self._gating.needs_marker(directory):
            self._journal.mark(directory, Reason.NAMES)

    def _exchange(self, one: tuple[Inode, bytes, Inode], two: tuple[Inode, bytes, Inode]) -> None:
        (parent, name, inode), (new_parent, new_name, target) = one, two
        with self._db.transaction():
            key, new_key = self._gating.key_of(parent.ino, name), self._gating.key_of(new_parent.ino, new_name)
            self._db.delete_dentry(parent.ino, name)
            self._db.delete_dentry(new_parent.ino, new_name)
            self._db.insert_dentry(parent.ino, name, target.ino)
            self._db.insert_dentry(new_parent.ino, new_name, inode.ino)
            links = int(target.is_dir) - int(inode.is_dir)
            self._touch(parent, links)
            self._touch(new_parent, -links)
            self._mark_moved(inode, key)
            self._mark_moved(target, new_key)
            crash_point('rename-before-commit')
        crash_point('rename-before-reply')

    def _mark_moved(self, inode: Inode, old_key: str) -> None:
        inode.ctime_ns = time.time_ns()
        self._db.store_times(inode)
        self._journal.conflicts.forget(inode.ino)       # whoever names it has seen it
        if inode.is_dir:
            self._db.forget_dir_keys()
            self._gating.moved_directory(inode, old_key)
        else:
            self._gating.release(inode)
            self._gating.settle(inode)
            self._journal.mark(inode, Reason.NAMES)
