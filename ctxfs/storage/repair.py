"""Repair: a new tree database out of what is left of a damaged one and of the staging files; and whether one is damaged.

Owns the files and their order, so that a crash at any point leaves the damaged file, or the repaired one. What is salvaged is salvage.py's,
what is made of it mend.py's. It must not know mounts or the bucket: what the bucket has, the next mount brings. Nobody else may use the
state directory meanwhile, but for a reader.

    tree.db.building     the new one, while it is made; a crash leaves rubbish
    damaged/STAMP/       the damaged file, its log, and staging files of removed files: kept, for whoever repairs is no judge
    tree.db.repaired     the new one, complete: from here on `complete` finishes, whoever comes first, a repair or a mount
    tree.db              … by removing the log of the damaged file, which must not be applied to the new one, and renaming
"""
from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from ctxfs.crash_points import crash_point
from ctxfs.errors import Damaged
from ctxfs.storage import sqlite_wal
from ctxfs.storage.mend import Mended, Mender
from ctxfs.storage.salvage import Salvage, tables_of
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_connection import TreeReader
from ctxfs.storage.tree_db import TreeDB

#: a larger file is not looked through before a mount: this takes 70 ms, a context of a million files would take seconds
CHECKED_BYTES = 8 << 20
_DAMAGED = 'the tree database is damaged:'
_LOGS = ('-wal', '-shm')


class Repaired(NamedTuple):
    """`faults`: what was wrong with the file itself; `kept`: where the damaged one is."""
    mended: Mended
    faults: list[str]
    kept: Path


def find_damage(state_dir: Path, *, is_same_boot: bool = True) -> str:
    """What is wrong with the tree database, '' when nothing is known to be. Changes nothing. `is_same_boot`: nothing that the last daemon
    committed can be missing (a power cut takes what was not synced, and that is no damage)."""
    path, staging = state_dir / 'tree.db', Staging(state_dir / 'staging', create=False)
    size = path.stat().st_size if path.exists() else 0
    has_bytes = any(count for _, count, _ in staging.inos())
    expected = sqlite_wal.committed_frames(path)
    if not size:
        return f'{_DAMAGED} it is {"empty" if path.exists() else "gone"}, and what it described is not' if has_bytes or expected else ''
    try:
        reader = TreeReader(path)
        try:
            if not reader.rows("SELECT 1 FROM sqlite_master WHERE name = 'meta'"):
                return f'{_DAMAGED} it has no tables' if has_bytes or size > 4096 else ''      # made, and not filled yet
            reader.meta('schema_version')
            taken = sqlite_wal.committed_frames(path)
            if is_same_boot and (taken < expected or sqlite_wal.goes_on(path, taken)):
                return f'{_DAMAGED} transactions in its log were lost'
            faults = reader.integrity_faults() if size <= CHECKED_BYTES else []
            return f'{_DAMAGED} {faults[0]}' if faults else ''
        finally:
            reader.close()
    except Damaged as error:
        return str(error)


def repair(state_dir: Path, *, uid: int, gid: int) -> Repaired:
    """See the module docstring. `uid`, `gid`: whose what lost its attributes is."""
    complete(state_dir)
    path, building = state_dir / 'tree.db', state_dir / 'tree.db.building'
    for leftover in (building, *_logs_of(building)):
        leftover.unlink(missing_ok=True)
    try:
        mended, faults = _build(path, building, Staging(state_dir / 'staging'), uid, gid)
    except BaseException:
        building.unlink(missing_ok=True)
        raise
    crash_point('repair-before-aside')
    kept = _keep(state_dir)
    _set_aside(state_dir, kept, mended.aside)
    crash_point('repair-before-ready')
    os.rename(building, state_dir / 'tree.db.repaired')
    _sync(state_dir)
    crash_point('repair-after-ready')
    complete(state_dir)
    return Repaired(mended, faults, kept)


def _build(path: Path, building: Path, staging: Staging, uid: int, gid: int) -> tuple[Mended, list[str]]:
    db = TreeDB(building)
    try:
        faults: list[str] = []
        mender = Mender(db, staging, uid=uid, gid=gid)
        if path.exists():
            salvage = Salvage(path, tables_of(db))
            try:
                mender.take(salvage.rows())
            finally:
                salvage.close()
            faults = salvage.faults
        mended = mender.mend()
        db.checkpoint(is_last=True)
    finally:
        db.close()
        for log in _logs_of(building):
            log.unlink(missing_ok=True)
    _sync(building)
    return mended, faults


def complete(state_dir: Path) -> bool:
    """Finish a repair that got as far as `tree.db.repaired`. False: there is none."""
    repaired, path = state_dir / 'tree.db.repaired', state_dir / 'tree.db'
    if not repaired.exists():
        return False
    _keep(state_dir)
    for log in _logs_of(path):
        log.unlink(missing_ok=True)
    _sync(state_dir)
    crash_point('repair-before-swap')
    os.rename(repaired, path)
    _sync(state_dir)
    crash_point('repair-after-swap')
    return True


def _logs_of(path: Path) -> list[Path]:
    return [path.with_name(path.name + ending) for ending in _LOGS]


def _keep(state_dir: Path) -> Path:
    """Where the damaged file is kept, with one more name of it and of its log there. Its time and number name the place, so that doing it
    again changes nothing."""
    path = state_dir / 'tree.db'
    stamp = 'missing'
    if path.exists():
        found = path.stat()
        stamp = f'{time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(found.st_mtime))}-{found.st_ino}'
    kept = state_dir / 'damaged' / stamp
    kept.mkdir(parents=True, exist_ok=True, mode=0o700)
    for file in (path, *_logs_of(path)):
        if file.exists() and not (kept / file.name).exists():
            _link(file, kept / file.name)
    _sync(kept)
    return kept


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EXDEV):
            raise
        half = target.with_name(f'.{target.name}.half')
        shutil.copy2(file, half)
        _sync(half)
        os.rename(half, target)


def _set_aside(state_dir: Path, kept: Path, inos: tuple[int, ...]) -> None:
    staging = Staging(state_dir / 'staging')
    for ino in inos:
        if os.path.exists(staging.path(ino)):
            (kept / 'staging').mkdir(exist_ok=True, mode=0o700)
            os.rename(staging.path(ino), kept / 'staging' / str(ino))


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
