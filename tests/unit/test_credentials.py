"""Where credentials come from: each source with a real request to a server that notes who signed it, and their order."""
from __future__ import annotations

import contextlib
import datetime
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ctxfs.edge.service_credentials import use_service_credentials
from ctxfs.errors import Denied
from ctxfs.storage.s3_client import S3Client
from ctxfs.storage.s3_credentials import ALIBABA, OSS, Fixed, find_credentials
from tests.fakes.s3_server import FakeS3

OSS_ENDPOINT, OTHER = 'https://s3.oss-cn-hangzhou.aliyuncs.com', 'http://127.0.0.1:9000'
OSS_ENV, ALIBABA_ENV = dict(zip(OSS, ('oss', 'secret', 'token'))), dict(zip(ALIBABA, ('alibaba', 'secret', '')))
AWS_ENV = {'AWS_ACCESS_KEY_ID': 'aws', 'AWS_SECRET_ACCESS_KEY': 'secret'}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / '.aws').mkdir()
    return tmp_path


def signer(fake: FakeS3, *, profile: str | None = None, requests: int = 1) -> list[tuple[str, str]]:
    """(key id, token) of so many requests of one client."""
    before = len(fake.requests)
    with contextlib.closing(S3Client(fake.bucket, endpoint=fake.endpoint, profile=profile)) as client:
        for _ in range(requests):
            client.request('GET', query={'list-type': '2', 'prefix': ''})
    return [(request.headers['authorization'].partition('Credential=')[2].partition('/')[0], request.headers.get('x-amz-security-token', ''))
            for request in fake.requests[before:]]


def set_all(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize('env, wanted', [(OSS_ENV, ('oss', 'token')), (ALIBABA_ENV, ('alibaba', '')), (AWS_ENV, ('aws', '')),
                                         (OSS_ENV | ALIBABA_ENV, ('oss', 'token')), (OSS_ENV | AWS_ENV, ('aws', ''))])
def test_variables(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], wanted: tuple[str, str]) -> None:
    """Of either provider's tools, with the token of temporary ones."""
    set_all(monkeypatch, env)
    with FakeS3() as fake:
        assert signer(fake) == [wanted]


def test_a_profile_and_its_process(home: Path) -> None:
    """`credential_process` is asked again when what it gave nears its end, while the client goes on."""
    script, count = home / 'give', home / 'count'
    script.write_text('#!/bin/sh\n'
                      f'echo x >> {count}\nn=$(wc -l < {count})\n'
                      f'date=$(date -u -d "+60 seconds" +%Y-%m-%dT%H:%M:%SZ)\n'
                      'echo "{\\"Version\\": 1, \\"AccessKeyId\\": \\"key-$n\\", \\"SecretAccessKey\\": \\"s\\", \\"SessionToken\\": \\"t-$n\\", '
                      '\\"Expiration\\": \\"$date\\"}"\n')
    script.chmod(0o700)
    (home / '.aws/config').write_text(f'[profile temporary]\ncredential_process = {script}\n')
    with FakeS3() as fake:
        found = signer(fake, profile='temporary', requests=3)
    assert len(set(found)) == 3 and all(key.removeprefix('key-') == token.removeprefix('t-') for key, token in found)


def test_a_files_profile_and_a_services_credential(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~/.aws/credentials; the file that systemd hands over stands in its place."""
    (home / '.aws/credentials').write_text('[default]\naws_access_key_id = mine\naws_secret_access_key = s\n'
                                           '[other]\naws_access_key_id = others\naws_secret_access_key = s\n')
    (home / 'aws-credentials').write_text('[default]\naws_access_key_id = service\naws_secret_access_key = s\n')
    with FakeS3() as fake:
        assert signer(fake) == [('mine', '')] and signer(fake, profile='other') == [('others', '')]
        env = {'CREDENTIALS_DIRECTORY': str(home)}
        use_service_credentials(env)
        set_all(monkeypatch, env)
        assert signer(fake) == [('service', '')]


class _Metadata(BaseHTTPRequestHandler):
    """An instance's own service (IMDSv2), whose credentials change with each question."""
    asked = 0

    def do_PUT(self) -> None:
        self._send(b'a-token')

    def do_GET(self) -> None:
        if self.path.endswith('/security-credentials/'):
            return self._send(b'role')
        type(self).asked += 1
        ends = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=60)
        return self._send(json.dumps({'Code': 'Success', 'AccessKeyId': f'role-{self.asked}', 'SecretAccessKey': 's', 'Token': 't',
                                      'Expiration': ends.strftime('%Y-%m-%dT%H:%M:%SZ')}).encode())

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header('X-aws-ec2-metadata-token-ttl-seconds', '600')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Not of interest."""


@pytest.fixture
def metadata() -> Iterator[str]:
    with HTTPServer(('127.0.0.1', 0), _Metadata) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f'http://127.0.0.1:{server.server_address[1]}'
        server.shutdown()
        thread.join()


def test_an_instances_role(metadata: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without anything else; renewed while the client goes on."""
    monkeypatch.setenv('AWS_EC2_METADATA_SERVICE_ENDPOINT', metadata)
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'false')
    with FakeS3() as fake:
        first, second = signer(fake, requests=2)
    assert first[0].startswith('role-') and first[1] == 't' and second[0].startswith('role-')
    assert _Metadata.asked >= 1


@pytest.mark.parametrize('env, is_found, wanted', [
    (OSS_ENV | AWS_ENV | ALIBABA_ENV, True, 'oss'), (AWS_ENV | ALIBABA_ENV, True, AWS_ENV['AWS_ACCESS_KEY_ID']),
    (AWS_ENV | {'AWS_PROFILE': 'p'}, True, 'boto'), (AWS_ENV | {'AWS_CREDENTIAL_EXPIRATION': '2030'}, True, 'boto'), (ALIBABA_ENV, True, 'alibaba'),
    (ALIBABA_ENV | {'AWS_PROFILE': 'p'}, True, 'boto'), ({}, True, 'boto'), ({}, False, None)])
def test_the_order_at_alibaba(env: dict[str, str], is_found: bool, wanted: str | None) -> None:
    """What is named for it first."""
    def find() -> Fixed | None:
        return Fixed('boto', 's', None) if is_found else None
    found = find_credentials(find, endpoint=OSS_ENDPOINT, has_profile=False, env=env)
    assert (found and found.get_frozen_credentials().access_key) == wanted
    profiled = find_credentials(find, endpoint=OSS_ENDPOINT, has_profile=True, env=env)
    assert (profiled and profiled.access_key) == ('boto' if is_found else None)


def test_the_order_elsewhere() -> None:
    """Keys of Alibaba are shown to another server only where there are none of its own."""
    assert find_credentials(lambda: Fixed('boto', 's', None), endpoint=OTHER, has_profile=False, env=OSS_ENV | ALIBABA_ENV).access_key == 'boto'
    assert find_credentials(lambda: None, endpoint=OTHER, has_profile=False, env=ALIBABA_ENV).access_key == 'alibaba'


def test_keys_of_the_environment_need_no_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be half a second of each command, and 40 MB of each worker. Signed with what is there; a profile is boto3's to read."""
    code = ('import sys; from ctxfs.storage.stores import open_store; store = open_store(sys.argv[1]); store.list("x"); '
            'sys.exit("boto3" in sys.modules)')
    with FakeS3() as fake:
        for env, wanted in ((AWS_ENV, 0), ({**AWS_ENV, 'AWS_SESSION_TOKEN': 't'}, 0), ({**AWS_ENV, 'AWS_EC2_METADATA_DISABLED': 'true',
                                                                                         'AWS_CREDENTIAL_EXPIRATION': '2100-01-01T00:00:00Z'}, 1)):
            for name in os.environ:
                if name.startswith('AWS_'):
                    monkeypatch.delenv(name)
            for name, value in env.items():
                monkeypatch.setenv(name, value)
            assert subprocess.run([sys.executable, '-c', code, fake.url], check=False).returncode == wanted
            assert fake.requests[-1].headers.get('x-amz-security-token') == env.get('AWS_SESSION_TOKEN')
            assert f'Credential={AWS_ENV["AWS_ACCESS_KEY_ID"]}/' in fake.requests[-1].headers['authorization']


def test_half_of_a_pair_is_named() -> None:
    """In one line."""
    with pytest.raises(Denied, match=r'^OSS_ACCESS_KEY_ID is set, but OSS_ACCESS_KEY_SECRET is not'):
        find_credentials(lambda: None, endpoint=OTHER, has_profile=False, env={'OSS_ACCESS_KEY_ID': 'x'})
