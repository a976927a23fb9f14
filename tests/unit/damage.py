"""A tree database with something of everything, as a killed daemon leaves it; and the ways in which disks damage such a file.

Owns the state, what it promises (`Promise`), and the damages. It must not know how anything is repaired.
"""
from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import trio

from ctxfs.records import ROOT_INO
from ctxfs.storage import sqlite_wal
from ctxfs.storage.inode import Content, Inode
from ctxfs.storage.tree_db import TreeDB
from tests.unit.rig import ME, Disk

PAGE = 4096


class Promise:
    """What must survive: bytes that only this host has, by path; and paths that the bucket has as well."""

    def __init__(self) -> None:
        self.staged: dict[str, bytes] = {}
        self.clean: set[str] = set()

    @classmethod
    def of(cls, db: TreeDB, staging: Path) -> Promise:
        promise = cls()
        for ino, content in db.rows('SELECT ino, content FROM inode WHERE nlink > 0 AND content <> ?', (Content.NONE,)):
            for key in db.keys_of(db.inode(ino)):
                if content == Content.CLEAN:
                    promise.clean.add(key)
                else:
                    promise.staged[key] = bytes_of(staging, ino)
        return promise


def bytes_of(staging: Path, ino: int) -> bytes:
    return (staging / f'{ino // 4096:x}' / str(ino)).read_bytes()


def make(directory: Path) -> Promise:
    """Fill `directory` with a state that nobody closed: a third of the changes is in the log only."""
    promises = []

    async def main() -> None:
        disk = Disk(directory)
        async with disk.running():
            await _fill(disk)
        promises.append(Promise.of(disk.db, disk.staging.root))
        frozen = directory.with_name(directory.name + '-frozen')
        shutil.copytree(directory, frozen, symlinks=True, ignore=shutil.ignore_patterns('bucket', 'cache'))
        disk.close()
        for name in ('tree.db', 'staging'):
            for path in directory.glob(name + '*'):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(frozen, directory, dirs_exist_ok=True)
        shutil.rmtree(frozen)

    trio.run(main)
    return promises[0]


async def _fill(disk: Disk) -> None:
    directories = [await _make(disk, ROOT_INO, f'directory-{n}', stat.S_IFDIR) for n in range(6)]
    directories += [await _make(disk, directories[n].ino, f'deeper-{n}', stat.S_IFDIR) for n in range(3)]
    made = [await _save(disk, directories[n % 9].ino, f'a file whose name takes its place {n}') for n in range(140)]
    await disk.fs.link(made[0].ino, ROOT_INO, b'linked')
    await _make(disk, ROOT_INO, 'clean-link', stat.S_IFLNK, target=b'linked')
    assert (await disk.engine.flush()).ok
    disk.db.checkpoint()
    for n, inode in enumerate(made[:30]):
        await disk.rewrite(inode, b'changed %d ' % n * (n + 1))
    for n in range(60):
        await _save(disk, directories[n % 9].ino, f'not uploaded yet {n}')
    disk.db.checkpoint()
    for n in range(30, 60):
        await disk.fs.rename(directories[n % 9].ino, f'a file whose name takes its place {n}'.encode(), ROOT_INO, b'moved-%d' % n, 0)
    for n in range(60, 65):
        await disk.fs.unlink(directories[n % 9].ino, f'a file whose name takes its place {n}'.encode())
        disk.fs.forget([(made[n].ino, 1)])
    await disk.fs.rename(ROOT_INO, b'directory-5', ROOT_INO, b'directory-moved', 0)
    for n in range(40):
        await _save(disk, ROOT_INO, f'last of all {n}')
    await _make(disk, ROOT_INO, 'fifo', stat.S_IFIFO)
    await _make(disk, ROOT_INO, 'link', stat.S_IFLNK, target=b'directory-1/nothing')


def name_before(key: str) -> str:
    """Where the bucket has what was renamed since."""
    name, _, number = key.partition('-')
    if name != 'moved':
        return key.replace('directory-moved/', 'directory-5/')
    place = int(number) % 9
    directory = f'directory-{place}' if place < 6 else f'directory-{place - 6}/deeper-{place - 6}'
    return f'{directory}/a file whose name takes its place {number}'


async def _make(disk: Disk, parent: int, name: str, kind: int, *, target: bytes | None = None) -> Inode:
    return await disk.fs.make(parent, name.encode(), mode=kind | 0o755, caller=ME, target=target)


async def _save(disk: Disk, parent: int, name: str) -> Inode:
    fh, inode = await disk.fs.create(parent, name.encode(), mode=0o644, flags=os.O_WRONLY, caller=ME)
    await disk.fs.write(fh, 0, f'content of {name} in {parent}'.encode() * 3)
    await disk.fs.release(fh)
    return inode


def copy(template: Path, target: Path) -> Path:
    """The state, beside the bucket of the template: a copied directory store would have other versions."""
    shutil.copytree(template, target, symlinks=True, ignore=shutil.ignore_patterns('bucket', 'cache'))
    return target


# --- damages ---------------------------------------------------------------------------------------------------------------------------

def _change(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def _page(rng: random.Random, data: bytearray) -> slice:
    start = rng.randrange(len(data) // PAGE) * PAGE
    return slice(start, start + PAGE)


def flip(state: Path, rng: random.Random) -> None:
    def change(data: bytearray) -> None:
        for _ in range(rng.choice((1, 3, 30))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    _change(state / 'tree.db', change)


def flip_in_header(state: Path, rng: random.Random) -> None:
    def change(data: bytearray) -> None:
        data[rng.randrange(100)] ^= 1 << rng.randrange(8)
    _change(state / 'tree.db', change)


def zero_page(state: Path, rng: random.Random) -> None:
    def change(data: bytearray) -> None:
        data[_page(rng, data)] = bytes(PAGE)
    _change(state / 'tree.db', change)


def garbage_pages(state: Path, rng: random.Random) -> None:
    def change(data: bytearray) -> None:
        for _ in range(rng.choice((1, 4))):
            data[_page(rng, data)] = rng.randbytes(PAGE)
    _change(state / 'tree.db', change)


def swapped_pages(state: Path, rng: random.Random) -> None:
    def change(data: bytearray) -> None:
        one, two = _page(rng, data), _page(rng, data)
        data[one], data[two] = data[two], data[one]
    _change(state / 'tree.db', change)


def cut(state: Path, rng: random.Random) -> None:
    os.truncate(state / 'tree.db', rng.randrange((state / 'tree.db').stat().st_size))


def empty(state: Path, rng: random.Random) -> None:
    os.truncate(state / 'tree.db', 0)


def missing(state: Path, rng: random.Random) -> None:
    (state / 'tree.db').unlink()


def all_but_the_log(state: Path, rng: random.Random) -> None:
    (state / 'tree.db').write_bytes(rng.randbytes(PAGE * 8))


def _committed(state: Path) -> int:
    """Bytes of the log that count; behind them lies what it was used for before."""
    return 32 + sqlite_wal.committed_frames(state / 'tree.db') * (24 + PAGE)


def log_flip(state: Path, rng: random.Random) -> None:
    size = _committed(state)

    def change(data: bytearray) -> None:
        data[rng.randrange(size)] ^= 1 << rng.randrange(8)
    _change(state / 'tree.db-wal', change)


def log_garbage(state: Path, rng: random.Random) -> None:
    (state / 'tree.db-wal').write_bytes(rng.randbytes((state / 'tree.db-wal').stat().st_size))


def log_cut(state: Path, rng: random.Random) -> None:
    os.truncate(state / 'tree.db-wal', rng.randrange(_committed(state) - 1))


def log_missing(state: Path, rng: random.Random) -> None:
    (state / 'tree.db-wal').unlink()


DAMAGES = (flip, flip_in_header, zero_page, garbage_pages, swapped_pages, cut, empty, missing, all_but_the_log, log_flip, log_garbage, log_cut,
           log_missing)
#: nothing of the file is as it was: it must be noticed; elsewhere it may be a bit that nobody looks at
ALWAYS_NOTICED = (empty, missing, all_but_the_log, log_flip, log_garbage, log_cut, log_missing)


def is_sound_for_sqlite(state: Path) -> bool:
    """SQLite's own word on a copy of it (it would change the original)."""
    aside = state.with_name(state.name + '-asked')
    aside.mkdir()
    for path in state.glob('tree.db*'):
        shutil.copy2(path, aside)
    try:
        db = sqlite3.connect(aside / 'tree.db')
        try:
            return db.execute('PRAGMA integrity_check').fetchall() == [('ok',)]
        finally:
            db.close()
    except sqlite3.DatabaseError:
        return False
    finally:
        shutil.rmtree(aside)
