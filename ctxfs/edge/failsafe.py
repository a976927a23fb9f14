"""Failsafe: what a mount does whose tree database is damaged.

Owns the decision, before anything is mounted, whether the state directory can be used; the stand-in where it cannot; and the words for the
user. It must not repair anything (`ctxfs doctor --repair` does, when nothing is mounted), nor know how damage is found.

The stand-in is a tree database of its own beside the cache, filled from the bucket and thrown away with the mount: what can be read is shown,
read-only, and nothing in the state directory is touched. Damage that is found later leaves the mount as it is, and read-only from then on.
"""
from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio

from ctxfs.config import MountOptions, private_dir
from ctxfs.edge import runtime_dir
from ctxfs.edge.human import human_bytes, human_files
from ctxfs.errors import CtxfsError, Damaged, RemoteUnavailable
from ctxfs.storage import repair
from ctxfs.storage.journal import Journal
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_connection import TreeReader
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.power_cut import Reverted
from ctxfs.sync.protocol import TidyCache
from ctxfs.sync.recovery import recover

log = logging.getLogger(__name__)


class Damage:
    """What is wrong with a mount's tree database; implements mount_status.Damage. `found`: before the mount, in the user's words."""

    def __init__(self, options: MountOptions, db: TreeDB, found: str = '', *, files: int = 0, bytes: int = 0) -> None:
        self._options = options
        self._db = db
        self._found = found
        self.files = files
        self.bytes = bytes

    def text(self) -> str:
        if self._found or not self._db.damage:
            return self._found
        return (f'{self._db.damage}; read-only from now on, and nothing is uploaded: unmount it and run ctxfs doctor --repair '
                f'{self._options.context_name}; what was changed is kept')


class Home(NamedTuple):
    """What a mount keeps on this host, opened and recovered. `options`: those of the mount as it can be."""
    options: MountOptions
    db: TreeDB
    journal: Journal
    staging: Staging
    damage: Damage
    #: what a power cut made old again
    reverted: tuple[Reverted, ...] = ()


@contextlib.contextmanager
def opened(options: MountOptions) -> Iterator[Home]:
    """The mount's home until the block ends; the caller closes its database. Nobody else may use the state directory meanwhile."""
    state = Path(options.state_dir)
    repair.complete(state)
    damage = repair.find_damage(state, is_same_boot=_is_same_boot(state))
    home: Home | None = None
    if not damage:
        try:
            home = _open(options, state)
        except Damaged as error:
            damage = str(error)
    if home is not None:
        yield home
        return
    place = Path(options.cache_dir + '.failsafe')
    shutil.rmtree(place, ignore_errors=True)
    try:
        yield _stand_in(options, private_dir(place), damage)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _open(options: MountOptions, place: Path) -> Home:
    db = TreeDB(place / 'tree.db')
    try:
        journal, staging = Journal(db), Staging(place / 'staging')
        found = recover(db, journal, staging, uid=options.uid, gid=options.gid)
    except BaseException:
        db.close()
        raise
    log.info('context %s (%s) from %s: %d changes pending, recovery removed %d orphans and %d leftovers, lost %d', options.context_id,
             options.context_name, options.store_url, found.pending, found.orphans, found.garbage + found.quarantined, found.lost)
    return Home(options, db, journal, staging, Damage(options, db), found.reverted)


def _stand_in(options: MountOptions, place: Path, damage: str) -> Home:
    files, size = left_in(Staging(Path(options.state_dir) / 'staging', create=False))
    kept = f'{human_files(files)} ({human_bytes(size)}) with changes {"is" if files == 1 else "are"} kept in {options.state_dir}'
    text = (f'{damage}; mounted read-only, as the bucket has it; {kept if files else "no file was waiting for its upload"}: '
            f'unmount it and run ctxfs doctor --repair {options.context_name}')
    log.error('%s', text)
    home = _open(msgspec.structs.replace(options, read_only=True), place)
    return home._replace(damage=Damage(options, home.db, text, files=files, bytes=size))


def left_in(staging: Staging) -> tuple[int, int]:
    """(files, bytes) that nobody can say more of than that they are there."""
    sizes = [size for _, size, _ in staging.inos()]
    return len(sizes), sum(sizes)


def _is_same_boot(state: Path) -> bool:
    """Whether the last daemon of this state directory ran since the host was booted."""
    last = runtime_dir.find_mounts(state, runtime_dir.LAST_MOUNT)
    return bool(last) and last[0].record.boot_id == runtime_dir.boot_id()


async def after_unclean_end(db: TreeDB, pool: TransferPool, started: float) -> None:
    """A background task of a mount that began at `started` (Unix seconds). After an unclean end the cache's directory may hold files that no row
    names, and the database may have been too large to be looked through before. From here on this mount's end counts."""
    if db.meta('ended_cleanly') == 0:
        with contextlib.suppress(RemoteUnavailable):       # costs space until the next mount
            await pool.call(TidyCache(older_than=started))
        await _look_through(db)
    db.set_meta('ended_cleanly', 0)


async def _look_through(db: TreeDB) -> None:
    if db.path.stat().st_size <= repair.CHECKED_BYTES:
        return
    faults = await trio.to_thread.run_sync(_faults, db.path, abandon_on_cancel=True)
    if faults:
        db.protect(f'the tree database is damaged: {faults[0]}')


def _faults(path: Path) -> list[str]:
    reader = TreeReader(path)
    try:
        return reader.integrity_faults()
    except CtxfsError as error:
        return [str(error)]
    finally:
        reader.close()
