"""Copying a context into the other mode: objects of their own become members of archives, or members become objects.

Owns the walk over the source, what each file becomes in the target, and that what is equal already is not written again. It must not know the
registry's objects, nor how archives are written (conversion_archives.py). Synchronous. Begun by copying.begin.

    each file of the source, by its key: what is there already as a copy of it is left; large files, and others' oddities, are copied inside the
    store; of small ones the content comes here and goes there
    → directories' attributes → what the source does not have goes → index → policy → record: available
A file that changes meanwhile is met again by another pass; the target has one version of it, whole. What is cut short is gone on with by the same
call: what is a copy of what is noted (copy_notes.py).
"""
from __future__ import annotations

import itertools
import os
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import msgspec

from ctxfs.crash_points import crash_point
from ctxfs.errors import Exists, NotFound, RemoteChanged, RemoteUnavailable
from ctxfs.policy import SyncPolicy
from ctxfs.policy_parse import parse_policy, policy_to_bytes
from ctxfs.records import LIFECYCLE_NAME, RESERVED_DIR, Attrs, IndexRecord, ObjectInfo, Stamp
from ctxfs.storage import posix_meta, registry_changes
from ctxfs.storage.index_format import INDEX_DIR
from ctxfs.storage.keys import Unmountable, key_to_path
from ctxfs.storage.listing import pages
from ctxfs.storage.members import hash_in, is_member
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.policy_store import load_policy, save_policy
from ctxfs.storage.registry import ContextRecord
from ctxfs.sync import context_mode
from ctxfs.sync.archive_plan import MEMBER_MAX
from ctxfs.sync.clearing import tombstones
from ctxfs.sync.context_files import SEGMENT_RECORDS, ContextFiles
from ctxfs.sync.conversion_archives import Archives, Packable
from ctxfs.sync.copy_notes import CopyNotes
from ctxfs.sync.copying import Copied, Progress
from ctxfs.sync.protocol import CompactIndex

THREADS = 16
_AHEAD = 64
_PASSES = 5
_BATCH = 1000


class _Item(NamedTuple):
    """A file, link or marker of the source. `said`: what is known of this version's attributes."""
    key: str
    info: ObjectInfo
    said: IndexRecord | None


def finish(store: ObjectStore, source: ContextRecord, target: ContextRecord, *, mode: str, host: str,
           progress: Progress = lambda objects, size: None) -> Copied:
    """Do what copying.begin has marked, or go on with it. Raises what the store raises; then the target says `pre-available` still."""
    if (found := context_mode.recorded(store, target.prefix)) not in ('', mode):
        raise Exists(f'context {target.name} is kept in {found} mode; copy {source.name} to a new context')
    context_mode.record(store, target.prefix, mode)
    done = _Conversion(store, source, target, mode=mode, host=host, progress=progress).run()
    crash_point('context-copy-before-state')
    registry_changes.end_copy(store, target.id)
    return done


def measure(store: ObjectStore, source: ContextRecord, *, host: str) -> tuple[int, int]:
    """(files, bytes) that there are: for a progress bar."""
    files, count, size = ContextFiles(store, source.id, host=host), 0, 0
    files.members.look()
    for info in _infos(files):
        count, size = count + 1, size + info.size
    return count, size


def _infos(files: ContextFiles) -> Iterator[ObjectInfo]:
    """All but ctxfs's own."""
    return (info for info in files.infos('') if not info.key.startswith(files.prefix + RESERVED_DIR))


class _Conversion:
    def __init__(self, store: ObjectStore, source: ContextRecord, target: ContextRecord, *, mode: str, host: str, progress: Progress) -> None:
        self._store = store
        self._source = ContextFiles(store, source.id, host=host)
        self._target = ContextFiles(store, target.id, host=host)
        self._is_to_archive = mode == 'Archive'
        self._policy = _policy_of(store, source, target, mode)
        self._notes = CopyNotes(store, target.prefix, host=host)
        self._archives = Archives(store, target.prefix, members=self._target.members, host=host)
        self._progress = progress
        self._objects = self._bytes = self._equal = 0
        self._lock = threading.Lock()
        #: keys of what the source has, objects and members of the target, and its directories
        self._own: set[str] = set()
        self._packed: set[str] = set()
        self._directories: dict[str, Attrs] = {}
        self._records: list[IndexRecord] = []
        self._old_index = [info.key for page in pages(store, target.prefix + INDEX_DIR) for info in page.objects]

    def run(self) -> Copied:
        for _ in range(_PASSES):
            if not self._one_pass():
                break
        else:
            raise RemoteUnavailable('files change again and again while they are copied; copy the context once more')
        self._archives.tell_directories(self._directories if self._is_to_archive else {})
        removed = self._remove_others()
        crash_point('context-copy-before-index')
        self._write_index()
        if self._policy is not None:
            save_policy(self._store, self._target.prefix.split('/')[1], policy_to_bytes(self._policy))
        return Copied(self._objects, self._bytes, self._equal, removed)

    # --- one pass -------------------------------------------------------------------------------------------------------------------

    def _one_pass(self) -> int:
        """How many files changed while they were copied."""
        self._source.members.look()
        self._target.members.look()
        self._own.clear()
        self._packed.clear()
        self._records.clear()
        self._equal = 0
        existing = {info.key[len(self._target.prefix):]: info.etag for page in pages(self._store, self._target.prefix) for info in page.objects}
        missed = 0
        with ThreadPoolExecutor(THREADS, thread_name_prefix='ctxfs-copy') as pool:
            running: set[Future[bool]] = set()
            try:
                for item in self._items():
                    if self._goes_into_archive(item):
                        self._packed.add(item.key)
                        missed += self._pack(item, existing)
                        continue
                    self._own.add(item.key)
                    running.add(pool.submit(self._make_object, item, existing.get(item.key, '')))
                    if len(running) >= _AHEAD:
                        running, count = self._collected(running)
                        missed += count
                while running:
                    running, count = self._collected(running)
                    missed += count
                missed += self._commit()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                self._notes.store(most=1)
        return missed

    def _items(self) -> Iterator[_Item]:
        """All of the source, in the order of keys, with what is said of them; what is said of directories is kept."""
        for said in self._source.members.directories.values():
            self._keep(said)
        records = self._source.records()
        record = next(records, None)
        for info in _infos(self._source):
            key = info.key[len(self._source.prefix):]
            while record is not None and record.path < key:
                self._keep(record)
                record = next(records, None)
            found = None
            if record is not None and record.path == key:
                self._keep(record)
                found = record if key.endswith('/') or (record.etag, record.size) == (info.etag, info.size) else None
            yield _Item(key, info, found)
        for left in itertools.chain([record] if record is not None else [], records):
            self._keep(left)

    def _keep(self, record: IndexRecord) -> None:
        if record.path.endswith('/') and record.attrs is not None:
            self._directories[record.path] = record.attrs

    def _goes_into_archive(self, item: _Item) -> bool:
        if not self._is_to_archive or isinstance(key_to_path(item.key), Unmountable) or item.info.size > MEMBER_MAX:
            return False
        excluded = self._policy.upload_policy.archive_exclude_paths if self._policy is not None else ()
        return item.key.endswith('/') or not any(item.key == path or item.key.startswith(f'{path}/')
                                                 for path in (path.strip('/') for path in excluded) if path)

    def _attrs_of(self, item: _Item) -> tuple[Attrs, str, str]:
        """(attributes, link group, lifecycle). Raises NotFound, RemoteChanged."""
        if item.said is not None and item.said.attrs is not None:
            return item.said.attrs, item.said.link, item.said.lifecycle
        found = self._store.head(item.info.key)
        if found.etag != item.info.etag:
            raise RemoteChanged(item.key)
        attrs = posix_meta.decode(found.metadata, key=item.key, size=found.size, mtime_ns=found.mtime_ns, content_type=found.content_type,
                                  uid=os.getuid(), gid=os.getgid())
        if stat.S_ISLNK(attrs.mode) and attrs.target is None:
            attrs = msgspec.structs.replace(attrs, target=self._store.get(item.info.key, if_match=found.etag))
        stamp = posix_meta.decode_stamp(found.metadata)
        return attrs, '' if stamp is None else stamp.link, (found.metadata or {}).get(LIFECYCLE_NAME, '')

    def _done(self, item: _Item, etag: str) -> None:
        """It was written just now."""
        with self._lock:
            self._objects, self._bytes = self._objects + 1, self._bytes + item.info.size
        self._notes.add(item.key, item.info.etag, etag)
        crash_point('context-copy-after-object')
        self._progress(1, item.info.size)

    def _is_there(self, item: _Item) -> None:
        with self._lock:
            self._equal += 1
        self._progress(1, item.info.size)

    # --- as a member ----------------------------------------------------------------------------------------------------------------

    def _pack(self, item: _Item, existing: dict[str, str]) -> int:
        try:
            attrs, link, lifecycle = self._attrs_of(item)
        except (NotFound, RemoteChanged):
            return 1
        member = self._target.members.get(item.key)
        if member is not None and self._notes.is_copy(item.key, item.info.etag, member.record.etag) and lifecycle == member.record.lifecycle:
            self._is_there(item)
            self._archives.retell(member, attrs, link)
            return 0
        self._archives.add(Packable(item.key, item.info, attrs, link, lifecycle, existing.get(item.key, '')))
        return self._commit() if self._archives.is_full else 0

    def _commit(self) -> int:
        """What was collected; how many of it had changed."""
        items = self._archives.take()
        etags = self._archives.commit(items, self._source.store)
        for item in items:
            if (etag := etags.get(item.key)) is not None:
                self._done(_Item(item.key, item.info, None), etag)
        self._notes.store()
        return len(items) - len(etags)

    # --- as an object ---------------------------------------------------------------------------------------------------------------

    def _collected(self, running: set[Future[bool]]) -> tuple[set[Future[bool]], int]:
        done, left = wait(running, return_when=FIRST_COMPLETED)
        self._notes.store()
        return left, sum(not future.result() for future in done)

    def _make_object(self, item: _Item, existing: str) -> bool:
        """In a thread. False where it changed meanwhile."""
        try:
            is_same = existing and (existing == item.info.etag or self._notes.is_copy(item.key, item.info.etag, existing))
            etag = existing if is_same else self._written(item)
            if item.said is not None:
                self._records.append(msgspec.structs.replace(item.said, etag='' if item.key.endswith('/') else etag))
        except (NotFound, RemoteChanged):
            return False
        if is_same:
            self._is_there(item)
        else:
            self._done(item, etag)
        return True

    def _written(self, item: _Item) -> str:
        """Make the object; its etag."""
        key = self._target.prefix + item.key
        if not is_member(item.info.etag):
            return self._store.copy(item.info.key, key, source_etag=item.info.etag, size=item.info.size).etag
        attrs, link, lifecycle = self._attrs_of(item)
        member = self._source.members.get(item.key)
        if member is None or member.record.etag != item.info.etag:
            raise RemoteChanged(item.key)
        is_dir = stat.S_ISDIR(attrs.mode)
        body = b'' if is_dir else self._source.members.content(member)
        stamp = Stamp(sha256='' if is_dir else hash_in(item.info.etag), host=self._target.host, link=link)
        tags = {LIFECYCLE_NAME: lifecycle} if lifecycle else None
        return self._store.put(key, body, metadata={**posix_meta.encode(attrs, stamp), **(tags or {})}, tags=tags,
                               content_type=posix_meta.DIRECTORY_TYPE if is_dir else None).etag

    # --- afterwards -----------------------------------------------------------------------------------------------------------------

    def _remove_others(self) -> int:
        """What only the target has, and what is of the other kind there by now; with tombstones for hosts that knew it."""
        self._target.members.look()
        prefix = self._target.prefix
        members = [item.record.path for item in self._target.members.below('') if item.record.path not in self._packed]
        for start in range(0, len(members), _BATCH):
            self._target.members.delete(members[start:start + _BATCH])
        objects = [info.key[len(prefix):] for page in pages(self._store, prefix) for info in page.objects
                   if not info.key.startswith(prefix + RESERVED_DIR) and info.key[len(prefix):] not in self._own]
        for start in range(0, len(objects), _BATCH):
            batch, began_ns = objects[start:start + _BATCH], time.time_ns()
            for key, error in self._store.delete_many([(prefix + key, None) for key in batch]):
                raise error if isinstance(error, RemoteUnavailable) else type(error)(f'{key}: {error}')
            self._target.index.append(tombstones([key for key in batch if key not in self._packed], began_ns))
        return sum(key not in self._own for key in members) + sum(key not in self._packed for key in objects)

    def _write_index(self) -> None:
        """What is said of objects and, where they are no members' matter, of directories. The target's own is older, and would be believed where its
        times are later."""
        index = self._target.index
        gone = [record for record in index.read() if record.attrs is None]
        now_ns = time.time_ns()
        told = {} if self._is_to_archive else self._directories
        folders = [IndexRecord(path=path, changed_ns=now_ns, attrs=attrs) for path, attrs in told.items()]
        said = {record.path: record for record in [*gone, *folders, *self._records]}
        records = [said[path] for path in sorted(said)]
        for start in range(0, len(records), SEGMENT_RECORDS):
            index.append(records[start:start + SEGMENT_RECORDS])
        for start in range(0, len(self._old_index), _BATCH):
            self._store.delete_many([(key, None) for key in self._old_index[start:start + _BATCH]])
        index.compact(grace_ns=int(CompactIndex(prefix='').grace_seconds * 1e9))


def _policy_of(store: ObjectStore, source: ContextRecord, target: ContextRecord, mode: str) -> SyncPolicy | None:
    """The target's own where it has one with that mode, else the source's with the other mode; None where it has none: then mounts follow the
    mode by themselves."""
    own = _stored(store, target)
    if own is not None and own.upload_policy.upload_mode == mode:
        return own
    policy = _stored(store, source)
    if policy is None:
        return None
    excluded = policy.upload_policy.archive_exclude_paths if mode == 'Archive' else type(policy.upload_policy)().archive_exclude_paths
    upload = msgspec.structs.replace(policy.upload_policy, upload_mode=mode, archive_exclude_paths=excluded)
    return msgspec.structs.replace(policy, upload_policy=upload)


def _stored(store: ObjectStore, record: ContextRecord) -> SyncPolicy | None:
    data = load_policy(store, record.id)
    return None if data is None else parse_policy(data, origin=f'the policy of context {record.name}')
