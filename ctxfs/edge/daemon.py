"""The daemon of one mount: the one place that wires the layers together, and its life from lock to result.

Owns the order of starting and ending. It must not decide anything that a layer below decides: it builds, connects and waits.

    lock the state directory → claim the runtime directory → recover → workers → attach → answer (`ready`) … unmounted
    → final upload → write the result → close the control socket → end
The lock's descriptor is inherited by the workers: a new mount cannot begin while a worker of a killed daemon still moves bytes.
"""
from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trio

from ctxfs import logs
from ctxfs.config import MountOptions, private_dir
from ctxfs.core.block_reader import BlockReader
from ctxfs.core.contents import Contents
from ctxfs.core.filesystem import FileSystem
from ctxfs.core.made_files import MadeFiles
from ctxfs.core.namespace import Namespace
from ctxfs.core.xattrs import XAttrs
from ctxfs.edge import control, failsafe, fuse_adapter, fuse_ops, housekeeping, runtime_dir
from ctxfs.edge.archive_mode import ArchiveMode, Base
from ctxfs.edge.attachment import Attachment
from ctxfs.edge.failsafe import Home
from ctxfs.edge.following import Following
from ctxfs.edge.fuse_made import MadeByLibrary
from ctxfs.edge.garbage import Garbage
from ctxfs.edge.launch import Readiness
from ctxfs.edge.memory_upkeep import MemoryUpkeep
from ctxfs.edge.metrics_text import labels_of
from ctxfs.edge.mount_answers import Answers
from ctxfs.edge.mount_conflicts import ConflictDesk
from ctxfs.edge.mount_status import Parts
from ctxfs.edge.space import DiskSpace
from ctxfs.edge.stack_dump import dump_on_signal
from ctxfs.edge.state_lock import locked
from ctxfs.edge.store_access import StoreAccess
from ctxfs.edge.supervision import first_leaf, kept_running, supervised
from ctxfs.errors import CtxfsError, Damaged, RemoteUnavailable
from ctxfs.limits import Address
from ctxfs.rules import Rules
from ctxfs.storage.audit_log import AuditLog, about
from ctxfs.storage.block_cache import BLOCK_SIZE, BlockCache
from ctxfs.storage.disk_space import Reserve
from ctxfs.storage.gating import Gating
from ctxfs.storage.inode import Inode
from ctxfs.storage.made_log import MadeLog
from ctxfs.storage.registry import context_prefix
from ctxfs.sync.asides import Asides
from ctxfs.sync.audit import Auditor
from ctxfs.sync.conflicts import ConflictKeeper
from ctxfs.sync.content import ContextCache, RemoteContentLoader
from ctxfs.sync.descriptions import Defaults
from ctxfs.sync.doubt import Doubt
from ctxfs.sync.downloads import Downloads
from ctxfs.sync.engine import FlushResult, UploadEngine
from ctxfs.sync.events import EventHub
from ctxfs.sync.finishing import Finisher
from ctxfs.sync.free_memory import use_one_heap
from ctxfs.sync.hardening import Hardener
from ctxfs.sync.localise import Localiser
from ctxfs.sync.planner import Planner
from ctxfs.sync.pool import TransferPool, open_pool
from ctxfs.sync.process_guard import helper_environment, hide_process, without_secrets
from ctxfs.sync.reconcile import Reconciler
from ctxfs.sync.recycle import Recycler
from ctxfs.sync.regate import Regater
from ctxfs.sync.remote_tree import RemoteTreeLoader
from ctxfs.sync.room import DirtyBound, clean_share
from ctxfs.sync.rounds import Rounds
from ctxfs.sync.schedule import UploadScheduler
from ctxfs.sync.tasks import TaskLog
from ctxfs.sync.together import Together
from ctxfs.sync.uploader import Uploader
from ctxfs.sync.warmup import Warmup

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
#: a read that is still at it after so many times the wait for a store that does not answer is ended: the store answers, but too slowly
READ_LIMIT = 5 / 3
#: the widest read-ahead of two readers, with what was asked for before them
READ_BYTES = 64 << 20
#: how often the cache learns what was used
TOUCH_SECONDS = 60.0


def run(options: MountOptions, ready: Readiness) -> int:
    """Mount, serve until unmounted, upload; returns 0 when everything is in the bucket, 1 when something stays journaled."""
    _set_up_process(options)
    state = private_dir(Path(options.state_dir))
    with locked(state) as lock_fd, _audited(options) as audit, failsafe.opened(options) as home:
        record = runtime_dir.claim(options)
        try:
            mount = Mount(home, lock_fd, audit=audit, on_attached=lambda: runtime_dir.confirm(record))
        except BaseException:
            runtime_dir.discard(Path(options.runtime_dir))
            raise
        try:
            return trio.run(mount.run, ready)
        except BaseException as error:
            if not mount.was_attached:
                runtime_dir.discard(Path(options.runtime_dir))
            raise first_leaf(error) from error
        finally:
            mount.close()


@contextlib.contextmanager
def _audited(options: MountOptions) -> Iterator[AuditLog]:
    """The audit log, with a line for a mount that failed. Raises Denied when it cannot be written: then nothing is mounted."""
    audit = AuditLog(options.audit_log, about(options.store_url, context_id=options.context_id, context=options.context_name,
                                              host_id=options.host_id))
    try:
        yield audit
    except BaseException as error:
        audit.write('mount', result='failed', error=str(error), mountpoint=options.mountpoint)
        raise
    finally:
        audit.close()


def _set_up_process(options: MountOptions) -> None:
    os.umask(0o077)     # whoever started it: what it makes beside the mount is nobody else's business
    hide_process()
    use_one_heap()
    logs.set_up(options.log_level.upper(), options.log_style)
    for name in ('boto3', 'botocore', 'urllib3'):     # in the foreground they are in this process; at DEBUG they print signatures
        logging.getLogger(name).setLevel(logging.WARNING)
    faulthandler.enable()
    dump_on_signal()
    Garbage.begin()     # daemon_start.py had it wait
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    log.debug('open files: %d, raised to %d', soft, hard)


def _read_seconds(options: MountOptions) -> float:
    """A bound on what may come in a second is no fault of the store: as much as a read can wait for takes its time."""
    own = READ_BYTES / options.download_rate if options.download_rate else 0.0
    return READ_LIMIT * options.store_timeout + own


class Mount:
    """The parts of one mount and their life. Made before anything is mounted; raises ctxfs.errors."""

    def __init__(self, home: Home, lock_fd: int, *, audit: AuditLog, on_attached: Callable[[], object]) -> None:
        self._options = options = home.options
        self._damage = home.damage
        self._audit = audit
        self._started = time.time()
        self._on_attached = on_attached
        self._lock_fd = lock_fd
        self._prefix = context_prefix(options.context_id) + options.below
        self._rules = Rules(options.policy)
        self._db, self._journal, self._staging = home.db, home.journal, home.staging
        self._hardener = Hardener(self._db, self._staging, also=audit.make_durable)
        self._gating = Gating(self._db, self._journal, self._staging, rules=self._rules)
        private_dir(Path(options.cache_dir))
        self._invalidator = fuse_adapter.new_invalidator()
        self._auditor = Auditor(audit.write, prefix=self._prefix)
        self._events = EventHub(witness=self._auditor.event)
        self._tasks = TaskLog(context_id=options.context_id, path=options.mountpoint, publish=self._events.publish)
        self._to_close = contextlib.ExitStack()
        self.was_attached = False
        self._cache = BlockCache(options.cache_dir, clean_share(options.cache_size, self._staging.used))
        self._space = DiskSpace(self._db, self._cache, Reserve(self._db.path.parent), let_go=lambda: self._blocks.let_go())
        for path, kept_at in home.reverted:
            self._auditor.reverted(path, str(kept_at) if kept_at else None)

    # --- life -----------------------------------------------------------------------------------------------------------------------

    async def run(self, ready: Readiness) -> int:
        """See `run`."""
        options = self._options
        access = StoreAccess(options)
        worker_options = access.worker_options(cache_limit=clean_share(options.cache_size, self._staging.used))
        async with open_pool(worker_options, keep_fds=(self._lock_fd,)) as pool, trio.open_nursery() as nursery:
            self._build(pool, nursery, access)
            server = await nursery.start(control.serve, f'{options.runtime_dir}/control.sock', control.methods_of(self._control))
            if self._regater.is_due:
                log.info('other white lists than before: %s', await self._regater.run())
            nursery.start_soon(supervised, self._remote.run)       # only reads: it need not wait until the context is known to be in use
            if not options.read_only:
                await self._heartbeat.begin(options.context_id)
            close_metrics = self._serve_metrics()
            self._attach()
            nursery.start_soon(supervised, self._invalidator.run)
            for task in (*self._following.tasks(), lambda: housekeeping.run(options)):
                nursery.start_soon(supervised, task)
            if not options.read_only:
                nursery.start_soon(kept_running, self._schedule.run)
            nursery.start_soon(supervised, self._warmup.run)
            nursery.start_soon(kept_running, self._housekeep)
            nursery.start_soon(kept_running, self._hardener.run)
            nursery.start_soon(supervised, self._answers.run, ready.notifier)
            nursery.start_soon(supervised, self._attachment.watch, self._adapter, self._collect_dirty_pages)
            nursery.start_soon(supervised, failsafe.after_unclean_end, self._db, pool, self._started)
            if not self._options.read_only:
                nursery.start_soon(kept_running, self._heartbeat.run)
                nursery.start_soon(supervised, self._recycler.run, self._remote.wait_complete, self._engine.alone)
            if (upkeep := self._archives.upkeep) is not None:
                nursery.start_soon(supervised, upkeep.run, self._remote.wait_complete, lambda: self._engine.is_paused)
            await nursery.start(self._handle_signals)      # before anybody hears that it is ready: a stop may follow at once
            result = await self._serve(ready)
            await self._answers.end(server)
            await trio.to_thread.run_sync(close_metrics)
            nursery.cancel_scope.cancel()
        return 0 if result.ok else 1

    def _serve_metrics(self) -> Callable[[], None]:
        """Where that is wanted; what ends it. Raises CtxfsError."""
        options = self._options
        if options.metrics_addr is None:
            return lambda: None
        from ctxfs.edge.metrics_server import MetricsServer  # 0.1 s of import that other mounts do not need
        labels = labels_of(options.context_id, options.context_name, options.mountpoint)
        return MetricsServer(Address(*options.metrics_addr), labels, self._answers.measured).close

    def _attach(self) -> None:
        options = self._options
        with without_secrets():     # libfuse starts fusermount3
            fuse_adapter.attach(self._adapter, options.mountpoint, fuse_adapter.fuse_options(
                name=options.context_name, read_only=options.read_only, allow_other=options.allow_other,
                kernel_options=options.kernel_options))
        self.was_attached, self._attachment = True, Attachment(options.mountpoint)
        self._audit.write('mount', mountpoint=options.mountpoint, readOnly=options.read_only, allowOther=options.allow_other)
        self._on_attached()

    async def _serve(self, ready: Readiness) -> FlushResult:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announce, ready)
            await fuse_adapter.serve_requests(self._adapter)
        self._answers.unmounted()
        self._following.poller.end()
        self._warmup.end()
        self._invalidator.is_known = self._invalidator.take_listing = lambda ino: False
        self._invalidator.take_absence = lambda parent, name: False
        log.info('unmounted; uploading %d files, %d bytes', *self._left())
        result = await self._final_upload()
        if not self._options.read_only:
            await self._heartbeat.end()
        self._audit.write('unmount', result='ok' if result.ok else 'failed', error=result.message, mountpoint=self._options.mountpoint,
                          pending=self._left()[0])
        self._leave_result(result)
        return result

    async def _announce(self, ready: Readiness) -> None:
        ready.ok(self._damage.text())
        log.info('mounted on %s', self._options.mountpoint)

    async def _final_upload(self) -> FlushResult:
        if self._damage.text():
            return FlushResult(False, 0, 0, self._damage.text())
        if self._options.read_only:     # what an earlier mount left is still only here, and must not pass for uploaded
            left = self._left()[0]
            return FlushResult(left == 0, 0, 0, f'{left} changes of an earlier mount are not uploaded: this one was read-only' if left else '')
        started = time.monotonic()
        result = await self._schedule.write_back(self._options.final_seconds)
        level = logging.INFO if result.ok or self._schedule.is_manual else logging.WARNING
        log.log(level, 'write-back: %d files, %d bytes in %.1f s; %s', result.files, result.bytes, time.monotonic() - started,
                result.message or 'everything is in the bucket')
        return result

    def _leave_result(self, result: FlushResult) -> None:
        files, size = self._left()
        self._control.final = result
        runtime_dir.finish(self._options, ok=result.ok, message=result.message, pending=runtime_dir.Pending(files=files, bytes=size))
        self._control.finished.set()

    def _left(self) -> tuple[int, int]:
        """(files, bytes) that the bucket does not have."""
        if self._damage.files:
            return self._damage.files, self._damage.bytes
        try:
            pending = self._engine.pending()
        except Damaged:
            return failsafe.left_in(self._staging)
        files, size = self._fs.made.waiting()       # of which no table knows: the disk is full
        return int(pending['files']) + files, int(pending['bytes']) + size

    def close(self) -> None:
        """Whatever happened: nothing stays mounted, the database is closed with its log in its file."""
        if self.was_attached:
            fuse_adapter.detach(unmount=self._attachment.is_there)
        with contextlib.suppress(CtxfsError, OSError):      # the log stays and is read by the next mount
            self._hardener.finish()
            self._db.set_meta('ended_cleanly', 1)
            self._db.checkpoint(is_last=True)
        self._to_close.close()
        self._db.close()
        self._cache.close()

    # --- parts ----------------------------------------------------------------------------------------------------------------------

    def _build(self, pool: TransferPool, nursery: trio.Nursery, access: StoreAccess) -> None:
        options, db, journal, staging, prefix = self._options, self._db, self._journal, self._staging, self._prefix

        def spawn(function: Callable[..., Any], *args: Any) -> None:
            nursery.start_soon(supervised, function, *args)

        asides = Asides(db, journal, self._invalidator, gating=self._gating, prefix=prefix, host=options.host_name or options.host_id[:8],
                        preference=options.conflict, publish=self._events.publish)
        reconciler = Reconciler(db, journal, self._invalidator, gating=self._gating, asides=asides,
                                defaults=Defaults(options.uid, options.gid, options.umask))
        pool.listener = self._auditor
        writers, turns = access.writers(pool, db, spawn)
        self._heartbeat = access.heartbeat(pool)
        archives = self._archives = ArchiveMode(Base(options, db, journal, staging, prefix, self._rules), reconciler, pool)
        doubt = Doubt(db, journal, pool, prefix=prefix, host=options.host_id, on_arrived=self._auditor.arrived)
        self._remote = RemoteTreeLoader(db, journal, reconciler, pool, doubt=doubt, prefix=prefix, below=options.below,
                                        answer_seconds=0.75 * options.store_timeout, mirror=archives.mirror)
        conflicts = ConflictKeeper(db, journal, reconciler, archives.view, asides=asides, prefix=prefix)
        planner = Planner(db, journal, gating=self._gating, prefix=prefix, covered=archives.covered)
        finisher = Finisher(db, journal, staging, writers, gating=self._gating, remote=self._remote, prefix=prefix)
        self._recycler = Recycler(db, journal, archives.view, rules=self._rules, reconciler=reconciler, finisher=finisher, prefix=prefix)
        uploader = Uploader(db, journal, staging, writers, planner=planner, doubt=doubt, recycler=self._recycler, prefix=prefix,
                            displaced=archives.displaced)
        rounds = Rounds(
            db, journal, pool, planner=planner, doubt=doubt, gating=self._gating, conflicts=conflicts, prefix=prefix,
            uploader=uploader, together=Together(db, writers, uploader=uploader, transfers=options.transfers),
            prepare=archives.recorder(writers).record,
            archiver=archives.archiver(writers, uploader, finisher, self._recycler, self._auditor, asides),
            localiser=Localiser(db, journal, self._gating, stage=lambda inode: self._fs.contents.stage(inode)))
        self._engine = UploadEngine(db, journal, rounds=rounds, finisher=finisher, remote=self._remote, tasks=self._tasks, spawn=spawn,
                                    harden=self._hardener.harden_local, end_turn=turns.end, patience=options.store_timeout)
        self._schedule = UploadScheduler(self._engine, db, journal, rules=self._rules, sync_every=options.sync_every,
                                         publish=self._events.publish)
        self._room = DirtyBound(staging, limit=options.cache_size, flush=self._engine.flush, schedule=self._schedule,
                                bound_clean=lambda share: self._bound_clean(pool, share))
        self._warmup = Warmup(db, pool, self._cache, prefix=prefix, rules=self._rules, tasks=self._tasks, remote=self._remote,
                              is_paused=lambda: self._engine.is_paused, activity=lambda: self._adapter.requests)
        reconciler.on_content = self._warmup.note_changed
        self._fs = self._build_file_system(pool, spawn)
        self._memory = MemoryUpkeep(db, known=self._fs.known_inodes, is_listed=lambda: self._remote.is_complete)
        self._connect_kernel(pool)
        self._regater = Regater(db, journal, self._gating, reconciler, stage=self._fs.contents.stage)
        self._following = Following(
            options, db, journal, pool=pool, invalidator=self._invalidator, cache=self._cache, reconciler=reconciler, remote=self._remote,
            engine=self._engine, rules=self._rules, regater=self._regater, publish=self._events.publish, prefix=prefix)
        self._answers = Answers(
            Parts(options=options, rules=self._rules, db=db, journal=journal, staging=staging, cache=self._cache, pool=pool,
                  engine=self._engine, remote=self._remote, tasks=self._tasks, schedule=self._schedule, reads=self._blocks, warmup=self._warmup,
                  downloads=Downloads(db, pool, self._cache, prefix=prefix, remote=self._remote, engine=self._engine, tasks=self._tasks,
                                      let_go=self._blocks.let_go),
                  known_inodes=self._fs.known_inodes, recycle=self._recycler.state, audit=self._audit, refusal=lambda: self._room.refusal,
                  damage=self._damage),
            ConflictDesk(db, journal, self._fs, gating=self._gating, invalidator=self._invalidator, read_only=options.read_only),
            events=self._events, request_unmount=lambda: spawn(self._unmount), collect_dirty_pages=self._collect_dirty_pages)
        self._to_close.callback(self._answers.close)
        self._to_close.callback(self._remote.end)
        self._control = self._answers.control

    def _connect_kernel(self, pool: TransferPool) -> None:
        self._invalidator.is_known, self._invalidator.take_absence = self._fs.is_known, self._fs.take_absence
        Inode.counted_elsewhere = staticmethod(fuse_ops.opens)
        self._invalidator.take_listing, self._fs.forget_listing = self._fs.take_listing, self._invalidator.listing
        self._adapter = fuse_adapter.FuseAdapter(self._fs, statfs_path=self._options.state_dir,
                                                 xattrs=XAttrs(self._db, self._fs) if self._options.xattrs else None,
                                                 read_seconds=_read_seconds(self._options), space=self._space)
        if fuse_ops.is_loaded():
            self._adapter.made = MadeByLibrary(self._fs, self._db, self._staging, gating=self._gating, room=self._room, made_log=self._made_log,
                                               has_xattrs=self._options.xattrs)
        pool.courtesy.served = lambda: self._adapter.requests

    def _build_file_system(self, pool: TransferPool, spawn: Callable[..., None]) -> FileSystem:
        db, journal, staging, remote = self._db, self._journal, self._staging, self._remote
        content = RemoteContentLoader(pool, prefix=self._prefix, answer_seconds=self._options.store_timeout, place_of=self._archives.place_of,
                                      neighbours_of=self._archives.neighbours_of, follow=self._archives.follow)
        self._blocks = BlockReader(ContextCache(self._cache, prefix=self._prefix), content, block_size=BLOCK_SIZE, spawn=spawn,
                                   refresh=remote.refresh, on_miss=self._warmup.note_read)
        contents = Contents(db, journal, staging, blocks=self._blocks, remote=content, room=self._room)
        self._made_log = MadeLog(db)
        made = MadeFiles(db, journal, staging, gating=self._gating, log=self._made_log, on_close=lambda inode: self._schedule.wake())
        return FileSystem(db, journal, Namespace(db, journal, staging, gating=self._gating, remote=remote), contents, remote=remote, made=made,
                          after_fsync=self._upload_now if self._options.fsync == 'remote' else None,
                          on_close=lambda inode: self._schedule.wake())

    async def _bound_clean(self, pool: TransferPool, share: int) -> None:
        """The workers store no more than that, and here the rest is evicted: in a thread, for it may take long."""
        pool.set_cache_limit(share)
        await trio.to_thread.run_sync(self._cache.set_limit, share)
        self._blocks.let_go()

    async def _collect_dirty_pages(self) -> None:
        await self._invalidator.write_back(self._fs.written_inos())

    async def _upload_now(self, inode: Inode) -> None:
        """--fsync=remote: fsync() returns when the bucket has it."""
        result = await self._engine.flush()
        if not result.ok and self._journal.pending_row(inode.ino) is not None:
            raise RemoteUnavailable(result.message)

    # --- background -----------------------------------------------------------------------------------------------------------------

    async def _housekeep(self) -> None:
        """What follows from what changed since the last tick: the cache's bound from the dirty bytes, the log's length, memory that is free."""
        touched = trio.current_time()
        garbage = Garbage(lambda: self._adapter.requests + self._journal.marks + self._db.changes)
        while True:
            await trio.sleep(TICK_SECONDS)
            await self._room.adjust_cache()
            self._space.settle()
            self._fs.settle()
            garbage.look(trio.current_time())
            self._memory.look()
            await housekeeping.move_log(self._db)
            if trio.current_time() - touched > TOUCH_SECONDS:
                touched = trio.current_time()
                await trio.to_thread.run_sync(self._cache.flush_notes)

    async def _handle_signals(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """SIGTERM and SIGINT unmount and write back; a second one gives up waiting for the store (what is left stays journaled)."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                log.info('%s: unmounting', signal.Signals(number).name)
                self._answers.unmounting()
                await self._unmount()

    async def _unmount(self) -> None:
        """What `fusermount3 -u` does; while something keeps the mount busy, lazily."""
        for flag in ('-u', '-uz'):
            done = await trio.run_process(['fusermount3', flag, '--', self._options.mountpoint], check=False, capture_stdout=True,
                                          capture_stderr=True, env=helper_environment())
            if done.returncode == 0:
                return
        log.warning('cannot unmount %s: %s', self._options.mountpoint, done.stderr.decode('utf-8', 'replace').strip())
        fuse_adapter.terminate()

