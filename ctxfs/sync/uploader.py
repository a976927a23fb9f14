"""Uploading one inode: carries out a planned Work, key by key, and records each success in one transaction.

Owns the requests for an inode and the moment its state turns (STAGED to SEALED, object rows, journal). It must not know which inodes are
due, in what order, or what a failure means for the schedule.

Crash points: after a PUT and before its transaction the bucket is ahead of the journal; the next attempt's condition then fails, the
worker recognises our own stamp on the object and reports success (`is_recovered`), so nothing is uploaded twice or taken for a conflict.
Of a copy made by `run_as_it_is` a crash leaves a file with a suffix in staging, which recovery removes.
"""
from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

import trio

from ctxfs.crash_points import crash_point
from ctxfs.errors import NoSpace, NotFound, RemoteChanged
from ctxfs.records import Attrs
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.members import is_member
from ctxfs.storage.object_store import Condition
from ctxfs.storage.snapshot import copy_file, copy_of
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.abort_slots import AbortSlot
from ctxfs.sync.attributes import get_attrs
from ctxfs.sync.doubt import Doubt
from ctxfs.sync.guarded import GuardedPool
from ctxfs.sync.planner import Planner, Work
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.protocol import NO_SLOT, Copy, Head, PutBytes, PutDone, PutFile
from ctxfs.sync.recycle import Recycler

log = logging.getLogger(__name__)

DIRECTORY_TYPE = 'application/x-directory'     # what s3fs gives its directory markers


class Moved(Exception):
    """The inode changed while it was being uploaded; nothing is wrong, it is planned again."""


class TargetConflict(Exception):
    """The bucket holds another version at the key than we started from."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class SourceLost(Exception):
    """The object that carried the clean content is another version by now, or gone."""

    def __init__(self, known: Known) -> None:
        super().__init__(known.key)
        self.known = known


class NoSpaceToCopy(NoSpace):
    """Space may become free: tried again."""
    transient = True


class _State(NamedTuple):
    """What one upload sends: the bytes in `path`, and what belongs to them at that instant (Unix ns)."""
    path: str
    revision: int
    attrs: Attrs
    link: str
    taken_ns: int


def _state_of(inode: Inode, path: str) -> _State:
    return _State(path, inode.revision, get_attrs(inode), inode.link_group or '', time.time_ns())


def _member(known: Known | None) -> str:
    """What an object that takes the place of a member says of it."""
    return known.etag if known is not None and is_member(known.etag) else ''


class Uploader:
    """See the module docstring."""

    def __init__(self, db: TreeDB, journal: Journal, staging: Staging, pool: TransferPool | GuardedPool, *, planner: Planner, doubt: Doubt,
                 recycler: Recycler, prefix: str, displaced: Callable[[str], object] = lambda key: None) -> None:
        """`displaced`: an object took the place of the member at that key; called in the transaction that records it."""
        self._db = db
        self._journal = journal
        self._staging = staging
        self._pool = pool
        self._planner = planner
        self._doubt = doubt
        self._recycler = recycler
        self._prefix = prefix
        self._displaced = displaced

    async def run(self, work: Work, progress: Callable[[int], None]) -> None:
        """Make the bucket hold the inode under all its keys. Raises Moved, TargetConflict, SourceLost, and ctxfs.errors."""
        inode, is_done = work.inode, False
        for number, key in enumerate(work.missing, 1):
            if inode.revision != work.revision or not inode.nlink:
                raise Moved
            done = await self._write(inode, key, progress)
            crash_point('upload-before-record')
            with self._db.transaction():
                self._record(inode, key, work.revision, done)
                is_done = number == len(work.missing) and self.finish(work)
            crash_point('upload-after-record')
        if not work.missing:
            with self._db.transaction():
                is_done = self.finish(work)
        if not is_done:
            raise Moved

    # --- a small file, sent along with others (together.py) ---------------------------------------------------------------------------

    async def lifecycle_of(self, work: Work) -> str:
        """What the only key that the work misses is to carry."""
        key, = work.missing
        return await self._recycler.lifecycle_for(key, self._planner.condition(key)[1])

    def begin(self, work: Work, lifecycle: str, slots: ExitStack) -> PutFile:
        """Note the attempt in the open transaction; what is to be sent. The slot is let go when `slots` is left. Raises Moved, OSError."""
        inode, (key,) = work.inode, work.missing
        if inode.revision != work.revision or not inode.nlink or not inode.has_staging:
            raise Moved
        condition, known = self._planner.condition(key)
        slot = self._pool.slots.acquire()
        slots.callback(self._let_go, inode, slot)
        inode.upload = slot
        return self._file(inode, key, _state_of(inode, self._staging.path(inode.ino)), condition=condition, known=known, lifecycle=lifecycle,
                          slot=slot.index)

    @staticmethod
    def _let_go(inode: Inode, slot: AbortSlot) -> None:
        inode.upload = None
        slot.release()

    def end(self, work: Work, done: PutDone) -> bool:
        """Record in the open transaction what became of it. False: it moved meanwhile."""
        key, = work.missing
        if done.is_aborted:
            self._doubt.settle(key)
            return False
        self._record(work.inode, key, work.revision, done)
        return self.finish(work)

    # --- what each upload does -----------------------------------------------------------------------------------------------------------

    def finish(self, work: Work, reason: int = Reason.INDEX) -> bool:
        """All keys are in place: the journal's row is for the index now, or gone (reason 0), and other keys are tombstones. False if the inode
        changed."""
        inode = work.inode
        if inode.revision != work.revision or not self._journal.advance(work.row, reason):
            return False
        inode.marked, inode.is_planned = reason, False
        for known in self._journal.objects_of(inode.ino):
            if known.key in work.unwanted:
                self._db.execute('UPDATE object SET doomed = 1 WHERE key = ?', (known.key,))
            elif known.doomed and known.revision == work.revision:      # it had left this name, and came back before the delete
                self._db.execute('UPDATE object SET doomed = 0 WHERE key = ?', (known.key,))
        return True

    async def _write(self, inode: Inode, key: str, progress: Callable[[int], None]) -> PutDone:
        source = None if inode.is_dir or inode.content == Content.STAGED else self._journal.source_of(inode)
        condition, known = self._planner.condition(key)
        try:
            if source is not None:
                return await self._copy(inode, source, key, condition, known)
            if inode.is_regular:
                return await self._put_file(inode, key, condition, known, progress)
            return await self._put_bytes(inode, key, condition, known)
        except RemoteChanged:
            raise TargetConflict(key) from None

    async def _copy(self, inode: Inode, source: Known, key: str, condition: Condition, known: Known | None) -> PutDone:
        lifecycle = await self._recycler.lifecycle_for(key, source)
        if lifecycle == source.lifecycle:
            lifecycle = ''      # it goes along by itself
        try:
            self._doubt.begin_copy(key, inode, source)
            done = await self._pool.call(Copy(source=self._prefix + source.key, key=self._prefix + key, source_etag=source.etag,
                                              size=source.size, condition=condition, sha256=source.sha256, lifecycle=lifecycle,
                                              member=_member(known)))
        except NotFound:
            self._doubt.settle(key)     # nothing arrived: what is there by now is not ours, even if it is the same
            raise SourceLost(source) from None
        except RemoteChanged:
            if await self._is_there(source):
                raise TargetConflict(key) from None
            self._doubt.settle(key)
            raise SourceLost(source) from None
        return PutDone(etag=done.etag, size=done.size, sha256=source.sha256, lifecycle=done.lifecycle if lifecycle else source.lifecycle)

    async def _is_there(self, source: Known) -> bool:
        """Whether the source still is the version we know: then it was the target's condition that failed."""
        item, = await self._pool.call(Head(keys=[self._prefix + source.key]))
        return item.info is not None and item.info.etag == source.etag

    async def _put_file(self, inode: Inode, key: str, condition: Condition, known: Known | None,
                        progress: Callable[[int], None]) -> PutDone:
        if not inode.has_staging:
            raise NotFound('the object that had its content is gone from the bucket')
        lifecycle = await self._recycler.lifecycle_for(key, known)
        slot = self._pool.slots.acquire()
        inode.upload = slot
        try:
            done = await self._send(inode, key, _state_of(inode, self._staging.path(inode.ino)), condition=condition, known=known,
                                    lifecycle=lifecycle, progress=progress, slot=slot.index)
        finally:
            inode.upload = None
            slot.release()
        if done.is_aborted:
            self._doubt.settle(key)
            raise Moved
        return done

    async def _send(self, inode: Inode, key: str, state: _State, *, condition: Condition, known: Known | None, lifecycle: str,
                    progress: Callable[[int], None], slot: int = NO_SLOT) -> PutDone:
        file = self._file(inode, key, state, condition=condition, known=known, lifecycle=lifecycle, slot=slot)
        crash_point('upload-before-send')
        return await self._pool.call(file, progress=progress if file.size > 1 << 20 else None)

    def _file(self, inode: Inode, key: str, state: _State, *, condition: Condition, known: Known | None, lifecycle: str, slot: int) -> PutFile:
        """What is about to be sent; the attempt is noted."""
        size = os.stat(state.path).st_size
        attempt = self._doubt.begin(key, inode, revision=state.revision)
        return PutFile(key=self._prefix + key, path=state.path, size=size, attrs=state.attrs, revision=state.revision, link=state.link,
                       condition=condition, abort_slot=slot, base_sha256=known.sha256 if known is not None else '', lifecycle=lifecycle,
                       attempt=attempt, member=_member(known))

    async def _put_bytes(self, inode: Inode, key: str, condition: Condition, known: Known | None) -> PutDone:
        is_marker = inode.is_dir
        lifecycle = '' if is_marker else await self._recycler.lifecycle_for(key, known)
        attempt = self._doubt.begin(key, inode)
        return await self._pool.call(PutBytes(
            key=self._prefix + key, body=b'' if is_marker else inode.target or b'', attrs=get_attrs(inode), revision=inode.revision,
            link=inode.link_group or '', content_type=DIRECTORY_TYPE if is_marker else None,
            condition=Condition() if is_marker else condition, lifecycle=lifecycle, attempt=attempt, member=_member(known)))

    def _record(self, inode: Inode, key: str, revision: int, done: PutDone) -> None:
        """The bucket holds `revision` at the key now. An inode that lost its last name meanwhile leaves a tombstone."""
        self._doubt.settle(key)
        before = self._journal.known(key)
        if before is not None and is_member(before.etag):
            self._displaced(key)
        self._journal.put_object(Known(key, done.etag, done.size, inode.ino, revision, done.sha256, 0 if inode.nlink else 1, done.lifecycle,
                                       before.uploaded_ns if before is not None and done.is_skipped else time.time_ns()))
        if inode.nlink and inode.content == Content.STAGED:
            if inode.revision == revision:
                inode.content, inode.size = Content.SEALED, done.size
            self._db.store_content(inode)

    # --- a file that does not hold still ----------------------------------------------------------------------------------------------

    async def run_as_it_is(self, inode: Inode, progress: Callable[[int], None]) -> None:
        """Upload a staged file as it is at one instant: writers wait while it is copied, then go on, and the copy is uploaded. What they
        write stays pending. Raises Moved when its names changed meanwhile, and what `run` raises."""
        work = self._plan_again(inode)
        with copy_of(self._staging.path(inode.ino)) as path:
            state = _state_of(inode, path)
            await self.freeze(inode, path)
            for number, key in enumerate(work.missing, 1):
                done = await self._send_frozen(inode, key, state, progress)
                crash_point('upload-before-record')
                with self._db.transaction():
                    self._record(inode, key, state.revision, done)
                    if number == len(work.missing) and not self.finish(work):
                        self._journal.sent_as_of(inode.ino, state.taken_ns)
                crash_point('upload-after-record')

    def _plan_again(self, inode: Inode) -> Work:
        """The work as of this instant: nothing may lie between the plan and the copy."""
        row = self._journal.pending_row(inode.ino)
        if row is None or not inode.nlink or inode.content != Content.STAGED:
            raise Moved
        work = self._planner.plan(row, inode)
        if work.error is not None or work.blocked_by or work.is_retiring or work.needs_bytes or not work.missing:
            raise Moved
        return work

    def staging_path(self, inode: Inode) -> str:
        return self._staging.path(inode.ino)

    async def freeze(self, inode: Inode, path: str) -> tuple[int, int]:
        """Make `path` a copy of the staging file; which revision that is, and of what time (Unix ns). The kernel copies in a thread: a large file
        must not hold up the mount, only its writers."""
        revision, taken_ns, ended = inode.revision, time.time_ns(), trio.Event()
        fd = os.open(self._staging.path(inode.ino), os.O_RDONLY | os.O_CLOEXEC)
        inode.hold = ended
        try:
            await trio.to_thread.run_sync(copy_file, fd, path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NoSpaceToCopy(f'no space to copy a file that is being written: {error.strerror}') from None
        finally:
            inode.hold = None
            ended.set()
            os.close(fd)
        return revision, taken_ns

    async def _send_frozen(self, inode: Inode, key: str, state: _State, progress: Callable[[int], None]) -> PutDone:
        condition, known = self._planner.condition(key)
        lifecycle = await self._recycler.lifecycle_for(key, known)
        if not inode.nlink or key not in self._db.keys_of(inode):
            raise Moved     # the name may be another file's by now
        try:
            return await self._send(inode, key, state, condition=condition, known=known, lifecycle=lifecycle, progress=progress)
        except RemoteChanged:
            raise TargetConflict(key) from None
