"""Operations on the index of a context: streamed reading, appending, compacting. What comes as seldom as that, and is tidied up with it: the
heartbeats of mounts that ended without a word.

Owns only the cutting of the stream into parts. It must not know the format or the merging (index_log.py).
"""
from __future__ import annotations

import contextlib

from ctxfs.errors import CtxfsError
from ctxfs.records import IndexRecord
from ctxfs.storage import heartbeats
from ctxfs.sync import protocol
from ctxfs.sync.index_log import IndexLog
from ctxfs.sync.worker_context import OperationChannel, WorkerContext

_PART_RECORDS = 1000


def _log(context: WorkerContext, prefix: str) -> IndexLog:
    return IndexLog(context.store, prefix, host=context.host, executor=context.helpers, scratch_dir=context.options.cache_dir)


def read_index(context: WorkerContext, op: protocol.ReadIndex, channel: OperationChannel) -> protocol.IndexDone:
    reading = _log(context, op.prefix).read(op.seen)
    batch: list[IndexRecord] = []
    for record in reading:
        batch.append(record)
        if len(batch) == _PART_RECORDS:
            channel.part(protocol.IndexPart.of(batch))
            batch = []
    if batch:
        channel.part(protocol.IndexPart.of(batch))
    state = reading.state
    return protocol.IndexDone(names=state.names, segments=state.segments, segment_bytes=state.segment_bytes, base_bytes=state.base_bytes,
                     skipped=state.skipped, is_compaction_due=state.is_compaction_due)


def write_segment(context: WorkerContext, op: protocol.WriteSegment, channel: OperationChannel) -> protocol.SegmentDone:
    name, size = _log(context, op.prefix).append(op.records)
    return protocol.SegmentDone(name=name, size=size)


def compact_index(context: WorkerContext, op: protocol.CompactIndex, channel: OperationChannel) -> protocol.CompactDone:
    index = _log(context, op.prefix)
    name, records, removed = index.compact(grace_ns=int(op.grace_seconds * 1e9))
    with contextlib.suppress(CtxfsError):       # they are there until the next time
        heartbeats.remove_dead(context.store, op.prefix)
    return protocol.CompactDone(name=name, records=records, removed=removed, left=index.left)
