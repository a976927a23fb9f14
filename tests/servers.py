"""Real S3 servers for tests: a private ministack, or `rclone serve s3`, on a free loopback port, ended by its pid. (Ceph: ceph.py.)

Owns the server's process and its credentials. It must not know who tests what.

    with ministack() as server:
        server.endpoint, server.environment     # http://127.0.0.1:PORT, AWS_ACCESS_KEY_ID …
        server.make_bucket('name'); server.url('name')
"""
from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import botocore.config

START_SECONDS = 60.0


@dataclass
class S3Server:
    """A running server: where it is and who may use it."""
    endpoint: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def client(self, **options: Any) -> Any:
        """boto3's own client, to see what is in the bucket without ctxfs."""
        return boto3.client(
            's3', endpoint_url=self.endpoint, region_name='us-east-1', aws_access_key_id=self.environment['AWS_ACCESS_KEY_ID'],
            aws_secret_access_key=self.environment['AWS_SECRET_ACCESS_KEY'],
            config=botocore.config.Config(s3={'addressing_style': 'path'}, request_checksum_calculation='when_required',
                                          response_checksum_validation='when_required', **options))

    def make_bucket(self, name: str = '') -> str:
        """Create a bucket (by default one with a name of its own) and return its name."""
        name = name or f'test-{secrets.token_hex(6)}'
        with contextlib.closing(self.client()) as client:
            client.create_bucket(Bucket=name)
        return name

    def url(self, bucket: str) -> str:
        return f's3://{bucket}?endpoint={self.endpoint}&region=us-east-1'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def ministack(*, data_dir: Path | None = None, port: int = 0) -> Iterator[S3Server]:
    """A ministack with S3 only, in memory, or in `data_dir` (which survives its end, also a kill).

    It binds all interfaces unless it is told not to. Its output is shown when it does not start.
    """
    with own_directory('ministack-') as home, _started(home, data_dir, port) as server:
        yield server


@contextlib.contextmanager
def _started(home: Path, data_dir: Path | None, port: int) -> Iterator[S3Server]:
    credentials = {'AWS_ACCESS_KEY_ID': 'AKIATEST' + secrets.token_hex(6).upper(), 'AWS_SECRET_ACCESS_KEY': secrets.token_hex(20)}
    for attempt in range(3):
        # another process may take a free port before the server does
        chosen = port or free_port()
        with open(home / 'log', 'wb') as log:
            process = subprocess.Popen([program('ministack')], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=home,
                                       env={**os.environ, **credentials, **_settings(home, chosen, data_dir)})
        endpoint = f'http://127.0.0.1:{chosen}'
        try:
            if _wait_until_it_answers(endpoint, process):
                yield S3Server(endpoint, {**credentials, 'AWS_DEFAULT_REGION': 'us-east-1'}, process)
                return
        finally:
            end_process(process)
        if attempt == 2 or port:
            raise RuntimeError(f'ministack did not start:\n{(home / "log").read_text(errors="replace")[-4000:]}')


def _settings(home: Path, port: int, data_dir: Path | None) -> dict[str, str]:
    settings = {'BIND_HOST': '127.0.0.1', 'GATEWAY_PORT': str(port), 'MINISTACK_HOST': '127.0.0.1', 'SERVICES': 's3', 'SFTP_ENABLED': '0',
                'AUTH': 'true', 'TMPDIR': str(home), 'HOME': str(home)}
    if data_dir is not None:
        settings |= {'S3_PERSIST': '1', 'S3_DATA_DIR': str(data_dir)}
    return settings


def program(name: str) -> str:
    """The one beside this interpreter, else the one on the PATH."""
    found = find_program(name)
    if not found:
        raise RuntimeError(f'{name} is not installed; it is a test dependency (pip install {name})')
    return found


def find_program(name: str) -> str | None:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


@contextlib.contextmanager
def own_directory(prefix: str) -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def rclone() -> Iterator[S3Server]:
    """`rclone serve s3` over a directory: a server that takes every condition and heeds none."""
    with own_directory('rclone-') as home, _rclone(home) as server:
        yield server


@contextlib.contextmanager
def _rclone(home: Path) -> Iterator[S3Server]:
    (home / 'store').mkdir(parents=True)
    key, secret = 'AKIARCLONE' + secrets.token_hex(4).upper(), secrets.token_hex(20)
    endpoint = f'http://127.0.0.1:{free_port()}'
    with open(home / 'log', 'wb') as log:
        process = subprocess.Popen(
            [program('rclone'), 'serve', 's3', '--addr', endpoint.partition('//')[2], '--auth-key', f'{key},{secret}', '--config', '',
             str(home / 'store')], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=home, env={**os.environ, 'HOME': str(home)})
    try:
        if not _wait_until_it_answers(endpoint, process):
            raise RuntimeError(f'rclone did not start:\n{(home / "log").read_text(errors="replace")[-4000:]}')
        yield S3Server(endpoint, {'AWS_ACCESS_KEY_ID': key, 'AWS_SECRET_ACCESS_KEY': secret, 'AWS_DEFAULT_REGION': 'us-east-1'}, process)
    finally:
        end_process(process)


def _wait_until_it_answers(endpoint: str, process: subprocess.Popen[bytes]) -> bool:
    """False when it ended, as it does where the port was taken."""
    deadline = time.monotonic() + START_SECONDS
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        try:
            opener.open(endpoint, timeout=2).close()
        except urllib.error.HTTPError as exc:
            exc.close()
            return True
        except OSError:
            time.sleep(0.05)
        else:
            return True
    raise RuntimeError(f'the server did not answer within {START_SECONDS:.0f} s')


def end_process(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
