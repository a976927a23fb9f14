"""The proxy that other tests count with: it changes nothing, and it counts everything."""
from __future__ import annotations

import contextlib
import io
import os
import socket
from urllib.parse import urlsplit

import pytest

from ctxfs.storage.stores import open_store
from tests.fakes.counting_proxy import CountingProxy, kind_of
from tests.servers import S3Server


def test_requests_pass_unchanged_and_are_counted(s3_server: S3Server, s3_endpoint: str) -> None:
    """Signed requests of each kind reach a server that checks signatures, each is counted once, and reset forgets them."""
    assert s3_endpoint
    bucket = s3_server.make_bucket()
    with CountingProxy(s3_server.endpoint) as proxy, contextlib.closing(open_store(f's3://{bucket}?endpoint={proxy.endpoint}')) as store:
        store.capabilities()
        assert proxy.counts() == {('POST', 'batch-delete'): 2} | {pair: count for pair, count in proxy.counts().items() if pair[1] == 'lifecycle'}
        proxy.reset()
        body = os.urandom(17 << 20)
        store.put('contexts/x/a b', b'one')
        store.put('contexts/x/.ctxfs/index/n', b'two')
        store.put_file('contexts/x/large', io.BytesIO(body), len(body))
        assert store.get('contexts/x/large') == body
        assert [info.key for info in store.list('contexts/x/').objects] == ['contexts/x/.ctxfs/index/n', 'contexts/x/a b', 'contexts/x/large']
        store.delete_many([('contexts/x/a b', None), ('contexts/x/large', None)])
        assert proxy.counts() == {('PUT', 'object'): 1, ('PUT', 'index'): 1, ('POST', 'multipart'): 2, ('PUT', 'multipart'): 3,
                                  ('GET', 'object'): 1, ('GET', 'list'): 1, ('POST', 'batch-delete'): 1}
        assert [(seen.key, seen.status) for seen in proxy.requests(method='PUT', kind='object')] == [('contexts/x/a b', 200)]
        assert proxy.total(method='PUT') == 5
        proxy.reset()
        assert (proxy.counts(), proxy.total(), proxy.requests()) == ({}, 0, [])


def test_a_request_is_counted_before_its_answer_goes_out() -> None:
    """Whoever has the first byte of an answer finds its request counted: here the rest of the answer never comes."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        with CountingProxy(f'http://127.0.0.1:{server.getsockname()[1]}') as proxy:
            with socket.create_connection(_address(proxy.endpoint), 10) as client:
                client.sendall(b'GET /bucket/a HTTP/1.1\r\nHost: here\r\n\r\n')
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(10)
                    assert connection.recv(1 << 16).startswith(b'GET /bucket/a ')
                    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf')
                    assert client.recv(1)
                    assert proxy.counts() == {('GET', 'object'): 1}


def _address(endpoint: str) -> tuple[str, int]:
    parts = urlsplit(endpoint)
    assert parts.hostname and parts.port
    return parts.hostname, parts.port


@pytest.mark.parametrize(('method', 'target', 'headers', 'kind'), [
    ('GET', '?list-type=2', {}, 'list'), ('POST', '?delete', {}, 'batch-delete'), ('PUT', '?lifecycle', {}, 'lifecycle'),
    ('PUT', 'contexts/x/a', {}, 'object'), ('PUT', 'contexts/x/a', {'x-amz-copy-source': '/b/c'}, 'copy'),
    ('GET', 'contexts/x/a?tagging', {}, 'tagging'), ('POST', 'contexts/x/a?uploads', {}, 'multipart'),
    ('PUT', 'contexts/x/.ctxfs/index/n', {}, 'index'), ('GET', '.ctxfs/contexts/n', {}, 'registry'),
    ('PUT', 'contexts/x/.ctxfs/probe-1', {}, 'probe'), ('PUT', 'contexts/x/not.ctxfs/index/n', {}, 'object'),
])
def test_the_kind_follows_from_the_request(method: str, target: str, headers: dict[str, str], kind: str) -> None:
    """The bucket's own requests, then by the key, then by what is done."""
    parts = urlsplit(target)
    query = {pair.partition('=')[0]: pair.partition('=')[2] for pair in parts.query.split('&') if pair}
    assert kind_of(method, parts.path, query, headers) == kind
