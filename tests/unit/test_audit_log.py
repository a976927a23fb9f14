"""The audit log's file and lines: what is refused, what a rotation and a full disk do, and which operations give which line.

Owns nothing. It must not need a mount.
"""
from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from ctxfs.errors import Denied, OutOfTurn, RemoteChanged, RemoteUnavailable
from ctxfs.records import Attrs
from ctxfs.storage.audit_log import AuditLog, about
from ctxfs.storage.journal import Known
from ctxfs.storage.object_store import Condition
from ctxfs.sync.audit import Auditor
from ctxfs.sync.protocol import (
    Copy,
    CopyDone,
    DeleteDone,
    DeleteMany,
    EnsureExpiry,
    Head,
    ItemFailure,
    PutBytes,
    PutDone,
    PutFile,
    PutItem,
    PutMany,
    PutManyDone,
)

PREFIX = 'contexts/c/'
ATTRS = Attrs(mode=0o100644, uid=0, gid=0, mtime_ns=0, atime_ns=0, ctime_ns=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'audit.log'


def opened(path: Path | None) -> AuditLog:
    return AuditLog(str(path) if path else None, about('file:///s', context_id='SdkCtx-1', context='mine', host_id='0123456789abcdef'))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- the file ----------------------------------------------------------------------------------------------------------------------

def test_a_line_says_who_did_what_when(path: Path) -> None:
    log = opened(path)
    log.write('upload', key='contexts/c/a', size=3, oldEtag=None, etag='"e"')
    log.close()
    line, = lines(path)
    assert line.pop('time').endswith('Z') and line.pop('host') and line.pop('version')
    assert line == {'user': {'uid': os.getuid(), 'name': line['user']['name']}, 'pid': os.getpid(), 'hostId': '0123456789abcdef',
                    'contextId': 'SdkCtx-1', 'context': 'mine', 'store': 'file:///s', 'operation': 'upload', 'key': 'contexts/c/a', 'size': 3,
                    'etag': '"e"', 'result': 'ok'}


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    log = opened(None)
    log.write('upload')
    log.make_durable()
    assert log.state() is None and not list(tmp_path.iterdir())


def test_it_is_private_also_when_it_was_not(path: Path) -> None:
    """0600 whatever the umask is; a laxer file of an earlier time is mended."""
    before = os.umask(0)
    try:
        opened(path).close()
        assert path.stat().st_mode & 0o7777 == 0o600
        path.chmod(0o644)
        opened(path).close()
        assert path.stat().st_mode & 0o7777 == 0o600
    finally:
        os.umask(before)


def test_lines_are_added_to_those_that_are_there(path: Path) -> None:
    """Of this process, and between them of others."""
    one, two = opened(path), opened(path)
    for number in range(3):
        one.write('upload', size=number)
        two.write('delete', size=number)
    assert [(line['operation'], line['size']) for line in lines(path)] == [(what, n) for n in range(3) for what in ('upload', 'delete')]
    one.close()
    two.close()


@pytest.mark.parametrize('kind', ['directory', 'symlink', 'fifo', 'missing directory', 'device'])
def test_what_cannot_serve_is_refused(kind: str, path: Path) -> None:
    """At once and in one line: nothing is mounted without the record that was asked for."""
    made: dict[str, Any] = {'directory': path.mkdir, 'symlink': lambda: path.symlink_to('elsewhere'), 'fifo': lambda: os.mkfifo(path)}
    made.get(kind, lambda: None)()
    at = {'missing directory': path / 'x', 'device': Path('/dev/null')}.get(kind, path)
    with pytest.raises(Denied, match=f'the audit log {at} cannot be written: '):
        opened(at)
    assert not (path.parent / 'elsewhere').exists()


@pytest.mark.needs_root
def test_a_file_of_somebody_else_is_refused(path: Path) -> None:
    """To root it is not: it may write where an administrator's log rotation put a file."""
    path.touch()
    os.chown(path, 4242, 4242)
    opened(path).close()
    assert path.stat().st_uid == 4242
    path.parent.chmod(0o777)
    path.chmod(0o666)
    os.seteuid(65534)
    try:
        with pytest.raises(Denied, match='it belongs to user 4242'):
            opened(path)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize('rotation', ['moved', 'removed', 'replaced'])
def test_it_follows_a_rotation(rotation: str, path: Path) -> None:
    """The next line goes to the file that has the name now."""
    log = opened(path)
    log.write('upload', size=1)
    if rotation == 'removed':
        path.unlink()
    else:
        path.rename(path.with_suffix('.1'))
    if rotation == 'replaced':
        path.touch(mode=0o640)
    log.write('upload', size=2)
    log.close()
    assert [line['size'] for line in lines(path)] == [2]
    assert path.stat().st_mode & 0o7777 == 0o600
    if rotation != 'removed':
        assert [line['size'] for line in lines(path.with_suffix('.1'))] == [1]


def test_a_full_disk_stops_nothing_and_is_seen(path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One WARNING, a count and a cause in the state; then lines again, the first of which says how many are missing. A line that was written
    in part spoils no other."""
    caplog.set_level(logging.INFO)
    log, real, room = opened(path), os.write, 100

    def write(fd: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, 'No space left on device')
        written = real(fd, data[:room])
        room -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, 'write', write)
        for number in range(3):
            log.write('upload', size=number)
        assert log.state() == {'path': str(path), 'lines': 0, 'lost': 3, 'error': 'No space left on device'}
    log.write('upload', size=3)
    state = log.state()
    assert state is not None and (state['lines'], state['lost'], state['error']) == (2, 3, '')
    torn, gap, last = path.read_text().splitlines()
    assert len(torn) == 100
    assert json.loads(gap)['operation'] == 'audit-gap' and json.loads(gap)['lost'] == 3
    assert json.loads(last)['size'] == 3
    assert [record.levelname for record in caplog.records] == ['WARNING', 'INFO']
    log.close()


def test_an_error_is_cut_and_an_odd_name_spelled(path: Path) -> None:
    """A line has a bound, and is JSON whatever is in a key."""
    log = opened(path)
    log.write('upload', key='\udcff' + 'k' * 1000, result='failed', error='e' * 100_000)
    log.close()
    assert len(path.read_bytes()) < 8192
    assert lines(path)[0]['key'].startswith('\\udcffkkk')


# --- the lines ---------------------------------------------------------------------------------------------------------------------

class Told(list[dict[str, Any]]):
    def __call__(self, operation: str, *, result: str = 'ok', error: str = '', **data: Any) -> None:
        said = {'operation': operation, 'result': result, 'error': error, **data}
        self.append({name: value for name, value in said.items() if value not in ('', None)})


def put(key: str, condition: Condition) -> PutFile:
    return PutFile(key=PREFIX + key, path='/x', size=9, attrs=ATTRS, revision=1, condition=condition)


NEW, OVER = Condition(absent=True), Condition(etag='"old"')
DONE = PutDone(etag='"new"', size=7, sha256='')


@pytest.mark.parametrize(('operation', 'outcome', 'expected'), [
    (put('a', NEW), DONE, [{'operation': 'upload', 'key': 'contexts/c/a', 'size': 7, 'etag': '"new"', 'result': 'ok'}]),
    (put('a', OVER), DONE, [{'operation': 'overwrite', 'key': 'contexts/c/a', 'size': 7, 'oldEtag': '"old"', 'etag': '"new"', 'result': 'ok'}]),
    (put('a', OVER), PutDone(etag='"new"', size=7, sha256='', is_recovered=True),
     [{'operation': 'overwrite', 'key': 'contexts/c/a', 'size': 7, 'oldEtag': '"old"', 'etag': '"new"', 'recovered': True, 'result': 'ok'}]),
    (put('a', OVER), PutDone(etag='"old"', size=7, sha256='', is_skipped=True), []),
    (put('a', NEW), PutDone(etag='', size=7, sha256='', is_aborted=True), []),
    (put('a', NEW), RemoteChanged('put a: changed'),
     [{'operation': 'upload', 'key': 'contexts/c/a', 'size': 9, 'result': 'failed', 'error': 'put a: changed'}]),
    (put('a', NEW), RemoteUnavailable('no answer'),
     [{'operation': 'upload', 'key': 'contexts/c/a', 'size': 9, 'result': 'unknown', 'error': 'no answer'}]),
    (PutBytes(key=PREFIX + 'd/', body=b''), PutDone(etag='"m"', size=0, sha256=''),
     [{'operation': 'upload', 'key': 'contexts/c/d/', 'size': 0, 'etag': '"m"', 'result': 'ok'}]),
    (Copy(source=PREFIX + 'a', key=PREFIX + 'b', condition=OVER), CopyDone(etag='"new"', size=7),
     [{'operation': 'copy', 'key': 'contexts/c/b', 'source': 'contexts/c/a', 'size': 7, 'oldEtag': '"old"', 'etag': '"new"', 'result': 'ok'}]),
    (DeleteMany(items=[(PREFIX + 'a', '"1"'), (PREFIX + 'b', '"2"')]),
     DeleteDone(failures=[ItemFailure(key=PREFIX + 'b', name='RemoteChanged', message='changed')]),
     [{'operation': 'delete', 'key': 'contexts/c/a', 'oldEtag': '"1"', 'result': 'ok'},
      {'operation': 'delete', 'key': 'contexts/c/b', 'oldEtag': '"2"', 'result': 'failed', 'error': 'changed'}]),
    (PutMany(files=[put('a', Condition(absent=True)), put('b', OVER), put('c', OVER)], parallel=2),
     PutManyDone(items=[PutItem(done=DONE), PutItem(failure=ItemFailure(key=PREFIX + 'b', name='RemoteChanged', message='changed')),
                        PutItem(done=PutDone(etag='', size=0, sha256='', is_aborted=True))]),
     [{'operation': 'upload', 'key': 'contexts/c/a', 'size': 7, 'etag': '"new"', 'result': 'ok'},
      {'operation': 'overwrite', 'key': 'contexts/c/b', 'size': 9, 'oldEtag': '"old"', 'result': 'failed', 'error': 'changed'}]),
    (PutMany(files=[put('a', OVER)], parallel=2), RemoteUnavailable('gone'),
     [{'operation': 'overwrite', 'key': 'contexts/c/a', 'size': 9, 'oldEtag': '"old"', 'result': 'unknown', 'error': 'gone'}]),
    (DeleteMany(items=[(PREFIX + 'a', '"1"')], is_expiry=True), DeleteDone(failures=[]),
     [{'operation': 'expire', 'key': 'contexts/c/a', 'oldEtag': '"1"', 'result': 'ok'}]),
    (DeleteMany(items=[(PREFIX + 'a', None)]), RemoteUnavailable('gone'),
     [{'operation': 'delete', 'key': 'contexts/c/a', 'result': 'unknown', 'error': 'gone'}]),
    (DeleteMany(items=[(PREFIX + 'a', None)]), OutOfTurn('not now'),
     [{'operation': 'delete', 'key': 'contexts/c/a', 'result': 'failed', 'error': 'not now'}]),
    (EnsureExpiry(lifecycle='Lifecycle_3Days', days=3), None,
     [{'operation': 'expiry-rule', 'lifecycle': 'Lifecycle_3Days', 'days': 3, 'result': 'ok'}]),
    (Copy(source=PREFIX + 'a', key=PREFIX + '.ctxfs/tmp/x'), CopyDone(etag='"new"', size=7), []),
    (Head(keys=[PREFIX + 'a']), [], []),
])
def test_an_operation_and_its_outcome_give_lines(operation: Any, outcome: Any, expected: list[dict[str, Any]]) -> None:
    """What changed the bucket, or was to, by whom what; what changed nothing, and ctxfs's own objects, give none."""
    told = Told()
    auditor = Auditor(told, prefix=PREFIX)
    if auditor.wants(operation):
        auditor.ended(operation, outcome)
    assert told == expected


def test_events_and_what_a_recovery_finds_give_lines() -> None:
    told = Told()
    auditor = Auditor(told, prefix=PREFIX)
    auditor.event('conflict', path='/a (conflict)', original='/a')
    auditor.event('pending', files=1, bytes=2)
    auditor.arrived(Known('a', '"e"', 5, 2, 1, '', 0))
    auditor.reverted('/b', '/state/quarantine/2.0')
    assert told == [
        {'operation': 'conflict', 'path': '/a (conflict)', 'original': '/a', 'result': 'ok'},
        {'operation': 'upload', 'key': 'contexts/c/a', 'size': 5, 'etag': '"e"', 'recovered': True, 'result': 'ok'},
        {'operation': 'quarantine', 'path': '/b', 'keptAt': '/state/quarantine/2.0', 'result': 'ok'}]
