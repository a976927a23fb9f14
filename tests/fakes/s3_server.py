"""A small S3 server in memory whose answers can be bent: the quirks of providers, and faults at a named request.

Owns enough of the protocol for ctxfs's stores, over real sockets, so that nothing in the client is replaced. Without quirks it passes the
contract suite beside the real servers, which is what makes its quirks worth testing against. It checks no signatures.

    with FakeS3(quirks={Quirk.IGNORES_CONDITIONS}) as fake:
        fake.fail_next('PUT', Fault.LOSE_ANSWER)
        … open_store(fake.url) …
        fake.requests       # what arrived

Its clock can be set (`fake.clock`), its rights narrowed to a prefix (`fake.only_prefix`), and a request held back (`fake.hold_next`).
Addressed by a host name that begins with the bucket's, as through an HTTP proxy, it is virtual-hosted. profiles.py has whole providers.
"""
from __future__ import annotations

import base64
import collections
import enum
import hashlib
import itertools
import socket
import ssl
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

#: for 127.0.0.1 and localhost, with its key; trusted by nobody
CERTIFICATE = Path(__file__).with_name('localhost.pem')


class Quirk(enum.Enum):
    """What a provider does differently."""
    IGNORES_CONDITIONS = 'rclone serve s3, old proxies: every conditional request is carried out'
    REFUSES_CONDITIONS = 'Swift: 501 to a conditional write'
    FORBID_OVERWRITE = 'OSS: 501 to a conditional write, x-oss-forbid-overwrite honoured, Content-MD5 demanded'
    VERSIONED = 'OSS: x-oss-forbid-overwrite is ignored in a bucket with versions'
    VIRTUAL_ONLY = 'OSS: 403 SecondLevelDomainForbidden where the bucket is in the path'
    REFUSES_CHUNKED = 'OSS: aws-chunked bodies are refused'
    UNQUOTED_ETAGS = 'Ceph: If-Match is compared without quotes'
    MISSING_IS_412 = 'Ceph: If-Match where there is no object is 412'
    UNCONDITIONAL_COPY = 'Ceph: copies ignore conditions, of the source too'
    UNCONDITIONAL_PARTS = 'Ceph: the end of an upload in parts ignores conditions'
    UNCONDITIONAL_DELETE = 'Ceph: deletes ignore If-Match'
    NO_ETAG_OF_PARTS = 'Ceph: the end of an upload in parts does not say the etag'
    COPY_KEEPS_TAGS = 'Ceph: x-amz-tagging-directive is ignored'
    IGNORES_RANGE = 'rclone serve s3: 200 and everything'
    NO_BATCH = 'no DeleteObjects'
    BARE_LISTED_ETAGS = 'etags without quotes in listings'
    NO_URL_ENCODING = 'encoding-type is ignored'
    NO_TAGS = 'rclone serve s3, R2: tags are ignored, and ?tagging is answered with the object'
    REFUSES_TAGS = 'a request with tags is answered 501'
    NO_LIFECYCLE = 'the bucket has no rules: ?lifecycle is answered with a listing'
    NO_LIFECYCLE_RIGHTS = 'rules may neither be read nor written'
    READ_ONLY_LIFECYCLE = 'rules may be read only'
    ERROR_IN_COPY = 'a copy answers 200 with an error in the body'


class Fault(enum.Enum):
    """What goes wrong with one request."""
    DROP = 'closes the connection without having done anything'
    LOSE_ANSWER = 'does it and closes the connection'
    UNAVAILABLE = '503'
    SLOW_DOWN = '503 SlowDown'
    CONFLICT = '409 ConditionalRequestConflict'
    CUT_BODY = 'half of the body, and an end'
    FLIP_BIT = 'the body with a wrong bit in it'
    HANG = 'no answer until the server stops'
    DENY = '403 AccessDenied'
    EXPIRED = '400 ExpiredToken'
    UNKNOWN_KEY = '403 InvalidAccessKeyId'
    WRONG_SECRET = '403 SignatureDoesNotMatch'
    SKEWED_CLOCK = '403 RequestTimeTooSkewed'
    ELSEWHERE = '301 PermanentRedirect'
    NO_BUCKET = '404 NoSuchBucket'
    GARBAGE = '200 and no XML'


_FAULT_ANSWERS = {Fault.UNAVAILABLE: (503, 'ServiceUnavailable'), Fault.SLOW_DOWN: (503, 'SlowDown'),
                  Fault.CONFLICT: (409, 'ConditionalRequestConflict'), Fault.DENY: (403, 'AccessDenied'),
                  Fault.EXPIRED: (400, 'ExpiredToken'), Fault.UNKNOWN_KEY: (403, 'InvalidAccessKeyId'),
                  Fault.WRONG_SECRET: (403, 'SignatureDoesNotMatch'), Fault.SKEWED_CLOCK: (403, 'RequestTimeTooSkewed'),
                  Fault.ELSEWHERE: (301, 'PermanentRedirect'),
                  Fault.NO_BUCKET: (404, 'NoSuchBucket')}


@dataclass
class StoredObject:
    body: bytes
    headers: dict[str, str]
    etag: str
    modified: float
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    """One that arrived. Headers in lower case."""
    method: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def is_heartbeat(self) -> bool:
        """A mount sends one each minute, whatever else happens: none of a test's faults is meant for it."""
        return '.ctxfs/mounts/' in self.key


class Hold:
    """Requests that wait: `arrived` is set by the first one, `release` lets them all go."""

    def __init__(self, method: str, when: Callable[[Request], bool], times: int) -> None:
        self.arrived, self.release = threading.Event(), threading.Event()
        self.requests: list[Request] = []
        self._method, self._when, self._left = method, when, times
        self._lock = threading.Lock()

    def takes(self, request: Request) -> bool:
        with self._lock:
            if self._left == 0 or request.method != self._method or request.is_heartbeat or not self._when(request):
                return False
            self._left -= 1
            self.requests.append(request)
        self.arrived.set()
        return True


class Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class FakeS3:
    """One bucket named `bucket` at `endpoint`, gone with the block."""
    bucket = 'bucket'

    def __init__(self, *, quirks: Iterable[Quirk] = (), is_tls: bool = False) -> None:
        self.quirks = set(quirks)
        self.objects: dict[str, StoredObject] = {}
        self.uploads: dict[str, tuple[str, dict[str, str], dict[int, bytes]]] = {}
        self.requests: list[Request] = []
        #: the bucket's lifecycle rules, as they were sent
        self.lifecycle = b''
        #: headers that come with the rules
        self.lifecycle_headers: dict[str, str] = {}
        #: Unix seconds: what Date and Last-Modified say
        self.clock: Callable[[], float] = time.time
        #: a prefix that all keys and listings must have; other requests are refused with 403
        self.only_prefix: str | None = None
        self.stopped = threading.Event()
        self.lock = threading.RLock()
        self._holds: list[Hold] = []
        self._faults: dict[str, collections.deque[tuple[Callable[[Request], bool], Fault]]] = collections.defaultdict(collections.deque)
        self._count = itertools.count(1)
        self._server = _Server(('127.0.0.1', 0), _Handler)
        self._server.fake = self
        if is_tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
            self._server.tls = context
        self.endpoint = f'http{"s" if is_tls else ""}://127.0.0.1:{self._server.server_address[1]}'
        self.url = f's3://{self.bucket}?endpoint={self.endpoint}&region=us-east-1'
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={'poll_interval': 0.02})

    def __enter__(self) -> FakeS3:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.close_connections()
        self._server.server_close()
        self._thread.join()

    @property
    def connections(self) -> list[Any]:
        """The address of each connection that was accepted, whether it is still open or not."""
        return self._server.accepted

    def drop_connections(self) -> None:
        """As a load balancer does with idle ones."""
        self._server.close_connections()

    def fail_next(self, method: str, fault: Fault, *, times: int = 1, when: Callable[[Request], bool] = lambda request: True) -> None:
        """Let the next `times` requests of a method (for which `when` holds) go wrong."""
        self._faults[method].extend([(when, fault)] * times)

    def hold_next(self, method: str, *, when: Callable[[Request], bool] = lambda request: True, times: int = 1) -> Hold:
        """Keep the next `times` requests of a method (for which `when` holds) from being carried out until they are let go."""
        hold = Hold(method, when, times)
        self._holds.append(hold)
        return hold

    def wait_for_hold(self, request: Request) -> None:
        for hold in self._holds:
            if hold.takes(request):
                while not (self.stopped.is_set() or hold.release.wait(0.02)):
                    pass

    def check_rights(self, request: Request) -> None:
        if self.only_prefix is None:
            return
        named = request.key or request.query.get('prefix', '')
        if not named.startswith(self.only_prefix) and 'delete' not in request.query:
            raise Refused(403, 'AccessDenied')
        # whoever may not list the whole bucket is not told what is missing
        source = unquote(request.headers.get('x-amz-copy-source', '')).lstrip('/').partition('/')[2]
        missing = [key for key in (request.key if request.method in ('GET', 'HEAD') or 'if-match' in request.headers else '', source)
                   if key and key not in self.objects]
        if missing and request.method != 'DELETE':
            raise Refused(403, 'AccessDenied')

    def forget_faults(self) -> None:
        """Nothing goes wrong any more."""
        with self.lock:
            self._faults.clear()

    def fault_for(self, request: Request) -> Fault | None:
        with self.lock:
            faults = self._faults[request.method]
            if faults and not request.is_heartbeat and faults[0][0](request):
                return faults.popleft()[1]
            return None

    def new_etag(self, body: bytes) -> str:
        return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}-{next(self._count)}"'

    def list_objects(self, query: Mapping[str, str]) -> Answer:
        return _list(self, query)

    # conditions

    def check_write(self, request: Request) -> None:
        """Raises Refused when a write of the request's key may not be done."""
        current = self.objects.get(request.key)
        forbids = request.headers.get('x-oss-forbid-overwrite') == 'true' and Quirk.VERSIONED not in self.quirks
        if Quirk.FORBID_OVERWRITE in self.quirks and forbids and current:
            raise Refused(409, 'FileAlreadyExists')
        conditions = {name: request.headers[name] for name in ('if-match', 'if-none-match') if name in request.headers}
        if not conditions or Quirk.IGNORES_CONDITIONS in self.quirks:
            return
        if self.quirks & {Quirk.REFUSES_CONDITIONS, Quirk.FORBID_OVERWRITE}:
            raise Refused(501, 'NotImplemented')
        if 'if-none-match' in conditions and current:
            raise Refused(412, 'PreconditionFailed')
        if 'if-match' in conditions:
            if current is None:
                raise Refused(412, 'PreconditionFailed') if Quirk.MISSING_IS_412 in self.quirks else Refused(404, 'NoSuchKey')
            self.check_match(conditions['if-match'], current)

    def check_match(self, wanted: str, current: StoredObject) -> None:
        if Quirk.IGNORES_CONDITIONS in self.quirks:
            return
        if Quirk.UNQUOTED_ETAGS not in self.quirks:     # with and without are one and the same to AWS
            wanted = wanted.strip('"')
        if wanted not in ('*', current.etag.strip('"')):
            raise Refused(412, 'PreconditionFailed')

    def check_digest(self, request: Request) -> None:
        digest = base64.b64encode(hashlib.md5(request.body, usedforsecurity=False).digest()).decode()
        given = request.headers.get('content-md5')
        if given is None and Quirk.FORBID_OVERWRITE in self.quirks:
            raise Refused(400, 'MissingArgument')
        if given not in (None, digest):
            raise Refused(400, 'BadDigest')


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    fake: FakeS3
    tls: ssl.SSLContext | None = None

    def __init__(self, *args: Any) -> None:
        self._open: set[socket.socket] = set()
        self.accepted: list[Any] = []
        super().__init__(*args)

    def get_request(self) -> tuple[socket.socket, Any]:
        sock, address = super().get_request()
        if self.tls is not None:
            # the handshake happens with the first read, in the connection's own thread
            sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self._open.add(sock)
        self.accepted.append(address)
        return sock, address

    def close_connections(self) -> None:
        """Idle kept-alive connections too, whose threads wait for a request."""
        while self._open:
            sock = self._open.pop()
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                # the client closed it before
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to print."""


def _error_document(refused: Refused, request: Request) -> bytes:
    """As AWS writes it: with what it was given, secrets among it."""
    given = {'AWSAccessKeyId': 'authorization', 'SignatureProvided': 'authorization', 'StringToSign': 'authorization',
             'Token-0': 'x-amz-security-token'}
    echo = ''.join(f'<{name}>{escape(request.headers.get(header, ""))}</{name}>' for name, header in given.items())
    return f'<Error><Code>{refused.code}</Code><Message>{refused.code}</Message>{echo}</Error>'.encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: tests look at `requests`."""

    def do_any(self) -> None:
        parts = urlsplit(self.path)
        _, _, key = parts.path.removeprefix('/').partition('/')
        request = Request(self.command, unquote(key), dict(parse_qsl(parts.query, keep_blank_values=True)),
                          {name.lower(): value for name, value in self.headers.items()},
                          self.rfile.read(int(self.headers.get('Content-Length', 0))))
        if len(request.body) < int(self.headers.get('Content-Length', 0)):     # of half an object no server makes one
            self.close_connection = True
            return
        fake = self.server.fake
        is_virtual = (parts.hostname or self.headers.get('Host', '')).startswith(f'{fake.bucket}.')
        if is_virtual:
            request.key = unquote(parts.path.removeprefix('/'))
        with fake.lock:
            fake.requests.append(request)
        fault = fake.fault_for(request)
        fake.wait_for_hold(request)
        if fault is Fault.HANG:
            fake.stopped.wait()
        if fault in (Fault.DROP, Fault.HANG):
            self.close_connection = True
            return
        try:
            if fault in _FAULT_ANSWERS:
                raise Refused(*_FAULT_ANSWERS[fault])
            if Quirk.VIRTUAL_ONLY in fake.quirks and not is_virtual:
                raise Refused(403, 'SecondLevelDomainForbidden')
            if Quirk.REFUSES_CHUNKED in fake.quirks and 'aws-chunked' in request.headers.get('content-encoding', ''):
                raise Refused(400, 'InvalidArgument')
            fake.check_rights(request)
            with fake.lock:
                status, headers, body = _answer(fake, request)
        except Refused as exc:
            status, headers, body = exc.status, {}, _error_document(exc, request)
        if fault is Fault.LOSE_ANSWER:
            self.close_connection = True
            return
        if fault is Fault.FLIP_BIT and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        self._send(status, headers, b'<html>' if fault is Fault.GARBAGE else body, cut=fault is Fault.CUT_BODY)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(self.server.fake.clock() if timestamp is None else timestamp, usegmt=True)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_any

    def _send(self, status: int, headers: Mapping[str, str], body: bytes, *, cut: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if 'Content-Length' not in headers:
            self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body[:len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True


Answer = tuple[int, dict[str, str], bytes]


def _answer(fake: FakeS3, request: Request) -> Answer:
    if not request.key:
        if request.method == 'POST' and 'delete' in request.query:
            return _delete_objects(fake, request)
        if 'lifecycle' in request.query and Quirk.NO_LIFECYCLE not in fake.quirks:
            return _lifecycle(fake, request)
        return fake.list_objects(request.query)
    if 'uploadId' in request.query or 'uploads' in request.query:
        return _multipart(fake, request)
    if request.method == 'PUT':
        return _copy(fake, request) if 'x-amz-copy-source' in request.headers else _put(fake, request)
    if request.method == 'DELETE':
        return _delete(fake, request)
    if 'tagging' in request.query and Quirk.NO_TAGS not in fake.quirks:
        return _tagging(fake, request)
    return _get(fake, request)


def _lifecycle(fake: FakeS3, request: Request) -> Answer:
    if Quirk.NO_LIFECYCLE_RIGHTS in fake.quirks or (request.method == 'PUT' and Quirk.READ_ONLY_LIFECYCLE in fake.quirks):
        raise Refused(403, 'AccessDenied')
    if request.method == 'PUT':
        fake.check_digest(request)
        fake.lifecycle = request.body
        return 200, {}, b''
    if not fake.lifecycle:
        raise Refused(404, 'NoSuchLifecycleConfiguration')
    return 200, fake.lifecycle_headers, fake.lifecycle


def _tagging(fake: FakeS3, request: Request) -> Answer:
    if Quirk.REFUSES_TAGS in fake.quirks:
        raise Refused(501, 'NotImplemented')
    tags = ''.join(f'<Tag><Key>{escape(name)}</Key><Value>{escape(value)}</Value></Tag>'
                   for name, value in _existing(fake, request.key).tags.items())
    return 200, {}, f'<Tagging xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><TagSet>{tags}</TagSet></Tagging>'.encode()


def _given_tags(fake: FakeS3, headers: Mapping[str, str]) -> dict[str, str]:
    if 'x-amz-tagging' in headers and Quirk.REFUSES_TAGS in fake.quirks:
        raise Refused(501, 'NotImplemented')
    return {} if Quirk.NO_TAGS in fake.quirks else dict(parse_qsl(headers.get('x-amz-tagging', ''), keep_blank_values=True))


def _put(fake: FakeS3, request: Request) -> Answer:
    fake.check_write(request)
    stored = StoredObject(request.body, _kept_headers(request.headers), fake.new_etag(request.body), fake.clock(),
                          tags=_given_tags(fake, request.headers))
    fake.objects[request.key] = stored
    return 200, {'ETag': stored.etag}, b''


def _kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    names = ('content-type', 'cache-control', 'content-disposition', 'content-encoding', 'content-language')
    return {name: value for name, value in headers.items() if name.startswith('x-amz-meta-') or name in names}


def _tag_header(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name == 'x-amz-tagging'}


def _existing(fake: FakeS3, key: str) -> StoredObject:
    if key not in fake.objects:
        raise Refused(404, 'NoSuchKey')
    return fake.objects[key]


def _get(fake: FakeS3, request: Request) -> Answer:
    stored = _existing(fake, request.key)
    if 'if-match' in request.headers:
        fake.check_match(request.headers['if-match'], stored)
    status, body, ranged = 200, stored.body, {}
    if 'range' in request.headers and Quirk.IGNORES_RANGE not in fake.quirks:
        first, _, last = request.headers['range'].removeprefix('bytes=').partition('-')
        if int(first) >= len(body):
            raise Refused(416, 'InvalidRange')
        status, body = 206, body[int(first):int(last) + 1 if last else None]
        ranged = {'Content-Range': f'bytes {first}-{int(first) + len(body) - 1}/{len(stored.body)}'}
    headers = {**stored.headers, **ranged, 'ETag': stored.etag, 'Last-Modified': formatdate(stored.modified, usegmt=True),
               'Content-Length': str(len(body))}
    return status, headers, body


def _copy(fake: FakeS3, request: Request) -> Answer:
    source = _existing(fake, unquote(request.headers['x-amz-copy-source']).lstrip('/').partition('/')[2])
    wanted = request.headers.get('x-amz-copy-source-if-match')
    if Quirk.UNCONDITIONAL_COPY not in fake.quirks:
        if wanted is not None:
            fake.check_match(wanted, source)
        fake.check_write(request)
    if Quirk.ERROR_IN_COPY in fake.quirks:
        return 200, {}, b'<Error><Code>InternalError</Code><Message>try again</Message></Error>'
    is_replaced = request.headers.get('x-amz-metadata-directive') == 'REPLACE'
    stored = StoredObject(source.body, _kept_headers(request.headers) if is_replaced else dict(source.headers), fake.new_etag(source.body),
                          fake.clock())
    has_new_tags = request.headers.get('x-amz-tagging-directive') == 'REPLACE' and Quirk.COPY_KEEPS_TAGS not in fake.quirks
    stored.tags = _given_tags(fake, request.headers) if has_new_tags else dict(source.tags)
    fake.objects[request.key] = stored
    return 200, {}, f'<CopyObjectResult><ETag>{escape(stored.etag)}</ETag></CopyObjectResult>'.encode()


def _copy_part(fake: FakeS3, request: Request, parts: dict[int, bytes]) -> Answer:
    source = _existing(fake, unquote(request.headers['x-amz-copy-source']).lstrip('/').partition('/')[2])
    fake.check_match(request.headers['x-amz-copy-source-if-match'], source)
    if Quirk.ERROR_IN_COPY in fake.quirks:
        return 200, {}, b'<Error><Code>InternalError</Code><Message>try again</Message></Error>'
    first, _, last = request.headers['x-amz-copy-source-range'].removeprefix('bytes=').partition('-')
    part = parts[int(request.query['partNumber'])] = source.body[int(first):int(last) + 1]
    return 200, {}, f'<CopyPartResult><ETag>{escape(fake.new_etag(part))}</ETag></CopyPartResult>'.encode()


_UNCONDITIONAL_DELETE = {Quirk.REFUSES_CONDITIONS, Quirk.FORBID_OVERWRITE, Quirk.UNCONDITIONAL_DELETE}


def _delete(fake: FakeS3, request: Request) -> Answer:
    current = fake.objects.get(request.key)
    if 'if-match' in request.headers and current and not fake.quirks & _UNCONDITIONAL_DELETE:
        fake.check_match(request.headers['if-match'], current)
    fake.objects.pop(request.key, None)
    return 204, {}, b''


def _delete_objects(fake: FakeS3, request: Request) -> Answer:
    if Quirk.NO_BATCH in fake.quirks:
        raise Refused(501, 'NotImplemented')
    fake.check_digest(request)
    errors = []
    for node in ET.fromstring(request.body).iter('{http://s3.amazonaws.com/doc/2006-03-01/}Object'):
        fields = {child.tag.rpartition('}')[2]: child.text or '' for child in node}
        current = fake.objects.get(fields['Key'])
        try:
            if fake.only_prefix is not None and not fields['Key'].startswith(fake.only_prefix):
                raise Refused(403, 'AccessDenied')
            if 'ETag' in fields and current and not fake.quirks & _UNCONDITIONAL_DELETE:
                fake.check_match(fields['ETag'], current)
            fake.objects.pop(fields['Key'], None)
        except Refused as exc:
            errors.append(f'<Error><Key>{escape(fields["Key"])}</Key><Code>{exc.code}</Code><Message>no</Message></Error>')
    return 200, {}, f'<DeleteResult>{"".join(errors)}</DeleteResult>'.encode()


def _list(fake: FakeS3, query: Mapping[str, str]) -> Answer:
    prefix, delimiter, limit = query.get('prefix', ''), query.get('delimiter', ''), int(query.get('max-keys', '1000'))
    after = unquote(query['continuation-token']) if 'continuation-token' in query else query.get('start-after', '')
    is_encoded = query.get('encoding-type') == 'url' and Quirk.NO_URL_ENCODING not in fake.quirks
    spell = quote if is_encoded else escape
    entries: dict[str, str] = {}
    for key in sorted(fake.objects, key=str.encode):
        if not key.startswith(prefix):
            continue
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        name = key if cut < 0 else key[:cut + len(delimiter)]
        if key.encode() <= after.encode() or (cut >= 0 and name == after):
            continue
        entries.setdefault(name, _listed(fake, key, spell) if cut < 0
                           else f'<CommonPrefixes><Prefix>{spell(name)}</Prefix></CommonPrefixes>')
    names = list(entries)
    more = f'<NextContinuationToken>{quote(names[limit - 1])}</NextContinuationToken>' if len(names) > limit else ''
    head = '<EncodingType>url</EncodingType>' if is_encoded else ''
    body = f'{head}<IsTruncated>{"true" if more else "false"}</IsTruncated>{more}{"".join(entries[name] for name in names[:limit])}'
    return 200, {}, f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{body}</ListBucketResult>'.encode()


def _listed(fake: FakeS3, key: str, spell: Callable[[str], str]) -> str:
    stored = fake.objects[key]
    etag = stored.etag.strip('"') if Quirk.BARE_LISTED_ETAGS in fake.quirks else stored.etag
    stamp = time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(stored.modified))
    return (f'<Contents><Key>{spell(key)}</Key><LastModified>{stamp}</LastModified><ETag>{escape(etag)}</ETag>'
            f'<Size>{len(stored.body)}</Size></Contents>')


def _multipart(fake: FakeS3, request: Request) -> Answer:
    if 'uploads' in request.query:
        upload_id = f'upload-{next(fake._count)}'
        fake.uploads[upload_id] = (request.key, {**_kept_headers(request.headers), **_tag_header(request.headers)}, {})
        return 200, {}, f'<InitiateMultipartUploadResult><UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>'.encode()
    upload_id = request.query['uploadId']
    if upload_id not in fake.uploads:
        raise Refused(404, 'NoSuchUpload')
    _, headers, parts = fake.uploads[upload_id]
    if request.method == 'DELETE':
        del fake.uploads[upload_id]
        return 204, {}, b''
    if 'x-amz-copy-source' in request.headers:
        return _copy_part(fake, request, parts)
    if request.method == 'PUT':
        parts[int(request.query['partNumber'])] = request.body
        return 200, {'ETag': f'"{hashlib.md5(request.body, usedforsecurity=False).hexdigest()}"'}, b''
    if Quirk.UNCONDITIONAL_PARTS not in fake.quirks:
        fake.check_write(request)
    body = b''.join(parts[number] for number in sorted(parts))
    digests = b''.join(hashlib.md5(parts[number], usedforsecurity=False).digest() for number in sorted(parts))
    tags = _given_tags(fake, headers)
    headers.pop('x-amz-tagging', None)
    is_exact = Quirk.NO_ETAG_OF_PARTS in fake.quirks
    etag = f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"' if is_exact else fake.new_etag(body)
    fake.objects[request.key] = StoredObject(body, headers, etag, fake.clock(), tags=tags)
    del fake.uploads[upload_id]
    said = '' if is_exact else escape(etag)
    return 200, {}, f'<CompleteMultipartUploadResult><ETag>{said}</ETag></CompleteMultipartUploadResult>'.encode()
