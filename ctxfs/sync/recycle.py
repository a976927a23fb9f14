"""Recycling: what the policy gave a lifetime goes when that is over, by the store's own rules or, where it has none, by ctxfs.

Owns the answer which lifecycle an upload carries, the bucket's rule for it, and the sweep for what has expired. It must not know how
requests are sent, nor what else a directory entry means for the kernel (reconcile.py).

A lifetime is a property of an object, not of the policy: it is written with the upload (tag and metadata) and counts from it. What was
uploaded under one policy expires under any other; a file saved again begins anew, a chmod or touch does not, and a rename is a copy: it
takes the lifecycle of its new path and begins anew. Directory markers have none.

    'server'   the bucket has a rule for it (one per lifecycle value, whatever the number of contexts). ctxfs steps in only when an object
               is there LATE_NS after its time: a rule takes up to two days to be carried out, and some servers keep rules and ignore them
    'ctxfs'    no rules there (`file://`), or no right to them: a sweep when the context is listed, and hourly

Sweep:  rows past their time → HEAD: still this version, this lifecycle (and tag), this old by the store's own time → one transaction takes the
name away and leaves a tombstone → conditional delete → announced to other hosts. A crash leaves a tombstone, which the next flush deletes.
What is open, or not wholly uploaded, is left alone: its upload begins anew anyway.

Clocks: ages are the store's LastModified against this host's clock. A signed request is refused where the two differ by more than 15 minutes
(docs.aws.amazon.com, RequestTimeTooSkewed), so SLACK_NS makes nothing go early; a directory has the clocks of the hosts that share it.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from ctxfs.errors import CtxfsError
from ctxfs.policy import FOREVER, LIFECYCLE_DAYS
from ctxfs.rules import Rules
from ctxfs.storage.inode import Content
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.members import is_member
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.archive_view import ArchiveView
from ctxfs.sync.finishing import Finisher
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.protocol import EnsureExpiry, Head, HeadItem
from ctxfs.sync.reconcile import Reconciler

log = logging.getLogger(__name__)

DAY_NS = 86_400 * 10**9
SLACK_NS = 15 * 60 * 10**9
#: AWS expires at the next midnight UTC and removes later; OSS loads rules within a day and applies them within another
LATE_NS = 3 * DAY_NS
SWEEP_SECONDS = 3600.0
#: sweeps between two looks at the bucket's rule, which an administrator may have removed
_LOOK_SWEEPS = 24
#: objects in one round: HEADs in one request to a worker
BATCH = 64
_EXPIRED = ('SELECT key, etag, size, ino, revision, sha256, doomed, lifecycle, uploaded_ns, said_ns FROM object WHERE lifecycle = ? AND '
            'lifecycle <> \'\' AND uploaded_ns > 0 AND uploaded_ns <= ? AND (uploaded_ns, key) > (?, ?) ORDER BY uploaded_ns, key LIMIT ?')


class Recycler:
    """See the module docstring. `now_ns`: this host's clock."""

    def __init__(self, db: TreeDB, journal: Journal, pool: TransferPool | ArchiveView, *, rules: Rules, reconciler: Reconciler, finisher: Finisher,
                 prefix: str, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._db = db
        self._journal = journal
        self._pool = pool
        self._rules = rules
        self._reconciler = reconciler
        self._finisher = finisher
        self._prefix = prefix
        self._now_ns = now_ns
        self._preparing = trio.Lock()
        #: lifecycle → why the store does not do it; '' where it does
        self._reasons: dict[str, str] = {}
        self.removed = 0

    # --- uploads --------------------------------------------------------------------------------------------------------------------

    async def lifecycle_for(self, key: str, before: Known | None) -> str:
        """The lifecycle that an upload to `key` carries, with its rule seen to. FOREVER where there is none and the version before it
        (or the source of the copy) has one that must go; '' where there never was any."""
        wanted = self._rules.lifecycle_of(key)
        if not wanted:
            return FOREVER if before is not None and before.lifecycle else ''
        if wanted not in self._reasons:     # else no checkpoint: nothing moves between an upload's plan and its start
            await self._prepare(wanted)
        return wanted

    async def _prepare(self, lifecycle: str) -> None:
        """Once: the store's rule is there, or ctxfs sweeps. No upload fails for want of a rule."""
        async with self._preparing:
            if lifecycle in self._reasons or lifecycle not in LIFECYCLE_DAYS:
                return
            try:
                await self._pool.call(EnsureExpiry(lifecycle=lifecycle, days=LIFECYCLE_DAYS[lifecycle]))
                self._reasons[lifecycle] = ''
            except CtxfsError as error:
                if not error.transient:
                    self._reasons[lifecycle] = str(error)
                log.info('ctxfs itself removes what has %s: %s', lifecycle, error)

    def state(self) -> dict[str, Any]:
        """For people and scripts: who removes what has expired ('server', 'ctxfs', or '' while nothing has a lifetime), and why ctxfs."""
        reasons = [reason for reason in self._reasons.values() if reason]
        who = 'ctxfs' if reasons else 'server' if self._reasons else ''
        return {'state': who, 'reason': reasons[0] if reasons else '', 'lifecycle': self._rules.policy.recycle_policy.lifecycle,
                'removed': self.removed}

    # --- the sweep ------------------------------------------------------------------------------------------------------------------

    async def run(self, wait_listed: Callable[[], Awaitable[None]], alone: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]) -> None:
        """Sweep when the context is listed, and then hourly, for as long as the mount lasts. `alone`: nothing is uploaded meanwhile."""
        await wait_listed()
        while True:
            for _ in range(_LOOK_SWEEPS):
                try:
                    await alone(self.sweep)
                except CtxfsError as error:     # the next one tries again; nothing is lost but an hour
                    log.info('the sweep for expired files broke off: %s', error)
                await trio.sleep(SWEEP_SECONDS)
            self._reasons.clear()

    async def sweep(self) -> None:
        """Remove what has expired. Raises what the store says; what was removed until then stays removed."""
        for lifecycle, days in LIFECYCLE_DAYS.items():
            end_ns = self._now_ns() - days * DAY_NS - SLACK_NS
            if self._expired(lifecycle, end_ns, (0, ''), limit=1):
                await self._prepare(lifecycle)
                late_ns = LATE_NS if self._reasons.get(lifecycle) == '' else 0
                await self._sweep_lifecycle(lifecycle, end_ns - late_ns)
                if late_ns:     # what the store removes by itself are archives: that their members are gone with them, nobody else says
                    await self._sweep_lifecycle(lifecycle, end_ns, only_members=True)
        self._reconciler.remove_empty_directories()
        await self._finisher.announce_deletes()

    async def _sweep_lifecycle(self, lifecycle: str, end_ns: int, *, only_members: bool = False) -> None:
        after = (0, '')
        while rows := self._expired(lifecycle, end_ns, after, limit=BATCH):
            after = (rows[-1].uploaded_ns, rows[-1].key)
            asked = [row for row in rows if not self._is_needed(row) and (not only_members or is_member(row.etag))]
            if not asked:
                continue
            items = await self._pool.call(Head(keys=[self._prefix + row.key for row in asked], wants_tags=True))
            gone = [row for row, item in zip(asked, items, strict=True) if self._is_expired(row, item, end_ns)]
            with self._db.transaction():
                gone = [row for row in gone if self._take_away(row)]
            await self._delete(gone)

    def _expired(self, lifecycle: str, end_ns: int, after: tuple[int, str], *, limit: int) -> list[Known]:
        """By what we know of them; later than `after`, oldest first."""
        return [Known(*row) for row in self._db.rows(_EXPIRED, (lifecycle, end_ns, *after, limit))]

    def _is_needed(self, row: Known) -> bool:
        """Something here depends on the object: it is open, its content or names are not all in the bucket, or it is being deleted."""
        if row.doomed == 1:
            return True
        inode = self._db.inodes_of([row.ino]).get(row.ino)
        if row.doomed or inode is None:
            return False
        return (inode.is_dir or inode.open_count > 0 or inode.content not in (Content.CLEAN, Content.NONE) or inode.adoption is not None
                or self._journal.pending_row(inode.ino) is not None
                or row.key not in self._db.keys_of(inode))      # its directory was renamed, which is not uploaded yet

    def _is_expired(self, row: Known, item: HeadItem, end_ns: int) -> bool:
        """What the store says of it now. A row that was wrong is put right, so that it is not asked for again and again."""
        if item.info is None:
            # gone: as if we had removed it; anything else is transient and comes again
            return item.failure is not None and item.failure.name == 'NotFound'
        if item.info.etag != row.etag:
            return False        # somebody's new version: the next listing shows it
        if item.lifecycle == row.lifecycle and item.info.mtime_ns <= end_ns:
            return True
        self._journal.note_lifetime(row.key, row.etag, item.lifecycle, item.info.mtime_ns)
        return False

    def _take_away(self, row: Known) -> bool:
        """The name goes here, and a tombstone stays until the object is gone. False when it is needed by now: all that happened while the
        store was asked counts."""
        if self._journal.known(row.key) != row or self._is_needed(row):
            return False
        self._reconciler.object_gone(row)
        self._journal.put_object(row._replace(doomed=1))
        log.info('%s has expired (%s)', row.key, row.lifecycle)
        return True

    async def _delete(self, rows: list[Known]) -> None:
        if not rows:
            return
        failed = await self._finisher.delete(rows, is_expiry=True)
        self.removed += len(rows) - len(failed)
        if failed:
            raise failed[0][1]
