"""Signed requests to one bucket, and the only module that knows boto3 and botocore.

Owns credentials, region, endpoint, addressing, and the one place where what boto raises becomes an error of ctxfs. It must not
know conditions, capabilities or the store's prefix: keys here are the bucket's.

Two ways lead to the server. The frequent requests take their credentials from botocore, are signed by `s3_sign` and sent over `s3_http`:
boto3's client costs about 1 ms of CPU for each, this 0.2 ms. The rare ones (multipart control) go through boto3's client, made on first need.
"""
from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import os
import threading
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

import boto3
import botocore.config
import botocore.exceptions
import botocore.httpsession

import ctxfs
from ctxfs.errors import CtxfsError, Denied, RemoteUnavailable, UsageError
from ctxfs.storage.s3_errors import error_for
from ctxfs.storage.s3_http import HttpPool, Response, Timeouts
from ctxfs.storage.s3_sign import Credentials, signed_headers
from ctxfs.storage.s3_xml import parse_error

#: what RFC 3986 leaves alone; S3 signs a key with everything else encoded, and its slashes kept
_SAFE = '-_.~'
_USER_AGENT = f'ctxfs/{ctxfs.__version__}'
#: S3 and OSS allow 15 minutes
_SKEW_SECONDS = 840.0
_PLAIN_READS = frozenset({'GET', 'HEAD'})


class S3Client:
    """One bucket at one endpoint. Thread-safe. Raises UsageError for a profile or an endpoint that cannot be."""

    def __init__(self, bucket: str, *, endpoint: str | None = None, region: str | None = None, profile: str | None = None,
                 addressing: str = 'auto') -> None:
        self.bucket = bucket
        with translate('the AWS configuration', bucket):
            self._session = boto3.Session(profile_name=profile)
            given = endpoint or os.environ.get('AWS_ENDPOINT_URL_S3') or os.environ.get('AWS_ENDPOINT_URL')
            self.region = region or _region_of(given) or self._session.region_name or 'us-east-1'
            self._service_url = (given or _aws_endpoint(self._session, self.region)).rstrip('/')
        self._is_virtual = _is_virtual(addressing, self._service_url, bucket)
        origin, self._base = _split_endpoint(self._service_url, bucket, self._is_virtual)
        self.endpoint = origin
        self._pool = HttpPool(origin, ca_file=_ca_file())
        self._host = origin.partition('//')[2]
        self._sign_body = origin.startswith('http://')
        self._lock = threading.Lock()
        self._credentials: Any = None
        self._boto: Any = None

    def request(self, method: str, key: str = '', *, query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None,
                body: bytes = b'', what: str = '', is_repeatable: bool | None = None, timeouts: Timeouts | None = None) -> Response:
        """The response, if its status is 2xx; else the error of ctxfs that it means. `is_repeatable` (default: reads are) says whether
        sending twice is as good as once, so that a lost connection can be tried again at once."""
        target = self._base + quote(key, safe='/' + _SAFE)
        if query:
            target += '?' + '&'.join(f'{quote(name, safe=_SAFE)}={quote(value, safe=_SAFE)}' for name, value in sorted(query.items()))
        what = what or f'{method} {key}'
        signed = self._sign(method, target, headers or {}, body, what)
        response = self._pool.request(method, target, headers=signed, body=body, timeouts=timeouts or Timeouts(),
                                      is_repeatable=method in _PLAIN_READS if is_repeatable is None else is_repeatable)
        if response.status >= 300:
            raise self.error(response, what)
        return response

    def error(self, response: Response, what: str) -> CtxfsError:
        """The error that a response means (also one of status 200 that carries an error document)."""
        code, message = parse_error(response.body)
        if not code and response.status == 403:
            message = 'refused; check the credentials and their rights'
            if abs(_skew(response)) > _SKEW_SECONDS:        # the answer to a HEAD has no room for the reason
                code = 'RequestTimeTooSkewed'
        if code == 'RequestTimeTooSkewed' and (skew := _skew(response)):
            what += f', with the clock {abs(skew) / 60:.0f} minutes {"ahead" if skew > 0 else "behind"}'
        return error_for(response.status, code, message, what=what, bucket=self.bucket)

    def source_header(self, key: str) -> str:
        """The value of x-amz-copy-source for a key of this bucket."""
        return quote(f'/{self.bucket}/{key}', safe='/' + _SAFE)

    def boto(self) -> Any:
        """boto3's client with the configuration that every provider known accepts, for requests that are rare."""
        with self._lock:
            if self._boto is None:
                with translate('the S3 client', self.bucket):
                    self._boto = self._session.client('s3', region_name=self.region, endpoint_url=self._service_url,
                                                      config=_boto_config(self._is_virtual))
                    self._boto.meta.events.register('before-sign.s3.DeleteObjects', use_content_md5)
            return self._boto

    def close(self) -> None:
        self._pool.close()
        with self._lock:
            if self._boto is not None:
                self._boto.close()
                self._boto = None

    def _sign(self, method: str, target: str, headers: Mapping[str, str], body: bytes, what: str) -> Mapping[str, str]:
        path, _, query = target.partition('?')
        with translate(what, self.bucket):
            credentials = self._current_credentials()
        return signed_headers(method, self._host, path, query, {**headers, 'User-Agent': _USER_AGENT}, body, credentials=credentials,
                              region=self.region, sign_body=self._sign_body)

    def _current_credentials(self) -> Credentials:
        """Asked for each request: temporary ones are renewed by botocore when they near their end."""
        if self._credentials is None:
            with self._lock:
                self._credentials = self._credentials or self._session.get_credentials()
            if self._credentials is None:
                raise Denied('no S3 credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile')
        frozen = self._credentials.get_frozen_credentials()
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token)


@contextlib.contextmanager
def translate(what: str, bucket: str) -> Iterator[None]:
    """The one place where exceptions of boto3 and botocore become errors of ctxfs."""
    try:
        yield
    except botocore.exceptions.ClientError as exc:
        status = exc.response.get('ResponseMetadata', {}).get('HTTPStatusCode', 0)
        error = exc.response.get('Error', {})
        code = str(error.get('Code', ''))
        raise error_for(status, '' if code.isdigit() else code, error.get('Message', ''), what=what, bucket=bucket) from exc
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError,
            botocore.exceptions.CredentialRetrievalError, botocore.exceptions.TokenRetrievalError,
            botocore.exceptions.UnauthorizedSSOTokenError) as exc:
        raise Denied(f'{what}: {exc}; check the S3 credentials') from exc
    except (botocore.exceptions.ProfileNotFound, botocore.exceptions.ConfigParseError, botocore.exceptions.ConfigNotFound,
            botocore.exceptions.InvalidConfigError, botocore.exceptions.ParamValidationError, ValueError) as exc:
        raise UsageError(f'{what}: {exc}') from exc
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.HTTPClientError) as exc:
        raise RemoteUnavailable(f'{what}: {exc}') from exc


def use_content_md5(request: Any, **_: Any) -> None:
    """A botocore handler: DeleteObjects with Content-MD5 instead of boto3's CRC32 header, which OSS and Swift refuse."""
    for name in [name for name in request.headers if name.lower().startswith(('x-amz-checksum-', 'x-amz-sdk-checksum-'))]:
        del request.headers[name]
    if 'Content-MD5' not in request.headers:
        request.headers['Content-MD5'] = content_md5(request.body or b'')


def _skew(response: Response) -> float:
    """Seconds by which this machine's clock is ahead of the server's; 0 where it does not say."""
    try:
        return time.time() - parsedate_to_datetime(response.headers.get('Date', '')).timestamp()
    except (TypeError, ValueError):
        return 0.0


def content_md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode('ascii')


def _boto_config(is_virtual: bool) -> botocore.config.Config:
    """boto3 >= 1.36 by default adds checksums in aws-chunked encoding over https, which OSS refuses as InvalidArgument: when_required."""
    return botocore.config.Config(
        signature_version='s3v4', connect_timeout=5, read_timeout=60, max_pool_connections=8, tcp_keepalive=True,
        retries={'mode': 'standard', 'total_max_attempts': 2}, request_checksum_calculation='when_required',
        response_checksum_validation='when_required', s3={'addressing_style': 'virtual' if is_virtual else 'path'})


def _aws_endpoint(session: Any, region: str) -> str:
    """AWS's own endpoint, by the partition of the region (amazonaws.com, amazonaws.com.cn …)."""
    partition = session.get_partition_for_region(region) if region else 'aws'
    suffix = 'amazonaws.com.cn' if partition == 'aws-cn' else 'amazonaws.com'
    return f'https://s3.{region}.{suffix}'


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
    parts = urlsplit(endpoint)
    if parts.scheme not in ('http', 'https') or not parts.hostname:
        raise UsageError(f'the endpoint {endpoint!r} is no URL; it is http://HOST[:PORT] or https://HOST[:PORT]')
    # a default port that is spelled out would be signed with it and sent without it
    is_default = parts.port is None or parts.port == {'http': 80, 'https': 443}[parts.scheme]
    host = f'[{parts.hostname}]' if ':' in parts.hostname else parts.hostname
    origin = f'{parts.scheme}://{bucket + "." if is_virtual else ""}{host}{"" if is_default else f":{parts.port}"}'
    path = parts.path.rstrip('/')
    return origin, f'{path}/' if is_virtual else f'{path}/{quote(bucket, safe=_SAFE)}/'


def _ca_file() -> str | None:
    """AWS_CA_BUNDLE, or the authorities that come with botocore (a small system may have none of its own)."""
    return os.environ.get('AWS_CA_BUNDLE') or botocore.httpsession.get_cert_path(True)
