"""Store URLs: one spelling of each, what may be said in them, and which two mean the same store.

Owns their syntax. It must not know stores, nor where a URL comes from: config.py resolves that. A URL that carries credentials is refused,
and is not repeated, because URLs end up in argv, in logs, in mount.json and in `ctxfs status`.
"""
from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from ctxfs.errors import UsageError
from ctxfs.nearest import nearest

#: what may follow the `?`, by scheme; what each means is the store's business
STORE_PARAMETERS = {'file': ('fsync',), 's3': ('endpoint', 'region', 'addressing', 'profile', 'sse')}
#: what a server may be told to encrypt with; the last two take a key's id behind a colon
ENCRYPTIONS = ('AES256', 'aws:kms', 'aws:kms:dsse')


def normalise_store_url(url: str) -> str:
    """One spelling of a store URL. Raises UsageError with what to write instead."""
    check_no_credentials(url)
    parts = _split(url)
    if parts is None or parts.scheme not in STORE_PARAMETERS:
        raise UsageError(f'store {url!r}: write s3://BUCKET[/PREFIX]?endpoint=URL or file:///DIRECTORY')
    place = _file_place(url, parts.netloc, parts.path) if parts.scheme == 'file' else _s3_place(url, parts.netloc, parts.path)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    for name, value in pairs:
        _check_parameter(url, parts.scheme, name, value)
    return place + (f'?{urlencode(sorted(pairs), safe=":/")}' if pairs else '')


#: USER@ or USER:PASSWORD@ of any authority, also of one in a parameter (a secret key may hold slashes), and parameters by their names
_CREDENTIALS = re.compile(r'//[^/?#\s]*@|//[^/?#\s]*:[^@\s]*@|%3a%2f%2f[^&\s]*(@|%40)|'
                          r'[?&][^=&]*(secret|token|key|passw|credential|signature|sig)[^=&]*=', re.IGNORECASE)


def check_no_credentials(url: str) -> None:
    """Raises UsageError, without repeating it, for a URL with credentials in it: URLs end up in argv, logs and the status."""
    if _CREDENTIALS.search(url):
        raise UsageError('a store URL must not carry credentials (this one is not repeated here); put them into AWS_ACCESS_KEY_ID and '
                         'AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials')


def _split(url: str) -> SplitResult | None:
    """None where it is no URL: brackets without an address between them, a port that is none."""
    try:
        parts = urlsplit(url)
        return parts if parts.port is None or parts.port >= 0 else None
    except ValueError:
        return None


def _s3_place(url: str, bucket: str, path: str) -> str:
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9._-]{1,253}', bucket):
        raise UsageError(f'store {url!r}: {bucket!r} is no bucket name')
    return f's3://{bucket}/{path.strip("/")}'.rstrip('/')


def _file_place(url: str, host: str, path: str) -> str:
    if host not in ('', 'localhost') or not path.startswith('/'):
        raise UsageError(f'store {url!r}: write file:///ABSOLUTE/DIRECTORY (three slashes)')
    return file_store_url(Path(os.path.normpath(unquote(path))))


def _check_parameter(url: str, scheme: str, name: str, value: str) -> None:
    if name not in STORE_PARAMETERS[scheme]:
        raise UsageError(f'store {url!r}: unknown parameter {name}{nearest(name, STORE_PARAMETERS[scheme])}')
    if name == 'endpoint' and not (re.fullmatch(r'https?://[^/@\s]+(/[^@\s]*)?', value) and _split(value)):
        raise UsageError(f'store {url!r}: endpoint must be http://HOST[:PORT] or https://HOST[:PORT], without credentials')
    if name == 'sse':
        parse_sse(value)
    if name == 'addressing' and value not in ('auto', 'path', 'virtual'):
        raise UsageError(f'store {url!r}: addressing is auto, path or virtual')


def parse_sse(text: str) -> tuple[str, str]:
    """(algorithm, id of the KMS key or ''). Raises UsageError."""
    for name in sorted(ENCRYPTIONS, key=len, reverse=True):
        if text == name:
            return name, ''
        if text.startswith(f'{name}:') and name != 'AES256' and re.fullmatch(r'[A-Za-z0-9:/_.-]{1,2048}', text[len(name) + 1:]):
            return name, text[len(name) + 1:]
    raise UsageError(f'sse {text}: write AES256, aws:kms, or aws:kms:KEYID')


def with_sse(url: str, text: str | None, *, is_default: bool = False) -> str:
    """The URL with that encryption; `is_default`: only where it names none, and the store is one that encrypts. Raises UsageError."""
    if text is None:
        return url
    parse_sse(text)
    place, _, query = url.partition('?')
    pairs = dict(parse_qsl(query, keep_blank_values=True))
    if not place.startswith('s3://'):
        if is_default:
            return url
        raise UsageError(f'sse {text} has no effect on a {place.partition(":")[0]}:// store: it is the disk that encrypts, or does not')
    return url if is_default and 'sse' in pairs else normalise_store_url(f'{place}?{urlencode({**pairs, "sse": text}, safe=":/")}')


def file_store_url(directory: Path) -> str:
    """file:// of a directory, percent-encoded where a URL needs it."""
    return 'file://' + quote(os.fsencode(directory))


def store_identity(url: str) -> str:
    """What makes two URLs the same store: the other parameters only say how to reach it, and must not orphan a journal."""
    parts = urlsplit(normalise_store_url(url))
    if parts.scheme == 'file':
        return f'file://{os.path.realpath(unquote(parts.path))}'
    return f's3://{parts.netloc}{parts.path}@{dict(parse_qsl(parts.query)).get("endpoint", "").rstrip("/")}'
