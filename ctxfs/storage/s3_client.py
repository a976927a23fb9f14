"""Signed requests to one bucket.

Owns credentials (also their renewal), region, endpoint, addressing, and what is tried again at once. It must not know conditions, capabilities or the
store's prefix: keys here are the bucket's. boto3's ways to find credentials and configuration are s3_boto.py's, imported where they are needed.

Requests take their credentials from botocore, are signed by `s3_sign` and sent over `s3_http`: boto3's client costs about 1 ms of CPU for
each, this 0.2 ms.
"""
from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

import ctxfs
from ctxfs.errors import CtxfsError, Denied, RemoteUnavailable, UsageError
from ctxfs.storage import fibers
from ctxfs.storage.s3_credentials import find_credentials
from ctxfs.storage.s3_encryption import encryption_headers, makes_object
from ctxfs.storage.s3_errors import code_of, error_for, status_of
from ctxfs.storage.s3_http import HttpPool, Response, Timeouts
from ctxfs.storage.s3_retry import ATTEMPTS, BUSY, LONGEST_SECONDS, pause, retry_after_of
from ctxfs.storage.s3_sign import Credentials, presigned_query, signed_headers
from ctxfs.storage.s3_xml import parse_error
from ctxfs.storage.traffic import Kind, Traffic

log = logging.getLogger(__name__)

#: what RFC 3986 leaves alone; S3 signs a key with everything else encoded, and its slashes kept
_SAFE = '-_.~'
_USER_AGENT = f'ctxfs/{ctxfs.__version__}'
#: a page of a listing whose 1,000 keys are as long as they can be, each character spelled out; nothing but objects is larger
DOCUMENT_MAX = 12 << 20
#: S3 and OSS allow 15 minutes
_SKEW_SECONDS = 840.0
_PLAIN_READS = frozenset({'GET', 'HEAD'})
#: other credentials are looked for that often at most
_RENEW_SECONDS = 1.0
#: codes that other credentials may help
_RENEWABLE = frozenset({'ExpiredToken', 'ExpiredTokenException', 'SecurityTokenExpired', 'TokenRefreshRequired', 'InvalidToken',
                        'InvalidAccessKeyId', 'SignatureDoesNotMatch', '403', '401'})


class S3Client:
    """One bucket at one endpoint. Thread-safe. Raises UsageError for a profile or an endpoint that cannot be. `silence`: seconds for which
    the server may say nothing before a request has failed; `sse`: what every object is to be encrypted with, there."""

    def __init__(self, bucket: str, *, endpoint: str | None = None, region: str | None = None, profile: str | None = None,
                 addressing: str = 'auto', silence: float | None = None, traffic: Traffic | None = None,
                 sse: str | None = None) -> None:
        self.bucket = bucket
        self._timeouts = Timeouts() if silence is None else Timeouts(connect=min(Timeouts().connect, silence), read=silence)
        self._profile = profile
        self._boto: Any = None
        with translate('the AWS configuration', bucket):
            if profile is not None:
                self._session()     # one that is not there is told at once
            given = endpoint or os.environ.get('AWS_ENDPOINT_URL_S3') or os.environ.get('AWS_ENDPOINT_URL')
            self.region = region or _region_of(given) or os.environ.get('AWS_DEFAULT_REGION') or self._session().region_name or 'us-east-1'
            self._service_url = (given or self._aws_endpoint()).rstrip('/')
        self._is_virtual = _is_virtual(addressing, self._service_url, bucket)
        origin, self._base = _split_endpoint(self._service_url, bucket, self._is_virtual)
        self.endpoint = origin
        self._traffic = traffic or Traffic()
        self._pool = HttpPool(origin, ca_file=_ca_file() if origin.startswith('https') else None, traffic=self._traffic)
        self._host = origin.partition('//')[2]
        self._sign_body = origin.startswith('http://')
        self._encrypted = encryption_headers(sse, self._service_url) if sse else {}
        self._lock = threading.Lock()
        self._credentials: Any = None
        self._renewed_at = float('-inf')

    def request(self, method: str, key: str = '', *, query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None,
                body: bytes = b'', what: str = '', is_repeatable: bool | None = None, timeouts: Timeouts | None = None,
                is_long: bool = False, body_max: int = DOCUMENT_MAX) -> Response:
        """The response, if its status is 2xx; else the error of ctxfs that it means. `is_repeatable` (default: reads are) says whether
        sending twice is as good as once. `is_long`: the server has much to do before it answers. With `timeouts` of its own it is tried
        only once. `body_max`: bytes that the answer may have.

        What passes within seconds is tried again here: whatever the server did not begin because it was busy, and what is repeatable also
        after another failure. Nothing is tried again once the time for one silent request has gone by, or, where much would be lost (a
        repeatable write is a part of something large), for three."""
        target = self._base + quote(key, safe='/' + _SAFE)
        if query:
            target += '?' + '&'.join(f'{quote(name, safe=_SAFE)}={quote(value, safe=_SAFE)}' for name, value in sorted(query.items()))
        what = what or f'{method} {key}'
        repeatable = method in _PLAIN_READS if is_repeatable is None else is_repeatable
        until = time.monotonic() + self._timeouts.read * (3 if repeatable and method == 'PUT' else 1)
        chosen = timeouts or (self._timeouts._replace(read=3 * self._timeouts.read) if is_long else self._timeouts)
        kind = _kind_of(method, query or {}, headers or {})
        if self._encrypted and makes_object(method, query or {}):
            headers = {**(headers or {}), **self._encrypted}
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._attempt(method, target, headers or {}, body, what, repeatable, chosen, body_max, kind)
            except RemoteUnavailable as error:
                delay = pause(attempt, error.retry_after)
                may_repeat = repeatable or status_of(error) in BUSY
                if not may_repeat or timeouts or attempt == ATTEMPTS or delay > LONGEST_SECONDS or time.monotonic() + delay > until:
                    raise
                log.debug('%s; once more in %.1f s', error, delay)
            fibers.sleep(delay)
            self._traffic.counters.note_retry(kind)
        raise AssertionError('not reached: the last attempt returns or raises')

    def _attempt(self, method: str, target: str, headers: Mapping[str, str], body: bytes, what: str, is_repeatable: bool,
                 timeouts: Timeouts, body_max: int, kind: Kind) -> Response:
        """One request; with other credentials once more, where those it had are refused and there are others by now."""
        used = self._current_credentials(what)
        while True:
            response = self._pool.request(method, target, headers=self._sign(method, target, headers, body, used), body=body,
                                          is_repeatable=is_repeatable, timeouts=timeouts, body_max=body_max, kind=kind)
            if response.status < 300:
                return response
            error = self.error(response, what)
            renewed = self._renewed_credentials(used, what) if code_of(error) in _RENEWABLE else None
            if renewed is None:
                raise error
            log.info('%s; there are other credentials now', error)
            self._traffic.counters.note_retry(kind)
            used = renewed

    def error(self, response: Response, what: str) -> CtxfsError:
        """The error that a response means (also one of status 200 that carries an error document)."""
        code, message = parse_error(response.body)
        if response.status == 400 and not response.body:    # the answer to a HEAD has no room for the reason, and this is the one that there is
            code = 'ExpiredToken'
        elif not code and response.status == 403:
            message = 'refused; check the credentials and their rights'
            if abs(_skew(response)) > _SKEW_SECONDS:        # the answer to a HEAD has no room for the reason
                code = 'RequestTimeTooSkewed'
        if code == 'RequestTimeTooSkewed' and (skew := _skew(response)):
            what += f', with the clock {abs(skew) / 60:.0f} minutes {"ahead" if skew > 0 else "behind"}'
        error = error_for(response.status, code, message, what=what, bucket=self.bucket)
        if isinstance(error, RemoteUnavailable):
            error.retry_after = retry_after_of(response.headers.get('Retry-After', ''))
        return error

    def presigned(self, method: str, key: str, seconds: int) -> str:
        """A URL that lets whoever has it do that one thing for so many seconds. Temporary credentials may end sooner, and it with them."""
        path = self._base + quote(key, safe='/' + _SAFE)
        query = presigned_query(method, self._host, path, credentials=self._current_credentials('a presigned URL'), region=self.region,
                                seconds=seconds)
        return f'{self.endpoint}{path}?{query}'

    def source_header(self, key: str) -> str:
        """The value of x-amz-copy-source for a key of this bucket."""
        return quote(f'/{self.bucket}/{key}', safe='/' + _SAFE)

    def close(self) -> None:
        self._pool.close()

    def _sign(self, method: str, target: str, headers: Mapping[str, str], body: bytes, credentials: Credentials) -> Mapping[str, str]:
        path, _, query = target.partition('?')
        return signed_headers(method, self._host, path, query, {**headers, 'User-Agent': _USER_AGENT}, body, credentials=credentials,
                              region=self.region, sign_body=self._sign_body)

    def _current_credentials(self, what: str) -> Credentials:
        """Asked for each request: temporary ones are renewed by botocore when they near their end."""
        with translate(what, self.bucket):
            if self._credentials is None:
                with self._lock:
                    self._credentials = self._credentials or self._find(self._session)
                if self._credentials is None:
                    raise Denied('no S3 credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile')
            frozen = self._credentials.get_frozen_credentials()
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token)

    def _session(self) -> Any:
        """boto3's, made when it is first needed."""
        if self._boto is None:
            from ctxfs.storage.s3_boto import new_session
            self._boto = new_session(self._profile)
        return self._boto

    def _aws_endpoint(self) -> str:
        from ctxfs.storage.s3_boto import aws_endpoint
        return aws_endpoint(self._session(), self.region)

    def _find(self, session: Callable[[], Any]) -> Any:
        return find_credentials(lambda: session().get_credentials(), endpoint=self._service_url, has_profile=self._profile is not None,
                                env=os.environ)

    def _renewed_credentials(self, refused: Credentials, what: str) -> Credentials | None:
        """Others than those that were refused, if there are any: a file that somebody has written anew is read by botocore only once. None
        also when there are none at all, for then the refusal says more."""
        with self._lock:
            if time.monotonic() - self._renewed_at < _RENEW_SECONDS:
                return self._if_other(refused)
            self._renewed_at = time.monotonic()
            try:
                with translate(what, self.bucket):
                    from ctxfs.storage.s3_boto import new_session
                    session = new_session(self._profile)
                    found = self._find(lambda: session)
                    frozen = found.get_frozen_credentials() if found is not None else None
            except CtxfsError:
                return None
            if frozen is None or Credentials(frozen.access_key, frozen.secret_key, frozen.token) == refused:
                return None
            self._boto, self._credentials = session, found
            return self._if_other(refused)

    def _if_other(self, refused: Credentials) -> Credentials | None:
        """The credentials in use, unless they are those: another thread may have found new ones."""
        frozen = self._credentials.get_frozen_credentials()
        current = Credentials(frozen.access_key, frozen.secret_key, frozen.token)
        return None if current == refused else current


@contextlib.contextmanager
def translate(what: str, bucket: str) -> Iterator[None]:
    """Around whatever may be boto3's: its exceptions become errors of ctxfs."""
    try:
        yield
    except CtxfsError:
        raise
    except Exception as exc:
        from ctxfs.storage.s3_boto import error_of
        error = UsageError(f'{what}: {exc}') if isinstance(exc, ValueError) else error_of(exc, what, bucket)
        if error is None:
            raise
        raise error from exc


def _kind_of(method: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Kind:
    """As what a request is counted."""
    if not query:
        if method == 'PUT' and 'x-amz-copy-source' in headers:
            return Kind.COPY
        return Kind[method] if method in Kind.__members__ else Kind.OTHER
    if 'uploads' in query or ('uploadId' in query and 'partNumber' not in query):
        return Kind.MULTIPART
    if 'partNumber' in query:
        return Kind.COPY if 'x-amz-copy-source' in headers else Kind.PART
    return Kind.LIST if 'list-type' in query else Kind.DELETE if 'delete' in query else Kind.OTHER


def _skew(response: Response) -> float:
    """Seconds by which this machine's clock is ahead of the server's; 0 where it does not say."""
    try:
        return time.time() - parsedate_to_datetime(response.headers.get('Date', '')).timestamp()
    except (TypeError, ValueError):
        return 0.0


def content_md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode('ascii')


def _region_of(endpoint: str | None) -> str | None:
    """The region that an OSS host name says (`s3.oss-cn-hangzhou-internal.aliyuncs.com`: cn-hangzhou), which OSS signs with."""
    host = urlsplit(endpoint or '').hostname or ''
    if not host.endswith('.aliyuncs.com'):
        return None
    for label in host.split('.'):
        if label.startswith('oss-') and label != 'oss-accelerate':
            return label.removeprefix('oss-').removesuffix('-internal')
    return None


def _is_virtual(addressing: str, endpoint: str, bucket: str) -> bool:
    """Whether the bucket goes into the host name. OSS and AWS want that; a server of one's own mostly has no DNS names for buckets. A dot in
    the bucket's name does not fit the wildcard certificate of an https host."""
    if addressing != 'auto':
        return addressing == 'virtual'
    host = urlsplit(endpoint).hostname or ''
    if host.endswith('.aliyuncs.com'):
        return True
    return '.amazonaws.com' in host and '.' not in bucket and not _is_address(host)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _split_endpoint(endpoint: str, bucket: str, is_virtual: bool) -> tuple[str, str]:
    """(scheme://host[:port], path before a key)."""
    try:
        parts = urlsplit(endpoint)
        is_url = parts.scheme in ('http', 'https') and bool(parts.hostname) and parts.port != 0
    except ValueError:      # brackets without an address between them, a port that is none
        is_url = False
    if not is_url or parts.hostname is None:
        raise UsageError(f'the endpoint {endpoint!r} is no URL; it is http://HOST[:PORT] or https://HOST[:PORT]')
    # a default port that is spelled out would be signed with it and sent without it
    is_default = parts.port is None or parts.port == {'http': 80, 'https': 443}[parts.scheme]
    host = f'[{parts.hostname}]' if ':' in parts.hostname else parts.hostname
    origin = f'{parts.scheme}://{bucket + "." if is_virtual else ""}{host}{"" if is_default else f":{parts.port}"}'
    path = parts.path.rstrip('/')
    return origin, f'{path}/' if is_virtual else f'{path}/{quote(bucket, safe=_SAFE)}/'


def _ca_file() -> str:
    """AWS_CA_BUNDLE, or the authorities that come with botocore."""
    if given := os.environ.get('AWS_CA_BUNDLE'):
        return given
    from ctxfs.storage.s3_boto import authorities
    return authorities()
