"""Copying contexts: every object of one becomes the same object of another, inside the store, and the other is not whole until that is done.

Owns the order of steps, what is equal already, and what of ctxfs's own objects goes along. It must not know the registry's objects
(storage/registry_changes.py) nor how a store copies. Synchronous.

    no mount of the target → record: pre-available, copyOf → no mount, still → both listings side by side: what differs is copied, what the
    source does not have goes → the policy → the index, written anew → record: available
The source may be in use: each object is copied as one version that it had. What is cut short anywhere is gone on with by the same call: a copy has
the etag of its source, or (a large one, whose parts were others) is noted below `.ctxfs/copy/` with both.

A target that has files is only brought up to date where that was asked for; one that is a half copy of another context never is.
"""
from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import msgspec

from ctxfs.crash_points import crash_point
from ctxfs.errors import Exists, InvalidArgument, NotFound, RemoteChanged, RemoteUnavailable
from ctxfs.records import RESERVED_DIR, IndexRecord, ObjectInfo
from ctxfs.storage import registry_changes
from ctxfs.storage.archive_log_format import ARCHIVE_DIR, LOG_DIR, parsed
from ctxfs.storage.index_format import INDEX_DIR
from ctxfs.storage.listing import pages
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.registry import ContextRecord, Registry
from ctxfs.sync.archive_log import ArchiveLog
from ctxfs.sync.clearing import IsDead, check_unused, tombstones
from ctxfs.sync.context_files import SEGMENT_RECORDS
from ctxfs.sync.context_mode import mode_of
from ctxfs.sync.copy_notes import CopyNotes
from ctxfs.sync.index_log import IndexLog
from ctxfs.sync.protocol import CompactIndex

THREADS = 16
#: pairs that are looked at ahead of those that are being copied
_AHEAD = 512
#: an object that changes again and again while it is copied is left to another call
_ATTEMPTS = 5
_BATCH = 1000
#: ctxfs's own objects that mean something in another context, beside the index: whole directories end with a slash
OWN = ('policy', 'mode', 'archive/')

Progress = Callable[[int, int], None]


class Copied(NamedTuple):
    """What a call did: objects and bytes that it copied, those that were equal already, and those that the target had and the source has not."""
    objects: int
    bytes: int
    equal: int
    removed: int


class _Pair(NamedTuple):
    """One key relative to both contexts; None where one has no such object."""
    key: str
    source: ObjectInfo | None
    target: ObjectInfo | None


def begin(store: ObjectStore, source: ContextRecord, target: ContextRecord, *, update: bool, is_dead: IsDead, mode: str = '') -> ContextRecord:
    """Mark the target: from here on it is not whole. `mode`: which it is to be kept in. Raises InUse, Exists for one that has files unless
    `update`, or is kept in the other mode, InvalidArgument."""
    if source.id == target.id:
        raise InvalidArgument(f'{source.name} cannot be copied to itself')
    check_unused(store, target, is_dead=is_dead, what='')
    if Registry(store).record(target.id) is None:
        registry_changes.keep_record(store, target)
    if mode and target.copy_of != source.id and (found := mode_of(store, target.prefix)) not in ('', mode):
        raise Exists(f'context {target.name} is kept in {found} mode; copy {source.name} to a new context')
    if target.copy_of != source.id and not update and _has_files(store, target):
        raise Exists(f'context {target.name} has files; ctxfs context copy --update makes it like {source.name}, and removes what that does not '
                     'have')
    marked, was = registry_changes.begin_copy(store, target.id, source.id)
    crash_point('context-copy-after-mark')
    try:
        check_unused(store, target, is_dead=is_dead, what='')
    except Exception:
        if was == 'available':
            registry_changes.end_copy(store, target.id)
        raise
    return marked


def measure(store: ObjectStore, source: ContextRecord) -> tuple[int, int]:
    """(objects, bytes) that there are to be copied, or to be found equal: for a progress bar."""
    objects = size = 0
    for info in _listed(store, source.prefix):
        objects, size = objects + 1, size + info.size
    return objects, size


def _listed(store: ObjectStore, prefix: str) -> Iterator[ObjectInfo]:
    """What is copied of a context, by keys relative to it."""
    for page in pages(store, prefix):
        for info in page.objects:
            key = info.key[len(prefix):]
            own = key[len(RESERVED_DIR):] if key.startswith(RESERVED_DIR) else None
            if key and (own is None or own in OWN or own.startswith(tuple(name for name in OWN if name.endswith('/')))):
                yield msgspec.structs.replace(info, key=key)


def _has_files(store: ObjectStore, record: ContextRecord) -> bool:
    reserved, archives = record.prefix + RESERVED_DIR, record.prefix + ARCHIVE_DIR
    return any(not info.key.startswith(reserved) or (info.key.startswith(archives) and info.key.endswith('.zip'))
               for page in pages(store, record.prefix) for info in page.objects)


def finish(store: ObjectStore, source: ContextRecord, target: ContextRecord, *, host: str,
           progress: Progress = lambda objects, size: None) -> Copied:
    """Do what `begin` has marked, or go on with it. Raises what the store raises; then the target says `pre-available` still."""
    copying = _Copying(store, source, target, host=host, progress=progress)
    done = copying.run()
    crash_point('context-copy-before-index')
    copying.write_index()
    crash_point('context-copy-before-state')
    registry_changes.end_copy(store, target.id)
    return done


class _Copying:
    def __init__(self, store: ObjectStore, source: ContextRecord, target: ContextRecord, *, host: str, progress: Progress) -> None:
        self._store = store
        self._source = source.prefix
        self._target = target.prefix
        self._host = host
        self._progress = progress
        #: later commits are not copied: they may name archives that were not there when these were listed
        self._commits = ArchiveLog(store, source.prefix).look().number
        self._notes = CopyNotes(store, target.prefix, host=host)
        self._objects = self._bytes = self._equal = self._removed = 0
        self._lock = threading.Lock()

    # --- objects --------------------------------------------------------------------------------------------------------------------

    def run(self) -> Copied:
        """Raises the first failure, when what had begun has ended."""
        with ThreadPoolExecutor(THREADS, thread_name_prefix='ctxfs-copy') as pool:
            running: set[Future[None]] = set()
            try:
                for pair in self._pairs():
                    if pair.source is None:
                        continue
                    if self._is_equal(pair):
                        self._equal += 1
                        self._progress(1, pair.source.size)
                        continue
                    running.add(pool.submit(self._copy, pair.key, pair.source))
                    if len(running) >= _AHEAD:
                        running = self._collect(running)
                while running:
                    running = self._collect(running)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                self._notes.store(most=1)
        self._remove_others()
        return Copied(self._objects, self._bytes, self._equal, self._removed)

    def _pairs(self) -> Iterator[_Pair]:
        """What both have, in the order of keys; of ctxfs's own objects those that are copied."""
        source = (info for info in _listed(self._store, self._source) if not self._is_late(info.key))
        target = _listed(self._store, self._target)
        ours, theirs = next(source, None), next(target, None)
        while ours is not None or theirs is not None:
            key = min(info.key for info in (ours, theirs) if info is not None)
            mine = ours if ours is not None and ours.key == key else None
            other = theirs if theirs is not None and theirs.key == key else None
            yield _Pair(key, mine, other)
            ours = next(source, None) if mine is not None else ours
            theirs = next(target, None) if other is not None else theirs

    def _is_late(self, key: str) -> bool:
        """A commit that came after this began."""
        return key.startswith(LOG_DIR) and (parsed(key[len(LOG_DIR):]) or (0, ''))[0] > self._commits

    def _is_equal(self, pair: _Pair) -> bool:
        if pair.source is None or pair.target is None or pair.source.size != pair.target.size:
            return False
        return pair.source.etag == pair.target.etag or self._notes.is_copy(pair.key, pair.source.etag, pair.target.etag)

    def _copy(self, key: str, found: ObjectInfo) -> None:
        """The version that was listed, or the one that is there by now; nothing where there is none any more."""
        for _ in range(_ATTEMPTS):
            try:
                done = self._store.copy(self._source + key, self._target + key, source_etag=found.etag, size=found.size)
                break
            except (NotFound, RemoteChanged):
                try:
                    found = self._store.head(self._source + key)
                except NotFound:
                    self._store.delete(self._target + key)
                    return
        else:
            raise RemoteUnavailable(f'{key} changes again and again while it is copied; copy the context once more')
        crash_point('context-copy-after-object')
        with self._lock:
            self._objects, self._bytes = self._objects + 1, self._bytes + found.size
        if done.etag != found.etag:
            self._notes.add(key, found.etag, done.etag)
        self._progress(1, found.size)

    def _collect(self, running: set[Future[None]]) -> set[Future[None]]:
        done, left = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        self._notes.store()
        return left

    def _remove_others(self) -> None:
        """What only the target has, with tombstones for hosts that knew it."""
        index = IndexLog(self._store, self._target, host=self._host)
        others = (pair.key for pair in self._pairs() if pair.source is None)
        while batch := list(itertools.islice(others, _BATCH)):
            began_ns = time.time_ns()
            for key, error in self._store.delete_many([(self._target + key, None) for key in batch]):
                raise error if isinstance(error, RemoteUnavailable) else type(error)(f'{key}: {error}')
            index.append(tombstones(batch, began_ns))
            self._removed += len(batch)

    # --- the index ------------------------------------------------------------------------------------------------------------------

    def write_index(self) -> None:
        """What the source's index says of the versions that were copied, said of the copies. The target's own is older, and would be believed
        where its times are later."""
        old = [info.key for page in pages(self._store, self._target + INDEX_DIR) for info in page.objects]
        index = IndexLog(self._store, self._target, host=self._host)
        gone = [record for record in index.read() if record.attrs is None]      # hosts that knew what was removed have not heard of it yet
        records = itertools.chain(self._records(), gone)
        while batch := list(itertools.islice(records, SEGMENT_RECORDS)):
            index.append(batch)
        for start in range(0, len(old), _BATCH):
            self._store.delete_many([(key, None) for key in old[start:start + _BATCH]])
        index.compact(grace_ns=int(CompactIndex(prefix='').grace_seconds * 1e9))

    def _records(self) -> Iterator[IndexRecord]:
        pairs = iter(self._pairs())
        pair = next(pairs, None)
        for record in IndexLog(self._store, self._source, host=self._host).read():
            while pair is not None and pair.key < record.path:
                pair = next(pairs, None)
            if record.attrs is None:
                continue
            if not record.etag:     # a directory's, or the root's: about no version
                yield record
            elif pair is not None and pair.key == record.path and pair.target is not None and self._is_copy(pair, record):
                yield msgspec.structs.replace(record, etag=pair.target.etag)

    def _is_copy(self, pair: _Pair, record: IndexRecord) -> bool:
        """Whether the target's object is of the version that the record is about."""
        assert pair.target is not None
        note = self._notes.get(pair.key)
        source = note.source if note is not None and note.etag == pair.target.etag else pair.target.etag
        return (record.etag, record.size) == (source, pair.target.size)


def described(copied: Copied) -> Iterable[str]:
    """For people."""
    yield f'{copied.objects} object{"" if copied.objects == 1 else "s"} copied'
    if copied.equal:
        yield f'{copied.equal} there already'
    if copied.removed:
        yield f'{copied.removed} removed'
