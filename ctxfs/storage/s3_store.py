"""An S3 bucket, or a prefix of one, as an object store: the port's verbs in terms of signed requests.

Owns the store's prefix, conditions and what replaces them where a server has none, and the meaning of each response. Signing and sending are
`s3_client`'s, error codes `s3_errors`', parts `s3_multipart`'s; it must not know contexts, paths on the mount, or schedules.

Conditions: where the server honours them they are one atomic request. Where it does not (see `Capabilities`), the store looks at the object
and acts at once after it; the window between the two is what such a server leaves open. A lost response to a write leaves its outcome
unknown: RemoteUnavailable, and the caller finds out by the object's metadata.
"""
from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode

import msgspec

from ctxfs.errors import CredentialsExpired, CtxfsError, Denied, InvalidArgument, NotFound, RemoteChanged, RemoteUnavailable, Unsupported
from ctxfs.records import UNREADABLE, ListPage, ObjectInfo, PutResult
from ctxfs.storage.attr_bounds import clamp_ns
from ctxfs.storage.keys import KEY_MAX
from ctxfs.storage.object_store import ALWAYS, Aborted, Capabilities, Condition, Failures, check_metadata, check_tags
from ctxfs.storage.s3_client import S3Client, content_md5
from ctxfs.storage.s3_errors import code_of, error_for
from ctxfs.storage.s3_http import Response, Timeouts
from ctxfs.storage.s3_lifecycle import ensure_rule
from ctxfs.storage.s3_multipart import COPY_MAX, SINGLE_MAX, FileReader, copy_parts, part_size, upload_parts
from ctxfs.storage.s3_probe import probe
from ctxfs.storage.s3_read import Reader
from ctxfs.storage.s3_verify import EtagMaker, md5_in
from ctxfs.storage.s3_xml import delete_request, fits_xml, parse_copy_etag, parse_delete_errors, parse_listing, parse_tags, quoted_etag

#: all of check(): the user waits for it
_CHECK_SECONDS = 9.5
_CHECK_TIMEOUTS = Timeouts(connect=4.0, read=5.0)
_BATCH = 1000
#: of an object that is asked for whole, or by a range from a server that sends everything; in memory
WHOLE_MAX = 64 << 20
_SINGLE_DELETES = 8
_CONFLICT_ATTEMPTS = 4
_META = ('x-amz-meta-', 'x-oss-meta-')
#: headers that a copy with new metadata would drop
_KEPT = ('Cache-Control', 'Content-Disposition', 'Content-Encoding', 'Content-Language', 'Content-Type')


class S3Store:
    """See the port. Nothing is asked of the server before the first verb; `capabilities()` probes once, unless `known` says the result."""

    def __init__(self, bucket: str, prefix: str = '', *, endpoint: str | None = None, region: str | None = None, profile: str | None = None,
                 addressing: str = 'auto', scratch_prefix: str = '.ctxfs/', known: Mapping[str, Any] | None = None,
                 silence: float | None = None) -> None:
        self._client = S3Client(bucket, endpoint=endpoint, region=region, profile=profile, addressing=addressing, silence=silence)
        prefix = prefix.strip('/')
        self._prefix = f'{prefix}/' if prefix else ''
        self._scratch = self._prefix + scratch_prefix
        self._reader = Reader(self._client, self._scratch)
        self.url = f's3://{bucket}/{prefix}'.rstrip('/') + (f'?endpoint={endpoint}' if endpoint else '')
        self._known = _remembered(known)
        self._is_unquoted = bool(self._known and self._known.unquoted_etags)
        self._probing = threading.Lock()

    def capabilities(self) -> Capabilities:
        with self._probing:
            if self._known is None:
                try:
                    self._known = probe(self._client, self._scratch)
                except CredentialsExpired:
                    raise
                except Denied:
                    # no right to write here, so no condition will be needed; not remembered, because rights can be given
                    return Capabilities(conditional_create=False, conditional_overwrite=False, conditional_delete=False,
                                        conditional_copy=False, batch_delete=False)
                self._is_unquoted = self._known.unquoted_etags
            return self._known

    def etag_maker(self, size: int) -> EtagMaker:
        return EtagMaker(part_size(size) if size > SINGLE_MAX else 0)

    def proves(self, etag: str, pieces: Callable[[], Iterable[bytes]]) -> bool:
        """Of an object that came in one piece."""
        wanted = self._reader.md5_of(etag) if md5_in(etag) else None
        if wanted is None:
            return True
        digest = hashlib.md5(usedforsecurity=False)
        for piece in pieces():
            digest.update(piece)
        return digest.hexdigest() == wanted

    def etag_of(self, body: bytes) -> str | None:
        """The MD5, which is the etag of an object that came in one piece and is not encrypted with KMS (docs.aws.amazon.com, "Object");
        other etags never look like one of content that they do not name."""
        return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'

    def check(self) -> None:
        """One listing of one key, in a thread: neither a resolver nor a credentials service can be told to hurry."""
        outcome: queue.SimpleQueue[CtxfsError | None] = queue.SimpleQueue()

        def ask() -> None:
            try:
                self._list({'prefix': self._scratch, 'max-keys': '1'}, timeouts=_CHECK_TIMEOUTS, is_repeatable=False)
                outcome.put(None)
            except CtxfsError as exc:
                outcome.put(exc)
            except Exception as exc:
                outcome.put(RemoteUnavailable(f'the store {self.url} cannot be checked: {exc!r}'))
        threading.Thread(target=ask, name='ctxfs-check', daemon=True).start()
        try:
            error = outcome.get(timeout=_CHECK_SECONDS)
        except queue.Empty:
            error = RemoteUnavailable(f'{self._client.endpoint} did not answer within {_CHECK_SECONDS:.0f} s; check the endpoint and the network')
        if error is not None:
            raise error

    def close(self) -> None:
        self._client.close()

    # reading

    def head(self, key: str) -> ObjectInfo:
        return _info(key, self._head(key))

    def get(self, key: str, start: int = 0, stop: int | None = None, *, if_match: str | None = None) -> bytes:
        if stop is not None and stop <= start:
            self._expect(key, if_match, missing=NotFound)
            return b''
        headers = {} if (start, stop) == (0, None) else {'Range': f'bytes={start}-{"" if stop is None else stop - 1}'}
        try:
            part = self._reader.read(lambda: self._get(key, headers, if_match, max(WHOLE_MAX, (stop or 0) - start)), key, if_match, start, stop)
        except InvalidArgument as exc:
            if code_of(exc) not in ('InvalidRange', '416'):
                raise
            self._expect(key, if_match, missing=NotFound)
            return b''
        # a server that does not know ranges sent everything
        return part.data if (part.start, part.is_whole) != (0, True) else part.data[start:stop]

    def _get(self, key: str, headers: dict[str, str], if_match: str | None, most: int) -> Response:
        if if_match is None:
            return self._client.request('GET', self._full(key), headers=headers, body_max=most)
        try:
            return self._client.request('GET', self._full(key), headers={**headers, 'If-Match': self._spell(if_match)}, body_max=most)
        except RemoteChanged:
            if self._is_unquoted or quoted_etag(self._head(key).headers.get('ETag', '')) != if_match:
                raise
        # the etag is right and was refused: Ceph compares it without the quotes
        response = self._client.request('GET', self._full(key), headers={**headers, 'If-Match': if_match.strip('"')}, body_max=most)
        self._is_unquoted = True
        return response

    def list(self, prefix: str, *, delimiter: str = '', token: str | None = None, start_after: str = '', limit: int = 1000) -> ListPage:
        query = {'prefix': self._prefix + prefix, 'max-keys': str(max(1, min(limit, 1000)))}
        if delimiter:
            query['delimiter'] = delimiter
        if token is not None:
            query['continuation-token'] = token
        elif start_after:
            query['start-after'] = self._prefix + start_after
        return self._list(query)

    def _list(self, query: Mapping[str, str], **how: Any) -> ListPage:
        response = self._client.request('GET', query={'list-type': '2', 'encoding-type': 'url', **query}, what=f'list {query["prefix"]!r}', **how)
        try:
            return parse_listing(response.body, strip=self._prefix)
        except ValueError as exc:
            raise RemoteUnavailable(f'{self._client.endpoint} sent a listing that cannot be read: {exc}') from exc

    def tags(self, key: str) -> dict[str, str]:
        if not self.capabilities().tagging:
            raise Unsupported(f'{self.url} keeps no tags')
        response = self._client.request('GET', self._full(key), query={'tagging': ''}, what=f'read the tags of {key}')
        try:
            return parse_tags(response.body)
        except ValueError as exc:
            raise RemoteUnavailable(f'{self._client.endpoint} sent tags that cannot be read: {exc}') from exc

    # writing

    def put(self, key: str, body: bytes, *, metadata: dict[str, str] | None = None, content_type: str | None = None,
            condition: Condition = ALWAYS, tags: Mapping[str, str] | None = None) -> PutResult:
        headers = _write_headers(metadata, content_type)
        if text := self._tagging(tags):
            headers['x-amz-tagging'] = text
        response = self._write(key, condition, headers, body)
        self._reader.note_put(body, response)
        return PutResult(etag=quoted_etag(response.headers.get('ETag', '')), size=len(body))

    def put_file(self, key: str, file: BinaryIO, size: int, *, metadata: dict[str, str] | None = None,
                 content_type: str | None = None, condition: Condition = ALWAYS, tags: Mapping[str, str] | None = None,
                 may_commit: Callable[[], bool] = lambda: True, progress: Callable[[int], None] = lambda n: None) -> PutResult:
        reader = FileReader(file)
        if size <= SINGLE_MAX:
            body = reader.read(0, size, key=key)
            if not may_commit():
                raise Aborted(f'{key}: the content moved while it was being stored')
            result = self.put(key, body, metadata=metadata, content_type=content_type, condition=condition, tags=tags)
            progress(size)
            return result
        create = _write_headers(metadata, content_type)
        if text := self._tagging(tags):
            create['x-amz-tagging'] = text
        self._check_before(key, condition)
        etag = upload_parts(self._client, self._full(key), reader, size, create=create, may_commit=may_commit, progress=progress,
                            before_complete=lambda: self._completion(key, condition))
        return PutResult(etag=etag, size=size)

    def copy(self, source: str, key: str, *, source_etag: str | None = None, size: int | None = None, condition: Condition = ALWAYS,
             metadata: dict[str, str] | None = None, content_type: str | None = None, tags: Mapping[str, str] | None = None) -> PutResult:
        is_plain = metadata is None and content_type is None and source != key
        if is_plain and source_etag is not None and size is not None and size <= COPY_MAX and self.capabilities().conditional_copy_source:
            return self._copy_at_once(source, key, source_etag, size, condition, self._copy_tagging(tags))
        head = self._head(source)
        etag, size = quoted_etag(head.headers.get('ETag', '')), _size_of(head, source)
        if source_etag is not None and etag != source_etag:
            raise RemoteChanged(f'{source} is no longer the version {source_etag}')
        kept = {name: head.headers[name] for name in _KEPT if head.headers.get(name)}
        if content_type is not None:
            kept['Content-Type'] = content_type
        given = _metadata_of(head) if metadata is None else dict(check_metadata(metadata))
        described = {**kept, **{f'x-amz-meta-{name}': value for name, value in given.items()}}
        if size > COPY_MAX:
            return self._copy_in_parts(source, key, etag, size, condition, described, tags)
        headers = self._copy_tagging(tags)
        if not is_plain:
            headers.update({**described, 'x-amz-metadata-directive': 'REPLACE'})
        return self._copy_at_once(source, key, etag, size, condition, headers)

    def _copy_at_once(self, source: str, key: str, etag: str, size: int, condition: Condition, headers: Mapping[str, str]) -> PutResult:
        headers = {'x-amz-copy-source': self._client.source_header(self._full(source)), 'x-amz-copy-source-if-match': self._spell(etag), **headers}
        response = self._write(key, condition, headers, b'', is_copy=True)
        try:
            return PutResult(etag=parse_copy_etag(response.body), size=size)
        except ValueError:
            raise self._client.error(response._replace(status=500), f'copy {source} to {key}') from None

    def _copy_in_parts(self, source: str, key: str, etag: str, size: int, condition: Condition, create: dict[str, str],
                       tags: Mapping[str, str] | None) -> PutResult:
        """The parts are a new object, so its tags are given anew as well."""
        if tags is None and self.capabilities().tagging:
            tags = self.tags(source)
        if text := self._tagging(tags):
            create['x-amz-tagging'] = text
        self._check_before(key, condition)
        new = copy_parts(self._client, self._full(source), self._full(key), size, source_etag=self._spell(etag), create=create,
                         before_complete=lambda: self._completion(key, condition))
        return PutResult(etag=new, size=size)

    def _tagging(self, tags: Mapping[str, str] | None) -> str:
        """The value of x-amz-tagging; '' where there are none, or the server would not keep them."""
        return urlencode(check_tags(tags), quote_via=quote) if tags and self.capabilities().tagging else ''

    def _copy_tagging(self, tags: Mapping[str, str] | None) -> dict[str, str]:
        if tags is None or not self.capabilities().tagging:
            return {}
        return {'x-amz-tagging-directive': 'REPLACE', 'x-amz-tagging': self._tagging(tags)}

    def _write(self, key: str, condition: Condition, headers: Mapping[str, str], body: bytes, *, is_copy: bool = False) -> Response:
        """One PUT or copy under `condition`. A conflict with another request in flight (AWS: 409) says nothing of the condition: again."""
        guard = self._guard(key, condition, is_copy=is_copy)
        for attempt in range(1, _CONFLICT_ATTEMPTS + 1):
            try:
                return self._client.request('PUT', self._full(key), headers={**headers, **guard}, body=body,
                                            is_repeatable=condition == ALWAYS, is_long=is_copy)
            except NotFound as exc:
                # AWS's answer to If-Match where nothing is
                if condition.etag is None or code_of(exc) == 'NoSuchBucket':
                    raise
                raise RemoteChanged(f'{key} was removed') from exc
            except RemoteUnavailable as exc:
                if code_of(exc) not in ('ConditionalRequestConflict', 'OperationAborted') or attempt == _CONFLICT_ATTEMPTS:
                    raise
            time.sleep(0.02 * 2 ** attempt)
        raise AssertionError('not reached: the last attempt returns or raises')

    def _guard(self, key: str, condition: Condition, *, is_copy: bool) -> dict[str, str]:
        """The headers that make a write conditional, or a look at the object where the server has none."""
        if condition == ALWAYS:
            return {}
        known = self.capabilities()
        if condition.absent:
            if known.conditional_copy if is_copy else known.conditional_create:
                return {'If-None-Match': '*'}
            if known.forbid_overwrite:
                return {'x-oss-forbid-overwrite': 'true'}
        elif known.conditional_copy if is_copy else known.conditional_overwrite:
            return {'If-Match': self._spell(condition.etag or '')}
        self._check_before(key, condition)
        return {}

    def _check_before(self, key: str, condition: Condition) -> None:
        if condition.etag is not None:
            self._expect(key, condition.etag, missing=RemoteChanged)
        elif condition.absent and self._exists(key):
            raise RemoteChanged(f'{key} exists already')

    def _completion(self, key: str, condition: Condition) -> dict[str, str]:
        """Conditions of a completed multipart upload. Several servers ignore them there (Ceph, moto), so the object is looked at as well."""
        self._check_before(key, condition)
        if condition.absent and self.capabilities().conditional_create:
            return {'If-None-Match': '*'}
        if condition.etag is not None and self.capabilities().conditional_overwrite:
            return {'If-Match': self._spell(condition.etag)}
        return {}

    # removing

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        headers = {}
        if if_match is not None:
            if self.capabilities().conditional_delete:
                headers['If-Match'] = self._spell(if_match)
            else:
                with contextlib.suppress(NotFound):
                    self._expect(key, if_match, missing=NotFound)
        try:
            self._client.request('DELETE', self._full(key), headers=headers, is_repeatable=if_match is None)
        except NotFound as exc:
            if code_of(exc) == 'NoSuchBucket':
                raise
        except RemoteChanged:
            # some servers say this of what is not there
            if self._exists(key):
                raise

    def delete_many(self, items: Sequence[tuple[str, str | None]]) -> Failures:
        known = self.capabilities()
        batch: list[tuple[str, str | None]] = []
        single: list[tuple[str, str | None]] = []
        for key, etag in items:
            fits = known.batch_delete and fits_xml(key) and (etag is None or known.conditional_batch_delete)
            (batch if fits else single).append((key, etag))
        failed: Failures = []
        for at in range(0, len(batch), _BATCH):
            failed += self._delete_batch(batch[at:at + _BATCH])
        if single:
            with concurrent.futures.ThreadPoolExecutor(_SINGLE_DELETES, thread_name_prefix='ctxfs-delete') as pool:
                failed += [(key, exc) for (key, _), exc in zip(single, pool.map(self._try_delete, single), strict=True) if exc]
        return failed

    def _try_delete(self, item: tuple[str, str | None]) -> CtxfsError | None:
        try:
            self.delete(item[0], if_match=item[1])
        except CtxfsError as exc:
            return exc
        return None

    def _delete_batch(self, items: Sequence[tuple[str, str | None]]) -> Failures:
        try:
            body = delete_request((self._full(key), None if etag is None else self._spell(etag)) for key, etag in items)
            response = self._client.request('POST', query={'delete': ''}, body=body, what=f'delete {len(items)} objects',
                                            headers={'Content-MD5': content_md5(body), 'Content-Type': 'application/xml'},
                                            is_repeatable=all(etag is None for _, etag in items))
            errors = parse_delete_errors(response.body)
        except ValueError as exc:
            return [(key, RemoteUnavailable(f'delete {key}: the answer cannot be read: {exc}')) for key, _ in items]
        except CtxfsError as exc:
            return [(key, exc) for key, _ in items]
        failed = ((key[len(self._prefix):], code, message) for key, code, message in errors)
        return [(key, error_for(412 if code == 'PreconditionFailed' else 500, code, message, what=f'delete {key}', bucket=self._client.bucket))
                for key, code, message in failed
                if code not in ('NoSuchKey', 'NoSuchVersion') and (code != 'PreconditionFailed' or self._exists(key))]

    # the bucket's rules

    def ensure_expiry(self, rule_id: str, *, tag: tuple[str, str], days: int) -> None:
        known = self.capabilities()
        if not known.tagging:
            raise Unsupported('this store does not keep object tags, which a lifecycle rule would go by')
        if not known.lifecycle:
            raise Unsupported('this store has no lifecycle rules, or these credentials may not read them')
        ensure_rule(self._client, rule_id, tag=tag, days=days)

    # small things

    def _full(self, key: str) -> str:
        full = self._prefix + key
        try:
            size = len(full.encode('utf-8'))
        except UnicodeEncodeError as exc:
            raise InvalidArgument(f'the key {key!r} is no valid Unicode text') from exc
        if not key or size > KEY_MAX:
            raise InvalidArgument(f'the key {key[:40]!r}… has {size} bytes, and 1 to {KEY_MAX} are possible')
        return full

    def _head(self, key: str) -> Response:
        return self._client.request('HEAD', self._full(key))

    def _exists(self, key: str) -> bool:
        try:
            self._head(key)
        except NotFound:
            return False
        return True

    def _spell(self, etag: str) -> str:
        return etag.strip('"') if self._is_unquoted else etag

    def _expect(self, key: str, etag: str | None, *, missing: type[CtxfsError]) -> None:
        """Look whether the object is there (else `missing`), and is `etag` (else RemoteChanged)."""
        try:
            response = self._head(key)
        except NotFound as exc:
            raise missing(f'{key} does not exist') from exc
        if etag is not None and quoted_etag(response.headers.get('ETag', '')) != etag:
            raise RemoteChanged(f'{key} is no longer the version {etag}')


def _remembered(known: Mapping[str, Any] | None) -> Capabilities | None:
    """None where it is not what another day's probe found: it is found out again."""
    try:
        return msgspec.convert(dict(known), Capabilities) if known else None
    except UNREADABLE:
        return None


def _write_headers(metadata: Mapping[str, str] | None, content_type: str | None) -> dict[str, str]:
    headers = {f'x-amz-meta-{name}': value for name, value in check_metadata(metadata or {}).items()}
    if content_type:
        headers['Content-Type'] = content_type
    return headers


def _metadata_of(response: Response) -> dict[str, str]:
    return {name.lower()[len(_META[0]):]: value for name, value in response.headers.items() if name.lower().startswith(_META)}


def _size_of(response: Response, key: str) -> int:
    text = response.headers.get('Content-Length', '0').strip()
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise RemoteUnavailable(f'{key}: {text[:40]!r} is no size')
    return int(text)


def _info(key: str, response: Response) -> ObjectInfo:
    headers = response.headers
    try:
        modified = parsedate_to_datetime(headers.get('Last-Modified', ''))
        mtime_ns = clamp_ns(int(modified.timestamp()) * 1_000_000_000)
    except (TypeError, ValueError, OverflowError):
        mtime_ns = 0
    return ObjectInfo(key=key, size=_size_of(response, key), etag=quoted_etag(headers.get('ETag', '')), mtime_ns=mtime_ns,
                      metadata=_metadata_of(response), content_type=headers.get('Content-Type'))


