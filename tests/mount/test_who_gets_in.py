"""What other users of the host, and readers of logs and answers, get of a mount: nothing.

Owns the places where something could be found: files, sockets, command lines, environments of helpers, output and logs, of runs that work and of
runs that fail. It must not know how ctxfs keeps it from there. That programs of the same user see nothing of the processes either is in
unprivileged_scenario.py.
"""
from __future__ import annotations

import errno
import os
import re
import secrets
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctxfs.edge.client import ControlClient
from ctxfs.edge.runtime_dir import find_mounts
from tests.crash.watch import eventually
from tests.fakes.s3_server import FakeS3, Fault
from tests.model.hosts import IS_DOUBLE
from tests.model.processes import NOBODY, in_child
from tests.mount.harness import CTXFS, Host
from tests.servers import S3Server

pytestmark = pytest.mark.skipif(IS_DOUBLE, reason='says what a mount does, not what any disk does')


# --- files -------------------------------------------------------------------------------------------------------------------------

def open_to_others(*roots: Path) -> list[str]:
    """What below (and at) these has any bit for anybody but its owner, or another owner."""
    found = []
    for root in roots:
        for path in (root, *root.rglob('*')):
            status = path.lstat()
            if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != os.getuid():
                found.append(f'{path} {stat.filemode(status.st_mode)} {status.st_uid}')
    return found


@pytest.mark.parametrize('is_foreground', [False, True], ids=['daemon', 'foreground'])
def test_everything_on_the_host_is_private(is_foreground: bool, tmp_path: Path) -> None:
    """State, staged and cached bytes, database, logs, sockets, records, whatever the umask is; and what was laxer before is mended by the next
    mount."""
    at = tmp_path / 'at'
    at.mkdir()
    (tmp_path / 'deep').mkdir(mode=0o700)
    host = Host(tmp_path / 'deep/state', store=f'file://{tmp_path}/store')
    before = os.umask(0)
    thread: threading.Thread | None = None
    try:
        for number in range(1 if is_foreground else 2):
            if is_foreground:
                host.cli('context', 'create', 'mine')
                thread = threading.Thread(target=host.cli, args=('mount', 'mine', at, '--foreground', '--audit-log', tmp_path / 'deep/audit.log'))
                thread.start()
                wait_for_mount(host)
            else:
                host.mount('mine', at, create=True, options=['--sync-every', 'unmount', '--audit-log', os.fspath(tmp_path / 'deep/audit.log')])
            (at / 'clean').write_bytes(b'x' * 5000)
            (at / f'link{number}').symlink_to('clean')
            host.cli('sync', at)
            (at / 'staged').write_bytes(b'x' * 3_000_000)
            assert open_to_others(tmp_path / 'deep', host.runtime) == []
            host.run('fusermount3', '-u', at)
            host.cli('wait', 'mine')
            if thread is not None:
                thread.join()
            assert open_to_others(tmp_path / 'deep', host.runtime) == []
            assert stat.S_IMODE((tmp_path / 'store').stat().st_mode) == 0o700
            for path in [tmp_path / 'deep/state', *(tmp_path / 'deep').rglob('*')]:     # as somebody's mistake would leave it
                if 'cache' not in path.parts:
                    path.chmod(0o755 if path.is_dir() else 0o644)
    finally:
        os.umask(before)


def wait_for_mount(host: Host) -> None:
    eventually('the mount answers', lambda: any(mount.get('state') == 'mounted' for mount in host.json('status')['mounts']), every=1)


@pytest.mark.needs_root
def test_another_user_gets_nothing(tmp_path: Path) -> None:
    """Neither the mount (without -o allow_other), nor the socket, nor the state; and where the way to the socket was opened by mistake, the
    daemon itself refuses."""
    at, state = tmp_path / 'at', tmp_path / 'state'
    at.mkdir(mode=0o755)
    tmp_path.chmod(0o711)
    host = Host(state, store=f'file://{tmp_path}/store', runtime=tmp_path)
    host.mount('mine', at, create=True)
    (at / 'f').write_text('x')
    (at / 'f').chmod(0o666)
    at.chmod(0o777)
    mount, = find_mounts(tmp_path / 'ctxfs')
    calls = [lambda: os.listdir(at), lambda: os.stat(at / 'f'), lambda: (at / 'new').touch(), lambda: os.listdir(state),
             lambda: os.listdir(tmp_path / 'store'), lambda: os.listdir(tmp_path / 'ctxfs'), lambda: connect(mount.socket)]
    assert in_child(lambda: [errno_of(call) for call in calls], tmp_path, NOBODY) == ['EACCES'] * len(calls)
    for path in (tmp_path / 'ctxfs', mount.path, mount.socket):
        path.chmod(0o777)
    assert in_child(lambda: connect(mount.socket), tmp_path, NOBODY) == f'user {NOBODY} may not control this mount'
    host.unmount(at)


def connect(path: Path) -> str:
    """The message of the refusal."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(os.fspath(path))
        answer = client.recv(65536).decode()
    return re.search(r'"message":"([^"]*)"', answer)[1]  # type: ignore[index]


def errno_of(call: object) -> str | None:
    try:
        call()  # type: ignore[operator]
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


# --- secrets -----------------------------------------------------------------------------------------------------------------------

class Secrets:
    """What must not be found, and everything that a run said and left."""

    def __init__(self, *values: str) -> None:
        self.values = values
        self.said: list[tuple[str, str]] = []

    def of(self, host: Host, *command: str | os.PathLike[str], env: dict[str, str] | None = None) -> int:
        done = host.cli(*command, check=False, env=env)
        self.said.append((f'ctxfs {" ".join(map(os.fspath, command))}', done.stdout + done.stderr))
        return done.returncode

    def found(self, *roots: Path) -> list[str]:
        """Where one of the secrets is, or a signature of any request."""
        places = [*self.said, *((str(path), path.read_bytes().decode('latin-1')) for root in roots for path in root.rglob('*') if path.is_file())]
        pattern = re.compile('|'.join([*map(re.escape, self.values), r'Signature=[0-9a-fA-F]{8}', 'AWS4-HMAC-SHA256', r'[?&]Signature=']))
        return [f'{place}: …{text[max(0, match.start() - 60):match.start() + 20]}…' for place, text in places if (match := pattern.search(text))]


@pytest.fixture
def guarded_path(tmp_path: Path) -> str:
    """A PATH on which fusermount3 notes its environment before it does its work."""
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'left').mkdir()
    script = tmp_path / 'bin/fusermount3'
    script.write_text(f'#!/bin/sh\nenv >> {tmp_path}/left/fusermount3.environment\nexec /usr/bin/fusermount3 "$@"\n')
    script.chmod(0o755)
    return f'{tmp_path}/bin:{os.environ["PATH"]}'


def command_lines() -> Iterator[str]:
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            yield Path(f'/proc/{pid}/cmdline').read_text('latin-1')
        except OSError:
            continue


def test_no_secret_is_said_or_left(s3_server: S3Server, guarded_path: str, tmp_path: Path) -> None:
    """By a run that works, with everything logged: command lines, files, output, answers, events, stacks, the environment of helpers."""
    env = {**s3_server.environment, 'AWS_SESSION_TOKEN': f'token{secrets.token_hex(12)}', 'PATH': guarded_path}
    hidden = Secrets(env['AWS_SECRET_ACCESS_KEY'], env['AWS_SESSION_TOKEN'])
    at = tmp_path / 'at'
    at.mkdir()
    host = Host(tmp_path / 'left/state', store=s3_server.url(s3_server.make_bucket()), env=env, runtime=tmp_path / 'left')
    (tmp_path / 'policy.json').write_text('{"uploadPolicy": {"period": "1h"}}')
    assert hidden.of(host, 'mount', '--create', 'mine', at, '--log-level', 'debug', '--policy', tmp_path / 'policy.json', '--audit-log',
                     tmp_path / 'left/audit.log') == 0
    (at / 'small').write_bytes(b'x')
    (at / 'large').write_bytes(b'x' * (9 << 20))
    for command in (['sync', at], ['status', at, '--json'], ['doctor', 'mine']):
        assert hidden.of(host, *command) == 0
    os.kill(host.pid(at), signal.SIGUSR1)
    with ControlClient(find_mounts(tmp_path / 'left/ctxfs')[0].socket) as client:
        hidden.said.append(('answers', repr([client.call(name) for name in ('status', 'info', 'mount_info', 'statistics', 'policy')])))
    hidden.said += [('command lines', line) for line in command_lines()]
    assert hidden.of(host, 'umount', at) == 0
    assert 'PATH=' in (tmp_path / 'left/fusermount3.environment').read_text()
    assert hidden.found(tmp_path / 'left') == []
    assert any('small' in line for line in (tmp_path / 'left/audit.log').read_text().splitlines())


@pytest.mark.parametrize('failure', ['wrong secret', 'nobody there', 'lost while mounted'])
def test_no_secret_is_said_or_left_by_failures(failure: str, tmp_path: Path) -> None:
    """Nor the way the server puts it: error documents repeat keys, tokens and strings to sign."""
    env = {'AWS_ACCESS_KEY_ID': 'AKIA' + secrets.token_hex(8).upper(), 'AWS_SECRET_ACCESS_KEY': secrets.token_hex(20),
           'AWS_SESSION_TOKEN': f'token{secrets.token_hex(12)}'}
    hidden = Secrets(env['AWS_SECRET_ACCESS_KEY'], env['AWS_SESSION_TOKEN'])
    at = tmp_path / 'at'
    at.mkdir()
    fault = Fault.WRONG_SECRET if failure == 'wrong secret' else Fault.EXPIRED
    with FakeS3() as fake:
        url = fake.url if failure != 'nobody there' else 's3://bucket?endpoint=http://127.0.0.1:9'
        host = Host(tmp_path / 'left/state', store=url, env=env, runtime=tmp_path / 'left')
        (tmp_path / 'left').mkdir()
        mount = ('mount', '--create', 'mine', at, '--log-level', 'debug', '--sync-every', 'unmount', '--store-timeout', '6')
        if failure == 'lost while mounted':
            assert hidden.of(host, *mount) == 0
            (at / 'f').write_bytes(b'x')
        for method in ('GET', 'HEAD', 'PUT', 'POST', 'DELETE'):
            fake.fail_next(method, fault, times=1000)
        if failure == 'lost while mounted':
            assert hidden.of(host, 'sync', at) == 1
            assert hidden.of(host, 'status', at, '--json') == 0
            assert hidden.of(host, 'umount', at) == 1
            assert hidden.of(host, 'status') == 0
        else:
            assert hidden.of(host, *mount) == 1
            assert hidden.of(host, 'doctor', 'mine') == 1
            assert hidden.said[0][1].count('\n') == 1
    assert hidden.found(tmp_path / 'left') == []


def test_a_store_url_with_credentials_is_refused(tmp_path: Path) -> None:
    """On the command line, in the environment and in config.toml: one line, which does not repeat it."""
    url, secret = 's3://AKIA:{}@bucket', secrets.token_hex(20)
    hidden = Secrets(secret)
    (tmp_path / 'left').mkdir()
    (tmp_path / 'config/ctxfs').mkdir(parents=True)
    (tmp_path / 'config/ctxfs/config.toml').write_text(f'store = "{url.format(secret)}"\n')
    host = Host(tmp_path / 'left/state', store='', runtime=tmp_path / 'left')
    for option, env in ((['--store', url.format(secret)], {}), ([], {'CTXFS_STORE': url.format(secret)}),
                        ([], {'XDG_CONFIG_HOME': os.fspath(tmp_path / 'config')})):
        done = host.run(*CTXFS, 'mount', 'mine', tmp_path, *option, check=False, env=env)
        hidden.said.append(('output', done.stdout + done.stderr))
        assert done.returncode == 2 and 'must not carry credentials' in done.stderr and done.stderr.count('\n') == 1
    assert hidden.found(tmp_path / 'left') == []
