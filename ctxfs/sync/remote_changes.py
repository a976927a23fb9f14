"""Remote changes: how the tree database catches up with what others did to the bucket, with as few requests as they leave traces.

Owns what was seen of the bucket last (the digest of a small listing; the index is RemoteIndex's) and how a trace becomes a change: a page of
a listing, an index record, or a key that somebody names. It must not know when anybody looks (poller.py), nor what a listed or missing
object means (reconcile.py). Every method that asks the store runs while nothing is uploaded (`UploadEngine.alone`): a listing that began before a PUT
shows the version before it, and would be taken for somebody's change.

    up to PAGE objects   one LIST of everything; equal to the one before: nothing happened. Sees what any S3 tool does.
    more                 one LIST of the index directory; what new segments name is compared with what is known, and looked at by HEAD,
                         or by a whole listing where that is fewer requests. What other tools did waits for the next whole listing.
A record that says nothing new (same etag) costs no request. Records are applied only to the object version that they name, so their order
beside a listing does not matter.
"""
from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec
import trio

from ctxfs.crash_points import crash_point
from ctxfs.errors import CtxfsError
from ctxfs.records import ROOT_PATH, ListPage, ObjectInfo
from ctxfs.storage.heartbeats import MOUNTS_DIR
from ctxfs.storage.journal import Journal
from ctxfs.storage.keys import LAST, Unmountable, key_to_path
from ctxfs.storage.members import Place, is_member
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.archive_mirror import ArchiveMirror
from ctxfs.sync.archive_view import ArchiveView
from ctxfs.sync.growth import Growth
from ctxfs.sync.listing_parts import PAGE, ListingParts, Part
from ctxfs.sync.pool import Priority, TransferPool
from ctxfs.sync.protocol import Head, HeadItem, ListPages
from ctxfs.sync.reconcile import Reconciler
from ctxfs.sync.remote_index import RemoteIndex, is_tombstone

log = logging.getLogger(__name__)

#: objects applied in one go: about 10 ms of the loop
SLICE = 250
#: HEADs in one request to a worker
HEADS = 64
#: in the table of notes: when the whole context was listed last, and how many objects it had
LISTED_AT, LISTED_OBJECTS = 'listed_at', 'listed_objects'


class RemoteChanges:
    """See the module docstring. Raises what the store says; what was applied until then stays applied."""

    def __init__(self, db: TreeDB, journal: Journal, reconciler: Reconciler, pool: TransferPool | ArchiveView, *, index: RemoteIndex,
                 prefix: str, mirror: ArchiveMirror | None = None) -> None:
        """`mirror`: of the archive log, where the context has one."""
        self._db = db
        self._journal = journal
        self._reconciler = reconciler
        self._pool = pool
        self._index = index
        self._mirror = mirror
        self._prefix = prefix
        #: the daemon sets it: lets open files follow what only grew
        self.growth: Growth | None = None
        if mirror is not None:
            mirror.before_commit = self._let_members_grow
        #: objects in the last whole listing, ctxfs's own among them
        self.listed_objects = 0
        self._digest = b''
        #: of a listing that is applied, as soon as `finish` came to its end
        self._next_digest = b''
        #: what was seen is out of date (see `forget`): a look is not enough
        self.is_forgotten = False
        #: when the whole listing began that `finish` is to note (Unix seconds); None: there is none
        self._listing_since: float | None = None
        self._since = 0.0
        #: up to which the archive log was read when it began
        self._number = 0
        self.parts = ListingParts(journal)

    # --- what an earlier mount saw ----------------------------------------------------------------------------------------------------

    def listed_at(self) -> float:
        """When the last whole listing that the tree is made from began (Unix seconds), also by an earlier mount; 0: never, or in the future."""
        at = float(self._db.meta(LISTED_AT) or 0)
        return at if at <= time.time() else 0.0

    def go_on_from(self) -> None:
        """The tree is as an earlier mount listed it: what came since is asked of the index."""
        self.listed_objects = int(self._db.meta(LISTED_OBJECTS) or 0)

    def _note_listing(self) -> None:
        if self._listing_since is not None:
            self._note_members_shown(self._number)
            self._db.set_meta(LISTED_AT, self._listing_since)
            self._db.set_meta(LISTED_OBJECTS, self.listed_objects)
            self._listing_since = None

    # --- looking ------------------------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Take over what others changed, as far as one cheap look shows that there is something."""
        if self.listed_objects > PAGE:
            await self.follow_log()
            await self.examine_also(())
            await self.read_new_segments()
            return
        if again := self._reconciler.obstructed.take():
            self._digest = b''
            self._show_members(again)
        try:
            await self._look_at_page()
        except CtxfsError:
            self._reconciler.obstructed.add(*again)
            raise
        if self._index.below:       # the index lies elsewhere: the page did not show it
            await self.follow_log()
            await self.read_new_segments()

    async def follow_log(self) -> None:
        """What others committed in Archive mode is applied at once."""
        if self._mirror is not None:
            await self._mirror.catch_up()

    async def agree_with_archives(self) -> None:
        """What is known of archives is in the tree, and nothing else of them."""
        if self._mirror is not None:
            await self._mirror.agree()

    async def read_new_segments(self) -> None:
        """What new index objects name is brought up to date; one request when there are none."""
        if await self._index.read():
            await self._settle_hints()
            await self.finish()
        else:
            with self._db.transaction():
                # what has nothing new in it need not be opened again
                self._index.finish(self._reconciler.obstructed.keys)

    def _show_members(self, keys: Collection[str]) -> None:
        if self._mirror is not None:
            self._mirror.apply_again(keys)

    def _log_number(self) -> int:
        return 0 if self._mirror is None else max(0, self._mirror.number)

    def _note_members_shown(self, number: int) -> None:
        if self._mirror is not None:
            self._mirror.listed(number)

    async def _look_at_page(self) -> None:
        number = self._log_number()
        page = await self._first_page()
        if page.next_token is not None:
            await self._index.read()
            await self.list_all()
            await self.finish(listed='')
        elif (digest := self._digest_of(page.objects)) != self._digest:
            await self.follow_log()
            if self._index.has_unread(info.key[len(self._prefix):] for info in page.objects):
                await self._index.read()
            self._reconciler.apply([], after=await self._apply_page(page, ''), last=None)
            await self._settle_hints()      # written after the page was listed
            await self.finish(listed='')
            self._digest, self.listed_objects, self.is_forgotten = digest, len(page.objects), False
            self._note_members_shown(number)
        else:
            self._note_members_shown(number)

    async def _first_page(self) -> ListPage:
        async with self._pool.stream(ListPages(prefix=self._prefix)) as pages:
            async for page in pages:
                return page
        return ListPage(objects=[], prefixes=[], next_token=None)

    async def read_index(self, on_count: Callable[[int], object] = lambda count: None, *, is_listed_next: bool = False) -> None:
        """What new index objects say is applied with what is listed next; what the archive log says at once. The rest as RemoteIndex.read."""
        await self._index.read(on_count, is_listed_next=is_listed_next and self._mirror is None)
        await self.follow_log()

    async def list_all(self, after: str = '', may_go_on: Callable[[], bool] = lambda: True, *,
                       priority: Priority = Priority.BACKGROUND) -> str | None:
        """The whole listing, applied page by page from behind `after`; None when it came to its end. Where `may_go_on` says no between two
        pages: the key to go on behind, another time."""
        count = 0 if not after else self.listed_objects
        if not after:
            self.listed_objects = 0
            self._since, self._number = time.time(), self._log_number()
        async with self._pool.stream(ListPages(prefix=self._prefix, start_after=self._prefix + after if after else ''), priority=priority) as pages:
            async for page in pages:
                self._digest, self._next_digest = b'', self._digest_of(page.objects) if not after and page.next_token is None else b''
                after = await self._apply_page(page, after)
                self.listed_objects = count = count + len(page.objects)
                if page.next_token is not None and not may_go_on():
                    return after
        self._reconciler.apply([], after=after, last=None)
        self.is_forgotten = False
        self._listing_since = self._since
        return None

    async def list_all_at_once(self) -> None:
        """The same as `list_all` for who waits: where the index says what there is, in parts of it side by side, because a page is asked for by what
        the one before ended with. Raises the first failure; the other parts have come to their end then."""
        bounds = self.parts.bounds()
        if len(bounds) == 1 and self._journal.hints_are_few('', LAST, PAGE):
            await self.list_all(priority=Priority.INTERACTIVE)
        else:
            await self._list_parts(bounds)

    async def _list_parts(self, bounds: Sequence[str]) -> None:
        self.listed_objects, self._since, self._number, self._digest, self._next_digest = 0, time.time(), self._log_number(), b'', b''
        failures: list[CtxfsError] = []

        async def run(part: Part) -> None:
            try:
                await self._list_part(part)
            except CtxfsError as error:
                failures.append(error)
        async with trio.open_nursery() as nursery:
            for part in self.parts.begin(bounds):
                nursery.start_soon(run, part)
        if failures:
            raise failures[0]
        self.is_forgotten = False
        self._listing_since = self._since

    async def _list_part(self, part: Part) -> None:
        operation = ListPages(prefix=self._prefix, start_after=self._prefix + part.after if part.after else '',
                              stop_after=self._prefix + part.last if part.last is not None else '')
        async with self._pool.stream(operation, priority=Priority.INTERACTIVE) as pages:
            async for page in pages:
                objects = [info for info in page.objects if part.last is None or info.key[len(self._prefix):] <= part.last]
                part.after = await self._apply_page(msgspec.structs.replace(page, objects=objects), part.after)
                self.listed_objects += len(objects)
                self.parts.moved_on()
        self._reconciler.apply([], after=part.after, last=part.last)
        part.is_done = True
        self.parts.moved_on()

    def end(self) -> None:
        """The mount ends. What waited to be looked at again is known to nobody then: the next mount lists the whole."""
        if self._reconciler.obstructed.keys:
            self.forget()

    def forget(self) -> None:
        """What was seen was seen with other eyes (white lists): the next look begins with a whole listing."""
        self._digest, self.is_forgotten, self._listing_since = b'', True, None
        if self._mirror is not None:
            self._mirror.agrees = False
        self._db.set_meta(LISTED_AT, 0)

    async def reload(self, prefix: str = '') -> None:
        """Read the index, and list the file or directory `prefix` (all when ''), applying what changed."""
        await self.read_index()
        if prefix:
            prefix = prefix.rstrip('/')
            await self.examine([prefix])
            await self._list_below(prefix := prefix + '/')
            await self._settle_hints()
        else:
            await self.list_all(priority=Priority.INTERACTIVE)
        await self.finish(listed=prefix)

    async def list_below(self, directory: str) -> None:
        """One directory and what is below it, by a listing."""
        prefix = directory.rstrip('/') + '/'
        await self._list_below(prefix)
        await self.finish(listed=prefix)

    async def _list_below(self, key: str) -> None:
        """INVARIANT: what is applied as one stretch was listed as one: no key outside the prefix is taken for missing."""
        after, last = f'{key[:-1]}{chr(ord(key[-1]) - 1)}{LAST}', key + LAST
        async with self._pool.stream(ListPages(prefix=self._prefix + key), priority=Priority.INTERACTIVE) as pages:
            async for page in pages:
                after = await self._apply_page(page, after)
        self._reconciler.apply([], after=after, last=last)

    # --- applying -----------------------------------------------------------------------------------------------------------------

    async def _apply_page(self, page: ListPage, after: str) -> str:
        for start in range(0, len(page.objects), SLICE):
            objects = [self.relative(info) for info in page.objects[start:start + SLICE]]
            await self._let_grow(objects)
            self._reconciler.apply([info for info in objects if info.key], after=after, last=objects[-1].key)
            after = objects[-1].key
            crash_point('listing-after-slice')
            await trio.lowlevel.checkpoint()
        return after

    def relative(self, info: ObjectInfo) -> ObjectInfo:
        """The same with its key relative to the context."""
        return msgspec.structs.replace(info, key=info.key[len(self._prefix):])

    async def _let_grow(self, objects: Sequence[ObjectInfo]) -> None:
        """Before anything else is done with it: an open file whose object only became longer goes on as the same file."""
        if self.growth is None or not self._reconciler.directories.is_live:
            return
        for info in objects:
            known = self._journal.known(info.key)
            if known is not None and known.etag != info.etag and (inode := self._db.live_inode(known.ino)) is not None:
                await self.growth.follow(inode, known, info)

    async def _let_members_grow(self, members: Sequence[tuple[ObjectInfo, Place]]) -> None:
        """The same of a commit's. What has grown shows before the rest of the commit."""
        if self.growth is None or not self._reconciler.directories.is_live:
            return
        for number, (info, place) in enumerate(members):
            if number % SLICE == SLICE - 1:
                await trio.lowlevel.checkpoint()
            known = self._journal.known(info.key)
            if known is not None and is_member(known.etag) and known.etag != info.etag and (inode := self._db.live_inode(known.ino)) is not None:
                await self.growth.follow(inode, known, info, place=place)

    async def examine_also(self, keys: Iterable[str]) -> None:
        """Look at these, and at what could not be shown before."""
        again = self._reconciler.obstructed.take()
        try:
            await self.examine(sorted(again.union(keys)))
        except CtxfsError:
            self._reconciler.obstructed.add(*again)
            raise

    async def examine(self, keys: Iterable[str]) -> None:
        """Look at single objects, 64 at a time, and apply what there is."""
        wanted = list(dict.fromkeys(keys))
        for start in range(0, len(wanted), HEADS):
            part = wanted[start:start + HEADS]
            items = await self._pool.call(Head(keys=[self._prefix + key for key in part]))
            found = {key: None if item.info is None else self.relative(item.info) for key, item in zip(part, items, strict=True)}
            for item in items:
                if item.failure is not None and item.failure.name != 'NotFound':
                    raise item.failure.error()
            infos = [info for info in found.values() if info is not None]
            await self._let_grow(infos)
            with self._db.transaction():
                self._journal.drop_unmountable(part)        # until it is found so again
                self._reconciler.apply_directory(infos, [])
            self._drop_gone([key for key, info in found.items() if info is None])
            self._describe(found.keys(), items)

    def _drop_gone(self, keys: Sequence[str]) -> None:
        with self._db.transaction():
            for key in keys:
                known = self._journal.known(key)
                if known is not None and (self._mirror is None or not self._mirror.has(known)):
                    self._reconciler.object_gone(known)
        if self._mirror is not None:
            self._mirror.objects_gone(keys)

    def _describe(self, keys: Iterable[str], items: Iterable[HeadItem]) -> None:
        """The HEAD told attributes too: nobody need ask for them once more."""
        for key, item in zip(keys, items, strict=True):
            known = self._journal.known(key)
            inode = None if known is None or item.info is None or known.etag != item.info.etag else self._db.live_inode(known.ino)
            if inode is not None and not inode.attrs_known:
                with self._db.transaction():
                    self._reconciler.describe_by(inode, item, key)

    async def _settle_hints(self) -> None:
        """What the index says beside what is known: the same version's attributes are taken over, another version is looked at."""
        differing: list[str] = []
        after: str | None = ''
        while after is not None:
            rows = self._journal.hints_beside_objects(after, SLICE)
            after = rows[-1][0] if len(rows) == SLICE else None
            self._reconciler.apply_directory([ObjectInfo(key=key, etag=etag, size=size, mtime_ns=0)
                                              for key, etag, size, known in rows if etag and etag == known], [])
            differing += [key for key, etag, _, known in rows if key != ROOT_PATH and etag != known and self._is_of_interest(key, known)]
            await trio.lowlevel.checkpoint()
            if len(differing) > self.listed_objects // PAGE + 1 and self.listed_objects > PAGE:
                await self.list_all()
                return
        await self.examine([key for key in differing if not key.endswith('/')])
        # most directories came with their files; what is left may be an empty one
        await self.examine([key for key in differing if key.endswith('/') and self._is_of_interest(key, self._journal.known(key))])

    def _is_of_interest(self, key: str, known: object) -> bool:
        """Whether a record that does not say what is known is worth a look at the object: not one of a path that is outside the white
        lists, nor a tombstone of what is not known, nor attributes of a directory that is there (`finish` takes those over)."""
        if not self._reconciler.is_synced(key):
            return False
        if known is not None:
            return True
        hint = self._journal.hint(key)
        path = key_to_path(key)
        if hint is None or isinstance(path, Unmountable):
            return False
        return bool(hint[0]) or (not is_tombstone(hint) and self._db.resolve(path) is None)

    async def finish(self, *, listed: str | None = None) -> None:
        """After everything else: attributes of directories, directories that lost what they existed by, and the index counts as read.
        `listed`: what was applied is all there is with this prefix. Of what is elsewhere nothing said whether a directory that lost its last
        file has a marker by now."""
        await self.examine(key for key in self._reconciler.directories.unmarked() if listed is None or not key.startswith(listed))
        await self._index.settle()
        after: str | None = ''
        while after is not None:
            after = self._reconciler.apply_directory_hints(after, SLICE)
        if self._mirror is not None:
            await self._mirror.settle()
        self._show_members(self._reconciler.obstructed.keys)
        await self._index.retell(self._reconciler.obstructed.keys)
        freed = self._reconciler.remove_empty_directories()
        crash_point('listing-before-finish')
        with self._db.transaction():
            self._index.finish(self._reconciler.obstructed.keys)
            self._note_listing()
        self._digest, self._next_digest = self._next_digest or self._digest, b''
        try:
            await self.examine(freed)
        except CtxfsError:
            self._reconciler.obstructed.add(*freed)
            raise

    def _digest_of(self, objects: Iterable[ObjectInfo]) -> bytes:
        """Heartbeats left out: that a mount still lives is no change."""
        found, beats = hashlib.blake2b(digest_size=16), self._prefix + MOUNTS_DIR
        for info in objects:
            if not info.key.startswith(beats):
                found.update(f'{info.key}\0{info.etag}\0{info.size}\n'.encode('utf-8', 'surrogatepass'))
        return found.digest()
