"""Clearing and deleting contexts: every file of one goes, in batches, and it says `clearing` from before the first until after the last.

Owns the order of steps, who may do it while somebody has it mounted, and what of ctxfs's own objects stays. It must not know the registry's
objects (storage/registry_changes.py) nor the heartbeats' (storage/heartbeats.py). Synchronous.

    no mount → record: clearing → no mount, still → batches: objects go, tombstones tell other hosts → a pass that finds nothing
    → clear:  the index is merged → record: available          delete:  the claim goes → the record goes
A mount writes its heartbeat, then looks at the record, then begins; a clearing marks the record, then looks at the heartbeats, then begins: so one
of them sees the other. After a crash whoever calls again goes on; a context that was being deleted can only be deleted on.

Two may be at it at once: one goes on with what the other, slow or on another host, never gave up. The record is looked at after each page of the
listing, so who was overtaken removes nothing that came after the other was done, and never calls available what the other deletes.
"""
from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from ctxfs.crash_points import crash_point
from ctxfs.errors import Denied, InUse, RemoteUnavailable
from ctxfs.records import RESERVED_DIR, IndexRecord
from ctxfs.storage import registry_changes
from ctxfs.storage.heartbeats import Beat, live_mounts
from ctxfs.storage.listing import pages
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.registry import ContextRecord, Registry
from ctxfs.sync.context_members import ContextMembers
from ctxfs.sync.index_log import IndexLog
from ctxfs.sync.protocol import CompactIndex

#: what a context keeps of ctxfs's own when it is cleared: its policy, the index (with tombstones), and what its mounts agree by
_KEPT = tuple(RESERVED_DIR + name for name in ('policy', 'mode', 'index/', 'archive/log/', 'turn/', 'mounts/'))
#: a mount that goes on writing into a context that is cleared by force is not waited for
_PASSES = 5

IsDead = Callable[[Beat], bool]
Progress = Callable[[int], None]


def check_unused(store: ObjectStore, record: ContextRecord, *, is_dead: IsDead, what: str) -> None:
    """Raises InUse, which names the mounts."""
    found = live_mounts(store, record.id, is_dead=is_dead)
    if found:
        places = ', '.join(beat.text() for beat in found[:3]) + (' …' if len(found) > 3 else '')
        raise InUse(f'context {record.name} is mounted ({places}); unmount it there' + (f', or {what} it with --force' if what else ''))


def begin(store: ObjectStore, record: ContextRecord, *, deletes: bool, force: bool, is_dead: IsDead) -> ContextRecord:
    """Mark the context. From here on it is cleared or deleted, if need be by somebody else. Raises InUse unless `force`."""
    what = 'delete' if deletes else 'clear'
    if not force:
        check_unused(store, record, is_dead=is_dead, what=what)
    try:
        if Registry(store).record(record.id) is None:
            registry_changes.keep_record(store, record)
    except Denied as error:
        raise Denied(f'to {what} a context takes rights to its record below .ctxfs/contexts/, too ({error})') from error
    marked, is_ours = registry_changes.begin_clearing(store, record.id, deletes=deletes)
    crash_point('context-clear-after-mark')
    if not force:
        try:
            check_unused(store, record, is_dead=is_dead, what=what)
        except InUse:
            if is_ours:
                registry_changes.take_back_clearing(store, record.id)
            raise
    return marked


def finish(store: ObjectStore, record: ContextRecord, *, host: str, progress: Progress = lambda count: None) -> int:
    """Do what `begin` has marked, or go on with it; how many objects went. `progress`: so many more. Raises what the store raises; then the
    context says `clearing` still."""
    doomed = record.is_doomed is True
    index = IndexLog(store, record.prefix, host=host)
    count = 0
    if not doomed and _is_ours(store, record):      # first: what hosts that come back see of it, before the archives go
        count += ContextMembers(store, record.prefix, host=host).clear()
    for _ in range(_PASSES):
        gone = _one_pass(store, record, index=index, progress=progress)
        count += gone
        if not gone:
            break
    if doomed:
        if _is_ours(store, record):
            registry_changes.remove(store, record)
        elif Registry(store).record(record.id) is not None:
            raise InUse(f'context {record.name} is not to be deleted any more: it was mounted meanwhile')
        return count
    if count:
        index.compact(grace_ns=int(CompactIndex(prefix='').grace_seconds * 1e9))
    crash_point('context-clear-before-state')
    registry_changes.end_clearing(store, record.id)
    return count


def _one_pass(store: ObjectStore, record: ContextRecord, *, index: IndexLog, progress: Progress) -> int:
    doomed, prefix = record.is_doomed is True, record.prefix
    kept = () if doomed else tuple(prefix + name for name in _KEPT)
    count = 0
    for page in pages(store, prefix):
        keys = [info.key for info in page.objects if not info.key.startswith(kept)]
        if keys:
            if not _is_ours(store, record):
                break
            _remove_batch(store, prefix, keys, None if doomed else index)
            count += len(keys)
            progress(len(keys))
    return count


def _is_ours(store: ObjectStore, record: ContextRecord) -> bool:
    """Whether what was listed before this was asked is still to go."""
    now = Registry(store).record(record.id)
    return now is not None and now.state == 'clearing' and record.is_doomed in (now.is_doomed, msgspec.UNSET)


def _remove_batch(store: ObjectStore, prefix: str, keys: list[str], index: IndexLog | None) -> None:
    began_ns = time.time_ns()
    failures = dict(store.delete_many([(key, None) for key in keys]))
    crash_point('context-clear-after-batch')
    gone = [key[len(prefix):] for key in keys if key not in failures]
    if index is not None and gone:
        index.append(tombstones(gone, began_ns))
    for key, error in failures.items():
        raise error if isinstance(error, RemoteUnavailable) else type(error)(f'{key}: {error}')


def tombstones(paths: list[str], at_ns: int) -> list[IndexRecord]:
    """What tells other hosts that these objects are gone."""
    return [IndexRecord(path=path, changed_ns=at_ns) for path in paths if path and not path.startswith(RESERVED_DIR)]


def renamed(store: ObjectStore, record: ContextRecord, name: str) -> ContextRecord:
    """The context with its new name; also one that no registry knew so far. Raises as registry_changes.rename."""
    if Registry(store).record(record.id) is None:
        registry_changes.keep_record(store, msgspec.structs.replace(record, name=record.id))
    return registry_changes.rename(store, record, name)
