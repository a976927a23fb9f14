"""Writes in doubt: what was sent to the bucket and never heard of again.

Owns the `attempt` rows: one is written before a PUT or copy is sent, and removed in the transaction that records its end. What a crash, a
dead worker or a lost answer leaves is settled by asking for the object: if it is ours, it becomes the object that we know, whatever has
become of the file since (changed: the next upload may replace it; removed or renamed: it is deleted). It must not know what an upload is.
"""
from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

from ctxfs.storage.inode import Content, Inode
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.pool import Priority, TransferPool
from ctxfs.sync.protocol import Head, HeadItem

log = logging.getLogger(__name__)

HEADS = 64
#: begins what stands for the hash of a copy's source that is not known: stores keep the etag of most objects when they copy them
_BY_ETAG = 'etag '
#: begins what stands for the hash of an upload, which is not known before its bytes are read: the id that its stamp carries
BY_ATTEMPT = 'try '


class Doubt:
    """See the module docstring."""

    def __init__(self, db: TreeDB, journal: Journal, pool: TransferPool, *, prefix: str, host: str,
                 on_arrived: Callable[[Known], object] = lambda known: None) -> None:
        self._db = db
        self._on_arrived = on_arrived
        self._journal = journal
        self._pool = pool
        self._prefix = prefix
        self._host = host

    def begin(self, key: str, inode: Inode, *, revision: int | None = None) -> str:
        """The inode's current revision (or the one given) is about to be uploaded to the key; returns the id that its stamp is to carry. The
        revision would not tell: another host may move an object of ours to this key, with its stamp."""
        attempt = secrets.token_hex(8)
        self._begin(key, inode, BY_ATTEMPT + attempt, inode.revision if revision is None else revision)
        return attempt

    def begin_copy(self, key: str, inode: Inode, source: Known) -> None:
        """The object that carries the inode's current revision is about to be copied to the key."""
        self._begin(key, inode, source.sha256 or _BY_ETAG + source.etag, inode.revision)

    def _begin(self, key: str, inode: Inode, sign: str, revision: int) -> None:
        self._db.execute('INSERT OR REPLACE INTO attempt VALUES (?, ?, ?, ?)', (key, inode.ino, revision, sign))

    def settle(self, key: str) -> None:
        """How it ended is known; call it in the transaction that says so."""
        self._db.execute('DELETE FROM attempt WHERE key = ?', (key,))

    async def resolve(self) -> None:
        """Find out about all writes in doubt. Nothing may be in flight. Raises what the store says (all rows it reached are settled)."""
        while rows := self._db.rows('SELECT key, ino, revision, sha256 FROM attempt ORDER BY key LIMIT ?', (HEADS,)):
            items = await self._pool.call(Head(keys=[self._prefix + row[0] for row in rows], wants_hash=True), priority=Priority.INTERACTIVE)
            for (key, ino, revision, sha256), item in zip(rows, items, strict=True):
                if item.failure is not None and item.failure.name != 'NotFound':
                    raise item.failure.error()
                self._settle_one(key, ino, revision, sha256, item)

    def _settle_one(self, key: str, ino: int, revision: int, sha256: str, item: HeadItem) -> None:
        known, info = self._journal.known(key), item.info
        is_news = info is not None and (known is None or known.etag != info.etag)
        with self._db.transaction():
            self.settle(key)
            if not is_news or item.stamp is None or not self._is_ours(item, revision, sha256):
                return
            assert info is not None
            inode = self._db.inodes_of([ino]).get(ino)
            is_wanted = inode is not None and inode.nlink > 0
            found = Known(key, info.etag, info.size, ino, revision, item.stamp.sha256, 0 if is_wanted else 1, item.lifecycle, info.mtime_ns)
            self._journal.put_object(found)
            if inode is not None and inode.content == Content.STAGED and inode.revision <= revision:
                # in memory it had counted further before the crash: what is staged may be later than what arrived
                inode.revision = revision + 1
                self._db.store_content(inode)
        self._on_arrived(found)
        log.info('the write of %s had arrived although nobody heard of it', key)

    def _is_ours(self, item: HeadItem, revision: int, sign: str) -> bool:
        stamp = item.stamp
        assert stamp is not None
        actual = item.sha256 or stamp.sha256        # a tool that rewrites an object may keep its metadata
        if sign.startswith(_BY_ETAG):
            return item.info is not None and item.info.etag == sign[len(_BY_ETAG):]
        if sign.startswith(BY_ATTEMPT):
            return stamp.attempt == sign[len(BY_ATTEMPT):] and actual == stamp.sha256
        if sign:
            return actual == sign
        return stamp.host == self._host and stamp.revision == revision and actual == stamp.sha256      # begun by an older ctxfs
