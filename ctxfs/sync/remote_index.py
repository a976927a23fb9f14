"""The index as this host has read it: which index objects are done with, and what those that are not say about which keys.

Owns the names of the index objects that were read or written here, the hints (records that wait for their object to be looked at) and
what tells when a compaction is due. It must not know what a record means for the tree (reconcile.py), nor when anything is read.
"""
from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec
import trio

from ctxfs.records import ROOT_PATH, IndexRecord
from ctxfs.storage.held_hints import Hint, record_of
from ctxfs.storage.index_format import INDEX_DIR, kind_of
from ctxfs.storage.inode import Reason
from ctxfs.storage.journal import Journal
from ctxfs.storage.tree_connection import TreeReader
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.pool import Priority, TransferPool
from ctxfs.sync.protocol import CompactIndex, IndexPart, ReadIndex, WriteSegment

log = logging.getLogger(__name__)

#: records kept in one transaction: a few milliseconds of the loop
SLICE = 1000
#: paths whose last record of this host is remembered
WRITTEN = 20_000
_HIDDEN = ("SELECT h.key, o.ino, o.said_ns, h.record FROM hint h JOIN object o ON o.key = h.key WHERE h.etag <> '' AND h.etag <> o.etag "
           "AND o.said_ns > 0 AND NOT o.doomed LIMIT 10000")


def is_tombstone(hint: Hint) -> bool:
    """Whether the record says that its path was removed."""
    return record_of(hint).attrs is None


class RemoteIndex:
    """See the module docstring. Errors as the pool's."""

    def __init__(self, db: TreeDB, journal: Journal, pool: TransferPool, *, prefix: str, below: str = '') -> None:
        """`prefix`: where the mount's root lies in the bucket; `below`: the part of it that follows the context's own prefix
        (mappingPolicy), '' for most. A context has one index, whose paths are relative to the context."""
        self._db = db
        self._journal = journal
        self._pool = pool
        self._prefix = prefix.removesuffix(below)
        self.below = below
        #: index objects whose records are in the tree, or were written from it
        self._names: set[str] = set(msgspec.json.decode(db.meta('index_names') or b'[]', type=list[str]))
        #: what the last reading found; they count as read when `finish` says that their hints were applied
        self._found: set[str] = set()
        self.segments = 0
        self.is_compaction_due = False
        #: (changed_ns, etag) of what this host wrote last, by path: a segment of another host may be older, and read later
        self._written: OrderedDict[str, tuple[int, str]] = OrderedDict()

    async def read(self, on_count: Callable[[int], object] = lambda count: None, *, is_listed_next: bool = False) -> int:
        """Keep the records of the index objects that are new as hints; returns how many, and tells `on_count` so far as it reads. A damaged object
        is skipped (slower, never wrong). One request when nothing is new. `is_listed_next`: everything, so that most hints are soon used up; `settle`
        writes what is left then."""
        count = 0
        self._journal.forget_held_hints()
        async with self._pool.stream(ReadIndex(prefix=self._prefix, seen=sorted(self._names)), priority=Priority.INTERACTIVE) as parts:
            async for part in parts:
                if is_listed_next and self._hold(part):
                    count += part.count
                else:
                    records = self._from_index(part.records())
                    count += len(records)
                    await self._keep(records)
                on_count(count)
        done = parts.result
        for name, reason in done.skipped:
            log.warning('index object %s is ignored: %s', name, reason)
        self._found = set(done.names)
        self.segments, self.is_compaction_due = done.segments, done.is_compaction_due
        return count

    def _hold(self, part: IndexPart) -> bool:
        """Whether it can stay as it came."""
        return not self.below and not self._written and self._journal.hold_hints(
            part.packed, first=part.first, last=part.last, count=part.count, objects=part.objects)

    async def settle(self) -> None:
        """What a listing has left of the records that were read just before it."""
        is_more = True
        while is_more:
            with self._db.transaction():
                is_more = self._journal.settle_hint_page()
            await trio.lowlevel.checkpoint()

    def _from_index(self, records: list[IndexRecord]) -> list[IndexRecord]:
        if not self.below:
            return records
        return [msgspec.structs.replace(record, path=record.path[len(self.below):] or ROOT_PATH)
                for record in records if record.path.startswith(self.below)]

    def _to_index(self, records: list[IndexRecord]) -> list[IndexRecord]:
        if not self.below:
            return records
        return [msgspec.structs.replace(record, path=self.below + ('' if record.path == ROOT_PATH else record.path)) for record in records]

    async def write(self, records: list[IndexRecord]) -> None:
        """Add a segment. Nobody here need read it, and what older ones say about its paths is past."""
        done = await self._pool.call(WriteSegment(prefix=self._prefix, records=self._to_index(records)))
        self.segments += 1
        self._note_written(done.name, records)

    async def compact(self) -> None:
        """Merge all segments into a base."""
        known = frozenset(self._names)
        done = await self._pool.call(CompactIndex(prefix=self._prefix))
        self.segments, self.is_compaction_due = 0, False
        # where nothing is read any more (downloadPolicy.autoDownload false) nobody else finds out what is gone
        if gone := known.difference(done.left):
            self._names -= gone
            self._store_names()

    async def _keep(self, records: list[IndexRecord]) -> None:
        for start in range(0, len(records), SLICE):
            with self._db.transaction():
                self._journal.add_hints(record for record in records[start:start + SLICE] if not self._is_past(record))
            await trio.lowlevel.checkpoint()

    def _is_past(self, record: IndexRecord) -> bool:
        """This host said something newer of the same version. (Another version is looked at, whatever its time.)"""
        changed_ns, etag = self._written.get(record.path, (0, ''))
        return record.changed_ns < changed_ns and record.etag == etag and record.attrs is not None

    def has_unread(self, keys: Iterable[str]) -> bool:
        """Whether an index object that was not read yet is among these keys (relative to the context)."""
        return any(self._is_unread(key[len(INDEX_DIR):]) for key in keys if key.startswith(INDEX_DIR))

    def _is_unread(self, name: str) -> bool:
        return name not in self._names and kind_of(name) is not None

    def _note_written(self, name: str, records: Sequence[IndexRecord]) -> None:
        self._names.add(name)
        if self._found:
            self._found.add(name)
        self._written.update((record.path, (record.changed_ns, record.etag)) for record in records)
        while len(self._written) > WRITTEN:
            self._written.popitem(last=False)
        with self._db.transaction():
            self._journal.drop_hints_of([record.path for record in records])
            self._store_names()

    async def retell(self, unsettled: Collection[str]) -> None:
        """What another host said of a version that had been replaced, later than anybody of the present one: the index has one record of a path, so
        new hosts see only that, and it tells them nothing. What is known is told once more."""
        for key, ino, said_ns, record in await trio.to_thread.run_sync(self._hidden):
            if key in unsettled or msgspec.msgpack.decode(record, type=IndexRecord).changed_ns < said_ns:
                continue
            inode = self._db.live_inode(ino) or self._db.inodes_of([ino]).get(ino)
            if inode is not None and inode.nlink and inode.attrs_known and not inode.local:
                self._journal.mark(inode, Reason.INDEX)

    def _hidden(self) -> list[tuple[str, int, int, bytes]]:
        reader = TreeReader(self._db.path)
        try:
            return reader.rows(_HIDDEN, ())
        finally:
            reader.close()

    def finish(self, unsettled: Iterable[str] = ()) -> None:
        """All hints were applied but those of the keys `unsettled`; call it in a transaction. Names that vanished from the bucket are
        forgotten with the next reading."""
        self._journal.drop_hints(but=unsettled)
        found, self._found = self._found, set()
        if found and found != self._names:
            self._names = found
            self._store_names()

    def _store_names(self) -> None:
        self._db.set_meta('index_names', msgspec.json.encode(sorted(self._names)))
