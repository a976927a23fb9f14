"""A work directory as people have them goes through the bucket and comes back on another host, entry for entry.

Owns the tree: CPython's standard library, a git repository with history, a virtual environment, a SQLite database under load, links,
holes, a large file, odd names; a part of each, and all of it in scripts/programs. It must not know ctxfs; what the bucket holds is read as any S3
tool would read it.
"""
from __future__ import annotations

import ensurepip
import hashlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from tests.model import observe
from tests.model.hosts import IS_DOUBLE, Site
from tests.mount.test_programs import git, run
from tests.programs.home import wants_all

SKIPPED_PACKAGES = ('test', 'idlelib', 'lib2to3', 'ensurepip', 'site-packages', '__pycache__')
#: of the standard library, unless all of it is wanted
SOME_PACKAGES = ('email', 'encodings', 'json', 'unittest', 'xml')
COMMITS = 50 if wants_all() else 16
LARGE_MIB = 100 if wants_all() else 20


def unpack_standard_library(root: Path) -> None:
    """Through tar, as an archive is unpacked: modes, times and links come with it."""
    archive = root / 'stdlib.tar'
    library = sysconfig.get_path('stdlib')
    with tarfile.open(archive, 'w') as tar:
        tar.add(library, 'stdlib', filter=lambda m: m if is_wanted(*Path(m.name).parts) else None)
    run('tar', 'xpf', archive.name, cwd=root)
    archive.unlink()


def is_wanted(stdlib: str, package: str = '', *rest: str) -> bool:
    return not {package, *rest} & set(SKIPPED_PACKAGES) and (wants_all() or package in ('', *SOME_PACKAGES))


def make_repository(root: Path) -> None:
    """Commits, packed and loose objects, a tag, a clone, an untracked file."""
    repo = root / 'repo'
    repo.mkdir()
    git('init', '-q', cwd=repo)
    for n in range(COMMITS):
        (repo / f'file{n % 9}').write_text(f'{n}\n' * 300)
        git('add', '-A', cwd=repo)
        git('commit', '-qm', f'commit {n}', cwd=repo)
        if n == COMMITS // 2:
            git('gc', '-q', cwd=repo)
    git('tag', '-a', 'v1', '-m', 'first', cwd=repo)
    git('clone', '-q', 'repo', 'clone', cwd=root)
    (repo / 'untracked').write_text('x')


def make_environment(root: Path) -> None:
    """A virtual environment: symlinks to the interpreter, scripts with modes; where all is wanted with pip, a thousand small files."""
    if wants_all() and Path(ensurepip.__file__).parent.joinpath('_bundled').exists():
        run(sys.executable, '-m', 'venv', 'venv', cwd=root)
        assert run('venv/bin/python', '-m', 'pip', '--version', cwd=root).startswith('pip ')
    else:       # Debian ships pip's wheel in a package of its own
        run(sys.executable, '-m', 'venv', '--without-pip', 'venv', cwd=root)


def make_database(root: Path) -> None:
    """A database in WAL mode with 300 commits of insertions and removals."""
    db = sqlite3.connect(root / 'load.db')
    db.execute('PRAGMA journal_mode=WAL')
    db.execute('CREATE TABLE t (n INTEGER PRIMARY KEY, filler BLOB)')
    for n in range(300):
        with db:
            db.execute('INSERT INTO t VALUES (?, ?)', (n, os.urandom(3000)))
            db.execute('DELETE FROM t WHERE n = ?', (n - 200,))
    db.close()


def make_oddities(root: Path) -> None:
    odd = root / 'odd'
    for name in ('empty', 'empty/deeper', 'full', 'no access'):
        (odd / name).mkdir(parents=True)
    base = os.fsencode(odd)
    for name in (b'\xff\xfe', 'ünï ☃'.encode(), b'new\nline', b'\x01\x7f', '\u201bFF'.encode(), b'L' * 255, b'%2F', b'a.', b'back\\slash', b' '):
        with open(os.path.join(base, name), 'wb') as f:
            f.write(name)
    os.link(odd / 'a.', odd / 'full/hard1')
    os.link(odd / 'a.', odd / 'hard2')
    for i, target in enumerate([b'a.', b'nowhere', b'/etc/hostname', b'\xff\n', b'full', b'..', b'x/' * 500]):
        os.symlink(target, os.path.join(base, b'link%d' % i))
    with open(odd / 'sparse', 'wb') as f:
        f.truncate(50 << 20)
        f.seek(20 << 20)
        f.write(b'in the middle')
    (odd / 'zero').touch()
    for mode in (0o000, 0o400, 0o751, 0o4755, 0o2711, 0o1644):
        (odd / f'mode{mode:o}').write_text(f'{mode:o}')
        (odd / f'mode{mode:o}').chmod(mode)
    (odd / 'no access').chmod(0o1000)
    if os.geteuid() == 0:
        os.chown(odd / 'zero', 1234, 5678)
        os.chown(odd / 'link1', 1234, 5678, follow_symlinks=False)
    for n, name in enumerate(('zero', 'empty', 'link0', 'full')):
        os.utime(odd / name, ns=(n, 1_111_111_111_000_000_000 + n), follow_symlinks=False)
    os.utime(odd / 'mode400', ns=(0, -5_000_000_001))


def make_large_file(root: Path) -> None:
    with open(root / 'large', 'wb') as f:
        for _ in range(LARGE_MIB):
            f.write(os.urandom(1 << 20))


def check_programs_are_content(root: Path) -> None:
    for repo in ('repo', 'clone'):
        git('fsck', '--strict', '--full', cwd=root / repo)
        assert git('status', '--porcelain', cwd=root / repo) == ('?? untracked\n' if repo == 'repo' else '')
        assert git('rev-list', '--count', 'HEAD', cwd=root / repo) == f'{COMMITS}\n'
    db = sqlite3.connect(root / 'load.db')
    assert db.execute('PRAGMA integrity_check').fetchone() == ('ok',)
    assert db.execute('SELECT count(*), min(n), max(n) FROM t').fetchone() == (200, 100, 299)
    db.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_tree_comes_back_on_another_host(site: Site) -> None:
    """Content, types, modes, owners, times to the nanosecond, symlinks, hard links, empty directories: all equal elsewhere."""
    host, at = site.host(), site.mount_point()
    host.mount('work', at, create=True)
    for make in (unpack_standard_library, make_repository, make_environment, make_database, make_oddities, make_large_file):
        make(at)
    check_programs_are_content(at)
    want = observe.snapshot(os.fsencode(at))
    host.unmount(at)
    check_bucket_is_plain(site, want)
    elsewhere = site.mount_point()
    other = site.host()
    other.mount('work', elsewhere)
    assert observe.differences(observe.snapshot(os.fsencode(elsewhere)), want, directory_times=False) == []
    explicit = [b'odd/empty', b'odd/full', b'stdlib', b'stdlib/json', b'stdlib/email']
    assert [os.stat(os.path.join(os.fsencode(elsewhere), p)).st_mtime_ns for p in explicit] == [want[p].mtime_ns for p in explicit]
    check_programs_are_content(elsewhere)
    other.unmount(elsewhere)
    host.mount('work', at)
    after = observe.snapshot(os.fsencode(at))
    host.unmount(at)
    changed = {line.split(':')[0] for line in observe.differences(after, want, directory_times=False)}
    assert all('.git' in path or 'load.db' in path for path in changed), changed


def check_bucket_is_plain(site: Site, want: observe.Tree) -> None:
    """Each regular file is one object with the file's bytes, under a key that is its path where that is text."""
    if IS_DOUBLE:
        return
    bucket = site.bucket()
    prefix = f'contexts/{site.context_id("work")}/'
    keys = set(bucket.keys(prefix))
    for path, entry in want.items():
        if entry.type == stat.S_IFREG and path.isascii():
            key = prefix + path.decode()
            assert key in keys, f'{key} is not in the bucket'
            assert hashlib.sha256(bucket.body(key)).digest() == hashlib.sha256(entry.content).digest(), f'{key} holds other bytes'
    strange = [key for key in keys if key.startswith(prefix) and not key.startswith(prefix + '.ctxfs/')
               and all(ord(c) < 128 for c in key) and key[len(prefix):].rstrip('/').encode() not in want]
    assert strange == []


def test_a_changed_tree_comes_back_changed(site: Site) -> None:
    """On a second host files are changed, renamed, linked, removed and turned into directories; the first sees exactly that."""
    first, at = site.host(), site.mount_point()
    first.mount('work', at, create=True)
    for n in range(30):
        (at / f'd{n % 3}').mkdir(exist_ok=True)
        (at / f'd{n % 3}/f{n}').write_text(f'{n}' * 1000)
    first.unmount(at)
    second, there = site.host(), site.mount_point()
    second.mount('work', there)
    (there / 'd0/f0').write_text('changed')
    with open(there / 'd0/f3', 'r+b') as f:
        f.seek(100)
        f.write(b'patched in the middle')
    os.rename(there / 'd1', there / 'd0/moved')
    os.rename(there / 'd2/f2', there / 'd2/renamed')
    os.link(there / 'd0/f6', there / 'linked')
    os.chmod(there / 'd0/f9', 0o711)
    os.unlink(there / 'd0/f12')
    (there / 'd0/f12').mkdir()
    (there / 'd0/f12/inside').touch()
    shutil.rmtree(there / 'd0/f12')
    (there / 'd0/f12').symlink_to('f15')
    for n in range(5, 30, 3):
        os.unlink(there / f'd2/f{n}')
    os.truncate(there / 'd2/renamed', 10)
    want = observe.snapshot(os.fsencode(there))
    second.unmount(there)
    first.mount('work', at)
    got = observe.snapshot(os.fsencode(at))
    first.unmount(at)
    assert observe.differences(got, want, directory_times=False) == []


def test_unmounting_without_a_change_writes_nothing(site: Site) -> None:
    """Mounting, reading everything and unmounting leaves every object in the bucket as it was."""
    if IS_DOUBLE:
        pytest.skip('a directory has no bucket')
    host, at = site.host(), site.mount_point()
    host.mount('work', at, create=True)
    for n in range(20):
        (at / f'f{n}').write_text('x' * n)
    host.unmount(at)
    bucket = site.bucket()
    before = bucket.versions(f'contexts/{site.context_id("work")}/')
    other = site.host()
    other.mount('work', at)
    subprocess.run(['grep', '-r', 'nothing', at], check=False, capture_output=True)
    other.unmount(at)
    assert bucket.versions(f'contexts/{site.context_id("work")}/') == before
