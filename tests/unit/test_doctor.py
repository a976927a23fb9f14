"""`ctxfs doctor`: each check has its line, and one that fails hides none of the others."""
from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import ctxfs
from ctxfs.config import Paths
from ctxfs.edge import cli, doctor_host, doctor_store, preflight
from ctxfs.edge.doctor import Finding, Level, examine
from ctxfs.edge.state_lock import locked
from ctxfs.errors import Denied
from ctxfs.storage.journal import Journal
from ctxfs.storage.staging import Staging
from ctxfs.storage.stores import open_store
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.recovery import recover
from tests.fakes.s3_server import FakeS3


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


def test_a_user_without_mtab_is_warned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a root that was never booted: he could mount, and not unmount. Root needs none."""
    monkeypatch.setattr(preflight, 'check_fuse', lambda: None)
    monkeypatch.setattr(doctor_host, 'MTAB', str(tmp_path / 'mtab'))
    monkeypatch.setattr(os, 'geteuid', lambda: 1000)
    found, _ = doctor_host.check_fuse()
    assert (found.level, found.check) == (Level.WARN, 'fuse') and 'ln -s ../proc/self/mounts' in found.fix
    monkeypatch.setattr(os, 'geteuid', lambda: 0)
    assert [found.level for found in doctor_host.check_fuse()] == [Level.OK]
    (tmp_path / 'mtab').touch()
    monkeypatch.setattr(os, 'geteuid', lambda: 1000)
    assert [found.level for found in doctor_host.check_fuse()] == [Level.OK]


# --- the host and the store ------------------------------------------------------------------------------------------------------------

@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'AKID')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')
    with FakeS3() as fake:
        yield fake


def url_of(fake: FakeS3, below: str = '') -> str:
    return f's3://{fake.bucket}{below}?endpoint={fake.endpoint}'


@pytest.mark.parametrize('ahead, level, said', [(0, 'OK', 'agrees with'), (300, 'WARN', '5 min ahead of'), (-3600, 'WARN', '60 min behind')])
def test_a_wrong_clock_is_told(server: FakeS3, ahead: int, level: str, said: str) -> None:
    """By the store's own."""
    server.clock = lambda: time.time() - ahead
    found, = doctor_store.check_clock(url_of(server), context=None)
    assert (found.level, found.check) == (Level[level], 'clock') and said in found.text


def rule(name: str, filters: str, *, status: str = 'Enabled', does: str = '<Expiration><Days>7</Days></Expiration>') -> str:
    return f'<Rule><ID>{name}</ID>{filters}<Status>{status}</Status>{does}</Rule>'


def test_rules_that_remove_files_of_contexts_are_told(server: FakeS3) -> None:
    """Of others, by their prefix and what else they say; ctxfs's own are named; what is elsewhere, off or removes nothing is no matter."""
    server.lifecycle = ('<LifecycleConfiguration>' + ''.join((
        rule('mine', '<Filter><Tag><Key>ctxfs-lifecycle</Key><Value>Lifecycle_3Days</Value></Tag></Filter>'),
        rule('all', '<Prefix></Prefix>'), rule('one', '<Filter><Prefix>data/contexts/x/</Prefix></Filter>'),
        rule('large', '<Filter><And><Prefix>data/</Prefix><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan></And></Filter>'),
        rule('elsewhere', '<Filter><Prefix>logs/</Prefix></Filter>'), rule('off', '<Prefix/>', status='Disabled'),
        rule('parts', '<Prefix/>', does='<AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation>'
                                        '</AbortIncompleteMultipartUpload>'),
    )) + '</LifecycleConfiguration>').encode()
    found = list(doctor_store.check_rules(url_of(server, '/data'), context=None))
    assert [(f.level, f.text.partition(' of this bucket ')[0]) for f in found] == [
        (Level.OK, 'lifecycle rules of ctxfs: mine'), *((Level.WARN, f'the lifecycle rule {name}') for name in ('all', 'one', 'large'))]
    assert 'below contexts/x/ after 7 days' in found[2].text and '(ObjectSizeGreaterThan 5)' in found[3].text


def test_a_bucket_without_rules_is_one_line(server: FakeS3) -> None:
    """Nothing is wrong with that."""
    found, = doctor_store.check_rules(url_of(server), context=None)
    assert (found.level, found.text) == (Level.OK, 'lifecycle rules of ctxfs: none')


def test_directories_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    """One that is somebody's, one that is shared, one that is a file; with what to do."""
    paths = Paths(state=tmp_path / 'state/ctxfs', cache=None, data=tmp_path, runtime=tmp_path, config_file=tmp_path)
    found, = doctor_host.check_directories(paths)
    assert found.level in (Level.OK, Level.WARN) and not (tmp_path / 'state').exists()
    shared = tmp_path / 'shared'
    shared.mkdir()
    shared.chmod(0o1777)
    (tmp_path / 'file').touch()
    found = list(doctor_host.check_directories(msgspec.structs.replace(paths, state=shared, runtime=tmp_path / 'file')))
    assert [f.level for f in found] == [Level.FAIL] * 2
    texts = ' '.join(f.text for f in found)
    assert 'is shared by many users' in texts and 'something else is in the way' in texts
    assert all(f.fix for f in found)


def test_versions_are_told() -> None:
    """What a report of a fault needs."""
    found, = doctor_host.check_versions()
    assert f'ctxfs {ctxfs.__version__}, Python {platform.python_version()}, libfuse 3.' in found.text


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
