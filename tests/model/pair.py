"""Two hosts and an outside writer on one bucket, without kernels: any program of operations, judged by a History.

Owns what an operation means on a host (core and sync as the daemon wires them, tests/unit/rig.py), what may happen between two requests of
a flush, and the end: everybody flushes and looks until nothing moves, and then all agree. It must not know how programs are drawn.

A program is a list of tuples; one that does not apply (no such file) does nothing, so that pieces can be left out of it:

    ('write', host, path, size)  ('append', host, path)   new content over what is there, and after it; ('same', host, path): what the
                                                          other host shows there
    ('open', host, slot, path)  ('pwrite', host, slot)  ('close', host, slot)
    ('unlink', host, path)  ('rename', host, old, new)  ('exchange', host, old, new)  ('link', host, old, new)  ('symlink', host, path)
    ('mkdir', host, path)  ('rmdir', host, path)  ('chmod', host, path, mode)  ('read', host, path)
    ('put', path, size)  ('edit', path)  ('delete', path)           the outside writer; 'edit' keeps the object's metadata, as s3fs does
    ('flush', host, {n: action, …})  ('clock', host, {…})  ('poll', host, {…})  ('reload', host)  ('remount', host, {…})  ('kill', host)
    ('tidy', host, {…})                                             upkeep of archives, where there are any
Actions happen at the n-th request to the store: ('lose',) its answer, ('drop',) the request, ('die', is_done) the host, or an operation of
the other host, the outside writer, or a program of this host.
"""
from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from ctxfs.config import Preference
from ctxfs.core.filesystem import Change
from ctxfs.errors import CtxfsError, NotFound, RemoteChanged, RemoteUnavailable
from ctxfs.records import ROOT_INO, PutResult
from ctxfs.storage.gating import HELD
from ctxfs.storage.inode import Content, Inode
from ctxfs.storage.keys import key_to_path
from ctxfs.sync import archive_upkeep, remote_changes, rivals, rounds, worker_ops_put, worker_ops_read
from ctxfs.sync.content import ContextCache
from ctxfs.sync.growth import Growth
from ctxfs.sync.protocol import Operation as WorkerOperation
from ctxfs.sync.selection import QuietRule, Ready
from ctxfs.sync.worker_ops import HANDLERS
from tests.fakes.memory_store import MemoryStore
from tests.model.history import History, Violation, short
from tests.unit.rig import ME, Disk, _Parts
from tests.unit.test_sync_regressions import PREFIX, Kernel

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

Operation = tuple[Any, ...]
Script = Mapping[int, Operation]

#: rounds of flushes and looks until nobody may have anything left to do
SETTLE_ROUNDS = 8
#: the same content has the same etag in two of them, as in S3, or none has the same
STORES: dict[str, Callable[[], MemoryStore | None]] = {
    'directory': lambda: None, 'by content': MemoryStore, 'by version': lambda: MemoryStore(by_content=False)}
_VERBS = ('head', 'get', 'put', 'put_file', 'copy', 'delete', 'delete_many', 'list')


class Killed(BaseException):
    """SIGKILL: nothing of the host goes on after it."""


class _Kernel(Kernel):
    def grown(self, ino: int, parts: Sequence[tuple[int, Any]], done: Callable[[], None]) -> None:
        for _, found in parts:
            os.close(found.fd)
        done()


class _Store:
    """The store as a host has it: each request may be told what happens before, instead of and after it."""

    def __init__(self, store: Any, meet: Callable[[Callable[[], Any]], Any]) -> None:
        self._store, self._meet = store, meet

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        return (lambda *args, **more: self._meet(lambda: found(*args, **more))) if name in _VERBS else found


class Member(Disk):
    """One host of the pair, from mount to mount. Its requests are made in a thread, so that others can act between them."""

    def __init__(self, world: PairWorld, number: int) -> None:
        self._world, self.number = world, number
        self.script: dict[int, Operation] = {}
        self.requests = 0
        self.is_dead = False
        directory = world.work / f'host-{number}-{len(world.made)}' if number > 1 else world.work / f'host-{number}'
        directory.mkdir(exist_ok=True)
        self.handles: dict[int, int] = {}
        self._token = trio.lowlevel.current_trio_token()
        super().__init__(directory, bucket=world.work / 'bucket', host=f'host{number}')
        self.workers.context.store = _Store(world.store or self.workers.context.store, self._meet)  # type: ignore[assignment]
        self.workers.context.run_all = lambda function, items: [function(item) for item in items]  # type: ignore[method-assign]

    def start(self) -> None:
        self.kernel = _Kernel()
        super().start()
        self.asides._publish = self._note_conflict
        self.asides.preference = self._world.preferences[self.number % 2]

    def _wire(self, sync_every: float | None) -> None:
        super()._wire(sync_every)
        pool: Any = self
        self.remote.changes.growth = Growth(self.db, self.journal, pool, self.kernel, blocks=ContextCache(self.workers.context.cache, prefix=PREFIX),
                                            prefix=PREFIX)

    # the pool

    async def call(self, operation: WorkerOperation[Any], **options: Any) -> Any:
        return await self._in_thread(operation, _Parts())

    @property
    def stream(self) -> Any:
        return self._stream

    def _stream(self, operation: WorkerOperation[Any], **options: Any) -> Any:
        return _Stream(self, operation)

    async def _in_thread(self, operation: WorkerOperation[Any], channel: Any) -> Any:
        if self.is_dead:
            raise Killed
        return await trio.to_thread.run_sync(HANDLERS[type(operation)], self.workers.context, operation, channel)

    def _meet(self, request: Callable[[], Any]) -> Any:
        """In a thread: one request to the store."""
        if self.is_dead:
            raise Killed
        self.requests += 1
        action = self.script.pop(self.requests, None)
        if action is None:
            return self._world.note(request())
        if action[0] == 'drop':
            raise RemoteUnavailable('dropped')
        if action[0] == 'die' and not action[1]:
            self._die()
        if action[0] not in ('lose', 'die'):
            trio.from_thread.run(self._world.act, action, trio_token=self._token)
        result = self._world.note(request())
        if action[0] in ('lose', 'die'):
            self._world.note_lost()
        if action[0] == 'die':
            self._die()
        if action[0] == 'lose':
            raise RemoteUnavailable('the answer is lost')
        return result

    def _die(self) -> None:
        trio.from_thread.run_sync(self.kill, trio_token=self._token)
        raise Killed

    # its life

    def kill(self) -> None:
        self.is_dead = True
        self.db.close()
        self._nursery.cancel_scope.cancel()

    async def live(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Mounted until it is killed or `end`ed."""
        self.is_dead, self.script = False, {}
        self.ended = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self.remote.run()
                self.reconciler.directories.is_live = True
                task_status.started()
                await trio.sleep_forever()
        except BaseExceptionGroup as group:
            if not self.is_dead:
                raise
            _, rest = group.split((Killed, trio.Cancelled, CtxfsError))
            if rest is not None:
                raise rest from None
        finally:
            self.ended.set()

    async def end(self) -> None:
        if not self.is_dead:
            self._nursery.cancel_scope.cancel()
        await self.ended.wait()

    async def again(self) -> None:
        """A new mount with the old state."""
        if not self.is_dead:
            self.db.close()
        self.handles.clear()
        self.start()
        self._wire(None)

    def _note_conflict(self, kind: str, **data: Any) -> None:
        if kind == 'conflict':
            self._world.conflict(self, data['path'], data['original'])

    # what a program sees

    def find(self, path: str) -> Inode | None:
        ino = self.db.resolve([name.encode() for name in path.split('/')])
        return None if ino is None else self.db.inode(ino)

    def shown(self, inode: Inode | None) -> bytes | None:
        """The content as a program would read it; None where there is none, or it has to be asked of the bucket and is not there."""
        if inode is None or inode.is_dir:
            return None
        if inode.is_symlink and inode.target is not None:
            return inode.target
        if inode.has_staging:
            return Path(self.staging.path(inode.ino)).read_bytes()
        known = self.journal.source_of(inode)
        return None if known is None else self._world.contents.get((known.key, known.etag))

    def tree(self, *, held: bool = False) -> dict[str, bytes]:
        """Every file and link, and what it shows; of those that are held, or of all others."""
        found = {}
        for parent, name, ino in self.db.rows('SELECT parent, name, ino FROM dentry'):
            inode = self.db.inode(ino)
            if not inode.is_dir and (inode.local == HELD) == held:
                path = (self.db.dir_key(parent).encode() + name).decode()
                found[path] = self.shown(inode)
        return found    # type: ignore[return-value]


class _Stream:
    def __init__(self, member: Member, operation: WorkerOperation[Any]) -> None:
        self._member, self._operation = member, operation

    async def __aenter__(self) -> _Parts:
        parts = _Parts()
        parts.result = await self._member._in_thread(self._operation, parts)
        return parts

    async def __aexit__(self, *exc: object) -> None:
        """All parts are here already."""


class PairWorld:
    """See the module docstring. To be used inside `playing`."""

    def __init__(self, work: Path, nursery: trio.Nursery, preferences: Sequence[Preference], store: MemoryStore | None) -> None:
        self.work = work
        self._nursery = nursery
        #: None: a directory, of which each host has a view of its own
        self.store = store
        #: of each host: which version keeps the name
        self.preferences = preferences
        (work / 'bucket').mkdir()
        self.history = History()
        #: what each version of an object holds
        self.contents: dict[tuple[str, str], bytes] = {}
        self.made: list[Member] = []
        self.hosts: list[Member] = []
        self._count = 0
        #: contents that arrived without an answer
        self._lost: set[bytes] = set()
        self.false_conflicts: list[str] = []
        self.conflicts = 0

    async def begin(self) -> None:
        for number in range(2):
            self.hosts.append(await self.mount(number))
        self._store = self.hosts[0].workers.context.store._store  # type: ignore[attr-defined]

    def new_member(self, number: int) -> Member:
        return Member(self, number)

    async def mount(self, number: int) -> Member:
        member = self.new_member(number)
        self.made.append(member)
        await self._nursery.start(member.live)
        return member

    async def finish(self) -> None:
        for member in self.made:
            await member.end()
            if not member.is_dead:
                member.db.close()
            member.workers.close()

    # --- the bucket -----------------------------------------------------------------------------------------------------------------

    def note(self, result: Any) -> Any:
        """What a request answered: a new version's content is remembered."""
        if isinstance(result, PutResult):
            self._learn()
        return result

    def _learn(self) -> None:
        for key, etag in {**self.versions(), **self.versions('.ctxfs/tmp/')}.items():
            if (key, etag) not in self.contents:
                with suppress(RemoteChanged, NotFound):     # another request was quicker
                    self.contents[key, etag] = self._store.get(PREFIX + key, if_match=etag)

    def note_lost(self) -> None:
        self._lost.update(self.contents.values())

    def versions(self, below: str = '') -> dict[str, str]:
        """The user's objects, or those of ctxfs `below`, and their etags."""
        found, token = {}, None
        while True:
            page = self._store.list(PREFIX + below, token=token)
            found.update({info.key[len(PREFIX):]: info.etag for info in page.objects if not info.key.endswith('/')
                          and (below or not info.key.startswith(PREFIX + '.ctxfs/'))})
            token = page.next_token
            if token is None:
                return found

    def in_bucket(self) -> dict[str, bytes]:
        self._learn()
        return {key: self.contents[key, etag] for key, etag in self.versions().items() if (key, etag) in self.contents}

    # --- operations -----------------------------------------------------------------------------------------------------------------

    async def apply(self, operation: Operation) -> None:
        await self.act(operation)

    async def act(self, operation: Operation) -> None:
        verb, *args = operation
        if verb in ('put', 'edit', 'delete'):
            getattr(self, f'_{verb}')(*args)
            return
        host = self.hosts[args[0]]
        if host.is_dead:
            return
        try:
            await getattr(self, f'_{verb}')(host, *args[1:])
        except (CtxfsError, OSError) as error:
            if verb in ('flush', 'clock', 'poll', 'reload', 'remount', 'kill'):
                raise
            if isinstance(error, CtxfsError) and type(error).__name__ in ('Corrupted',) and not host.is_dead:
                raise Violation(f'{operation}: {error!r}') from error

    def _new(self, size: int, over: bytes = b'') -> bytes:
        self._count += 1
        return over + b'%d%s' % (self._count, b'.' * size)

    # programs

    async def _lookup(self, host: Member, path: str) -> tuple[int, bytes, Inode | None]:
        *directories, name = path.encode().split(b'/')
        parent = ROOT_INO
        for directory in directories:
            found = await host.fs.lookup(parent, directory)
            if found is None or not found.is_dir:
                raise NotFound(path)
            parent = found.ino
        return parent, name, await host.fs.lookup(parent, name)

    async def _open(self, host: Member, slot: int, path: str) -> None:
        if slot in host.handles:
            return
        fh = await self._opened(host, path, os.O_RDWR)
        host.handles[slot] = fh

    async def _opened(self, host: Member, path: str, flags: int) -> int:
        parent, name, inode = await self._lookup(host, path)
        if inode is None:
            fh, inode = await host.fs.create(parent, name, mode=0o644, flags=flags, caller=ME)
            self.history.write(b'', by=f'host{host.number}', over=None)
            return fh
        before = host.shown(inode)
        fh = await host.fs.open(inode.ino, flags)
        if flags & os.O_TRUNC:
            self.history.write(b'', by=f'host{host.number}', over=None)
            self.history.end(before, f'host{host.number} truncated it')
        return fh

    async def _write_at(self, host: Member, fh: int, offset: int, data: bytes) -> bytes:
        """What the file holds afterwards."""
        inode = host.fs.files.get(fh).inode
        if inode.content == Content.CLEAN and inode.size:
            await host.fs.read(fh, 0, 1)    # a version that is gone is ESTALE
        before = host.shown(inode)
        await host.fs.write(fh, offset, data)
        after = host.shown(inode)
        assert after is not None
        self.history.write(after, by=f'host{host.number}', over=before)
        return after

    async def _close_handle(self, host: Member, fh: int) -> None:
        inode = host.fs.files.get(fh).inode
        content = host.shown(inode) if inode.has_staging and inode.nlink else None
        await host.fs.release(fh)
        if content:
            self.history.acknowledge(content, f'closed on host{host.number}')

    async def _save(self, host: Member, path: str, data: bytes) -> None:
        fh = await self._opened(host, path, os.O_WRONLY | os.O_TRUNC)
        try:
            await self._write_at(host, fh, 0, data)
        finally:
            await self._close_handle(host, fh)

    async def _write(self, host: Member, path: str, size: int) -> None:
        await self._save(host, path, self._new(size))

    async def _same(self, host: Member, path: str) -> None:
        other = self.hosts[1 - host.number]
        inode = None if other.is_dead else other.find(path)
        content = other.shown(inode)
        ours = host.find(path)
        if content and inode is not None and inode.is_regular and content != host.shown(ours) and (ours is None or ours.is_regular):
            await self._save(host, path, content)

    async def _append(self, host: Member, path: str) -> None:
        fh = await self._opened(host, path, os.O_RDWR)
        try:
            await self._write_at(host, fh, host.fs.files.get(fh).inode.size, self._new(1))
        finally:
            await self._close_handle(host, fh)

    async def _pwrite(self, host: Member, slot: int) -> None:
        if slot in host.handles:
            fh = host.handles[slot]
            await self._write_at(host, fh, host.fs.files.get(fh).inode.size, self._new(1))

    async def _close(self, host: Member, slot: int) -> None:
        if slot in host.handles:
            await self._close_handle(host, host.handles.pop(slot))

    async def _read(self, host: Member, path: str) -> None:
        _, _, inode = await self._lookup(host, path)
        if inode is None or not inode.is_regular:
            return
        fh = await host.fs.open(inode.ino, os.O_RDONLY)
        try:
            data = await host.fs.read(fh, 0, 1 << 20)
        finally:
            await host.fs.release(fh)
        self.history.check_known(data, f'{path} on host{host.number}')

    async def _unlink(self, host: Member, path: str) -> None:
        parent, name, inode = await self._lookup(host, path)
        content = host.shown(inode)
        await host.fs.unlink(parent, name)
        self.history.end(content, f'host{host.number} removed {path}')

    async def _rename(self, host: Member, old: str, new: str, flags: int = 0) -> None:
        parent, name, inode = await self._lookup(host, old)
        new_parent, new_name, target = await self._lookup(host, new)
        if inode is None or inode is target or (new + '/').startswith(old + '/') or (flags and (old + '/').startswith(new + '/')):
            return
        content = host.shown(target) if not flags else None
        moved = (*self._below(host, old), *(self._below(host, new) if flags else ()))
        self.history.moved(*moved)
        await host.fs.rename(parent, name, new_parent, new_name, flags)
        self.history.end(content, f'host{host.number} renamed {old} to {new}')

    def _below(self, host: Member, path: str) -> list[bytes]:
        return [content for at, content in host.tree().items() if content is not None and (at == path or at.startswith(path + '/'))]

    async def _exchange(self, host: Member, old: str, new: str) -> None:
        await self._rename(host, old, new, 2)

    async def _link(self, host: Member, old: str, new: str) -> None:
        _, _, inode = await self._lookup(host, old)
        parent, name, _ = await self._lookup(host, new)
        if inode is not None and inode.is_regular:
            self.history.moved(host.shown(inode))
            await host.fs.link(inode.ino, parent, name)

    async def _symlink(self, host: Member, path: str) -> None:
        parent, name, _ = await self._lookup(host, path)
        target = self._new(0, b'->')
        await host.fs.make(parent, name, mode=stat.S_IFLNK | 0o777, caller=ME, target=target)
        self.history.write(target, by=f'host{host.number}', over=None)
        self.history.acknowledge(target, f'made on host{host.number}')

    async def _mkdir(self, host: Member, path: str) -> None:
        parent, name, _ = await self._lookup(host, path)
        await host.fs.make(parent, name, mode=stat.S_IFDIR | 0o755, caller=ME)

    async def _rmdir(self, host: Member, path: str) -> None:
        parent, name, _ = await self._lookup(host, path)
        await host.fs.rmdir(parent, name)

    async def _chmod(self, host: Member, path: str, mode: int) -> None:
        _, _, inode = await self._lookup(host, path)
        if inode is not None:
            await host.fs.setattr(inode.ino, Change(mode=mode))

    # the outside writer

    def _put(self, path: str, size: int) -> None:
        data = self._new(size)
        self._put_outside(path, data, None)

    def _put_outside(self, path: str, data: bytes, metadata: dict[str, str] | None) -> None:
        before = self.in_bucket().get(path)
        self.history.write(data, by='outside', over=before)
        self._store.put(PREFIX + path, data, metadata=metadata)
        self._learn()
        self.history.acknowledge(data, 'put')

    def _edit(self, path: str) -> None:
        """Other content of the same length, and all metadata kept."""
        before = self.in_bucket().get(path)
        if before is None or len(before) < 8 or before.startswith(b'->'):
            return
        self._count += 1
        info = self._store.head(PREFIX + path)
        data = (b'%d' % self._count).ljust(len(before), b'!')
        self._put_outside(path, data, info.metadata)

    def _delete(self, path: str) -> None:
        self.history.end(self.in_bucket().get(path), f'outside deleted {path}')
        self._store.delete(PREFIX + path)

    # hosts

    async def _flush(self, host: Member, script: Script) -> None:
        with scripted(host, script):
            contents = [content for content in map(host.shown, self._staged(host)) if content]
            result = await host.engine.flush(retry_seconds=0)
        if host.is_dead:
            await self._restart(host)
        elif result.ok:
            for content in contents:
                self.history.acknowledge(content, f'synced by host{host.number}')

    async def _clock(self, host: Member, script: Script) -> None:
        """The flush that a clock asks for: one pass over what is not in the middle of being written."""
        with scripted(host, script):
            await host.engine.flush_ready(Ready(QuietRule(0.0), period=0.0, now_ns=time.time_ns(), is_cautious=False, may_go_on=lambda: True))
        if host.is_dead:
            await self._restart(host)

    def _staged(self, host: Member) -> list[Inode]:
        return [inode for inode in map(host.db.inode, host.db.staged_inos()) if inode.nlink]

    async def _poll(self, host: Member, script: Script) -> None:
        await self._alone(host, script, host.remote.changes.look)

    async def _alone(self, host: Member, script: Script, step: Callable[[], Awaitable[object]]) -> None:
        """Something that a mount does between its flushes, with the store as the script has it."""
        with scripted(host, script):
            try:
                await host.engine.alone(step)
            except CtxfsError as error:
                if not isinstance(error, RemoteUnavailable) and not host.is_dead:
                    raise
            except Killed:
                pass
        if host.is_dead:
            await self._restart(host)

    async def _reload(self, host: Member) -> None:
        """`ctxfs sync --mode download`: everything is listed, which a look at a large context does not do."""
        result = await host.engine.download()
        if not result.ok:
            raise Violation(f'host{host.number} cannot list: {result.message}')

    async def _tidy(self, host: Member, script: Script) -> None:
        """Of objects there is none."""

    async def _kill(self, host: Member) -> None:
        host.kill()
        await self._restart(host)

    async def _restart(self, host: Member) -> None:
        await host.ended.wait()
        await host.again()
        await self._nursery.start(host.live)

    async def _remount(self, host: Member, script: Script) -> None:
        for slot in list(host.handles):
            await self._close(host, slot)
        await self._flush(host, script)
        await host.end()
        await host.again()
        await self._nursery.start(host.live)

    # --- verdicts -------------------------------------------------------------------------------------------------------------------

    def conflict(self, host: Member, path: str, original: str) -> None:
        """A host says that it found one."""
        self.conflicts += 1
        bucket, inode = self.in_bucket(), host.find(path[1:])
        if inode is None or inode.is_dir or self._is_directory(original[1:]):
            return      # a file and a directory
        if '.conflict-' in original:
            return      # both hosts gave the same name of that second to what they kept
        ours, theirs = self._sides(host, host.shown(inode), original[1:], bucket)
        if ours is None or theirs is None:
            return
        why = self.history.why_false(ours, theirs)
        has_telling_etag = self.store is not None and self.store.etag_of(b'') is not None and len(ours) <= 100
        if ours in self._lost and not has_telling_etag and self.history.is_ancestor(ours, theirs):
            return      # nobody here heard that ours had arrived, and no etag tells what theirs replaced
        if why:
            self.false_conflicts.append(f'host{host.number} {path} beside {original}, {short(ours)} and {short(theirs)}: {why}')

    def _sides(self, host: Member, copy: bytes | None, original: str, bucket: dict[str, bytes]) -> tuple[bytes | None, bytes | None]:
        """This host's version, and the published one."""
        return copy if host.asides.preference != 'prefer-local' else host.shown(host.find(original)), bucket.get(original)

    def _is_directory(self, path: str) -> bool:
        return bool(self._store.list(f'{PREFIX}{path}/').objects)

    async def settle(self) -> None:
        """Everybody flushes, which leaves nothing, then flushes and looks, until nothing moves. Raises Violation when that does not end, or they do
        not agree."""
        for host in self.hosts:
            for slot in list(host.handles):
                await self._close(host, slot)
        for host in self.hosts:
            await self._flush_finally(host)
        before: Any = None
        for _ in range(SETTLE_ROUNDS):
            for host in self.hosts:
                await self._reload(host)
                await self._flush(host, {})
            now = self.versions(), *(host.tree() for host in self.hosts), *(self._left(host) for host in self.hosts)
            if now == before:
                break
            before = now
        self._check_end()
        await self._check_newcomer()

    async def _flush_finally(self, host: Member) -> None:
        """As at an unmount: with nothing open here, a store that works, and nobody else at work, it leaves nothing."""
        result = await host.engine.flush(retry_seconds=60, is_final=True)
        if not result.ok:
            raise Violation(f'host{host.number} leaves something when it is unmounted: {result.message}: {self._left(host)}')

    def _left(self, host: Member) -> str:
        rows = host.db.rows('SELECT ino, reason, error FROM pending')
        doomed = host.db.rows('SELECT key FROM object WHERE doomed')
        attempts = host.db.rows('SELECT key FROM attempt')
        return f'{rows} {doomed} {attempts}' if rows or doomed or attempts else ''

    def _check_end(self) -> None:
        bucket = self.in_bucket()
        present = set(bucket.values())
        self.history.check_present(present.union(*(host.tree(held=True).values() for host in self.hosts)))
        self.history.check_gone(bucket, excused=self._lost)
        for content in present:
            self.history.check_known(content, 'the bucket')
        for host in self.hosts:
            if left := self._left(host):
                raise Violation(f'host{host.number} is never done: {left}')
            self._compare(host, bucket)
        if self.false_conflicts:
            raise Violation('false conflicts: ' + '; '.join(self.false_conflicts))

    def _compare(self, host: Member, bucket: dict[str, bytes]) -> None:
        hidden = {key for key, _ in host.journal.unmountable(1000)}
        want = {key: content for key, content in bucket.items() if key not in hidden}
        tree = host.tree()
        if tree != want:
            lines = [f'{path}: {_name(tree.get(path))}, the bucket has {_name(want.get(path))}'
                     for path in sorted(tree.keys() | want.keys()) if tree.get(path) != want.get(path)]
            raise Violation(f'host{host.number} shows ' + '; '.join(lines))
        for key in hidden:
            path = key_to_path(key)
            if not isinstance(path, tuple) or host.db.resolve(path) is None:
                raise Violation(f'host{host.number} hides {key}, and nothing is in its way')

    async def _check_newcomer(self) -> None:
        newcomer = await self.mount(len(self.made))
        self._compare(newcomer, self.in_bucket())
        for host in self.hosts:
            mine, theirs = [await self._modes(member, host.tree()) for member in (host, newcomer)]
            if mine != theirs:
                raise Violation(f'host{host.number} and a new host have other modes: {mine} and {theirs}')

    async def _modes(self, host: Member, paths: Iterable[str]) -> dict[str, int]:
        inodes = {path: inode for path in paths if (inode := host.find(path)) is not None}
        return {path: (await host.fs.getattr(inode.ino)).mode for path, inode in inodes.items()}


def _name(content: bytes | None) -> str:
    return 'nothing' if content is None else short(content)


@contextmanager
def scripted(host: Member, script: Script) -> Any:
    host.script, host.requests = dict(script), 0
    try:
        yield
    finally:
        host.script = {}


def play(work: Path, program: Sequence[Operation], *, preferences: Sequence[Preference] = ('keep-both', 'keep-both'),
         in_flight: int = 1, page: int = remote_changes.PAGE, store: str = 'directory', world: type[PairWorld] = PairWorld) -> PairWorld:
    """Run the program and judge its end. `in_flight`: uploads at a time (more than one, and a run may not be repeated exactly); `page`: with more
    objects than that a host looks at what others announce, and not at a listing; `store`: one of STORES; `world`: of hosts of one mode. Raises
    Violation."""
    worlds: list[PairWorld] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            made = world(work, nursery, preferences, STORES[store]())
            worlds.append(made)
            await made.begin()
            try:
                for operation in program:
                    await made.apply(operation)
                await made.settle()
            finally:
                with trio.CancelScope(shield=True):
                    await made.finish()
            nursery.cancel_scope.cancel()

    with _settings((rounds, 'IN_FLIGHT', in_flight), (remote_changes, 'PAGE', page), (worker_ops_put, 'WHOLE_BYTES', 100),
                   (worker_ops_put, 'VERIFY_BYTES', 300), (worker_ops_read, 'VERIFY_BYTES', 300), (rivals, 'NEAR_NS', 0),
                   (archive_upkeep, 'LOG_COMMITS', 4), (archive_upkeep, 'GRACE_SECONDS', 0.0)):
        try:
            trio.run(main)
        except BaseExceptionGroup as group:
            raise _first(group) from group
    return worlds[0]


@contextmanager
def _settings(*values: tuple[Any, str, int]) -> Iterator[None]:
    before = [getattr(module, name) for module, name, _ in values]
    for module, name, value in values:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(values, before, strict=True):
            setattr(module, name, value)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
