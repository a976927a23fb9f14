"""From a store's URL to the store: `s3://BUCKET[/PREFIX]?…` and `file:///DIR[?…]`.

Owns the schemes, which options each URL may have, and what is said about a wrong one. It must not know what the stores do with them; no
request is made and no file touched here (except that `create` makes the directory of a `file://` store).
"""
from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ctxfs.errors import UsageError
from ctxfs.storage.object_store import Memory, ObjectStore
from ctxfs.storage.traffic import Traffic
from ctxfs.store_url import check_no_credentials, parse_sse

_OPTIONS = {'file': ('fsync',), 's3': ('endpoint', 'region', 'addressing', 'profile', 'sse')}
_SYNTAX = 's3://BUCKET[/PREFIX][?endpoint=…&region=…&addressing=auto|path|virtual&profile=…&sse=…] or file:///DIRECTORY'


def open_store(url: str, *, create: bool = False, scratch_prefix: str = '.ctxfs/', capabilities: Mapping[str, Any] | None = None,
                silence: float | None = None, memory: Memory | None = None, turn_left: Callable[[], float] | None = None,
               traffic: Traffic | None = None) -> ObjectStore:
    """The store that `url` names. Nothing is asked of it yet: `check()` does that.

    `create`: a `file://` directory is made where it is missing. `scratch_prefix`: what the keys of its probes begin with, and what `check()`
    lists (credentials may be good for one prefix only). `capabilities`: what an earlier `capabilities()` found, as a dict; `memory`:
    where that is remembered. `silence`: seconds for which a server may say nothing before a request has failed (s3://). `turn_left`: seconds
    for which this host alone may do what the store cannot make atomic. `traffic` counts the requests and bounds their
    bytes (s3://). Raises UsageError for a wrong URL.
    """
    scheme, bucket, path, options = _parse(url)
    if scheme == 'file':
        from ctxfs.storage.file_store import FileStore
        return FileStore(path, create=create, durable=_switch(options, 'fsync', url))
    # imported here: boto3 costs 0.2 s and 40 MB, and a file:// store needs none of it
    from ctxfs.storage.s3_store import S3Store
    return S3Store(bucket, path, endpoint=options.get('endpoint'), region=options.get('region'), profile=options.get('profile'),
                   addressing=options.get('addressing', 'auto'), scratch_prefix=scratch_prefix, known=capabilities, memory=memory,
                   silence=silence, turn_left=turn_left, traffic=traffic, sse=options.get('sse'))


def directory_of(url: str) -> str | None:
    """The directory that a `file://` store's objects lie in, by their keys; None for another store. Raises UsageError for a wrong URL."""
    scheme, _, path, _ = _parse(url)
    return path if scheme == 'file' else None


def _parse(url: str) -> tuple[str, str, str, dict[str, str]]:
    check_no_credentials(url)
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as exc:
        raise UsageError(f'the store URL {url} is malformed ({exc}); it is {_SYNTAX}') from exc
    if parts.scheme not in _OPTIONS or parts.fragment:
        raise UsageError(f'the store URL {url} is none that ctxfs knows; it is {_SYNTAX}')
    for name in options:
        if name not in _OPTIONS[parts.scheme]:
            near = difflib.get_close_matches(name, _OPTIONS[parts.scheme], 1)
            hint = f'; did you mean {near[0]}?' if near else ''
            raise UsageError(f'the store URL {url} has the unknown option {name!r}{hint}')
    path = unquote(parts.path)
    if parts.scheme == 'file' and (parts.netloc not in ('', 'localhost') or not path.startswith('/')):
        raise UsageError(f'the store URL {url} needs an absolute path and no host: file:///DIRECTORY')
    if parts.scheme == 's3' and not parts.netloc:
        raise UsageError(f'the store URL {url} names no bucket: s3://BUCKET')
    if options.get('addressing', 'auto') not in ('auto', 'path', 'virtual'):
        raise UsageError(f'the store URL {url}: addressing is auto, path or virtual')
    if 'sse' in options:
        parse_sse(options['sse'])
    return parts.scheme, parts.netloc, path.rstrip('/') or '/', options


def _switch(options: dict[str, str], name: str, url: str) -> bool:
    value = options.get(name, 'yes')
    if value not in ('yes', 'no'):
        raise UsageError(f'the store URL {url}: {name} is yes or no')
    return value == 'yes'
