"""Block caches of contexts that are not mounted: a host that mounts one context after the other must not fill its disk with what it read of all.

Owns which go and when. It must not know what is in a cache: its directory is moved away whole, and removed. Each mount has its own cache bounded
(storage/block_cache.py); this is about the caches of mounts that have ended.

    unused for UNUSED_SECONDS      goes
    unused for SHORT_SECONDS       goes where the disk is short of room, those first that were used longest ago
    NAME.broken-…                  what is left of one that was thrown away when the process was killed

A cache is only taken away under the lock of its state directory, so never from a mount. Losing it costs downloads, nothing else.
"""
from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ctxfs.edge.state_lock import locked
from ctxfs.errors import Exists
from ctxfs.storage.cache_files import BROKEN, move_aside
from ctxfs.storage.disk_space import spare_bytes

log = logging.getLogger(__name__)

UNUSED_SECONDS = 30 * 86_400.0
SHORT_SECONDS = 86_400.0


class _Cache(NamedTuple):
    used_at: float
    directory: Path
    state: Path


def drop_unused(cache_dir: Path, state_dir: Path, *, now: float | None = None, spare: Callable[[str], int] = spare_bytes) -> int:
    """Of all contexts but the one whose directories these are; how many went. Blocks: for a thread."""
    now = time.time() if now is None else now
    count = 0
    for cache in sorted(_others(cache_dir, state_dir)):
        age = now - cache.used_at
        if age > UNUSED_SECONDS or age > SHORT_SECONDS and spare(str(cache_dir)) <= 0:
            count += _drop(cache)
    for left in _left_of_broken(cache_dir, state_dir):
        if now - left.stat().st_ctime > SHORT_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    return count


def _pattern(cache_dir: Path, state_dir: Path) -> tuple[Path, str]:
    """Caches lie beside each other, or each in its state directory (config.cache_dir_of)."""
    return (state_dir.parent, f'*/{cache_dir.name}') if cache_dir.parent == state_dir else (cache_dir.parent, '*')


def _others(cache_dir: Path, state_dir: Path) -> Iterator[_Cache]:
    root, pattern = _pattern(cache_dir, state_dir)
    for directory in root.glob(pattern):
        if directory != cache_dir and BROKEN not in directory.name and (used_at := _used_at(directory)) is not None:
            yield _Cache(used_at, directory, directory.parent if cache_dir.parent == state_dir else state_dir.parent / directory.name)


def _used_at(directory: Path) -> float | None:
    """None for what is no cache. Each mount writes into its database."""
    times = []
    for name in ('cache.db', 'cache.db-wal'):
        with contextlib.suppress(OSError):
            times.append(os.stat(directory / name).st_mtime)
    return max(times, default=None)


def _drop(cache: _Cache) -> bool:
    try:
        with contextlib.ExitStack() as stack:
            if cache.state.is_dir():
                stack.enter_context(locked(cache.state, seconds=0))
            aside = move_aside(str(cache.directory))
    except (Exists, OSError):       # it is mounted
        return False
    shutil.rmtree(aside, ignore_errors=True)
    log.info('the cache of a context that is not mounted any more is removed: %s', cache.directory)
    return True


def _left_of_broken(cache_dir: Path, state_dir: Path) -> Iterator[Path]:
    root, pattern = _pattern(cache_dir, state_dir)
    yield from root.glob(f'{pattern}{BROKEN}*')
