"""What is said of a disk that takes no more, and the reserve for removals."""
from __future__ import annotations

import errno
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from ctxfs.edge.space import DiskSpace
from ctxfs.errors import Corrupted, DiskFull
from ctxfs.storage import disk_space
from ctxfs.storage.disk_space import RESERVE_BYTES, Reserve, spare_bytes, why_full
from ctxfs.storage.tree_db import INO_BATCH, TreeDB


@pytest.fixture
def db(tmp_path: Path) -> Iterator[TreeDB]:
    opened = TreeDB(tmp_path / 'tree.db')
    yield opened
    opened.close()


class Refusing:
    """A connection that fails as SQLite does on such a disk."""

    def __init__(self, connection: sqlite3.Connection, text: str) -> None:
        self._connection = connection
        self.text = text

    def execute(self, sql: str, *args: Any) -> Any:
        if self.text and sql.startswith(('INSERT', 'UPDATE', 'COMMIT')):
            raise sqlite3.OperationalError(self.text)
        return self._connection.execute(sql, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def refuse(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fallocate(fd: int, offset: int, length: int) -> None:
        raise OSError(code, os.strerror(code))
    monkeypatch.setattr(disk_space.os, 'posix_fallocate', fallocate)


@pytest.mark.parametrize(('text', 'code', 'kind', 'words'), [
    ('database or disk is full', 0, DiskFull, 'No space left on device'),
    ('disk I/O error', errno.EDQUOT, DiskFull, 'Disk quota exceeded'),
    ('disk I/O error', errno.ENOSPC, DiskFull, 'No space left on device'),
    ('disk I/O error', errno.EIO, Corrupted, 'disk I/O error'),
    ('disk I/O error', 0, Corrupted, 'disk I/O error')])
def test_what_sqlite_says_is_told_by_what_the_disk_says(text: str, code: int, kind: type[Exception], words: str, db: TreeDB,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite has one text for a broken disk and for a quota: the system is asked. The errno is the program's."""
    if code:
        refuse(code, monkeypatch)
    monkeypatch.setattr(db, '_connection', Refusing(db._connection, text))
    with pytest.raises(kind, match=words) as caught:
        db.set_meta('x', 1)
    if kind is DiskFull:
        assert caught.value.errno == (code or errno.ENOSPC)  # type: ignore[attr-defined]


def test_numbers_that_could_not_be_reserved_are_not_given_out(db: TreeDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a crash they would be given out a second time."""
    for _ in range(INO_BATCH):
        db.allocate_ino()
    refusing = Refusing(db._connection, 'database or disk is full')
    monkeypatch.setattr(db, '_connection', refusing)
    for _ in range(2):
        with pytest.raises(DiskFull):
            db.allocate_ino()
    refusing.text = ''
    assert db.allocate_ino() < int(db.meta('next_ino'))


def test_numbers_that_were_reserved_in_vain_are_not_given_out(tmp_path: Path) -> None:
    """The reservation was undone with the transaction that it was made in: after a crash they would be given out again."""
    db = TreeDB(tmp_path / 'other.db')
    db.allocate_inos(INO_BATCH - 10)
    with pytest.raises(DiskFull), db.transaction():
        db.allocate_inos(100)
        raise DiskFull('no space')
    assert db.allocate_ino() < int(db.meta('next_ino'))
    db.close()


def test_the_reserve_is_given_up_once_and_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are allocated; while the disk refuses it stays away, and whatever grows knows that."""
    reserve = Reserve(tmp_path)
    assert (tmp_path / 'reserve').stat().st_blocks * 512 >= RESERVE_BYTES and not reserve.is_given_up
    assert reserve.give_up() and not reserve.give_up() and not (tmp_path / 'reserve').exists()
    with monkeypatch.context() as patch:
        refuse(errno.ENOSPC, patch)
        reserve.restore()
        assert reserve.is_given_up and not (tmp_path / 'reserve').exists() and why_full(tmp_path) == errno.ENOSPC
    reserve.restore()
    assert not reserve.is_given_up and Reserve(tmp_path).is_there and why_full(tmp_path) == 0


@pytest.mark.parametrize(('blocks', 'free', 'spare'), [
    (64 << 8, 60 << 8, -(4 << 20)), (16 << 18, 2 << 18, 1 << 30), (1 << 38, 5 << 18, 1 << 30), (0, 0, sys.maxsize)])
def test_a_part_of_the_disk_is_left_free(blocks: int, free: int, spare: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixteenth, but 64 MiB at least and 4 GiB at most; and a file system without a bound has no such part."""
    monkeypatch.setattr(os, 'statvfs', lambda path: SimpleNamespace(f_blocks=blocks, f_bavail=free, f_frsize=4096))
    assert spare_bytes(tmp_path) == spare


def test_a_reserve_that_others_may_read_becomes_private(tmp_path: Path) -> None:
    Reserve(tmp_path)
    (tmp_path / 'reserve').chmod(0o644)
    assert Reserve(tmp_path).is_there and (tmp_path / 'reserve').stat().st_mode & 0o777 == 0o600


def test_of_several_that_are_refused_at_once_one_frees_something(db: TreeDB, tmp_path: Path) -> None:
    """The second finds no block in the cache, because the first is removing the last ones: it tries again all the same."""
    class Cache:
        blocks = 1
        gave_back = 0

        def count(self) -> int:
            return self.blocks

        def give_back(self) -> None:
            self.blocks = 0     # the rows go first
            self.gave_back += 1
            time.sleep(0.05)    # and then, as far as a disk is fast, their files

    async def main() -> None:
        cache: Any = Cache()
        space = DiskSpace(db, cache, Reserve(tmp_path), let_go=lambda: None)
        answers: list[bool] = []

        async def refused() -> None:
            answers.append(await space.free(errno.ENOSPC, is_removal=False))
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(refused)
        assert answers == [True] * 3 and cache.gave_back == 1
        assert not await space.free(errno.ENOSPC, is_removal=False)
    trio.run(main)


def test_who_has_made_room_may_write_at_once(db: TreeDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not half a second later: `rm big; echo > small`."""
    reserve = Reserve(tmp_path)
    space = DiskSpace(db, cast(Any, None), reserve, let_go=lambda: None)
    assert reserve.give_up()
    with monkeypatch.context() as patch:
        refuse(errno.ENOSPC, patch)
        with pytest.raises(DiskFull):
            space.check()
    space.check()
    assert reserve.is_there
