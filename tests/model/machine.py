"""The state machine: hypothesis draws operations and applies them to a World.

Owns the distribution: names that collide, paths that mostly exist, few and cheap upheavals. It must not know what an operation does.
A drawn path is a choice ("the third known path", "a new name in the second directory") that is resolved against the local directory,
so that most operations hit something; the trace holds resolved operations only.
"""
from __future__ import annotations

import os
import stat
from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.model import syscalls
from tests.model.operations import Operation
from tests.model.world import World

MAX_DEPTH = 3       # three names of 255 bytes below `contexts/{id}/` still are a key of less than 1,023 bytes
MAX_UPHEAVALS = 3   # each costs seconds; the operations between them cost milliseconds
SLOTS = 4

NAMES = (b'a', b'b', b'c', b'd', b'dir', b'file.txt', b'\xff\xfe', b'new\nline', '\u201bFF'.encode(), b'%41+ &?#', b'L' * 255,
         'ünï ☃'.encode(), b'\x01\x7f', b'back\\slash', b' ', b'a.')
MODES = (0o644, 0o600, 0o755, 0o700, 0o000, 0o777, 0o666, 0o4755, 0o2755, 0o1777, 0o6711, 0o2640)
SIZES = (0, 1, 5, 100, 4095, 4096, 4097, 70_000, 131_073)
OFFSETS = (0, 1, 7, 4096, 10_000, 131_072, 1_048_575, 1_048_576, 3_000_001)
LENGTHS = (0, 1, 50, 4096, 5000, 131_072, 1_048_577, 4_200_000)
TIMES = (0, 1, 1_000_000_000_123_456_789, 1_234_567_890_000_000_001, -1_000_000_001, 4_300_000_000_987_654_321)
IDS = (0, 1000, 65534, -1)
FLAGS = (os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_EXCL,
         os.O_RDWR | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_APPEND, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_TRUNC,
         os.O_RDONLY | os.O_CREAT, os.O_RDONLY | os.O_CREAT | os.O_EXCL, os.O_RDONLY | os.O_DIRECTORY, os.O_RDWR | os.O_NOFOLLOW,
         os.O_RDWR | os.O_CREAT | os.O_DSYNC, os.O_RDONLY | os.O_TRUNC)

names = st.sampled_from(NAMES)
index = st.integers(0, 31)
#: ('known', i) | ('child', i, name): resolved by StateMachine._path
existing = st.one_of(st.tuples(st.just('known'), index), st.tuples(st.just('known'), index), st.tuples(st.just('child'), index, names))
fresh = st.one_of(st.tuples(st.just('child'), index, names), st.tuples(st.just('child'), index, names), existing)
slots = st.integers(0, SLOTS - 1)
seeds = st.integers(0, 99)
modes, sizes, offsets, lengths, times = map(st.sampled_from, (MODES, SIZES, OFFSETS, LENGTHS, TIMES))
ids = st.sampled_from(IDS)

Choice = tuple

SMALL_TREE: list[Operation] = [
    ('mkdir', b'dir', 0o755), ('write_file', b'dir/a', 70_000, 1), ('write_file', b'file.txt', 100, 2), ('mkdir', b'dir/c', 0o700),
    ('symlink', b'dir/a', b'c'), ('link', b'dir/a', b'b'), ('write_file', b'dir/c/\xff\xfe', 4097, 3),
    ('open', 0, b'dir/a', os.O_RDWR, 0), ('open', 1, b'dir/new\nline', os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), ('statfs',)]

with_handle = precondition(lambda self: bool(self.world.local.handles))


class StateMachine(RuleBasedStateMachine):
    """`new_world` is set by the test: it makes the World of one example."""
    new_world: Callable[[], World]

    def __init__(self) -> None:
        super().__init__()
        self.world = type(self).new_world()
        self.upheavals = 0
        self.last_upheaval = 0
        self.failed = False

    def teardown(self) -> None:
        try:
            self.world.close()
        except Exception:
            # The first error is the one to show: after it the mount may well be beyond an orderly end.
            if not self.failed:
                raise

    # -- from choices to operations ------------------------------------------------------------------------------------------------

    def _path(self, choice: Choice) -> bytes:
        known = sorted(self.world.known)
        if choice[0] == 'known':
            return known[choice[1] % len(known)] if known else b'a'
        # One parent in eight may be anything, for ENOTDIR; the others are directories that leave room for one more level.
        parents = [b'', *(p for p in known if (stat.S_ISDIR(self.world.known[p].type) or choice[1] % 8 == 7) and _depth(p) < MAX_DEPTH)]
        return os.path.join(parents[choice[1] % len(parents)], choice[2])

    def _height(self, path: bytes) -> int:
        return max((_depth(p) - _depth(path) for p in self.world.known if p.startswith(path + b'/')), default=0)

    def _is_too_deep(self, source: bytes, target: bytes) -> bool:
        return _depth(target) + self._height(source) > MAX_DEPTH

    def _apply(self, *operation: object) -> None:
        op: Operation = operation
        try:
            self.world.apply(op)
        except BaseException:
            self.failed = True
            raise

    def _slot(self, choice: int) -> int:
        is_open = sorted(self.world.local.handles)
        return is_open[choice % len(is_open)]

    def _is_regular(self, slot: int) -> bool:
        return stat.S_ISREG(os.fstat(self.world.local.handles[slot]).st_mode)

    @initialize(populated=st.integers(0, 3))
    def populate(self, populated: int) -> None:
        """Three examples of four start with a tree and two open handles."""
        for operation in SMALL_TREE if populated else ():
            self._apply(*operation)

    # -- handles -------------------------------------------------------------------------------------------------------------------

    @rule(slot=slots, where=fresh, flags=st.sampled_from(FLAGS), mode=modes)
    def open(self, slot: int, where: Choice, flags: int, mode: int) -> None:
        # O_NONBLOCK: a fifo without a partner must not block; on any other file it means nothing.
        self._apply('open', slot, self._path(where), flags | os.O_NONBLOCK, mode)

    @with_handle
    @rule(slot=slots)
    def close(self, slot: int) -> None:
        self._apply('close', self._slot(slot))

    @with_handle
    @rule(slot=slots, offset=st.one_of(st.none(), offsets, offsets), size=sizes, seed=seeds)
    def write(self, slot: int, offset: int | None, size: int, seed: int) -> None:
        if offset is None:
            self._apply('write', self._slot(slot), size, seed)
        else:
            self._apply('pwrite', self._slot(slot), offset, size, seed)

    @with_handle
    @rule(slot=slots, offset=st.one_of(st.none(), offsets), size=sizes)
    def read(self, slot: int, offset: int | None, size: int) -> None:
        if offset is None:
            self._apply('read', self._slot(slot), size)
        else:
            self._apply('pread', self._slot(slot), offset, size)

    @with_handle
    @rule(slot=slots, offset=offsets, whence=st.sampled_from((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END)))
    def lseek(self, slot: int, offset: int, whence: int) -> None:
        if self._is_regular(self._slot(slot)):
            self._apply('lseek', self._slot(slot), offset, whence)

    @with_handle
    @rule(slot=slots, size=lengths)
    def ftruncate(self, slot: int, size: int) -> None:
        self._apply('ftruncate', self._slot(slot), size)

    @with_handle
    @rule(slot=slots, what=st.one_of(st.tuples(st.just('fchmod'), modes), st.tuples(st.just('fchown'), ids, ids),
                                     st.tuples(st.just('futimens'), times), st.tuples(st.sampled_from(('fsync', 'fdatasync')))))
    def change_handle(self, slot: int, what: tuple) -> None:
        self._apply(what[0], self._slot(slot), *what[1:])

    @with_handle
    @rule(slot=slots, offset=offsets, size=sizes, seed=seeds)
    def mmap_write(self, slot: int, offset: int, size: int, seed: int) -> None:
        if self._is_regular(self._slot(slot)):
            self._apply('mmap_write', self._slot(slot), offset, size, seed)

    @with_handle
    @rule(source=slots, into=slots, size=sizes, from_offset=offsets, to_offset=offsets)
    def copy_range(self, source: int, into: int, size: int, from_offset: int, to_offset: int) -> None:
        self._apply('copy_range', self._slot(source), self._slot(into), size, from_offset, to_offset)

    # -- files and names -----------------------------------------------------------------------------------------------------------

    @rule(where=fresh, size=sizes, seed=seeds)
    def write_file(self, where: Choice, size: int, seed: int) -> None:
        self._apply('write_file', self._path(where), size, seed)

    @rule(where=existing, size=lengths)
    def truncate(self, where: Choice, size: int) -> None:
        self._apply('truncate', self._path(where), size)

    @rule(where=fresh, mode=modes)
    def mkdir(self, where: Choice, mode: int) -> None:
        self._apply('mkdir', self._path(where), mode)

    @rule(where=existing, verb=st.sampled_from(('rmdir', 'unlink', 'unlink', 'empty_while_listing')))
    def remove(self, where: Choice, verb: str) -> None:
        self._apply(verb, self._path(where))

    @rule(source=existing, to=fresh)
    def rename(self, source: Choice, to: Choice) -> None:
        old, new = self._path(source), self._path(to)
        if not self._is_too_deep(old, new):
            self._apply('rename', old, new)

    @rule(source=existing, to=existing)
    def rename_over(self, source: Choice, to: Choice) -> None:
        self.rename(source, to)

    @rule(source=existing, name=names)
    def rename_into_itself(self, source: Choice, name: bytes) -> None:
        old = self._path(source)
        self._apply('rename', old, os.path.join(old, name))

    @rule(source=existing, to=fresh, flags=st.sampled_from((syscalls.RENAME_NOREPLACE, syscalls.RENAME_EXCHANGE, 3)))
    def renameat2(self, source: Choice, to: Choice, flags: int) -> None:
        old, new = self._path(source), self._path(to)
        if not (self._is_too_deep(old, new) or self._is_too_deep(new, old)):
            self._apply('renameat2', old, new, flags)

    @rule(source=existing, to=fresh)
    def link(self, source: Choice, to: Choice) -> None:
        self._apply('link', self._path(source), self._path(to))

    @rule(points_to=st.sampled_from((b'a', b'../missing/b', b'/missing/c', b'.', b'dir/file.txt', b'\xff\n', b'x' * 1000)), where=fresh)
    def symlink(self, points_to: bytes, where: Choice) -> None:
        self._apply('symlink', points_to, self._path(where))

    @rule(where=fresh, what=st.one_of(st.tuples(st.sampled_from(('mkfifo', 'mknod')), modes), st.just(('bind_socket',))))
    def make_special(self, where: Choice, what: tuple) -> None:
        self._apply(what[0], self._path(where), *what[1:])

    @rule(where=existing, what=st.one_of(st.tuples(st.just('chmod'), modes), st.tuples(st.just('chown'), ids, ids),
                                         st.tuples(st.just('utimens'), times, st.booleans())))
    def change_attributes(self, where: Choice, what: tuple) -> None:
        self._apply(what[0], self._path(where), *what[1:])

    @rule(where=existing, verb=st.sampled_from(('readlink', 'stat', 'listdir', 'list_names', 'fsync_directory')))
    def look(self, where: Choice, verb: str) -> None:
        self._apply(verb, self._path(where))

    # -- upheavals -----------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.upheavals < MAX_UPHEAVALS and len(self.world.trace) - self.last_upheaval > 5)
    @rule(what=st.one_of(st.just(('remount',)), st.tuples(st.just('other_host'), st.integers(0, 3)), st.just(('other_host', 0)),
                         st.tuples(st.just('kill9'), st.booleans())))
    def upheave(self, what: tuple) -> None:
        self.upheavals += 1
        self.last_upheaval = len(self.world.trace)
        self._apply(*what)


def _depth(path: bytes) -> int:
    return path.count(b'/') + 1
