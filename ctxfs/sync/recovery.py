"""Recovery: before anything is mounted, tree database, journal and staging are made to agree. Idempotent; a crash in it starts it over.

Owns the verdict on what an unclean end left behind. It must not know the store: what the bucket has is compared later, by conditions.

    left behind by a crash                               becomes
    orphan inode (open-unlinked)                         removed with its staging file; its objects are tombstones already
    made files in the log (storage/made_log.py)          get their rows
    staging file without a staged row                    removed: the change was never acknowledged, or is in the bucket
    … while the tree database is new                     quarantined: the database was lost, the bytes are kept
    staged row                                           its size is the staging file's (writes grow the file, not the row)
    staged row without a staging file                    back to the object if it has one, else empty; logged as lost
    half-written hydration                               removed
    anything staged, and the host was booted anew        power_cut.py tells whole bytes from others
"""
from __future__ import annotations

import logging
import os
import time
from typing import NamedTuple

from ctxfs.crash_points import crash_point
from ctxfs.records import ROOT_INO
from ctxfs.storage.hardened import HardenedFiles
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal
from ctxfs.storage.made_log import MadeLog
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync import power_cut
from ctxfs.sync.power_cut import PowerCut, Reverted

log = logging.getLogger(__name__)


class Recovered(NamedTuple):
    """What was found: counts for the log. `lost`: staged files whose bytes are gone."""
    orphans: int
    garbage: int
    quarantined: int
    lost: int
    pending: int
    reverted: tuple[Reverted, ...] = ()


def recover(db: TreeDB, journal: Journal, staging: Staging, *, uid: int, gid: int) -> Recovered:
    """See the module docstring. Also gives a new database its root directory."""
    is_new = _ensure_root(db, uid, gid)
    crash_point('recovery-after-root')
    if made := MadeLog(db).replay(journal):
        log.info('%d files that were made last are from the log', made)
    crash_point('recovery-after-made')
    orphans = _remove_orphans(db, journal)
    crash_point('recovery-after-orphans')
    db.make_durable()       # what a killed daemon committed: a power cut must not bring back what is cleared away now
    staging.remove_leftovers()
    garbage, quarantined, sizes = _sort_staging(db, staging, is_new)
    crash_point('recovery-after-staging')
    boot = power_cut.boot_id()
    reverted = _settle_power_cut(db, journal, staging, sizes) if db.meta('boot_id') not in (None, boot) else []
    lost = _settle_rows(db, journal, staging, sizes)
    _note_unhardened(db, staging)
    crash_point('recovery-after-rows')
    db.set_meta('boot_id', boot)
    journal.retry_all()
    return Recovered(orphans, garbage, quarantined + len(reverted), lost, journal.summary()[0], tuple(reverted))


def _ensure_root(db: TreeDB, uid: int, gid: int) -> bool:
    """True if the database had no root yet, that is nothing at all."""
    if db.row('SELECT 1 FROM inode WHERE ino = ?', (ROOT_INO,)):
        return False
    now = time.time_ns()
    with db.transaction():
        db.insert_inode(Inode(ROOT_INO, 0o040755, uid, gid, 0, 2, 0, now, now, now, Content.NONE, 1))
    return True


def _remove_orphans(db: TreeDB, journal: Journal) -> int:
    orphans = db.orphans()
    with db.transaction():
        for ino in orphans:
            journal.doom_objects_of(ino)
            journal.forget(ino)
            db.delete_inode(ino)
    return len(orphans)


def _sort_staging(db: TreeDB, staging: Staging, is_new: bool) -> tuple[int, int, dict[int, int]]:
    """(removed, quarantined, bytes of each staging file that a row owns)."""
    garbage = quarantined = 0
    owned, local = set(db.staged_inos()), set(db.local_inos())
    sizes: dict[int, int] = {}
    staging.used = staging.kept = 0
    for ino, size, occupied in list(staging.inos()):
        if ino in owned:
            sizes[ino] = size
            if ino in local:
                staging.kept += occupied
            else:
                staging.used += occupied
        elif is_new and size:
            log.error('the tree database is new but %s has content: kept as %s', staging.path(ino), staging.quarantine(ino))
            quarantined += 1
        else:
            staging.remove(ino)
            garbage += 1
    return garbage, quarantined, sizes


def _settle_power_cut(db: TreeDB, journal: Journal, staging: Staging, sizes: dict[int, int]) -> list[Reverted]:
    cut = PowerCut(db, journal, staging, sizes)
    with db.transaction():
        cut.settle()
    cut.finish()
    return cut.reverted


def _note_unhardened(db: TreeDB, staging: Staging) -> None:
    """After an unclean end nobody knows what was changed since it was hardened last."""
    hardened = HardenedFiles(db)
    hardened.sweep()
    staging.unhardened.update(db.staged_inos())
    if db.meta('ended_cleanly') == 1:
        staging.unhardened -= hardened.inos()


def _settle_rows(db: TreeDB, journal: Journal, staging: Staging, sizes: dict[int, int]) -> int:
    lost = 0
    with db.transaction():
        for ino in db.staged_inos():
            inode = db.inode(ino)
            if ino in sizes:
                if inode.content == Content.STAGED and inode.size != sizes[ino]:
                    inode.size = sizes[ino]
                    db.store_content(inode)
                    journal.mark(inode, Reason.CONTENT)
                continue
            lost += inode.content == Content.STAGED
            _give_up_staging(db, journal, staging, inode)
    return lost


def _give_up_staging(db: TreeDB, journal: Journal, staging: Staging, inode: Inode) -> None:
    """The staging file is gone: what the bucket has is the next best truth."""
    objects = sorted((known for known in journal.objects_of(inode.ino) if not known.doomed), key=lambda known: -known.revision)
    if inode.content == Content.STAGED:
        log.error('the unsent bytes of inode %d are lost (no staging file); %s', inode.ino,
                  'it is the bucket\'s version again' if objects else 'it is empty')
    if objects:
        inode.content, inode.revision, inode.size = Content.CLEAN, objects[0].revision, objects[0].size
        db.store_content(inode)
        return
    inode.content, inode.size = Content.STAGED, 0
    os.close(staging.create(inode.ino))
    db.store_content(inode)
    journal.mark(inode, Reason.CONTENT)
