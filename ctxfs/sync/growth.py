"""Growth: an open file whose object became longer, and is otherwise what it was, goes on as the same file (`tail -f` sees the new lines).

Owns the proof that nothing but an end was added, and the turn from one version to the next. It must not know how the kernel learns of it
(the Invalidator's `grown`), nor which objects changed.

A changed object otherwise means a new inode for its name (reconcile.py says why): who has the old one open gets ESTALE, because bytes of two
versions must not mix. They cannot where the old content is the beginning of the new one. That is proven for at most MAX_SIZE bytes: by the
blocks of the old version that are in the cache, or where some are missing by its hash (ours, or an etag that is an MD5). Only for files that
nobody has open for writing, for their pages in the kernel may be newer than all we know; who opens it for writing waits until the kernel
has the new size, else it would append over the new end.

The kernel keeps mtime and ctime of a file that it knows to itself (fuse_get_cache_mask in Linux, with the writeback cache): the inode's new
times show when it was closed and looked up again, which `settle` provokes.
"""
from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import trio

from ctxfs.errors import CtxfsError
from ctxfs.records import ObjectInfo
from ctxfs.storage.block_cache import BLOCK_SIZE, CachedRange
from ctxfs.storage.inode import Content, Inode
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.members import Place, hash_in, is_member
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.ports import Invalidator
from ctxfs.sync.protocol import Fetch

log = logging.getLogger(__name__)

#: the old content is compared up to this size, and so much may be new
MAX_SIZE = 64 << 20
MAX_GROWTH = 16 << 20
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


class Blocks(Protocol):
    """The block cache by keys relative to the context (content.ContextCache). May be asked from any thread."""

    def open_block(self, key: str, etag: str, block: int) -> CachedRange | None: ...


class _Version(NamedTuple):
    key: str
    etag: str
    size: int


class Growth:
    """See the module docstring."""

    def __init__(self, db: TreeDB, journal: Journal, pool: TransferPool, invalidator: Invalidator, *, blocks: Blocks, prefix: str) -> None:
        self._db = db
        self._journal = journal
        self._pool = pool
        self._invalidator = invalidator
        self._blocks = blocks
        self._prefix = prefix
        #: files whose new times the kernel does not show while they are open
        self._grown: dict[int, Inode] = {}

    async def follow(self, inode: Inode, known: Known, info: ObjectInfo, *, place: Place | None = None) -> bool:
        """Make the inode the new version of its object, or of its member, which lies at `place`. False, and nothing happened, where it is not the
        same file grown longer."""
        if not self._may_grow(inode, known, info) or is_member(info.etag) != (place is not None):
            return False
        new = _Version(known.key, info.etag, info.size)
        try:
            await self._pool.call(Fetch(key=self._prefix + known.key, etag=info.etag, size=info.size, count=-(-info.size // BLOCK_SIZE),
                                        place=place))
        except CtxfsError:
            return False        # it changed once more, or the store went: whoever asked for it meets the same
        with _descriptors() as kept:
            if not await trio.to_thread.run_sync(self._is_beginning, known, new, kept):
                return False
            # nothing may be waited for between the last look and the turn
            if not self._may_grow(inode, known, info) or self._journal.known(known.key) != known:
                return False
            self._turn(inode, known, info, kept)
            kept.clear()        # they are the invalidator's now
        return True

    def _may_grow(self, inode: Inode, known: Known, info: ObjectInfo) -> bool:
        size = inode.size
        return (inode.is_regular and inode.content == Content.CLEAN and inode.nlink == 1 and inode.open_count > 0 and not inode.writers
                and inode.growth is None and known.revision == inode.revision and known.size == size < info.size
                and size <= MAX_SIZE and info.size - size <= MAX_GROWTH
                and self._journal.pending_row(inode.ino) is None and len(self._journal.objects_of(inode.ino)) == 1)

    def _is_beginning(self, known: Known, new: _Version, kept: list[tuple[int, CachedRange]]) -> bool:
        """In a thread: whether the old content is how the new one begins. Blocks with new bytes stay open in `kept`, by their offset."""
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        is_whole = True
        for block in range(-(-new.size // BLOCK_SIZE)):
            found = self._blocks.open_block(new.key, new.etag, block)
            if found is None:
                return False        # the cache is smaller than the file
            try:
                start = block * BLOCK_SIZE
                old_length = max(0, min(BLOCK_SIZE, known.size - start))
                data = os.pread(found.fd, old_length, found.offset)
                sha256.update(data)
                md5.update(data)
                equal = self._equals_cached(known, block, data) if old_length else True
                if equal is False or len(data) != old_length:
                    return False
                is_whole = is_whole and equal is True
            finally:
                if found.length > old_length:
                    kept.append((start, found))
                else:
                    os.close(found.fd)
        etag = _MD5.fullmatch(known.etag)
        if is_member(known.etag):
            return is_whole or sha256.hexdigest() == hash_in(known.etag)
        return is_whole or sha256.hexdigest() == known.sha256 or (etag is not None and md5.hexdigest() == etag[1])

    def _equals_cached(self, known: Known, block: int, data: bytes) -> bool | None:
        """Whether the block of the old version has these bytes; None when it is not in the cache."""
        found = self._blocks.open_block(known.key, known.etag, block)
        if found is None:
            return None
        try:
            return os.pread(found.fd, found.length, found.offset) == data
        finally:
            os.close(found.fd)

    def _turn(self, inode: Inode, known: Known, info: ObjectInfo, kept: list[tuple[int, CachedRange]]) -> None:
        old_size, grown = inode.size, trio.Event()
        parts = []
        for start, found in kept:
            skip = max(0, old_size - start)
            parts.append((start + skip, CachedRange(found.fd, found.offset + skip, found.length - skip)))
        with self._db.transaction():
            inode.size, inode.revision = info.size, inode.revision + 1
            inode.mtime_ns = inode.ctime_ns = info.mtime_ns
            inode.attrs_known, inode.link_group = 0, None       # its metadata may tell better times; the index, which links it has
            self._db.store_all(inode)
            self._journal.put_object(known._replace(etag=info.etag, size=info.size, revision=inode.revision, sha256='',
                                                    uploaded_ns=info.mtime_ns))
        inode.growth = grown
        self._grown[inode.ino] = inode

        def done() -> None:
            inode.growth = None
            grown.set()

        self._invalidator.grown(inode.ino, parts, done)
        log.debug('inode %d grew from %d to %d bytes', inode.ino, old_size, info.size)

    def settle(self) -> None:
        """Files that grew and are closed by now: have the kernel look them up again, for their times."""
        for inode in [inode for inode in self._grown.values() if not inode.open_count]:
            del self._grown[inode.ino]
            for parent, name in self._db.names_of(inode.ino):
                self._invalidator.entry(parent, name)


@contextmanager
def _descriptors() -> Iterator[list[tuple[int, CachedRange]]]:
    kept: list[tuple[int, CachedRange]] = []
    try:
        yield kept
    finally:
        for _, found in kept:
            os.close(found.fd)
