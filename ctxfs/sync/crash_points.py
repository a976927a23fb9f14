"""Named places where a test can kill this process with SIGKILL, so that recovery is proven at each one and not by luck.

Owns the names and the counting of hits. It must not know what is before or after a point: `crash_point('name')` stands there.

The environment variable CTXFS_CRASH_POINT is `name` (the first hit) or `name:N` (the Nth hit in this process). Without it a call costs a
comparison. The pool starts a replacement for a killed worker without the variable. Killing, and not raising, because that is what a
power cut, the OOM killer and `kill -9` do: nothing runs afterwards.
"""
from __future__ import annotations

import os
import signal

VARIABLE = 'CTXFS_CRASH_POINT'
#: every name that exists; the crash tests iterate over it. Worker points first, in the order in which an upload meets them.
NAMES: tuple[str, ...] = (
    'worker-put-before-read',        # an upload was received, nothing read
    'worker-put-before-send',        # the file was read and hashed, nothing sent
    'worker-put-after-commit',       # the object is in the store, nobody was told
    'worker-copy-after-commit',
    'worker-delete-after-commit',
    'worker-fetch-before-store',     # a block arrived and is not in the cache
    'worker-adopt-before-rows',      # files are linked into the cache, without their rows
    'worker-hydrate-before-rename',  # the hydrated file is complete under its temporary name
    'worker-segment-after-commit',   # an index segment is in the store, nobody was told
    'worker-compact-after-base',     # a new index base is there, nothing that it covers was removed
    # In the daemon: what a worker did is answered, and not recorded, or recorded and not followed up.
    'upload-before-record',
    'upload-after-record',
    'delete-before-record',
    'delete-before-announce',        # objects are gone, and their rows; other hosts were not told
    'adopt-before-unlink',
    'index-after-segment',
    'localise-after-stage',          # bytes of a file that left the white lists are here, its objects are still wanted
    'turn-after-make',               # this host's turn is in the bucket, and nothing was written in it
)
_HITS: dict[str, int] = {}
_name, _, _number = os.environ.get(VARIABLE, '').partition(':')
_nth = int(_number) if _number.isdigit() else 1


def crash_point(name: str) -> None:
    """Die here if this is the hit that CTXFS_CRASH_POINT names."""
    if name != _name:
        return
    _HITS[name] = _HITS.get(name, 0) + 1
    if _HITS[name] == _nth:
        os.kill(os.getpid(), signal.SIGKILL)
