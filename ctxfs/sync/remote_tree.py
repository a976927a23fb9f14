"""The remote tree: bringing names and attributes of the context into the tree database, as a whole in the background and sooner
where a program looks.

Owns the listings and HEADs under way and what is known to be listed. It must not know what a listed object means (reconcile.py), nor
FUSE. It implements core's RemoteTree; all its waits are bounded by ANSWER_SECONDS and then raise what the store said last.

A mount starts `run`: the index first (attributes for all without a HEAD each), then the listing, 1,000 names a request. A directory
that is asked for before waits GRACE_SECONDS for the whole, which is enough for most contexts, and is then listed by itself.
"""
from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec
import trio

from ctxfs.errors import CtxfsError, RemoteUnavailable
from ctxfs.records import IndexRecord, ListPage, ObjectInfo
from ctxfs.storage.inode import Content, Inode
from ctxfs.storage.journal import Journal
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.doubt import Doubt
from ctxfs.sync.pool import Priority, TransferPool
from ctxfs.sync.protocol import Head, IndexPart, ListPages, ReadIndex
from ctxfs.sync.reconcile import Reconciler

log = logging.getLogger(__name__)

GRACE_SECONDS = 1.0
ANSWER_SECONDS = 45.0
#: objects applied in one go: about 10 ms of the loop
SLICE = 250
#: HEADs in one request to a worker
HEADS = 64
_RETRY_SECONDS = (0.5, 15.0)


class RemoteTreeLoader:
    """See the module docstring."""

    def __init__(self, db: TreeDB, journal: Journal, reconciler: Reconciler, pool: TransferPool, *, doubt: Doubt,
                 prefix: str) -> None:
        self._db = db
        self._journal = journal
        self._reconciler = reconciler
        self._pool = pool
        self._doubt = doubt
        self._prefix = prefix
        self.is_complete = False
        self.error: CtxfsError | None = None
        self.listed_objects = 0
        self.index_segments = 0
        self.is_compaction_due = False
        self._complete = trio.Event()
        self._index_read = trio.Event()
        self._index_names: list[str] = []
        self._grace = trio.Event()
        self._listed: set[int] = set()
        self._listing: dict[int, trio.Event] = {}
        self._heading: dict[int, trio.Event] = {}

    # --- the whole, in the background ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until the whole context is in the tree database; retries what is transient for as long as the mount lasts."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_grace)
            await self._until_it_works(self._doubt.resolve)
            await self._until_it_works(self._read_index)
            self._index_read.set()
            await self._until_it_works(self._list_all)
            nursery.cancel_scope.cancel()
        self._finish()

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
                self.error = error
                self._grace.set()
            await trio.sleep(delay)
            delay = min(longest, delay * 2)

    async def _read_index(self) -> None:
        """Records that no object was listed for yet wait in `hint`; a damaged index object is skipped (slower, never wrong)."""
        seen = msgspec.json.decode(self._db.meta('index_names') or b'[]', type=list[str])
        async with self._pool.stream(ReadIndex(prefix=self._prefix, seen=seen), priority=Priority.INTERACTIVE) as parts:
            async for part in parts:
                await self._keep_hints(part)
        done = parts.result
        for name, reason in done.skipped:
            log.warning('index object %s is ignored: %s', name, reason)
        self._index_names = done.names
        self.index_segments, self.is_compaction_due = done.segments, done.is_compaction_due

    async def _keep_hints(self, part: IndexPart) -> None:
        encode = msgspec.msgpack.encode
        for start in range(0, len(part.records), SLICE * 4):
            records: list[IndexRecord] = part.records[start:start + SLICE * 4]
            with self._db.transaction():
                self._journal.add_hints((record.path, record.etag, record.size, encode(record)) for record in records)
            await trio.lowlevel.checkpoint()

    async def _list_all(self) -> None:
        after = ''
        self.listed_objects = 0
        async with self._pool.stream(ListPages(prefix=self._prefix), priority=Priority.INTERACTIVE) as pages:
            async for page in pages:
                after = await self._apply_page(page, after)
        self._reconciler.apply([], after=after, last=None)

    async def _apply_page(self, page: ListPage, after: str) -> str:
        for start in range(0, len(page.objects), SLICE):
            objects = [self._relative(info) for info in page.objects[start:start + SLICE]]
            self._reconciler.apply([info for info in objects if info.key], after=after, last=objects[-1].key)
            after = objects[-1].key
            self.listed_objects += len(objects)
            await trio.lowlevel.checkpoint()
        return after

    def _relative(self, info: ObjectInfo) -> ObjectInfo:
        return msgspec.structs.replace(info, key=info.key[len(self._prefix):])

    def _finish(self) -> None:
        after: str | None = ''
        while after is not None:
            after = self._reconciler.apply_directory_hints(after, SLICE)
        self._reconciler.remove_empty_directories()
        with self._db.transaction():
            self._journal.drop_hints()
            self._db.set_meta('index_names', msgspec.json.encode(self._index_names))
        self.is_complete = True
        self._listed.clear()
        self._grace.set()
        self._complete.set()
        log.info('the context has %d objects', self.listed_objects)

    async def reload(self) -> None:
        """Read index and listing once more and apply what changed. Raises what the store says."""
        await self._complete.wait()
        await self._read_index()
        await self._list_all()
        self._finish()

    async def wait_complete(self) -> None:
        await self._complete.wait()

    # --- sooner, where somebody looks ---------------------------------------------------------------------------------------------

    async def ensure_listed(self, directory: Inode) -> None:
        """See core.ports.RemoteTree."""
        if self.is_complete or directory.ino in self._listed:
            return
        with trio.move_on_after(ANSWER_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_when, self._complete, nursery.cancel_scope)
                await self._grace.wait()
                await self._list_one(directory)
                nursery.cancel_scope.cancel()
        if not (self.is_complete or directory.ino in self._listed):
            raise self._unavailable()

    @staticmethod
    async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
        await event.wait()
        scope.cancel()

    async def _list_one(self, directory: Inode) -> None:
        """One LIST of the directory's own level, however many wait for it."""
        while directory.ino not in self._listed:
            under_way = self._listing.get(directory.ino)
            if under_way is not None:
                await under_way.wait()
                continue
            self._listing[directory.ino] = trio.Event()
            try:
                await self._index_read.wait()
                await self._list_level(directory)
            except CtxfsError as error:
                log.warning('cannot list a directory yet: %s', error)
                self.error = error
                await trio.sleep(_RETRY_SECONDS[0])
            finally:
                self._listing.pop(directory.ino).set()

    async def _list_level(self, directory: Inode) -> None:
        key = self._db.dir_key(directory.ino)
        async with self._pool.stream(ListPages(prefix=self._prefix + key, delimiter='/'), priority=Priority.INTERACTIVE) as pages:
            async for page in pages:
                objects = [relative for info in page.objects if (relative := self._relative(info)).key != '']
                prefixes = [prefix[len(self._prefix):] for prefix in page.prefixes]
                self._reconciler.apply_directory(objects, [prefix for prefix in prefixes if not prefix.startswith('.ctxfs/')])
                await trio.lowlevel.checkpoint()
        if self._db.dir_key(directory.ino) == key:
            self._listed.add(directory.ino)

    async def ensure_subtree(self, directory: Inode) -> None:
        """See core.ports.RemoteTree."""
        with trio.move_on_after(ANSWER_SECONDS):
            await self._complete.wait()
        if not self.is_complete:
            raise self._unavailable()

    def _unavailable(self) -> CtxfsError:
        if self.error is not None:
            return type(self.error)(str(self.error))
        return RemoteUnavailable(f'the context could not be listed within {ANSWER_SECONDS:g} s')

    # --- attributes -----------------------------------------------------------------------------------------------------------------

    async def ensure_attrs(self, inodes: Iterable[Inode]) -> None:
        """See core.ports.RemoteTree."""
        wanted = [inode for inode in inodes if not inode.attrs_known]
        with trio.move_on_after(ANSWER_SECONDS):
            async with trio.open_nursery() as nursery:
                for start in range(0, len(wanted), HEADS):
                    nursery.start_soon(self._head, wanted[start:start + HEADS])
        if any(not inode.attrs_known for inode in wanted):
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
                self._reconciler.describe(inode, item.attrs)
            elif item.failure.name == 'NotFound':
                self._reconciler.describe(inode, None)
            else:
                raise item.failure.error()

    async def refresh(self, inode: Inode) -> None:
        """See core.ports.RemoteTree."""
        known = self._journal.source_of(inode)
        if known is None:
            return
        item, = await self._pool.call(Head(keys=[self._prefix + known.key]), priority=Priority.INTERACTIVE)
        current = self._journal.known(known.key)
        if current != known:
            return      # something else moved it on meanwhile
        with self._db.transaction():
            if item.info is not None:
                if item.info.etag != known.etag and inode.content == Content.CLEAN and inode.nlink:
                    fresh = self._reconciler.replace_content(inode, known, self._relative(item.info), None)
                    self._reconciler.describe(fresh, item.attrs)
            elif item.failure is not None and item.failure.name == 'NotFound':
                self._reconciler.object_gone(known)
