"""The archiver: the part of a flush that goes into archives, from planned works to what is to be committed.

Owns the order of choosing, packing and comparing, and how each work ends. It must not know which inodes are due or how failures are scheduled
(rounds.py), which are chosen (archive_plan.py), the formats, or how a commit is made and recorded (archive_commit.py).

    settle  members behind objects: outdated, or to be kept under other names (archive_rivals.py)
    choose  works into items, items into parts
    pack    staging files into parts, in the workers, one for each core
    compare what changed meanwhile is left out, what the log has already is only recorded, what somebody else has changed is a conflict
    commit  all of it at once, with what is deleted

A crash at any point before the commit leaves everything pending, and archives that nobody names: removed by who knows that they are its own
(archive_intents.py), or by age (archive_upkeep.py).
"""
from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence

import trio

from ctxfs.errors import CtxfsError, NotFound, RemoteChanged
from ctxfs.policy import FOREVER
from ctxfs.storage.inode import Inode
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.members import Member, is_member
from ctxfs.storage.snapshot import copy_of
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.archive_commit import ArchiveCommitter
from ctxfs.sync.archive_flush import Again, Flush, NotTaken, Outcome, PackedChoice, in_parallel
from ctxfs.sync.archive_intents import Intents
from ctxfs.sync.archive_mirror import ArchiveMirror
from ctxfs.sync.archive_plan import ArchivePlan, Choice
from ctxfs.sync.archive_protocol import Pack, PackedItem
from ctxfs.sync.archive_rivals import ArchiveRivals
from ctxfs.sync.guarded import GuardedPool
from ctxfs.sync.planner import Work
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.protocol import DeleteMany, Head
from ctxfs.sync.recycle import Recycler
from ctxfs.sync.uploader import Moved, SourceLost, TargetConflict, Uploader

log = logging.getLogger(__name__)

#: works looked at without a pause: a few ms of the loop
SLICE = 50
#: members that one commit deletes: what is said of more does not fit into one message to a worker
DELETIONS = 100_000
#: an object is not written later than this after a look at the archive log
CHECK_SECONDS = 2.0


class Archiver:
    """See the module docstring. `is_wanted`: whether a tombstone must wait. `is_obstructed`: whether an object of the key could not be shown, because
    a file has the name. `cores`: how many parts are packed at once."""

    def __init__(self, db: TreeDB, journal: Journal, pool: TransferPool | GuardedPool, *, mirror: ArchiveMirror, plan: ArchivePlan,
                 intents: Intents, committer: ArchiveCommitter, rivals: ArchiveRivals, uploader: Uploader, recycler: Recycler, prefix: str,
                 is_wanted: Callable[[Known], bool], is_obstructed: Callable[[str], bool], cores: int) -> None:
        self._db = db
        self._journal = journal
        self._pool = pool
        self._mirror = mirror
        self.plan = plan
        self._intents = intents
        self._committer = committer
        self._rivals = rivals
        self._uploader = uploader
        self._recycler = recycler
        self._prefix = prefix
        self._is_wanted = is_wanted
        self._is_obstructed = is_obstructed
        self._cores = cores
        #: commits of others that were in the tree when the round was planned
        self._applied = 0
        #: the last flush left deletions that are due
        self._is_cut = False

    def begin_round(self) -> None:
        """Works are planned from now on."""
        self._applied = self._mirror.applied

    async def flush(self, works: Sequence[Work], *, as_it_is: Callable[[Inode], bool] = lambda inode: False) -> list[Outcome]:
        """Commit these works, and the deletions that are due; how each work ended. Raises what the store says to all of them: then they are as they
        were."""
        await self._mirror.catch_up()
        flush = Flush(works, applied=self._applied)
        flush.outdated = {(member.key, member.etag) for member in await self._rivals.settle()}
        if self._mirror.applied != self._applied:
            for work in works:
                if not self.plan.is_in_place(work):
                    flush.fail(work, Moved())
        flush.applied = self._mirror.applied
        try:
            with contextlib.ExitStack() as stack:
                await self._choose(flush, stack, as_it_is)
                await self._pack(flush)
            self._compare(flush)
            await self._look_at_objects(flush)
            self._gather(flush)
            if flush.members() or flush.deleted:
                await self._committer.commit(flush)
            else:
                self._committer.record_same(flush)
        finally:
            self._committer.remove_parts(flush)
        await self._rivals.remove_covered()
        await self._remove_orphans()
        return [(work, flush.outcomes.get(work.inode.ino)) for work in flush.works]

    async def delete(self) -> None:
        """Commit the deletions that are due. Raises what the store says."""
        await self.flush(())
        await self.delete_rest()

    async def delete_rest(self) -> None:
        """Commit those that did not fit into the last flush."""
        while self._is_cut:
            await self.flush(())

    def has_deletes(self) -> bool:
        """Whether anything is to be deleted although no work is due."""
        return bool(self.plan.deletions((), (), is_wanted=self._is_wanted)) or bool(self._mirror.rows.shadowed())

    def replaces_member(self, work: Work) -> bool:
        """Whether objects that the work makes take the place of members."""
        return any(self._mirror.rows.get(key) is not None for key in work.missing)

    @property
    def has_rivals(self) -> bool:
        """Whether there are members behind objects: to be settled before more objects are written."""
        return bool(self._mirror.rows.shadowed())

    async def check(self, work: Work) -> None:
        """Before an object is written. Raises TargetConflict where somebody else has a member there that this host's file is not based on; what is
        committed at the same instant is found later (archive_rivals.py)."""
        await self._mirror.follow(CHECK_SECONDS)
        for key in work.missing:
            if not self.plan.is_current(key, self._journal.known(key)):
                raise TargetConflict(key)

    # --- choosing -----------------------------------------------------------------------------------------------------------------

    async def _choose(self, flush: Flush, stack: contextlib.ExitStack, as_it_is: Callable[[Inode], bool]) -> None:
        choices: list[Choice] = []
        for number, work in enumerate(flush.included()):
            if number % SLICE == 0:
                await trio.lowlevel.checkpoint()
            try:
                choices += await self._choices_of(flush, work, stack, as_it_is(work.inode))
            except FileNotFoundError:
                flush.fail(work, Moved())
            except (CtxfsError, OSError, Moved) as error:
                flush.fail(work, error)
        flush.parts = self.plan.cut(choices, self._cores)

    async def _choices_of(self, flush: Flush, work: Work, stack: contextlib.ExitStack, is_copied: bool) -> list[Choice]:
        inode = work.inode
        lifecycles = {key: await self._lifecycle(key, inode) for key in work.missing}
        if not inode.nlink or inode.revision != work.revision:
            raise Moved
        flush.revisions[inode.ino], copy = (inode.revision, time.time_ns()), ''
        if is_copied and inode.is_regular:
            copy = stack.enter_context(copy_of(self._uploader.staging_path(inode)))
            flush.revisions[inode.ino] = await self._uploader.freeze(inode, copy)
            flush.frozen.add(inode.ino)
        return [Choice(work, key, item, lifecycles.get(key, ''), self._journal.known(key)) for key, item in self.plan.items_of(work, copy=copy)]

    async def _lifecycle(self, key: str, inode: Inode) -> str:
        """What its archive carries."""
        lifecycle = '' if inode.is_dir else await self._recycler.lifecycle_for(key, None)
        return '' if lifecycle == FOREVER else lifecycle

    # --- packing ------------------------------------------------------------------------------------------------------------------

    async def _pack(self, flush: Flush) -> None:
        results: list[list[PackedItem]] = [[] for _ in flush.parts]

        async def run(number: int) -> None:
            part = flush.parts[number]
            done = await self._pool.call(Pack(items=[choice.item for choice in part], part=self._committer.part(flush, number),
                                              lifecycle=part[0].lifecycle, changed_ns=time.time_ns()))
            results[number] = done.items
            # at once: what a program changes from now on is not in it
            for at, (choice, result) in enumerate(zip(part, done.items, strict=True)):
                flush.packed.append(PackedChoice(choice, result, number, at))
                self._check_packed(flush, choice, result)
        await in_parallel(run, range(len(flush.parts)))

    def _check_packed(self, flush: Flush, choice: Choice, result: PackedItem) -> None:
        """Whether what was packed is one whole state of the file: a writer counts its revision further before it changes a byte."""
        inode = choice.work.inode
        if not inode.nlink or (inode.revision != flush.revisions[inode.ino][0] and inode.ino not in flush.frozen):
            flush.fail(choice.work, Moved())
        elif result.failure is not None:
            error = result.failure.error()
            is_lost = isinstance(error, NotFound | RemoteChanged)
            source = None if choice.item.path else self._journal.source_of(inode)
            flush.fail(choice.work, error if not is_lost else Moved() if source is None else SourceLost(source))

    # --- comparing ----------------------------------------------------------------------------------------------------------------

    def _compare(self, flush: Flush) -> None:
        """What the log has already need not be committed; what somebody else has there is a conflict."""
        for item in flush.packed:
            choice = item.choice
            if not item.is_member or flush.is_out(choice.work):
                continue
            member = self._mirror.rows.get(choice.key)
            if member is not None and _is_same(member, item):
                flush.same.append(item)
            elif not self.plan.is_current(choice.key, choice.base):
                flush.fail(choice.work, TargetConflict(choice.key))

    async def _look_at_objects(self, flush: Flush) -> None:
        """An object whose place a member is about to take must be what we know; and where an object was seen, it must be gone."""
        choices = {item.choice.key: item.choice for item in flush.members() if self._is_beside_object(item.choice)}
        items = await self._pool.call(Head(keys=[self._prefix + key for key in choices])) if choices else []
        for choice, item in zip(choices.values(), items, strict=True):
            found = None if item.info is None else item.info.etag
            if found != (choice.base.etag if choice.base is not None and not is_member(choice.base.etag) else None):
                is_alike = item.info is not None and item.info.size == choice.item.size and choice.item.path and choice.work.inode.nlink == 1
                # an upload finds out whether it is the same content, which is no conflict
                flush.fail(choice.work, NotTaken() if is_alike else TargetConflict(choice.key))

    def _is_beside_object(self, choice: Choice) -> bool:
        return (choice.base is not None and not is_member(choice.base.etag)) or self._is_obstructed(choice.key)

    def _gather(self, flush: Flush) -> None:
        """What is written and deleted. Nothing is committed for what only goes along."""
        _hold_back(flush)
        flush.same_numbers = {(item.part, item.number) for item in flush.same}
        flush.packed = [item for item in flush.packed if (item.part, item.number) not in flush.same_numbers]
        kept = {item.choice.key for item in [*flush.members(), *flush.same]}
        tombstones = self.plan.deletions(flush.included(), kept, is_wanted=self._is_wanted)
        flush.deleted = [known for known in tombstones if self._is_still_ours(known)]
        flush.deleted += [Known(member.key, member.etag, 0, 0, 0, '', 1) for member in self._mirror.rows.shadowed()
                          if member.key not in kept and (member.key, member.etag) in flush.outdated]
        self._is_cut = len(flush.deleted) > DELETIONS
        del flush.deleted[DELETIONS:]
        if not flush.members() and not flush.deleted:
            for item in flush.written():
                flush.fail(item.choice.work, NotTaken())

    def _is_still_ours(self, known: Known) -> bool:
        """A tombstone of what somebody else changed since is none: what is there shows again."""
        if self.plan.is_current(known.key, known):
            return True
        if known.doomed:
            self._db.execute('DELETE FROM object WHERE key = ? AND etag = ? AND doomed', (known.key, known.etag))
            self._mirror.apply_members([known.key])
        return False

    # --- afterwards ---------------------------------------------------------------------------------------------------------------

    async def _remove_orphans(self) -> None:
        """Archives of commits that never happened. What fails is tried again after another flush."""
        orphans, self._intents.orphans = self._intents.orphans, []
        if not orphans:
            return
        try:
            await self._pool.call(DeleteMany(items=[(self._mirror.archive_key(name), None) for name in orphans]))
        except CtxfsError as error:
            log.info('archives of commits that never happened are not removed yet: %s', error)
            self._intents.orphans += orphans


def _hold_back(flush: Flush) -> None:
    """What would replace a version that another work has its content from waits for it, where that is left out."""
    out = {work.inode.ino for work in flush.works if flush.is_out(work)}
    while held := [work for work in flush.included() if not out.isdisjoint(work.blocked_by)]:
        for work in held:
            flush.fail(work, Again())
            out.add(work.inode.ino)


def _is_same(member: Member, item: PackedChoice) -> bool:
    lifecycle = '' if member.record is None else member.record.lifecycle
    return member.etag == item.result.etag and not member.is_shadowed and lifecycle == item.choice.lifecycle
