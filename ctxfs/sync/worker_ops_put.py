"""Operations that change the bucket: uploads, copies, deletes.

Owns what makes an upload whole (the abort slot is asked after the last byte was read) and known (a lost response is resolved by one HEAD).
It must not know why something is uploaded or when it is tried again.
"""
from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

import msgspec

from ctxfs.crash_points import crash_point, exempted
from ctxfs.errors import Contradicted, CtxfsError, Denied, OutOfTurn, RemoteChanged, RemoteUnavailable
from ctxfs.policy import FOREVER
from ctxfs.records import LIFECYCLE_NAME, Attrs, ObjectInfo, Stamp
from ctxfs.storage import fibers, posix_meta
from ctxfs.storage.block_sums import BLOCK_SIZE
from ctxfs.storage.object_store import Aborted
from ctxfs.storage.registry import Registry
from ctxfs.storage.registry_changes import check_whole
from ctxfs.sync import protocol
from ctxfs.sync.error_travel import translate
from ctxfs.sync.measured import Measured
from ctxfs.sync.worker_context import OperationChannel, WorkerContext
from ctxfs.sync.worker_ops_read import VERIFY_BYTES, content_hash

log = logging.getLogger(__name__)

#: files up to this are read once into memory; larger ones are read twice, to hash and to send
WHOLE_BYTES = 8 << 20
#: errors after which there is nothing to find out
NOTHING_SENT = (OutOfTurn, Contradicted)


def put_file(context: WorkerContext, op: protocol.PutFile, channel: OperationChannel) -> protocol.PutDone:
    crash_point('worker-put-before-read')
    with open(op.path, 'rb', buffering=0) as file:
        before = os.fstat(file.fileno())
        measured = Measured(context.store, op.size)
        body = _read_whole(file, op.size) if op.size <= WHOLE_BYTES else None
        if body is not None:
            measured.update(body)
        elif op.size > WHOLE_BYTES:
            _measure(file, channel, measured)
        digest = measured.sha256()
        context.recent_sums.note(op.path, before, measured.cache_sums)
        unchanged = _watch(context, op, file)
        if not unchanged():
            return protocol.PutDone(etag='', size=op.size, sha256=digest, is_aborted=True)
        if op.condition.etag is not None and not op.lifecycle and not op.member and (
                digest == op.base_sha256 or (body is not None and context.store.etag_of(body) == op.condition.etag)):
            return protocol.PutDone(etag=op.condition.etag, size=op.size, sha256=digest, is_skipped=True)
        crash_point('worker-put-before-send')
        done = _send(context, op, _stamp(context, op, measured), body, file, unchanged, channel)
    crash_point('worker-put-after-commit')
    return done


def put_many(context: WorkerContext, op: protocol.PutMany, channel: OperationChannel) -> protocol.PutManyDone:
    def put(file: protocol.PutFile) -> protocol.PutDone:
        if channel.is_cancelled:
            raise CtxfsError('nobody waited for it any more')
        return put_file(context, file, channel)
    outcomes = fibers.run_all([functools.partial(put, file) for file in op.files], most=op.parallel)
    return protocol.PutManyDone(items=[_put_item(file.key, outcome) for file, outcome in zip(op.files, outcomes, strict=True)])


def _put_item(key: str, outcome: protocol.PutDone | Exception) -> protocol.PutItem:
    if not isinstance(outcome, Exception):
        return protocol.PutItem(done=outcome)
    name, message = protocol.describe(translate(outcome))
    return protocol.PutItem(failure=protocol.ItemFailure(key=key, name=name, message=message), retry_after=getattr(outcome, 'retry_after', 0.0))


def _read_whole(file: BinaryIO, size: int) -> bytes | None:
    """All of the file, or None when it is not `size` bytes long any more (one byte more is asked for, to notice growth)."""
    pieces, wanted = [], size + 1
    while wanted and (piece := file.read(wanted)):
        pieces.append(piece)
        wanted -= len(piece)
    return b''.join(pieces) if wanted == 1 else None


def _measure(file: BinaryIO, channel: OperationChannel, measured: Measured) -> None:
    while (piece := file.read(BLOCK_SIZE)) and not channel.is_cancelled:
        measured.update(piece)
    file.seek(0)


def _watch(context: WorkerContext, op: protocol.PutFile, file: BinaryIO) -> Callable[[], bool]:
    """A function that says, when the last byte was read, whether what was read is one whole state of the file. The slot proves it
    (abort_slots.py); size and mtime catch a writer who does not know of slots."""
    before = os.fstat(file.fileno())

    def unchanged() -> bool:
        now = os.fstat(file.fileno())
        return (not context.flags.is_set(op.abort_slot) and now.st_size == op.size
                and now.st_mtime_ns == before.st_mtime_ns)
    return unchanged


def _send(context: WorkerContext, op: protocol.PutFile, stamp: Stamp, body: bytes | None, file: BinaryIO, unchanged: Callable[[], bool],
          channel: OperationChannel) -> protocol.PutDone:
    metadata, tags = _metadata(op.attrs, stamp, op.lifecycle)
    try:
        if op.size <= WHOLE_BYTES:
            assert body is not None, 'unchanged() compared the size'
            result = context.store.put(op.key, body, metadata=metadata, content_type=op.content_type, condition=op.condition,
                                       tags=tags)
            channel.moved(op.size)
        else:
            result = context.store.put_file(op.key, file, op.size, metadata=metadata, content_type=op.content_type,
                                            condition=op.condition, tags=tags, may_commit=lambda: unchanged() and not channel.is_cancelled,
                                            progress=channel.moved)
    except Aborted:
        return protocol.PutDone(etag='', size=op.size, sha256=stamp.sha256, is_aborted=True)
    except NOTHING_SENT:
        raise
    except (RemoteChanged, RemoteUnavailable) as error:
        info = _recover(context, op.key, stamp.sha256, error, size=op.size, path=op.path, body=body)
        return protocol.PutDone(etag=info.etag, size=op.size, sha256=stamp.sha256, lifecycle=_lifecycle_of(info), is_recovered=True)
    return protocol.PutDone(etag=result.etag, size=op.size, sha256=stamp.sha256, lifecycle=_written(op.lifecycle))


def _metadata(attrs: Attrs | None, stamp: Stamp, lifecycle: str) -> tuple[dict[str, str], dict[str, str] | None]:
    """(metadata, tags). The lifecycle goes into both: a store's own rules go by the tag, ctxfs by the metadata, which every store keeps."""
    metadata = posix_meta.encode(attrs, stamp)
    if _written(lifecycle):
        metadata[LIFECYCLE_NAME] = lifecycle
    return metadata, {LIFECYCLE_NAME: lifecycle} if lifecycle else None


def _written(lifecycle: str) -> str:
    """FOREVER only replaces the tag that was there, which some servers would keep."""
    return '' if lifecycle == FOREVER else lifecycle


def _lifecycle_of(info: ObjectInfo) -> str:
    return (info.metadata or {}).get(LIFECYCLE_NAME, '')


def _stamp(context: WorkerContext, op: protocol.PutFile | protocol.PutBytes, measured: Measured) -> Stamp:
    return Stamp(sha256=measured.sha256(), host=context.host, revision=op.revision, link=op.link, attempt=op.attempt,
                 base=_version(op.key, op.condition.etag), member=_version(op.key, op.member), etag=measured.etag(), sums=measured.sums())


def _version(key: str, etag: str | None) -> str:
    return posix_meta.version_id(key, etag) if etag else ''


def _recover(context: WorkerContext, key: str, digest: str, error: CtxfsError, *, size: int | None = None, path: str = '',
             body: bytes | None = None) -> ObjectInfo:
    """The outcome of a write whose answer was lost, or that a condition refused: done after all if the object holds the very content
    (the first try arrived and a second one met it, also across a crash; or somebody else wrote the same), or if it says that it replaced
    this content. Otherwise raises `error`, or what kept us from finding out, where that may be found out later: a conflict is declared only
    when it is known."""
    try:
        info = context.store.head(key)
        if size in (None, info.size) and _holds(context, info, digest, path):
            log.info('the write of %s had arrived although its answer did not', key)
            return info
        etag = None if body is None else context.store.etag_of(body)
        stamp = posix_meta.decode_stamp(info.metadata or {})
        if body is not None and etag is not None and stamp is not None and stamp.base == _version(key, etag):
            log.info('the write of %s had arrived, and was replaced before anybody here heard of it', key)
            return ObjectInfo(key=key, size=len(body), etag=etag, mtime_ns=info.mtime_ns)
        raise error
    except CtxfsError as problem:
        # Unanswered stays what it is: what was sent may yet arrive
        raise (problem if problem.transient and not error.transient else error) from None


def _holds(context: WorkerContext, info: ObjectInfo, digest: str, path: str) -> bool:
    """Whether the object's content has this SHA-256. Read, because a tool that rewrites objects but keeps their metadata would leave our stamp on
    its content; but for large objects with our own stamp, which was written a moment ago, and large ones of which nothing says that it pays."""
    if info.size > VERIFY_BYTES:
        stamp = posix_meta.decode_stamp(info.metadata or {})
        is_promised = stamp is not None and stamp.sha256 == digest
        if stamp is not None and is_promised and stamp.host == context.host:
            return True
        if not (is_promised or path):
            return False
    return content_hash(context, info, path) == digest


def put_bytes(context: WorkerContext, op: protocol.PutBytes, channel: OperationChannel) -> protocol.PutDone:
    measured = Measured(context.store, len(op.body))
    measured.update(op.body)
    digest = measured.sha256()
    metadata, tags = _metadata(op.attrs, _stamp(context, op, measured), op.lifecycle)
    is_recovered, lifecycle = False, _written(op.lifecycle)
    try:
        etag = context.store.put(op.key, op.body, metadata=metadata, content_type=op.content_type, condition=op.condition, tags=tags).etag
    except NOTHING_SENT:
        raise
    except (RemoteChanged, RemoteUnavailable) as error:
        info = _recover(context, op.key, digest, error, size=len(op.body), body=op.body)
        etag, lifecycle, is_recovered = info.etag, _lifecycle_of(info), True
    crash_point('worker-put-after-commit')
    return protocol.PutDone(etag=etag, size=len(op.body), sha256=digest, lifecycle=lifecycle, is_recovered=is_recovered)


def copy(context: WorkerContext, op: protocol.Copy, channel: OperationChannel) -> protocol.CopyDone:
    lifecycle = _written(op.lifecycle)
    try:
        metadata, tags = _copied_metadata(context, op) if op.lifecycle or op.member else (None, None)
        result = context.store.copy(op.source, op.key, source_etag=op.source_etag, size=op.size, condition=op.condition, metadata=metadata,
                                    tags=tags)
        etag, size = result.etag, result.size
    except NOTHING_SENT:
        raise
    except (RemoteChanged, RemoteUnavailable) as error:
        info = _recover(context, op.key, op.sha256 or _source_hash(context, op, error), error, size=op.size)
        etag, size, lifecycle = info.etag, info.size, _lifecycle_of(info)
    crash_point('worker-copy-after-commit')
    return protocol.CopyDone(etag=etag, size=size, lifecycle=lifecycle)


def _copied_metadata(context: WorkerContext, op: protocol.Copy) -> tuple[dict[str, str], dict[str, str] | None]:
    """The source's metadata with the other lifecycle, or what is said of a member: whoever wrote the rest, it goes along."""
    metadata = dict(context.store.head(op.source).metadata or {})
    if op.member:
        stamp = posix_meta.decode_stamp(metadata) or Stamp()
        metadata['ctxfs'] = posix_meta.encode_stamp(msgspec.structs.replace(stamp, member=_version(op.key, op.member)))
    if not op.lifecycle:
        return metadata, None
    metadata.pop(LIFECYCLE_NAME, None)
    if _written(op.lifecycle):
        metadata[LIFECYCLE_NAME] = op.lifecycle
    return metadata, {LIFECYCLE_NAME: op.lifecycle}


def _source_hash(context: WorkerContext, op: protocol.Copy, error: CtxfsError) -> str:
    """The SHA-256 of what was to be copied; raises `error` where it cannot be had."""
    try:
        info = context.store.head(op.source)
        stamp = posix_meta.decode_stamp(info.metadata or {})
        if info.size <= VERIFY_BYTES and op.source_etag in (None, info.etag):
            return content_hash(context, info)
    except CtxfsError:
        raise error from None
    if stamp is None or op.source_etag not in (None, info.etag):
        raise error
    return stamp.sha256


def delete_many(context: WorkerContext, op: protocol.DeleteMany, channel: OperationChannel) -> protocol.DeleteDone:
    failures = []
    for key, error in context.store.delete_many(op.items):
        name, message = protocol.describe(error)
        failures.append(protocol.ItemFailure(key=key, name=name, message=message))
    crash_point('worker-delete-after-commit')
    return protocol.DeleteDone(failures=failures)


def ensure_expiry(context: WorkerContext, op: protocol.EnsureExpiry, channel: OperationChannel) -> protocol.CheckDone:
    """One rule of the bucket per lifecycle value, whatever the number of contexts."""
    context.store.ensure_expiry(f'ctxfs-{op.lifecycle}', tag=(LIFECYCLE_NAME, op.lifecycle), days=op.days)
    return protocol.CheckDone()


def heartbeat(context: WorkerContext, op: protocol.Heartbeat, channel: OperationChannel) -> protocol.CheckDone:
    with exempted():
        if op.body is None:
            context.store.delete(op.key)
        else:
            context.store.put(op.key, op.body, content_type='application/json')
    if op.context_id:
        with suppress(Denied):      # credentials for the context alone do not reach the registry
            if (record := Registry(context.store).record(op.context_id)) is not None:
                check_whole(record)
    return protocol.CheckDone()
