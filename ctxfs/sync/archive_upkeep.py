"""Upkeep of archives: those with mostly dead members are packed anew, what nobody reads any more is removed, and the log is compacted.

Owns which archives are worth it, how much is done at a time, and how long what was replaced stays. It must not know how files are flushed
(archiver.py) or how the log is read (archive_mirror.py).

    pack     live members of archives of which less than LIVE_SHARE is in use, PACK_BYTES at a time, into one new archive
    commit   their new places, and that the old archives are dropped: the content has the etag that it had, so no reader and no cache notices.
             What others committed meanwhile makes it give up: nothing was promised
    retell   deletions: whoever reads only archives, in order, must not find again what was deleted while an older archive has it
    remove   dropped archives GRACE_SECONDS after this host learnt of it: others may be about to read them. Archives that no commit names, after
             FLUSH_SECONDS by the store's clock: a flush that takes longer is thrown away (archive_commit.py)

Archives with a lifecycle are left alone: packed anew, their members would begin to live anew. Any number of hosts may do this at once; each step is
harmless if it is done twice or cut short.
"""
from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import trio

from ctxfs.errors import CtxfsError
from ctxfs.records import ObjectInfo
from ctxfs.storage import archive_log_format as log_format
from ctxfs.storage.archive_log_format import ARCHIVE_DIR, FLUSH_SECONDS, LOG_DIR, ArchiveInfo, MemberRecord
from ctxfs.storage.members import ArchiveUse, Member
from ctxfs.sync import packing
from ctxfs.sync.archive_mirror import ArchiveMirror
from ctxfs.sync.archive_protocol import Pack, PackItem, PartRef, SendArchive, WriteBase
from ctxfs.sync.archive_step import commit_next
from ctxfs.sync.guarded import GuardedPool
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.protocol import DeleteMany, ListPages

log = logging.getLogger(__name__)

#: an archive of which less is in use is packed anew, where that gives back at least so much
LIVE_SHARE = 0.5
LEAST_WASTE = 1 << 20
#: packed bytes in one go, and how often: what it takes of the network is bounded by the two
PACK_BYTES = 64 << 20
PACK_MEMBERS = 20_000
#: deletions that are told once more, at most: they go to a worker in one message
RETOLD = 100_000
EVERY_SECONDS = 600.0
GRACE_SECONDS = 3600.0
#: commits that are not in a base
LOG_COMMITS = 64
LOG_GRACE_SECONDS = 86_400.0


class ArchiveUpkeep:
    """See the module docstring. `scratch`: where the new archive grows. `now`: this host's clock, in seconds since the epoch."""

    def __init__(self, pool: TransferPool | GuardedPool, *, mirror: ArchiveMirror, list_pool: TransferPool, host: str, scratch: Path,
                 now: Callable[[], float] = time.time, least_waste: int = LEAST_WASTE) -> None:
        self._pool = pool
        self._list_pool = list_pool
        self._mirror = mirror
        self._host = host
        self._scratch = scratch
        self._now = now
        self._least_waste = least_waste

    async def run(self, wait_listed: Callable[[], Awaitable[None]], is_paused: Callable[[], bool]) -> None:
        """Now and then, for as long as the mount lasts. The log, which costs every new host, also where mounts are short."""
        await wait_listed()
        do = self._compact_log
        while True:
            if not is_paused():
                try:
                    await do()
                except CtxfsError as error:
                    log.info('archives are not tidied up now: %s', error)
            await trio.sleep(EVERY_SECONDS)
            do = self.once

    async def once(self) -> None:
        """One go of everything that is due. Raises what the store says; what was done until then stays done."""
        if self._mirror.below:
            return      # this host knows only a part of the context
        await self._mirror.catch_up()
        await self._compact_log()
        await self._pack_anew()
        await self._remove()

    async def _compact_log(self) -> None:
        if self._mirror.commits > LOG_COMMITS:
            done = await self._pool.call(WriteBase(prefix=self._mirror.context_prefix, grace_seconds=LOG_GRACE_SECONDS, tree_db=self._mirror.tree_db))
            self._mirror.commits = 0
            log.info('the archive log is compacted: %d records, %d objects removed', done.records, done.removed)

    # --- packing anew -------------------------------------------------------------------------------------------------------------

    def _chosen(self) -> list[ArchiveUse]:
        """Archives that are mostly dead, those first of which least is in use, as many as one go takes."""
        found = [use for use in self._mirror.rows.uses() if not use.dead_ns and not use.lifecycle and use.live < LIVE_SHARE * use.size]
        chosen: list[ArchiveUse] = []
        left, members = PACK_BYTES, PACK_MEMBERS
        for use in sorted(found, key=lambda use: use.packed):
            left, members = left - use.packed, members - use.members
            if left < 0 or members < 0:
                break
            chosen.append(use)
        size, rest = sum(use.size for use in chosen), sum(use.live for use in chosen)
        rest += sum(len(key) for key in self._mirror.rows.deletions(0))
        return chosen if size - rest >= max(rest, self._least_waste) else []

    async def _pack_anew(self) -> None:
        chosen = self._chosen()
        live = [member for use in chosen for member in self._mirror.rows.members_of(use.name)]
        if not chosen or any(member.record is None for member in live):
            return
        part = str(self._scratch / f'anew-{secrets.token_hex(8)}')
        try:
            await self._replace(chosen, sorted(live, key=lambda member: member.key), part)
        finally:
            packing.remove(part)

    async def _replace(self, chosen: list[ArchiveUse], live: list[Member], part: str) -> None:
        mirror, number, dropped = self._mirror, self._mirror.number, [use.name for use in chosen]
        items = []
        if live:
            done = await self._pool.call(Pack(items=[self._item(member) for member in live], part=part))
            items = done.items
            if any(item.failure is not None for item in items):
                return      # somebody else was quicker
        retold = mirror.rows.deletions(self._oldest_left(dropped) - 1)
        if len(retold) > RETOLD:
            return      # when the archives that need them are gone, there are less
        archives = []
        if live or retold:
            name = log_format.archive_name(number + 1, host=self._host, created_ns=int(self._now() * 1e9))
            sent = await self._pool.call(SendArchive(key=mirror.archive_key(name), part=PartRef(path=part) if live else None, deleted=retold))
            archives = [ArchiveInfo(name, sent.size)]
        records = [MemberRecord(member.record, msgspec.structs.replace(item.place, archive=archives[0].name), member.shadows)
                   for member, item in zip(live, items, strict=True) if member.record is not None and item.place is not None]
        records = [*records, *map(log_format.deletion, retold)]
        # what was packed may be dead where others committed meanwhile
        if await commit_next(self._pool, mirror, number, host=self._host, created_ns=int(self._now() * 1e9), archives=archives, records=records,
                             dropped=dropped):
            log.info('%d archives are packed anew: %d records', len(dropped), len(records))
        elif archives:
            await self._pool.call(DeleteMany(items=[(mirror.archive_key(archives[0].name), None)]))

    def _item(self, member: Member) -> PackItem:
        place = msgspec.structs.replace(member.place, archive=self._mirror.archive_key(member.place.archive))
        return packing.pack_item(member, place, member.key, link='' if member.record is None else member.record.link)

    def _oldest_left(self, dropped: list[str]) -> int:
        """The number of the oldest archive that there is without these."""
        numbers = [log_format.number_in(use.name) or 0 for use in self._mirror.rows.uses() if use.name not in dropped]
        return min(numbers, default=1 << 60)

    # --- removing -----------------------------------------------------------------------------------------------------------------

    async def _remove(self) -> None:
        now_ns = int(self._now() * 1e9)
        old = [use.name for use in self._mirror.rows.uses() if use.dead_ns and now_ns - use.dead_ns > GRACE_SECONDS * 1e9 and not use.members]
        orphans = await self._orphans()
        if not old and not orphans:
            return
        done = await self._pool.call(DeleteMany(items=[(self._mirror.archive_key(name), None) for name in [*old, *orphans]]))
        failed = {failure.key for failure in done.failures}
        self._mirror.rows.forget_archives(name for name in old if self._mirror.archive_key(name) not in failed)

    async def _orphans(self) -> list[str]:
        """Archives that no commit names, and that are too old for one to come."""
        directory = self._mirror.context_prefix + ARCHIVE_DIR
        known = {use.name for use in self._mirror.rows.uses()}
        found: list[ObjectInfo] = []
        now_ns = 0
        async with self._list_pool.stream(ListPages(prefix=directory)) as pages:
            async for page in pages:
                now_ns = page.now_ns or int(self._now() * 1e9)
                found += [info for info in page.objects if not info.key.startswith(self._mirror.context_prefix + LOG_DIR)]
        return [name for info in found if log_format.number_in(name := info.key[len(directory):]) is not None and name not in known
                and now_ns - info.mtime_ns > FLUSH_SECONDS * 1e9]
