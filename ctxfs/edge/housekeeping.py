"""What a mount does for its host now and then, so that nothing there grows for as long as it runs.

Owns how often. It must not know how: log_file.py, unused_caches.py.
"""
from __future__ import annotations

import logging
from pathlib import Path

import trio

from ctxfs.config import MountOptions
from ctxfs.edge import log_file, unused_caches

log = logging.getLogger(__name__)

LOG_SECONDS = 60.0
#: of these looks: caches are looked through every hour, and first a minute after the mount has begun, when nobody waits for it
CACHES_EVERY = 60


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
