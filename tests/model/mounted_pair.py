"""Two real mounts of one context, and an outside writer: any program of operations, judged by a History.

Owns what an operation is on a mount (plain system calls), how a host is told to flush and to look (its control socket, because it is paused
otherwise), and the end: everybody flushes and looks until nothing moves, and then all agree. It must not know how programs are drawn, nor
which store there is: a `Bucket` looks into it.

Operations are those of tests/model/pair.py, each in a directory of its example's; besides

    ('flush', host, fault)  fault: None, or (method, name) of what goes wrong with the next such request, where the store can be told so
    ('race',)               both hosts flush at once
    ('look', host)          one poll of the host's own, as it polls by itself
    ('kill', host, is_flushing)   SIGKILL to the daemon, in the middle of a flush or not, and a new mount
"""
from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ctxfs.edge.client import ControlClient, DaemonGone
from ctxfs.storage.stores import open_store
from ctxfs.sync.context_files import ContextFiles
from tests.crash.watch import eventually
from tests.model import syscalls
from tests.model.history import History, Violation, short

Operation = tuple[Any, ...]

CONTEXT = 'pair'
OPTIONS = ('--poll-every', '1s', '--sync-every', 'unmount')
SETTLE_ROUNDS = 8
SECONDS = 120
#: what a program gets when names or versions moved under it, or when it asks for what cannot be
EXPECTED = frozenset({errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ESTALE, errno.EINVAL, errno.ELOOP,
                      errno.EPERM, errno.EBADF, errno.ENXIO})


class Member:
    """One host and its mount."""

    def __init__(self, site: Any, number: int, preference: str, options: Sequence[str] = ()) -> None:
        self.number = number
        self._options = options
        self.host = site.host()
        self.at: Path = site.mount_point()
        self.preference = preference
        self.handles: dict[int, int] = {}
        self.pid = 0
        self._client: ControlClient | None = None
        self.mount(create=True)

    def mount(self, *, create: bool = False) -> None:
        self.host.mount(CONTEXT, self.at, create=create, options=(*OPTIONS, '--conflict', self.preference, *self._options))
        self._client = _connected(Path(self.host.runtime))
        self.call('pause')
        self.pid = self.call('status')['pid']
        eventually('the context is listed', lambda: self.call('status')['remote']['isComplete'])

    def call(self, method: str, **params: Any) -> Any:
        assert self._client is not None
        return self._client.call(method, timeout=SECONDS, **params)

    def flush(self) -> dict[str, Any]:
        return self.call('sync')

    def poll(self) -> None:
        answer = self.call('sync', mode='download')
        if not answer['ok']:
            raise Violation(f'host{self.number} cannot look: {answer["message"]}')

    def look(self) -> None:
        before = self.call('status')['remote']['lastPoll']
        self.call('resume')
        try:
            eventually('a poll', lambda: self.call('status')['remote']['lastPoll'] > before, every=0.02)
        finally:
            self.call('pause')

    def kill(self) -> None:
        self.forget_handles()
        self.close_client()
        self.host.kill9(self.at, pid=self.pid)
        self.mount()

    def remount(self) -> None:
        self.unmount()
        self.mount()

    def unmount(self) -> None:
        self.forget_handles()
        self.close_client()
        self.host.unmount(self.at)

    def close_client(self) -> None:
        if self._client is not None:
            self._client.close()

    def forget_handles(self) -> None:
        for fd in self.handles.values():
            with suppress(OSError):
                os.close(fd)
        self.handles.clear()


def _connected(runtime: Path) -> ControlClient:
    """To the one mount that runs: a killed one leaves its socket."""
    for path in runtime.glob('ctxfs/*/control.sock'):
        with suppress(DaemonGone):
            return ControlClient(path)
    raise AssertionError(f'no mount answers in {runtime}')


class MountedPair:
    """See the module docstring. `fail(method, name)` makes a request go wrong; None where the store cannot be told. One pair serves many
    examples, each begun by `example`."""

    def __init__(self, site: Any, *, preferences: tuple[str, str] = ('keep-both', 'keep-both'),
                 fail: Callable[[str, str], None] | None = None, options: Sequence[str] = ()) -> None:
        self.site = site
        self._fail = fail
        self._options = options
        self.hosts = [Member(site, number, preference, options) for number, preference in enumerate(preferences)]
        self.bucket = site.bucket()
        self.prefix = f'contexts/{site.context_id(CONTEXT)}/'
        self.history = History()
        self.trace: list[Operation] = []
        self._traces: dict[str, list[Operation]] = {}
        self._top = ''
        self._count = 0
        self._examples = 0
        self._seen: set[tuple[int, str]] = set()
        #: contents that may have arrived without an answer
        self._lost: set[bytes] = set()
        self.conflicts = 0

    # --- examples -------------------------------------------------------------------------------------------------------------------

    def example(self) -> None:
        """A directory that both hosts know, and nothing in it."""
        self._examples += 1
        self._top = f'e{self._examples}'
        self.history, self.trace, self._lost = History(), [], set()
        self._traces[self._top] = self.trace
        (self.hosts[0].at / self._top).mkdir()
        self.hosts[0].flush()
        for host in self.hosts:
            host.poll()

    def apply(self, operation: Operation) -> None:
        self.trace.append(operation)
        with self._told():
            verb, *args = operation
            try:
                getattr(self, f'_{verb}')(*args)
            except OSError as error:
                if error.errno not in EXPECTED:
                    raise Violation(f'{operation}: {error!r}') from error

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except Violation as error:
            program = ',\n    '.join(map(repr, self.trace))
            preferences = tuple(host.preference for host in self.hosts)
            raise Violation(f'{error}\n\nafter {len(self.trace)} operations under {preferences}, replay([\n    {program}])') from error

    def _new(self, size: int = 0) -> bytes:
        self._count += 1
        return b'%d%s' % (self._count, b'.' * size)

    def _path(self, host: int, path: str) -> Path:
        return self.hosts[host].at / self._top / path

    # --- programs -------------------------------------------------------------------------------------------------------------------

    def _write(self, host: int, path: str, size: int) -> None:
        self._save(host, path, self._new(size))

    def _save(self, host: int, path: str, data: bytes) -> None:
        fd = os.open(self._path(host, path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            self._replace(host, fd, _content(fd), data)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        self.history.acknowledge(data, f'closed on host{host}')

    def _replace(self, host: int, fd: int, before: bytes, data: bytes) -> None:
        os.ftruncate(fd, 0)
        self.history.end(before, f'host{host} truncated it')
        self.history.write(b'', by=f'host{host}', over=None)
        os.pwrite(fd, data, 0)
        self.history.write(data, by=f'host{host}', over=before)

    def _same(self, host: int, path: str) -> None:
        there, here = self._path(1 - host, path), self._path(host, path)
        if stat.S_ISREG(there.lstat().st_mode) and (not here.exists() or not here.is_symlink()):
            data = there.read_bytes()
            if data and (not here.exists() or here.read_bytes() != data):
                self._save(host, path, data)

    def _append(self, host: int, path: str) -> None:
        fd = os.open(self._path(host, path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            after = self._add(host, fd)
        finally:
            os.close(fd)
        self.history.acknowledge(after, f'closed on host{host}')

    def _add(self, host: int, fd: int) -> bytes:
        before, data = _content(fd), self._new(1)
        if not before:
            self.history.write(b'', by=f'host{host}', over=None)
        os.pwrite(fd, data, len(before))
        self.history.write(before + data, by=f'host{host}', over=before)
        return before + data

    def _open(self, host: int, slot: int, path: str) -> None:
        if slot not in self.hosts[host].handles:
            self.hosts[host].handles[slot] = os.open(self._path(host, path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            self.history.write(b'', by=f'host{host}', over=None)

    def _pwrite(self, host: int, slot: int) -> None:
        if slot in self.hosts[host].handles:
            self._add(host, self.hosts[host].handles[slot])

    def _close(self, host: int, slot: int) -> None:
        fd = self.hosts[host].handles.pop(slot, None)
        if fd is None:
            return
        try:
            content = _content(fd) if os.fstat(fd).st_nlink else None
        finally:
            os.close(fd)
        if content and self.history.knows(content):
            self.history.acknowledge(content, f'closed on host{host}')

    def _read(self, host: int, path: str) -> None:
        if stat.S_ISREG((at := self._path(host, path)).lstat().st_mode):
            self.history.check_known(at.read_bytes(), f'{path} on host{host}')

    def _unlink(self, host: int, path: str) -> None:
        at = self._path(host, path)
        before = _shown(at)
        at.unlink()
        self.history.end(before, f'host{host} removed {path}')

    def _rename(self, host: int, old: str, new: str, flags: int = 0) -> None:
        source, target = self._path(host, old), self._path(host, new)
        before, moved = _shown(target), _below(source)
        if _same_file(source, target):
            return
        if not flags:
            source.rename(target)
        else:
            syscalls.renameat2(os.fsencode(source), os.fsencode(target), flags)
            self.history.moved(*_below(source))
        self.history.moved(*moved)
        self.history.end(before if not flags else None, f'host{host} renamed {old} to {new}')

    def _exchange(self, host: int, old: str, new: str) -> None:
        self._rename(host, old, new, syscalls.RENAME_EXCHANGE)

    def _link(self, host: int, old: str, new: str) -> None:
        self.history.moved(_shown(self._path(host, old)))
        os.link(self._path(host, old), self._path(host, new), follow_symlinks=False)

    def _symlink(self, host: int, path: str) -> None:
        target = b'->' + self._new()
        os.symlink(target, os.fsencode(self._path(host, path)))
        self.history.write(target, by=f'host{host}', over=None)
        self.history.acknowledge(target, f'made on host{host}')

    def _mkdir(self, host: int, path: str) -> None:
        self._path(host, path).mkdir()

    def _rmdir(self, host: int, path: str) -> None:
        self._path(host, path).rmdir()

    def _chmod(self, host: int, path: str, mode: int) -> None:
        if not self._path(host, path).is_symlink():
            self._path(host, path).chmod(mode)

    # --- the outside writer ---------------------------------------------------------------------------------------------------------

    def _key(self, path: str) -> str:
        return f'{self.prefix}{self._top}/{path}'

    def in_bucket(self) -> dict[str, bytes]:
        """The objects of this example by their paths in it, without directories."""
        top = f'{self.prefix}{self._top}/'
        return {key[len(top):]: self.bucket.body(key) for key in self.bucket.keys(top) if not key.endswith('/')}

    def _put(self, path: str, size: int) -> None:
        self._put_outside(path, self._new(size), {})

    def _put_outside(self, path: str, data: bytes, metadata: dict[str, str]) -> None:
        before = self.in_bucket().get(path)
        self.history.write(data, by='outside', over=before)
        self.bucket.put(self._key(path), data, metadata)
        self.history.acknowledge(data, 'put')

    def _delete(self, path: str) -> None:
        self.history.end(self.in_bucket().get(path), f'outside deleted {path}')
        self.bucket.delete(self._key(path))

    # --- hosts ----------------------------------------------------------------------------------------------------------------------

    def _flush(self, host: int, fault: tuple[str, str] | None = None) -> None:
        if fault is not None and self._fail is not None:
            self._fail(*fault)
            self._lost.update(content for content in self.tree(self.hosts[host]).values())
        self.hosts[host].flush()
        self._check_conflicts(host)

    def _race(self) -> None:
        others = threading.Thread(target=self.hosts[1].flush)
        others.start()
        try:
            self.hosts[0].flush()
        finally:
            others.join()
        for host in range(2):
            self._check_conflicts(host)

    def _poll(self, host: int) -> None:
        self.hosts[host].poll()

    def _look(self, host: int) -> None:
        self.hosts[host].look()

    def _kill(self, host: int, is_flushing: bool) -> None:
        if is_flushing:
            self._lost.update(content for content in self.tree(self.hosts[host]).values())
            self.hosts[host].call('sync', wait=False)
        self.hosts[host].kill()

    def _remount(self, host: int) -> None:
        self.hosts[host].remount()

    # --- verdicts -------------------------------------------------------------------------------------------------------------------

    def _check_conflicts(self, host: int) -> None:
        """Those that are new: neither version may have been written by somebody who had seen the other."""
        member = self.hosts[host]
        for entry in member.call('conflicts'):
            if (host, entry['path']) in self._seen:
                continue
            self._seen.add((host, entry['path']))
            self.conflicts += 1
            copy, original = (_shown(member.at / entry[name][1:]) for name in ('path', 'original'))
            if copy is None or original is None:
                continue        # a directory, or gone again
            ours, theirs = (copy, original) if entry['holds'] == 'local' else (original, copy)
            why = self.history.why_false(ours, theirs)
            if why:
                raise Violation(f'host{host}: {entry["path"]} beside {entry["original"]}, {short(ours)} and {short(theirs)}, is no conflict: {why}')

    def settle(self) -> None:
        """Everybody flushes and looks, until nothing moves; then both mounts and the bucket have the same, and nothing is lost."""
        with self._told():
            for host in range(2):
                for slot in list(self.hosts[host].handles):
                    with suppress(OSError):
                        self._close(host, slot)
            before: Any = None
            for _ in range(SETTLE_ROUNDS):
                for host, member in enumerate(self.hosts):
                    member.poll()
                    member.flush()
                    self._check_conflicts(host)
                now = [self.in_bucket(), *(self.tree(member) for member in self.hosts)]
                if now == before:
                    break
                before = now
            self._check_end()

    def tree(self, member: Member) -> dict[str, bytes]:
        """What a host shows of the example."""
        top = member.at / self._top
        found = {}
        for directory, _, names in os.walk(top, onerror=_raise):
            for path in (Path(directory, name) for name in names):
                found[str(path.relative_to(top))] = _shown(path) or b''
        return found

    def _check_end(self) -> None:
        bucket, present = self.in_bucket(), set()
        for member in self.hosts:
            held = {entry['path'].removeprefix(f'/{self._top}/') for entry in member.call('conflicts') if entry['held']}
            tree = self.tree(member)
            present.update(tree.pop(path) for path in held & tree.keys())
            status = member.call('status')
            if status['pending']['files']:
                raise Violation(f'host{member.number} is never done: {status["pending"]} {status["failed"]}')
            hidden = {entry['key'].removeprefix(f'{self._top}/') for entry in status['unmountable']}
            self._compare(f'host{member.number}', tree, {path: body for path, body in bucket.items() if path not in hidden})
        self.history.check_present(present.union(bucket.values()))
        self.history.check_gone(bucket, excused=self._lost)
        for content in bucket.values():
            self.history.check_known(content, 'the bucket')

    @staticmethod
    def _compare(who: str, tree: dict[str, bytes], want: dict[str, bytes]) -> None:
        if tree != want:
            raise Violation(f'{who} shows ' + '; '.join(
                f'{path}: {_name(tree.get(path))}, the bucket has {_name(want.get(path))}'
                for path in sorted(tree.keys() | want.keys()) if tree.get(path) != want.get(path)))

    def check_newcomer(self) -> None:
        """A host that never saw the store shows what the first one shows, of all examples, modes included."""
        self.hosts[0].flush()
        newcomer = Member(self.site, len(self.site.hosts), 'keep-both', self._options)
        try:
            held = {entry['path'][1:] for entry in self.hosts[0].call('conflicts') if entry['held']}
            mine, theirs = ({path: look for path, look in _look_at(member.at).items() if path not in held} for member in (self.hosts[0], newcomer))
            different = [path for path in sorted(mine.keys() | theirs.keys()) if mine.get(path) != theirs.get(path)]
            if different:
                self.trace = self._traces[different[0].partition('/')[0]]
                with self._told():
                    raise Violation('; '.join(f'{path}: {mine.get(path)} here, {theirs.get(path)} on a new host' for path in different))
        finally:
            newcomer.unmount()

    def close(self) -> None:
        for member in self.hosts:
            member.unmount()

    def let_go(self) -> None:
        """Whatever happened: nothing here keeps a file or a socket open."""
        for member in self.hosts:
            member.forget_handles()
            member.close_client()


class ArchivedPair(MountedPair):
    """Two hosts in Archive mode. The outside writer sees objects only."""

    def __init__(self, site: Any, **more: Any) -> None:
        super().__init__(site, **more)
        self._files = ContextFiles(open_store(site.url), self.prefix.split('/')[1], host='judge')

    def in_bucket(self) -> dict[str, bytes]:
        """Read without a mount."""
        found = {}
        for entry in self._files.below(f'/{self._top}'):
            if not entry.is_dir:
                found[entry.key[len(self._top) + 1:]] = self._files.read(entry, 0, entry.size)
        return found

    def _put_outside(self, path: str, data: bytes, metadata: dict[str, str]) -> None:
        before = self.in_bucket().get(path) if not self._is_object(path) else None
        if before is None:
            super()._put_outside(path, data, metadata)
            return
        self.history.put_over_member(data, before)
        self._lost.add(before)
        self.bucket.put(self._key(path), data, metadata)
        self.history.acknowledge(data, 'put')

    def _delete(self, path: str) -> None:
        if self._is_object(path):
            super()._delete(path)

    def _is_object(self, path: str) -> bool:
        return self._key(path) in self.bucket.keys(self._key(path))

    def let_go(self) -> None:
        super().let_go()
        self._files.store.close()


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _shown(path: Path) -> bytes | None:
    """A file's content, a link's target; None for anything else, or nothing."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return os.fsencode(os.readlink(path))
        return path.read_bytes() if stat.S_ISREG(mode) else None
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
        return None


def _below(path: Path) -> list[bytes | None]:
    return [_shown(path), *(_shown(found) for found in path.rglob('*'))] if path.is_dir() and not path.is_symlink() else [_shown(path)]


def _same_file(one: Path, two: Path) -> bool:
    try:
        return os.path.samestat(one.lstat(), two.lstat())
    except OSError:
        return False


def _look_at(top: Path) -> dict[str, tuple[int, bytes | None]]:
    return {str(path.relative_to(top)): (path.lstat().st_mode, _shown(path)) for path in top.rglob('*')}


def _raise(error: OSError) -> None:
    raise error


def _name(content: bytes | None) -> str:
    return 'nothing' if content is None else short(content)


def replay(pair: MountedPair, operations: list[Operation]) -> None:
    """Run a program that a Violation printed, or that a regression keeps."""
    pair.example()
    for operation in operations:
        pair.apply(operation)
    pair.settle()
