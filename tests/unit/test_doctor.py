"""`ctxfs doctor`: each check has its line, and one that fails hides none of the others."""
from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctxfs.edge import cli, preflight
from ctxfs.edge.doctor import Finding, Level, examine
from ctxfs.edge.state_lock import locked
from ctxfs.errors import Denied
from ctxfs.storage.journal import Journal
from ctxfs.storage.staging import Staging
from ctxfs.storage.stores import open_store
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.recovery import recover


def test_a_check_that_raises_is_a_finding_and_the_others_go_on() -> None:
    """Its error is the text."""
    def broken() -> Iterator[Finding]:
        yield Finding(Level.OK, 'a', 'half of it')
        raise Denied('not allowed')
    found = list(examine([('a', broken), ('b', lambda: [Finding(Level.WARN, 'b', 'slow', 'wait')])]))
    assert found == [Finding(Level.OK, 'a', 'half of it'), Finding(Level.FAIL, 'a', 'not allowed'), Finding(Level.WARN, 'b', 'slow', 'wait')]


def test_the_exit_status_says_whether_anything_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A store that is there is ok; one that is not fails, with its line."""
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(preflight, 'check_fuse', lambda: None)
    assert cli.run(['doctor']) == 0
    assert 'ok   store: file://' in capsys.readouterr().out
    assert cli.run(['doctor', '--store', f'file://{tmp_path}/none', '--json']) == 1
    findings = {finding['check']: finding for finding in json.loads(capsys.readouterr().out)['findings']}
    assert findings['fuse']['level'] == 'ok'
    assert findings['store']['level'] == 'fail'
    assert str(tmp_path) in findings['store']['text']


# --- state directories -----------------------------------------------------------------------------------------------------------------

@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory as a mount of the context `proj` left it, in the state root of this user."""
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('XDG_RUNTIME_DIR', str(tmp_path))
    store = tmp_path / 'store'
    store.mkdir()
    directory = tmp_path / '.local/state/ctxfs/SdkCtx-0-1'
    (directory / 'last-mount').mkdir(parents=True, mode=0o700)
    record = {'contextId': 'SdkCtx-0', 'contextName': 'proj', 'mountpoint': str(tmp_path / 'mnt'), 'store': f'file://{store}',
              'stateDir': str(directory), 'logFile': '', 'pid': 1, 'pidStart': 0, 'bootId': 'another', 'startedAt': 0.0}
    (directory / 'last-mount/mount.json').write_text(json.dumps(record))
    staging = Staging(directory / 'staging')
    db = TreeDB(directory / 'tree.db')
    recover(db, Journal(db), staging, uid=0, gid=0)
    db.close()
    return directory


def findings(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, str]]]:
    status = cli.run(['doctor', *arguments, '--json'])
    return status, json.loads(capsys.readouterr().out)['findings']


def test_a_sound_state_directory_is_one_line(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a context that is named, and where none is."""
    for arguments in (['proj'], []):
        status, found = findings(capsys, '--state', *arguments)
        assert status == 0 and [(finding['level'], finding['check']) for finding in found] == [('ok', 'state')]
        assert 'agrees with itself' in found[0]['text']


def test_each_contradiction_has_its_level_and_what_to_do(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What an unclean end left is a warning; what nothing explains fails; what the bucket has otherwise is told."""
    db = TreeDB(state / 'tree.db')
    db.execute("INSERT INTO pending VALUES (99, 1, 1, 1, 0, 0, '')")
    db.execute("INSERT INTO object VALUES ('gone', 'e', 1, 99, 1, '', 2, '', 0, 0)")
    db.close()
    with contextlib.closing(open_store(f'file://{state.parents[3]}/store')) as store:
        store.put('contexts/SdkCtx-0/new', b'')
    status, found = findings(capsys, '--state', 'proj')
    assert status == 0
    assert [(finding['level'], finding['check'], finding['fix']) for finding in found] == [
        ('warn', 'state-journal', 'the next mount settles it'), ('ok', 'state-bucket', 'the next mount takes it over')]
    db = TreeDB(state / 'tree.db')
    db.execute('UPDATE inode SET nlink = 5')
    db.close()
    status, found = findings(capsys, '--state', 'proj')
    assert status == 1 and found[0]['level'] == 'fail' and found[0]['fix'] == 'unmount it and run ctxfs doctor --repair proj'


def test_a_store_that_does_not_answer_hides_nothing(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a warning beside what the directory says by itself."""
    (state.parents[3] / 'store').rmdir()
    status, found = findings(capsys, '--state', 'proj')
    assert status == 0 and [finding['level'] for finding in found] == ['warn', 'ok'] and 'could not be compared' in found[0]['text']


def test_a_repair_wants_a_context_that_is_known_and_not_in_use(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused in one line each, and then nothing is changed."""
    before = (state / 'tree.db').read_bytes()
    assert cli.run(['doctor', '--repair']) == 2
    assert capsys.readouterr().err == 'ctxfs: write ctxfs doctor --repair CTX\n'
    assert cli.run(['doctor', '--repair', 'prok']) == 1
    assert 'prok has no state on this host (did you mean proj?)' in capsys.readouterr().err
    os.truncate(state / 'tree.db', 5000)
    before = (state / 'tree.db').read_bytes()
    with locked(state):
        status, found = findings(capsys, '--repair', 'proj')
    assert status == 1 and 'is in use' in found[0]['text'] and (state / 'tree.db').read_bytes() == before
    status, found = findings(capsys, '--repair', 'proj')
    assert status == 0 and 'rebuilt' in found[0]['text']
    status, found = findings(capsys, '--repair', 'proj')
    assert status == 0 and 'there is nothing to repair' in found[0]['text']


def test_the_database_of_a_newer_ctxfs_is_left_alone(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A repair would drop what it does not know."""
    db = TreeDB(state / 'tree.db')
    db.set_meta('schema_version', 99)
    db.close()
    before = (state / 'tree.db').read_bytes()
    for option in ('--state', '--repair'):
        status, found = findings(capsys, option, 'proj')
        assert status == 1 and 'use the ctxfs that wrote it' in found[0]['text']
    assert (state / 'tree.db').read_bytes() == before
