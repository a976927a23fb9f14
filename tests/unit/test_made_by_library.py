"""What the library is allowed and told, and what becomes of what it has made: with the library itself, without a kernel.

Owns how a file looks in the library's memory. What the library answers is tests/mount/test_made_files.py's.
"""
from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from pyfuse3 import FUSEError

from ctxfs.core.made_files import Made
from ctxfs.edge import fuse_adapter, fuse_made, fuse_ops
from ctxfs.edge.fuse_made import MadeByLibrary
from ctxfs.errors import Damaged, DiskFull
from ctxfs.policy import BWList, SyncPolicy, WhiteList
from ctxfs.records import ROOT_INO
from tests.unit.rig import ME, Disk
from tests.unit.test_made_files import full, made_on

pytestmark = pytest.mark.skipif(not fuse_ops.is_loaded(), reason='the library was not built')


class Spy:
    """The library; `begun`: the generations that it was told to write."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.begun: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def ctxfs_begin_log(self, fd: int, generation: int) -> None:
        self.begun.append(generation)
        self._library.ctxfs_begin_log(fd, generation)


class Desk:
    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.made = MadeByLibrary(disk.fs, disk.db, disk.staging, gating=disk.gating, room=disk.room, made_log=disk.fs.made._log)
        self.library = self.made._library = Spy(self.made._library)
        self.made.undone()
        self.made.prepare(may_make=True)

    def look(self, *files: Made) -> None:
        """The library has made these."""
        packed = b''.join(fuse_made._MADE.pack(*one[:-1], len(one.name), 0, one.name) for one in files)
        ctypes.memmove(self.made._made_at, packed, len(packed))
        self.made._made_count.value = len(files)
        self.made.take_over()

    def names(self) -> list[bytes]:
        return [name for name, _ in self.disk.db.children(ROOT_INO, b'', 100)]


Play = Callable[[Callable[[Desk], Awaitable[None]]], None]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """play(scenario): run it on a disk."""
    def run(scenario: Callable[[Desk], Awaitable[None]]) -> None:
        async def main() -> None:
            disk = Disk(tmp_path)
            try:
                async with disk.running():
                    desk = Desk(disk)
                    await scenario(desk)
                    desk.made.undone()
                    desk.library.ctxfs_set_numbers(0, 0, -1)
            finally:
                disk.close()
        trio.run(main)
    return run


def damaged(*args: object) -> Any:
    raise Damaged('the tree database is damaged')


def test_whatever_took_over_the_log_begins_anew(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of a generation that has ended would not be read after a kill."""
    async def scenario(desk: Desk) -> None:
        disk, log = desk.disk, desk.disk.fs.made._log
        desk.look(made_on(disk, b'one'))
        desk.made.prepare(may_make=True)
        assert desk.library.begun[-1] == log.generation
        with full(disk, monkeypatch):
            desk.look(made_on(disk, b'two'))
            desk.made.prepare(may_make=True)
            assert disk.fs.made.is_waiting and desk.library.begun[-1] == log.generation and not desk.made._may_make.value
        disk.fs.settle()        # and not by a request
        desk.made.prepare(may_make=True)
        assert desk.names() == [b'one', b'two'] and desk.library.begun[-1] == log.generation and desk.made._may_make.value

    play(scenario)


def test_without_numbers_the_mount_goes_on(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is no failure of the request that was done before; and it is tried again."""
    async def scenario(desk: Desk) -> None:
        desk.library.ctxfs_set_numbers(0, 0, -1)
        with monkeypatch.context() as patch:
            patch.setattr(desk.disk.db, 'allocate_inos', damaged)
            desk.look(made_on(desk.disk, b'one'))
            desk.made.prepare(may_make=True)
            desk.made.arm(ROOT_INO)
            patch.setattr(desk.disk.db, 'names_in', damaged)
            desk.made.gone(ROOT_INO)
            desk.made.arm(ROOT_INO)
            assert not desk.library.ctxfs_is_armed(ROOT_INO) and not desk.library.ctxfs_numbers_left()
        desk.made.arm(ROOT_INO)
        desk.library.ctxfs_set_numbers(0, 0, -1)
        desk.made.arm(ROOT_INO)
        assert desk.library.ctxfs_is_armed(ROOT_INO) and desk.library.ctxfs_numbers_left()

    play(scenario)


def test_a_damaged_database_can_be_read_though_files_wait(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(desk: Desk) -> None:
        with full(desk.disk, monkeypatch):
            desk.look(made_on(desk.disk, b'one'))
        with monkeypatch.context() as patch:
            patch.setattr(desk.disk.db, 'damage', 'it is damaged')
            patch.setattr(desk.disk.db, 'insert_inodes', damaged)
            desk.made.settle()
            desk.made.prepare(may_make=True)
            assert desk.disk.fs.made.is_waiting and not desk.made._may_make.value
        desk.made.settle()
        assert desk.names() == [b'one']

    play(scenario)


def test_attributes_that_are_not_known_are_not_answered(play: Play) -> None:
    async def scenario(desk: Desk) -> None:
        desk.made.arm(ROOT_INO)
        assert desk.library.ctxfs_is_armed(ROOT_INO)
        root = desk.disk.fs.inode(ROOT_INO)
        root.attrs_known = 0
        desk.made.changed(root)
        assert not desk.library.ctxfs_is_armed(ROOT_INO)
        root.attrs_known = 1

    play(scenario)


def test_no_handler_runs_before_what_waits_has_its_rows() -> None:
    """However often something is freed, and that does not help."""
    ran: list[str] = []

    class Space:
        def check(self) -> None:
            pass

        async def free(self, code: int, *, is_removal: bool) -> bool:
            return True

    def settle_made(name: str) -> None:
        error = DiskFull('no space')
        error.errno = errno.ENOSPC
        raise error

    @fuse_adapter.boundary
    async def create(self: Any) -> None:
        ran.append('create')

    adapter: Any = SimpleNamespace(_space=Space(), _requests=0, is_debugging=False, settle_made=settle_made, _fs=SimpleNamespace(changes=0))
    with pytest.raises(FUSEError) as caught:
        trio.run(create, adapter)
    assert caught.value.errno == errno.ENOSPC and ran == []


def test_a_batch_is_read_as_the_library_wrote_it(play: Play) -> None:
    async def scenario(desk: Desk) -> None:
        disk = desk.disk
        files = [made_on(disk, b'n' * 255, b'some'), made_on(disk, b'open', b'bytes', is_open=True), made_on(disk, b'stray', is_known=False)]
        desk.look(*files)
        assert [disk.db.lookup(ROOT_INO, one.name) for one in files] == [one.ino for one in files]
        assert [disk.fs.is_known(one.ino) for one in files] == [True, True, False]
        inode = disk.fs.inode(files[1].ino)
        assert (inode.mode, inode.uid, inode.gid, inode.size, inode.staging_fd) == (0o100600, 3, 4, 5, files[1].fd)
        await disk.fs.release(files[1].fh)
        with pytest.raises(OSError, match='descriptor'):
            os.fstat(files[1].fd)

    play(scenario)


def test_what_is_known_of_a_directory_ends_with_what_it_rests_on(play: Play) -> None:
    """Other white lists, a transaction that was undone, the directory's end; and where lists differ by path, a move of any directory."""
    async def scenario(desk: Desk) -> None:
        disk, library = desk.disk, desk.library
        made = await disk.fs.make(ROOT_INO, b'd', mode=stat.S_IFDIR | 0o755, caller=ME)

        def is_armed_after(change: Callable[[], object]) -> bool:
            desk.made.arm(made.ino)
            assert library.ctxfs_is_armed(made.ino)
            change()
            desk.made.prepare(may_make=True)
            return bool(library.ctxfs_is_armed(made.ino))

        def undo() -> None:
            with pytest.raises(DiskFull), disk.db.transaction():
                raise DiskFull('no space')

        assert is_armed_after(lambda: disk.db.insert_dentry(made.ino, b'name', 99))
        assert is_armed_after(disk.db.forget_dir_keys)
        assert not is_armed_after(undo)
        assert not is_armed_after(lambda: disk.gating.rules.replace(SyncPolicy(bw_list=BWList(white_lists=(WhiteList(path='d'),)))))
        assert is_armed_after(lambda: None)
        assert not is_armed_after(disk.db.forget_dir_keys)
        assert not is_armed_after(lambda: disk.db.delete_inode(made.ino))

    play(scenario)


def test_the_bound_on_dirty_bytes_is_the_librarys_too(play: Play) -> None:
    """What it may write is what may be written; then Python makes room, or refuses."""
    async def scenario(desk: Desk) -> None:
        room, staging = desk.disk.room, desk.disk.staging
        assert 0 < desk.made._bytes_left.value == room.headroom()
        staging.used += room.headroom() - 10
        desk.made.prepare(may_make=True)
        assert desk.made._bytes_left.value == 10 and room.has_room(10, 0) and not room.has_room(11, 0)
        staging.used += 100
        desk.made.prepare(may_make=True)
        assert desk.made._bytes_left.value == 0
        staging.used = 0

    play(scenario)


def test_no_error_of_taking_over_ends_the_mount(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be raised where pyfuse3 waits for the next request, which ends everything."""
    async def scenario(desk: Desk) -> None:
        def broken(*args: object) -> None:
            raise OSError(errno.EIO, 'the disk')

        with monkeypatch.context() as patch:
            patch.setattr(desk.disk.staging, 'adopt', broken)
            desk.look(made_on(desk.disk, b'one', b'text'))
        assert desk.names() == [b'one']
        desk.look(made_on(desk.disk, b'two'))
        assert desk.names() == [b'one', b'two']

    play(scenario)


def test_attributes_are_others_once_files_were_taken_over(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that waits for Python is answered after that, and by nothing that was answered before."""
    async def scenario(desk: Desk) -> None:
        disk = desk.disk
        space: Any = SimpleNamespace(check=lambda: None)
        adapter = fuse_adapter.FuseAdapter(disk.fs, statfs_path='/', xattrs=None, read_seconds=1, space=space)
        adapter.made = desk.made
        made = made_on(disk, b'one')

        def serve(linger: float, limit: float) -> int:
            packed = fuse_made._MADE.pack(*made[:-1], len(made.name), 0, made.name)
            ctypes.memmove(desk.made._made_at, packed, len(packed))
            desk.made._made_count.value = 1
            return fuse_ops.FOR_PYTHON

        monkeypatch.setattr(fuse_ops, 'serve', serve)
        before = disk.fs.changes
        assert adapter.serve(0, 0) == fuse_ops.FOR_PYTHON
        assert fuse_ops._changes is not None and before < disk.fs.changes == fuse_ops._changes.value

    play(scenario)
