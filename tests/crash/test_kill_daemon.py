"""kill -9 of the daemon at random instants under load, again and again: everything acknowledged is there after the next mount.

Owns the rounds: `CTXFS_FUZZ_KILLS` kills each (2), the instants drawn from `CTXFS_FUZZ_SEED` or from the system; printed. It must
not know how ctxfs recovers.
"""
from __future__ import annotations

import os
import random
import shutil
import sqlite3
import sysconfig
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.load import Load, check_against, files
from tests.model import observe
from tests.model.hosts import IS_DOUBLE, Site
from tests.model.operations import Side, content
from tests.model.seeds import first_seed
from tests.mount.executed import executed_hosts  # noqa: F401

ROUNDS = int(os.environ.get('CTXFS_FUZZ_KILLS', '2'))


def unchanged(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    """An extraction filter (PEP 706) that may be set on any Python: older ones have no filters and ignore it."""
    return member


def extract_all(tar: tarfile.TarFile, target: Path) -> None:
    tar.extraction_filter = unchanged
    tar.extractall(target)


@pytest.fixture
def rng() -> random.Random:
    seed = first_seed()
    print(f'CTXFS_FUZZ_SEED={seed} CTXFS_FUZZ_KILLS={ROUNDS}')
    return random.Random(seed)


def kill_under_load(host: Any, at: Path, load: Load, instant: int) -> None:
    """SIGKILL to the daemon after the load's step number `instant` was acknowledged; the load ends by that."""
    if IS_DOUBLE:
        load.end()
        host.kill9(at)
        return
    pid = host.pid(at)
    load.until(instant)
    host.kill9(at, pid=pid)
    load.end()


def limit(instant: int) -> int:
    """The double cannot die under a load: there the load ends by itself."""
    return instant if IS_DOUBLE else 100_000


def check_elsewhere(site: Site, host: Any, at: Path, name: str) -> None:
    """What this host shows in the end is what another host sees after an orderly unmount."""
    want = observe.snapshot(os.fsencode(at))
    host.unmount(at)
    other = site.host()
    other.mount(name, at)
    got = observe.snapshot(os.fsencode(at))
    other.unmount(at)
    assert observe.differences(got, want, directory_times=False) == []


@pytest.mark.timeout(200 + 60 * ROUNDS)
def test_every_acknowledged_operation_survives(site: Site, rng: random.Random, tmp_path: Path) -> None:
    """Creations, overwrites, renames, removals, modes: what returned before the kill is there, what did not has happened or not."""
    since = time.time_ns()
    host, at = site.host(), site.mount_point()
    (tmp_path / 'oracle').mkdir()
    oracle = Side(os.fsencode(tmp_path / 'oracle'))
    host.mount('c', at, create=True)
    for number in range(ROUNDS):
        instant = rng.randrange(1, 400)
        load = Load(lambda s=rng.randrange(1 << 30), n=number: files(s, n * 100_000), at, limit(instant))
        kill_under_load(host, at, load, instant)
        host.mount('c', at)
        check_against(oracle, load, at, since)
    check_elsewhere(site, host, at, 'c')


@pytest.mark.timeout(200 + 60 * ROUNDS)
def test_an_atomically_replaced_file_is_never_torn(site: Site, rng: random.Random) -> None:
    """Write beside, rename over: after a kill the file is one whole version, the last acknowledged one or the next."""
    def replace(first: int) -> Iterator[int]:
        for version in range(first, first + 100_000):
            yield version
            Path('new').write_bytes(b'%08d' % version + content(50_000, version))
            os.rename('new', 'file')

    host, at = site.host(), site.mount_point()
    host.mount('c', at, create=True)
    last = 0
    for _ in range(ROUNDS):
        instant = rng.randrange(1, 100)
        load = Load(lambda f=last + 1: replace(f), at, limit(instant))
        kill_under_load(host, at, load, instant)
        host.mount('c', at)
        assert load.done >= instant
        data = (at / 'file').read_bytes()
        version = int(data[:8])
        assert data[8:] == content(50_000, version)
        assert version in (load.acknowledged[-1], load.in_flight)
        last = version
    host.unmount(at)


@pytest.mark.parametrize('mode', ['WAL', 'DELETE'])
@pytest.mark.timeout(200 + 60 * ROUNDS)
def test_committed_rows_survive(mode: str, site: Site, rng: random.Random) -> None:
    """SQLite with synchronous=FULL: a database killed under load has every committed row, at most one more, and is whole."""
    def commit(first: int) -> Iterator[int]:
        db = sqlite3.connect('db')
        db.execute(f'PRAGMA journal_mode={mode}')
        db.execute('PRAGMA synchronous=FULL')
        try:
            for n in range(first, first + 100_000):
                yield n
                with db:
                    db.execute('INSERT INTO t VALUES (?, ?)', (n, content(2000, n)))
        except sqlite3.Error as e:
            raise OSError(str(e)) from e

    host, at = site.host(), site.mount_point()
    host.mount('c', at, create=True)
    db = sqlite3.connect(at / 'db')
    db.execute('CREATE TABLE t (n INTEGER PRIMARY KEY, filler BLOB)')
    db.close()
    expected = 0
    for _ in range(ROUNDS):
        instant = rng.randrange(1, 150)
        load = Load(lambda f=expected: commit(f), at, limit(instant))
        kill_under_load(host, at, load, instant)
        host.mount('c', at)
        expected += load.done
        db = sqlite3.connect(at / 'db')
        assert db.execute('PRAGMA integrity_check').fetchone() == ('ok',)
        rows = db.execute('SELECT n, filler FROM t ORDER BY n').fetchall()
        db.close()
        assert len(rows) in ((expected, expected + 1) if load.in_flight is not None else (expected,))
        assert rows == [(n, content(2000, n)) for n in range(len(rows))]
        expected = len(rows)
    check_elsewhere(site, host, at, 'c')


@pytest.mark.timeout(200 + 60 * ROUNDS)
def test_an_interrupted_unpacking_can_be_continued(site: Site, rng: random.Random, tmp_path: Path) -> None:
    """Members of an archive that were unpacked before the kill are whole, with modes and times; unpacking again gives the same tree."""
    archive = tmp_path / 'a.tar'
    library = Path(sysconfig.get_path('stdlib'))
    with tarfile.open(archive, 'w') as tar:
        for name in ('json', 'email', 'asyncio', 'unittest', 'encodings'):
            tar.add(library / name, name, filter=lambda m: None if '__pycache__' in m.name else m)
    (tmp_path / 'want').mkdir()
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        extract_all(tar, tmp_path / 'want')

    def unpack() -> Iterator[str]:
        with tarfile.open(archive) as tar:
            tar.extraction_filter = unchanged
            tar.errorlevel = 2      # the usual 1 swallows the errors of chmod and utime: their loss would count as acknowledged
            for member in tar:
                yield member.name
                try:
                    tar.extract(member)
                except tarfile.ExtractError as e:
                    raise OSError(str(e)) from e

    want = observe.snapshot(os.fsencode(tmp_path / 'want'))
    host, at = site.host(), site.mount_point()
    for _ in range(ROUNDS):
        host.mount('c', at, create=True)
        for entry in os.listdir(at):
            shutil.rmtree(at / entry)
        instant = rng.randrange(1, len(members) - 1)
        load = Load(unpack, at, limit(instant))
        kill_under_load(host, at, load, instant)
        host.mount('c', at)
        got = observe.snapshot(os.fsencode(at))
        done = {os.fsencode(name): want[os.fsencode(name)] for name in load.acknowledged}
        # A directory's time moves with its entries, and its links with its subdirectories, until all of it is unpacked.
        files_done = {path: entry for path, entry in done.items() if entry.content is not None}
        assert observe.differences({path: got[path] for path in files_done if path in got}, files_done) == []
        assert done.keys() <= got.keys()
        host.kill9(at)
    host.mount('c', at)
    with tarfile.open(archive) as tar:
        extract_all(tar, at)
    assert observe.differences(observe.snapshot(os.fsencode(at)), want) == []
    check_elsewhere(site, host, at, 'c')
