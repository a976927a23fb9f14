"""Encryption at rest, by the server: the headers that ask for it, and the requests that take them.

Owns their spelling at AWS's and Alibaba's endpoints. It must not know keys or objects: what is said is said of every object that is made.
"""
from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from ctxfs.store_url import parse_sse

_OSS = {'AES256': 'AES256', 'aws:kms': 'KMS', 'aws:kms:dsse': 'KMS'}


def encryption_headers(sse: str, endpoint: str) -> dict[str, str]:
    """Raises UsageError."""
    algorithm, key = parse_sse(sse)
    if (urlsplit(endpoint).hostname or '').endswith('.aliyuncs.com'):
        name, value, key_name = 'x-oss-server-side-encryption', _OSS[algorithm], 'x-oss-server-side-encryption-key-id'
    else:
        name, value, key_name = 'x-amz-server-side-encryption', algorithm, 'x-amz-server-side-encryption-aws-kms-key-id'
    return {name: value, **({key_name: key} if key else {})}


def makes_object(method: str, query: Mapping[str, str]) -> bool:
    """A PUT, a copy, or the begin of an upload in parts: the others are refused with these headers (parts take them from their begin)."""
    return (method == 'PUT' and not query) or (method == 'POST' and 'uploads' in query)
