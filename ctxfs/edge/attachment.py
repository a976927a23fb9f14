"""The mount as the kernel has it: how far it reads ahead there, and whether it is still there.

Owns the watch on the mount table. `fusermount3 -u` takes the mount out of this mount namespace; where a container or another program has a
namespace of its own with a copy of it, the kernel goes on serving that copy, also where nobody can reach it any more, and says nothing. The
unmounted mount would never be written back, and its context stay locked. So a mount that is gone here, has nothing open and is asked for
nothing, is ended. What still has files open there goes on, as after `umount --lazy`. It must not know what ends with a mount.
"""
from __future__ import annotations

import logging
import select
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from ctxfs.edge import fuse_adapter, read_ahead
from ctxfs.edge.mount_table import MountEntry, mount_at, read_mounts

log = logging.getLogger(__name__)

TABLE = '/proc/self/mountinfo'
LOOK_SECONDS = 1.0
#: that a mount which is gone here must be at rest before it is ended
REST_SECONDS = 5.0


class Served(Protocol):
    """The FUSE side."""

    @property
    def requests(self) -> int:
        """How many came so far."""

    @property
    def open_handles(self) -> int: ...


class Attachment:
    """Made right after the mount appeared at `mountpoint`."""

    def __init__(self, mountpoint: str) -> None:
        found = mount_at(mountpoint)
        #: None: it was not recognised, and is never taken for gone
        self._entry: MountEntry | None = found if found is not None and found.is_ctxfs else None

    @property
    def is_there(self) -> bool:
        """In this namespace, at its mount point or wherever it was moved to."""
        return self._entry is None or any(entry.device == self._entry.device for entry in read_mounts())

    async def watch(self, served: Served, write_back: Callable[[], Awaitable[object]]) -> None:
        """Until the mount ends, or has to be ended; `write_back` brings here what the kernel has of written bytes."""
        rested, before, is_wide, is_gone = 0.0, -1, False, False
        with open(TABLE, 'rb') as table:    # noqa: ASYNC230 - never blocks
            changes = select.poll()
            changes.register(table, select.POLLPRI | select.POLLERR)    # proc(5): each change of the table
            while rested < REST_SECONDS:
                await trio.sleep(LOOK_SECONDS)
                if not is_wide and served.requests:     # with its first request the kernel sets the width itself
                    is_wide = True
                    read_ahead.widen(self._entry)
                if changes.poll(0) or is_gone:
                    was_gone, is_gone = is_gone, not self.is_there
                    if is_gone and not was_gone:
                        log.warning('unmounted, but another mount namespace (a container?) has the mount, too, or files in it are open: '
                                    'it ends when nothing is open and nobody asks for anything')
                is_at_rest = is_gone and not served.open_handles and served.requests == before
                rested = rested + LOOK_SECONDS if is_at_rest else 0.0
                before = served.requests
        log.warning('nobody uses what is left of the mount: it is ended')
        await write_back()
        fuse_adapter.terminate()
