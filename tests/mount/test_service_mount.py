"""A mount as a service and by mount(8): a real daemon under a service manager's socket, and the real mount program."""
from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import leftovers
from tests.crash.fault_proxy import FaultProxy
from tests.crash.watch import eventually
from tests.mount.harness import CTXFS
from tests.mount.test_control_mount import no_double  # noqa: F401
from tests.servers import S3Server

SECONDS = 120
HELPER = Path('/sbin/mount.fuse.ctxfs')


class Service:
    """`ctxfs mount --foreground work` as systemd starts it: with a notification socket, a watchdog, and its stderr in a journal."""

    def __init__(self, tmp: Path, store: str = '', *, patience: str = '60s') -> None:
        self.at, self.store = tmp / 'm', tmp / 'store'
        self.heard: list[str] = []
        self.journal = tmp / 'journal'
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(tmp / 'notify'))
        (tmp / 'xdg/ctxfs').mkdir(parents=True)
        self.at.mkdir()
        (tmp / 'xdg/ctxfs/config.toml').write_text(
            f'[mounts.work]\nmountpoint = "{self.at}"\nstore = "{store or f"file://{self.store}"}"\nstate_dir = "{tmp}/state"\ncreate = true\n'
            f'sync_every = "unmount"\nstore_timeout = "{patience}"\n')
        self.store.mkdir()
        self.env = {**os.environ, 'XDG_CONFIG_HOME': str(tmp / 'xdg'), 'XDG_RUNTIME_DIR': str(tmp / 'run')}
        (tmp / 'run').mkdir(mode=0o700)
        self.notify = {'NOTIFY_SOCKET': str(tmp / 'notify'), 'WATCHDOG_USEC': '600000'}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        with self.journal.open('ab') as journal:
            self.process = subprocess.Popen([*CTXFS, 'mount', '--foreground', 'work', *options], env=self.env | self.notify,
                                            stdin=subprocess.DEVNULL, stderr=journal, stdout=journal)
        self.wait_for(lambda text: text.startswith('READY=1'))

    def wait_for(self, wanted: Callable[[str], bool]) -> str:
        """The first message that is wanted, of those to come."""
        while select.select([self._socket], [], [], SECONDS)[0]:
            self.heard.append(self._socket.recv(1 << 16).decode())
            if wanted(self.heard[-1]):
                return self.heard[-1]
        raise AssertionError(f'not within {SECONDS} s; heard {self.heard}; the journal has {self.journal.read_text()}')

    def said(self) -> list[str]:
        """Everything so far, but for the signs of life."""
        while select.select([self._socket], [], [], 0)[0]:
            self.heard.append(self._socket.recv(1 << 16).decode())
        return [text for text in self.heard if text != 'WATCHDOG=1']

    def cli(self, *words: str, status: int = 0) -> str:
        done = subprocess.run([*CTXFS, *words], env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == status, (words, done.stdout, done.stderr)
        return done.stdout

    def end(self) -> int:
        """The exit status; the socket, which holds ten messages, is read meanwhile."""
        assert self.process is not None
        return eventually('the service ends', lambda: (self.said(), self.process.poll())[1] is not None, every=0.05,
                          seconds=SECONDS) and self.process.returncode

    def close(self) -> None:
        self._socket.close()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        subprocess.run(['fusermount3', '-uzq', '--', self.at], check=False, capture_output=True)


@pytest.fixture
def service(tmp: Path) -> Iterator[Service]:
    made = Service(tmp)
    yield made
    made.close()


def objects(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.glob('contexts/*/*') if path.is_file()}


def test_the_life_of_a_service(service: Service) -> None:
    """Ready when the mount answers, alive while it serves, survives SIGKILL with nothing lost, and is stopped when all is in the bucket."""
    service.start()
    assert os.path.ismount(service.at)
    for _ in range(2):
        service.wait_for(lambda text: text == 'WATCHDOG=1')
    (service.at / 'a').write_bytes(b'kept')
    assert '"detached": false' in service.cli('service', 'cleanup', 'work', '--json') and os.path.ismount(service.at)

    os.kill(service.process.pid, signal.SIGKILL)
    assert service.end() == -signal.SIGKILL and leftovers.mounts_below(service.at)
    assert '"detached": true' in service.cli('service', 'cleanup', 'work', '--json') and not leftovers.mounts_below(service.at)

    service.start()
    assert (service.at / 'a').read_bytes() == b'kept'
    (service.at / 'b').write_bytes(b'new')
    service.heard.clear()
    service.process.send_signal(signal.SIGTERM)
    service.wait_for(lambda text: text.startswith('STOPPING=1'))
    assert service.end() == 0 and not leftovers.mounts_below(service.at)
    said = service.said()
    assert 'EXTEND_TIMEOUT_USEC=60000000' in said and said[-1] == 'STATUS=unmounted; everything is in the bucket'
    assert objects(service.store) == {'a': b'kept', 'b': b'new'}


def test_a_flush_that_fails_is_reported(tmp: Path, s3_server: S3Server) -> None:
    """More time is asked for as long as it tries; then the status has the cause, the exit status is 1, and the changes are kept. The credentials
    are those that systemd hands over."""
    (tmp / 'credentials').mkdir()
    known = s3_server.environment
    (tmp / 'credentials/aws-credentials').write_text(f'[default]\naws_access_key_id = {known["AWS_ACCESS_KEY_ID"]}\n'
                                                     f'aws_secret_access_key = {known["AWS_SECRET_ACCESS_KEY"]}\n')
    with FaultProxy(s3_server.endpoint) as proxy:
        bucket = s3_server.make_bucket()
        service = Service(tmp, f's3://{bucket}?endpoint={proxy.endpoint}&region=us-east-1&addressing=path', patience='6s')
        service.env['CREDENTIALS_DIRECTORY'] = str(tmp / 'credentials')
        try:
            service.start()
            eventually('the context is known', lambda: json.loads(service.cli('status', '--json'))['mounts'][0]['remote']['isComplete'])
            (service.at / 'a').write_bytes(b'kept')
            proxy.plan = lambda method, path: 'unavailable'
            service.process.send_signal(signal.SIGTERM)
            service.wait_for(lambda text: text.startswith('STOPPING=1'))
            assert service.end() == 1 and not leftovers.mounts_below(service.at)
            said = service.said()
            assert said.count('EXTEND_TIMEOUT_USEC=60000000') >= 3
            assert re.fullmatch('STATUS=.*(503|SlowDown|busy|answer).*', said[-1]), said
            proxy.plan = lambda method, path: None
            service.start()
            service.process.send_signal(signal.SIGTERM)
            assert service.end() == 0
            client = s3_server.client()
            key, = (found['Key'] for found in client.list_objects_v2(Bucket=bucket, Prefix='contexts/')['Contents'] if found['Key'].endswith('/a'))
            assert client.get_object(Bucket=bucket, Key=key)['Body'].read() == b'kept'
        finally:
            service.close()


@pytest.mark.needs_root
def test_mount_and_fstab(service: Service, tmp: Path) -> None:
    """`mount -t fuse.ctxfs CTX DIR -o …`, a line of fstab, and what mount says of one that fails."""
    if HELPER.exists():
        pytest.skip(f'{HELPER} is there already')
    options = f'noatime,store=file://{service.store},state_dir={tmp}/state,create,sync_every=unmount'
    (tmp / 'fstab').write_text(f'work {service.at} fuse.ctxfs {options},noauto,_netdev,x-systemd.automount 0 0\n')
    service.cli('fstab', 'install')
    try:
        for words in (['-t', 'fuse.ctxfs', 'work', service.at, '-o', options], ['-T', tmp / 'fstab', service.at]):
            subprocess.run(['mount', *words], env=service.env, check=True)
            assert os.path.ismount(service.at)
            with (service.at / 'a').open('a') as file:
                file.write('x')
            subprocess.run(['umount', service.at], check=True)
            service.cli('wait', 'work')
        assert objects(service.store) == {'a': b'xx'}
        done = subprocess.run(['mount', '-t', 'fuse.ctxfs', 'other', service.at, '-o', f'store=file://{service.store}'], env=service.env,
                              capture_output=True, text=True, check=False)
        assert done.returncode == 32 and 'ctxfs mount --create makes a new one' in done.stderr
    finally:
        service.cli('fstab', 'remove')
    assert not HELPER.exists()


def test_what_an_operator_sees(service: Service) -> None:
    """JSON in the log, its level changed while mounted, the alarm for what waits too long, metrics, and the stacks of all tasks."""
    del service.notify['WATCHDOG_USEC']
    service.start('--log-json', '--lag-alarm', '0.05s')
    (service.at / 'a').write_bytes(b'late')
    eventually('it is late', lambda: json.loads(service.cli('status', '--json'))['mounts'][0]['lag'] == {'limit': 0.05, 'alarm': True}, every=0.1)
    assert 'late      the oldest change waits longer than 0 s' in service.cli('status')
    metrics = service.cli('metrics')
    for name, value in (('up', 1), ('lag_alarm', 1), ('pending_files', 1), ('workers', 1)):
        assert re.search(rf'^ctxfs_{name}{{context_id="[^"]+",context="work",mountpoint="{service.at}"}} {value}$', metrics, re.M), metrics
    assert 'logs debug (was info) to ' in service.cli('log-level', 'debug', 'work') and 'logs debug to ' in service.cli('log-level')
    (service.at / 'b').write_bytes(b'traced')
    assert service.process is not None
    service.process.send_signal(signal.SIGUSR1)
    eventually('the stacks of tasks', lambda: 'Tasks (most recent call last):' in service.journal.read_text())
    service.process.send_signal(signal.SIGTERM)
    assert service.end() == 0
    lines = service.journal.read_text().splitlines()
    assert any(line.startswith(('Current thread', 'Thread 0x')) for line in lines)
    assert any(line.strip() == 'ctxfs.edge.service_task.ServiceTask.run' or 'LagAlarm' in line for line in lines)
    logged = [json.loads(line) for line in lines if line.startswith('{')]
    assert {'info', 'debug'} <= {entry['level'] for entry in logged}
