"""Programs that people run in their work directory: git, SQLite, rsync, tar, cp, sed, package managers' trees.

Owns nothing but the examples. It must not know ctxfs: with CTXFS_TEST_DOUBLE=1 all of it passes on a local disk.
"""
from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.model import observe
from tests.model.processes import Child, gates

GIT = ['git', '-c', 'user.name=a', '-c', 'user.email=a@example.com', '-c', 'init.defaultBranch=main', '-c', 'gc.auto=0']
GIT_ENV = {**os.environ, 'GIT_CONFIG_GLOBAL': '/dev/null', 'GIT_CONFIG_SYSTEM': '/dev/null'}


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env or GIT_ENV, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f'{command} in {cwd}: exit {done.returncode}\n{done.stdout}{done.stderr}'
    return done.stdout


def a_small_tree(root: Path) -> None:
    """Files, an empty directory, links of both kinds, odd names, modes and times."""
    (root / 'sub/empty').mkdir(parents=True)
    (root / 'sub/f').write_bytes(os.urandom(70_000))
    (root / 'name with\nnewline').write_text('x')
    os.link(root / 'sub/f', root / 'hard')
    os.symlink('sub/f', root / 'soft')
    os.symlink('nowhere', root / 'dangling')
    (root / 'script').write_text('#!/bin/sh\n')
    (root / 'script').chmod(0o755)
    with open(root / 'sparse', 'wb') as f:
        f.truncate(3 << 20)
    for path in sorted(root.rglob('*'), reverse=True):
        os.utime(path, ns=(1_600_000_000_000_000_001, 1_600_000_000_123_456_789), follow_symlinks=False)


def git(*arguments: str | Path, cwd: Path) -> str:
    return run(*GIT, *arguments, cwd=cwd)


def test_git_works_and_finds_nothing_broken(disk: Path) -> None:
    """init, commits, branches, merge, gc, clone with hard links, worktree; fsck is clean and status quiet."""
    repo = disk / 'repo'
    repo.mkdir()
    git('init', '-q', cwd=repo)
    for n in range(20):
        (repo / f'f{n % 7}').write_text(f'{n}\n' * 200)
        git('add', '-A', cwd=repo)
        git('commit', '-qm', str(n), cwd=repo)
    git('checkout', '-qb', 'side', 'HEAD~5', cwd=repo)
    (repo / 'side').write_text('x')
    git('add', '-A', cwd=repo)
    git('commit', '-qm', 'side', cwd=repo)
    git('checkout', '-q', 'main', cwd=repo)
    git('merge', '-q', '--no-edit', 'side', cwd=repo)
    git('gc', '-q', cwd=repo)
    git('clone', '-q', 'repo', 'clone', cwd=disk)
    git('worktree', 'add', '-q', '../tree', 'side', cwd=repo)
    for where in (repo, disk / 'clone'):
        git('fsck', '--strict', '--full', cwd=where)
        assert git('status', '--porcelain', cwd=where) == ''
        assert git('rev-list', '--count', 'HEAD', cwd=where) == '22\n'


@pytest.mark.parametrize('mode', ['WAL', 'DELETE', 'TRUNCATE'])
def test_sqlite_from_two_processes(mode: str, disk: Path) -> None:
    """Two processes write one database by turns and at once: no row is lost and the file stays whole."""
    with sqlite3.connect(disk / 'db') as db:
        assert db.execute(f'PRAGMA journal_mode={mode}').fetchone() == (mode.lower(),)
        db.execute('CREATE TABLE t (who, n, filler)')
    db.close()

    def write(who: str) -> None:
        db = sqlite3.connect('db', timeout=60)
        for n in range(50):
            with db:
                db.execute('INSERT INTO t VALUES (?, ?, ?)', (who, n, os.urandom(2000)))
        db.close()

    children = [Child(lambda w=who: write(w), disk) for who in 'ab']
    for child in children:
        child.result()
    db = sqlite3.connect(disk / 'db')
    assert db.execute('SELECT who, count(*), sum(n) FROM t GROUP BY who ORDER BY who').fetchall() == [('a', 50, 1225), ('b', 50, 1225)]
    assert db.execute('PRAGMA integrity_check').fetchone() == ('ok',)
    db.close()


def test_sqlite_reader_is_isolated_from_a_writer(disk: Path) -> None:
    """A WAL reader in another process keeps its snapshot while a writer commits."""
    db = sqlite3.connect(disk / 'db')
    db.execute('PRAGMA journal_mode=WAL')
    with db:
        db.execute('CREATE TABLE t (n)')
        db.execute('INSERT INTO t VALUES (1)')
    with gates(2) as (reading, written):
        def read() -> list[int]:
            other = sqlite3.connect('db', isolation_level=None)
            other.execute('BEGIN')
            seen = [other.execute('SELECT count(*) FROM t').fetchone()[0]]
            reading.open()
            written.wait()
            seen.append(other.execute('SELECT count(*) FROM t').fetchone()[0])
            other.execute('COMMIT')
            seen.append(other.execute('SELECT count(*) FROM t').fetchone()[0])
            other.close()
            return seen

        child = Child(read, disk)
        reading.wait()
        with db:
            db.execute('INSERT INTO t VALUES (2)')
        written.open()
        assert child.result() == [1, 1, 2]
    db.close()


def test_a_tree_of_packages_as_npm_makes_it(disk: Path) -> None:
    """node_modules: thousands of small files, .bin symlinks, a store of hard links and links between packages (pnpm)."""
    modules = disk / 'node_modules'
    (modules / '.bin').mkdir(parents=True)
    store = modules / '.store'
    for n in range(150):
        package = store / f'p{n}' / f'node_modules/p{n}'
        (package / 'lib').mkdir(parents=True)
        for i in range(4):
            (package / f'lib/{i}.js').write_text(f'module.exports = {n * i};\n')
        os.link(package / 'lib/0.js', package / 'index.js')
        os.symlink(f'.store/p{n}/node_modules/p{n}', modules / f'p{n}')
        os.symlink(f'../p{n}/lib/1.js', modules / f'.bin/p{n}')
        os.symlink(f'../../p{(n + 1) % 150}/node_modules/p{(n + 1) % 150}', store / f'p{n}/node_modules/p{(n + 1) % 150}')
    for n in range(150):
        assert (modules / f'.bin/p{n}').read_text() == f'module.exports = {n};\n'
        assert (modules / f'p{n}/lib').resolve() == store.resolve() / f'p{n}/node_modules/p{n}/lib'
        following = (n + 1) % 150
        assert (store / f'p{n}/node_modules/p{following}/lib/1.js').read_text() == f'module.exports = {following};\n'
    os.rename(modules, disk / 'moved')
    assert (disk / 'moved/.bin/p7').read_text() == 'module.exports = 7;\n'
    shutil.rmtree(disk / 'moved')
    assert os.listdir(disk) == []


def test_cp_a_keeps_everything(disk: Path, tmp_path: Path) -> None:
    """cp -a from the local disk and inside the mount: equal trees, times and hard links included."""
    a_small_tree(tmp_path)
    run('cp', '-a', tmp_path, disk / 'one', cwd=disk)
    run('cp', '-a', 'one', 'two', cwd=disk)
    want = observe.snapshot(os.fsencode(tmp_path))
    for copy in ('one', 'two'):
        assert observe.differences(observe.snapshot(os.fsencode(disk / copy)), want) == []


def test_tar_restores_everything(disk: Path, tmp_path: Path) -> None:
    """tar packs on the mount and unpacks there, with xattrs asked for, and the tree is the same."""
    source = tmp_path / 'source'
    source.mkdir()
    a_small_tree(source)
    run('tar', '--xattrs', '-cf', disk / 't.tar', '-C', source, '.', cwd=disk)
    (disk / 'out').mkdir()
    run('tar', '--xattrs', '-xpf', 't.tar', '-C', 'out', cwd=disk)
    want = observe.snapshot(os.fsencode(source))
    assert observe.differences(observe.snapshot(os.fsencode(disk / 'out')), want) == []
    run('tar', '-cf', tmp_path / 'again.tar', '-C', disk / 'out', '.', cwd=disk)
    with tarfile.open(tmp_path / 'again.tar') as again:
        assert {m.name for m in again.getmembers()} == {'.', *(f'./{os.fsdecode(p)}' for p in want)}


@pytest.mark.skipif(not shutil.which('rsync'), reason='rsync is not installed')
def test_rsync_finds_nothing_left_to_do(disk: Path, tmp_path: Path) -> None:
    """rsync -aH to the mount, then again with checksums: the second run changes nothing, and the trees are equal."""
    source = tmp_path / 'source'
    source.mkdir()
    a_small_tree(source)
    run('rsync', '-aHS', f'{source}/', 'copy/', cwd=disk)
    assert run('rsync', '-aHSc', '--itemize-changes', '--delete', f'{source}/', 'copy/', cwd=disk) == ''
    assert observe.differences(observe.snapshot(os.fsencode(disk / 'copy')), observe.snapshot(os.fsencode(source))) == []


def test_editors_replace_files_atomically(disk: Path) -> None:
    """sed -i and the save of an editor (temporary file, fsync, chmod, rename, backup) keep mode and links to the directory."""
    (disk / 'f').write_text('one two\n')
    (disk / 'f').chmod(0o640)
    run('sed', '-i.bak', 's/two/three/', 'f', cwd=disk)
    assert ((disk / 'f').read_text(), (disk / 'f.bak').read_text()) == ('one three\n', 'one two\n')
    assert stat.S_IMODE(os.stat(disk / 'f').st_mode) == 0o640


def test_make_rebuilds_what_is_older(disk: Path) -> None:
    """make compares times: it builds once, not twice, and again after a change."""
    if not shutil.which('make'):
        pytest.skip('make is not installed')
    (disk / 'Makefile').write_text('out: in\n\tcat in > out; echo built\n')
    (disk / 'in').write_text('1')
    assert 'built' in run('make', '-s', cwd=disk)
    assert run('make', '-q', cwd=disk) == ''
    os.utime(disk / 'in', ns=(0, os.stat(disk / 'out').st_mtime_ns + 1_000_000))
    assert 'built' in run('make', '-s', cwd=disk)


def test_find_and_du_agree_with_what_was_written(disk: Path) -> None:
    """find -links, -newer and du see counts, times and sizes that fit."""
    for n in range(10):
        (disk / f'd{n}').mkdir()
        (disk / f'd{n}/f').write_bytes(b'x' * 10_000)
    os.link(disk / 'd0/f', disk / 'd1/g')
    assert len(run('find', '.', '-type', 'd', cwd=disk).splitlines()) == 11
    assert sorted(run('find', '.', '-links', '2', '-type', 'f', cwd=disk).split()) == ['./d0/f', './d1/g']
    assert int(run('du', '--apparent-size', '-sb', 'd2/f', cwd=disk).split()[0]) == 10_000
    os.sync()
    assert int(run('du', '-s', '--block-size=1', 'd2/f', cwd=disk).split()[0]) >= 10_000
