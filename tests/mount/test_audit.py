"""The audit log of real mounts and commands: every change of the bucket has a line, and nothing is done whose log was asked for and cannot be.

Owns nothing. The file itself is tests/unit/test_audit_log.py's.
"""
from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.crash.watch import eventually
from tests.model.hosts import IS_DOUBLE
from tests.mount.harness import Host
from tests.mount.sites import new_host

pytestmark = pytest.mark.skipif(IS_DOUBLE, reason='says what a mount does, not what any disk does')


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / 'at').mkdir()
    return new_host(tmp_path / 'state', f'file://{tmp_path}/store', {})


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def told(log: Path) -> list[tuple[str, str]]:
    """(operation, key below the context or '') of each line."""
    return [(line['operation'], line.get('key', '').partition('/')[2].partition('/')[2]) for line in lines(log)]


def test_every_change_of_the_bucket_has_a_line(host: Host, tmp_path: Path) -> None:
    """From the creation of the context to the unmount, with versions before and after; a log that cannot be written any more is a warning
    in the status, stops no upload, and goes on when it can."""
    at, log = tmp_path / 'at', tmp_path / 'audit.log'
    host.mount('mine', at, create=True, options=['--audit-log', os.fspath(log), '--sync-every', 'unmount'])
    assert log.stat().st_mode & 0o7777 == 0o600
    (at / 'a').write_bytes(b'one')
    (at / 'b').write_bytes(b'two')
    host.cli('sync', at)
    (at / 'a').write_bytes(b'three')
    (at / 'b').rename(at / 'c')
    host.cli('sync', at)
    assert Counter(told(log)) == Counter([('context-create', ''), ('mount', ''), ('upload', 'a'), ('upload', 'b'), ('overwrite', 'a'),
                                          ('copy', 'c'), ('delete', 'b')])
    by = dict(zip(told(log), lines(log), strict=True))
    assert by['overwrite', 'a']['oldEtag'] == by['upload', 'a']['etag'] != by['overwrite', 'a']['etag']
    assert by['delete', 'b']['oldEtag'] == by['upload', 'b']['etag'] and by['copy', 'c']['source'].endswith('/b')
    mounted = by['mount', '']
    assert (mounted['context'], mounted['mountpoint'], mounted['user']['uid'], mounted['pid']) == ('mine', os.fspath(at), os.getuid(), host.pid(at))
    assert host.status(at)['audit'] == {'path': os.fspath(log), 'lines': 6, 'lost': 0, 'error': ''}

    log.rename(tmp_path / 'rotated')
    log.mkdir()     # nobody can write there
    (at / 'd').write_bytes(b'four')
    host.cli('sync', at)
    status = host.status(at)
    assert (status['audit']['lost'], status['pending']['files']) == (1, 0) and status['audit']['error'] == 'Is a directory'
    assert f'audit     {log} cannot be written: Is a directory; 1 lines are missing' in host.cli('status', at).stdout
    log.rmdir()
    (at / 'd').unlink()
    host.unmount(at)
    assert told(log) == [('audit-gap', ''), ('delete', 'd'), ('unmount', '')] and lines(log)[0]['lost'] == 1
    assert lines(log)[-1]['result'] == 'ok' and lines(log)[-1]['pending'] == 0


def test_members_of_archives_have_lines_like_files(host: Host, tmp_path: Path) -> None:
    """One for each that a commit wrote or removed; a file that becomes an object of its own, or a member again, is overwritten."""
    at, log = tmp_path / 'at', tmp_path / 'audit.log'
    (tmp_path / 'policy.json').write_text('{"uploadPolicy": {"uploadMode": "Archive"}}')
    options = ['--audit-log', os.fspath(log), '--sync-every', 'unmount', '--policy', os.fspath(tmp_path / 'policy.json')]
    host.mount('mine', at, create=True, options=options)
    for name in 'abc':
        (at / name).write_bytes(name.encode())
    host.cli('sync', at)
    (at / 'a').write_bytes(b'three')
    (at / 'b').rename(at / 'd')
    (at / 'c').write_bytes(bytes(5 << 20))
    host.cli('sync', at)
    (at / 'c').write_bytes(b'small')
    host.unmount(at)
    found = [entry for entry in told(log) if entry[1]]
    assert Counter(found) == Counter([('upload', 'a'), ('upload', 'b'), ('upload', 'c'), ('overwrite', 'a'), ('upload', 'd'), ('delete', 'b'),
                                      ('overwrite', 'c'), ('overwrite', 'c')])
    by = [line for line in lines(log) if line.get('key', '').endswith('/c')]
    assert by[0]['etag'] == by[1]['oldEtag'] and by[1]['etag'] == by[2]['oldEtag'] and by[2]['size'] == 5
    assert all(line['result'] == 'ok' for line in lines(log))


def test_a_request_whose_answer_was_lost_has_its_outcome_in_the_end(host: Host, tmp_path: Path) -> None:
    """The object is in the bucket and the worker died before anybody heard of it: unknown, and then what the next try found."""
    at, log = tmp_path / 'at', tmp_path / 'audit.log'
    options = ['--audit-log', os.fspath(log), '--sync-every', 'unmount']
    # the first that is put is the context's mode
    host.mount('mine', at, create=True, options=options, env={'CTXFS_CRASH_POINT': 'worker-put-after-commit:2'})
    (at / 'a').write_bytes(b'one')
    host.unmount(at)
    tries = [line for line in lines(log) if line.get('key', '').endswith('/a')]
    assert [(line['operation'], line['result'], line.get('recovered')) for line in tries] == [('upload', 'unknown', None), ('upload', 'ok', True)]
    assert lines(log)[-1]['operation'] == 'unmount'


@pytest.mark.parametrize('reason', ['inside', 'directory', 'relative'])
def test_a_log_that_cannot_serve_is_refused(reason: str, host: Host, tmp_path: Path) -> None:
    """One line, exit status 2 or 1, and nothing is made or mounted."""
    at = tmp_path / 'at'
    wrong = {'inside': (os.fspath(at / 'x.log'), 2, 'would lie inside the mount; choose a place outside of'),
             'directory': (os.fspath(tmp_path), 1, 'cannot be written: Is a directory'),
             'relative': ('audit.log', 2, 'config.toml: audit_log: audit.log: write an absolute path')}
    path, status, text = wrong[reason]
    config = tmp_path / 'config/ctxfs'
    config.mkdir(parents=True)
    if reason == 'relative':
        (config / 'config.toml').write_text(f'audit_log = "{path}"\n')
    option = [] if reason == 'relative' else ['--audit-log', path]
    done = host.cli('mount', '--create', 'mine', at, *option, check=False, env={'XDG_CONFIG_HOME': os.fspath(tmp_path / 'config')})
    assert done.returncode == status and text in done.stderr and done.stderr.count('\n') == 1
    assert not (tmp_path / 'store').exists()


def test_commands_and_failures_have_lines(host: Host, tmp_path: Path) -> None:
    """By config.toml: a context that is made, a policy that is stored, a mount that cannot be."""
    log, config = tmp_path / 'audit.log', tmp_path / 'config/ctxfs'
    config.mkdir(parents=True)
    (config / 'config.toml').write_text(f'audit_log = "{log}"\n')
    (tmp_path / 'policy.json').write_text('{"uploadPolicy": {"period": 5}}')
    env = {'XDG_CONFIG_HOME': os.fspath(tmp_path / 'config')}
    host.cli('context', 'create', 'mine', env=env)
    host.cli('policy', 'set', 'mine', tmp_path / 'policy.json', env=env)
    for command in (['policy', 'set', 'other', tmp_path / 'policy.json'], ['mount', 'other', tmp_path / 'at']):
        assert host.cli(*command, check=False, env=env).returncode == 1
    shutil.rmtree(tmp_path / 'store')
    assert host.cli('context', 'create', 'mine', check=False, env={**env, 'CTXFS_STORE': ''}).returncode in (0, 1)
    found = [(line['operation'], line['result'], line['context']) for line in lines(log)]
    assert found[:4] == [('context-create', 'ok', 'mine'), ('policy-set', 'ok', 'mine'), ('policy-set', 'failed', 'other'),
                         ('mount', 'failed', 'other')]
    assert lines(log)[0]['contextId'].startswith('SdkCtx-') and 'no context other' in lines(log)[3]['error']
    eventually('the log is complete', lambda: len(lines(log)) == 5)
