"""What a mount does for its host now and then, so that nothing there grows for as long as it runs.

Owns how often, and how long the tree database's log gets. It must not know how the rest is done: log_file.py, unused_caches.py.
"""
from __future__ import annotations

import logging
from pathlib import Path

import trio

from ctxfs.config import MountOptions
from ctxfs.edge import log_file, unused_caches
from ctxfs.storage.tree_db import TreeDB

log = logging.getLogger(__name__)

LOG_SECONDS = 60.0
#: of these looks: caches are looked through every hour, and first a minute after the mount has begun, when nobody waits for it
CACHES_EVERY = 60
#: the log of the tree database is moved into its file when it is longer than this, and must not be longer than that
WAL_BYTES, MOST_WAL_BYTES = 8 << 20, 256 << 20


async def run(options: MountOptions) -> None:
    """A background task; what fails is tried the next time."""
    number = 0
    while True:
        try:
            await trio.to_thread.run_sync(log_file.cut, Path(options.log_file))
            if number % CACHES_EVERY == 1:
                await trio.to_thread.run_sync(unused_caches.drop_unused, Path(options.cache_dir), Path(options.state_dir))
        except OSError as error:        # a full disk: a log stays as it is, and more does not fit either
            log.info('not tidied up: %s', error)
        number += 1
        await trio.sleep(LOG_SECONDS)


async def move_log(db: TreeDB) -> None:
    """The tree database's log into its file, where that is due: in a thread, for it takes fsyncs. SQLite begins a log anew only when all of it is
    there. While programs change something all the time (or a large context is listed) that never holds, and the log would take more of the disk
    than the tree does: so of a very long one the rest, which is little, is moved here, where nobody changes anything meanwhile."""
    if db.wal_bytes() <= WAL_BYTES:
        return
    await trio.to_thread.run_sync(db.checkpoint)
    if db.wal_bytes() > MOST_WAL_BYTES:
        await trio.to_thread.run_sync(db.checkpoint)
        db.checkpoint()
