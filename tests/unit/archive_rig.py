"""A host in Archive mode without a kernel: the rig of tests/unit/rig.py with what archive_mode.py wires for the daemon, and pairs of them over one
bucket.

Owns the wiring, and how a test looks at archives: with the standard library's zipfile. It must not know what a test expects.
"""
from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from ctxfs.core.block_reader import BlockReader
from ctxfs.core.contents import Contents
from ctxfs.core.filesystem import FileSystem
from ctxfs.core.made_files import MadeFiles
from ctxfs.core.namespace import Namespace
from ctxfs.policy import SyncPolicy, UploadPolicy
from ctxfs.records import ROOT_INO
from ctxfs.storage.archive_log_format import ARCHIVE_DIR, LOG_DIR
from ctxfs.storage.block_cache import BLOCK_SIZE
from ctxfs.storage.inode import Inode
from ctxfs.storage.made_log import MadeLog
from ctxfs.sync.archive_alone import Alone
from ctxfs.sync.archive_commit import ArchiveCommitter
from ctxfs.sync.archive_intents import Intents
from ctxfs.sync.archive_mirror import ArchiveMirror
from ctxfs.sync.archive_plan import ArchivePlan
from ctxfs.sync.archive_rivals import ArchiveRivals
from ctxfs.sync.archive_upkeep import ArchiveUpkeep
from ctxfs.sync.archive_view import ArchiveView
from ctxfs.sync.archiver import Archiver
from ctxfs.sync.conflicts import ConflictKeeper
from ctxfs.sync.content import ContextCache, RemoteContentLoader
from ctxfs.sync.context_mode import ModeRecorder
from ctxfs.sync.doubt import Doubt
from ctxfs.sync.engine import FlushResult, UploadEngine
from ctxfs.sync.localise import Localiser
from ctxfs.sync.member_readahead import MemberReadahead
from ctxfs.sync.planner import Planner
from ctxfs.sync.recycle import Recycler
from ctxfs.sync.remote_tree import RemoteTreeLoader
from ctxfs.sync.rounds import Rounds
from ctxfs.sync.together import Together
from ctxfs.sync.uploader import Uploader
from tests.unit.rig import ME, PREFIX, Disk

ARCHIVED = SyncPolicy(upload_policy=UploadPolicy(upload_mode='Archive'))


class Archived(Disk):
    """A host that is wired for Archive mode. `member_max`: larger files are objects of their own."""
    member_max = 100_000

    def _wire(self, sync_every: float | None) -> None:
        super()._wire(sync_every)
        db, journal, staging = self.db, self.journal, self.staging
        pool: Any = self
        self.mirror = ArchiveMirror(db, journal, self.reconciler, pool, prefix=PREFIX)
        view: Any = ArchiveView(pool, self.mirror, prefix=PREFIX)
        doubt = Doubt(db, journal, pool, prefix=PREFIX, host=self.host_id)
        self.remote = RemoteTreeLoader(db, journal, self.reconciler, pool, doubt=doubt, prefix=PREFIX, mirror=self.mirror)
        self.finisher._remote = self.remote
        self.conflicts = ConflictKeeper(db, journal, self.reconciler, view, asides=self.asides, prefix=PREFIX)
        planner = Planner(db, journal, gating=self.gating, prefix=PREFIX,
                          covered=lambda key: member.shadows if (member := self.mirror.rows.get(key)) else '')
        self.recycler = recycler = Recycler(db, journal, view, rules=self.rules, reconciler=self.reconciler, finisher=self.finisher, prefix=PREFIX)
        self.uploader = Uploader(db, journal, staging, pool, planner=planner, doubt=doubt, recycler=recycler, prefix=PREFIX,
                                 displaced=lambda key: self.mirror.rows.set_shadowed(key, 1))
        plan = ArchivePlan(db, journal, staging, mirror=self.mirror, rules=self.rules, prefix=PREFIX, member_max=self.member_max)
        intents = Intents(db, journal, number=self.mirror.number)
        recorder = ModeRecorder(pool, prefix=PREFIX, name='c', mode='Archive')
        alone = Alone(db, pool, list_pool=pool, mirror=self.mirror, host=self.host_id, prefix=PREFIX)
        self.committer = ArchiveCommitter(db, journal, pool, mirror=self.mirror, plan=plan, intents=intents, uploader=self.uploader,
                                          host=self.host_id, scratch=self.directory / 'packing', committed=alone.committed)
        rivals = ArchiveRivals(db, pool, mirror=self.mirror, asides=self.asides, host=self.host_id, scratch=self.directory / 'packing', prefix=PREFIX)
        self.archiver = Archiver(db, journal, pool, mirror=self.mirror, plan=plan, intents=intents, committer=self.committer, rivals=rivals,
                                 uploader=self.uploader, recycler=recycler, prefix=PREFIX, is_wanted=self.finisher.is_wanted,
                                 is_obstructed=self.reconciler.obstructed.has, cores=2)
        self.together = Together(db, pool, uploader=self.uploader)
        rounds = Rounds(db, journal, pool, planner=planner, doubt=doubt, gating=self.gating, conflicts=self.conflicts, uploader=self.uploader,
                        together=self.together,
                        localiser=Localiser(db, journal, self.gating, stage=lambda inode: self.fs.contents.stage(inode)), prefix=PREFIX,
                        archiver=self.archiver, prepare=recorder.record)
        self.engine = UploadEngine(db, journal, rounds=rounds, finisher=self.finisher, remote=self.remote, tasks=self.tasks, spawn=self.spawn)
        self.schedule._engine = self.engine
        self.room._flush = self.engine.flush
        content = RemoteContentLoader(pool, prefix=PREFIX, place_of=self.mirror.place_of, follow=self.mirror.catch_up, answer_seconds=1.0,
                                      neighbours_of=MemberReadahead(self.mirror, prefix=PREFIX).neighbours)
        self.blocks = BlockReader(ContextCache(self.workers.context.cache, prefix=PREFIX), content, block_size=BLOCK_SIZE, spawn=self.spawn,
                                  refresh=self.remote.refresh)
        contents = Contents(db, journal, staging, blocks=self.blocks, remote=content, room=self.room)
        self.fs = FileSystem(db, journal, Namespace(db, journal, staging, gating=self.gating, remote=self.remote), contents,
                             remote=self.remote, on_close=lambda inode: self.schedule.wake(),
                             made=MadeFiles(db, journal, staging, gating=self.gating, log=MadeLog(db)))

        self.finisher.delete_members = self.archiver.delete
        self.finisher.prove_members = alone.prove
        self.upkeep = ArchiveUpkeep(pool, mirror=self.mirror, list_pool=pool, host=self.host_id, scratch=self.directory / 'packing', least_waste=100)


class ArchiveDisk(Archived):
    """See the module docstring."""

    def __init__(self, directory: Path, *, member_max: int = 100_000, policy: SyncPolicy = ARCHIVED, **more: Any) -> None:
        self.member_max = member_max
        directory.mkdir(exist_ok=True)
        super().__init__(directory, policy=policy, **more)

    # its life

    @asynccontextmanager
    async def mounted(self) -> AsyncIterator[None]:
        """The context is listed; nothing happens by itself."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self.remote.run()
            self.asked.clear()
            yield
            nursery.cancel_scope.cancel()

    async def flush(self) -> FlushResult:
        """Everything, or the test fails."""
        result = await self.engine.flush(retry_seconds=5.0)
        assert result.ok, result.message
        return result

    async def look(self) -> None:
        """What the poller does."""
        await self.engine.alone(self.remote.changes.look)

    # programs

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> Inode:
        """A file with just this content, in directories that are made where missing."""
        parent, name = await self._parent(path)
        ino = self.db.lookup(parent, name)
        if ino is None:
            fh, inode = await self.fs.create(parent, name, mode=mode, flags=os.O_WRONLY, caller=ME)
        else:
            inode = self.db.inode(ino)
            fh = await self.fs.open(ino, os.O_WRONLY | os.O_TRUNC)
        await self.fs.write(fh, 0, data)
        await self.fs.release(fh)
        return inode

    async def _parent(self, path: str) -> tuple[int, bytes]:
        *above, name = path.encode().split(b'/')
        parent: int = ROOT_INO
        for part in above:
            found = self.db.lookup(parent, part)
            parent = found if found is not None else (await self.fs.make(parent, part, mode=stat.S_IFDIR | 0o755, caller=ME)).ino
        return parent, name

    async def read(self, path: str) -> bytes:
        inode = self.inode_at(*os.fsencode(path).split(b'/'))
        fh = await self.fs.open(inode.ino, os.O_RDONLY)
        try:
            return bytes(await self.fs.read(fh, 0, inode.size + 1))
        finally:
            await self.fs.release(fh)

    async def remove(self, path: str) -> None:
        await self.fs.unlink(*await self._parent(path))

    async def move(self, path: str, to: str) -> None:
        await self.fs.rename(*await self._parent(path), *await self._parent(to), 0)

    def files(self) -> dict[str, Inode]:
        """All that the tree has, directories with a slash."""
        found: dict[str, Inode] = {}
        stack = [(ROOT_INO, '')]
        while stack:
            parent, above = stack.pop()
            for name, ino in self.db.children(parent, b'', 100_000):
                inode, path = self.db.inode(ino), above + os.fsdecode(name)
                found[path + '/' * inode.is_dir] = inode
                if inode.is_dir:
                    stack.append((ino, path + '/'))
        return found

    async def tree(self) -> dict[str, Any]:
        """What a program sees, with contents."""
        found: dict[str, Any] = {}
        for path, inode in self.files().items():
            what = inode.target if inode.is_symlink else await self.read(path) if inode.is_regular else b''
            found[path] = (stat.S_IFMT(inode.mode), inode.mode & 0o7777, inode.mtime_ns if not inode.is_dir else 0, what)
        return found

    # the bucket

    def own(self, directory: str) -> list[str]:
        """Names of ctxfs's own objects directly below a directory of the context."""
        store = self.workers.context.store
        return [info.key.rpartition('/')[2] for info in store.list(PREFIX + directory, delimiter='/').objects]

    def archives(self) -> list[str]:
        return [name for name in self.own(ARCHIVE_DIR) if name.endswith('.zip')]

    def commits(self) -> list[str]:
        return [name for name in self.own(LOG_DIR) if 'commit' in name]

    def zip(self, name: str) -> zipfile.ZipFile:
        return zipfile.ZipFile(io.BytesIO(self.workers.context.store.get(PREFIX + ARCHIVE_DIR + name)))

    def unpacked(self) -> dict[str, bytes]:
        """What the archives alone give, taken in the order of their names; directories are not told."""
        found: dict[str, bytes] = {}
        for name in self.archives():
            with self.zip(name) as archive:
                assert archive.testzip() is None
                names = archive.namelist()
                if '.ctxfs/deleted' in names:
                    for path in archive.read('.ctxfs/deleted').split(b'\0'):
                        found.pop(os.fsdecode(path), None)
                found.update((path, archive.read(path)) for path in names if not path.startswith('.ctxfs/') and not path.endswith('/'))
        return found
