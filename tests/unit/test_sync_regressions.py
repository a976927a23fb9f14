"""What once lost bytes or stopped a mount inside core and sync, replayed without a mount: the workers' own functions on a real store.

Owns the replays. It must not know the pipe: an operation runs in this process, and what a program does meanwhile runs before it.
"""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from ctxfs.core.namespace import Namespace
from ctxfs.errors import NotFound
from ctxfs.policy import SyncPolicy
from ctxfs.records import ROOT_INO, ObjectInfo
from ctxfs.rules import Rules
from ctxfs.storage.gating import Gating
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.abort_slots import AbortFlags, AbortSlots
from ctxfs.sync.asides import Asides
from ctxfs.sync.conflicts import ConflictKeeper
from ctxfs.sync.descriptions import Defaults
from ctxfs.sync.doubt import Doubt
from ctxfs.sync.finishing import Finisher
from ctxfs.sync.planner import Planner
from ctxfs.sync.protocol import Operation, WorkerOptions
from ctxfs.sync.reconcile import Reconciler
from ctxfs.sync.recovery import recover
from ctxfs.sync.remote_tree import RemoteTreeLoader
from ctxfs.sync.worker_context import WorkerContext
from ctxfs.sync.worker_ops import HANDLERS

PREFIX = 'contexts/c/'


class Kernel:
    """sync's Invalidator: notes of what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def inode(self, ino: int) -> None:
        self.told.append(('inode', ino))

    def attrs(self, ino: int) -> None:
        self.told.append(('attrs', ino))

    def entry(self, parent: int, name: bytes, deleted: int = 0) -> None:
        self.told.append(('entry', parent, name))

    def replaced(self, ino: int) -> None:
        self.told.append(('replaced', ino))

    def appeared(self, parent: int, name: bytes) -> None:
        self.told.append(('appeared', parent, name))


class Channel:
    is_cancelled = False

    def part(self, value: Any) -> None:
        raise AssertionError('no stream here')

    def moved(self, count: int) -> None:
        """Nobody looks at the progress."""


class Workers:
    """The pool's `call`, on this thread. `meanwhile` happens once, while the first operation is on its way."""

    def __init__(self, directory: Path, *, bucket: Path | None = None, host: str = 'here') -> None:
        bucket = bucket or directory / 'bucket'
        bucket.mkdir(exist_ok=True)
        self.slots = AbortSlots()
        self._flags = AbortFlags(self.slots.fd)
        self.context = WorkerContext(WorkerOptions(store_url=f'file://{bucket}?fsync=no', cache_dir=str(directory / 'cache'),
                                                   cache_limit=1 << 30, host=host), self._flags)
        self.meanwhile: Callable[[], object] | None = None

    async def call(self, operation: Operation[Any], **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        if self.meanwhile is not None:
            happens, self.meanwhile = self.meanwhile, None
            happens()
        return HANDLERS[type(operation)](self.context, operation, Channel())

    def close(self) -> None:
        self.context.close()
        self._flags.close()
        self.slots.close()


class Host:
    """The tree of one host with what reconciles it, over one bucket (its own, unless it is told one that others use, too)."""

    def __init__(self, directory: Path, *, bucket: Path | None = None, host: str = 'here') -> None:
        self.directory = directory
        self.host_id = host
        self.workers = Workers(directory, bucket=bucket, host=host)
        self.kernel = Kernel()
        self.start()

    def start(self) -> None:
        """What the daemon does before it mounts."""
        self.db = TreeDB(self.directory / 'tree.db')
        self.journal = Journal(self.db)
        self.staging = Staging(self.directory / 'staging')
        self.gating = Gating(self.db, self.journal, self.staging, rules=Rules(SyncPolicy()))
        recover(self.db, self.journal, self.staging, uid=0, gid=0)
        self.asides = Asides(self.db, self.journal, self.kernel, gating=self.gating, prefix=PREFIX, host=self.host_id)
        self.reconciler = Reconciler(self.db, self.journal, self.kernel, gating=self.gating, asides=self.asides, defaults=Defaults(0, 0, 0o022))
        pool: Any = self.workers
        doubt = Doubt(self.db, self.journal, pool, prefix=PREFIX, host=self.host_id)
        self.remote = RemoteTreeLoader(self.db, self.journal, self.reconciler, pool, doubt=doubt, prefix=PREFIX)
        self.conflicts = ConflictKeeper(self.db, self.journal, self.reconciler, pool, asides=self.asides, prefix=PREFIX)
        self.finisher = Finisher(self.db, self.journal, self.staging, pool, gating=self.gating, remote=self.remote, prefix=PREFIX)

    def close(self) -> None:
        self.db.close()
        self.workers.close()

    def put(self, key: str, body: bytes) -> ObjectInfo:
        """Somebody writes an object; its line in a listing."""
        done = self.workers.context.store.put(PREFIX + key, body)
        return ObjectInfo(key=key, size=len(body), etag=done.etag, mtime_ns=1)

    def list(self, *objects: ObjectInfo) -> None:
        """The whole listing arrives."""
        self.reconciler.apply(sorted(objects, key=lambda info: info.key), after='', last=None)
        self.reconciler.remove_empty_directories()

    def inode_at(self, *path: bytes) -> Inode:
        ino = self.db.resolve(path)
        assert ino is not None, f'{path} is not in the tree'
        return self.db.inode(ino)

    def stage(self, inode: Inode, data: bytes) -> None:
        """A program writes: what core does, row first."""
        fd = self.staging.create(inode.ino)
        inode.content, inode.size = Content.STAGED, len(data)
        inode.revision += 1
        with self.db.transaction():
            self.db.store_content(inode)
            self.journal.mark(inode, Reason.CONTENT)
        os.write(fd, data)
        os.close(fd)

    def seal(self, inode: Inode, key: str, info: ObjectInfo) -> None:
        """The upload is recorded: the object and the staging file are equal."""
        inode.content = Content.SEALED
        with self.db.transaction():
            self.journal.put_object(Known(key, info.etag, info.size, inode.ino, inode.revision, '', 0))
            self.db.store_content(inode)
            self.journal.forget(inode.ino)
        inode.marked = 0

    def staged_bytes(self, inode: Inode) -> bytes:
        return Path(self.staging.path(inode.ino)).read_bytes()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.close()


def run(function: Callable[..., Awaitable[object]], *args: Any) -> None:
    trio.run(function, *args)


# --- after a power cut ------------------------------------------------------------------------------------------------------------

BASE = b'what the bucket has'


def test_what_a_kill_left_is_durable_before_its_leftovers_go(host: Host, tmp_path_factory: pytest.TempPathFactory,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """What the daemon committed last may be in the kernel's memory only. A power cut after the next mount would undo the removal of a file, and its
    bytes, which were promised, would be gone."""
    host.list(host.put('f', BASE))
    inode = host.inode_at(b'f')
    host.stage(inode, BASE)
    host.db.delete_dentry(ROOT_INO, b'f')
    host.db.delete_inode(inode.ino)
    left = tmp_path_factory.mktemp('t-') / 'left'
    shutil.copytree(host.directory, left, symlinks=True, ignore=shutil.ignore_patterns('bucket', 'cache'))
    order: list[str] = []
    for kind, name in ((TreeDB, 'make_durable'), (Staging, 'remove')):
        def noted(self: Any, *args: Any, real: Any = getattr(kind, name), name: str = name) -> object:
            order.append(name)
            return real(self, *args)
        monkeypatch.setattr(kind, name, noted)
    db = TreeDB(left / 'tree.db')
    found = recover(db, Journal(db), Staging(left / 'staging'), uid=0, gid=0)
    db.close()
    assert found.garbage == 1 and order == ['make_durable', 'remove']


def half_hydrated(host: Host, on_disk: bytes) -> int:
    """A program began to change a file, and of its hydrated bytes only these reached the disk; the daemon is gone. The inode number."""
    host.list(host.put('f', BASE))
    inode = host.inode_at(b'f')
    host.stage(inode, BASE)
    ino = inode.ino
    Path(host.staging.path(ino)).write_bytes(on_disk)
    host.db.close()
    return ino


@pytest.mark.parametrize('on_disk', [b'', BASE[:4], bytes(len(BASE))], ids=['empty', 'short', 'zeros'])
def test_bytes_that_a_power_cut_lost_are_not_uploaded_over_the_object(host: Host, on_disk: bytes) -> None:
    """After another boot a staging file that nobody knows to be whole is set aside, and the file is the bucket's version again, readable."""
    half_hydrated(host, on_disk)
    db = TreeDB(host.directory / 'tree.db')
    db.set_meta('boot_id', 'another boot')
    db.close()
    host.start()
    inode = host.inode_at(b'f')
    assert (inode.content, inode.size) == (Content.CLEAN, len(BASE))
    source = host.journal.source_of(inode)
    assert source is not None and host.workers.context.store.get(PREFIX + source.key, if_match=source.etag) == BASE
    kept = sorted((host.directory / 'quarantine').glob('*'))
    assert [path.read_bytes() for path in kept[:1]] == [on_disk] * bool(on_disk)
    assert [json.loads(path.read_text())['path'] for path in kept[1:]] == ['/f'] * bool(on_disk)
    assert host.staging.quarantined() == (bool(on_disk), len(on_disk))
    host.db.close()
    host.start()        # idempotent
    assert host.inode_at(b'f').content == Content.CLEAN


def test_a_file_cut_short_before_a_kill_stays_short(host: Host) -> None:
    """Without a reboot the page cache lost nothing: the staging file is what the program made of it, and is to be uploaded."""
    ino = half_hydrated(host, b'cut')
    host.start()
    inode = host.inode_at(b'f')
    assert (inode.ino, inode.content, inode.size) == (ino, Content.STAGED, 3)
    pending = host.journal.pending_row(ino)
    assert pending is not None and pending.reason & Reason.CONTENT


# --- a write while something asks the store --------------------------------------------------------------------------------------

@pytest.mark.parametrize('is_there', [True, False], ids=['other version', 'gone'])
def test_a_file_written_while_its_lost_source_is_looked_up_keeps_the_write(host: Host, is_there: bool) -> None:
    """A moved file's object was replaced or deleted remotely; what a program writes while we ask for it stays, with its size."""
    host.list(host.put('old', b'hello'))
    inode = host.inode_at(b'old')
    known = host.journal.source_of(inode)
    with host.db.transaction():
        host.db.move_dentry((ROOT_INO, b'old'), (ROOT_INO, b'new'), ino=inode.ino)
        host.journal.mark(inode, Reason.NAMES)
    if is_there:
        host.put('old', b'replaced')
    else:
        host.workers.context.store.delete(PREFIX + 'old')
    host.workers.meanwhile = lambda: host.stage(inode, b'LOCAL EDIT')
    run(host.conflicts.source_lost, inode, known)
    assert (inode.content, inode.size) == (Content.STAGED, 10)
    assert host.inode_at(b'new') is inode and host.staged_bytes(inode) == b'LOCAL EDIT'
    assert host.journal.source_of(inode) is None, 'what is written is nowhere in the bucket yet'
    pending = host.journal.pending_row(inode.ino)
    assert pending is not None and pending.reason & Reason.CONTENT


def test_a_file_written_while_it_is_refreshed_keeps_the_write(host: Host) -> None:
    """The same where a reader found another version in the bucket."""
    host.list(host.put('f', b'hello'))
    inode = host.inode_at(b'f')
    host.put('f', b'replaced')
    host.workers.meanwhile = lambda: host.stage(inode, b'LOCAL EDIT')
    run(host.remote.refresh, inode)
    assert (inode.content, inode.size, host.staged_bytes(inode)) == (Content.STAGED, 10, b'LOCAL EDIT')
    assert host.journal.source_of(inode) is None


# --- rows without an inode --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('is_same', [True, False], ids=['same version', 'other version'])
def test_an_object_row_without_an_inode_does_not_stop_a_listing(host: Host, is_same: bool) -> None:
    """The object is shown as a new file, and so is everything listed after it."""
    listed, after = host.put('dangling', b'abc'), host.put('later', b'x')
    host.journal.put_object(Known('dangling', listed.etag if is_same else 'another', 3, 999_999, 1, '', 0))
    host.list(listed, after)
    assert host.inode_at(b'later').size == 1
    assert host.inode_at(b'dangling').size == 3
    assert [told for told in host.kernel.told if told[0] == 'appeared'] == [('appeared', ROOT_INO, name) for name in (b'dangling', b'later')]


def test_refreshing_an_unlinked_open_file_leaves_no_row_without_an_inode(host: Host) -> None:
    """Its object stays a tombstone or is forgotten: the name comes back only with an object that is not the one we deleted."""
    host.list(host.put('f', b'hello'))
    inode = host.inode_at(b'f')
    inode.handles = 1
    with host.db.transaction():
        host.db.delete_dentry(ROOT_INO, b'f')
        inode.nlink = 0
        host.db.store_times(inode)
        host.journal.doom_objects_of(inode.ino)
        host.journal.forget(inode.ino)
    host.put('f', b'replaced')
    run(host.remote.refresh, inode)
    left = host.journal.known('f')
    assert left is None or left.doomed
    inode.handles = 0
    with host.db.transaction():
        host.db.delete_inode(inode.ino)
    del inode
    host.list(host.put('f', b'and once more'))
    assert host.inode_at(b'f').size == 13


# --- a directory that goes while a rename waits -----------------------------------------------------------------------------------

class VanishingTree:
    """core's RemoteTree whose listing ends while a rename waits for a subtree."""

    is_complete = False
    is_described = True

    def __init__(self, ends: Callable[[], None]) -> None:
        self._ends = ends

    async def ensure_listed(self, directory: Inode) -> None:
        await trio.lowlevel.checkpoint()

    async def ensure_subtree(self, directory: Inode) -> None:
        await trio.lowlevel.checkpoint()
        self._ends()
        self.is_complete = True

    async def ensure_attrs(self, inodes: object) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize('is_target', [True, False], ids=['into', 'out of'])
def test_rename_with_a_directory_that_vanished_is_refused(host: Host, is_target: bool) -> None:
    """The listing that a rename waited for took its directory away: ENOENT, and what was to be moved is where it was."""
    stays = host.put('moved/y', b'12345')
    host.list(host.put('gone/x', b'12345'), stays)
    gone, moved = host.inode_at(b'gone'), host.inode_at(b'moved')
    tree: Any = VanishingTree(lambda: host.list(stays))
    names = Namespace(host.db, host.journal, host.staging, gating=host.gating, remote=tree)

    async def rename() -> None:
        with pytest.raises(NotFound):
            if is_target:
                await names.rename(ROOT_INO, b'moved', gone.ino, b'moved', 0)
            else:
                await names.rename(gone.ino, b'x', moved.ino, b'x', 0)

    if not is_target:
        host.list(stays)
    run(rename)
    assert host.db.children(ROOT_INO, b'', 9) == [(b'moved', moved.ino)]
    pending = host.journal.pending_row(moved.ino)
    if pending is not None:
        assert Planner(host.db, host.journal, gating=host.gating, prefix=PREFIX).plan(pending, moved).error is None


# --- an uploaded file whose object goes before the cache has it -------------------------------------------------------------------

def test_a_sealed_file_whose_object_is_gone_is_readable_or_gone(host: Host) -> None:
    """Deleted remotely between upload and adoption: the name goes too, or its bytes stay; never a name without bytes."""
    host.list(host.put('f', b'hello'))
    inode = host.inode_at(b'f')
    host.stage(inode, b'changed here')
    host.seal(inode, 'f', host.put('f', b'changed here'))
    host.workers.context.store.delete(PREFIX + 'f')
    host.list()
    run(host.finisher.adopt, host.finisher.sealed())
    if host.db.resolve((b'f',)) is None:
        return
    assert inode.content == Content.STAGED, 'the staging file is the only copy now'
    assert host.staged_bytes(inode) == b'changed here'
    pending = host.journal.pending_row(inode.ino)
    assert pending is not None and pending.reason & Reason.CONTENT


@pytest.mark.parametrize('is_removed', [False, True], ids=['moved', 'removed'])
def test_a_directory_that_went_here_and_not_in_the_bucket_yet_does_not_come_back(host: Host, is_removed: bool) -> None:
    """After a crash the root is listed by itself, where the whole listing takes long: the bucket still has something below the old name."""
    host.list(host.put('a/b', b'12345'))
    tree: Any = VanishingTree(lambda: None)
    names = Namespace(host.db, host.journal, host.staging, gating=host.gating, remote=tree)

    async def change() -> None:
        if is_removed:
            await names.unlink(host.inode_at(b'a').ino, b'b')
            await names.rmdir(ROOT_INO, b'a')
        else:
            await names.rename(ROOT_INO, b'a', ROOT_INO, b'c', 0)

    run(change)
    host.db.close()
    host.start()
    host.reconciler.apply_directory([], ['a/', 'new/'])
    assert [name for name, _ in host.db.children(ROOT_INO, b'', 9)] == ([b'new'] if is_removed else [b'c', b'new'])
