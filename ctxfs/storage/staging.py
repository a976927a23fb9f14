"""Staging: one plain file per inode whose bytes the bucket does not have yet.

Owns the paths, the creation and removal of staging files, and the count of their bytes. It must not know names, keys or states: the
tree database says which inode is staged, and its row turns staged BEFORE the first byte lands here.

INVARIANT: a staging file that no row calls staged or sealed is garbage (the change was never acknowledged, or is already in the bucket).
What is found here while the tree database was lost has no owner and goes to `quarantine/`, never away.
"""
from __future__ import annotations

import os
import resource
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ctxfs.errors import Corrupted
from ctxfs.storage.inode import Inode

#: inode numbers per directory: files made together lie together. Spread over 256 directories instead, a creation took 1.1 ms here,
#: because ext4 gives each directory a block group of its own and so each new file another inode table to read.
PER_DIRECTORY = 4096


#: descriptors kept open at most, where the process may have that many; a file that is used again is opened again
OPEN_MOST = 4096


class Staging:
    """Raises OSError as the system does (ENOSPC, EDQUOT, EIO reach the program that writes), Corrupted when a file is missing. `open_most`:
    descriptors that inodes may hold; by default a quarter of what the process may have."""

    def __init__(self, root: Path, *, create: bool = True, open_most: int | None = None) -> None:
        """Without `create`: to look at what is there, if anything is."""
        self.root = root
        self._open: OrderedDict[int, Inode] = OrderedDict()
        self._open_most = open_most or min(OPEN_MOST, max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._quarantine = root.parent / 'quarantine'
        if create:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._prefix = str(root)
        #: bytes that staging files occupy which wait for their upload; holes do not count
        self.used = 0
        #: the same for files that stay on this host: only the disk bounds them
        self.kept = 0

    def path(self, ino: int) -> str:
        return f'{self._prefix}/{ino // PER_DIRECTORY:x}/{ino}'

    def create(self, ino: int) -> int:
        """A new empty file, open for reading and writing, in place of a leftover of a change that was never acknowledged. The leftover
        is unlinked, never truncated: the block cache may share its bytes by a hard link."""
        path, flags = self.path(ino), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            self.make_directory(ino)
        except FileExistsError:
            os.unlink(path)
        return os.open(path, flags, 0o600)

    def make_directory(self, ino: int) -> None:
        """The directory that the inode's file belongs in (one that becomes empty is kept)."""
        os.makedirs(os.path.dirname(self.path(ino)), 0o700, exist_ok=True)

    def open(self, ino: int) -> int:
        try:
            return os.open(self.path(ino), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise Corrupted(f'the staging file of inode {ino} is missing') from error

    def opened(self, inode: Inode, fd: int) -> int:
        """`fd` is the inode's descriptor from now on, until it is closed, or others were used since: `inode.staging_fd` says -1 then."""
        inode.staging_fd = fd
        self._open[inode.ino] = inode
        self._open.move_to_end(inode.ino)
        while len(self._open) > self._open_most:
            _, other = self._open.popitem(last=False)
            if other.staging_fd >= 0:
                os.close(other.staging_fd)
                other.staging_fd = -1
        return fd

    def charge(self, inode: Inode, written: int = 0) -> None:
        """Count what the inode's staging file occupies: exactly, or with `written` bytes more as an estimate until the next exact count."""
        if written and inode.charged >= 0:
            inode.charged += written
            self._count(inode.local, written)
            return
        found = os.fstat(inode.staging_fd) if inode.staging_fd >= 0 else os.stat(self.path(inode.ino))
        self._count(inode.local, found.st_blocks * 512 - max(inode.charged, 0))
        inode.charged = found.st_blocks * 512

    def _count(self, local: int, size: int) -> None:
        if local:
            self.kept += size
        else:
            self.used += size

    def change_owner(self, inode: Inode, local: int) -> None:
        """`inode.local` is about to become `local`: its bytes count there."""
        if local != inode.local:
            self.note_loaded(inode)
            self._count(inode.local, -inode.charged)
            self._count(local, inode.charged)

    def note_loaded(self, inode: Inode) -> None:
        """The staging file was counted when the inode was in memory before: do not count it twice."""
        if inode.charged < 0:
            inode.charged = os.stat(self.path(inode.ino)).st_blocks * 512

    def discard(self, inode: Inode) -> None:
        """The inode needs no staging file any more: close it, give its bytes back, remove it."""
        if inode.staging_fd >= 0:
            os.close(inode.staging_fd)
            inode.staging_fd = -1
        path = self.path(inode.ino)
        try:
            self._count(inode.local, -(inode.charged if inode.charged >= 0 else os.stat(path).st_blocks * 512))
            inode.charged = -1
            os.unlink(path)
        except FileNotFoundError:
            return  # a crash between the commit and the unlink already got this far

    def remove(self, ino: int) -> None:
        """Remove a file that was never counted."""
        try:
            os.unlink(self.path(ino))
        except FileNotFoundError:
            return

    def sync_directory(self, ino: int) -> None:
        """Make the file's own name durable (its bytes are the caller's fsync)."""
        fd = os.open(os.path.dirname(self.path(ino)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def inos(self) -> Iterator[tuple[int, int, int]]:
        """(inode, size, bytes occupied) of every staging file."""
        for directory in self._directories():
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name.isdigit():
                        found = entry.stat()
                        yield int(entry.name), found.st_size, found.st_blocks * 512

    def _directories(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return [entry.path for entry in os.scandir(self._prefix) if entry.is_dir(follow_symlinks=False)]

    def leftovers(self) -> list[str]:
        """Half-written hydrations and copies: files with a suffix."""
        return [entry.path for directory in self._directories() for entry in os.scandir(directory) if not entry.name.isdigit()]

    @contextmanager
    def without_leftovers(self, ino: int) -> Iterator[None]:
        """Around what makes the inode's file in the end, whoever died of it on the way: nothing half made stays. (A millisecond.)"""
        try:
            yield
        finally:
            directory = os.path.dirname(self.path(ino))
            for name in os.listdir(directory):
                if name.startswith(f'{ino}.hydrate-'):
                    os.unlink(f'{directory}/{name}')

    def remove_leftovers(self) -> None:
        for path in self.leftovers():
            os.unlink(path)

    def quarantine(self, ino: int) -> Path:
        """Set a file without an owner aside, under a name of its own; returns where."""
        self._quarantine.mkdir(exist_ok=True, mode=0o700)
        number = 0
        while (target := self._quarantine / f'{ino}.{number}').exists():
            number += 1
        os.rename(self.path(ino), target)
        return target
