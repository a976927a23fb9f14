"""What a power cut may leave of a state directory: the system calls of the storage layer, recorded, and the disks that they allow.

Owns the model. It must not know what is promised: tests/unit/test_power_cut.py does. Whoever is recorded runs in this process, on one thread.

The rules are those of Pillai et al. ("All file systems are not created equal", OSDI 2014), as far as they concern what ctxfs does:
    bytes       durable by fsync of the file; before, each file may have what it had at its last fsync, all of what it has now, its size with
                zeros in place of the rest (delayed allocation), or a part of it
    names       durable by fsync of their directory; before, all of what was done since or nothing of it
    the log of the tree database    append-only, its frames carry checksums: any length from its last fsync to what it has now
Not modelled: bytes of one sector that are torn, disks that lie about their cache, file systems that reorder the names of one directory, ext4
with data=writeback. What a real ext4 leaves is in tests/crash/test_power_cut.py.
"""
from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ctxfs.storage import staging as staging_module


class Node:
    """A file, whatever it is called."""

    def __init__(self) -> None:
        #: its bytes when it was fsynced last; None: never
        self.durable: bytes | None = None
        self.was_cut = False


class FileState(NamedTuple):
    """One staging file at the instant of a crash."""
    now: bytes
    durable: bytes | None
    was_cut: bool

    @property
    def is_durable(self) -> bool:
        return self.durable == self.now


class Instant(NamedTuple):
    """Everything at one instant. `names`: path below staging/ → file as it is called now; `durable_names`: as the disk has it.
    `log_sizes`: lengths that the database's log may have. `note`: what the test wants to know of this instant."""
    step: str
    names: dict[str, FileState]
    durable_names: dict[str, FileState]
    database: bytes
    log: bytes
    log_sizes: tuple[int, ...]
    bucket: Path
    note: Any


class Disk(NamedTuple):
    """One disk that the host may find when it boots again. `holes`: a file's bytes from here on are a hole, by path."""
    how: str
    files: dict[str, bytes]
    holes: dict[str, int]
    log_size: int


def _files(directory: Path) -> Iterator[os.DirEntry[str]]:
    if directory.is_dir():
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir():
                    yield from _files(Path(entry.path))
                else:
                    yield entry


class Recorder:
    """Watches a state directory `root` (tree.db, staging/, bucket/) while the block of `recording` runs. `note()`: see Instant."""

    def __init__(self, root: Path, note: Callable[[], Any]) -> None:
        self.root = root
        self.instants: list[Instant] = []
        self._note = note
        self._staging = f'{root}/staging/'
        self._names: dict[str, Node] = {}
        self._durable_names: dict[str, Node] = {}
        self._nodes: dict[int, Node] = {}
        self._last: tuple[Any, ...] = ()
        self._log_durable = 0
        self._log_seen: list[int] = []
        self._orphans: dict[int, bytes] = {}

    # --- instants -----------------------------------------------------------------------------------------------------------------

    def instant(self, step: str) -> None:
        """Keep this instant unless neither the disk nor the note differs from the last one."""
        log = (self.root / 'tree.db-wal').read_bytes()
        self._log_seen = [size for size in self._log_seen if self._log_durable <= size < len(log)] + [len(log)]
        names = {path: self._state(path, node) for path, node in self._names.items()}
        durable = {path: self._state(path, node) for path, node in self._durable_names.items()}
        objects = sorted((entry.path, entry.stat().st_ino) for entry in _files(self.root / 'bucket/contexts'))
        note = self._note()
        now = (names, durable, len(log), self._log_durable, objects, note)
        if now == self._last:
            return
        self._last = now
        bucket = self.root / f'bucket.{len(self.instants)}'
        shutil.copytree(self.root / 'bucket', bucket, copy_function=os.link)
        self.instants.append(Instant(step, names, durable, (self.root / 'tree.db').read_bytes(), log,
                                     tuple(sorted({self._log_durable, *self._log_seen})), bucket, note))

    def _state(self, path: str, node: Node) -> FileState:
        if self._names.get(path) is node:
            data = Path(self._staging + path).read_bytes()
        else:
            data = self._orphans.get(id(node), node.durable or b'')
        return FileState(data, node.durable, node.was_cut)

    # --- system calls -------------------------------------------------------------------------------------------------------------

    @contextmanager
    def recording(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ('open', 'close', 'dup', 'write', 'pwrite', 'ftruncate', 'copy_file_range', 'fsync', 'rename', 'unlink'):
                patch.setattr(os, name, self._wrapped(name, getattr(os, name)))
            patch.setattr(staging_module, 'sync_file_system', lambda path: self._sync_all())
            yield

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        after = getattr(self, f'_after_{name}', self._after_change)

        def call(*args: Any, **options: Any) -> Any:
            if name in ('rename', 'unlink'):
                self._before_name_goes(str(args[-1]))
            elif name == 'fsync':
                self.instant('before an fsync')
            result = real(*args, **options)
            if after(result, *args):
                self.instant(f'{name} {args[0] if isinstance(args[0], str) else self._called(args[0])}')
            return result
        return call

    def _path(self, path: object) -> str | None:
        text = str(path)
        return text[len(self._staging):] if text.startswith(self._staging) else None

    def _called(self, fd: int) -> str:
        node = self._nodes.get(fd)
        return next((path for path, other in self._names.items() if other is node), '?')

    def _before_name_goes(self, path: str) -> None:
        node = self._names.get(self._path(path) or '')
        if node is not None:
            self._orphans[id(node)] = Path(path).read_bytes()

    def _after_open(self, fd: int, path: object, flags: int, *_: Any) -> bool:
        name = self._path(path)
        if name is None or flags & os.O_DIRECTORY:
            return False
        is_new = name not in self._names
        if is_new:
            self._names[name] = Node()
        self._nodes[fd] = self._names[name]
        return is_new

    def _after_close(self, _: None, fd: int) -> bool:
        self._nodes.pop(fd, None)
        return False

    def _after_dup(self, new: int, fd: int) -> bool:
        if fd in self._nodes:
            self._nodes[new] = self._nodes[fd]
        return False

    def _after_change(self, _: object, fd: int, *__: Any) -> bool:
        return fd in self._nodes

    def _after_copy_file_range(self, _: int, __: int, target: int, *___: Any) -> bool:
        return target in self._nodes

    def _after_ftruncate(self, _: None, fd: int, size: int) -> bool:
        node = self._nodes.get(fd)
        if node is not None and node.durable is not None and size < len(node.durable):
            node.was_cut = True
        return node is not None

    def _after_fsync(self, _: None, fd: int) -> bool:
        path = os.readlink(f'/proc/self/fd/{fd}')
        if path.endswith('tree.db-wal'):
            self._log_durable = os.fstat(fd).st_size
        elif fd in self._nodes:
            self._sync_file(self._nodes[fd], Path(path).read_bytes())
        elif os.path.isdir(path) and (path + '/').startswith(self._staging):
            self._sync_names(f'{path}/'[len(self._staging):])
        return True

    def _sync_file(self, node: Node, data: bytes) -> None:
        node.durable, node.was_cut = data, False

    def _sync_names(self, directory: str) -> None:
        kept = {path: node for path, node in self._durable_names.items() if os.path.dirname(path) != directory.rstrip('/')}
        self._durable_names = kept | {path: node for path, node in self._names.items() if os.path.dirname(path) == directory.rstrip('/')}

    def _sync_all(self) -> None:
        for path, node in self._names.items():
            self._sync_file(node, Path(self._staging + path).read_bytes())
        self._durable_names = dict(self._names)
        self._log_durable = (self.root / 'tree.db-wal').stat().st_size
        self.instant('syncfs')

    def _after_rename(self, _: None, old: object, new: object) -> bool:
        source, target = self._path(old), self._path(new)
        if source is not None:
            node = self._names.pop(source)
            if target is not None:
                self._names[target] = node
        return source is not None

    def _after_unlink(self, _: None, path: object) -> bool:
        name = self._path(path)
        return name is not None and self._names.pop(name, None) is not None


# --- disks -------------------------------------------------------------------------------------------------------------------------

def disks(instant: Instant) -> Iterator[Disk]:
    """Those that a power cut at this instant may leave, each once."""
    seen = set()
    for how, names, choose in (('all of it', instant.names, _all), ('what was fsynced', instant.names, _durable),
                               ('zeros', instant.names, _zeros), ('a part', instant.names, _part),
                               ('old names', instant.durable_names, _durable), ('old names, all bytes', instant.durable_names, _all)):
        chosen = {path: choose(state) for path, state in names.items()}
        files = {path: data for path, (data, _) in chosen.items()}
        holes = {path: start for path, (data, start) in chosen.items() if start < len(data)}
        for log_size in instant.log_sizes:
            key = hashlib.sha256(repr((sorted(files.items()), sorted(holes.items()), log_size)).encode()).digest()
            if key not in seen:
                seen.add(key)
                yield Disk(f'{how}, log of {log_size}', files, holes, log_size)


def _all(state: FileState) -> tuple[bytes, int]:
    return state.now, len(state.now)


def _durable(state: FileState) -> tuple[bytes, int]:
    data = state.durable or b''
    return data, len(data)


def _zeros(state: FileState) -> tuple[bytes, int]:
    """The size that it has now, and from the first byte on that was not fsynced, zeros. What was overwritten in place has its old bytes."""
    if state.is_durable:
        return _all(state)
    kept = b'' if state.durable is None or state.was_cut else state.durable[:len(state.now)]
    return kept + bytes(len(state.now) - len(kept)), len(kept)


def _part(state: FileState) -> tuple[bytes, int]:
    if state.is_durable:
        return _all(state)
    kept = b'' if state.durable is None or state.was_cut else state.durable
    data = state.now[:(len(kept) + len(state.now)) // 2] if len(state.now) > len(kept) else state.now
    return data, len(data)


def make(instant: Instant, disk: Disk, root: Path) -> None:
    """Write the disk's files below `root`, a new directory, with the bucket as it was."""
    root.mkdir()
    (root / 'tree.db').write_bytes(instant.database)
    (root / 'tree.db-wal').write_bytes(instant.log[:disk.log_size])
    (root / 'staging').mkdir(mode=0o700)
    for path, data in disk.files.items():
        target = root / 'staging' / path
        target.parent.mkdir(mode=0o700, exist_ok=True)
        with open(target, 'wb') as file:
            file.write(data[:disk.holes.get(path, len(data))])
            file.truncate(len(data))
    # by links, because an object's etag in a directory store is its file's inode, size and time
    shutil.copytree(instant.bucket, root / 'bucket', copy_function=os.link)
