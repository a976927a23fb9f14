"""The control socket of one mount: JSON-RPC 2.0 over a Unix socket, one JSON value a line, served on the daemon's trio loop.

Owns the wire protocol, its limits and the promise that no client harms the mount: the peer must be the same user or root, lines,
clients, requests in flight, request rate and the time to take an answer are all bounded. It must not know what the methods do: the
daemon supplies them as a mapping (`methods_of` makes it from a `MountControl`).

    → {"jsonrpc":"2.0","id":1,"method":"status"}
    ← {"jsonrpc":"2.0","id":1,"result":{…}}
    ← {"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"…","data":{"errno":"ENOENT","kind":"NotFound"}}}

A method that is an async generator function streams: each value it yields goes out as the notification
`{"jsonrpc":"2.0","method":NAME,"params":{"id":REQUEST,"value":…}}`, and its end as the request's result, null.
A method is cancelled when its client has been gone for GRACE seconds: what must outlive the client belongs into a task of its own.
"""
from __future__ import annotations

import contextlib
import errno
import inspect
import logging
import os
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Literal, Protocol, get_type_hints

import msgspec
import trio

from ctxfs.edge.runtime_dir import short_path
from ctxfs.errors import CtxfsError

log = logging.getLogger(__name__)

MAX_LINE = 1 << 20          # bytes of one request
MAX_BLANK = 1000            # blank lines between two requests
MAX_CLIENTS = 32            # beyond, the one goes that has asked nothing for longest
MAX_IN_FLIGHT = 16          # requests of one client that run at once; the next line is read when one is done
REQUEST_INTERVAL = 0.002    # seconds that each request of one client pays for, beyond a burst of MAX_IN_FLIGHT
SEND_TIMEOUT = 10.0         # a client that does not take its answer for so long is dropped
IDLE_TIMEOUT = 300.0        # so is one that asks nothing for so long
GRACE = 5.0                 # a client may close its sending side and still read the answers

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL_ERROR = -32700, -32600, -32601, -32602, -32603
#: from the range that JSON-RPC leaves to servers: an expected error (ctxfs.errors), and too many clients
EXPECTED_ERROR, BUSY = -32000, -32001

Method = Callable[..., Any]


class MountControl(Protocol):
    """What a running mount can be asked; docs/CONTROL.md shows an example of each. Values are what JSON can hold; names that are no UTF-8
    must have been made printable. Times are Unix seconds. Parameters are checked against the annotations here."""

    async def status(self) -> dict[str, Any]:
        """One element of `mounts` in `ctxfs status --json`: contextId, contextName, mountpoint, pid, store, stateDir, `state` ("mounted", or
        "flushing" once the mount point is gone), readOnly, paused, pending {files, bytes, oldestSeconds}, lag {limit, alarm}, localOnly {files,
        bytes}, conflicts, nextUpload (0: none by a clock), tasks […], uploading [path], failedFiles, failed [{path, error, attempt, nextRetry}],
        unmountable [{key, reason}], rates {uploadBytes, downloadBytes}, policy {source, period, autoUpload, autoDownload, whiteLists, conflict},
        cache {used, dirty, kept, limit, full, damaged}, remote {isComplete, objects, error, lastPoll}, audit {path, lines, lost, error} or null,
        quarantine {files, bytes, directory} or null, limits {uploadBytes, downloadBytes, transfers}, requests {kind: {count, errors, retries,
        bytesSent, bytesReceived, seconds}}. Lists are cut at 100."""

    async def info(self, context_id: str | None = None, path: str | None = None, task_type: str | None = None) -> dict[str, Any]:
        """{"contextStatusData": […]}: AgentBay's ContextStatusData of the uploads and downloads that run, and of the last that ended."""

    async def mount_info(self) -> dict[str, Any]:
        """What does not change while mounted: version, pid, the options."""

    async def sync(self, path: str | None = None, mode: Literal['upload', 'download'] = 'upload', wait: bool = True) -> dict[str, Any]:
        """Upload what is pending (below `path`, relative to the root), or take over what changed remotely. With wait, returns when that
        is done: {"ok": bool, "files": int, "bytes": int, "message": str}; without, when it is scheduled."""

    async def wait(self, timeout: float | None = None, what: Literal['upload', 'download'] = 'upload') -> dict[str, Any]:
        """Return when nothing is pending (upload) or the cache is filled (download), or after `timeout` seconds: {"ok": bool, "pending":
        {files, bytes}, "message": str}."""

    async def pause(self) -> dict[str, Any]:
        """Nothing begins by itself any more: no upload by the clock, no polling, no warm-up. What is asked for is done all the same."""

    async def resume(self) -> dict[str, Any]:
        """The end of `pause`."""

    async def explain(self, path: str) -> dict[str, Any]:
        """What is known of a path, whether it exists or not, relative to the root or below the mount point: path, exists, isSynced, rule,
        state (absent, kept, directory, local, dirty, uploading, sealed, clean), etag, size, lifecycle, pending {since, reasons, attempt,
        error, nextRetry} or null, keys, conflict {original, since, holds, held} or null."""

    async def conflicts(self) -> list[dict[str, Any]]:
        """Where two hosts changed one file, what has a name of its own since, beside the original: [{path, original, since, holds, held}], the
        newest 100. `holds`: whose version it is, `local` or `remote`; `held`: it stays on this host."""

    async def resolve(self, path: str, keep: Literal['local', 'remote', 'both']) -> dict[str, Any]:
        """Settle a conflict; `path` is the original or the copy. The version to keep has the original's name then, and the other is removed;
        `both`: they stay as they are. {original, copy, keep}."""

    async def statistics(self) -> dict[str, Any]:
        """Counters since the mount began: uptime, workers, operations by kind, bytes, cache with hits and misses, inodes, tasks, polls."""

    async def policy(self) -> dict[str, Any]:
        """What counts now: source, file, period (seconds or null), policy (AgentBay's JSON), sentences."""

    def watch(self, kinds: list[str] | None = None) -> AsyncIterator[dict[str, Any]]:
        """A stream of events (ctxfs.sync.events), first one of kind `watching`; until the client goes or the mount ends."""

    async def log_level(self, level: Literal['debug', 'info', 'warning', 'error'] | None = None) -> dict[str, Any]:
        """How much the daemon and its workers log, from now on: {"level", "was"}. Without `level` nothing changes."""

    async def cache_warm(self, path: str, wait: bool = True) -> dict[str, Any]:
        """Content of what the mount knows at and below `path` comes into the cache, which may evict other content for it: {"ok", "files",
        "bytes", "message"} as `sync`."""

    async def cache_drop(self, path: str | None = None) -> dict[str, Any]:
        """Clean content at and below `path`, or all of it, leaves the cache: {"entries", "bytes"}."""

    async def shutdown(self) -> dict[str, Any]:
        """Unmount and end as after `fusermount3 -u`; returns once that has begun."""


METHODS = ('status', 'info', 'mount_info', 'sync', 'wait', 'pause', 'resume', 'explain', 'conflicts', 'resolve', 'statistics', 'policy', 'watch',
           'log_level', 'cache_warm', 'cache_drop', 'shutdown')


def methods_of(control: MountControl) -> dict[str, Method]:
    return {name: getattr(control, name) for name in METHODS}


async def serve(path: str, methods: Mapping[str, Method], *, task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve until cancelled; started (with a Server) once clients can connect. A socket left by a dead daemon is replaced, ours is removed
    at the end. The caller makes sure that only one daemon serves `path` (it holds the state directory's lock)."""
    server = Server(methods)
    listener = _listen(path)
    try:
        async with trio.open_nursery() as nursery:
            task_status.started(server)
            while True:
                try:
                    connection, _ = await listener.accept()
                except OSError as e:
                    # out of descriptors or a client gone while in the queue: neither may end the mount
                    log.warning('control socket: accept: %s', e)
                    await trio.sleep(0.1)
                    continue
                nursery.start_soon(server.client, connection)
    finally:
        listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _listen(path: str) -> trio.socket.SocketType:
    """Bound under another name, made 0600 and renamed: nobody ever sees it with other rights or without a listener."""
    temporary = f'{path}.{os.getpid()}'
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(temporary) as name:
            listener.bind(name)
        os.chmod(temporary, 0o600)
        listener.listen(MAX_CLIENTS)
        os.rename(temporary, path)
        return trio.socket.from_stdlib_socket(listener)
    except BaseException:
        listener.close()
        raise


class Server:
    """The clients of one socket."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._methods = methods
        self._clients: set[_Client] = set()
        self._requests = 0
        self._idle = trio.Event()

    async def drain(self, timeout: float) -> None:
        """Return when every request that was read is answered, or after `timeout` seconds: before a daemon ends, so that what it
        answers last arrives."""
        with trio.move_on_after(timeout):
            while self._requests:
                await self._idle.wait()

    @contextlib.contextmanager
    def _request(self) -> Iterator[None]:
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            if not self._requests:
                self._idle.set()
                self._idle = trio.Event()

    async def client(self, connection: trio.socket.SocketType) -> None:
        """One client's whole life; never raises anything but Cancelled."""
        stream = trio.SocketStream(connection)
        async with stream:
            refusal = self._refusal(connection)
            with trio.move_on_after(SEND_TIMEOUT):
                if refusal is not None:
                    with contextlib.suppress(trio.BrokenResourceError):
                        await stream.send_all(_error(None, *refusal))
                    return
            client = _Client(stream, self._methods, self._request)
            self._clients.add(client)
            try:
                await client.run()
            finally:
                self._clients.discard(client)

    def _refusal(self, connection: trio.socket.SocketType) -> tuple[int, str] | None:
        uid = _peer_uid(connection)
        if uid not in (0, os.geteuid()):
            return EXPECTED_ERROR, f'user {uid} may not control this mount'
        if len(self._clients) < MAX_CLIENTS or self._drop_silent():
            return None
        return BUSY, f'{MAX_CLIENTS} clients are connected already; try again'

    def _drop_silent(self) -> bool:
        """Make room: silent clients must not keep out one that has a question. False where all wait for their answers."""
        silent = [client for client in self._clients if client.is_silent]
        if silent:
            client = min(silent, key=lambda client: client.heard_at)
            client.drop()
            self._clients.discard(client)
        return bool(silent)


def _peer_uid(connection: trio.socket.SocketType) -> int:
    _, uid, _ = struct.unpack('3i', connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize('3i')))
    return uid


class _Client:
    """One connection: a reader that takes lines as long as there are free slots, and a task for each request."""

    def __init__(self, stream: trio.SocketStream, methods: Mapping[str, Method],
                 request: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self._stream = stream
        self._methods = methods
        self._request = request
        self._slots = trio.Semaphore(MAX_IN_FLIGHT)
        self._sending = trio.Lock()
        self._paid_until = 0.0
        self._scope = trio.CancelScope()
        #: when it said something, or got its last answer
        self.heard_at = trio.current_time()

    @property
    def is_silent(self) -> bool:
        """No request of its own runs."""
        return self._slots.value == MAX_IN_FLIGHT

    def drop(self) -> None:
        self._scope.cancel()

    async def run(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery, contextlib.aclosing(self._lines()) as lines:
                async for line in lines:
                    await self._slots.acquire()
                    nursery.start_soon(self._answer, line)
                    await self._pace()
                self._scope.deadline = trio.current_time() + GRACE

    async def _pace(self) -> None:
        """A flood of requests costs the file system at most a known share of its one interpreter."""
        now = trio.current_time()
        self._paid_until = max(self._paid_until, now) + REQUEST_INTERVAL
        await trio.sleep_until(self._paid_until - REQUEST_INTERVAL * MAX_IN_FLIGHT)

    async def _lines(self) -> AsyncGenerator[bytes, None]:
        """Non-empty lines without their end, until the client closes, is idle for too long, or sends one that is too long."""
        buffer, blanks = bytearray(), 0
        while data := await self._receive():
            start, at = 0, len(buffer)
            buffer += data
            while (end := buffer.find(b'\n', max(start, at))) >= 0 and end - start <= MAX_LINE and blanks <= MAX_BLANK:
                line, start = bytes(buffer[start:end]), end + 1
                blanks = 0 if line.strip() else blanks + 1
                if not blanks:
                    yield line
            del buffer[:start]
            if len(buffer) > MAX_LINE or blanks > MAX_BLANK:
                await self._send(_error(None, INVALID_REQUEST, f'a request may have {MAX_LINE} bytes, and is no blank line'))
                return

    async def _receive(self) -> bytes:
        """The next bytes; empty when there will be none."""
        while True:
            with trio.move_on_after(IDLE_TIMEOUT):
                try:
                    data = bytes(await self._stream.receive_some(1 << 16))
                    self.heard_at = trio.current_time()
                    return data
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return b''
            if self.is_silent:      # not idle while a request of its own runs
                return b''

    async def _send(self, line: bytes) -> None:
        """A client that is gone, or does not read, ends here and takes its requests with it."""
        with trio.move_on_after(SEND_TIMEOUT):
            try:
                async with self._sending:
                    await self._stream.send_all(line)
                return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                log.debug('control socket: a client went away before its answer')
        self._scope.cancel()

    async def _answer(self, line: bytes) -> None:
        try:
            with self._request():
                reply = await self._handle(line)
                if reply is not None:
                    await self._send(reply)
        finally:
            self.heard_at = trio.current_time()
            self._slots.release()

    async def _handle(self, line: bytes) -> bytes | None:
        """The line to send back; None for a notification, which JSON-RPC never answers, not even when it fails."""
        request = _parse(line)
        if isinstance(request, bytes):
            return request
        reply = await self._call(request)
        return None if request.is_notification else reply

    async def _call(self, request: _Request) -> bytes:
        method = self._methods.get(request.method)
        if method is None:
            return _error(request.id, METHOD_NOT_FOUND, f'no method {request.method}')
        try:
            bound = _bind(method, request)
        except (TypeError, msgspec.ValidationError) as e:
            return _error(request.id, INVALID_PARAMS, f'{request.method}: {e}')
        try:
            result = await self._run(method, bound, request)
            return msgspec.json.encode({'jsonrpc': '2.0', 'id': request.id, 'result': result}) + b'\n'
        except CtxfsError as e:
            name = errno.errorcode.get(e.errno, 'EIO')
            return _error(request.id, EXPECTED_ERROR, str(e), {'errno': name, 'kind': type(e).__name__})
        except Exception:
            log.exception('control socket: %s failed', request.method)
            return _error(request.id, INTERNAL_ERROR, f'{request.method} failed; the log of the mount says why')

    async def _run(self, method: Method, bound: inspect.BoundArguments, request: _Request) -> Any:
        if not inspect.isasyncgenfunction(method):
            return await method(*bound.args, **bound.kwargs)
        async with contextlib.aclosing(method(*bound.args, **bound.kwargs)) as values:
            async for value in values:
                params = {'id': request.id, 'value': value}
                await self._send(msgspec.json.encode({'jsonrpc': '2.0', 'method': request.method, 'params': params}) + b'\n')
        return None


class _Request(msgspec.Struct, frozen=True):
    id: str | int | float | None
    method: str
    args: list[Any]
    kwargs: dict[str, Any]
    is_notification: bool


def _bind(method: Method, request: _Request) -> inspect.BoundArguments:
    """The arguments, of the types that the method's annotations name. Raises TypeError, msgspec.ValidationError."""
    bound = inspect.signature(method).bind(*request.args, **request.kwargs)
    hints = get_type_hints(method)
    for name, value in bound.arguments.items():
        try:
            bound.arguments[name] = msgspec.convert(value, type=hints.get(name, Any))
        except msgspec.ValidationError as e:
            raise msgspec.ValidationError(f'{name}: {e}') from None
    return bound


def _parse(line: bytes) -> _Request | bytes:
    """The request, or the error line to answer with."""
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        return _error(None, PARSE_ERROR, f'not JSON: {e}')
    if not isinstance(value, dict):
        return _error(None, INVALID_REQUEST, 'a request is a JSON object')
    ident = value.get('id')
    if isinstance(ident, bool) or not isinstance(ident, (str, int, float, type(None))):
        return _error(None, INVALID_REQUEST, 'id must be a string or a number')
    method, params = value.get('method'), value.get('params', {})
    if value.get('jsonrpc') != '2.0' or not isinstance(method, str):
        return _error(ident, INVALID_REQUEST, 'jsonrpc must be "2.0" and method a string')
    if isinstance(params, dict):
        return _Request(ident, method, [], params, 'id' not in value)
    if isinstance(params, list):
        return _Request(ident, method, params, {}, 'id' not in value)
    return _error(ident, INVALID_PARAMS, 'params must be an object or an array')


def _error(ident: str | int | float | None, code: int, message: str, data: dict[str, str] | None = None) -> bytes:
    error: dict[str, Any] = {'code': code, 'message': message.encode('utf-8', 'replace').decode()}
    if data is not None:
        error['data'] = data
    return msgspec.json.encode({'jsonrpc': '2.0', 'id': ident, 'error': error}) + b'\n'
