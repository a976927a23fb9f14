"""The mirror: the archive log as this host has read it, and the tree following what others commit.

Owns the number up to which the log was read, the rows of members (storage/members.py), and that a commit appears in the tree as a whole: its records
are applied in one transaction, during which no program is answered. It must not know how commits are made (archiver.py), nor what a changed object
means for the tree (reconcile.py). Raises what the store says; what was applied until then stays applied.

    member of the log, not in the tree, or another version   → as a listed object (Reconciler)
    deleted by the log                                       → as an object that is gone
    an object of the same key, which the member replaced     → not shown; the next flush removes it
    an object of the same key, any other                     → came later: it counts, and the member is shadowed
    a commit of this host whose answer was lost              → `settle_own`: it is what we know, not somebody's change

INVARIANT: rows of `member` and the tree are changed in one transaction with the number. What reads or extends the log holds `lock`.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import trio

from ctxfs.crash_points import crash_point
from ctxfs.errors import RemoteChanged
from ctxfs.records import ROOT_PATH, IndexRecord, ObjectInfo
from ctxfs.storage.archive_log_format import ARCHIVE_DIR, LogHeader, MemberRecord
from ctxfs.storage.held_hints import Hint, record_of
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.members import DIRECTORY_ETAG, NUMBER, Member, MemberRows, Place, is_member, level
from ctxfs.storage.tree_connection import TreeReader
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.abort_slots import boot_seconds
from ctxfs.sync.archive_protocol import LogPart, ReadLog
from ctxfs.sync.pool import Priority, TransferPool
from ctxfs.sync.reconcile import Reconciler

log = logging.getLogger(__name__)

#: rows in one transaction where they need not appear at once: a few ms of the loop
SLICE = 250
_COMMITS, _LISTED = 'archive_commits', 'archive_listed'
#: the mirror is being built anew
_TORN = -1
_PAGE = 1000
_DIFFERING = ('SELECT m.key FROM member m LEFT JOIN object o ON o.key = m.key WHERE m.key > ? AND NOT m.is_shadowed '
              'AND (o.key IS NULL OR o.etag <> m.etag) ORDER BY m.key LIMIT ?')
_GONE = ('SELECT o.key FROM object o LEFT JOIN member m ON m.key = o.key WHERE o.key > ? AND o.etag >= \'zip-\' AND o.etag < \'zip.\' '
         'AND m.key IS NULL ORDER BY o.key LIMIT ?')
_TOLD = ('SELECT h.key FROM hint h JOIN object o ON o.key = h.key WHERE h.key > ? AND h.etag = o.etag AND o.etag >= \'zip-\' '
         'AND o.etag < \'zip.\' ORDER BY h.key LIMIT ?')


class Level(NamedTuple):
    """What archives have directly below a directory: members as in a listing, and keys of directories."""
    objects: list[ObjectInfo]
    prefixes: list[str]


class ArchiveMirror:
    """See the module docstring. `prefix`: where the mount's root lies in the bucket; `below`: the part of it that follows the context's own."""

    def __init__(self, db: TreeDB, journal: Journal, reconciler: Reconciler, pool: TransferPool, *, prefix: str, below: str = '',
                 may_repair: bool = True) -> None:
        """`may_repair`: a log of which something is lost is made anew."""
        self._db = db
        self._journal = journal
        self._reconciler = reconciler
        self._pool = pool
        self.context_prefix = prefix.removesuffix(below)
        self._may_repair = may_repair
        self.below = below
        self.rows = MemberRows(db)
        self.lock = trio.Lock()
        self.number = int(db.meta(NUMBER) or 0)
        self._commits = int(db.meta(_COMMITS) or 0)
        self._listed = int(db.meta(_LISTED) or 0)
        #: told of each commit within its transaction, before its records are applied; whether it is one of this host
        self.settle_own: Callable[[LogHeader], bool] = lambda header: False
        self._looked_s = -1e9
        #: False: the tree was made with other eyes (white lists), and no listing shows members
        self.agrees = True
        #: counts commits of others that were applied: the tree may be another one since
        self.applied = 0
        #: awaited with the members of a commit and their places, before it is applied
        self.before_commit: Callable[[Sequence[tuple[ObjectInfo, Place]]], Awaitable[None]] = _pass
        reconciler.may_show = self._may_show

    # --- following the log --------------------------------------------------------------------------------------------------------

    async def catch_up(self) -> int:
        """Apply what was committed since; how many commits. One request when there is none."""
        async with self.lock:
            return await self.catch_up_locked()

    async def follow(self, seconds: float) -> None:
        """The same unless it was done within the last `seconds`."""
        if boot_seconds() - self._looked_s > seconds:
            await self.catch_up()

    async def catch_up_locked(self) -> int:
        """The same for who holds the lock."""
        since, count, began_s = max(self.number, 0), 0, boot_seconds()
        reading = _Reading(self)
        operation = ReadLog(prefix=self.context_prefix, since=since, may_repair=self._may_repair, tree_db=self.tree_db)
        async with self._pool.stream(operation, priority=Priority.INTERACTIVE) as parts:
            async for part in parts:
                count += await reading.take(part)
        count += await reading.end()
        self.commits = parts.result.commits if not since else self.commits + count
        self._looked_s = began_s
        return count

    @property
    def tree_db(self) -> str:
        """Where all that the log had can be read; '' where it is only a part."""
        return '' if self.below else str(self._db.path)

    def key_here(self, path: str) -> str | None:
        """The key below the mount's root; None for what is elsewhere in the context."""
        return path[len(self.below):] if path.startswith(self.below) else None

    def path_of(self, key: str) -> str:
        """The inverse."""
        return self.below + key

    def listed(self, number: int) -> None:
        """A listing of everything, begun when the log was read up to `number`, is applied: what it showed of objects, it showed of all there were."""
        if number != self._listed:
            self._db.set_meta(_LISTED, number)
            self._listed = number

    @property
    def commits(self) -> int:
        """Those that no base replaces, as far as this host knows."""
        return self._commits

    @commits.setter
    def commits(self, count: int) -> None:
        if count != self._commits:
            self._db.set_meta(_COMMITS, count)
            self._commits = count

    def set_number(self, number: int) -> None:
        """Call it in the transaction that makes it true."""
        self._db.set_meta(NUMBER, number)
        self.number = number

    def restore_number(self) -> None:
        """After a transaction that was rolled back."""
        self.number = int(self._db.meta(NUMBER) or 0)

    def apply_commit(self, header: LogHeader, records: Sequence[MemberRecord]) -> None:
        """All of one commit at once."""
        try:
            with self._db.transaction():
                if header.is_reset:
                    self.rows.clear()
                is_own = self.settle_own(header)
                self.note(header, records)
                if not is_own:
                    self.applied += 1
                    self._apply(header, records)
                self.set_number(header.number)
        except BaseException:
            self.restore_number()
            raise
        crash_point('archive-after-follow')

    def note(self, header: LogHeader, records: Iterable[MemberRecord]) -> None:
        """What the commit says, into the rows."""
        now_ns = time.time_ns()
        for info in header.archives:
            self.rows.note_archive(info.name, size=info.size, lifecycle=info.lifecycle, made_ns=min(header.created_ns or now_ns, now_ns))
        self.rows.note_dead(header.dropped, now_ns)
        members, gone = [], []
        for item in records:
            key = self.key_here(item.record.path)
            if not key:
                continue
            if item.place is not None:
                members.append(Member(key, item.record.etag, item.record.size, item.place, item.shadows, 0, item.record))
            elif item.is_deletion:
                gone.append((key, item.number or header.number))
        self.rows.put(members)
        self.rows.revive(member.key for member in members)
        for number in {number for _, number in gone}:
            self.rows.remove((key for key, at in gone if at == number), number)

    def _apply(self, header: LogHeader, records: Sequence[MemberRecord]) -> None:
        here = [(key, item) for item in records if (key := self.key_here(item.record.path))]
        if header.is_reset:
            self._apply_gone([known.key for known in self._journal.objects_after('', 1 << 60) if is_member(known.etag)])
        self._apply_gone([key for key, item in here if item.is_deletion])
        self.apply_members([key for key, item in here if item.place is not None])
        self._reconciler.describe_directories(
            (key or ROOT_PATH, item.record) for item in records
            if item.record.path.endswith('/') and not item.is_deletion and (key := self.key_here(item.record.path)) is not None)
        self._reconciler.obstructed.add(*self._reconciler.remove_empty_directories())

    # --- the tree -----------------------------------------------------------------------------------------------------------------

    def apply_members(self, keys: Sequence[str]) -> None:
        """Make the tree agree with what the rows say of these keys."""
        members = self.rows.get_all(keys)
        with self._db.transaction():
            for key in keys:
                member = members.get(key)
                if member is not None and not self._is_shadowed(member):
                    self._reconciler.apply_member(self.info_of(member), self._hint_of(member))
            self._reconciler.directories.touch()

    def _is_shadowed(self, member: Member) -> bool:
        """Whether an object that came later has the key. Noted, so that it is remembered when the object goes."""
        known = self._journal.known(member.key)
        is_shadowed = known is not None and not is_member(known.etag) and known.etag != member.shadows and not known.doomed
        if is_shadowed != bool(member.is_shadowed):
            self.rows.set_shadowed(member.key, is_shadowed and 1 + self._listed)
        return is_shadowed

    def _may_show(self, info: ObjectInfo) -> bool:
        """Whether an object that a listing shows counts: not if a member took its place."""
        member = self.rows.get(info.key)
        if member is None:
            return True
        if member.shadows == info.etag:
            return False
        if not member.is_shadowed:
            self.rows.set_shadowed(info.key, 1 + self._listed)
        return True

    def note_object(self, key: str, etag: str) -> None:
        """There is an object of that key."""
        self._may_show(ObjectInfo(key=key, size=0, etag=etag, mtime_ns=0))

    def place_of(self, source: Known) -> Place | None:
        """Where the content is, the archive by its full key; None for what is an object. Raises RemoteChanged where the log has another version."""
        if not is_member(source.etag):
            return None
        member = self.rows.get(source.key)
        if member is None or member.etag != source.etag:
            raise RemoteChanged(f'{source.key} is another version in the archive log')
        return msgspec.structs.replace(member.place, archive=self.archive_key(member.place.archive))

    def has(self, known: Known) -> bool:
        """Whether this is a member, and the log has it."""
        return is_member(known.etag) and self.rows.etags([known.key]).get(known.key) == known.etag

    def archive_key(self, name: str) -> str:
        """The full key of an archive."""
        return f'{self.context_prefix}{ARCHIVE_DIR}{name}'

    def info_of(self, member: Member) -> ObjectInfo:
        """As a listing would show it."""
        return ObjectInfo(key=member.key, size=member.size, etag=member.etag, mtime_ns=self.rows.made_ns(member.place.archive))

    def _hint_of(self, member: Member) -> Hint | None:
        """What is said of its attributes: by its commit, or later by a segment of the index."""
        hint = self._journal.hint(member.key)
        if member.record is None:
            return hint
        if hint is not None and hint[0] == member.etag and record_of(hint).changed_ns > member.record.changed_ns:
            return hint
        return member.etag, member.size, member.record

    def _apply_gone(self, keys: Sequence[str]) -> None:
        for key in keys:
            known = self._journal.known(key)
            if known is not None and is_member(known.etag):
                self._reconciler.object_gone(known)

    async def agree(self) -> None:
        """Apply whatever the tree does not agree with: all at the first mount, and what could not be shown before."""
        await self._apply_all(_GONE, self._apply_gone_now)
        await self._apply_all(_DIFFERING, self.apply_members)
        self.agrees = True

    async def settle(self) -> None:
        """What a listing that was applied did not show: members that count again, and attributes that the index tells of members which are otherwise
        what they were."""
        if not self.agrees:
            await self.agree()
        await self._apply_all(_TOLD, self.apply_members)
        self.unshadow()

    async def _apply_all(self, sql: str, apply: Callable[[Sequence[str]], None]) -> None:
        after = ''
        while keys := await trio.to_thread.run_sync(self._page, sql, after):
            for start in range(0, len(keys), SLICE):
                apply(keys[start:start + SLICE])
                await trio.lowlevel.checkpoint()
            after = keys[-1]

    def _apply_gone_now(self, keys: Sequence[str]) -> None:
        with self._db.transaction():
            self._apply_gone(keys)

    def _page(self, sql: str, after: str) -> list[str]:
        reader = TreeReader(self._db.path)
        try:
            return [row[0] for row in reader.rows(sql, (after, _PAGE))]
        finally:
            reader.close()

    def apply_again(self, keys: Collection[str]) -> None:
        """What could not be shown before, because somebody had the file open for writing: no listing tells of it. (Of what is behind an object, it
        does.)"""
        members = self.rows.get_all(list(keys))
        self._apply_gone_now([key for key in keys if key not in members])
        self.apply_members([key for key, member in members.items() if not member.is_shadowed])

    def objects_gone(self, keys: Sequence[str]) -> None:
        """There are no objects of these keys: what members were behind them counts again."""
        self.apply_members([key for key, member in self.rows.get_all(keys).items() if member.is_shadowed])

    def unshadow(self) -> None:
        """The objects that some members stood behind are gone: these count again. (One that has no place in the tree, or that waits until nobody has
        the file open for writing, has no row, and is there.)"""
        waiting = self._reconciler.obstructed
        freed = [member.key for member in self.rows.shadowed()
                 if ((known := self._journal.known(member.key)) is None or is_member(known.etag)) and not self._journal.is_unmountable(member.key)
                 and not waiting.has(member.key)]
        if freed:
            self.apply_members(freed)

    def level(self, below: str) -> Level:
        """What is in archives directly below a directory."""
        found = Level([], [])
        for item in level(self.rows, below):
            if isinstance(item, str):
                found.prefixes.append(item)
            elif not item.is_shadowed and item.key != below:
                found.objects.append(self.info_of(item))
        return found


async def _pass(members: Sequence[tuple[ObjectInfo, Place]]) -> None:
    """Nobody wants to know."""


class _Reading:
    """The parts of one reading: commits are collected whole, a base is taken as it comes."""

    def __init__(self, mirror: ArchiveMirror) -> None:
        self._mirror = mirror
        self._header: LogHeader | None = None
        self._records: list[MemberRecord] = []

    async def take(self, part: LogPart) -> int:
        done = 0
        if part.header is not None:
            done = await self.end()
            self._header = part.header
            if part.header.kind == 'base':
                await self._begin_base()
        assert self._header is not None
        if self._header.kind == 'base':
            await self._take_base(part.records)
        else:
            self._records += part.records
        return done

    async def end(self) -> int:
        """What was collected is whole."""
        header, records, self._header, self._records = self._header, self._records, None, []
        if header is None:
            return 0
        if header.kind == 'base':
            await self._end_base(header)
        else:
            await self._mirror.before_commit(list(self._placed(records)))
            self._mirror.apply_commit(header, records)
        return 1

    def _placed(self, records: Iterable[MemberRecord]) -> Iterator[tuple[ObjectInfo, Place]]:
        for item in records:
            if item.place is not None and (key := self._mirror.key_here(item.record.path)):
                place = msgspec.structs.replace(item.place, archive=self._mirror.archive_key(item.place.archive))
                yield ObjectInfo(key=key, size=item.record.size, etag=item.record.etag, mtime_ns=item.record.changed_ns), place

    async def _begin_base(self) -> None:
        """From here on the mirror is torn, until the last record of the base is in it."""
        mirror, header = self._mirror, self._header
        assert header is not None
        with mirror._db.transaction():
            mirror.applied += 1
            mirror.set_number(_TORN)
            mirror.listed(0)        # which members were behind objects is forgotten
            mirror.rows.clear()
            mirror.note(header, ())

    async def _take_base(self, records: list[MemberRecord]) -> None:
        mirror, header = self._mirror, self._header
        assert header is not None
        bare = msgspec.structs.replace(header, archives=[], dropped=[])
        for start in range(0, len(records), SLICE):
            part = records[start:start + SLICE]
            with mirror._db.transaction():
                mirror.note(bare, part)
                mirror._journal.add_hints(_directory_hints(mirror, part))
            await trio.lowlevel.checkpoint()

    async def _end_base(self, header: LogHeader) -> None:
        with self._mirror._db.transaction():
            self._mirror.settle_own(header)
            self._mirror.set_number(header.number)
        await self._mirror.agree()


def _directory_hints(mirror: ArchiveMirror, records: Iterable[MemberRecord]) -> list[IndexRecord]:
    """What is said of directories waits for `finish`, as what the index says does."""
    return [msgspec.structs.replace(item.record, path=key or ROOT_PATH, etag='', size=0)
            for item in records if (key := mirror.key_here(item.record.path)) is not None and item.record.attrs is not None
            and item.record.path.endswith('/') and item.record.etag in ('', DIRECTORY_ETAG)]


