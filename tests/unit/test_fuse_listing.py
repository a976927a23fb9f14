"""Entries that the library writes: what the kernel would read of them, byte by byte (linux/fuse.h), without a mount."""
from __future__ import annotations

import ctypes
import itertools
import stat
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

import pytest
import trio

from ctxfs.core.handles import LARGE, PAGE, DirHandle, LastListings, Listing
from ctxfs.core.listed_entries import MOST, ListedEntries
from ctxfs.edge import fuse_listing, fuse_ops
from ctxfs.errors import StaleHandle
from ctxfs.records import ROOT_INO, Ino
from ctxfs.storage.inode import Content, Inode
from ctxfs.storage.tree_db import TreeDB
from tests.unit.rig import Disk

pytestmark = pytest.mark.skipif(not fuse_ops.is_loaded(), reason='the library was not built')

#: struct fuse_entry_out with its fuse_attr, and struct fuse_dirent without its name
_ENTRY = Struct('=QQQQII' 'QQQQQQ' 'IIIIIIIIII')
_DIRENT = Struct('=QQII')
TIMES = 1_700_000_000_000_000_001


class Read(NamedTuple):
    name: bytes
    node: int
    ino: int
    offset: int
    kind: int
    attributes: tuple[int, ...]


@pytest.fixture
def db(tmp_path: Path) -> Any:
    made = TreeDB(tmp_path / 'tree.db')
    yield made
    made.close()


def add_file(db: TreeDB, name: bytes, *, mode: int = stat.S_IFREG | 0o644, size: int = 700, is_known: int = 1, mtime_ns: int = TIMES,
             content: int = Content.CLEAN) -> int:
    inode = Inode(db.allocate_ino(), mode, 1, 2, 0, 1, size, TIMES, mtime_ns, TIMES, content, 1, is_known)
    db.insert_inode(inode)
    db.insert_dentry(ROOT_INO, name, inode.ino)
    return inode.ino


def entries_of(db: TreeDB, *, may_be_unknown: bool = False) -> ListedEntries:
    entries = ListedEntries()
    assert entries.add(db, ROOT_INO, db.children(ROOT_INO, b'', MOST), may_be_unknown=may_be_unknown, blocks=lambda inode: 99)
    return entries


def written(entries: ListedEntries, *, offset: int = 2, size: int = 1 << 18, before: Callable[[], object] = lambda: None) -> list[Read]:
    """What is in the answer; `before` is called as soon as the library may have to write."""
    library = fuse_ops.library()
    assert library is not None
    library.fuse_add_direntry_plus.restype = ctypes.c_size_t
    buffer, whole = ctypes.create_string_buffer(size), ctypes.create_string_buffer(512)
    ctypes.c_uint64.from_buffer(whole, 8).value = fuse_ops.WHOLE        # struct fuse_entry_param: the generation
    used = 0

    def add() -> None:
        nonlocal used
        before()
        used = library.fuse_add_direntry_plus(None, buffer, ctypes.c_size_t(size), b'', whole, ctypes.c_long(0))
    count = fuse_listing.write(entries, 1 << 40, offset, add)
    found, at, data = [], 0, buffer.raw[:used]
    while at < len(data):
        node, _, *rest = _ENTRY.unpack_from(data, at)
        ino, following, length, kind = _DIRENT.unpack_from(data, at + _ENTRY.size)
        at += _ENTRY.size + _DIRENT.size
        found.append(Read(data[at:at + length], node, ino, following, kind, tuple(rest[4:])))
        at += (length + 7) // 8 * 8
    assert len(found) == count
    return found


def test_an_entry_says_all_of_its_row(db: TreeDB) -> None:
    """Times before 1970, too; a directory has the size that they all have."""
    one = add_file(db, b'a', mtime_ns=-1_500_000_000)
    two = add_file(db, b'dir', mode=stat.S_IFDIR | 0o755)
    db.let_go()
    first, second = written(entries_of(db))
    #              ino  size blocks atime  mtime  ctime (s)  ns…                mode nlink uid gid rdev blksize flags
    seconds, ns = divmod(TIMES, 10**9)
    assert first == Read(b'a', one, one, 3, stat.S_IFREG >> 12, (
        one, 700, 2, seconds, 2**64 - 2, seconds, ns, 500_000_000, ns, stat.S_IFREG | 0o644, 1, 1, 2, 0, 4096, 0))
    assert (second.name, second.node, second.offset, second.kind, second.attributes[1:3]) == (b'dir', two, 4, stat.S_IFDIR >> 12, (4096, 8))


def test_what_is_written_is_what_was_handed_over(db: TreeDB) -> None:
    """Whatever the interpreter does with its memory between the two."""
    names = [b'%04d' % number + b'n' * 200 for number in range(MOST)]
    for name in names:
        add_file(db, name)
    taken: list[bytes] = []
    entries = entries_of(db)
    total = sum(map(len, names))
    found = written(entries, before=lambda: taken.extend(bytes([number]) * total for number in range(1, 50)))
    assert [read.name for read in found] == names


def test_an_answer_ends_where_its_room_does(db: TreeDB) -> None:
    """Which may be before the first entry."""
    for number in range(10):
        add_file(db, b'%d' % number)
    entries = entries_of(db)
    found = written(entries, size=5 * (_ENTRY.size + _DIRENT.size + 8) + 7)
    assert [read.name for read in found] == [b'0', b'1', b'2', b'3', b'4'] and entries.learnt(5) == [read.node for read in found]
    assert written(entries, size=10) == []


def test_dots_and_what_is_not_known_make_nothing_known(db: TreeDB) -> None:
    """Name, number and kind is all that is said of them."""
    known, unknown = add_file(db, b'a'), add_file(db, b'b', is_known=0)
    entries = ListedEntries()
    entries.add_dot(b'.', 1, stat.S_IFDIR | 0o755)
    entries.add_dot(b'..', 1, stat.S_IFDIR | 0o755)
    assert not ListedEntries().add(db, ROOT_INO, db.children(ROOT_INO, b'', 9), may_be_unknown=False, blocks=lambda inode: 0)
    assert entries.add(db, ROOT_INO, db.children(ROOT_INO, b'', 9), may_be_unknown=True, blocks=lambda inode: 0)
    found = written(entries, offset=0)
    assert [(read.name, read.node, read.ino, read.offset) for read in found] == [
        (b'.', 0, 1, 1), (b'..', 0, 1, 2), (b'a', known, known, 3), (b'b', 0, unknown, 4)]
    assert entries.learnt(4) == [known]
    # what is not known to be a file may be a symlink, and the kernel keeps what it was told
    assert [read.kind for read in found] == [stat.S_IFDIR >> 12] * 2 + [stat.S_IFREG >> 12, 0]


def test_a_live_inode_is_what_counts(db: TreeDB) -> None:
    """Its row learns later what was written to it."""
    ino = add_file(db, b'f', content=Content.STAGED)
    inode = db.inode(ino)
    inode.size = 12_345
    found, = written(entries_of(db))
    assert found.attributes[1:3] == (12_345, 99)


def test_what_changed_since_the_page_was_read_is_asked_for(db: TreeDB) -> None:
    """A name that is gone, or another inode's."""
    add_file(db, b'a')
    add_file(db, b'b')
    page = db.children(ROOT_INO, b'', 9)
    db.delete_dentry(ROOT_INO, b'a')
    assert not ListedEntries().add(db, ROOT_INO, page, may_be_unknown=True, blocks=lambda inode: 0)
    add_file(db, b'a')
    assert not ListedEntries().add(db, ROOT_INO, page, may_be_unknown=True, blocks=lambda inode: 0)


def test_a_directory_that_cannot_be_closed_stops_nothing() -> None:
    """Neither the others that were closed, nor the loop that this runs in."""
    library = fuse_ops.library()
    assert library is not None
    (ctypes.c_uint64 * 3).in_dll(library, 'ctxfs_released')[:] = [7, 8, 9]
    ctypes.c_uint64.in_dll(library, 'ctxfs_released_count').value = 3
    closed: list[int] = []

    def close(fh: int) -> None:
        closed.append(fh)
        raise OSError(5, 'the disk is broken') if fh == 7 else StaleHandle(f'no open handle {fh}')
    fuse_listing.close_released(close)
    fuse_listing.close_released(close)
    assert closed == [7, 8, 9]


def test_a_listing_goes_on_where_another_one_was(tmp_path: Path) -> None:
    """The kernel had its beginning in memory; the handle was never asked for that."""
    names = [b'%06d' % number for number in range(2 * PAGE + 100)]
    asked: list[bytes] = []

    def children(parent: int, after: bytes, limit: int) -> list[tuple[bytes, int]]:
        asked.append(after)
        return [(name, 9) for name in names if name > after][:limit]
    inode = Inode(Ino(5), stat.S_IFDIR | 0o755, 0, 0, 0, 2, 0, 0, 0, 0, Content.NONE, 1)
    for offset in (2, PAGE + 1, PAGE + 2, PAGE + 3, 2 * PAGE + 50, 2 * PAGE + 101):
        page, _ = DirHandle(inode, children).page_at(offset)
        assert page[0][0] == names[offset - 2]
    asked.clear()
    handle = DirHandle(inode, children)
    assert handle.page_at(2 * PAGE + 102) == ([], 2 * PAGE + 102) and handle.page_at(9 * PAGE)[0] == []
    assert len(asked) == 3 and handle.ends_at(2 * PAGE + 102)


def test_a_reader_goes_on_by_the_listing_that_the_kernel_has(tmp_path: Path) -> None:
    """What went meanwhile before that place changes nothing about it; of a reading from the beginning it does."""
    async def main() -> None:
        disk = Disk(tmp_path)
        async with disk.running():
            names = [b'%04d' % number for number in range(MOST + 50)]
            with disk.db.transaction():
                for name in names:
                    add_file(disk.db, name)
            numbers = itertools.count(1 << 40)

            async def read(fh: int, offset: int) -> list[bytes]:
                await disk.fs.opened_dir(fh, ROOT_INO)
                entries = disk.fs.listed(fh, offset)
                assert entries is not None
                return [name for name in entries.names if name not in (b'.', b'..')]
            first = next(numbers)
            assert await read(first, 0) == names[:MOST] and await read(first, MOST + 2) == names[MOST:]
            disk.fs.releasedir(first)
            for name in names[:10]:
                disk.db.delete_dentry(ROOT_INO, name)
            assert await read(next(numbers), MOST + 2) == names[MOST:]
            again = next(numbers)
            assert await read(again, 0) == names[10:MOST + 10] and await read(again, MOST + 2) == names[MOST + 10:]
        disk.close()
    trio.run(main)


def test_listings_are_kept_within_a_bound() -> None:
    """The largest alone, too; small ones, which nobody goes on with, not at all."""
    kept = LastListings(most=8)
    large: dict[int, Listing] = {}
    for ino in range(5):
        large[ino] = Listing()
        large[ino].pages.update((number, []) for number in range(3))
        kept.note(ino, large[ino], LARGE)
    assert [ino for ino in range(5) if kept.of(ino) is large[ino]] == [3, 4]
    kept.note(7, Listing(), LARGE - 1)
    assert kept.of(7) is None
    large[4].pages.update((number, []) for number in range(30))
    kept.note(4, large[4], LARGE)
    assert kept.of(4) is large[4] and kept.of(3) is None
    kept.forget(4)
    assert kept.of(4) is None
