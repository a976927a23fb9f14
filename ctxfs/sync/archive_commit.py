"""Committing: what a flush packed becomes archives in the bucket, one commit in the archive log, and what this host knows.

Owns the parts on the disk, the order of sending, committing and recording, and the transactions that record a commit. It must not know what is
packed or why (archiver.py), nor how the log is read (archive_mirror.py).

    intent  what is about to be committed is written down (archive_intents.py)
    send    the parts as archives; nobody reads them yet
    commit  number N+1, created only where there is none: all of the flush is there. Refused: what others committed is applied, and where nothing of
            this flush is concerned the same archives are committed as the next number; else they are thrown away, and it is planned again
    record  objects, content states and journal, slice by slice; then the number, and the intent goes

A crash after the commit is made good by the intent: the commit is found in the log and taken over. A commit is sent COMMIT_SECONDS after the log was
looked at, at most: numbers of old commits come free when a base has replaced them for long.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import trio

from ctxfs.crash_points import crash_point
from ctxfs.errors import RemoteChanged, RemoteUnavailable
from ctxfs.records import ROOT_PATH, IndexRecord
from ctxfs.storage import archive_log_format as log_format
from ctxfs.storage.archive_log_format import ArchiveInfo, LogHeader, MemberRecord
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.keys import Unmountable, key_to_path
from ctxfs.storage.members import Member, Place, hash_in
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync import packing
from ctxfs.sync.abort_slots import boot_seconds
from ctxfs.sync.archive_flush import Again, Flush, PackedChoice, Told, in_parallel, untold
from ctxfs.sync.archive_intents import Intent, Intents, Written, forget_deleted
from ctxfs.sync.archive_mirror import ArchiveMirror
from ctxfs.sync.archive_plan import ArchivePlan
from ctxfs.sync.archive_protocol import CommitArchive, PartRef, SendArchive
from ctxfs.sync.attributes import get_attrs
from ctxfs.sync.guarded import GuardedPool
from ctxfs.sync.planner import Work
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.uploader import Moved, Uploader

#: from the look at the log to the commit
COMMIT_SECONDS = 120.0
#: commits of others that come in between, one after the other, before a flush gives way
ATTEMPTS = 20
#: works recorded in one transaction
SLICE = 50
#: directories whose times go along with one commit
TOUCHED = 2500


class ArchiveCommitter:
    """See the module docstring. `scratch`: where parts grow. `told`: when it is recorded."""

    def __init__(self, db: TreeDB, journal: Journal, pool: TransferPool | GuardedPool, *, mirror: ArchiveMirror, plan: ArchivePlan,
                 intents: Intents, uploader: Uploader, host: str, scratch: Path,
                 told: Told = untold, committed: Callable[[int, Sequence[str]], object] = lambda number, archives: None) -> None:
        """`committed`: told the number and the archives of each commit."""
        self._db = db
        self._journal = journal
        self._pool = pool
        self._mirror = mirror
        self._plan = plan
        self._intents = intents
        self._uploader = uploader
        self._host = host
        self._scratch = scratch
        self._told = told
        self._committed = committed
        mirror.settle_own = intents.settle
        scratch.mkdir(mode=0o700, exist_ok=True)
        for left in scratch.iterdir():
            left.unlink()

    # --- parts --------------------------------------------------------------------------------------------------------------------

    def part(self, flush: Flush, number: int) -> str:
        return str(self._scratch / f'{flush.nonce}-{number}')

    def remove_parts(self, flush: Flush) -> None:
        for number in range(len(flush.parts)):
            packing.remove(self.part(flush, number))

    # --- committing ---------------------------------------------------------------------------------------------------------------

    async def commit(self, flush: Flush) -> None:
        """All that is written, and what is deleted. What others committed in between, and concerns it, is in the works' outcomes. Raises what the
        store says: RemoteUnavailable where nobody knows whether it is done."""
        number, refs = self._mirror.number + 1, flush.refs(lambda part: self.part(flush, part))
        lifecycles = [flush.parts[part][0].lifecycle for part in flush.parts_in()] or ['']
        flush.archives = [ArchiveInfo(log_format.archive_name(number, host=self._host, created_ns=time.time_ns()), 0, lifecycle)
                          for lifecycle in lifecycles]
        began = boot_seconds()
        self._intents.begin(self._intent(flush, number))
        crash_point('archive-before-send')
        try:
            await self._send(flush, refs)
            if boot_seconds() - began > log_format.FLUSH_SECONDS / 2:
                raise RemoteUnavailable('the archives were sent too slowly: they would be taken for those of a host that is gone')
            crash_point('archive-before-commit')
            await self._commit(flush, refs)
        except Again:
            self._intents.give_up(flush.nonce)
            for work in flush.works:
                flush.fail(work, Again())
        finally:
            self._intents.rest()

    def _intent(self, flush: Flush, number: int) -> Intent:
        written = [Written(item.choice.key, item.choice.work.inode.ino, flush.revisions[item.choice.work.inode.ino][0], item.result.etag,
                           item.choice.item.size, item.choice.lifecycle) for item in flush.members()]
        return Intent(flush.nonce, number, [info.name for info in flush.archives], written, [(known.key, known.etag) for known in flush.deleted])

    async def _send(self, flush: Flush, refs: list[PartRef]) -> None:
        """The first archive tells what is deleted."""
        deleted = [self._mirror.path_of(key) for key in self._gone(flush)]

        async def run(number: int) -> None:
            info = flush.archives[number]
            done = await self._pool.call(SendArchive(key=self._mirror.archive_key(info.name), part=refs[number] if refs else None,
                                                     deleted=deleted if number == 0 else [], lifecycle=info.lifecycle))
            flush.archives[number] = ArchiveInfo(info.name, done.size, info.lifecycle)
        await in_parallel(run, range(len(flush.archives)))

    async def _commit(self, flush: Flush, refs: list[PartRef]) -> None:
        """Raises Again, and as `commit`."""
        async with self._mirror.lock:
            for attempt in range(ATTEMPTS):
                until = boot_seconds() + COMMIT_SECONDS
                await self._mirror.catch_up_locked()
                self._check_current(flush)
                header = LogHeader(kind='commit', number=self._mirror.number + 1, nonce=flush.nonce, host=self._host, created_ns=time.time_ns(),
                                   archives=flush.archives)
                if attempt:
                    self._intents.begin(self._intent(flush, header.number))
                more, touched = self._more(flush)
                try:
                    await self._pool.call(CommitArchive(key=self._mirror.context_prefix + log_format.commit_key(header.number), header=header,
                                                        parts=refs, more=more, until=until))
                except RemoteChanged:
                    continue
                crash_point('archive-before-record')
                await self._record(flush, header, touched)
                return
        raise RemoteUnavailable('other hosts commit to the context without a pause; it is tried again')

    def _check_current(self, flush: Flush) -> None:
        if self._mirror.applied != flush.applied and not all(map(self._plan.is_in_place, flush.included())):
            raise Again
        if not all(self._plan.is_current(item.choice.key, item.choice.base) and self._is_settled(flush, item.choice.key)
                   for item in flush.members()) or not all(self._is_there(known) for known in flush.deleted):
            raise Again

    def _is_settled(self, flush: Flush, key: str) -> bool:
        """A member behind the object that this flush replaces may be one that nobody knew of."""
        member = self._mirror.rows.get(key)
        return member is None or not member.is_shadowed or (key, member.etag) in flush.outdated

    def _is_there(self, known: Known) -> bool:
        member = self._mirror.rows.get(known.key)
        return member is not None and member.etag == known.etag

    def _gone(self, flush: Flush) -> set[str]:
        """What the commit deletes, and directories that went with it although they were no members: whoever unpacks archives has made them."""
        gone = {known.key for known in flush.deleted}
        above: set[str] = set()
        for key in gone:
            while (key := key.rstrip('/').rpartition('/')[0]) and key + '/' not in above:
                above.add(key + '/')
        members = self._mirror.rows.get_all(list(above))
        return gone.union(key for key in above if key not in members and not self._is_directory(key))

    def _is_directory(self, key: str) -> bool:
        path = key_to_path(key)
        ino = None if isinstance(path, Unmountable) else self._db.resolve(path)
        return ino is not None and self._db.inode(ino).is_dir

    def _more(self, flush: Flush) -> tuple[list[MemberRecord], list[int]]:
        """What the commit says beside its archives' members: deletions, and times of directories; and the directories."""
        now_ns = time.time_ns()
        records = {key: MemberRecord(IndexRecord(path=self._mirror.path_of(key), changed_ns=now_ns)) for key in self._gone(flush)}
        taken = {item.choice.key for item in flush.written()}
        inos = self._journal.touched(TOUCHED)
        for inode in self._db.inodes_of(inos).values():
            inode.is_touched = False
            if not inode.is_dir or not inode.nlink or not inode.attrs_known:
                continue
            key = self._db.dir_key(inode.ino)
            if key not in taken:
                path = self._mirror.path_of(key) or ROOT_PATH
                records.setdefault(key, MemberRecord(IndexRecord(path=path, changed_ns=now_ns, attrs=get_attrs(inode))))
        return list(records.values()), inos

    # --- recording ----------------------------------------------------------------------------------------------------------------

    async def _record(self, flush: Flush, header: LogHeader, touched: list[int]) -> None:
        names = {part: info.name for part, info in zip(flush.parts_in(), header.archives, strict=False)}
        members, by_work = flush.members(), _by_work([*flush.written(), *flush.same])
        with self._db.transaction():
            for info in header.archives:
                self._mirror.rows.note_archive(info.name, size=info.size, lifecycle=info.lifecycle, made_ns=header.created_ns)
        works = flush.included()
        for start in range(0, len(works), SLICE):
            with self._db.transaction():
                for work in works[start:start + SLICE]:
                    self._record_work(flush, work, by_work.get(work.inode.ino, []), names)
            crash_point('archive-between-records')
            await trio.lowlevel.checkpoint()
        with self._db.transaction():
            self._record_end(flush, header, members, touched)
        self._committed(header.number, [info.name for info in header.archives])
        for known in flush.deleted:
            if (known.key, known.etag) not in flush.outdated:       # an object has its place
                self._told(known.key, '', known.etag, 0)

    def _record_end(self, flush: Flush, header: LogHeader, members: list[PackedChoice], touched: list[int]) -> None:
        mirror = self._mirror
        mirror.rows.remove(self._gone(flush), header.number)
        mirror.rows.revive(item.choice.key for item in members)
        forget_deleted(self._db, ((known.key, known.etag) for known in flush.deleted))
        directories = self._db.inodes_of(touched)
        self._journal.told(ino for ino in touched if ino not in directories or not directories[ino].is_touched)
        self._intents.recorded(header)
        mirror.set_number(header.number)
        mirror.commits += 1

    def record_same(self, flush: Flush) -> None:
        """Nothing was to be committed: what the log has already is what we know."""
        by_work = _by_work(flush.same)
        with self._db.transaction():
            for work in flush.included():
                self._record_work(flush, work, by_work.get(work.inode.ino, []), {})

    def _record_work(self, flush: Flush, work: Work, items: list[PackedChoice], names: dict[int, str]) -> None:
        """The bucket has this state of the inode at its keys. An inode that lost its last name meanwhile leaves tombstones."""
        inode = work.inode
        revision, taken_ns = flush.revisions[inode.ino]
        is_told = True
        for item in items:
            if not item.is_member:
                continue
            choice = item.choice
            if (item.part, item.number) in flush.same_numbers:
                is_told = False
            else:
                self._mirror.rows.put([_mirrored(item, names[item.part])])
                self._told(choice.key, item.result.etag, '' if choice.base is None else choice.base.etag, choice.item.size)
            self._journal.put_object(Known(choice.key, item.result.etag, choice.item.size, inode.ino, revision, hash_in(item.result.etag),
                                           0 if inode.nlink else 1, choice.lifecycle, time.time_ns()))
        if inode.nlink and inode.content == Content.STAGED:
            if inode.revision == revision:
                inode.content, inode.size = Content.SEALED, items[0].choice.item.size
            self._db.store_content(inode)
        is_told = is_told and self._are_links_told(inode, {item.choice.key for item in items})
        if not self._uploader.finish(work, 0 if is_told else Reason.INDEX):
            if inode.ino in flush.frozen:
                self._journal.sent_as_of(inode.ino, taken_ns)
            else:
                flush.fail(work, Moved())


    def _are_links_told(self, inode: Inode, told: Collection[str]) -> bool:
        """Whether the log says of the other names, too, which hard links they are."""
        if inode.is_dir or inode.nlink <= 1:
            return True
        keys = [key for key in self._db.keys_of(inode) if key not in told]
        members = self._mirror.rows.get_all(keys)
        return all(key in members and (record := members[key].record) is not None and record.link == (inode.link_group or '') for key in keys)


def _by_work(items: list[PackedChoice]) -> dict[int, list[PackedChoice]]:
    found: dict[int, list[PackedChoice]] = {}
    for item in items:
        found.setdefault(item.choice.work.inode.ino, []).append(item)
    return found


def _mirrored(item: PackedChoice, archive: str) -> Member:
    choice, place = item.choice, item.result.place
    assert place is not None
    record = IndexRecord(path=choice.item.key, changed_ns=time.time_ns(), etag=item.result.etag, size=choice.item.size, attrs=choice.item.attrs,
                         link=choice.item.link, lifecycle=choice.lifecycle)
    at = Place(archive, place.offset, place.packed, place.method, place.crc)
    return Member(choice.key, item.result.etag, choice.item.size, at, choice.item.shadows, 0, record)
