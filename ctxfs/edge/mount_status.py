"""What a running mount says of itself: `status`, `statistics`, `policy` and the static facts.

Owns the JSON of these answers (README and docs/CONTROL.md show it; scripts rely on it). It must not know sockets or commands, and changes
nothing. Whatever costs by the number of files comes from LiveTally; all else is at hand.
"""
from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import trio

from ctxfs import __version__
from ctxfs.config import MountOptions
from ctxfs.edge.lag_alarm import LagAlarm
from ctxfs.edge.live_tally import LiveTally
from ctxfs.edge.tally_json import pending_of, requests_of, tally_to_dict
from ctxfs.errors import Damaged
from ctxfs.policy_text import policy_answer
from ctxfs.rules import Rules
from ctxfs.storage.audit_log import AuditLog
from ctxfs.storage.block_cache import BlockCache
from ctxfs.storage.journal import Journal
from ctxfs.storage.keys import printable
from ctxfs.storage.staging import Staging
from ctxfs.storage.tally import LISTED, Tally
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.downloads import Downloads
from ctxfs.sync.engine import UploadEngine
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.remote_tree import RemoteTreeLoader
from ctxfs.sync.tasks import TaskLog
from ctxfs.sync.warmup import Warmup

#: the size of the block cache is looked up at most so often
CACHE_SECONDS = 1.0


class Schedule(Protocol):
    """What decides when uploads begin by themselves, and holds back everything that does: polling and the warm-up, too."""

    @property
    def is_paused(self) -> bool: ...

    #: seconds from a change to its upload, 0 on close; None: by no clock
    @property
    def period(self) -> float | None: ...

    @property
    def is_manual(self) -> bool: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def next_at(self) -> float:
        """Unix seconds of the next upload that begins by itself; 0: none is due."""


class Damage(Protocol):
    """What is wrong with the tree database, and what it hides."""

    #: staged files that it does not know of, and their bytes
    files: int
    bytes: int

    def text(self) -> str:
        """For the user, in one line; '' when nothing is wrong."""


class ReadCounts(Protocol):
    """Reads of clean content: blocks that were at hand, and those that had to be fetched."""
    hits: int
    misses: int


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of a mount that its answers are made from."""
    options: MountOptions
    rules: Rules
    db: TreeDB
    journal: Journal
    staging: Staging
    cache: BlockCache
    pool: TransferPool
    engine: UploadEngine
    remote: RemoteTreeLoader
    tasks: TaskLog
    schedule: Schedule
    reads: ReadCounts
    warmup: Warmup
    downloads: Downloads
    known_inodes: Callable[[], int]
    recycle: Callable[[], dict[str, Any]]
    audit: AuditLog
    #: why writers get ENOSPC, '' while there is room
    refusal: Callable[[], str]
    damage: Damage


class StatusReport:
    """See the module docstring. Raises Corrupted when the tree database cannot be read."""

    def __init__(self, parts: Parts, tally: LiveTally, lag: LagAlarm) -> None:
        self._parts = parts
        self._tally = tally
        self._lag = lag
        self._started = trio.current_time()
        files, size = parts.staging.quarantined()
        self._quarantine = {'files': files, 'bytes': size, 'directory': str(parts.staging.quarantine_dir)} if files else None
        self._cache_used = (float('-inf'), 0)
        #: 'mounted', then 'flushing' once the mount point is gone
        self.state = 'mounted'

    @property
    def context_id(self) -> str:
        return self._parts.options.context_id

    def _identity(self) -> dict[str, Any]:
        o = self._parts.options
        return {'contextId': o.context_id, 'contextName': o.context_name, 'mountpoint': o.mountpoint, 'pid': os.getpid(),
                'store': o.store_url, 'stateDir': o.state_dir}

    # --- status -----------------------------------------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """See edge.control.MountControl. Answers also when the tree database cannot be read."""
        try:
            found = await self._status()
        except Damaged as error:
            self._parts.db.protect(str(error))
            found = {**self._identity(), 'state': self.state, **tally_to_dict(Tally()), 'tasks': self._parts.tasks.to_list()}
        damage = self._parts.damage
        found['damage'] = damage.text()
        if found['damage']:
            found['readOnly'] = True
            found['pending'].update(files=max(damage.files, found['pending']['files']), bytes=max(damage.bytes, found['pending']['bytes']))
        return found

    @property
    def damage(self) -> str:
        """Why the mount is read-only although nobody asked for it; '' for nearly all."""
        return self._parts.damage.text()

    async def _status(self) -> dict[str, Any]:
        parts, counts = self._parts, await self._tally.read()
        return {
            **self._identity(), 'state': self.state, 'readOnly': parts.options.read_only, 'paused': parts.schedule.is_paused,
            **tally_to_dict(counts), 'lag': self._lag.state(pending_of(counts)['oldestSeconds']),
            'nextUpload': self._next_upload(counts), 'tasks': parts.tasks.to_list(),
            'uploading': [path for ino in list(parts.engine.uploading)[:LISTED] if (path := self._path(ino)) is not None],
            'rates': parts.pool.meter.rates(), 'policy': self._policy_line(), 'recycle': parts.recycle(),
            'cache': self._cache(), 'remote': self._remote(), 'audit': parts.audit.state(), 'quarantine': self._quarantine,
            'limits': self._limits(), 'requests': requests_of(parts.pool.board.tallies())}

    def _limits(self) -> dict[str, Any]:
        """null: none."""
        o = self._parts.options
        return {'uploadBytes': o.upload_rate or None, 'downloadBytes': o.download_rate or None, 'transfers': o.transfers or None}

    def _next_upload(self, counts: Tally) -> float:
        """0 where nothing waits for a clock."""
        at = self._parts.schedule.next_at() if counts.files and self.state == 'mounted' else 0.0
        return 0 if at <= 0 else round(at, 3)

    def _path(self, ino: int) -> str | None:
        inode = self._parts.db.live_inode(ino)
        keys = self._parts.db.keys_of(inode) if inode is not None and inode.nlink else []
        return '/' + printable(keys[0]) if keys else None

    def _policy_line(self) -> dict[str, Any]:
        policy, options = self._parts.rules.policy, self._parts.options
        return {'source': options.policy_source, 'period': self._parts.schedule.period,
                'autoUpload': policy.upload_policy.auto_upload, 'autoDownload': policy.download_policy.auto_download,
                'whiteLists': 0 if self._parts.rules.gate.is_everything else len(policy.bw_list.white_lists), 'conflict': options.conflict}

    def _cache(self) -> dict[str, Any]:
        """`used`: clean blocks; `dirty`: what waits for its upload. Both share `limit`; `kept` (local-only) is bounded by the disk. `full`: why
        writers get ENOSPC, '' while there is room. `damaged`: blocks with wrong bytes that readers met, and that were fetched again."""
        looked_at, used = self._cache_used
        if trio.current_time() - looked_at > CACHE_SECONDS:
            used = self._parts.cache.volume()
            self._cache_used = (trio.current_time(), used)
        staging = self._parts.staging
        return {'used': used, 'dirty': staging.used, 'kept': staging.kept, 'limit': self._parts.options.cache_size,
                'full': self._parts.refusal(), 'damaged': self._parts.cache.damaged}

    def note_cache(self) -> None:
        """Much of it is gone, or came: who asks next wants to see that."""
        self._cache_used = (float('-inf'), 0)

    def _remote(self) -> dict[str, Any]:
        remote = self._parts.remote
        return {'isComplete': remote.is_complete, 'objects': remote.listed_objects, 'error': str(remote.error or ''),
                'lastPoll': round(remote.last_poll, 3)}

    # --- the others -------------------------------------------------------------------------------------------------------------------

    def mount_info(self) -> dict[str, Any]:
        o = self._parts.options
        return {'version': __version__, **self._identity(), 'cacheDir': o.cache_dir, 'cacheSize': o.cache_size, 'readOnly': o.read_only,
                'fsync': o.fsync, 'conflict': o.conflict, 'logFile': o.log_file, 'policySource': o.policy_source, 'policyFile': o.policy_file,
                'pollEvery': o.poll_every}

    async def statistics(self) -> dict[str, Any]:
        """See edge.control.MountControl."""
        parts, counts = self._parts, await self._tally.read()
        return {
            'uptime': round(trio.current_time() - self._started, 3), 'workers': msgspec.to_builtins(parts.pool.statistics()),
            **parts.pool.meter.to_dict(), 'rates': parts.pool.meter.rates(),
            'requests': requests_of(parts.pool.board.tallies(), with_times=True),
            'cache': {**self._cache(), 'hits': parts.reads.hits, 'misses': parts.reads.misses},
            'warmup': parts.warmup.progress(),
            'inodes': {'known': parts.known_inodes(), 'objects': parts.remote.listed_objects},
            'durability': {'unhardened': len(parts.staging.unhardened)},
            'pending': pending_of(counts), 'localOnly': {'files': counts.local_files, 'bytes': counts.local_bytes},
            'tasks': self._task_counts(), 'polls': parts.remote.polls}

    def _task_counts(self) -> dict[str, dict[str, int]]:
        log = self._parts.tasks
        return {kind: {'running': sum(task.task_type == kind for task in log.running), 'ended': log.ended_of(kind)}
                for kind in ('upload', 'download')}

    def policy(self) -> dict[str, Any]:
        """See edge.control.MountControl."""
        options, policy = self._parts.options, self._parts.rules.policy
        answer = policy_answer(policy, source=options.policy_source, sync_every=options.sync_every, conflict=options.conflict)
        return {**answer, 'file': options.policy_file, 'period': self._parts.schedule.period}

