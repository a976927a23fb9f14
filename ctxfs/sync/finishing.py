"""What follows an upload: the index segment, the deletes, and handing the staged bytes over to the block cache.

Owns these steps and their order after the uploads: index before deletes, so that at every instant the bucket has the content and its
attributes under at least one name; tombstones in the index after the deletes, because another host looks at an object when the index names
it, and is not told twice. It must not know which inodes are due or how failures are scheduled. Each step is idempotent: what a crash cuts
short is found again in the journal.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import trio

from ctxfs.crash_points import crash_point
from ctxfs.errors import CtxfsError
from ctxfs.records import RESERVED_DIR, ROOT_PATH, IndexRecord
from ctxfs.storage.gating import Gating
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal, Known, Pending
from ctxfs.storage.keys import Unmountable, key_to_path
from ctxfs.storage.members import is_member
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.attributes import get_attrs
from ctxfs.sync.guarded import GuardedPool
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.protocol import Adopt, AdoptItem, DeleteMany
from ctxfs.sync.remote_tree import RemoteTreeLoader

log = logging.getLogger(__name__)

#: records in one index segment: to encode it takes 10 ms of the loop
SEGMENT_RECORDS = 2_500
#: tombstones in one, which have no attributes
SEGMENT_TOMBSTONES = 6_000
#: rows looked at without a pause: about 3 ms of the loop
SLICE = 20
#: objects in one batch delete (S3's limit)
DELETE_BATCH = 1000
ADOPT_BATCH = 200
#: more index segments than this are merged into a base
COMPACT_SEGMENTS = 64


class Finisher:
    """See the module docstring."""

    def __init__(self, db: TreeDB, journal: Journal, staging: Staging, pool: TransferPool | GuardedPool, *, gating: Gating,
                 remote: RemoteTreeLoader, prefix: str) -> None:
        self._db = db
        self._gating = gating
        self._remote = remote
        self._journal = journal
        self._staging = staging
        self._pool = pool
        self._prefix = prefix
        #: commits the deletion of the members whose rows are tombstones (Archive mode; the daemon sets it)
        self.delete_members: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint
        #: awaited when a mount has nothing left to upload
        self.prove_members: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint

    # --- index --------------------------------------------------------------------------------------------------------------------

    async def write_index(self) -> None:
        """One segment with the records of all inodes whose object is in place."""
        after = 0
        while rows := (found := await self._index_rows(after))[0]:
            after = rows[-1].ino
            await self._write_segment(found[1])
            for start in range(0, len(rows), SLICE):
                with self._db.transaction():
                    for row in rows[start:start + SLICE]:
                        if self._journal.advance(row, 0) and (inode := self._db.live_inode(row.ino)) is not None:
                            inode.marked = 0
                await trio.lowlevel.checkpoint()

    async def _index_rows(self, after: int) -> tuple[list[Pending], list[IndexRecord]]:
        """Up to SEGMENT_RECORDS journal rows after the inode `after`, and the records that they ask for. What changes meanwhile keeps its
        row (its seq is another one), so that a record may be newer than its row, never older."""
        rows: list[Pending] = []
        records: list[IndexRecord] = []
        while len(rows) < SEGMENT_RECORDS:
            found = [Pending(*row) for row in self._db.rows('SELECT * FROM pending WHERE reason = ? AND ino > ? ORDER BY ino LIMIT ?',
                                                            (Reason.INDEX, after, SLICE))]
            if not found:
                break
            after = found[-1].ino
            inodes = self._db.inodes_of([row.ino for row in found])
            rows += found
            records += [record for row in found if row.ino in inodes for record in self._records_of(inodes[row.ino])]
            await trio.lowlevel.checkpoint()
        return rows, records

    async def announce_deletes(self) -> None:
        """Tombstones for what is deleted: a segment of their own, only where there were deletes."""
        while rows := self._journal.unannounced(SEGMENT_TOMBSTONES):
            await self._write_segment([IndexRecord(path=key, changed_ns=deleted_ns) for key, deleted_ns in rows])
            crash_point('announce-after-segment')
            with self._db.transaction():
                self._journal.announced(rows)

    async def _write_segment(self, records: list[IndexRecord]) -> None:
        if not records:
            return
        touched = self._db.inodes_of(inos := self._journal.touched(SEGMENT_RECORDS))
        for inode in touched.values():
            inode.is_touched = False
        records = records + [record for inode in touched.values() for record in self._records_of(inode)]
        await self._remote.index.write(records)
        for start in range(0, len(records), 10 * SLICE):
            with self._db.transaction():
                self._journal.note_said((record.changed_ns, record.path, record.etag) for record in records[start:start + 10 * SLICE] if record.etag)
            await trio.lowlevel.checkpoint()
        self._journal.told(ino for ino in inos if ino not in touched or not touched[ino].is_touched)
        crash_point('index-after-segment')

    def _records_of(self, inode: Inode) -> list[IndexRecord]:
        if inode.nlink == 0 or not inode.attrs_known:
            return []       # of attributes nobody asked for, the object's own metadata tells
        attrs, now = get_attrs(inode), time.time_ns()
        if inode.is_dir:
            return [IndexRecord(path=self._db.dir_key(inode.ino) or ROOT_PATH, changed_ns=now, attrs=attrs)]
        keys = set(self._db.keys_of(inode))
        return [IndexRecord(path=known.key, changed_ns=now, etag=known.etag, size=known.size, attrs=attrs, link=inode.link_group or '',
                            lifecycle=known.lifecycle)
                for known in self._journal.objects_of(inode.ino) if known.key in keys and known.revision == inode.revision]

    async def compact_index(self) -> None:
        """Merge the index when it has become many small objects; its failure costs speed only."""
        index = self._remote.index
        if index.segments < COMPACT_SEGMENTS and not index.is_compaction_due:
            return
        try:
            await index.compact()
        except CtxfsError as error:
            log.warning('the index could not be compacted: %s', error)

    # --- deletes ------------------------------------------------------------------------------------------------------------------

    async def delete_doomed(self, progressed: Callable[[], None] = lambda: None) -> list[tuple[str, CtxfsError]]:
        """Delete the objects that nobody wants, each only if it still is the version we know. Returns what failed; `progressed` is told of
        each batch of which anything did not."""
        failures: list[tuple[str, CtxfsError]] = []
        if not self._gating.rules.deletes_remotely:     # what was removed here is not shown here; the bucket keeps it
            self._db.execute('UPDATE object SET doomed = 2 WHERE doomed AND doomed = 1 AND substr(key, 1, 7) <> ?', (RESERVED_DIR,))
        after = ''
        while batch := self._journal.doomed(DELETE_BATCH, after):
            after = batch[-1].key
            items = [known for known in batch if not is_member(known.etag) and not self.is_wanted(known)]
            if items:
                failed = await self.delete(items)
                failures += failed
                if len(failed) < len(items):
                    progressed()
        return failures

    def has_deletes(self) -> bool:
        """Whether there is anything to delete or to announce now (looks at DELETE_BATCH tombstones)."""
        return bool(self._journal.unannounced(1)) or any(not self.is_wanted(known) for known in self._journal.doomed(DELETE_BATCH))

    def held_deletes(self) -> int:
        """How many deletions wait for a program that has the file open (of DELETE_BATCH tombstones)."""
        return sum(self.is_wanted(known) and self._is_open(known) for known in self._journal.doomed(DELETE_BATCH))

    def _is_open(self, known: Known) -> bool:
        owner = self._db.live_inode(known.ino)
        return owner is not None and owner.nlink == 0 and owner.open_count > 0

    def is_wanted(self, known: Known) -> bool:
        """A tombstone that must wait: its key is about to be overwritten by another file's upload, an open-unlinked file still reads
        it, or it is the only copy of a clean inode that was not copied yet."""
        path = key_to_path(known.key)
        if not isinstance(path, Unmountable):
            ino = self._db.resolve(path)
            if ino is not None and ino != known.ino and not known.key.endswith('/'):
                at = self._db.inode(ino)
                if not at.local and not at.is_dir:
                    return True
        owner = self._db.inodes_of([known.ino]).get(known.ino)
        if owner is None or owner.content not in (Content.CLEAN, Content.SEALED) or owner.revision != known.revision:
            return False
        if owner.nlink == 0:
            return owner.open_count > 0 and owner.content == Content.CLEAN
        return all(other.doomed for other in self._journal.objects_of(owner.ino) if other.revision == owner.revision)

    async def delete(self, items: Sequence[Known], *, is_expiry: bool = False) -> list[tuple[str, CtxfsError]]:
        """Delete these tombstones' objects, each only if it still is that version. Returns what failed."""
        members, items = [known for known in items if is_member(known.etag)], [known for known in items if not is_member(known.etag)]
        if members:
            await self.delete_members()
        if not items:
            return []
        began_ns = time.time_ns()
        done = await self._pool.call(DeleteMany(items=[(self._prefix + known.key, known.etag) for known in items], is_expiry=is_expiry))
        crash_point('delete-before-record')
        errors = {failure.key[len(self._prefix):]: failure for failure in done.failures}
        failed: list[tuple[str, CtxfsError]] = []
        with self._db.transaction():
            for known in items:
                failure = errors.get(known.key)
                if failure is None and not known.key.startswith(RESERVED_DIR):
                    self._journal.announce((known.key,), began_ns)
                if failure is None or failure.name in ('RemoteChanged', 'NotFound'):
                    # changed by another host since: it is theirs, and the next look shows it again
                    if failure is not None:
                        self._remote.look_again_at(known.key)
                    self._db.execute('DELETE FROM object WHERE key = ? AND etag = ?', (known.key, known.etag))
                else:
                    error = failure.error()
                    failed.append((known.key, error if isinstance(error, CtxfsError) else CtxfsError(str(error))))
        crash_point('delete-before-announce')
        return failed

    # --- the block cache --------------------------------------------------------------------------------------------------------------

    def sealed(self, most: int = -1) -> list[int]:
        """Inodes whose staging file is in the bucket."""
        # spelled out, as in the index: a parameter could be anything
        return [row[0] for row in self._db.rows(f'SELECT ino FROM inode WHERE content = {Content.SEALED} LIMIT ?', (most,))]

    async def adopt(self, inos: list[int]) -> None:
        """Link uploaded staging files into the block cache and give the staging space back. Failing costs a download later, or space
        until the next try, never bytes."""
        for start in range(0, len(inos), ADOPT_BATCH):
            inodes = list(self._db.inodes_of(inos[start:start + ADOPT_BATCH]).values())
            ended = trio.Event()
            sealed = [inode for inode in inodes if inode.content == Content.SEALED and inode.nlink and not self._gating.has_local_name(inode)]
            for inode in sealed:
                inode.adoption = ended
            try:
                await self._adopt(sealed)
            except CtxfsError as error:
                log.warning('uploaded files could not be handed to the cache yet: %s', error)
                return
            finally:
                for inode in sealed:
                    inode.adoption = None
                ended.set()

    async def _adopt(self, inodes: list[Inode]) -> None:
        sources = {}
        for number, inode in enumerate(inodes, 1):      # whoever would change one of them waits for the end of its adoption
            sources[inode.ino] = self._journal.source_of(inode)
            if number % SLICE == 0:
                await trio.lowlevel.checkpoint()
        items = [AdoptItem(path=self._staging.path(ino), key=self._prefix + known.key, etag=known.etag, size=known.size)
                 for ino, known in sources.items() if known is not None]
        if items:
            await self._pool.call(Adopt(items=items))
        crash_point('adopt-before-commit')
        for start in range(0, len(inodes), SLICE):
            self._let_go(inodes[start:start + SLICE])
            await trio.lowlevel.checkpoint()

    def _let_go(self, inodes: list[Inode]) -> None:
        """Their bytes are in the cache, or can be fetched again: the staging files may go."""
        adopted = []
        with self._db.transaction():
            for inode in inodes:
                if inode.content != Content.SEALED or not inode.nlink:
                    continue        # removed while we waited: whoever removed it takes the staging file away
                if self._journal.source_of(inode) is None:
                    self._take_back(inode)
                else:
                    inode.content = Content.CLEAN
                    adopted.append(inode)
                self._db.store_content(inode)
        crash_point('adopt-before-unlink')
        for inode in adopted:
            self._staging.discard(inode)

    def _take_back(self, inode: Inode) -> None:
        """INVARIANT: staged bytes go only while an object has them. Its object was overwritten or removed, so the staging file is the only
        copy again."""
        inode.content = Content.STAGED
        inode.revision += 1
        self._journal.mark(inode, Reason.CONTENT)
