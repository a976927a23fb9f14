"""The files of the block cache: their names, and how one comes to its place, whole, and is opened.

Owns the layout of the cache directory beside its database: 256 directories, each made when the first file needs it, and in them files whose names
say which entry they are. It must not know keys, versions, the database or what a file's bytes should be.

    12/12345678…-SIZE-MTIME-RANDOM      the entry's hash in hex; the file's size; its mtime in ns, or 0 where that does not matter

All are compared when a file is opened: one that was torn by a crash or written after its adoption, or a row that points astray, is none.
(File systems that write data before the new size, as ext4, XFS and btrfs do, leave a torn file short.) Nothing is fsynced.
"""
from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple, TypeVar

from ctxfs.storage.block_sums import RecentSums, read_exactly, stamp_of, sums_of_file

T = TypeVar('T')

#: in the name of a cache directory that is being removed
BROKEN = '.broken-'

#: a name that could lead anywhere else is none
_NAME = re.compile(r'([0-9a-f]{2})/(\1[0-9a-f]{30})-(0|[1-9][0-9]{0,18})-(-?[0-9]{1,20})-[0-9a-f]{12}')


class Placed(NamedTuple):
    """A file that lies at `name` below the cache directory, with the sums of its blocks."""
    name: str
    size: int
    sums: bytes


class Opened(NamedTuple):
    """An open cache file. The receiver closes fd; eviction does not hurt it."""
    fd: int
    status: os.stat_result


class CachedRange(NamedTuple):
    """`length` bytes of a block at `offset` of the open file `fd`. The receiver closes fd; eviction does not hurt it."""
    fd: int
    offset: int
    length: int


class FoundBlock:
    """A block that is here, open; whether its bytes are right is known when BlockCache.compare says so. `close` it."""

    __slots__ = ('fd', 'offset', 'length', 'is_compared', 'key', 'name', 'block', 'sums', 'stamp')

    def __init__(self, key: str, name: str, fd: int, *, block: int, offset: int, length: int, sums: bytes, stamp: tuple[int, ...]) -> None:
        self.key = key
        self.name = name
        self.fd = fd
        #: its number inside the file, which has one block or all
        self.block = block
        self.offset = offset
        self.length = length
        #: of all blocks of the file
        self.sums = sums
        #: of the file when it was opened, or compared
        self.stamp = stamp
        self.is_compared = False

    def is_trusted(self) -> bool:
        """It was compared, and nobody has written to the file since."""
        return self.is_compared and stamp_of(os.fstat(self.fd)) == self.stamp

    def read(self, within: int, size: int) -> bytes | None:
        """Exactly these bytes of the block; None where the file ends before. Raises OSError."""
        return read_exactly(self.fd, self.offset + within, size)

    def close(self) -> None:
        os.close(self.fd)


class AdoptFile(NamedTuple):
    """A file on this disk whose content is the version `etag` of `key`, and that nobody will write again."""
    path: str
    key: str
    etag: str
    size: int


def new_name(entry: bytes, size: int, mtime_ns: int = 0) -> str:
    # Random at the end: a second copy of an entry must not share the file that the first one's eviction unlinks.
    digest = entry.hex()
    return f'{digest[:2]}/{digest}-{size}-{mtime_ns}-{secrets.token_hex(6)}'


def entry_of(name: str) -> bytes | None:
    """The entry whose file has this name; None where it is no name of a cache file."""
    match = _NAME.fullmatch(name)
    return bytes.fromhex(match[2]) if match else None


def put_in_place(path: str, put: Callable[[], T]) -> T:
    """`put`, which makes the file `path`; with its directory, where that is not there yet: all 256 of them would cost a first mount more than
    anything else that it does on the disk. Raises what `put` raises, and FileNotFoundError where the cache is gone."""
    try:
        return put()
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mkdir(os.path.dirname(path), 0o700)
        return put()


def open_file(directory: str, name: str, entry: bytes) -> Opened | None:
    """The file, if it is what its name says and the name is the entry's; None for anything else, also for a file that is gone. Raises
    OSError where that cannot be told now."""
    match = _NAME.fullmatch(name)
    if match is None or match[2] != entry.hex():
        return None
    try:
        # O_NONBLOCK: a fifo in its place must not stop the reader
        fd = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):     # evicted since, lost, or something else in its place
            return None
        raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size != int(match[3]) or match[4] not in ('0', str(status.st_mtime_ns)):
        os.close(fd)
        return None
    return Opened(fd, status)


def remove(directory: str, name: str) -> None:
    """Unlink a cache file; nothing for any other name. Keeps the directory: another process may be about to put a file into it."""
    if entry_of(name) is not None:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, name))


def write_file(path: str, data: memoryview) -> None:
    fd = put_in_place(path, lambda: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        written = 0
        while written < len(data):
            written += os.write(fd, data[written:])
    finally:
        os.close(fd)


def take_in(directory: str, entry: bytes, source: str, size: int, recent: RecentSums | None) -> Placed | None:
    """Give a file a second name in the cache (a copy where it cannot have one). It is read for its sums, unless they are in `recent`.
    None, and nothing is left, where it is gone, has another size or is written to meanwhile. Raises OSError: no room, a bad disk."""
    try:
        before = os.stat(source)
    except FileNotFoundError:
        return None
    name = new_name(entry, size, before.st_mtime_ns)
    path = os.path.join(directory, name)
    try:
        try:
            put_in_place(path, lambda: os.link(source, path))
        except FileNotFoundError:
            return None
        except OSError:     # EXDEV, EMLINK, EPERM: another file system, or one without links
            shutil.copyfile(source, path)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        found = (recent and recent.take(source, size, before.st_mtime_ns)) or _sums(path, size)
        after = os.stat(path)
    except BaseException:
        remove(directory, name)
        raise
    if found is None or (after.st_size, after.st_mtime_ns) != (size, before.st_mtime_ns):
        remove(directory, name)
        return None
    return Placed(name, size, found)


def _sums(path: str, size: int) -> bytes | None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return sums_of_file(fd, size)
    finally:
        os.close(fd)


def older_than(directory: str, seconds: float) -> Iterator[tuple[str, str]]:
    """(name, path) of all files whose inode last changed before `seconds` since the epoch, whoever put them there."""
    for number in range(256):
        with suppress(FileNotFoundError):
            for file in os.scandir(os.path.join(directory, f'{number:02x}')):
                if file.stat(follow_symlinks=False).st_ctime < seconds:
                    yield f'{number:02x}/{file.name}', file.path


def remove_any(path: str) -> bool:
    """Unlink whatever it is, but a directory. Whether it was there."""
    try:
        os.unlink(path)
    except (FileNotFoundError, IsADirectoryError):
        return False
    return True


def throw_away(directory: str) -> None:
    """Move the directory aside first: who has it open keeps reading what it opened, and nobody mixes old files with a new database."""
    with suppress(FileNotFoundError):
        shutil.rmtree(move_aside(directory), ignore_errors=True)


def move_aside(directory: str) -> str:
    """Where it is now, to be removed. Raises OSError."""
    aside = f'{directory}{BROKEN}{secrets.token_hex(4)}'
    os.rename(directory, aside)
    return aside
