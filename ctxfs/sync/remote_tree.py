"""The remote tree: bringing names and attributes of the context into the tree database, as a whole in the background and sooner
where a program looks.

Owns the first listing, the listings and HEADs under way, and what is known to be listed. It must not know what a listed object means
(reconcile.py), how later changes are found (remote_changes.py), nor FUSE. It implements core's RemoteTree; all its waits are bounded by
`answer_seconds` and then raise what the store said last.

Where the mount before this one listed the whole less than LIST_SECONDS ago, `run` goes on from there as a mount that was never ended: the index says
what other hosts did since, and other tools' doings are found by the next whole listing, when it is due.

A mount starts `run`: the index first (attributes for all without a HEAD each), then the listing, 1,000 names a request. A directory that is asked for
before waits GRACE_SECONDS for the whole, which is enough for most contexts; one below the root EARLY_SECONDS for the index, which tells whether the
listing is about to get there. Otherwise it is listed by itself: names at once, while attributes wait until the index is read (of a million files
that takes 10 s, and asking for each is worse). Where an earlier mount had listed the whole, and the store does not answer this one, programs get the
tree as it was known then; what changed since follows.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress

import trio

from ctxfs.config import STORE_TIMEOUT
from ctxfs.errors import CtxfsError, DiskFull, RemoteUnavailable
from ctxfs.records import ROOT_INO
from ctxfs.storage.inode import Content, Inode
from ctxfs.storage.journal import Journal
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.archive_mirror import ArchiveMirror
from ctxfs.sync.archive_view import ArchiveView
from ctxfs.sync.doubt import Doubt
from ctxfs.sync.pool import Priority, TransferPool
from ctxfs.sync.protocol import Head, ListPages
from ctxfs.sync.reconcile import Reconciler
from ctxfs.sync.remote_changes import HEADS, LISTED_OBJECTS, PAGE, RemoteChanges
from ctxfs.sync.remote_index import RemoteIndex

log = logging.getLogger(__name__)

GRACE_SECONDS = 0.25
#: so long after its beginning a mount has the index, unless the context is huge: a directory below the root is not listed by itself before
EARLY_SECONDS = 2.0
#: for a stretch of the listing under way that comes near
NEAR_SECONDS = 1.0
#: with more objects than this in the index the whole is not waited for
MANY = 3 * PAGE
#: how often the whole of a context of more than PAGE objects is listed: what tools do that write no index is seen by nothing else
LIST_SECONDS = 600.0
#: HEADs in one request that nobody waits for
LEARNT = 16
_RETRY_SECONDS = (0.5, 15.0)


class RemoteTreeLoader:
    """See the module docstring."""

    def __init__(self, db: TreeDB, journal: Journal, reconciler: Reconciler, pool: TransferPool, *, doubt: Doubt,
                 prefix: str, below: str = '', answer_seconds: float = 0.75 * STORE_TIMEOUT, mirror: ArchiveMirror | None = None) -> None:
        """`mirror`: of the archive log, where the context is in Archive mode."""
        self._db = db
        self._journal = journal
        self._reconciler = reconciler
        self._pool = pool if mirror is None else ArchiveView(pool, mirror, prefix=prefix)
        self._mirror = mirror
        self._doubt = doubt
        self._prefix = prefix
        self._answer_seconds = answer_seconds
        self.is_complete = self.is_described = reconciler.is_index_read = False
        self.error: CtxfsError | None = None
        #: looks for changes since, and when the last one came to its end (Unix seconds); poller.py counts
        self.polls = 0
        self.last_poll = 0.0
        self.index = RemoteIndex(db, journal, pool, prefix=prefix, below=below)
        self.changes = RemoteChanges(db, journal, reconciler, self._pool, index=self.index, prefix=prefix, mirror=mirror)
        self._complete = trio.Event()
        self._was_complete = bool(db.meta('was_listed'))
        self._ended_cleanly = db.meta('ended_cleanly') == 1
        #: the tree as an earlier mount left it has to do
        self._falls_back = trio.Event()
        self._index_read = trio.Event()
        #: when `run` was, by trio's clock
        self._began = float('-inf')
        self._grace = trio.Event()
        self._listed: set[int] = set()
        self._listing: dict[int, trio.Event] = {}
        self._heading: dict[int, trio.Event] = {}

    # --- the whole, in the background ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until the whole context is in the tree database; retries what is transient for as long as the mount lasts."""
        self._began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_grace)
            await self._until_it_works(self._doubt.resolve)
            if self._is_fresh():
                self.changes.go_on_from()
                await self._until_it_works(self.changes.follow_log)
                await self._until_it_works(self.changes.read_new_segments)
                self._note_index()
            else:
                await self._until_it_works(lambda: self.changes.read_index(self._note_count, is_listed_next=True))
                self._note_index()
                await self._until_it_works(self.changes.list_all_at_once)
                await self.changes.agree_with_archives()
                await self._until_it_works(lambda: self.changes.finish(listed=''))
            nursery.cancel_scope.cancel()
        self._finish()

    def _is_fresh(self) -> bool:
        """Whether the tree is what a mount has that went on until now: listed not long ago, of a context that is not listed at every look, and left
        in good order."""
        is_recent = time.time() - self.changes.listed_at() < LIST_SECONDS
        return self._was_complete and self._ended_cleanly and is_recent and int(self._db.meta(LISTED_OBJECTS) or 0) > PAGE

    def _failed(self, error: CtxfsError) -> None:
        self.error = error
        if self._was_complete:
            self._reconciler.directories.is_live = True
            self._falls_back.set()
            self._describe_now()

    def _note_index(self) -> None:
        self._reconciler.is_index_read = True
        self._describe_now()

    def _note_count(self, count: int) -> None:
        if count > MANY:
            self._grace.set()

    def _describe_now(self) -> None:
        """What the tree does not have is asked for, each by itself."""
        self.is_described = True
        self._index_read.set()

    async def _end_grace(self) -> None:
        await trio.sleep(GRACE_SECONDS)
        self._grace.set()

    async def _until_it_works(self, step) -> None:  # type: ignore[no-untyped-def]
        delay, longest = _RETRY_SECONDS
        while True:
            try:
                await step()
                self.error = None
                return
            except CtxfsError as error:
                log.warning('cannot read the context yet: %s', error)
                self._failed(error)
                self._grace.set()
            await trio.sleep(delay)
            delay = min(longest, delay * 2)

    def _finish(self) -> None:
        self._reconciler.directories.is_live = True
        self.is_complete = True
        self._listed.clear()
        self._grace.set()
        self._complete.set()
        with suppress(DiskFull):
            self._db.set_meta('was_listed', 1)
        log.info('the context has %d objects', self.listed_objects)

    @property
    def listed_objects(self) -> int:
        return self.changes.listed_objects

    async def reload(self, prefix: str = '') -> None:
        """Once more: read the index, list what is at and below the key `prefix` (everything when ''), apply what changed. Raises what the
        store says. To be called while nothing is uploaded."""
        await self._complete.wait()
        await self.changes.reload(prefix)

    def end(self) -> None:
        """The mount is over. Where its state cannot be written any more, it did not end in good order either."""
        with suppress(CtxfsError):
            self.changes.end()

    def look_again_at(self, key: str) -> None:
        """The next look for changes includes this key."""
        self._reconciler.obstructed.add(key)

    async def wait_complete(self) -> None:
        await self._complete.wait()

    # --- sooner, where somebody looks ---------------------------------------------------------------------------------------------

    async def ensure_listed(self, directory: Inode) -> None:
        """See core.ports.RemoteTree."""
        if self._is_known(directory):
            return
        with trio.move_on_after(self._answer_seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_when, self._complete, nursery.cancel_scope)
                nursery.start_soon(self._cancel_when, self._falls_back, nursery.cancel_scope)
                await self._grace.wait()
                if self._mirror is not None:
                    await self._index_read.wait()       # names of members are in the archive log, which is read with it
                elif directory.ino != ROOT_INO:
                    with trio.move_on_at(self._began + EARLY_SECONDS):
                        await self._index_read.wait()
                with trio.move_on_after(NEAR_SECONDS):
                    await self._wait_for_listing(directory)
                await self._list_one(directory)
                nursery.cancel_scope.cancel()
        if not self._is_known(directory):
            raise self._unavailable()

    def _is_known(self, directory: Inode) -> bool:
        return self.is_complete or directory.ino in self._listed or self._falls_back.is_set()

    @staticmethod
    async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
        await event.wait()
        scope.cancel()

    async def _wait_for_listing(self, directory: Inode) -> None:
        """While the whole listing comes near: then it costs no request of its own."""
        while directory.ino not in self._listed:
            key = self._db.dir_key(directory.ino)
            if self.changes.parts.has_passed(key):
                self._listed.add(directory.ino)
            elif not self.changes.parts.comes_soon(key):
                return
            else:
                await self.changes.parts.progress.wait()

    async def _list_one(self, directory: Inode) -> None:
        """One LIST of the directory's own level, however many wait for it."""
        while directory.ino not in self._listed:
            under_way = self._listing.get(directory.ino)
            if under_way is not None:
                await under_way.wait()
                continue
            self._listing[directory.ino] = trio.Event()
            try:
                await self._list_level(directory)
            except CtxfsError as error:
                log.warning('cannot list a directory yet: %s', error)
                self._failed(error)
                await trio.sleep(_RETRY_SECONDS[0])
            finally:
                self._listing.pop(directory.ino).set()

    async def _list_level(self, directory: Inode) -> None:
        key = self._db.dir_key(directory.ino)
        async with self._pool.stream(ListPages(prefix=self._prefix + key, delimiter='/'), priority=Priority.INTERACTIVE) as pages:
            async for page in pages:
                objects = [relative for info in page.objects if (relative := self.changes.relative(info)).key != '']
                prefixes = [prefix[len(self._prefix):] for prefix in page.prefixes]
                self._reconciler.apply_directory(objects, [prefix for prefix in prefixes if not prefix.startswith('.ctxfs/')])
                await trio.lowlevel.checkpoint()
        if self._mirror is not None:
            found = self._mirror.level(key)
            self._mirror.apply_members([info.key for info in found.objects])
            self._reconciler.apply_directory([], found.prefixes)
        if self._db.dir_key(directory.ino) == key:
            self._listed.add(directory.ino)

    async def ensure_subtree(self, directory: Inode) -> None:
        """See core.ports.RemoteTree."""
        with trio.move_on_after(self._answer_seconds):
            await self._complete.wait()
        if not self.is_complete:
            raise self._unavailable()

    def _unavailable(self) -> CtxfsError:
        if self.error is not None:
            return type(self.error)(str(self.error))
        return RemoteUnavailable(f'the context could not be listed within {self._answer_seconds:g} s')

    # --- attributes -----------------------------------------------------------------------------------------------------------------

    async def ensure_attrs(self, inodes: Iterable[Inode]) -> None:
        """See core.ports.RemoteTree."""
        wanted = unknown = [inode for inode in inodes if not inode.attrs_known]
        with trio.move_on_after(self._answer_seconds):
            if not self.is_complete:
                await self._index_read.wait()
                self._reconciler.describe_by_index(unknown)
                wanted = [inode for inode in unknown if not inode.attrs_known and inode.nlink]     # else it became a link of another
            async with trio.open_nursery() as nursery:
                for start in range(0, len(wanted), HEADS):
                    nursery.start_soon(self._head, wanted[start:start + HEADS])
        if any(not inode.attrs_known and inode.nlink for inode in unknown):
            raise self._unavailable()

    async def _head(self, inodes: list[Inode]) -> None:
        """Read the metadata of these objects; those that somebody asks for already are waited for."""
        mine = [inode for inode in inodes if inode.ino not in self._heading]
        others = [self._heading[inode.ino] for inode in inodes if inode.ino in self._heading]
        done = trio.Event()
        self._heading.update((inode.ino, done) for inode in mine)
        try:
            await self._describe(mine)
        except CtxfsError as error:
            log.warning('cannot read attributes: %s', error)
            self.error = error
        finally:
            for inode in mine:
                del self._heading[inode.ino]
            done.set()
        for event in others:
            await event.wait()

    async def _describe(self, inodes: list[Inode]) -> None:
        sources = {}
        for inode in inodes:
            known = self._journal.objects_of(inode.ino)
            if known:
                sources[self._prefix + known[0].key] = inode
            else:
                self._reconciler.describe(inode, None)
        if not sources:
            return
        for item in await self._pool.call(Head(keys=list(sources)), priority=Priority.INTERACTIVE):
            inode = sources[item.key]
            if item.failure is None:
                self._reconciler.describe_by(inode, item, item.key[len(self._prefix):])
            elif item.failure.name == 'NotFound':
                self._reconciler.describe(inode, None)
            else:
                raise item.failure.error()

    async def learn_attrs(self, inos: Sequence[int], *, priority: Priority,
                          hold: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint) -> None:
        """Attributes of those inodes that have none yet, before somebody asks; who asks meanwhile does not wait for this. `hold` waits before
        each request as long as it should not begin. What the bucket refuses, or does not have any more, is left as it is. Raises what may succeed
        another time."""
        wanted = [inode for inode in self._db.inodes_of(list(inos)).values() if not inode.attrs_known and inode.ino not in self._heading]
        for start in range(0, len(wanted), LEARNT):
            sources = {self._prefix + known[0].key: (inode, known[0].etag) for inode in wanted[start:start + LEARNT]
                       if (known := self._journal.objects_of(inode.ino))}
            await hold()
            items = await self._pool.call(Head(keys=list(sources)), priority=priority) if sources else []
            with self._db.transaction():
                for item in items:
                    inode, etag = sources[item.key]
                    # where somebody asked meanwhile, he may have changed them since
                    if item.info is not None and item.info.etag == etag and inode.nlink and not inode.attrs_known:
                        self._reconciler.describe_by(inode, item, item.key[len(self._prefix):])
            for failure in [item.failure.error() for item in items if item.failure is not None]:
                if isinstance(failure, CtxfsError) and failure.transient:
                    raise failure

    async def refresh(self, inode: Inode) -> None:
        """See core.ports.RemoteTree."""
        known = self._journal.source_of(inode)
        if known is None:
            return
        item, = await self._pool.call(Head(keys=[self._prefix + known.key]), priority=Priority.INTERACTIVE)
        current = self._journal.known(known.key)
        if current != known:
            return      # something else moved it on meanwhile
        if item.info is not None and self.changes.growth is not None \
                and await self.changes.growth.follow(inode, known, self.changes.relative(item.info)):
            return
        if self._journal.known(known.key) != known:
            return
        with self._db.transaction():
            if item.info is not None:
                # (a tombstone's key may be somebody else's by now: an upload of ours to it is under way)
                if item.info.etag != known.etag and inode.content == Content.CLEAN and inode.nlink and not known.doomed:
                    fresh = self._reconciler.replace_content(inode, known, self.changes.relative(item.info), None)
                    if fresh is not None:
                        self._reconciler.describe_by(fresh, item, known.key)
            elif item.failure is not None and item.failure.name == 'NotFound':
                self._reconciler.object_gone(known)
