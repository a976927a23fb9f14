"""An HTTP proxy in front of an S3 server that counts what passes, by method and by what the request is for.

Owns the counters and the names of the kinds. Bytes and headers pass unchanged (also Host, which is signed), so the server behind it is the
real one. It must not know ctxfs: the kinds follow from S3's own URLs, and from the documented names below `.ctxfs/`.

    with CountingProxy(server.endpoint) as proxy:       # proxy.endpoint goes into the store's URL
        proxy.reset()
        …
        assert proxy.counts() == {('PUT', 'object'): 1, ('PUT', 'index'): 1}
        proxy.requests(kind='object')                   # [Seen(method, kind, key, query, status)], oldest first

Kinds: object, copy, list, batch-delete, multipart, tagging, lifecycle (of the bucket), and by the key: index (`.ctxfs/index/`), registry
(`.ctxfs/contexts/`), probe (`.ctxfs/probe-`). Heartbeats (`.ctxfs/mounts/`) are left out.
A listing is `list` whatever its prefix (`Seen.query['prefix']` has it).
"""
from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

#: requests that `requests()` remembers; the counts go on
REMEMBERED = 100_000
_LIMIT = 1 << 20
_CHUNK = 256 << 10


class Seen(NamedTuple):
    """`key` is in the bucket ('' for the bucket itself); `status` the server's."""
    method: str
    kind: str
    key: str
    query: dict[str, str]
    status: int


class CountingProxy:
    """See the module docstring. Serves in a thread of its own until the `with` block ends, then every connection is closed."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or '127.0.0.1', parts.port or 80)
        self._lock = threading.Lock()
        self._counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self._seen: collections.deque[Seen] = collections.deque(maxlen=REMEMBERED)
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name='counting-proxy')
        self.endpoint = ''

    # what a test asks

    def counts(self) -> dict[tuple[str, str], int]:
        """Requests that the server answered since the last `reset`, by (method, kind); probes left out, which belong to no operation."""
        with self._lock:
            return {pair: count for pair, count in self._counts.items() if pair[1] != 'probe'}

    def total(self, *, method: str | None = None, kind: str | None = None) -> int:
        return sum(count for pair, count in self.counts().items() if method in (None, pair[0]) and kind in (None, pair[1]))

    def requests(self, *, method: str | None = None, kind: str | None = None) -> list[Seen]:
        with self._lock:
            return [seen for seen in self._seen if method in (None, seen.method) and kind in (None, seen.kind)]

    def reset(self) -> None:
        with self._lock:
            self._counts.clear()
            self._seen.clear()

    # its life

    def __enter__(self) -> CountingProxy:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, '127.0.0.1', 0, limit=_LIMIT), self._loop).result(10)
        self.endpoint = f'http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}'
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    # one connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client connection has one connection to the server: keep-alive and its end pass through."""
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._upstream, limit=_LIMIT)
            with contextlib.closing(up_writer):
                while await self._exchange(reader, writer, up_reader, up_writer):
                    pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass    # one of both went away, or the test is over
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up_reader: asyncio.StreamReader,
                        up_writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False when the connection ends with it."""
        head = await reader.readuntil(b'\r\n\r\n')
        (method, target, _), headers = _parse(head)
        if headers.get('expect', '').lower() == '100-continue':
            writer.write(b'HTTP/1.1 100 Continue\r\n\r\n')
            head = b'\r\n'.join(line for line in head.split(b'\r\n') if not line.lower().startswith(b'expect:'))
        up_writer.write(head)
        await _pass_body(reader, up_writer, headers)
        answer, status, answer_headers = await _head_of_answer(up_reader)
        # before the first byte goes out: a client that has its answer finds it counted
        self._note(method, target, headers, status)
        writer.write(answer)
        if method != 'HEAD' and status not in (204, 304):
            await _pass_body(up_reader, writer, answer_headers)
        await writer.drain()
        return 'close' not in (headers.get('connection', '') + answer_headers.get('connection', '')).lower()

    def _note(self, method: str, target: str, headers: Mapping[str, str], status: int) -> None:
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        key = unquote(parts.path).lstrip('/').partition('/')[2]
        kind = kind_of(method, key, query, headers)
        if kind == 'heartbeat':     # once a minute, whatever else happens
            return
        with self._lock:
            self._counts[method, kind] += 1
            self._seen.append(Seen(method, kind, key, query, status))


def kind_of(method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str]) -> str:
    """What a path-style request is for; `headers` have lower-case names."""
    if not key:
        names = {'delete': 'batch-delete', 'lifecycle': 'lifecycle'}
        return next((name for part, name in names.items() if part in query), 'list' if method == 'GET' else 'bucket')
    for mark, kind in (('.ctxfs/probe-', 'probe'), ('.ctxfs/index/', 'index'), ('.ctxfs/contexts/', 'registry'), ('.ctxfs/mounts/', 'heartbeat')):
        if key.startswith(mark) or f'/{mark}' in key:
            return kind
    if 'uploads' in query or 'uploadId' in query:
        return 'multipart'
    if 'tagging' in query:
        return 'tagging'
    return 'copy' if 'x-amz-copy-source' in headers else 'object'


async def _head_of_answer(reader: asyncio.StreamReader) -> tuple[bytes, int, dict[str, str]]:
    """Its bytes, status and headers; what only says "go on" (1xx) is swallowed."""
    while True:
        head = await reader.readuntil(b'\r\n\r\n')
        first, headers = _parse(head)
        if (status := int(first[1])) >= 200:
            return head, status, headers


def _parse(head: bytes) -> tuple[list[str], dict[str, str]]:
    """The three words of the first line, and the headers by lower-case name."""
    first, *lines = head.decode('latin-1').rstrip('\r\n').split('\r\n')
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(':') for line in lines)}
    return first.split(' ', 2), headers


async def _pass_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: Mapping[str, str]) -> None:
    if 'chunked' in headers.get('transfer-encoding', '').lower():
        while True:
            line = await reader.readuntil(b'\r\n')
            writer.write(line)
            size = int(line.split(b';')[0], 16)
            await _pass_bytes(reader, writer, size + 2)
            if size == 0:
                return
    await _pass_bytes(reader, writer, int(headers.get('content-length') or 0))


async def _pass_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int) -> None:
    while count:
        data = await reader.read(min(count, _CHUNK))
        if not data:
            raise asyncio.IncompleteReadError(b'', count)
        writer.write(data)
        await writer.drain()
        count -= len(data)
