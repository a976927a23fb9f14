"""The consistency checker: a tree that ctxfs made is sound, and each thing that can be wrong with one is found, as what it is."""
from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from ctxfs.records import ROOT_INO
from ctxfs.storage.consistency import Bucket, check_against_bucket, check_state, is_sound
from ctxfs.storage.consistency_rules import LISTED, Problem, Severity
from ctxfs.storage.journal import Journal
from ctxfs.storage.staging import Staging
from ctxfs.storage.stores import open_store
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.recovery import recover
from tests.unit.rig import ME, Disk
from tests.unit.test_sync_regressions import PREFIX


async def fill(disk: Disk) -> None:
    """Clean, dirty, linked, local-only, removed and open-unlinked files; directories with and without something in them."""
    async with disk.running():
        directory = await disk.fs.make(ROOT_INO, b'd', mode=stat.S_IFDIR | 0o755, caller=ME)
        await disk.fs.make(directory.ino, b'e', mode=stat.S_IFDIR | 0o755, caller=ME)
        await disk.fs.make(ROOT_INO, b'link', mode=stat.S_IFLNK | 0o777, caller=ME, target=b'clean')
        made = {name: await disk.save(name, name * 100) for name in (b'clean', b'moved', b'removed', b'one')}
        await disk.fs.link(made[b'one'].ino, directory.ino, b'two')
        assert (await disk.engine.flush()).ok
        await disk.save(b'dirty', b'not uploaded yet')
        await disk.rename(b'moved', b'new-name')
        await disk.fs.unlink(ROOT_INO, b'removed')
        disk.fs.forget([(made[b'removed'].ino, 1)])
        await disk.fs.make(ROOT_INO, b'fifo', mode=stat.S_IFIFO | 0o644, caller=ME)


@pytest.fixture(scope='module')
def template() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix='t-'))

    async def main() -> None:
        disk = Disk(directory)
        await fill(disk)
        disk.db.checkpoint(is_last=True)
        disk.close()
    trio.run(main)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def state(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / 'state', symlinks=True)
    return tmp_path / 'state'


def examined(state: Path, *, is_running: bool = False) -> list[Problem]:
    # the bucket lies in the state directory here; a copy of it has other etags, so it is compared in place by one test only
    return check_state(state, is_running=is_running)


def sql(*statements: str) -> Callable[[Path], None]:
    def apply(state: Path) -> None:
        db = sqlite3.connect(state / 'tree.db')
        for statement in statements:
            assert db.execute(statement).rowcount, statement
        db.commit()
        db.close()
    return apply


def staging_file(state: Path, name: str) -> Path:
    db = sqlite3.connect(state / 'tree.db')
    ino, = db.execute('SELECT ino FROM dentry WHERE name = ?', (name.encode(),)).fetchone()
    db.close()
    return state / 'staging' / f'{ino // 4096:x}' / str(ino)


def test_what_ctxfs_made_is_sound(state: Path, template: Path) -> None:
    """Nothing is found, with and without the bucket, and under a running daemon; and nothing is changed."""
    before = sorted((path, path.stat().st_mtime_ns) for path in state.rglob('*') if path.is_file())
    assert examined(state) == examined(state, is_running=True) == []
    assert sorted((path, path.stat().st_mtime_ns) for path in state.rglob('*') if path.is_file() and '-' not in path.suffix) == before
    store = open_store(f'file://{template}/bucket')
    assert check_against_bucket(template, Bucket(store, PREFIX)) == []
    store.close()


INO = "(SELECT ino FROM dentry WHERE name = CAST('{}' AS BLOB))".format
ORPHAN = f'UPDATE inode SET nlink = 0 WHERE ino = {INO("dirty")}'
WRONG_ROWS = {
    'the root directory is missing': [f'DELETE FROM inode WHERE ino = {ROOT_INO}'],
    'which does not exist': [f'DELETE FROM inode WHERE ino = {INO("fifo")}'],
    'no directory that has a name': ['INSERT INTO dentry SELECT 999, name, ino FROM dentry LIMIT 1'],
    'is no name': ["UPDATE dentry SET name = x'612f62' WHERE name = CAST('fifo' AS BLOB)"],
    'counts 1 links and has 2 names': [f'INSERT INTO dentry VALUES ({ROOT_INO}, x\'6262\', {INO("clean")})'],
    'counts 9 links, and 3 come': [f'UPDATE inode SET nlink = 9 WHERE ino = {INO("d")}'],
    'has 0 names': ["DELETE FROM dentry WHERE name = CAST('e' AS BLOB)"],
    'is not below the root': [f'UPDATE dentry SET parent = {INO("e")} WHERE name = CAST(\'d\' AS BLOB)'],
    'the next new one is to be 3': ["UPDATE meta SET value = 3 WHERE name = 'next_ino'"],
    'has content state 0': [f'UPDATE inode SET content = 0 WHERE ino = {INO("clean")}'],
    'has content state 7': [f'UPDATE inode SET content = 7 WHERE ino = {INO("clean")}'],
    'has no target': [f'UPDATE inode SET target = NULL WHERE ino = {INO("link")}'],
    'of which some are none': [f'UPDATE pending SET reason = 65 WHERE ino = {INO("dirty")}'],
    'the journal does not say so': [f'DELETE FROM pending WHERE ino = {INO("dirty")}'],
    'passes for its content already': [
        f"INSERT INTO object SELECT 'dirty', 'e', size, ino, revision, '', 0, '', 0, 0 FROM inode WHERE ino = {INO('dirty')}"],
    'which is at 2': ["UPDATE object SET revision = 5 WHERE key = 'clean'"],
    'in no object that is known': ["DELETE FROM object WHERE key = 'clean'"],
    'its content, has 7': ["UPDATE object SET size = 7 WHERE key = 'clean'"],
    'which has no name': ["UPDATE object SET doomed = 0 WHERE key = 'removed'"],
    'doomed in a way that there is not': ["UPDATE object SET doomed = 3 WHERE key = 'removed'"],
    'stays on this host, and is pending': [f"INSERT INTO pending VALUES ({INO('fifo')}, 1, 1, 1, 0, 0, '')"],
    'stays on this host, and has object clean': [f'UPDATE inode SET local = 1 WHERE ino = {INO("clean")}'],
    'is of a type that stays': [f'UPDATE inode SET local = 0 WHERE ino = {INO("fifo")}'],
    'has no object with its content, and the journal': ["UPDATE object SET key = 'clean2' WHERE key = 'clean'"],
    'whose name is another': [f'DELETE FROM pending WHERE ino = {INO("new-name")}'],
    'use the ctxfs that wrote it': ["UPDATE meta SET value = 99 WHERE name = 'schema_version'"],
}


@pytest.mark.parametrize('text', WRONG_ROWS)
def test_rows_that_contradict_each_other_are_found(text: str, state: Path) -> None:
    """By a finding that names it; the state is not sound."""
    sql(*WRONG_ROWS[text])(state)
    found = examined(state)
    assert any(text in problem.text and problem.severity is Severity.WRONG for problem in found), found
    assert not is_sound(found)


LEFT = {
    'has no name: it was open': [ORPHAN, "DELETE FROM dentry WHERE name = CAST('dirty' AS BLOB)"],
    'is pending, and has no name': ["INSERT INTO pending VALUES (77, 1, 1, 1, 0, 0, '')"],
    'whether the write of x arrived': ["INSERT INTO attempt VALUES ('x', 77, 1, '')"],
}


@pytest.mark.parametrize('text', LEFT)
def test_what_a_crash_leaves_is_told_apart(text: str, state: Path) -> None:
    """It is told, but wrong is nothing; of a running daemon it is no finding."""
    sql(*LEFT[text])(state)
    found = examined(state)
    assert any(text in problem.text and problem.severity is Severity.LEFT for problem in found), found
    assert is_sound(found) and examined(state, is_running=True) == []


def test_staging_files_that_are_missing_or_of_nobody(state: Path) -> None:
    """A missing one is wrong, also while a daemon runs; one too many, half-made or longer than its row is what a crash leaves."""
    file = staging_file(state, 'dirty')
    for name in ('123', f'{file.name}.copy'):
        (file.parent / name).write_bytes(b'x')
    file.write_bytes(b'more than the row knows')
    assert [problem.severity for problem in examined(state)] == [Severity.LEFT] * 3
    assert examined(state, is_running=True) == []
    file.unlink()
    lost, = [problem for problem in examined(state) if problem.severity is Severity.WRONG]
    assert 'its bytes are lost' in lost.text
    assert examined(state, is_running=True) == [lost]
    os.symlink('/etc/passwd', file)
    assert any('is no regular file' in problem.text for problem in examined(state))


def test_a_sealed_file_is_what_was_uploaded(state: Path) -> None:
    """Nobody may have written to it."""
    sql(f'UPDATE inode SET content = 2 WHERE ino = {INO("clean")}')(state)
    file = staging_file(state, 'clean')
    file.write_bytes(b'clean' * 100)
    assert examined(state) == []
    file.write_bytes(b'short')
    assert any('was uploaded with 500 bytes' in problem.text for problem in examined(state))


def test_what_the_bucket_has_otherwise_is_a_note(template: Path, tmp_path: Path) -> None:
    """Changed, removed and added by others: each is told, and nothing is wrong."""
    bucket = tmp_path / 'bucket'
    store = open_store(f'file://{bucket}', create=True)
    assert any('not in the bucket any more' in problem.text for problem in check_against_bucket(template, Bucket(store, PREFIX)))
    for key in ('clean', 'added'):
        store.put(PREFIX + key, b'otherwise')
    found = check_against_bucket(template, Bucket(store, PREFIX))
    store.close()
    assert is_sound(found) and {problem.severity for problem in found} == {Severity.NOTE}
    for text in ('object added is not known', 'object clean is version', 'object one is not in the bucket'):
        assert any(text in problem.text for problem in found), found
    assert not any('removed' in problem.text for problem in found), 'a tombstone whose object is gone is as it should be'


def test_a_listed_directory_that_is_not_empty_any_more_is_nothing(tmp_path: Path) -> None:
    """On a file:// store: a writer that died had just made it, it was listed, and then a file came into it."""
    bucket = tmp_path / 'bucket'
    (bucket / PREFIX / 'd').mkdir(parents=True)

    def examined_beside() -> list[str]:
        with contextlib.closing(open_store(f'file://{bucket}')) as store:
            return [problem.text for problem in check_against_bucket(tmp_path, Bucket(store, PREFIX))]

    async def main() -> None:
        disk = Disk(tmp_path)
        async with disk.running():
            assert disk.journal.known('d/') is not None and examined_beside() == []
            directory = await disk.fs.lookup(ROOT_INO, b'd')
            assert directory is not None
            await disk.save(b'f', b'in it')
            await disk.fs.rename(ROOT_INO, b'f', directory.ino, b'f', 0)
            assert (await disk.engine.flush()).ok
            assert examined_beside() == []
            disk.db.checkpoint(is_last=True)
        disk.close()
    trio.run(main)
    (bucket / PREFIX / 'd/f').unlink()
    assert examined_beside() == ['object d/f is not in the bucket any more']


def test_a_damaged_file_is_told_by_sqlites_words(state: Path) -> None:
    """One finding, and none of what its rows would say."""
    data = bytearray((state / 'tree.db').read_bytes())
    data[5 * 4096:6 * 4096] = bytes(4096)
    (state / 'tree.db').write_bytes(data)
    found = examined(state)
    assert found and {problem.area for problem in found} == {'database'} and not is_sound(found)


def test_a_thousand_of_a_kind_are_counted(state: Path) -> None:
    """So that the screen shows the other kinds, too."""
    db = sqlite3.connect(state / 'tree.db')
    db.executemany("INSERT INTO pending VALUES (?, 1, 1, 1, 0, 0, '')", ((ino,) for ino in range(10_000, 11_000)))
    db.commit()
    db.close()
    found = examined(state)
    assert len(found) == LISTED + 1 and f'and {1000 - LISTED} more' in found[-1].text


def test_what_recovery_could_not_save_is_journaled(state: Path) -> None:
    """A sealed file whose staging file and object are both gone is empty from then on, and the bucket is told so."""
    sql(f'UPDATE inode SET content = 2 WHERE ino = {INO("dirty")}', f'DELETE FROM pending WHERE ino = {INO("dirty")}')(state)
    staging_file(state, 'dirty').unlink()
    db = TreeDB(state / 'tree.db')
    recover(db, Journal(db), Staging(state / 'staging'), uid=0, gid=0)
    db.close()
    assert examined(state) == []
