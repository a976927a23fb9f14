"""Operations of Archive mode: packing, sending, committing, and the log.

Owns the requests that these take. It must not know why something is packed or what a commit means (archiver.py), nor the formats.
"""
from __future__ import annotations

import tempfile
from typing import BinaryIO, cast

from ctxfs.crash_points import crash_point
from ctxfs.errors import RemoteUnavailable
from ctxfs.records import LIFECYCLE_NAME
from ctxfs.storage.archive_log_format import LOG_DIR, MemberRecord
from ctxfs.sync import archive_protocol as archives
from ctxfs.sync import packing
from ctxfs.sync.abort_slots import boot_seconds
from ctxfs.sync.archive_log import LOST, ArchiveLog, Log, LogLost
from ctxfs.sync.archive_recovery import GONE, has_lost_log, repair
from ctxfs.sync.member_content import member_content
from ctxfs.sync.rivals import weigh
from ctxfs.sync.worker_context import OperationChannel, WorkerContext

_PART_RECORDS = 1000


def _log(context: WorkerContext, prefix: str) -> ArchiveLog:
    return ArchiveLog(context.store, prefix, executor=context.helpers, scratch_dir=context.options.cache_dir)


def pack(context: WorkerContext, op: archives.Pack, channel: OperationChannel) -> archives.PackDone:
    def source(item: archives.PackItem) -> bytes:
        if item.source_place is not None:
            return member_content(context.store, item.source_place, etag=item.source_etag, size=item.size)
        return context.store.get(item.source_key, if_match=item.source_etag)
    items, size = packing.pack(op.part, op.items, source=source, lifecycle=op.lifecycle, changed_ns=op.changed_ns)
    crash_point('worker-pack-after-part')
    return archives.PackDone(items=items, size=size)


def send_archive(context: WorkerContext, op: archives.SendArchive, channel: OperationChannel) -> archives.SendDone:
    if op.part is not None:
        with packing.completed(op.part, op.deleted) as file:
            size = _send(context, op, file, channel)
    else:
        with tempfile.TemporaryFile(prefix='ctxfs-archive-', dir=context.options.cache_dir) as file:
            packing.deletions_only(cast(BinaryIO, file), op.deleted)
            size = _send(context, op, cast(BinaryIO, file), channel)
    crash_point('worker-archive-after-send')
    return archives.SendDone(size=size)


def _send(context: WorkerContext, op: archives.SendArchive, file: BinaryIO, channel: OperationChannel) -> int:
    """Nobody else makes an object of that name, and it is never written again."""
    size = file.seek(0, 2)
    file.seek(0)
    named = {LIFECYCLE_NAME: op.lifecycle} if op.lifecycle else None
    context.store.put_file(op.key, file, size, content_type='application/zip', metadata=named, tags=named, progress=channel.moved)
    return size


def commit_archive(context: WorkerContext, op: archives.CommitArchive, channel: OperationChannel) -> archives.CommitDone:
    records: list[MemberRecord] = list(op.more)
    for ref, info in zip(op.parts, op.header.archives, strict=False):
        records += packing.records_of(ref, info.name)
    if boot_seconds() > op.until:
        raise RemoteUnavailable('the commit comes too late: the archive log has to be looked at again')
    prefix = op.key[:op.key.index(LOG_DIR)]
    size, is_recovered = _log(context, prefix).commit(op.header, records)
    return archives.CommitDone(size=size, is_recovered=is_recovered)


def read_log(context: WorkerContext, op: archives.ReadLog, channel: OperationChannel) -> archives.LogDone:
    log = _log(context, op.prefix)
    found = _whole(log.look(op.since), log, op, context)
    for entry in log.read(found, op.since):
        header = entry.header
        batch: list[MemberRecord] = []
        is_first = True
        for record in entry.records:
            batch.append(record)
            if len(batch) == _PART_RECORDS:
                channel.part(archives.LogPart(records=batch, header=header if is_first else None))
                batch, is_first = [], False
        if batch or is_first:
            channel.part(archives.LogPart(records=batch, header=header if is_first else None))
    return archives.LogDone(number=found.number, commits=found.commits, now_ns=found.now_ns)


def _whole(found: Log, log: ArchiveLog, op: archives.ReadLog, context: WorkerContext) -> Log:
    """What has all that a reader needs who knows everything up to `op.since`. Raises RemoteUnavailable."""
    if found.number and not found.has_all_after(op.since):
        found = log.look(op.since)      # what is compacted meanwhile is whole the next time
    is_whole = bool(found.number) and found.has_all_after(op.since)
    if is_whole:
        return found
    if op.may_repair and repair(context.store, op.prefix, since=op.since, host=context.host, tree_db=op.tree_db):
        return log.look(op.since)
    if found.number or (not op.may_repair and has_lost_log(context.store, op.prefix)):
        raise RemoteUnavailable(GONE if op.may_repair else LOST)
    return found


def write_base(context: WorkerContext, op: archives.WriteBase, channel: OperationChannel) -> archives.BaseDone:
    log = _log(context, op.prefix)
    try:
        number, records, removed = log.write_base(host=context.host, grace_ns=int(op.grace_seconds * 1e9))
    except LogLost:
        repair(context.store, op.prefix, since=0, host=context.host, tree_db=op.tree_db)
        raise
    return archives.BaseDone(number=number, records=records, removed=removed)


def weigh_rivals(context: WorkerContext, op: archives.Weigh, channel: OperationChannel) -> list[archives.Verdict]:
    return weigh(context.store, _log(context, op.prefix), op.rivals, prefix=op.prefix, run=context.helpers.map)
