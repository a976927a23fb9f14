"""The bytes of regular files: reading, writing, truncating, making durable.

Owns the transitions of `Inode.content` that a program causes (see storage/inode.py) and the staging descriptors. It must not know
names, FUSE or schedules. Where clean bytes come from is block_reader.py's.

INVARIANT: the row says STAGED before the first changed byte is in the staging file, and an upload in flight is told to abort before
it. So whatever a crash leaves, a file that differs from its object is known to differ, and no upload commits a mixture.

fsync, in this order: the bytes and the name of the staging file, then the row that says so (storage/hardened.py), then the log of the tree
database. So a row that survives a power cut is true.
"""
from __future__ import annotations

import errno
import os
import time
from weakref import WeakValueDictionary

import trio

from ctxfs.core.block_reader import BlockReader, ReadAhead
from ctxfs.core.ports import RemoteContent, Room
from ctxfs.crash_points import crash_point
from ctxfs.errors import Corrupted, ReadOnly, RemoteChanged
from ctxfs.storage.hardened import HardenedFiles
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_db import TreeDB

#: how often the space of a growing staging file is looked up instead of estimated
RECOUNT_BYTES = 8 << 20


class Contents:
    """See the module docstring. Raises ctxfs.errors, and OSError where the disk of the state directory refuses."""

    def __init__(self, db: TreeDB, journal: Journal, staging: Staging, *, blocks: BlockReader, remote: RemoteContent,
                 room: Room) -> None:
        self._db = db
        self._journal = journal
        self._staging = staging
        self._blocks = blocks
        self._remote = remote
        self._room = room
        self._hardened = HardenedFiles(db)
        #: one per inode while anybody changes its content state
        self._locks: WeakValueDictionary[int, trio.Lock] = WeakValueDictionary()

    # --- reading ------------------------------------------------------------------------------------------------------------------

    async def read(self, inode: Inode, offset: int, *, size: int, ahead: ReadAhead) -> bytes | memoryview:
        """Up to `size` bytes at `offset`; short only at the end of the file."""
        if inode.has_staging:
            return os.pread(self._descriptor(inode), size, offset)
        if offset >= inode.size:
            return b''
        version = inode.remote_version
        while True:
            source = self._journal.source_of(inode)
            if source is None:
                raise RemoteChanged(f'inode {inode.ino} has no object with its content')
            try:
                return await self._blocks.read(source, offset, size=min(size, inode.size - offset), ahead=ahead)
            except RemoteChanged:
                if not await self._has_other_source(inode, source.etag, version):
                    raise
            if inode.has_staging:   # a writer came while we fetched
                return os.pread(self._descriptor(inode), size, offset)  # type: ignore[unreachable]

    async def _has_other_source(self, inode: Inode, etag: str, version: int) -> bool:
        """After a 412 or 404: our own rename moved the object (read it there), or another host changed it (this handle is stale)."""
        source = self._journal.source_of(inode)
        if source is not None and source.etag == etag:
            await self._remote_refresh(inode)
            source = self._journal.source_of(inode)
        return inode.remote_version == version and (inode.has_staging or (source is not None and source.etag != etag))

    async def _remote_refresh(self, inode: Inode) -> None:
        await self._blocks.refresh(inode)

    def _descriptor(self, inode: Inode) -> int:
        if inode.staging_fd < 0:
            self._staging.opened(inode, self._staging.open(inode.ino))
            self._staging.note_loaded(inode)
        return inode.staging_fd

    # --- writing ------------------------------------------------------------------------------------------------------------------

    async def write(self, inode: Inode, offset: int, data: bytes) -> int:
        """Write all of `data`; returns its length."""
        # Making room runs a flush, which may seal this very file: nothing may be waited for after the last look at its state.
        has_room = False
        while inode.content != Content.STAGED or inode.hold is not None or not (
                has_room or self._room.has_room(len(data), inode.charged)):
            if inode.hold is not None:
                await inode.hold.wait()
            elif inode.content != Content.STAGED:
                await self._stage(inode, keep=True)
            else:
                await self._room.make_room(len(data), inode.charged)
                has_room = True
        fd = self._about_to_change(inode)
        view, position = memoryview(data), offset
        try:
            while view:
                written = os.pwrite(fd, view, position)
                view, position = view[written:], position + written
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._staging.removed:
                raise
        finally:
            inode.size = max(inode.size, position)
            self._count(inode, position - offset)
        crash_point('write-after-bytes')
        if view:    # the disk is full, and has bytes that nobody wants
            await self._unlink_removed()
            return len(data) - len(view) + await self.write(inode, position, bytes(view))
        return len(data)

    async def _unlink_removed(self) -> None:
        """Now, and not when the next look comes to it."""
        removed = list(self._staging.removed)
        await trio.to_thread.run_sync(self._db.make_durable)
        self._staging.unlink_removed(removed)

    def _count(self, inode: Inode, written: int) -> None:
        """Keep the count of dirty bytes: an estimate for most writes, the truth every RECOUNT_BYTES."""
        recount = inode.charged < 0 or (inode.charged + written) // RECOUNT_BYTES != inode.charged // RECOUNT_BYTES
        self._staging.charge(inode, 0 if recount else written)

    def _about_to_change(self, inode: Inode) -> int:
        """The staging file is about to change: stop an upload that reads it, invalidate what was planned. Returns the descriptor."""
        assert inode.content == Content.STAGED and inode.hold is None
        if self._db.damage:
            raise ReadOnly(f'{self._db.damage}; nothing is changed any more')
        fd = self._descriptor(inode)
        inode.changed_at = trio.current_time()
        self._staging.unhardened.add(inode.ino)
        if inode.upload is not None:
            inode.upload.abort()
        if inode.is_planned and inode.nlink:
            self._journal.mark(inode, Reason.CONTENT)
        inode.revision += 1
        return fd

    async def truncate(self, inode: Inode, size: int) -> None:
        """Cut or extend with zeros (a hole), and set the times in memory: the caller writes the row. The size that it has already changes
        nothing, not even the times (as on ext4, and as the kernel believes)."""
        if size == inode.size:
            return
        while inode.content != Content.STAGED or inode.hold is not None:
            if inode.hold is not None:
                await inode.hold.wait()
            else:
                await self._stage(inode, keep=size > 0)
        fd = self._about_to_change(inode)
        crash_point('truncate-before-bytes')
        os.ftruncate(fd, size)
        crash_point('truncate-after-bytes')
        self._staging.charge(inode)
        inode.size = size
        inode.mtime_ns = inode.ctime_ns = time.time_ns()
        self._close_if_unused(inode)

    async def stage(self, inode: Inode) -> None:
        """Make the staging file the truth, holding the content as it is now, because the file is to stay on this host: the bound on dirty
        bytes does not count it, and waiting for an upload here would wait for the upload that asks."""
        await self._stage(inode, keep=True, needs_room=False)

    async def _stage(self, inode: Inode, *, keep: bool, needs_room: bool = True) -> None:
        """Make the staging file the truth; with `keep`, holding the content as it is now."""
        lock = self._locks.get(inode.ino)
        if lock is None:
            lock = self._locks[inode.ino] = trio.Lock()
        async with lock:
            while inode.content != Content.STAGED:
                if inode.adoption is not None:
                    await inode.adoption.wait()
                elif inode.content == Content.SEALED:
                    self._turn_staged(inode)
                elif keep and inode.size:
                    await self._hydrate(inode, needs_room=needs_room)
                else:
                    self._start_empty(inode)

    def _start_empty(self, inode: Inode) -> None:
        self._staging.opened(inode, self._staging.create(inode.ino))
        inode.charged = 0
        try:
            self._turn_staged(inode, size=0)
        except BaseException:
            self._staging.discard(inode)
            raise

    async def _hydrate(self, inode: Inode, *, needs_room: bool) -> None:
        """Bring the clean content into the staging file; turns the row only if nothing changed while it was on its way."""
        source, revision, version = self._journal.source_of(inode), inode.revision, inode.remote_version
        if source is None:
            raise RemoteChanged(f'inode {inode.ino} has no object with its content')
        if needs_room and not self._room.has_room(inode.size, 0):
            await self._room.make_room(inode.size, 0)
        self._staging.make_directory(inode.ino)
        try:
            with self._staging.without_leftovers(inode.ino):
                await self._remote.hydrate(source, self._staging.path(inode.ino))
        except RemoteChanged:
            if not await self._has_other_source(inode, source.etag, version):
                raise
            return
        if inode.content == Content.CLEAN and inode.revision == revision:
            self._turn_staged(inode)
            inode.charged = 0
            self._staging.charge(inode)

    def _turn_staged(self, inode: Inode, size: int | None = None) -> None:
        """The transaction that makes the row STAGED; `size`: the staging file's, where it differs from the row's."""
        before = inode.content, inode.revision, inode.size, inode.link_group
        inode.content = Content.STAGED
        inode.revision += 1
        inode.turns += 1
        self._staging.unhardened.add(inode.ino)
        if size is not None:
            inode.size = size
        crash_point('dirty-before-commit')
        try:
            with self._db.transaction():
                self._db.store_content(inode)
                self._hardened.forget(inode.ino)
                if inode.link_group is not None:
                    self._db.renew_link_group(inode)
                if inode.nlink:
                    self._journal.mark(inode, Reason.CONTENT)
        except BaseException:
            inode.content, inode.revision, inode.size, inode.link_group = before
            raise
        crash_point('dirty-after-commit')

    # --- handles ------------------------------------------------------------------------------------------------------------------

    def opened(self, inode: Inode, *, writes: bool = False) -> None:
        inode.handles += 1
        inode.writers += writes

    def created(self, inode: Inode, *, writes: bool) -> None:
        """A new file and its first handle: its bytes are about to come."""
        inode.changed_at = trio.current_time()
        self.opened(inode, writes=writes)

    def released(self, inode: Inode, *, writes: bool = False) -> None:
        """One handle fewer; at the last one the row learns the size that the staging file has."""
        inode.handles -= 1
        inode.writers -= writes
        if inode.handles == 0:
            if inode.content == Content.STAGED and inode.staging_fd >= 0:
                self._staging.charge(inode)
            self._close_if_unused(inode)

    def _close_if_unused(self, inode: Inode) -> None:
        if inode.handles == 0 and inode.staging_fd >= 0:
            os.close(inode.staging_fd)
            inode.staging_fd = -1

    def blocks_512(self, inode: Inode) -> int:
        """st_blocks: what the staging file really occupies (holes do not), else the size rounded up."""
        if inode.content != Content.STAGED:
            return (inode.size + 511) // 512
        if inode.blocks[0] != inode.revision:
            found = os.fstat(inode.staging_fd) if inode.staging_fd >= 0 else os.stat(self._staging.path(inode.ino))
            inode.blocks = (inode.revision, found.st_blocks)
        return inode.blocks[1]

    async def fsync(self, inode: Inode) -> None:
        """Bytes, size and names of the file survive a power cut when this returns."""
        while inode.content == Content.STAGED and not await self._harden(inode):
            continue
        await trio.to_thread.run_sync(self._db.make_durable)

    async def _harden(self, inode: Inode) -> bool:
        """False: meanwhile it was uploaded, and perhaps changed again."""
        revision, turns = inode.revision, inode.turns
        measured = await trio.to_thread.run_sync(self._staging.harden, (inode.ino,))
        if inode.content != Content.STAGED or inode.turns != turns:
            return False
        if inode.ino not in measured:
            raise Corrupted(f'the staging file of inode {inode.ino} is missing')
        crash_point('fsync-after-bytes')
        with self._db.transaction():
            self._db.store_content(inode)
            self._hardened.note(inode.ino, measured[inode.ino])
        if inode.revision == revision:
            self._staging.unhardened.discard(inode.ino)
        return True
