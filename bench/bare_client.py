"""The ceiling of small uploads: the same bodies PUT by a client that costs next to nothing.

Owns that client: requests signed beforehand, kept-alive connections, one loop that sends the next one as soon as an answer is there. What it
reaches is what the server can do with the cores that are left. Conditions and metadata are those that ctxfs sends.
"""

from __future__ import annotations

import itertools
import selectors
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from bench.processes import Failed
from ctxfs.storage.s3_sign import Credentials, signed_headers
from tests.servers import S3Server

METADATA = {'x-amz-meta-mode': '33188', 'x-amz-meta-uid': '0', 'x-amz-meta-gid': '0', 'x-amz-meta-mtime': '1700000000.123456789',
            'x-amz-meta-atime': '1700000000.123456789', 'x-amz-meta-ctime': '1700000000.123456789',
            'x-amz-meta-ctxfs': f'v=1;sha256={"0" * 64};host={"0" * 16};rev=1;etag={"0" * 32};attempt={"0" * 16}', 'If-None-Match': '*'}


def put_all(server: S3Server, bucket: str, files: Sequence[tuple[str, bytes]], *, endpoint: str = '', connections: int = 32) -> float:
    """Files a second."""
    address = urlsplit(endpoint or server.endpoint)
    requests = [request(server, address.netloc, f'/{bucket}/{quote(name)}', body) for name, body in files]
    begin = time.perf_counter()
    exchange((address.hostname or '', address.port or 80), requests, connections)
    return len(files) / (time.perf_counter() - begin)


def request(server: S3Server, host: str, path: str, body: bytes) -> bytes:
    environment = server.environment
    credentials = Credentials(environment['AWS_ACCESS_KEY_ID'], environment['AWS_SECRET_ACCESS_KEY'], None)
    headers = signed_headers('PUT', host, path, '', METADATA, body, credentials=credentials, region='us-east-1', sign_body=True)
    lines = ''.join(f'{name}: {value}\r\n' for name, value in headers.items())
    return f'PUT {path} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n'.encode() + body


def exchange(address: tuple[str, int], requests: Iterable[bytes], connections: int) -> None:
    """Send all; Failed when one is answered by anything but 200. An answer to a PUT has no body and fits into one segment."""
    waiting = iter(requests)
    with selectors.DefaultSelector() as selector:
        for first in itertools.islice(waiting, connections):
            connection = socket.create_connection(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(first)
            selector.register(connection, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                answer_and_next(selector, key.fileobj, waiting)


def answer_and_next(selector: selectors.BaseSelector, connection: Any, waiting: Iterator[bytes]) -> None:
    answer = connection.recv(65536)
    if not answer.startswith(b'HTTP/1.1 200'):
        raise Failed(f'the server answers {answer[:60]!r} to the bare client')
    following = next(waiting, None)
    if following is None:
        selector.unregister(connection)
        connection.close()
    else:
        connection.sendall(following)
