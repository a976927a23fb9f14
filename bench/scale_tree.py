"""The tree of a context of very many files, made from numbers: nothing is kept, and any part of it is there at once.

Owns names, contents, modes, times and links: file N is always the same. It must not know servers; what a server says of an object, what the index
says and what `find` must print all follow from it. One in 25 is a symlink; modes and times differ from file to file and directory to directory.
"""

from __future__ import annotations

import hashlib
import random
import stat
from collections.abc import Iterator
from typing import NamedTuple

from ctxfs.records import Attrs, IndexRecord

#: files in a directory, directories in one above it
FILES, DIRECTORIES = 50, 20
LINK_EVERY = 25
SIZE_MIN, SIZE_SPREAD = 16, 900
BEGIN_NS = 1_600_000_000_000_000_000
_FILL = random.Random(1).randbytes(2 * SIZE_SPREAD)


class File(NamedTuple):
    """One of them: `path` is relative to the root, `mtime_ns` and `mode` as in stat; a symlink's body is its target."""

    path: str
    mode: int
    mtime_ns: int
    body: bytes

    @property
    def target(self) -> bytes | None:
        return self.body if stat.S_ISLNK(self.mode) else None

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.body, usedforsecurity=False).hexdigest()}"'


class Directory(NamedTuple):
    path: str
    mode: int
    mtime_ns: int


def path_of(number: int) -> str:
    """In the order of the numbers."""
    directory, file = divmod(number, FILES)
    above, below = divmod(directory, DIRECTORIES)
    return f'd{above:04}/s{below:02}/f{file:02}.txt'


def body_of(number: int) -> bytes:
    if number % LINK_EVERY == 0:
        return b'../s00/f%02d.txt' % (number % FILES + 1)
    size = SIZE_MIN + number * 7919 % SIZE_SPREAD
    return b'%08d\n' % number + _FILL[number % SIZE_SPREAD:][:size - 9]


def file(number: int) -> File:
    is_link = number % LINK_EVERY == 0
    mode = stat.S_IFLNK | 0o777 if is_link else stat.S_IFREG | (0o755 if number % 10 == 3 else 0o600 if number % 33 == 1 else 0o644)
    return File(path_of(number), mode, BEGIN_NS + number * 1_000_000_007, body_of(number))


def directories(count: int) -> Iterator[Directory]:
    """In the order of their paths."""
    for number in range(0, count, FILES):
        above, below, _ = path_of(number).split('/')
        if number % (FILES * DIRECTORIES) == 0:
            yield Directory(f'{above}/', stat.S_IFDIR | 0o755, BEGIN_NS + number + 1)
        yield Directory(f'{above}/{below}/', stat.S_IFDIR | (0o700 if number // FILES % 7 == 3 else 0o755), BEGIN_NS + number * 3 + 2)


def records(count: int, *, uid: int, gid: int) -> Iterator[IndexRecord]:
    """As the index has them, in the order of directories, then files."""
    for directory in directories(count):
        yield IndexRecord(path=directory.path, changed_ns=BEGIN_NS, attrs=_attrs(directory.mode, directory.mtime_ns, uid, gid))
    for number in range(count):
        one = file(number)
        yield IndexRecord(path=one.path, changed_ns=BEGIN_NS, etag=one.etag, size=len(one.body),
                          attrs=_attrs(one.mode, one.mtime_ns, uid, gid, one.target))


def _attrs(mode: int, mtime_ns: int, uid: int, gid: int, target: bytes | None = None) -> Attrs:
    return Attrs(mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, atime_ns=mtime_ns, ctime_ns=mtime_ns, target=target)


#: what `find` prints of each path below the root: name, mode, size, mtime, target
PRINTF = '%P\\t%m %s %T@ %l\\n'


def printed(count: int) -> Iterator[str]:
    """The lines of `find -mindepth 1 -printf PRINTF`, in no order; a directory's size is left out, for it is nobody's promise."""
    for directory in directories(count):
        yield f'{directory.path[:-1]}\t{stat.S_IMODE(directory.mode):o} {_seconds(directory.mtime_ns)} '
    for number in range(count):
        one = file(number)
        yield f'{one.path}\t{stat.S_IMODE(one.mode):o} {len(one.body)} {_seconds(one.mtime_ns)} {(one.target or b"").decode()}'


def _seconds(ns: int) -> str:
    """find prints ten digits behind the point."""
    return f'{ns // 10**9}.{ns % 10**9:09}0'


def differences(said: str, count: int) -> list[str]:
    """What `find` printed and should not have, or did not print: at most three lines of each."""
    expected = set(printed(count))
    found = set()
    for line in said.splitlines():
        name, _, rest = line.partition('\t')
        fields = rest.split(' ', 2)
        found.add(line if '.txt' in name or len(fields) < 3 else f'{name}\t{fields[0]} {fields[2]}')
    return [f'{what}: {line}' for what, lines in (('printed', found - expected), ('missing', expected - found)) for line in sorted(lines)[:3]]
