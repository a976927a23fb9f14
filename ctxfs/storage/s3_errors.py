"""What an S3 error means: one table from (HTTP status, error code) to the errors of ctxfs, with messages that say what to do.

Owns the table, and nothing that sends or parses. It must not know boto3: both ways to the server end here.
"""
from __future__ import annotations

from ctxfs.errors import (
    ClockSkewed,
    CredentialsExpired,
    CtxfsError,
    Denied,
    InvalidArgument,
    NotFound,
    RemoteChanged,
    RemoteUnavailable,
    Unanswered,
    Unsupported,
)

#: codes that say more than their status; the texts are for a person
_CODES: dict[str, tuple[type[CtxfsError], str]] = {
    'NoSuchBucket': (NotFound, 'the bucket {bucket} does not exist; check the store URL, or create the bucket'),
    'InvalidAccessKeyId': (Denied, 'the access key is not known there; check the credentials (AWS_ACCESS_KEY_ID, profile)'),
    'SignatureDoesNotMatch': (Denied, 'the secret key does not fit the access key; check the credentials (AWS_SECRET_ACCESS_KEY, profile)'),
    'ExpiredToken': (CredentialsExpired, 'the session token has expired; renew the credentials'),
    'ExpiredTokenException': (CredentialsExpired, 'the session token has expired; renew the credentials'),
    'TokenRefreshRequired': (CredentialsExpired, 'the session token has expired; renew the credentials'),
    'InvalidToken': (Denied, 'the session token is not valid; renew the credentials'),
    'SecurityTokenExpired': (CredentialsExpired, 'the session token has expired; renew the credentials'),
    'RequestTimeTooSkewed': (ClockSkewed, "this machine's clock differs from the server's by more than it allows; set the clock"),
    'AuthorizationHeaderMalformed': (Denied, 'the request was signed for another region; give region= in the store URL'),
    'PermanentRedirect': (InvalidArgument, 'the bucket {bucket} is in another region or at another endpoint; give region= or endpoint='),
    'SecondLevelDomainForbidden': (Denied, 'this endpoint wants addressing=virtual in the store URL'),
    'KeyTooLongError': (InvalidArgument, 'the key is too long for this store'),
    'EntityTooLarge': (InvalidArgument, 'the object or a part of it is too large for this store'),
    'EntityTooSmall': (InvalidArgument, 'a part of the object is too small for this store'),
    'MetadataTooLarge': (InvalidArgument, 'the object metadata is too large for this store'),
    'RequestTimeout': (RemoteUnavailable, 'the server gave up waiting for the request'),
    'BadDigest': (RemoteUnavailable, 'the content was damaged on its way'),
    'XAmzContentSHA256Mismatch': (RemoteUnavailable, 'the content was damaged on its way'),
    'ConditionalRequestConflict': (RemoteUnavailable, 'another request to the same key was under way'),
    'OperationAborted': (RemoteUnavailable, 'another request to the same key was under way'),
    'PreconditionFailed': (RemoteChanged, 'the object is not the version that was expected'),
    'FileAlreadyExists': (RemoteChanged, 'the object exists already'),
    'NotImplemented': (Unsupported, 'this store does not have the operation'),
}
_STATUSES: dict[int, type[CtxfsError]] = {
    401: Denied, 403: Denied, 404: NotFound, 405: Unsupported, 408: RemoteUnavailable, 409: RemoteChanged, 412: RemoteChanged,
    425: RemoteUnavailable, 429: RemoteUnavailable, 501: Unsupported,
    # somebody on the way gave up, or something broke in the middle
    500: Unanswered, 502: Unanswered, 504: Unanswered,
}


def error_for(status: int, code: str, message: str, *, what: str, bucket: str) -> CtxfsError:
    """The error to raise for a response. `what`: what was being done, as "put KEY". Its attributes `code` and `status` keep what the server
    said."""
    kind, text = _CODES.get(code, (None, ''))
    if kind is None:
        kind = _STATUSES.get(status) or (RemoteUnavailable if status >= 500 or code == 'SlowDown' else InvalidArgument)
        text = message.strip() or code or f'HTTP status {status}'
    if 300 <= status < 400:
        kind, text = InvalidArgument, _CODES['PermanentRedirect'][1]
    error = kind(f'{what}: {text.replace("{bucket}", bucket)}')
    error.code, error.status = code or str(status), status  # type: ignore[attr-defined]
    return error


def code_of(error: Exception) -> str:
    """The server's code of an error that `error_for` made, else ''."""
    return getattr(error, 'code', '')


def status_of(error: Exception) -> int:
    """The HTTP status of an error that `error_for` made, else 0."""
    return getattr(error, 'status', 0)
