"""State directories of other versions of ctxfs: an older one's is brought up to date and loses nothing, a newer one's is left as it is.

tests/fixtures/state-N.sql are databases that a daemon of schema version N left when it was killed, with changes that were not uploaded.
"""
from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from ctxfs.storage.tree_db import SCHEMA_VERSION, TreeDB
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingSite

FIXTURES = Path(__file__).resolve().parent.parent / 'fixtures'
OLD = range(1, SCHEMA_VERSION)
#: staged, and not uploaded: by inode number
STAGED = {3: 'published\nmore\n', 5: 'changed here\n'}

pytestmark = pytest.mark.skipif(IS_DOUBLE, reason='a directory has no state')


def old_database(path: Path, version: int, *, boot_id: str = '', etags: dict[str, str] | None = None) -> None:
    """As the daemon of that version left it."""
    text = (FIXTURES / f'state-{version}.sql').read_text().replace('{boot_id}', boot_id)
    text = re.sub(r'\{etag of (.+?)\}', lambda found: (etags or {}).get(found[1], '"none"'), text)
    with sqlite3.connect(path) as db:
        db.execute('PRAGMA journal_mode=WAL')
        db.executescript(text)
    db.close()


def shape(path: Path) -> dict[str, object]:
    """Columns of tables, the columns of indexes: what statements can name. The order of columns is an old file's own."""
    with sqlite3.connect(path) as db:
        made = {}
        for kind, name in db.execute("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"):
            columns = db.execute(f'PRAGMA {"table" if kind == "table" else "index"}_info({name})').fetchall()
            made[name] = sorted(column[1:6] if kind == 'table' else column[2:3] for column in columns)
    db.close()
    return made


@pytest.mark.parametrize('version', OLD)
def test_an_old_schema_becomes_this_one(version: int, tmp_path: Path) -> None:
    """Every table, column and index that a new database has, and nothing else; the rows stay."""
    TreeDB(tmp_path / 'new.db').close()
    old_database(tmp_path / 'old.db', version)
    db = TreeDB(tmp_path / 'old.db')
    names = {bytes(name) for name, in db.rows('SELECT name FROM dentry')}
    db.close()
    assert shape(tmp_path / 'old.db') == shape(tmp_path / 'new.db')
    assert names == {b'dir', b'published', b'link', b'changed', b'empty', b'fifo'}


def test_there_is_a_database_of_each_older_version() -> None:
    """A new schema version needs its predecessor's here."""
    assert sorted(path.name for path in FIXTURES.glob('state-*.sql')) == [f'state-{version}.sql' for version in OLD]


@pytest.mark.parametrize('version', OLD)
def test_an_old_state_directory_is_mounted_and_uploads_its_changes(version: int, site: MountingSite) -> None:
    """What the old daemon was killed with is there, and is uploaded; what it had removed goes from the bucket; what stays local is there."""
    host, at = site.host(), site.mount_point()
    host.mount('proj', at, create=True)
    (at / 'dir').mkdir()
    (at / 'dir/published').write_text('published\n')
    os.link(at / 'dir/published', at / 'hard')
    os.symlink('dir/published', at / 'link')
    state = Path(host.status(at)['stateDir'])
    host.unmount(at)
    prefix = f'contexts/{site.context_id("proj")}/'
    etags = {key.removeprefix(prefix): etag for key, etag in site.bucket().versions(prefix).items()}
    make_old(state, version, etags)
    host.mount('proj', at)
    found = {str(path.relative_to(at)): path.read_text() for path in at.rglob('*') if path.is_file()}
    assert found == {'dir/published': STAGED[3], 'dir/changed': STAGED[5], 'link': STAGED[3]}
    assert (at / 'empty').is_dir() and stat.S_ISFIFO((at / 'fifo').stat().st_mode)
    host.unmount(at)
    bucket = site.bucket()
    assert (bucket.body(f'{prefix}dir/published'), bucket.body(f'{prefix}dir/changed')) == (STAGED[3].encode(), STAGED[5].encode())
    assert f'{prefix}hard' not in bucket.keys(prefix)


def make_old(state: Path, version: int, etags: dict[str, str]) -> None:
    """Puts a state directory of that version, of this host and this boot, where today's is."""
    with sqlite3.connect(state / 'tree.db') as db:
        boot_id, = db.execute("SELECT value FROM meta WHERE name = 'boot_id'").fetchone()
    db.close()
    for path in state.glob('tree.db*'):
        path.unlink()
    shutil.rmtree(state / 'staging')
    (state / 'staging/0').mkdir(parents=True, mode=0o700)
    (state / 'staging').chmod(0o700)
    for ino, text in STAGED.items():
        (state / f'staging/0/{ino}').write_text(text)
    old_database(state / 'tree.db', version, boot_id=boot_id, etags=etags)


def test_a_newer_state_directory_is_refused_in_one_line(site: MountingSite) -> None:
    """With the version and what to do; nothing is changed in it, and the mount point is free."""
    host, at = site.host(), site.mount_point()
    host.mount('proj', at, create=True)
    state = Path(host.status(at)['stateDir'])
    host.unmount(at)
    with sqlite3.connect(state / 'tree.db') as db:
        db.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", (SCHEMA_VERSION + 1,))
    db.close()
    before = (state / 'tree.db').read_bytes()
    done = host.cli('mount', 'proj', at, check=False)
    assert done.returncode == 1
    assert done.stderr.count('\n') == 1 and 'use the ctxfs that wrote it' in done.stderr, done.stderr
    assert (state / 'tree.db').read_bytes() == before
    assert not os.path.ismount(at)
    assert 'use the ctxfs that wrote it' in host.cli('doctor', '--state', 'proj', check=False).stdout
    assert 'use the ctxfs that wrote it' in host.cli('doctor', '--repair', 'proj', check=False).stdout
    assert (state / 'tree.db').read_bytes() == before
