"""What a bad network does to one request: silence, trickles, half answers, busy servers, old credentials. Each has a bound."""
from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from ctxfs.errors import CredentialsExpired, Denied, RemoteUnavailable
from ctxfs.storage import http_body, s3_client, s3_retry
from ctxfs.storage.s3_client import S3Client
from ctxfs.storage.s3_http import HttpPool, Timeouts
from ctxfs.storage.s3_retry import ATTEMPTS, LONGEST_SECONDS, RETRY_AFTER_MAX
from tests.fakes.s3_server import FakeS3, Fault

SILENCE = 0.3
#: far more than SILENCE, far less than what a test may take
SOON = 20.0

Script = Callable[[socket.socket, threading.Event], None]


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'AKID')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')


@contextlib.contextmanager
def scripted(script: Script) -> Iterator[str]:
    """A server that does with each connection what the script says, until the block ends; its endpoint."""
    over = threading.Event()
    server = socket.create_server(('127.0.0.1', 0))
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            script(connection, over)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = server.accept()[0]
                if over.is_set():
                    connection.close()
                    return
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    port = server.getsockname()[1]
    try:
        yield f'http://127.0.0.1:{port}'
    finally:
        over.set()
        socket.create_connection(('127.0.0.1', port)).close()
        for thread in [acceptor, *threads]:
            thread.join()
        server.close()


def read_request(connection: socket.socket) -> None:
    data = b''
    while b'\r\n\r\n' not in data:
        piece = connection.recv(4096)
        if not piece:
            raise ConnectionError('the client is gone')
        data += piece


def trickle(connection: socket.socket, over: threading.Event, data: bytes) -> None:
    """A byte at a time, each well within the time for which a server may be silent."""
    for number in range(len(data)):
        connection.sendall(data[number:number + 1])
        if over.wait(SILENCE / 10):
            return


def silent(connection: socket.socket, over: threading.Event) -> None:
    read_request(connection)
    over.wait()


def half_a_header(connection: socket.socket, over: threading.Event) -> None:
    read_request(connection)
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Le')
    over.wait()


def trickled_header(connection: socket.socket, over: threading.Event) -> None:
    read_request(connection)
    trickle(connection, over, b'HTTP/1.1 200 OK\r\nX-Long: ' + b'x' * 10_000)


def trickled_body(connection: socket.socket, over: threading.Event) -> None:
    read_request(connection)
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n')
    trickle(connection, over, b'x' * 10_000)


def deaf(connection: socket.socket, over: threading.Event) -> None:
    """Reads nothing of a large body."""
    over.wait()


@pytest.mark.parametrize('script', [silent, half_a_header, trickled_header, trickled_body, deaf])
def test_a_request_that_hangs_ends(script: Script) -> None:
    """However it hangs: no answer, a part of one, a byte now and then, or a server that takes nothing in."""
    with scripted(script) as endpoint, contextlib.closing(HttpPool(endpoint)) as pool:
        began = time.monotonic()
        with pytest.raises(RemoteUnavailable, match='in time'):
            pool.request('PUT', '/', headers={}, body=b'x' * (64 << 20) if script is deaf else b'', timeouts=Timeouts(read=SILENCE))
        assert time.monotonic() - began < SOON


def test_a_slow_link_has_the_time_that_its_bytes_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same trickle above the least rate: longer than the silence, and whole."""
    monkeypatch.setattr(http_body, 'MIN_RATE', 5)

    def slow(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n')
        trickle(connection, over, b'x' * 15)

    with scripted(slow) as endpoint, contextlib.closing(HttpPool(endpoint)) as pool:
        began = time.monotonic()
        assert pool.request('GET', '/', headers={}, timeouts=Timeouts(read=SILENCE)).body == b'x' * 15
        assert time.monotonic() - began > SILENCE


def test_a_hung_read_is_not_asked_again_for_ever() -> None:
    """What took all the time of one request is left to those who know how long somebody waits."""
    asked: list[int] = []

    def count(connection: socket.socket, over: threading.Event) -> None:
        asked.append(1)
        silent(connection, over)

    with scripted(count) as endpoint, contextlib.closing(S3Client('b', endpoint=endpoint, silence=SILENCE)) as client:
        with pytest.raises(RemoteUnavailable):
            client.request('GET', 'k')
    assert len(asked) == 1


# --- busy servers ------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(s3_client.fibers, 'sleep', waited.append)
    return waited


def busy(retry_after: str) -> Script:
    """503 with that header to each request."""
    def script(connection: socket.socket, over: threading.Event) -> None:
        while True:
            read_request(connection)
            connection.sendall(f'HTTP/1.1 503 Slow Down\r\nRetry-After: {retry_after}\r\nContent-Length: 0\r\n\r\n'.encode())
    return script


def test_a_short_retry_after_is_waited_for(pauses: list[float]) -> None:
    """No try comes before the server wants one."""
    with scripted(busy('2')) as endpoint, contextlib.closing(S3Client('b', endpoint=endpoint)) as client, pytest.raises(RemoteUnavailable):
        client.request('GET', 'k')
    assert len(pauses) == ATTEMPTS - 1 and all(2 <= pause <= LONGEST_SECONDS for pause in pauses)


def test_a_long_retry_after_goes_to_the_schedule(pauses: list[float]) -> None:
    """The thread is not kept: the error says when, within reason."""
    with scripted(busy('120')) as endpoint, contextlib.closing(S3Client('b', endpoint=endpoint)) as client:
        with pytest.raises(RemoteUnavailable) as caught:
            client.request('PUT', 'k', body=b'x')
    assert pauses == [] and caught.value.retry_after == 120


@pytest.mark.parametrize(('text', 'seconds'), [
    ('7', 7), (' 7 ', 7), ('0', 0), ('999999', RETRY_AFTER_MAX), ('-3', 0), ('soon', 0), ('', 0), ('9' * 5000, 0), ('²', 0),
    pytest.param(formatdate(time.time() - 100, usegmt=True), 0, id='a time ago'),
    pytest.param(formatdate(time.time() + 10**8, usegmt=True), RETRY_AFTER_MAX, id='in some years')])
def test_retry_after_is_read_with_care(text: str, seconds: float) -> None:
    """A number or a date; anything else is none, and nothing is longer than it may be."""
    assert s3_retry.retry_after_of(text) == seconds


def test_pauses_grow_and_differ() -> None:
    """Doubling twice each time, with a half of it left to chance."""
    drawn = [[s3_retry.pause(attempt, 0) for _ in range(50)] for attempt in (1, 2, 3, 9)]
    assert all(len(set(some)) > 40 for some in drawn)
    assert max(drawn[0]) < min(drawn[1]) and max(drawn[1]) < min(drawn[2]) and max(drawn[3]) <= LONGEST_SECONDS


# --- credentials -------------------------------------------------------------------------------------------------------------------

def write_credentials(path: Path, token: str) -> None:
    path.write_text(f'[default]\naws_access_key_id = AKID\naws_secret_access_key = secret\naws_session_token = {token}\n')


@pytest.fixture
def credentials_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv('AWS_ACCESS_KEY_ID')
    monkeypatch.delenv('AWS_SECRET_ACCESS_KEY')
    path = tmp_path / 'credentials'
    monkeypatch.setenv('AWS_SHARED_CREDENTIALS_FILE', str(path))
    write_credentials(path, 'old')
    return path


@pytest.mark.parametrize('fault', [Fault.EXPIRED, Fault.UNKNOWN_KEY])
def test_new_credentials_in_the_file_are_used_without_a_failure(fault: Fault, credentials_file: Path) -> None:
    """botocore reads the file once; a refusal has it read again, and the request goes through with what is there now."""
    with FakeS3() as fake, contextlib.closing(S3Client(fake.bucket, endpoint=fake.endpoint)) as client:
        client.request('PUT', 'k', body=b'x')
        write_credentials(credentials_file, 'new')
        fake.fail_next('PUT', fault)
        client.request('PUT', 'k', body=b'y')
        assert fake.objects['k'].body == b'y'
        assert [request.headers['x-amz-security-token'] for request in fake.requests] == ['old', 'old', 'new']


def test_expired_credentials_without_others_are_transient(credentials_file: Path) -> None:
    """Somebody will write new ones; until then the same are not tried twice."""
    with FakeS3() as fake, contextlib.closing(S3Client(fake.bucket, endpoint=fake.endpoint)) as client:
        fake.fail_next('GET', Fault.EXPIRED)
        with pytest.raises(CredentialsExpired) as caught:
            client.request('GET', 'k')
        assert caught.value.transient and len(fake.requests) == 1
        os.unlink(credentials_file)
        fake.fail_next('GET', Fault.UNKNOWN_KEY)
        with pytest.raises(Denied) as denied:
            client.request('GET', 'k')
        assert not denied.value.transient
