"""What is told to the kernel when something changed behind its back: names, attributes, content, listings that it remembers.

Owns the queue of what is still to be told, and which of it is worth telling. It must not know why something changed. pyfuse3 is handed in,
so that only the adapter imports it.
"""
from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import trio

from ctxfs.edge import fuse_ops
from ctxfs.storage.block_cache import CachedRange

log = logging.getLogger(__name__)

#: bytes given to the kernel's page cache at a time
STORE_BYTES = 128 << 10


class KernelInvalidator:
    """Tells the kernel what changed behind its back. Runs in a thread, one call after the other: an invalidation may block until a
    handler has answered, so it must never happen inside one or on the loop. `kernel`: pyfuse3."""

    def __init__(self, kernel: ModuleType) -> None:
        self._kernel = kernel
        self._send, self._receive = trio.open_memory_channel[tuple[Callable[..., None], tuple[Any, ...]]](math.inf)
        #: whether the kernel can know an inode at all; the daemon sets it once there is a file system
        self.is_known: Callable[[int], bool] = lambda ino: True
        #: whether the kernel was told of an absence, which is forgotten thereby; set by the daemon too
        self.take_absence: Callable[[int, bytes], bool] = lambda parent, name: True

        #: whether the kernel may remember the listing of a directory, which is forgotten thereby; set by the daemon too
        self.take_listing: Callable[[int], bool] = lambda ino: False

    def inode(self, ino: int) -> None:
        """Attributes and pages of the inode are stale."""
        if self.is_known(ino):
            self._send.send_nowait((self._kernel.invalidate_inode, (ino,)))

    def replaced(self, ino: int) -> None:
        """The handles of this file that are open are stale, those that are opened from now on are not."""
        fuse_ops.set_plain(ino, False)

    def attrs(self, ino: int) -> None:
        """Attributes of the inode are stale, and, of a directory, its listing; pages of a file are not."""
        if self.is_known(ino):
            self._send.send_nowait((self._kernel.invalidate_inode, (ino, not self.take_listing(ino))))

    def listing(self, ino: int) -> None:
        """The listing of the directory is stale, if the kernel has one. It does not notice by itself when an entry appears or goes for which
        it has no dentry (fuse_reverse_inval_entry in Linux)."""
        if self.take_listing(ino):
            self._send.send_nowait((self._kernel.invalidate_inode, (ino,)))

    def entry(self, parent: int, name: bytes, deleted: int = 0) -> None:
        """The name is stale; `deleted`: the inode it named is gone (watchers see it)."""
        if self.is_known(parent):
            self._send.send_nowait((self._kernel.invalidate_entry, (parent, name, deleted)))
            self.listing(parent)

    def appeared(self, parent: int, name: bytes) -> None:
        """If the kernel remembers that there was no such name, that is stale. Only then: it may have looked up the name meanwhile, and
        taking it away again from under a process whose working directory it is would make getcwd(2) fail."""
        if self.take_absence(parent, name):
            self._send.send_nowait((self._kernel.invalidate_entry, (parent, name, 0)))
        self.listing(parent)

    def grown(self, ino: int, parts: Sequence[tuple[int, CachedRange]], done: Callable[[], None]) -> None:
        """Bytes were added at the end of a file that the kernel knows. It takes no size of a regular file from us (its writeback cache
        may know better), but what is stored beyond the end moves the end (fuse_notify_store in Linux)."""
        token = trio.lowlevel.current_trio_token()
        self._send.send_nowait((self._store, (ino, parts, lambda: token.run_sync_soon(done))))

    def _store(self, ino: int, parts: Sequence[tuple[int, CachedRange]], done: Callable[[], None]) -> None:
        try:
            for offset, found in parts if self.is_known(ino) else ():
                for start in range(0, found.length, STORE_BYTES):
                    self._kernel.notify_store(ino, offset + start, os.pread(found.fd, min(STORE_BYTES, found.length - start), found.offset + start))
        finally:
            for _, found in parts:
                os.close(found.fd)
            with contextlib.suppress(trio.RunFinishedError):    # nobody waits any more
                done()

    async def run(self) -> None:
        async for function, args in self._receive:
            try:
                await trio.to_thread.run_sync(function, *args)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.ENOTCONN, errno.EBADF):   # the kernel did not know it
                    log.warning('invalidating %s failed: %s', args, error)

    async def write_back(self, inos: Sequence[int]) -> None:
        """The kernel has written its dirty pages of these inodes when this returns. Invalidating writes and waits for them; syncfs(2)
        would only begin (FUSE mappings are exempt from its waiting). Never call it from a handler of one of these inodes."""
        for ino in inos:
            self._send.send_nowait((self._kernel.invalidate_inode, (ino,)))
        await self.quiesce()

    async def quiesce(self) -> None:
        """Return when everything queued before was told."""
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()
        await self._send.send((lambda: token.run_sync_soon(done.set), ()))
        await done.wait()
