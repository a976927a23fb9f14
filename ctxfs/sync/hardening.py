"""Hardening: what programs did not fsync becomes durable by itself, a few seconds later, and the tree database knows of it.

Owns when that happens, and the order: bytes, then the rows that say so, then the database's log, then the files of what was removed. It must
not know what recovery makes of it (power_cut.py).

A local disk does the same: ext4 commits names every 5 s, and the kernel writes out what is dirty for 30 s. Without it a power cut would leave
changes that waited for their upload for hours, and nobody could say whether their bytes had reached the disk. A file is left alone while it
is being written, but not for longer than LONGEST_SECONDS: what is removed again soon, or uploaded at once, costs no write.

Before objects are deleted from the bucket, files that stay on this host by the policy are hardened (`harden_local`): one of them may have been
synced until now, and then the object was what a power cut could not take.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import trio

from ctxfs.errors import CtxfsError
from ctxfs.storage.durability import Measure
from ctxfs.storage.hardened import HardenedFiles
from ctxfs.storage.inode import Inode
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_db import TreeDB

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
#: a file that was not changed for so long is hardened
QUIET_SECONDS = 5.0
#: one that is never quiet, after so long
LONGEST_SECONDS = 30.0
#: files hardened at a time; rows written, or files unlinked, without a pause
BATCH = 10_000
SLICE = 100


class Hardener:
    """See the module docstring. `run` as a background task; the other methods may be called beside it."""

    def __init__(self, db: TreeDB, staging: Staging, *, also: Callable[[], object] = lambda: None) -> None:
        """`also`: blocks while it makes durable what goes along (the audit log). Raises OSError."""
        self._db = db
        self._also = also
        self._staging = staging
        self._hardened = HardenedFiles(db)
        self._lock = trio.Lock()
        #: when a look found the file unhardened first
        self._since: dict[int, float] = {}
        #: TreeDB.changes that are durable
        self._durable = -1
        self._is_failing = False

    async def run(self) -> None:
        while True:
            await trio.sleep(LOOK_SECONDS)
            try:
                await self._look()
                self._is_failing = False
            except (OSError, CtxfsError) as error:
                if not self._is_failing:
                    log.warning('changes are not durable, a power cut would lose them: %s', error)
                self._is_failing = True

    async def _look(self) -> None:
        async with self._lock:
            inos = await self._due()
            if inos or self._staging.removed or self._db.changes != self._durable:
                await self._harden(inos)

    async def _due(self) -> list[int]:
        now = trio.current_time()
        inos = list(self._staging.unhardened)
        self._since = {ino: self._since.get(ino, now) for ino in inos}
        due: list[int] = []
        for start in range(0, len(inos), BATCH):
            due += [ino for ino in inos[start:start + BATCH] if self._is_due(ino, now)]
            await trio.lowlevel.checkpoint()
        return due

    def _is_due(self, ino: int, now: float) -> bool:
        live = self._db.live_inode(ino)
        return live is None or now - live.changed_at >= QUIET_SECONDS or now - self._since[ino] >= LONGEST_SECONDS

    async def harden_local(self) -> None:
        """All names, and the bytes of all files that stay on this host, are durable when this returns. Raises CtxfsError."""
        async with self._lock:
            inos = []
            for part in _slices(list(self._staging.unhardened)):
                inos += [ino for ino, inode in self._db.inodes_of(part).items() if inode.local]
                await trio.lowlevel.checkpoint()
            try:
                await self._harden(inos)
            except OSError as error:
                raise CtxfsError(f'what is here cannot be made durable: {error}') from error

    async def _harden(self, inos: Sequence[int]) -> None:
        removed = list(self._staging.removed)
        for start in range(0, len(inos), BATCH):
            await self._harden_batch(inos[start:start + BATCH])
        changes = self._db.changes
        await trio.to_thread.run_sync(self._make_durable)
        self._durable = changes
        for part in _slices(removed):
            self._staging.unlink_removed(part)
            await trio.lowlevel.checkpoint()

    async def _harden_batch(self, inos: Sequence[int]) -> None:
        before: dict[int, tuple[Inode, int, int]] = {}
        for part in _slices(inos):
            before.update((ino, (inode, inode.revision, inode.turns)) for ino, inode in self._db.inodes_of(part).items())
            await trio.lowlevel.checkpoint()
        measured = await trio.to_thread.run_sync(self._staging.harden, inos)
        for part in _slices(inos):
            with self._db.transaction():
                for ino in part:
                    if ino in before:
                        self._note(*before[ino], measured.get(ino))
                    else:       # its row is gone, and what is left of it is nobody's
                        self._staging.unhardened.discard(ino)
            await trio.lowlevel.checkpoint()

    def _note(self, inode: Inode, revision: int, turns: int, measured: Measure | None) -> None:
        if inode.turns != turns:
            return      # it is another file by now, or other content
        if inode.has_staging and measured is not None:      # also what is uploaded: it may be the only copy again
            self._hardened.note(inode.ino, measured)
        if inode.revision == revision:
            self._staging.unhardened.discard(inode.ino)

    def _make_durable(self) -> None:
        self._db.make_durable()
        self._also()

    def finish(self) -> None:
        """The last time, when nothing runs any more. Raises as `harden` does."""
        measured = self._staging.harden(list(self._staging.unhardened))
        staged = set(self._db.staged_inos())
        with self._db.transaction():
            for ino in measured.keys() & staged:
                self._hardened.note(ino, measured[ino])
        self._hardened.sweep()
        self._make_durable()
        self._staging.unlink_removed(list(self._staging.removed))


def _slices(inos: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(inos), SLICE):
        yield list(inos[start:start + SLICE])
