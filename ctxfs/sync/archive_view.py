"""The pool as whoever looks at the bucket sees it in Archive mode: a HEAD of a member is answered by the mirror of the archive log.

Owns which keys are members' and which are asked of the store. It must not know who asks. Everything else is the pool's.
"""
from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from ctxfs.storage.members import Member
from ctxfs.sync.archive_mirror import ArchiveMirror
from ctxfs.sync.pool import Stream, TransferPool
from ctxfs.sync.protocol import Head, HeadItem, Operation

R = TypeVar('R')


class ArchiveView:
    """See the module docstring; `call` and `stream` are TransferPool's."""

    def __init__(self, pool: TransferPool, mirror: ArchiveMirror, *, prefix: str) -> None:
        self._pool = pool
        self._mirror = mirror
        self._prefix = prefix

    async def call(self, operation: Operation[R], **options: Any) -> R:
        """Raises what TransferPool.call raises."""
        if not isinstance(operation, Head):
            return await self._pool.call(operation, **options)
        return await self._head(operation, options)  # type: ignore[return-value]

    def stream(self, operation: Operation[R], **options: Any) -> AbstractAsyncContextManager[Stream[R]]:
        return self._pool.stream(operation, **options)

    async def over_member(self, key: str) -> HeadItem:
        """The object of a key that a member has, too: a write of ours met it. From now on it counts."""
        item, = await self._pool.call(Head(keys=[self._prefix + key]))
        if item.info is not None:
            self._mirror.note_object(key, item.info.etag)
        return item

    async def _head(self, operation: Head, options: dict[str, Any]) -> list[HeadItem]:
        """What the log says now: a member may have another version since it was read."""
        await self._mirror.catch_up()
        members = self._members(operation.keys)
        asked = [key for key in operation.keys if key not in members]
        items = await self._pool.call(Head(keys=asked, wants_tags=operation.wants_tags, wants_hash=operation.wants_hash), **options) if asked else []
        found = dict(zip(asked, items, strict=True))
        return [found[key] if key in found else self._item(key, members[key]) for key in operation.keys]

    def _members(self, keys: list[str]) -> dict[str, Member]:
        rows = self._mirror.rows.get_all([key[len(self._prefix):] for key in keys])
        return {self._prefix + key: member for key, member in rows.items() if not member.is_shadowed}

    def _item(self, key: str, member: Member) -> HeadItem:
        info, record = self._mirror.info_of(member), member.record
        return HeadItem(key=key, info=type(info)(key=key, size=info.size, etag=info.etag, mtime_ns=info.mtime_ns),
                        attrs=None if record is None else record.attrs, lifecycle='' if record is None else record.lifecycle)
