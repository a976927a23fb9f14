"""Which function runs which operation of the protocol.

Owns the table, nothing else. It must not know the pipe.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ctxfs.sync import archive_protocol, protocol, worker_ops_archive, worker_ops_index, worker_ops_put, worker_ops_read, worker_ops_warm
from ctxfs.sync.worker_context import OperationChannel, WorkerContext

HANDLERS: dict[type[Any], Callable[[WorkerContext, Any, OperationChannel], Any]] = {
    protocol.PutFile: worker_ops_put.put_file,
    protocol.PutMany: worker_ops_put.put_many,
    protocol.PutBytes: worker_ops_put.put_bytes,
    protocol.Heartbeat: worker_ops_put.heartbeat,
    protocol.Copy: worker_ops_put.copy,
    protocol.DeleteMany: worker_ops_put.delete_many,
    protocol.Head: worker_ops_read.head,
    protocol.ListPages: worker_ops_read.list_pages,
    protocol.Fetch: worker_ops_read.fetch,
    protocol.Warm: worker_ops_warm.warm,
    protocol.Hydrate: worker_ops_read.hydrate,
    protocol.Adopt: worker_ops_read.adopt,
    protocol.TidyCache: worker_ops_read.tidy_cache,
    protocol.Probe: worker_ops_read.probe,
    protocol.Check: worker_ops_read.check,
    protocol.EnsureExpiry: worker_ops_put.ensure_expiry,
    protocol.ReadIndex: worker_ops_index.read_index,
    protocol.WriteSegment: worker_ops_index.write_segment,
    protocol.CompactIndex: worker_ops_index.compact_index,
    archive_protocol.Pack: worker_ops_archive.pack,
    archive_protocol.SendArchive: worker_ops_archive.send_archive,
    archive_protocol.CommitArchive: worker_ops_archive.commit_archive,
    archive_protocol.ReadLog: worker_ops_archive.read_log,
    archive_protocol.WriteBase: worker_ops_archive.write_base,
    archive_protocol.Weigh: worker_ops_archive.weigh_rivals,
}
