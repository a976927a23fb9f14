"""Server-side copies, and what takes their place on servers that ignore a copy's conditions.

Owns the ways to copy and what each keeps of the source. It must not know how a condition is sent (s3_guard.py), nor parts (s3_multipart.py).

    one request                    where the server sees to the condition, or there is none; also where nothing better is to be had, after a look
    read and put; copied in parts  where copies ignore conditions and these do not: small objects, larger ones
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple
from urllib.parse import quote, urlencode

from ctxfs.errors import CtxfsError, Denied, RemoteChanged, RemoteUnavailable
from ctxfs.records import PutResult
from ctxfs.storage.object_store import ALWAYS, Condition, Write, check_metadata, check_tags
from ctxfs.storage.s3_client import S3Client
from ctxfs.storage.s3_guard import Guard, Sending
from ctxfs.storage.s3_http import Response
from ctxfs.storage.s3_multipart import COPY_MAX, copy_parts
from ctxfs.storage.s3_read import Reader
from ctxfs.storage.s3_xml import parse_copy_etag, parse_tags, quoted_etag

#: objects up to this are read and put where a copy would ignore its condition; above, four requests cost less than the bytes
READ_AND_PUT = 1 << 20
_META = ('x-amz-meta-', 'x-oss-meta-')
#: headers that a copy with new metadata would drop
_KEPT = ('Cache-Control', 'Content-Disposition', 'Content-Encoding', 'Content-Language', 'Content-Type')


class Change(NamedTuple):
    """What a copy does not take from its source; None: it does."""
    metadata: Mapping[str, str] | None = None
    content_type: str | None = None
    tags: Mapping[str, str] | None = None


class Source(NamedTuple):
    """`body`: where it was read."""
    key: str
    etag: str
    size: int
    response: Response
    body: bytes = b''


class Writer:
    """Writes of one store under conditions, with its tags. Thread-safe."""

    def __init__(self, client: S3Client, guard: Guard) -> None:
        self._client = client
        self._guard = guard

    def write(self, write: Write, key: str, condition: Condition, headers: Mapping[str, str], body: bytes = b'') -> Response:
        """One PUT or copy."""
        full = self._guard.full(key)
        try:
            return self._guard.write(write, key, condition, lambda sending: self._client.request(
                'PUT', full, headers={**headers, **sending.headers}, body=body, is_repeatable=condition == ALWAYS, timeouts=sending.timeouts,
                is_long=write is Write.COPY))
        except Denied as exc:
            if 'x-amz-tagging' in headers:      # the right to tag is one of its own, and may have been taken away
                raise self._guard.contradicted(str(exc)) from exc
            raise

    def committer(self, key: str, condition: Condition) -> Callable[[], AbstractContextManager[Sending]]:
        """Around the request that makes an upload in parts visible."""
        @contextlib.contextmanager
        def commit() -> Iterator[Sending]:
            sending = self._guard.admit(Write.PARTS, key, condition)
            with self._guard.verdict(key, condition, sending):
                yield sending
        return commit

    def tagging(self, tags: Mapping[str, str] | None) -> str:
        """The value of x-amz-tagging; '' where there are none, or the server would not keep them."""
        return urlencode(check_tags(tags), quote_via=quote) if tags and self._guard.capabilities().tagging else ''

    def tags_of(self, key: str) -> dict[str, str]:
        response = self._client.request('GET', self._guard.full(key), query={'tagging': ''}, what=f'read the tags of {key}')
        try:
            return parse_tags(response.body)
        except ValueError as exc:
            raise RemoteUnavailable(f'{self._client.endpoint} sent tags that cannot be read: {exc}') from exc


class Copier:
    """See the module docstring. Thread-safe."""

    def __init__(self, client: S3Client, guard: Guard, writer: Writer, reader: Reader) -> None:
        self._client = client
        self._guard = guard
        self._writer = writer
        self._reader = reader

    def copy(self, source: str, key: str, *, etag: str | None, size: int | None, condition: Condition, change: Change) -> PutResult:
        """The port's `copy`."""
        is_plain = change.metadata is None and change.content_type is None and source != key
        if condition != ALWAYS and self._ignores(condition):
            return self._copy_otherwise(source, key, etag, size, condition, change)
        if is_plain and etag is not None and size is not None and size <= COPY_MAX and self._guard.capabilities().conditional_copy_source:
            return self._copy_at_once(source, key, etag, size, condition, self._tag_headers(change))
        found = self._look(source, etag)
        if found.size > COPY_MAX:
            return self._copy_in_parts(found, key, condition, change)
        headers = self._tag_headers(change)
        if not is_plain:
            headers |= {**_kept(found, change), 'x-amz-metadata-directive': 'REPLACE', **write_headers(_metadata(found, change), None)}
        return self._copy_at_once(source, key, found.etag, found.size, condition, headers)

    def _ignores(self, condition: Condition) -> bool:
        """Whether a copy would ignore the condition, and something else does not."""
        known = self._guard.capabilities()
        return known.is_atomic(Write.COPY, condition) and not (known.conditional_copy or (condition.absent and known.forbid_overwrite_everywhere))

    def _look(self, source: str, etag: str | None) -> Source:
        response = self._guard.head(source)
        now = quoted_etag(response.headers.get('ETag', ''))
        if etag not in (None, now):
            raise RemoteChanged(f'{source} is no longer the version {etag}')
        return Source(source, now, size_of(response, source), response)

    def _read(self, source: str, etag: str | None) -> Source:
        """The whole of it, verified: what the network did to it must not become the copy."""
        responses: list[Response] = []

        def get() -> Response:
            responses.append(self._client.request('GET', self._guard.full(source)))
            return responses[-1]
        with self._guard.knows_missing(source):
            body = self._reader.read(get, source, etag, 0, None).data
        return Source(source, quoted_etag(responses[-1].headers.get('ETag', '')), len(body), responses[-1], body)

    def _copy_at_once(self, source: str, key: str, etag: str, size: int, condition: Condition, headers: Mapping[str, str]) -> PutResult:
        headers = {'x-amz-copy-source': self._client.source_header(self._guard.full(source)),
                   'x-amz-copy-source-if-match': self._guard.spell(etag), **headers}
        with self._guard.knows_missing(source):
            response = self._writer.write(Write.COPY, key, condition, headers)
        try:
            new = parse_copy_etag(response.body)
        except ValueError:
            raise self._client.error(response._replace(status=500), f'copy {source} to {key}') from None
        if new != etag and source != key and not self._guard.capabilities().conditional_copy_source:
            self._check_copied(source, etag, key, new)
        return PutResult(etag=new, size=size)

    def _check_copied(self, source: str, etag: str, key: str, new: str) -> None:
        """Of a server that ignores the source's condition: what it copied was the version `etag` if the source still is that."""
        try:
            self._guard.expect(source, etag, missing=RemoteChanged)
        except RemoteChanged:
            with contextlib.suppress(CtxfsError):       # it is not what was asked for, and must not pass for it
                self._guard.expect(key, new, missing=RemoteChanged)
                self._client.request('DELETE', self._guard.full(key))
            raise

    def _copy_otherwise(self, source: str, key: str, etag: str | None, size: int | None, condition: Condition, change: Change) -> PutResult:
        if size is None:
            found = self._look(source, etag)
            etag, size = found.etag, found.size
        if size > READ_AND_PUT:
            return self._copy_in_parts(self._look(source, etag), key, condition, change)
        found = self._read(source, etag)
        headers = {**_kept(found, change), **write_headers(_metadata(found, change), None)}
        if text := self._writer.tagging(self._tags(found, change)):
            headers['x-amz-tagging'] = text
        response = self._writer.write(Write.PUT, key, condition, headers, found.body)
        return PutResult(etag=quoted_etag(response.headers.get('ETag', '')), size=found.size)

    def _copy_in_parts(self, found: Source, key: str, condition: Condition, change: Change) -> PutResult:
        """The parts are a new object: it is given everything anew."""
        create = {**_kept(found, change), **write_headers(_metadata(found, change), None)}
        if text := self._writer.tagging(self._tags(found, change)):
            create['x-amz-tagging'] = text
        self._guard.foresee(key, condition)
        new = copy_parts(self._client, self._guard.full(found.key), self._guard.full(key), found.size, source_etag=self._guard.spell(found.etag),
                         create=create, commit=self._writer.committer(key, condition))
        return PutResult(etag=new, size=found.size)

    def _tags(self, found: Source, change: Change) -> Mapping[str, str] | None:
        return self._writer.tags_of(found.key) if change.tags is None and self._guard.capabilities().tagging else change.tags

    def _tag_headers(self, change: Change) -> dict[str, str]:
        if change.tags is None or not self._guard.capabilities().tagging:
            return {}
        return {'x-amz-tagging-directive': 'REPLACE', 'x-amz-tagging': self._writer.tagging(change.tags)}


def write_headers(metadata: Mapping[str, str] | None, content_type: str | None) -> dict[str, str]:
    headers = {f'x-amz-meta-{name}': value for name, value in check_metadata(metadata or {}).items()}
    if content_type:
        headers['Content-Type'] = content_type
    return headers


def metadata_of(response: Response) -> dict[str, str]:
    return {name.lower()[len(_META[0]):]: value for name, value in response.headers.items() if name.lower().startswith(_META)}


def size_of(response: Response, key: str) -> int:
    text = response.headers.get('Content-Length', '0').strip()
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise RemoteUnavailable(f'{key}: {text[:40]!r} is no size')
    return int(text)


def _kept(found: Source, change: Change) -> dict[str, str]:
    kept = {name: found.response.headers[name] for name in _KEPT if found.response.headers.get(name)}
    return kept if change.content_type is None else {**kept, 'Content-Type': change.content_type}


def _metadata(found: Source, change: Change) -> dict[str, str]:
    return metadata_of(found.response) if change.metadata is None else dict(check_metadata(change.metadata))
