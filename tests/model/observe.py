"""What two trees must have in common: a snapshot of a directory in comparable values, and the differences of two snapshots.

Owns the list of what counts and of what does not: access times, block counts, the sizes of directories and inode numbers differ
between file systems and are not compared; modification times are where they are deterministic (see `differences`). It must not know
which side is the mount.
"""
from __future__ import annotations

import os
import stat
from typing import NamedTuple


class Entry(NamedTuple):
    """One name. `links`: the first path, in order, that has the same inode, so that groups of hard links are compared, not counts
    alone. `content`: bytes of a regular file, target of a symlink, device number."""
    type: int
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    links: bytes
    mtime_ns: int
    content: bytes | int | None


Tree = dict[bytes, Entry]


def snapshot(root: bytes) -> Tree:
    """All of a directory but the root's own attributes. Raises AssertionError where the file system contradicts itself."""
    tree: Tree = {}
    first: dict[tuple[int, int], bytes] = {}
    pending = [b'']
    while pending:
        directory = pending.pop()
        with os.scandir(os.path.join(root, directory)) as entries:
            found = sorted(entries, key=lambda e: e.name)
        names = [e.name for e in found]
        assert len(names) == len(set(names)), f'{directory!r} lists a name twice: {names}'
        for listed in found:
            path = os.path.join(directory, listed.name)
            tree[path] = _entry(listed, path, first)
            if listed.is_dir(follow_symlinks=False):
                pending.append(path)
    smallest: dict[bytes, bytes] = {}
    for path, entry in tree.items():
        smallest[entry.links] = min(smallest.get(entry.links, path), path)
    return {path: entry._replace(links=smallest[entry.links]) for path, entry in tree.items()}


def _entry(listed: os.DirEntry[bytes], path: bytes, first: dict[tuple[int, int], bytes]) -> Entry:
    st = os.lstat(listed.path)
    kind = stat.S_IFMT(st.st_mode)
    assert listed.inode() == st.st_ino, f'{path!r}: readdir says inode {listed.inode()}, lstat {st.st_ino}'
    assert (listed.is_dir(follow_symlinks=False), listed.is_symlink()) == (kind == stat.S_IFDIR, kind == stat.S_IFLNK), path
    return Entry(kind, stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, st.st_nlink, 0 if kind == stat.S_IFDIR else st.st_size,
                 first.setdefault((st.st_dev, st.st_ino), path), st.st_mtime_ns, _content(listed.path, st))


def _content(path: bytes, st: os.stat_result) -> bytes | int | None:
    if stat.S_ISREG(st.st_mode):
        with open(path, 'rb') as f:
            data = f.read()
        assert len(data) == st.st_size, f'{path!r}: stat says {st.st_size} bytes, {len(data)} can be read'
        assert st.st_blocks * 512 <= st.st_size + (1 << 20), f'{path!r}: {st.st_blocks} blocks for {st.st_size} bytes'
        return data
    if stat.S_ISLNK(st.st_mode):
        return os.readlink(path)
    return st.st_rdev if stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode) else None


def differences(got: Tree, want: Tree, *, since_ns: int | None = None, directory_times: bool = True) -> list[str]:
    """Lines that say how `got` differs from `want`; empty where they agree.

    With `since_ns` (the model against the mount): a modification time that `want` has from before it, or from more than an hour after
    it, was set by utimensat and must be equal; any other is a time of "now", of which two file systems have one each, so it must
    only lie in the same hour. Without: equal, for directories only where `directory_times`.
    """
    lines = [f'{path!r}: {"missing" if path not in got else "should not be there"}' for path in sorted(got.keys() ^ want.keys())]
    for path in sorted(got.keys() & want.keys()):
        mine, theirs = got[path], want[path]
        lines += [_field_differs(path, field, a, b)
                  for field, a, b in zip(Entry._fields, mine, theirs, strict=True) if field != 'mtime_ns' and a != b]
        if not _times_agree(mine, theirs, since_ns, directory_times):
            lines.append(f'{path!r}: mtime_ns is {mine.mtime_ns}, should be {theirs.mtime_ns}')
    return lines


def _times_agree(mine: Entry, theirs: Entry, since_ns: int | None, directory_times: bool) -> bool:
    if since_ns is None:
        return mine.mtime_ns == theirs.mtime_ns or (theirs.type == stat.S_IFDIR and not directory_times)
    # A second of slack: the clock that stamps files is the kernel's coarse one, which runs behind time.time_ns().
    now = range(since_ns - 10**9, since_ns + 3600 * 10**9)
    return mine.mtime_ns in now if theirs.mtime_ns in now else mine.mtime_ns == theirs.mtime_ns


def _short(value: object) -> str:
    if not isinstance(value, bytes) or len(value) <= 60:
        return f'{value:#o}' if isinstance(value, int) and value < 1 << 20 else repr(value)
    return f'{len(value)} bytes {value[:24]!r}…'


def _field_differs(path: bytes, field: str, mine: object, theirs: object) -> str:
    line = f'{path!r}: {field} is {_short(mine)}, should be {_short(theirs)}'
    if isinstance(mine, bytes) and isinstance(theirs, bytes):
        at = next((i for i, (a, b) in enumerate(zip(mine, theirs)) if a != b), min(len(mine), len(theirs)))
        line += f' (from byte {at} on: {mine[at:at + 16]!r}, should be {theirs[at:at + 16]!r})'
    return line


def handle_state(fd: int, readable: bool) -> tuple[int, int, int, int, int, bytes | None]:
    """What an open handle shows of its file: mode with type, nlink, uid, gid, size, content."""
    st = os.fstat(fd)
    data = os.pread(fd, st.st_size + 1, 0) if readable and stat.S_ISREG(st.st_mode) else None
    return st.st_mode, st.st_nlink, st.st_uid, st.st_gid, 0 if stat.S_ISDIR(st.st_mode) else st.st_size, data
