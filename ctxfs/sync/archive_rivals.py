"""Members and objects of one key, in Archive mode: which of the two goes, and which is kept under another name.

Owns what becomes of members behind an object, and of objects behind a member. It must not know how it is found out who knew whom (rivals.py), nor
what else a flush consists of (archiver.py).

    object knows the member, or certainly came later    → the member is deleted with the next commit
    object does not know it                             → the object has the name; the member gets a name of its own beside it, by a commit that
                                                          deletes the one and makes the other: of several hosts that find out, one does it
    member knows the object (its `shadows`)             → the object is deleted, by the host that committed at once, by others when it is old
"""
from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from ctxfs.errors import CtxfsError
from ctxfs.storage import archive_log_format as log_format
from ctxfs.storage.archive_log_format import ArchiveInfo, MemberRecord
from ctxfs.storage.conflict_rows import Holds
from ctxfs.storage.keys import Unmountable, key_to_path, name_to_component, printable
from ctxfs.storage.members import Member, Place
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync import packing
from ctxfs.sync.archive_flush import Told, untold
from ctxfs.sync.archive_mirror import ArchiveMirror
from ctxfs.sync.archive_plan import ARCHIVE_BYTES
from ctxfs.sync.archive_protocol import Pack, PackDone, PackItem, PartRef, Rival, SendArchive, Verdict, Weigh
from ctxfs.sync.archive_step import commit_next
from ctxfs.sync.asides import UNKNOWN_HOST, Asides
from ctxfs.sync.guarded import GuardedPool
from ctxfs.sync.packing import pack_item
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.protocol import DeleteMany

log = logging.getLogger(__name__)

#: others commit in between so often, before it is left to the next flush
ATTEMPTS = 5
#: looked at in one flush; the next one goes on
MOST = 2000
#: an object behind a member is deleted by the host that committed it so soon; later, and by others, only when that is old and proven
FRESH_SECONDS, OLD_SECONDS = 60.0, 600.0


class ArchiveRivals:
    """See the module docstring. Raises what the store says."""

    def __init__(self, db: TreeDB, pool: TransferPool | GuardedPool, *, mirror: ArchiveMirror, asides: Asides, host: str, scratch: Path,
                 prefix: str, told: Told = untold) -> None:
        """`told`: see ArchiveCommitter."""
        self._told = told
        #: what could not be read, where it was; and what cannot be read at all
        self._unread: set[tuple[str, Place]] = set()
        self._lost: set[tuple[str, str]] = set()
        self._db = db
        self._pool = pool
        self._mirror = mirror
        self._asides = asides
        self._host = host
        self._scratch = scratch
        self._prefix = prefix

    async def _weigh(self, members: Sequence[Member]) -> list[Verdict]:
        rivals = [Rival(key=self._prefix + member.key, etag=member.etag, size=member.size, archive=member.place.archive, shadows=member.shadows,
                        listed=max(0, member.is_shadowed - 1)) for member in members]
        return await self._pool.call(Weigh(prefix=self._mirror.context_prefix, rivals=rivals))

    # --- members behind objects ---------------------------------------------------------------------------------------------------

    async def settle(self) -> list[Member]:
        """The members that are to be deleted, because objects have their place. Those whose objects do not know them are under other names now."""
        outdated: list[Member] = []
        for _ in range(ATTEMPTS):
            shadowed = self._mirror.rows.shadowed()[:MOST]
            if not shadowed:
                return []
            verdicts = await self._weigh(files := [member for member in shadowed if not member.key.endswith('/')])
            outdated = [member for member in shadowed if member.key.endswith('/')]      # of an empty directory there is nothing to be kept
            weighed = list(zip(files, verdicts, strict=True))
            outdated += [member for member, verdict in weighed if verdict is Verdict.LATER or self._is_lost(member)]
            kept = [member for member, verdict in weighed if verdict in (Verdict.UNAWARE, Verdict.EARLIER) and not self._is_lost(member)]
            for member, verdict in weighed:
                if verdict is Verdict.GONE:
                    self._mirror.rows.set_shadowed(member.key, 0)
                    self._mirror.apply_members([member.key])
            if await self._keep(kept):
                break
            await self._mirror.catch_up()
        return outdated

    def _is_lost(self, member: Member) -> bool:
        return (member.key, member.etag) in self._lost

    async def _keep(self, members: Sequence[Member]) -> bool:
        """Give them other names. False where others committed meanwhile."""
        named = [(member, name) for member in members if (name := self._free_key(member.key, member)) is not None]
        for lifecycle in sorted({_lifecycle(member) for member, _ in named}):
            for alike in _cut([item for item in named if _lifecycle(item[0]) == lifecycle]):
                if not await self._keep_alike(alike, lifecycle):
                    return False
        return True

    def _free_key(self, key: str, member: Member) -> str | None:
        """None as long as the directory is not known here, or nothing is known of the member."""
        path = key_to_path(key)
        parent = None if isinstance(path, Unmountable) or member.record is None else self._db.resolve(path[:-1])
        if parent is None or isinstance(path, Unmountable):
            return None
        host = '' if self._is_mine(member) else log_format.host_in(member.place.archive)[:8] or UNKNOWN_HOST
        name = self._asides.free_name(parent, path[-1], at_s=time.time(), host=host)
        return self._db.dir_key(parent) + name_to_component(name)

    async def _keep_alike(self, named: list[tuple[Member, str]], lifecycle: str) -> bool:
        part = str(self._scratch / f'rivals-{secrets.token_hex(8)}')
        number = self._mirror.number
        try:
            done = await self._pool.call(Pack(items=[self._item(member, name) for member, name in named], part=part, lifecycle=lifecycle))
            if not self._are_whole(named, done):
                return False
            archive = log_format.archive_name(number + 1, host=self._host, created_ns=time.time_ns())
            deleted = [self._mirror.path_of(member.key) for member, _ in named]
            sent = await self._pool.call(SendArchive(key=self._mirror.archive_key(archive), part=PartRef(path=part), deleted=deleted,
                                                     lifecycle=lifecycle))
        finally:
            packing.remove(part)
        info = ArchiveInfo(archive, sent.size, lifecycle)
        places = [msgspec.structs.replace(item.place, archive=archive) for item in done.items if item.place is not None]
        records = [MemberRecord(msgspec.structs.replace(member.record, path=self._mirror.path_of(name), link=''), place)
                   for (member, name), place in zip(named, places, strict=True) if member.record is not None]
        if not await commit_next(self._pool, self._mirror, number, host=self._host, created_ns=time.time_ns(), archives=[info],
                                 records=[*records, *map(log_format.deletion, deleted)]):
            await self._pool.call(DeleteMany(items=[(self._mirror.archive_key(archive), None)]))
            return False
        for member, name in named:
            self._told(name, member.etag, '', member.size)
            self._note(member, name)
        return True

    def _are_whole(self, named: list[tuple[Member, str]], done: PackDone) -> bool:
        """Whether all were packed. One that was not is elsewhere by now, or, when that happens again, lost. Raises what may succeed another time."""
        failed = [(member, item.failure.error()) for (member, _), item in zip(named, done.items, strict=True) if item.failure is not None]
        for member, error in failed:
            if isinstance(error, CtxfsError) and error.transient:
                raise error
            if (place := (member.key, member.place)) in self._unread:
                log.error('what was at %s beside an object cannot be read any more: %s', printable(member.key), error)
                self._lost.add((member.key, member.etag))
            self._unread.add(place)
        return not failed

    def _item(self, member: Member, name: str) -> PackItem:
        place = msgspec.structs.replace(member.place, archive=self._mirror.archive_key(member.place.archive))
        return pack_item(member, place, self._mirror.path_of(name), link='')

    def _note(self, member: Member, name: str) -> None:
        """In the list of conflicts; where the commit shows no such file, there is nothing to be told."""
        path = key_to_path(name)
        ino = None if isinstance(path, Unmountable) else self._db.resolve(path)
        if ino is None or isinstance(path, Unmountable) or (parent := self._db.resolve(path[:-1])) is None:
            return
        self._asides.found(ino, parent, path[-1], member.key, Holds.OURS if self._is_mine(member) else Holds.THEIRS)

    def _is_mine(self, member: Member) -> bool:
        return log_format.host_in(member.place.archive) == log_format.spelled(self._host)

    # --- objects behind members ---------------------------------------------------------------------------------------------------

    async def remove_covered(self) -> None:
        """Objects whose place members took. What fails is tried again after another flush."""
        fresh, proven = [], []
        for member in self._mirror.rows.covering():
            age_s = time.time() - self._mirror.rows.made_ns(member.place.archive) / 1e9
            is_mine = self._is_mine(member)
            if is_mine and age_s < FRESH_SECONDS:
                fresh.append(member)
            elif is_mine or age_s > OLD_SECONDS:
                proven.append(member)
        try:
            await self._remove([*fresh, *await self._prove(proven)])
        except CtxfsError as error:
            log.info('what archives replaced is not removed yet: %s', error)

    async def _prove(self, members: list[Member]) -> list[Member]:
        """Those whose object is the one that they took the place of. Where it is another one, or the same content that came again, it counts."""
        rows, found = self._mirror.rows, []
        for member, verdict in zip(members, await self._weigh(members) if members else (), strict=True):
            if verdict is Verdict.EARLIER:
                found.append(member)
            elif verdict is Verdict.GONE:
                rows.uncover([member.key])
            elif verdict is Verdict.LATER:
                rows.set_shadowed(member.key, 1)
        return found

    async def _remove(self, members: list[Member]) -> None:
        if not members:
            return
        done = await self._pool.call(DeleteMany(items=[(self._prefix + member.key, member.shadows) for member in members], is_replaced=True))
        left = {failure.key for failure in done.failures if failure.name not in ('RemoteChanged', 'NotFound')}
        self._mirror.rows.uncover(member.key for member in members if self._prefix + member.key not in left)


def _lifecycle(member: Member) -> str:
    return '' if member.record is None else member.record.lifecycle


def _cut(named: list[tuple[Member, str]]) -> Iterator[list[tuple[Member, str]]]:
    """As many together as one archive has."""
    part: list[tuple[Member, str]] = []
    for item in named:
        if part and sum(member.size for member, _ in part) + item[0].size > ARCHIVE_BYTES:
            yield part
            part = []
        part.append(item)
    if part:
        yield part
