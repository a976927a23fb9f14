"""Requests as they leave: signatures, addresses, regions, TLS, proxies, and what the client does when a connection fails."""
from __future__ import annotations

import contextlib
import datetime
import io
import os
import threading
import types
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxfs.errors import Denied, InvalidArgument, RemoteUnavailable, UsageError
from ctxfs.storage import s3_client
from ctxfs.storage.object_store import PARTS_ABOVE
from ctxfs.storage.s3_client import S3Client
from ctxfs.storage.s3_http import HttpPool
from ctxfs.storage.s3_retry import ATTEMPTS
from ctxfs.storage.s3_sign import UNSIGNED, Credentials, signed_headers
from ctxfs.storage.s3_store import S3Store
from ctxfs.storage.s3_xml import parse_listing
from tests.fakes.s3_server import CERTIFICATE, FakeS3, Fault

NOW = 1_790_000_000
PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7e), max_size=12).map(str.strip)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'AKID')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is waited for between two tries, instead of waiting."""
    waited: list[float] = []
    monkeypatch.setattr(s3_client.fibers, 'sleep', waited.append)
    return waited


def client(fake: FakeS3, **options: Any) -> contextlib.closing[S3Client]:
    return contextlib.closing(S3Client(fake.bucket, endpoint=fake.endpoint, **options))


def botocore_signature(method: str, url: str, headers: dict[str, str], body: bytes, token: str | None) -> str:
    request = botocore.awsrequest.AWSRequest(method=method, url=url, headers=headers, data=body)
    frozen = botocore.credentials.ReadOnlyCredentials('AKID', 'secret', token)
    moment = datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.auth, 'get_current_datetime', lambda *args, **options: moment.replace(tzinfo=None))
        botocore.auth.S3SigV4Auth(frozen, 's3', 'eu-west-1').add_auth(request)
    return str(request.headers['Authorization'])


@given(key=st.text(st.characters(exclude_categories=('Cs',)), min_size=1, max_size=20), body=st.binary(max_size=20),
       values=st.lists(PRINTABLE, max_size=3),
       query=st.dictionaries(PRINTABLE.filter(bool), PRINTABLE, max_size=3), token=st.none() | st.just('a/token+='))
def test_the_signature_is_botocores(key: str, body: bytes, values: list[str], query: dict[str, str], token: str | None) -> None:
    """For any key, query, metadata and session token."""
    path = '/bucket/' + quote(key, safe='/-_.~')
    text = '&'.join(f'{name}={value}' for name, value in sorted((quote(n, safe='-_.~'), quote(v, safe='-_.~')) for n, v in query.items()))
    headers = {f'x-amz-meta-{number}': value for number, value in enumerate(values)}
    url = f'http://127.0.0.1:9{path}' + (f'?{text}' if text else '')
    ours = signed_headers('PUT', '127.0.0.1:9', path, text, headers, body, credentials=Credentials('AKID', 'secret', token),
                          region='eu-west-1', sign_body=True, now=NOW)
    assert ours['Authorization'] == botocore_signature('PUT', url, headers, body, token)


@pytest.mark.parametrize(('bucket', 'options', 'endpoint', 'region'), [
    ('b', {}, 'https://b.s3.us-east-1.amazonaws.com', 'us-east-1'),
    ('b', {'region': 'cn-north-1'}, 'https://b.s3.cn-north-1.amazonaws.com.cn', 'cn-north-1'),
    ('b.c', {'region': 'eu-west-1'}, 'https://s3.eu-west-1.amazonaws.com', 'eu-west-1'),
    ('b', {'endpoint': 'https://s3.oss-cn-hangzhou.aliyuncs.com'}, 'https://b.s3.oss-cn-hangzhou.aliyuncs.com', 'cn-hangzhou'),
    ('b', {'endpoint': 'https://s3.oss-cn-beijing-internal.aliyuncs.com'}, 'https://b.s3.oss-cn-beijing-internal.aliyuncs.com', 'cn-beijing'),
    ('b', {'endpoint': 'https://s3.oss-accelerate.aliyuncs.com', 'region': 'cn-x'}, 'https://b.s3.oss-accelerate.aliyuncs.com', 'cn-x'),
    ('b', {'endpoint': 'http://127.0.0.1:9000'}, 'http://127.0.0.1:9000', 'us-east-1'),
    ('b', {'endpoint': 'http://[::1]:9000/'}, 'http://[::1]:9000', 'us-east-1'),
    ('b', {'endpoint': 'https://minio.example:443'}, 'https://minio.example', 'us-east-1'),
    ('b', {'endpoint': 'https://minio.example', 'addressing': 'virtual'}, 'https://b.minio.example', 'us-east-1'),
    ('b', {'endpoint': 'https://s3.oss-cn-hangzhou.aliyuncs.com', 'addressing': 'path'}, 'https://s3.oss-cn-hangzhou.aliyuncs.com', 'cn-hangzhou'),
])
def test_a_bucket_is_addressed_as_its_provider_wants(bucket: str, options: dict[str, str], endpoint: str, region: str) -> None:
    """OSS and AWS by host name, servers of one's own by path, unless the URL says otherwise."""
    with contextlib.closing(S3Client(bucket, **options)) as made:
        assert (made.endpoint, made.region) == (endpoint, region)


@pytest.mark.parametrize('endpoint', ['127.0.0.1:9000', 'ftp://x', 'http://', 'https:///x'])
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    """When the store is opened, not when it is used."""
    with pytest.raises(UsageError):
        S3Client('b', endpoint=endpoint)


def test_the_environment_may_name_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for the aws command."""
    monkeypatch.setenv('AWS_ENDPOINT_URL_S3', 'http://127.0.0.1:1')
    with contextlib.closing(S3Client('b')) as made:
        assert made.endpoint == 'http://127.0.0.1:1'


@pytest.fixture
def tls_fake() -> Iterator[FakeS3]:
    with FakeS3(is_tls=True) as fake:
        yield fake


def test_over_https_bodies_are_unsigned_and_plain(tls_fake: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """No aws-chunked encoding and no checksum headers, whatever the request: OSS refuses both."""
    monkeypatch.setenv('AWS_CA_BUNDLE', str(CERTIFICATE))
    data = os.urandom(PARTS_ABOVE + 1)
    with contextlib.closing(S3Store(tls_fake.bucket, endpoint=tls_fake.endpoint)) as store:
        store.put('k', b'body')
        store.put_file('m', io.BytesIO(data), len(data), metadata={'mode': '33188'}, content_type='text/plain')
    put, begin, *parts, complete = tls_fake.requests
    assert put.headers['x-amz-content-sha256'] == UNSIGNED and put.body == b'body'
    assert (begin.headers['x-amz-meta-mode'], begin.headers['content-type']) == ('33188', 'text/plain')
    assert tls_fake.objects['m'].body == data and len(parts) == 3 and b'<PartNumber>3</PartNumber>' in complete.body
    for request in tls_fake.requests:
        assert 'content-encoding' not in request.headers
        assert not [name for name in request.headers if 'checksum' in name]


def test_an_untrusted_certificate_is_named(tls_fake: FakeS3) -> None:
    """Not an outage: no retry helps."""
    with client(tls_fake) as made, pytest.raises(Denied, match='AWS_CA_BUNDLE'):
        made.request('GET', 'k')


def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake stands for a proxy: it gets requests for a host that has no address, and none where no_proxy names the host."""
    with FakeS3() as fake:
        monkeypatch.setenv('http_proxy', fake.endpoint)
        with contextlib.closing(S3Client(fake.bucket, endpoint='http://s3.invalid')) as made:
            made.request('PUT', 'k', body=b'x')
        assert 'k' in fake.objects
        monkeypatch.setenv('no_proxy', 's3.invalid')
        with contextlib.closing(S3Client(fake.bucket, endpoint='http://s3.invalid')) as made, pytest.raises(RemoteUnavailable):
            made.request('PUT', 'k2', body=b'x')
        assert 'k2' not in fake.objects


def test_connections_are_kept_and_shared() -> None:
    """Many requests of one thread take one connection; a connection that the server closed is noticed before it is used."""
    with FakeS3() as fake, client(fake) as made:
        for _ in range(5):
            made.request('PUT', 'k', body=b'x')
        assert len(fake.connections) == 1
        fake.drop_connections()
        made.request('PUT', 'k', body=b'y')
        assert fake.objects['k'].body == b'y'
        assert len(fake.connections) == 2


def test_a_write_that_must_not_be_sent_twice_takes_no_connection_that_may_be_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers close idle connections after a few seconds. What can be repeated takes them for longer, and they are not given up for it."""
    now = [1000.0]
    monkeypatch.setattr('ctxfs.storage.s3_http.time', types.SimpleNamespace(monotonic=lambda: now[0]))
    with FakeS3() as fake, client(fake) as made:
        def put(*, is_repeatable: bool) -> int:
            made.request('PUT', 'k', body=b'x', is_repeatable=is_repeatable)
            return len(fake.connections)
        assert put(is_repeatable=False) == 1
        now[0] += 1
        assert put(is_repeatable=False) == 1
        now[0] += 4
        assert put(is_repeatable=True) == 1
        now[0] += 4
        assert put(is_repeatable=False) == 2
        made.request('GET', 'k')
        assert len(fake.connections) == 2
        now[0] += 60
        made.request('GET', 'k')
        assert len(fake.connections) == 3


def test_connections_that_nobody_comes_back_to_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one used last is taken first, so those below it would lie there, long closed by the server, each with its buffers."""
    now = [1000.0]
    monkeypatch.setattr('ctxfs.storage.s3_http.time', types.SimpleNamespace(monotonic=lambda: now[0]))
    with FakeS3() as fake, client(fake) as made:
        for _ in range(5):
            made.request('PUT', 'k', body=b'x', is_repeatable=False)
            now[0] += 4
        assert len(fake.connections) == len(made._pool._idle) == 5
        for _ in range(60):
            made.request('GET', 'k')
            now[0] += 1
        assert len(fake.connections) == 5 and len(made._pool._idle) == 1


def test_a_read_survives_lost_connections_and_a_write_does_not_guess(pauses: list[float]) -> None:
    """GET is sent again, at once and then after pauses that grow; a PUT that is not marked repeatable is not, since the server may have done
    it."""
    with FakeS3() as fake, client(fake) as made:
        made.request('PUT', 'k', body=b'x')
        fake.fail_next('GET', Fault.DROP)
        assert made.request('GET', 'k').body == b'x' and pauses == []
        fake.fail_next('GET', Fault.DROP, times=2 * ATTEMPTS)
        with pytest.raises(RemoteUnavailable):
            made.request('GET', 'k')
        assert len(pauses) == ATTEMPTS - 1 and pauses == sorted(pauses)
        fake.fail_next('PUT', Fault.LOSE_ANSWER)
        with pytest.raises(RemoteUnavailable):
            made.request('PUT', 'k', body=b'y')
        assert fake.objects['k'].body == b'y'
        assert [request.method for request in fake.requests] == ['PUT', *['GET'] * (2 + 2 * ATTEMPTS), 'PUT']


def test_a_cut_body_is_no_body(pauses: list[float]) -> None:
    """Fewer bytes than announced are an error, never content."""
    with FakeS3() as fake, client(fake) as made:
        made.request('PUT', 'k', body=b'0123456789')
        fake.fail_next('GET', Fault.CUT_BODY, times=2 * ATTEMPTS)
        with pytest.raises(RemoteUnavailable):
            made.request('GET', 'k')


def test_a_header_cannot_be_broken_out_of() -> None:
    """Neither by a line break nor by what is not ASCII."""
    pool = HttpPool('http://127.0.0.1:1')
    for value in ('a\r\nx-evil: 1', 'a\nb', 'é'):
        with pytest.raises(InvalidArgument):
            pool.request('PUT', '/', headers={'x': value})


def test_threads_share_a_client() -> None:
    """Each gets its own answer."""
    with FakeS3() as fake, client(fake) as made:
        errors: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for step in range(20):
                    made.request('PUT', f'{number}', body=f'{number}-{step}'.encode())
                    assert made.request('GET', f'{number}').body == f'{number}-{step}'.encode()
            except BaseException as exc:
                errors.append(exc)
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(fake.connections) <= 8


@pytest.mark.parametrize(('quoted', 'key'), [
    ('a%2Fb%2Fc', 'a/b/c'), ('plain', 'plain'), ('a%2fb', 'a/b'), ('one+two%2Fthree', 'one two/three'), ('a%252Fb', 'a%2Fb'), ('%2B%2F%25', '+/%'),
    ('%C3%A9%2F1', 'é/1'), ('%%2F', '%/')])
def test_keys_of_a_listing_are_unquoted(quoted: str, key: str) -> None:
    body = (f'<ListBucketResult><EncodingType>url</EncodingType><Contents><Key>{quoted}</Key><LastModified>2026-11-30T12:34:56.789Z</LastModified>'
            '<ETag>"e"</ETag><Size>1</Size></Contents></ListBucketResult>')
    info, = parse_listing(body.encode(), strip='').objects
    assert (info.key, info.mtime_ns) == (key, 1_796_042_096_789_000_000)
