"""Named places where a test can kill this process with SIGKILL, so that recovery is proven at each one and not by luck.

Owns the names and the counting of hits. It must not know what is before or after a point: `crash_point('name')` stands there.

The environment variable CTXFS_CRASH_POINT is `name` (the first hit), `name:N` (the Nth hit in this process), or the path of a file that
says so: whoever is hit removes the file first, so that one process dies of it, and a test can arm a mount that runs already. Without the
variable a call costs as much as a call. The pool starts a replacement for a killed worker without the variable, unless it is a path.
Killing, and not raising, because that is what a power cut, the OOM killer and `kill -9` do: nothing runs afterwards.
"""
from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

VARIABLE = 'CTXFS_CRASH_POINT'
#: every name that exists; the crash tests iterate over it. Worker points first, in the order in which an upload meets them.
NAMES: tuple[str, ...] = (
    'worker-put-before-read',        # an upload was received, nothing read
    'worker-put-before-send',        # the file was read and hashed, nothing sent
    'worker-put-after-commit',       # the object is in the store, nobody was told
    'worker-copy-after-commit',
    'worker-multipart-before-complete',  # all parts are there, no object yet
    'worker-multipart-after-complete',
    'worker-store-before-sidecar',   # file:// store: the new version is a temporary file
    'worker-store-before-place',     # … its sidecar names it, the old version is still in place
    'worker-store-after-place',      # … it is in place, its sidecar is not on the disk
    'worker-store-delete-before-sidecar',  # … the file is gone, its sidecar is not
    'worker-delete-after-commit',
    'worker-fetch-before-store',     # a block arrived and is not in the cache
    'worker-adopt-before-rows',      # files are linked into the cache, without their rows
    'worker-hydrate-before-rename',  # the hydrated file is complete under its temporary name
    'worker-segment-after-commit',   # an index segment is in the store, nobody was told
    'worker-compact-after-base',     # a new index base is there, nothing that it covers was removed
    'worker-pack-after-part',        # Archive mode: files are packed on this disk, nothing is sent
    'worker-archive-after-send',     # an archive is in the store, and no commit names it
    'worker-archive-before-commit',
    'worker-archive-after-commit',   # the commit is in the store, nobody was told
    'worker-archive-after-base',     # a base of the archive log is there, nothing that it replaces was removed
    # In the daemon: a request of the kernel, before and after the transaction that makes it so.
    'tree-before-commit',            # any transaction of the tree database: all of it was said …
    'tree-after-commit',             # … and it is done, and nobody was told
    'create-before-commit',          # a new file's staging file is there, without a row
    'create-before-reply',           # the row is there, nobody was told
    'made-before-commit',            # files are made and acknowledged, and only the log has them
    'made-after-commit',             # their rows are there, and the log has them still
    'dirty-before-commit',           # the whole content is in staging, the row says that it is clean
    'dirty-after-commit',            # the row says that it is staged, no byte has changed
    'write-after-bytes',             # the bytes are there, the row has the size of before
    'truncate-before-bytes',
    'truncate-after-bytes',
    'close-before-row',              # the last handle goes, the row has the size of before
    'fsync-after-bytes',             # the bytes are on the disk, the row may not be
    'attributes-before-reply',
    'link-before-reply',
    'rename-before-commit',
    'rename-before-reply',
    'unlink-before-reply',           # no name is left, the row and the staging file are
    'rmdir-before-reply',
    'purge-before-unlink',           # the orphan's row is gone, its staging file is not
    # In the daemon: what a worker did is answered, and not recorded, or recorded and not followed up.
    'upload-before-send',            # it is in doubt from here on
    'upload-before-record',
    'upload-after-record',
    'cycle-before-record',           # a copy aside is there, nobody knows of it
    'subtree-before-clear',          # all below a moved directory is marked, and it still says that it is not
    'delete-before-record',
    'delete-before-announce',        # objects are gone, and their rows; other hosts were not told
    'adopt-before-commit',           # the cache has links of the staging files, the rows say sealed
    'adopt-before-unlink',
    'index-after-segment',
    'archive-before-send',           # Archive mode: what is about to be committed is written down
    'archive-before-commit',         # the archives are in the bucket
    'archive-before-record',         # the commit is there, and nothing of it is recorded here
    'archive-between-records',       # some of it is
    'archive-after-follow',          # another host's commit is in the tree
    'announce-after-segment',
    'localise-after-stage',          # bytes of a file that left the white lists are here, its objects are still wanted
    'turn-after-make',               # this host's turn is in the bucket, and nothing was written in it
    'regate-after-objects',          # what is not synced any more is not shown, the rest was not looked at
    'conflict-before-commit',        # the bucket has another version, and ours has its name
    'conflict-after-commit',
    'listing-after-slice',           # a part of a listing is applied
    'listing-before-finish',         # all of it, and what came with the index is still kept
    # In the daemon, before it mounts.
    'recovery-after-root',
    'recovery-after-made',           # files of the log have their rows
    'recovery-after-orphans',
    'recovery-after-staging',        # files without an owner are gone, rows are as they were
    'recovery-after-rows',
    # In `ctxfs doctor --repair`.
    'repair-before-aside',           # the new tree database is complete, under a name that nobody reads
    'repair-before-ready',           # what belongs to nobody is aside
    'repair-after-ready',            # from here on whoever comes next completes it
    'repair-before-swap',            # the log of the damaged file is aside, the file itself is in its place
    'repair-after-swap',
    # In whatever renames, clears or deletes a context.
    'context-rename-after-intent',   # the record says what it is about to be called, nobody has claimed the name
    'context-rename-after-claim',    # both names are claimed
    'context-rename-after-record',   # it has the new name, the old one is still claimed
    'context-clear-after-mark',      # it says that it is being cleared, and all is there
    'context-clear-after-batch',     # objects are gone, other hosts were not told
    'context-clear-before-state',    # nothing is left, and it still says that it is being cleared
    'context-copy-after-mark',       # the copy says whose it is to become, and is not whole
    'context-copy-after-object',     # an object is copied
    'context-copy-before-index',     # all objects are copied, the index knows of none
    'context-copy-before-state',     # all is copied, and it still says that it is not whole
    'context-delete-after-claim',    # no name leads to it any more, its record is there
)
_HITS: dict[str, int] = {}
_setting = os.environ.get(VARIABLE, '')


_exempt = threading.local()


@contextlib.contextmanager
def exempted() -> Iterator[None]:
    """What this thread does in the block is no step of anything: no point in it is hit."""
    _exempt.is_on = True
    try:
        yield
    finally:
        _exempt.is_on = False


def _armed(name: str) -> None:
    """Die here if this is the hit that CTXFS_CRASH_POINT names."""
    if getattr(_exempt, 'is_on', False):
        return
    wanted, _, number = _wanted().partition(':')
    if name != wanted:
        return
    _HITS[name] = _HITS.get(name, 0) + 1
    if _HITS[name] >= (int(number) if number.isdigit() else 1) and _is_mine():
        os.kill(os.getpid(), signal.SIGKILL)


def _wanted() -> str:
    if not _setting.startswith('/'):
        return _setting
    try:
        with open(_setting, encoding='ascii') as file:
            return file.read().strip()
    except FileNotFoundError:
        return ''


def _is_mine() -> bool:
    """Of several processes that are hit by a file's words one dies."""
    if not _setting.startswith('/'):
        return True
    try:
        os.unlink(_setting)
    except FileNotFoundError:
        return False
    return True


def _unarmed(name: str) -> None:
    """Nobody wants this process to die."""


crash_point: Callable[[str], None] = _armed if _setting else _unarmed


def without_after_a_kill() -> list[str]:
    """Variables that the replacement of a killed process must not have: it shows that the work gets done all the same."""
    return [] if _setting.startswith('/') else [VARIABLE]
