"""A damaged tree database is noticed, and repaired without the loss of a staged byte, whatever was damaged."""
from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from ctxfs import crash_points
from ctxfs.errors import CtxfsError, Damaged, ReadOnly
from ctxfs.records import ROOT_INO
from ctxfs.storage.consistency import check_state, is_sound
from ctxfs.storage.inode import Content
from ctxfs.storage.journal import Journal
from ctxfs.storage.repair import complete, find_damage, repair
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.recovery import recover
from tests.unit import damage
from tests.unit.damage import DAMAGES, Promise
from tests.unit.rig import Disk

#: how often each damage is done
ROUNDS = int(os.environ.get('CTXFS_FUZZ_DAMAGES', '2'))
SEED = int(os.environ.get('CTXFS_FUZZ_SEED') or random.SystemRandom().randrange(1 << 32))


@pytest.fixture(scope='module')
def made() -> Iterator[tuple[Path, Promise]]:
    directory = Path(tempfile.mkdtemp(prefix='t-'))
    yield directory, damage.make(directory)
    shutil.rmtree(directory)


def shown(state: Path) -> dict[str, bytes]:
    """What the next mount has of staged files, by path: opened as a daemon opens it."""
    db = TreeDB(state / 'tree.db')
    staging = Staging(state / 'staging')
    recover(db, Journal(db), staging, uid=0, gid=0)
    promise = Promise.of(db, staging.root)
    db.close()
    return promise.staged


def check(state: Path, promise: Promise, context: str) -> None:
    """Sound, and every staged byte string is there: under its name, or a name that says that it was lost."""
    found = check_state(state)
    assert is_sound(found), (context, found)
    got = shown(state)
    assert is_sound(check_state(state)), context
    for key, content in promise.staged.items():
        if got.get(key) != content:
            assert content in got.values(), f'{context}: {key} is lost'
    assert set(got.values()) == set(promise.staged.values()), context


def _content(state: Path) -> bytes | None:
    return (state / 'tree.db').read_bytes() if (state / 'tree.db').exists() else None


def dump(state: Path) -> list[tuple[object, ...]]:
    db = TreeDB(state / 'tree.db')
    rows = db.rows('SELECT d.parent, d.name, i.* FROM dentry d JOIN inode i USING (ino) ORDER BY 1, 2')
    db.close()
    return rows


def test_a_state_that_nobody_closed_is_not_damaged(made: tuple[Path, Promise], tmp_path: Path) -> None:
    """Changes in the log are no damage; and to repair it changes nothing of it."""
    template, promise = made
    state = damage.copy(template, tmp_path / 'state')
    assert find_damage(state) == '' and is_sound(check_state(state))
    before = shown(state)
    assert before == promise.staged and len(before) > 100
    rows = dump(state)
    repaired = repair(state, uid=0, gid=0)
    assert repaired.faults == [] and repaired.mended.found == repaired.mended.lost == 0
    assert dump(state) == rows
    check(state, promise, 'undamaged')


@pytest.mark.parametrize('kind', DAMAGES, ids=lambda kind: kind.__name__)
def test_no_staged_byte_is_lost(kind: damage.Callable[[Path, random.Random], None], made: tuple[Path, Promise], tmp_path: Path) -> None:
    """Whatever SQLite finds wrong is found before anything is written; repaired, everything is there, and a second repair changes nothing."""
    template, promise = made
    for number in range(ROUNDS):
        context = f'CTXFS_FUZZ_SEED={SEED} {kind.__name__} {number}'
        print(context)
        state = damage.copy(template, tmp_path / str(number))
        kind(state, random.Random(f'{SEED} {kind.__name__} {number}'))
        original = _content(state)
        is_known = bool(find_damage(state))
        assert _content(state) == original, f'{context}: looking changed it'
        assert is_known or (damage.is_sound_for_sqlite(state) and kind not in damage.ALWAYS_NOTICED), context
        repaired = repair(state, uid=0, gid=0)
        assert original is None or (repaired.kept / 'tree.db').read_bytes() == original, context
        assert find_damage(state) == '', context
        check(state, promise, context)
        rows = dump(state)
        repair(state, uid=0, gid=0)
        assert dump(state) == rows, f'{context}: not idempotent'
        shutil.rmtree(state)


def test_a_schema_that_is_no_text_is_damage(made: tuple[Path, Promise], tmp_path: Path) -> None:
    """SQLite quotes it in what it says."""
    template, promise = made
    state = damage.copy(template, tmp_path / 'state')
    data = (state / 'tree.db').read_bytes()
    for whole, damaged in ((b'tablehinthint', b'tableh\xe1nthint'), (b'CREATE TABLE hint', b'CREATE TABEL hint')):
        assert data.count(whole) == 1
        data = data.replace(whole, damaged)
    (state / 'tree.db').write_bytes(data)
    assert 'damaged' in find_damage(state)
    repair(state, uid=0, gid=0)
    assert find_damage(state) == ''
    check(state, promise, 'schema')


@pytest.mark.parametrize('kind', [damage.garbage_pages, damage.missing, damage.log_garbage], ids=lambda kind: kind.__name__)
def test_what_the_bucket_has_is_shown_again(kind: damage.Callable[[Path, random.Random], None], made: tuple[Path, Promise], tmp_path: Path) -> None:
    """After the next listing every clean file is at its path again, also those that the damaged file had lost."""
    template, promise = made
    state = damage.copy(template, tmp_path / 'state')
    os.symlink(template / 'bucket', state / 'bucket')
    kind(state, random.Random(7))
    repair(state, uid=0, gid=0)
    found: set[str] = set()

    async def main() -> None:
        disk = Disk(state)
        async with disk.running():
            await disk.remote.wait_complete()
            found.update(Promise.of(disk.db, disk.staging.root).clean)
        disk.close()

    trio.run(main)
    missing = {key for key in promise.clean if key not in found and damage.name_before(key) not in found}
    assert not missing
    assert is_sound(check_state(state))


def test_a_file_that_was_removed_while_it_was_open_is_set_aside(made: tuple[Path, Promise], tmp_path: Path) -> None:
    """Its bytes are with the damaged file, and not shown."""
    template, _ = made
    state = damage.copy(template, tmp_path / 'state')
    db = TreeDB(state / 'tree.db')
    ino, = db.row('SELECT ino FROM inode WHERE content = ? AND nlink = 1 LIMIT 1', (Content.STAGED,))
    db.execute('DELETE FROM dentry WHERE ino = ?', (ino,))
    db.execute('UPDATE inode SET nlink = 0 WHERE ino = ?', (ino,))
    db.close()
    content = damage.bytes_of(state / 'staging', ino)
    repaired = repair(state, uid=0, gid=0)
    assert (repaired.kept / 'staging' / str(ino)).read_bytes() == content
    assert content not in shown(state).values()


# --- a crash in the middle ---------------------------------------------------------------------------------------------------------------

REPAIR = 'import sys; from pathlib import Path; from ctxfs.storage.repair import repair; repair(Path(sys.argv[1]), uid=0, gid=0)'


@pytest.mark.parametrize('point', [name for name in crash_points.NAMES if name.startswith('repair-')])
def test_a_repair_that_is_killed_is_completed(point: str, made: tuple[Path, Promise], tmp_path: Path) -> None:
    """By the next mount once the new file was complete, by another repair before: everything is there, the damaged file too."""
    template, promise = made
    state = damage.copy(template, tmp_path / 'state')
    rng = random.Random(3)
    while not find_damage(state):       # pages that the log has anew do not count
        damage.garbage_pages(state, rng)
    original = _content(state)
    done = subprocess.run([sys.executable, '-c', REPAIR, state], env={**os.environ, crash_points.VARIABLE: point}, check=False,
                          cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    is_complete = point not in ('repair-before-aside', 'repair-before-ready')
    assert complete(state) is (is_complete and point != 'repair-after-swap')
    assert bool(find_damage(state)) is not is_complete
    if not is_complete:
        assert _content(state) == original
        repair(state, uid=0, gid=0)
    assert [path.read_bytes() for path in (state / 'damaged').glob('*/tree.db')] == [original]
    check(state, promise, point)
    assert not [path.name for path in state.iterdir() if path.name.startswith('tree.db.')]


# --- damage that shows while it is in use --------------------------------------------------------------------------------------------------

def test_what_is_damaged_while_it_is_in_use_is_only_read_from_then_on(tmp_path: Path) -> None:
    """Whoever meets the damage gets EIO, whoever changes something from then on EROFS; what is staged stays readable, and the log as it is."""
    async def main() -> None:
        disk = Disk(tmp_path)
        async with disk.running():
            for n in range(200):
                await disk.save(b'a file with quite a long name, number %d' % n, b'content')
            fh, _ = await disk.open_new(b'open')
            await disk.fs.write(fh, 0, b'before')
            disk.db.checkpoint()
            path = tmp_path / 'tree.db'
            path.write_bytes(path.read_bytes()[:4096] + bytes(path.stat().st_size - 4096))
            _outdate_cache(path)
            with pytest.raises(Damaged):
                disk.db.rows('SELECT * FROM inode')
            assert 'damaged' in disk.db.damage
            log = (tmp_path / 'tree.db-wal').read_bytes()
            with pytest.raises(ReadOnly):
                await disk.fs.write(fh, 6, b' and after')
            for change in (disk.save(b'new', b''), disk.fs.unlink(ROOT_INO, b'open'), disk.rename(b'open', b'closed')):
                with pytest.raises(CtxfsError):
                    await change
            with pytest.raises(ReadOnly):
                disk.db.execute('DELETE FROM pending')
            assert await disk.fs.read(fh, 0, 100) == b'before'
            assert not (await disk.engine.flush(retry_seconds=0)).ok
        disk.close()
        assert (tmp_path / 'tree.db-wal').read_bytes() == log

    trio.run(main)


def _outdate_cache(path: Path) -> None:
    """Another connection writes: the pages that the first one keeps are not those of the file any more."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute('PRAGMA wal_autocheckpoint = 0')
    other.execute('PRAGMA user_version = 7')
    other.close()
