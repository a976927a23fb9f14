"""What a mount knows of its store when it begins, and how it writes there: remembered capabilities, this host's turns, and its heartbeat.

Owns the wiring of these parts for the daemon. It must not decide anything that they decide.
"""
from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from ctxfs.config import MountOptions
from ctxfs.records import RESERVED_DIR
from ctxfs.storage.heartbeats import Beat, beat_name, encode
from ctxfs.storage.registry import context_prefix, iso_now
from ctxfs.storage.remembered import Remembered
from ctxfs.storage.stores import directory_of
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.abilities import Abilities
from ctxfs.sync.guarded import GuardedPool
from ctxfs.sync.heartbeat import Heartbeat
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.ports import Spawn
from ctxfs.sync.protocol import WorkerOptions
from ctxfs.sync.turns import Turns


def memory_of(state_root: Path, store_url: str, context_id: str) -> Remembered:
    """What is remembered of a store for one context: its credentials may be good for nothing else."""
    return Remembered(state_root, store_url, context_prefix(context_id) + RESERVED_DIR)


def threads_for(transfers: int) -> int:
    """Of each worker: enough for so many transfers in one, beside the quarter that is kept for programs that wait."""
    return max(WorkerOptions.__struct_defaults__[WorkerOptions.__struct_fields__.index('threads') - len(WorkerOptions.__struct_fields__)],
               -(-4 * transfers // 3) + 1)


class StoreAccess:
    """For one mount. Reads what is remembered."""

    def __init__(self, options: MountOptions) -> None:
        self._options = options
        # a directory is asked at once, and always says the same
        self._memory = None if directory_of(options.store_url) else memory_of(Path(options.state_dir).parent, options.store_url, options.context_id)
        answer = self._memory.find() if self._memory is not None else None
        self._known = answer.capabilities if answer is not None else None

    def worker_options(self, *, cache_limit: int) -> WorkerOptions:
        options = self._options
        return WorkerOptions(
            store_url=options.store_url, store_options={'scratch_prefix': context_prefix(options.context_id) + RESERVED_DIR,
                                                          'silence': options.silence},
            cache_dir=options.cache_dir, cache_limit=cache_limit, host=options.host_id, uid=options.uid, gid=options.gid, umask=options.umask,
            log_level=logging.getLogger().level, log_style=options.log_style,
            capabilities=None if self._known is None else msgspec.structs.asdict(self._known),
            upload_rate=options.upload_rate, download_rate=options.download_rate, transfers=options.transfers,
            threads=threads_for(options.transfers))

    def writers(self, pool: TransferPool, db: TreeDB, spawn: Spawn) -> tuple[GuardedPool, Turns]:
        """What writes to the bucket goes through, and what is to be told when all has been written."""
        turns = Turns(pool, prefix=context_prefix(self._options.context_id), host=self._options.host_id, tell=pool.slots.set_turn, spawn=spawn,
                      notes=db)
        return GuardedPool(pool, abilities=Abilities(pool, memory=self._memory, known=self._known), turns=turns), turns

    def heartbeat(self, pool: TransferPool) -> Heartbeat:
        """By which others see that the context is in use."""
        options = self._options
        beat = Beat(host_id=options.host_id, host=options.host_name or options.host_id[:8], mountpoint=options.mountpoint, pid=os.getpid(),
                    since=iso_now())
        return Heartbeat(pool, key=context_prefix(options.context_id) + beat_name(options.host_id, options.state_dir), body=encode(beat))
