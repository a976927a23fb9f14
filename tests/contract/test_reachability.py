"""What a store says, and how soon, when it cannot be used: each in one line that says what to do."""
from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctxfs.errors import CredentialsExpired, CtxfsError, Denied, InvalidArgument, NotFound, RemoteUnavailable, UsageError
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.stores import open_store
from tests.fakes.s3_server import FakeS3, Fault
from tests.servers import S3Server, free_port


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch, s3_server: S3Server) -> S3Server:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen(8)
        yield listener.getsockname()[1]


def failure(url: str) -> tuple[CtxfsError, float]:
    """What check() raises, and after how many seconds."""
    begin = time.monotonic()
    with contextlib.closing(open_store(url)) as store, pytest.raises(CtxfsError) as caught:
        store.check()
    assert '\n' not in str(caught.value)
    return caught.value, time.monotonic() - begin


def test_a_usable_store_passes(store: ObjectStore) -> None:
    """Nothing is raised, before and after it has content."""
    store.check()
    store.put('a', b'')
    store.check()


def test_nobody_listens(credentials: S3Server) -> None:
    """Connection refused is known at once."""
    error, seconds = failure(f's3://b?endpoint=http://127.0.0.1:{free_port()}')
    assert isinstance(error, RemoteUnavailable)
    assert 'refused' in str(error)
    assert seconds < 10


def test_a_server_that_never_answers(credentials: S3Server, silent_port: int) -> None:
    """The user does not wait longer than 10 seconds."""
    error, seconds = failure(f's3://b?endpoint=http://127.0.0.1:{silent_port}')
    assert isinstance(error, RemoteUnavailable)
    assert seconds < 10


def test_a_host_that_does_not_exist(credentials: S3Server) -> None:
    """The name is in the message."""
    error, seconds = failure('s3://b?endpoint=http://no-such-host.invalid')
    assert isinstance(error, RemoteUnavailable)
    assert 'no-such-host.invalid' in str(error)
    assert seconds < 10


def test_a_bucket_that_does_not_exist(credentials: S3Server) -> None:
    """Named, with what to do."""
    error, _ = failure(credentials.url('no-such-bucket'))
    assert type(error) is NotFound
    assert 'no-such-bucket' in str(error)


@pytest.mark.parametrize(('fault', 'kind', 'word'), [
    (Fault.UNKNOWN_KEY, Denied, 'AWS_ACCESS_KEY_ID'), (Fault.WRONG_SECRET, Denied, 'AWS_SECRET_ACCESS_KEY'),
    (Fault.EXPIRED, CredentialsExpired, 'renew'),
    (Fault.SKEWED_CLOCK, Denied, 'clock'), (Fault.DENY, Denied, 'AccessDenied'), (Fault.ELSEWHERE, InvalidArgument, 'region='),
    (Fault.UNAVAILABLE, RemoteUnavailable, 'ServiceUnavailable'), (Fault.GARBAGE, RemoteUnavailable, 'cannot be read'),
])
def test_a_server_that_refuses(credentials: S3Server, fault: Fault, kind: type[CtxfsError], word: str) -> None:
    """Each refusal says what to do about it."""
    with FakeS3() as fake:
        fake.fail_next('GET', fault)
        error, _ = failure(fake.url)
    assert isinstance(error, kind)
    assert word in str(error)


def test_no_credentials_at_all(credentials: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out without a request."""
    for name in credentials.environment:
        monkeypatch.delenv(name)
    error, seconds = failure(credentials.url('b'))
    assert type(error) is Denied
    assert 'AWS_ACCESS_KEY_ID' in str(error)
    assert seconds < 10


def test_a_profile_that_does_not_exist(credentials: S3Server) -> None:
    """A wrong option of the URL, so a usage error."""
    with pytest.raises(UsageError, match='no-such-profile'):
        open_store(credentials.url('b') + '&profile=no-such-profile')


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    """It is not made unless it is asked for, and then for the user alone."""
    error, _ = failure(f'file://{tmp_path}/store')
    assert type(error) is NotFound
    assert not (tmp_path / 'store').exists()
    with contextlib.closing(open_store(f'file://{tmp_path}/store', create=True)) as store:
        store.check()
    assert (tmp_path / 'store').stat().st_mode & 0o777 == 0o700


def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    """Said as it is."""
    (tmp_path / 'f').write_text('x')
    error, _ = failure(f'file://{tmp_path}/f')
    assert type(error) is NotFound


def test_a_directory_that_was_removed(tmp_path: Path) -> None:
    """A store that was good does not go on in a directory without a name."""
    with contextlib.closing(open_store(f'file://{tmp_path}/store', create=True)) as store:
        store.check()
        os.rmdir(tmp_path / 'store')
        with pytest.raises(NotFound, match='removed'):
            store.check()
