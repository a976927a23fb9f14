"""Alone: proof for other hosts, and for the next mount, that no object lay beside the members of a commit once it was made.

Owns the list of such commits in the bucket, one small object for each host, and the look by which it is found. It must not know what is concluded
from it (rivals.py): what lies at the key of such a member was put there later, whoever did it and whatever clocks say.

Looked for at the end of a mount: until then whoever is there sees by its own listings what comes. Where the context has more objects than one listing
shows, it costs too much, and age decides as before.
"""
from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from ctxfs.errors import CtxfsError
from ctxfs.storage.archive_log_format import spelled
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.archive_mirror import ArchiveMirror
from ctxfs.sync.guarded import GuardedPool
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.protocol import ListPages, PutBytes
from ctxfs.sync.rivals import AloneList, alone_key

log = logging.getLogger(__name__)

#: commits of one host that are remembered; of older ones age tells as much
MOST = 256
_META = 'archive_alone'


class Alone:
    """See the module docstring. `prefix`: where the mount's root lies in the bucket. `pool` writes, `list_pool` lists."""

    def __init__(self, db: TreeDB, pool: TransferPool | GuardedPool, *, list_pool: TransferPool, mirror: ArchiveMirror, host: str,
                 prefix: str) -> None:
        self._db = db
        self._pool = pool
        self._list_pool = list_pool
        self._mirror = mirror
        self._host = host
        self._prefix = prefix
        #: of this mount, and not looked at: number → archives
        self._open: dict[int, list[str]] = {}

    def committed(self, number: int, archives: Sequence[str]) -> None:
        self._open[number] = list(archives)
        if len(self._open) > MOST:
            del self._open[next(iter(self._open))]

    async def prove(self) -> None:
        """Look at what there is, and tell of commits whose members are alone. What fails is left: then age decides."""
        if not self._open:
            return
        # INVARIANT: of a commit that comes while the listing is made, it says nothing
        before = dict(self._open)
        try:
            found = await self._objects()
            if found is not None and (proven := self._proven(found, before)):
                await self._tell(proven)
            for number in before:
                self._open.pop(number, None)
        except CtxfsError as error:
            log.info('it is not told which members are alone: %s', error)

    async def _objects(self) -> dict[str, str] | None:
        """key → etag of all objects; None where one page does not show them."""
        async with self._list_pool.stream(ListPages(prefix=self._prefix)) as pages:
            async for page in pages:
                return None if page.next_token is not None else {info.key[len(self._prefix):]: info.etag for info in page.objects}
        return {}

    def _proven(self, found: dict[str, str], before: dict[int, list[str]]) -> list[int]:
        """What a member took the place of does not count: everybody knows it."""
        members = self._mirror.rows.get_all(list(found))
        beside = {member.place.archive for key, member in members.items() if member.shadows != found[key]}
        return [number for number, archives in before.items() if beside.isdisjoint(archives)]

    async def _tell(self, proven: list[int]) -> None:
        commits = sorted({*msgspec.msgpack.decode(self._db.meta(_META) or b'\x90', type=list[int]), *proven})[-MOST:]
        key = self._mirror.context_prefix + alone_key(spelled(self._host))
        await self._pool.call(PutBytes(key=key, body=msgspec.json.encode(AloneList(1, commits)), content_type='application/json'))
        self._db.set_meta(_META, msgspec.msgpack.encode(commits))
