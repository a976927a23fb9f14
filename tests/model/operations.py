"""The operations of the model: one function per verb, each a few system calls below one root directory.

Owns the verbs, their arguments and what they answer. An operation is `(verb, *arguments)`; `perform(side, operation)` runs it and
returns its `Outcome`: a comparable value or an errno. It must not know that there are two sides. Paths are bytes relative to the root;
`slot` numbers name open handles that later operations use.
"""
from __future__ import annotations

import errno
import mmap
import os
import random
import stat
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.model import syscalls

Operation = tuple[Any, ...]


class Outcome(NamedTuple):
    """What a program saw: `error` is the errno's name or None; `value` is comparable between two file systems."""
    error: str | None
    value: Any

    def __str__(self) -> str:
        return self.error or f'{self.value!r:.200}'


class Side:
    """One directory that operations are performed in, and the handles that are open below it."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.handles: dict[int, int] = {}

    def at(self, path: bytes) -> bytes:
        return os.path.join(self.root, path)

    def close_all(self) -> None:
        for slot in list(self.handles):
            os.close(self.handles.pop(slot))


VERBS: dict[str, Callable[..., Any]] = {}


def _verb(function: Callable[..., Any]) -> Callable[..., Any]:
    VERBS[function.__name__.rstrip('_')] = function
    return function


def perform(side: Side, operation: Operation) -> Outcome:
    try:
        return Outcome(None, VERBS[operation[0]](side, *operation[1:]))
    except OSError as e:
        return Outcome(errno.errorcode.get(e.errno or 0, str(e)), None)


def content(size: int, seed: int) -> bytes:
    """`size` bytes that depend on the seed, without NUL, so that a hole can never be mistaken for them."""
    block = random.Random(seed).randbytes(257).replace(b'\0', b'\1')
    return (block * (size // 257 + 1))[:size]


# -- handles -----------------------------------------------------------------------------------------------------------------------

@_verb
def open_(side: Side, slot: int, path: bytes, flags: int, mode: int) -> None:
    fd = os.open(side.at(path), flags | os.O_CLOEXEC, mode)
    close(side, slot)
    side.handles[slot] = fd


@_verb
def close(side: Side, slot: int) -> None:
    if slot in side.handles:
        os.close(side.handles.pop(slot))


@_verb
def write(side: Side, slot: int, size: int, seed: int) -> int:
    return os.write(side.handles[slot], content(size, seed))


@_verb
def pwrite(side: Side, slot: int, offset: int, size: int, seed: int) -> int:
    return os.pwrite(side.handles[slot], content(size, seed), offset)


@_verb
def read(side: Side, slot: int, size: int) -> bytes:
    return os.read(side.handles[slot], size)


@_verb
def pread(side: Side, slot: int, offset: int, size: int) -> bytes:
    return os.pread(side.handles[slot], size, offset)


@_verb
def lseek(side: Side, slot: int, offset: int, whence: int) -> int:
    return os.lseek(side.handles[slot], offset, whence)


@_verb
def ftruncate(side: Side, slot: int, size: int) -> None:
    os.ftruncate(side.handles[slot], size)


@_verb
def fsync(side: Side, slot: int) -> None:
    os.fsync(side.handles[slot])


@_verb
def fdatasync(side: Side, slot: int) -> None:
    os.fdatasync(side.handles[slot])


@_verb
def fchmod(side: Side, slot: int, mode: int) -> None:
    os.fchmod(side.handles[slot], mode)


@_verb
def fchown(side: Side, slot: int, uid: int, gid: int) -> None:
    os.fchown(side.handles[slot], uid, gid)


@_verb
def futimens(side: Side, slot: int, mtime_ns: int) -> None:
    os.utime(side.handles[slot], ns=(mtime_ns, mtime_ns))


@_verb
def mmap_write(side: Side, slot: int, offset: int, size: int, seed: int) -> int:
    """Write through a shared mapping of the whole file; answers how many bytes fitted."""
    fd = side.handles[slot]
    length = os.fstat(fd).st_size
    if length == 0:
        return 0
    with mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        piece = content(size, seed)[:max(0, length - offset)]
        mapped[offset:offset + len(piece)] = piece
        return len(piece)


@_verb
def copy_range(side: Side, source: int, target: int, size: int, from_offset: int, to_offset: int) -> int:
    done = 0
    while done < size:
        n = os.copy_file_range(side.handles[source], side.handles[target], size - done, from_offset + done, to_offset + done)
        if n == 0:
            break
        done += n
    return done


# -- paths -------------------------------------------------------------------------------------------------------------------------

@_verb
def write_file(side: Side, path: bytes, size: int, seed: int) -> None:
    # O_NONBLOCK: the path may be a fifo that nobody reads, which is ENXIO then instead of waiting for ever.
    fd = os.open(side.at(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        os.write(fd, content(size, seed))
    finally:
        os.close(fd)


@_verb
def save_durably(side: Side, path: bytes, size: int, seed: int) -> None:
    """As write_file, with fsync(2) before the close."""
    fd = os.open(side.at(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, content(size, seed))
        os.fsync(fd)
    finally:
        os.close(fd)


@_verb
def read_whole(side: Side, path: bytes) -> bytes:
    with open(side.at(path), 'rb') as f:
        return f.read()


@_verb
def patch(side: Side, path: bytes, offset: int, size: int, seed: int) -> None:
    """Open, overwrite a part, close."""
    fd = os.open(side.at(path), os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(fd, content(size, seed), offset)
    finally:
        os.close(fd)


@_verb
def truncate(side: Side, path: bytes, size: int) -> None:
    # Whether the size that a file has already changes its times is up to the file system and its version; the kernel does not tell a FUSE
    # daemon that keeps the kernel's writeback cache.
    found = os.stat(side.at(path))
    if not stat.S_ISREG(found.st_mode) or found.st_size != size:
        os.truncate(side.at(path), size)


@_verb
def mkdir(side: Side, path: bytes, mode: int) -> None:
    os.mkdir(side.at(path), mode)


@_verb
def rmdir(side: Side, path: bytes) -> None:
    os.rmdir(side.at(path))


@_verb
def unlink(side: Side, path: bytes) -> None:
    os.unlink(side.at(path))


@_verb
def rename(side: Side, source: bytes, target: bytes) -> None:
    os.rename(side.at(source), side.at(target))


@_verb
def renameat2(side: Side, source: bytes, target: bytes, flags: int) -> None:
    syscalls.renameat2(side.at(source), side.at(target), flags)


@_verb
def link(side: Side, source: bytes, target: bytes) -> None:
    os.link(side.at(source), side.at(target), follow_symlinks=False)


@_verb
def symlink(side: Side, target: bytes, path: bytes) -> None:
    os.symlink(target, side.at(path))


@_verb
def readlink(side: Side, path: bytes) -> bytes:
    return os.readlink(side.at(path))


@_verb
def chmod(side: Side, path: bytes, mode: int) -> None:
    os.chmod(side.at(path), mode)


@_verb
def chown(side: Side, path: bytes, uid: int, gid: int) -> None:
    os.lchown(side.at(path), uid, gid)


@_verb
def utimens(side: Side, path: bytes, mtime_ns: int, follow: bool) -> None:
    os.utime(side.at(path), ns=(mtime_ns, mtime_ns), follow_symlinks=follow)


@_verb
def mkfifo(side: Side, path: bytes, mode: int) -> None:
    os.mkfifo(side.at(path), mode)


@_verb
def mknod(side: Side, path: bytes, mode: int) -> None:
    """A regular file by mknod(2), as old programs and NFS servers make them."""
    os.mknod(side.at(path), stat.S_IFREG | mode)


@_verb
def bind_socket(side: Side, path: bytes) -> None:
    """A socket file by mknod: bind(2) takes 108 bytes of path, too few for names of 255."""
    os.mknod(side.at(path), stat.S_IFSOCK | 0o755)


@_verb
def stat_(side: Side, path: bytes) -> tuple[int, int, int]:
    st = os.stat(side.at(path))
    return stat.S_IFMT(st.st_mode), stat.S_IMODE(st.st_mode), 0 if stat.S_ISDIR(st.st_mode) else st.st_size


@_verb
def listdir(side: Side, path: bytes) -> list[bytes]:
    return sorted(os.listdir(side.at(path)))


@_verb
def list_names(side: Side, path: bytes) -> list[bytes]:
    """Every name that readdir gives, with repetitions: `.` and `..` once each, and no name twice."""
    with syscalls.DirectoryStream(side.at(path)) as stream:
        return sorted(stream)


@_verb
def empty_while_listing(side: Side, path: bytes) -> list[bytes]:
    """Unlink each entry as soon as readdir names it: each must be named exactly once."""
    seen = []
    with os.scandir(side.at(path)) as entries:
        for entry in entries:
            seen.append(entry.name)
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
    return sorted(seen)


@_verb
def fsync_directory(side: Side, path: bytes) -> None:
    fd = os.open(side.at(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@_verb
def statfs(side: Side) -> bool:
    st = os.statvfs(side.root)
    return st.f_bsize > 0 and st.f_blocks >= st.f_bfree >= st.f_bavail > 0 and st.f_namemax == 255
