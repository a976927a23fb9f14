"""boto3 and botocore, which no other module knows: configuration, credentials of every kind, and the one place where what they raise becomes an
error of ctxfs.

Owns sessions and that translation. It must not know requests. To import them costs 0.35 s and 40 MB, so a client does only when it needs what they
know; where the keys are in the environment and the region is given, that is never (s3_credentials.py).
"""
from __future__ import annotations

from typing import Any

import boto3
import botocore.exceptions
import botocore.httpsession

from ctxfs.errors import CtxfsError, Denied, RemoteUnavailable, UsageError
from ctxfs.storage.s3_errors import error_for

_WITHOUT = (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError,
            botocore.exceptions.CredentialRetrievalError, botocore.exceptions.TokenRetrievalError,
            botocore.exceptions.UnauthorizedSSOTokenError)
_WRONG = (botocore.exceptions.ProfileNotFound, botocore.exceptions.ConfigParseError, botocore.exceptions.ConfigNotFound,
          botocore.exceptions.InvalidConfigError, botocore.exceptions.ParamValidationError)


def new_session(profile: str | None) -> Any:
    """What has `region_name` and `get_credentials()`. Raises what botocore raises."""
    return boto3.Session(profile_name=profile)


def aws_endpoint(session: Any, region: str) -> str:
    """AWS's own endpoint, by the partition of the region (amazonaws.com, amazonaws.com.cn …)."""
    partition = session.get_partition_for_region(region) if region else 'aws'
    suffix = 'amazonaws.com.cn' if partition == 'aws-cn' else 'amazonaws.com'
    return f'https://s3.{region}.{suffix}'


def authorities() -> str:
    """The file of certificate authorities that comes with botocore (a small system may have none of its own)."""
    return str(botocore.httpsession.get_cert_path(True))


def error_of(exc: Exception, what: str, bucket: str) -> CtxfsError | None:
    """The error of ctxfs that an exception of theirs means; None for one that is not theirs."""
    if isinstance(exc, botocore.exceptions.ClientError):
        status = exc.response.get('ResponseMetadata', {}).get('HTTPStatusCode', 0)
        error = exc.response.get('Error', {})
        code = str(error.get('Code', ''))
        return error_for(status, '' if code.isdigit() else code, error.get('Message', ''), what=what, bucket=bucket)
    if isinstance(exc, _WITHOUT):
        return Denied(f'{what}: {exc}; check the S3 credentials')
    if isinstance(exc, _WRONG):
        return UsageError(f'{what}: {exc}')
    if isinstance(exc, (botocore.exceptions.BotoCoreError, botocore.exceptions.HTTPClientError)):
        return RemoteUnavailable(f'{what}: {exc}')
    return None
