"""Staging: one plain file per inode whose bytes the bucket does not have yet.

Owns the paths, the creation and removal of staging files, and the count of their bytes. It must not know names, keys or states: the
tree database says which inode is staged, and its row turns staged BEFORE the first byte lands here.

INVARIANT: a staging file that no row calls staged or sealed is garbage (the change was never acknowledged, or is already in the bucket).
What is found here while the tree database was lost has no owner and goes to `quarantine/`, never away, and so does what a power cut left of
a file that the bucket has a whole version of. Beside each such file is a NAME.json that says whose bytes they are.

Durability: `unhardened` has the inodes whose bytes may be in the kernel's memory only. A file that was hardened and whose inode is removed
stays until the removal itself is durable: a power cut that undoes the removal must find the bytes that were promised.
"""
from __future__ import annotations

import json
import os
import resource
import stat
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ctxfs.config import private_dir
from ctxfs.errors import Corrupted
from ctxfs.storage.durability import Measure, measure, sync_directory, sync_file_system
from ctxfs.storage.inode import Inode

#: inode numbers per directory: files made together lie together. Spread over 256 directories instead, a creation took 1.1 ms here,
#: because ext4 gives each directory a block group of its own and so each new file another inode table to read.
PER_DIRECTORY = 4096
#: more files than this are made durable by one commit of their file system
FSYNCS = 16
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
        self.quarantine_dir = root.parent / 'quarantine'
        if create:
            private_dir(root)
        self._prefix = str(root)
        #: bytes that staging files occupy which wait for their upload; holes do not count
        self.used = 0
        #: the same for files that stay on this host: only the disk bounds them
        self.kept = 0
        #: inodes whose staging file was changed since it was last hardened
        self.unhardened: set[int] = set()
        #: hardened files of inodes that are removed: to be unlinked once that is durable
        self.removed: list[int] = []
        #: directories whose own name may not be durable
        self._new_directories: set[str] = set()

    def path(self, ino: int) -> str:
        return f'{self._prefix}/{ino // PER_DIRECTORY:x}/{ino}'

    def create(self, ino: int) -> int:
        """A new empty file, open for reading and writing, in place of a leftover of a change that was never acknowledged. The leftover
        is unlinked, never truncated: the block cache may share its bytes by a hard link."""
        path, flags = self.path(ino), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.unhardened.add(ino)
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            self.make_directory(ino)
        except FileExistsError:
            os.unlink(path)
        return os.open(path, flags, 0o600)

    def make_directory(self, ino: int) -> None:
        """The directory that the inode's file belongs in (one that becomes empty is kept)."""
        directory = os.path.dirname(self.path(ino))
        if not os.path.isdir(directory):
            os.makedirs(directory, 0o700, exist_ok=True)
            self._new_directories.add(directory)

    def open_directory(self, ino: int) -> int:
        """A descriptor of the directory that the inode's file belongs in."""
        self.make_directory(ino)
        return os.open(os.path.dirname(self.path(ino)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def adopt(self, inode: Inode, *, blocks: int) -> None:
        """Somebody made this inode's file where it belongs, of so many blocks of 512 bytes."""
        self.unhardened.add(inode.ino)
        inode.charged = blocks * 512
        inode.blocks = (inode.revision, blocks)
        self._count(inode.local, inode.charged)

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

    def discard(self, inode: Inode, *, is_hardened: bool = False) -> None:
        """The inode needs no staging file any more: close it, give its bytes back, remove it; with `is_hardened`, when `unlink_removed` is
        called."""
        self.unhardened.discard(inode.ino)
        if inode.staging_fd >= 0:
            os.close(inode.staging_fd)
            inode.staging_fd = -1
        path = self.path(inode.ino)
        try:
            self._count(inode.local, -(inode.charged if inode.charged >= 0 else os.stat(path).st_blocks * 512))
            inode.charged = -1
            if is_hardened:
                self.removed.append(inode.ino)
            else:
                os.unlink(path)
        except FileNotFoundError:
            return  # a crash between the commit and the unlink already got this far

    def remove(self, ino: int) -> None:
        """Remove a file that was never counted."""
        self.unhardened.discard(ino)
        try:
            os.unlink(self.path(ino))
        except FileNotFoundError:
            return

    def unlink_removed(self, inos: Collection[int]) -> None:
        """That these (of `removed`) are gone is durable now."""
        for ino in inos:
            self.remove(ino)
        gone = set(inos)
        self.removed = [ino for ino in self.removed if ino not in gone]

    def harden(self, inos: Collection[int]) -> dict[int, Measure]:
        """Make the bytes and names of these files durable. Blocks: call it from a thread. Returns what each was like just before; a file that
        was discarded meanwhile is left out."""
        measured: dict[int, Measure] = {}
        for ino in inos:
            try:
                fd = os.open(self.path(ino), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                measured[ino] = measure(fd)
                if len(inos) <= FSYNCS:
                    os.fsync(fd)
            finally:
                os.close(fd)
        if len(inos) <= FSYNCS:
            self._sync_directories({os.path.dirname(self.path(ino)) for ino in measured})
        else:
            sync_file_system(self._prefix)
        return measured

    def _sync_directories(self, directories: set[str]) -> None:
        for directory in directories:
            sync_directory(directory)
        if new := directories & self._new_directories:
            sync_directory(self._prefix)
            self._new_directories -= new

    # --- what is there at the start ---------------------------------------------------------------------------------------------------

    def inos(self) -> Iterator[tuple[int, int, int]]:
        """(inode, size, bytes occupied) of every staging file. What others may read, by an earlier mistake, they may not any more."""
        for directory in self._directories():
            private_dir(Path(directory))
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name.isdigit():
                        found = entry.stat()
                        if stat.S_IMODE(found.st_mode) & 0o077:
                            os.chmod(entry.path, 0o600)
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

    def quarantine(self, ino: int, *, path: str = '', reason: str = '') -> Path:
        """Set a file without an owner aside, under a name of its own; returns where. `path` on the mount and `reason` are noted beside it."""
        private_dir(self.quarantine_dir)
        self.unhardened.discard(ino)
        number = 0
        while (target := self.quarantine_dir / f'{ino}.{number}').exists():
            number += 1
        os.rename(self.path(ino), target)
        note = {'path': path, 'reason': reason, 'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}
        with suppress(OSError):     # the bytes are what counts: a full disk must not keep them from here
            fd = os.open(f'{target}.json', os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, 'w', encoding='utf-8') as file:
                file.write(json.dumps(note) + '\n')
        return target

    def quarantined(self) -> tuple[int, int]:
        """(files, bytes) that are set aside, by this mount and by earlier ones."""
        try:
            with os.scandir(self.quarantine_dir) as entries:
                sizes = [entry.stat().st_size for entry in entries if not entry.name.endswith('.json')]
        except FileNotFoundError:
            return 0, 0
        return len(sizes), sum(sizes)
