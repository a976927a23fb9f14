"""The parts of a mount that only Archive mode has.

Owns their wiring for the daemon. It must not decide anything that they decide.
"""
from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ctxfs.config import MountOptions
from ctxfs.rules import Rules
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.members import Place
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.archive_alone import Alone
from ctxfs.sync.archive_commit import ArchiveCommitter
from ctxfs.sync.archive_intents import Intents
from ctxfs.sync.archive_mirror import ArchiveMirror
from ctxfs.sync.archive_plan import ArchivePlan
from ctxfs.sync.archive_rivals import ArchiveRivals
from ctxfs.sync.archive_upkeep import ArchiveUpkeep
from ctxfs.sync.archive_view import ArchiveView
from ctxfs.sync.archiver import Archiver
from ctxfs.sync.asides import Asides
from ctxfs.sync.audit import Auditor
from ctxfs.sync.context_mode import ModeRecorder
from ctxfs.sync.finishing import Finisher
from ctxfs.sync.guarded import GuardedPool
from ctxfs.sync.member_readahead import MemberReadahead
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.protocol import WarmItem
from ctxfs.sync.reconcile import Reconciler
from ctxfs.sync.recycle import Recycler
from ctxfs.sync.uploader import Uploader


class Base(NamedTuple):
    """What all parts work on."""
    options: MountOptions
    db: TreeDB
    journal: Journal
    staging: Staging
    prefix: str
    rules: Rules


class ArchiveMode:
    """Of a context in Archive mode; `mirror` is None for one in File mode, and nothing else of it is used."""

    def __init__(self, base: Base, reconciler: Reconciler, pool: TransferPool) -> None:
        self._base = base
        self._pool = pool
        self._reconciler = reconciler
        #: made with the archiver
        self.upkeep: ArchiveUpkeep | None = None
        self.mirror = ArchiveMirror(base.db, base.journal, reconciler, pool, prefix=base.prefix, below=base.options.below,
                                    may_repair=not base.options.read_only) \
            if base.options.policy.upload_policy.upload_mode == 'Archive' else None
        self._readahead = None if self.mirror is None else MemberReadahead(self.mirror, prefix=base.prefix)
        #: the pool as whoever looks at the bucket sees it
        self.view: TransferPool | ArchiveView = pool if self.mirror is None else ArchiveView(pool, self.mirror, prefix=base.prefix)

    def covered(self, key: str) -> str:
        """See Planner."""
        member = None if self.mirror is None else self.mirror.rows.get(key)
        return '' if member is None else member.shadows

    def displaced(self, key: str) -> None:
        """See Uploader."""
        if self.mirror is not None:
            self.mirror.rows.set_shadowed(key, 1)

    def place_of(self, source: Known) -> Place | None:
        """See RemoteContentLoader."""
        return None if self.mirror is None else self.mirror.place_of(source)

    def neighbours_of(self, source: Known) -> list[WarmItem]:
        """See RemoteContentLoader."""
        return [] if self._readahead is None else self._readahead.neighbours(source)

    async def follow(self) -> None:
        """See RemoteContentLoader."""
        if self.mirror is not None:
            await self.mirror.catch_up()

    def recorder(self, writers: GuardedPool) -> ModeRecorder:
        options = self._base.options
        return ModeRecorder(writers, prefix=self._base.prefix.removesuffix(options.below), name=options.context_name,
                            mode=options.policy.upload_policy.upload_mode, is_done=options.is_mode_recorded)

    def archiver(self, writers: GuardedPool, uploader: Uploader, finisher: Finisher, recycler: Recycler, auditor: Auditor,
                 asides: Asides) -> Archiver | None:
        base, mirror = self._base, self.mirror
        if mirror is None:
            return None
        scratch = Path(base.options.state_dir) / 'packing'
        plan = ArchivePlan(base.db, base.journal, base.staging, mirror=mirror, rules=base.rules, prefix=base.prefix)
        intents = Intents(base.db, base.journal, number=mirror.number, on_arrived=auditor.arrived)
        alone = Alone(base.db, writers, list_pool=self._pool, mirror=mirror, host=base.options.host_id, prefix=base.prefix)
        committer = ArchiveCommitter(base.db, base.journal, writers, mirror=mirror, plan=plan, intents=intents, uploader=uploader,
                                     host=base.options.host_id, scratch=scratch, told=auditor.member, committed=alone.committed)
        rivals = ArchiveRivals(base.db, writers, mirror=mirror, asides=asides, host=base.options.host_id, scratch=scratch, prefix=base.prefix,
                               told=auditor.member)
        archiver = Archiver(base.db, base.journal, writers, mirror=mirror, plan=plan, intents=intents, committer=committer, rivals=rivals,
                            uploader=uploader, recycler=recycler, prefix=base.prefix, is_wanted=finisher.is_wanted,
                            is_obstructed=self._reconciler.obstructed.has, cores=os.cpu_count() or 1)
        if not base.options.read_only:
            self.upkeep = ArchiveUpkeep(writers, mirror=mirror, list_pool=self._pool, host=base.options.host_id, scratch=scratch)
        finisher.delete_members = archiver.delete
        finisher.prove_members = alone.prove
        return archiver
