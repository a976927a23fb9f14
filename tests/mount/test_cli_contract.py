"""The command line as scripts use it, with the real daemon and the embedded store: what may be relied on in JSON and exit statuses."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ctxfs.edge.mount_table import mount_at

ROOT = Path(__file__).resolve().parents[2]


class Host:
    """A user with a home of his own."""

    def __init__(self, tmp: Path) -> None:
        self.at = tmp / 'm'
        for path in (tmp / 'home', tmp / 'run', self.at):
            path.mkdir()
        self.env = {**os.environ, 'HOME': str(tmp / 'home'), 'XDG_RUNTIME_DIR': str(tmp / 'run'), 'PYTHONPATH': str(ROOT)}
        self.command = [sys.executable, '-m', 'ctxfs']

    def run(self, *args, status=0) -> subprocess.CompletedProcess:
        done = subprocess.run([*self.command, *map(str, args)], env=self.env, capture_output=True, text=True, timeout=120,
                              stdin=subprocess.DEVNULL, cwd='/')
        assert done.returncode == status, f'{args}: exit {done.returncode}: {done.stderr}'
        return done

    def json(self, *args):
        return json.loads(self.run(*args, '--json').stdout)


@pytest.fixture
def host(tmp):
    return Host(tmp)


def test_a_context_from_nothing(host, tmp):
    """No account, no configuration: created, filled, unmounted, mounted again, found."""
    host.run('mount', '--create', 'my-project', host.at)
    (host.at / 'a').write_text('hello')
    assert host.run('umount', host.at).stdout == ''
    made = host.json('context', 'show', 'my-project')
    assert made.keys() >= {'id', 'name', 'createdAt', 'lastUsedAt', 'state'} and made['state'] == 'available'
    assert (tmp / f'home/.local/share/ctxfs/store/contexts/{made["id"]}/a').read_text() == 'hello'
    host.run('mount', made['id'], host.at, '--state-dir', tmp / 'other')
    assert (host.at / 'a').read_text() == 'hello'
    subprocess.run(['fusermount3', '-u', host.at], check=True)
    host.run('wait', 'my-project')


def test_status_has_what_the_contract_names(host):
    """Every documented key, with the right kind of value."""
    host.run('mount', '--create', 'proj', host.at)
    (host.at / 'a').write_text('x' * 100)
    mount, = host.json('status', host.at)['mounts']
    kinds = {'contextId': str, 'contextName': str, 'mountpoint': str, 'pid': int, 'store': str, 'stateDir': str, 'conflicts': int, 'tasks': list}
    assert {key: type(mount[key]) for key in kinds} == kinds
    assert mount['pending'].keys() >= {'files', 'bytes', 'oldestSeconds'} and mount['pending']['files'] >= 1
    assert mount['localOnly'].keys() >= {'files', 'bytes'}
    host.run('sync', host.at)
    mount, = host.json('status', 'proj')['mounts']
    assert mount['pending']['files'] == 0
    for task in mount['tasks']:
        assert task.keys() >= {'contextId', 'path', 'taskType', 'status', 'startTime', 'finishTime', 'errorMessage', 'bytesDone', 'bytesTotal',
                               'filesDone', 'filesTotal', 'attempt', 'nextRetry'}
    assert 'Success' in {task['status'] for task in mount['tasks']}
    host.run('wait', 'proj')
    host.run('umount', 'proj')
    assert host.json('status') == {'mounts': []}


def test_foreground_stays_until_everything_is_written_back(host):
    """As a service manager runs it: the process is the daemon, and its end is the end of the upload."""
    with subprocess.Popen([*host.command, 'mount', '--create', '--foreground', 'proj', str(host.at)], env=host.env, cwd='/',
                          stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as daemon:
        lines = []
        while mount_at(str(host.at)) is None:
            lines.append(daemon.stderr.readline())
            assert lines[-1], ''.join(lines)
        (host.at / 'a').write_text('x')
        assert host.json('status', 'proj')['mounts'][0]['pid'] == daemon.pid
        subprocess.run(['fusermount3', '-u', host.at], check=True)
        daemon.stderr.read()
        assert daemon.wait(60) == 0
    host.run('wait', 'proj')
    store = Path(host.env['HOME']) / '.local/share/ctxfs/store/contexts'
    assert [path.read_text() for path in store.rglob('a')] == ['x']


def test_a_killed_daemon_loses_nothing(host):
    """`wait` says that it died; the next mount has the files and uploads them."""
    host.run('mount', '--create', 'proj', host.at)
    (host.at / 'a').write_text('x')
    os.kill(host.json('status', host.at)['mounts'][0]['pid'], 9)
    assert 'mount again' in host.run('wait', 'proj', status=1).stderr
    host.run('mount', 'proj', host.at)
    assert (host.at / 'a').read_text() == 'x'
    host.run('umount', host.at)
