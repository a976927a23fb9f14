"""An S3 bucket, or a prefix of one, as an object store: the port's verbs in terms of signed requests.

Owns the store's prefix, what each verb sends, and the meaning of each response. Signing and sending are `s3_client`'s, conditions and what
replaces them where a server has none `s3_guard`'s, error codes `s3_errors`', parts `s3_multipart`'s; it must not know contexts, paths on the
mount, or schedules.

A lost response to a write leaves its outcome unknown: RemoteUnavailable, and the caller finds out by the object's metadata.
"""
from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO

import msgspec

from ctxfs.errors import CtxfsError, InvalidArgument, NotFound, RemoteChanged, RemoteUnavailable, Unsupported
from ctxfs.records import UNREADABLE, ListPage, ObjectInfo, PutResult
from ctxfs.storage.attr_bounds import clamp_ns
from ctxfs.storage.object_store import ALWAYS, PARTS_ABOVE, Aborted, Capabilities, Condition, ExpiryRule, Failures, Memory, Resume, Write
from ctxfs.storage.s3_client import S3Client, content_md5
from ctxfs.storage.s3_copy import Change, Copier, Writer, metadata_of, size_of, write_headers
from ctxfs.storage.s3_errors import code_of, error_for
from ctxfs.storage.s3_guard import Guard
from ctxfs.storage.s3_http import Response, Timeouts
from ctxfs.storage.s3_lifecycle import ensure_rule, expiry_rules
from ctxfs.storage.s3_multipart import FileReader, part_size, upload_parts
from ctxfs.storage.s3_read import Reader
from ctxfs.storage.s3_verify import EtagMaker, md5_in
from ctxfs.storage.s3_xml import delete_request, fits_xml, parse_delete_errors, parse_listing, quoted_etag
from ctxfs.storage.traffic import Traffic

#: all of check(): the user waits for it
_CHECK_SECONDS = 9.5
_CHECK_TIMEOUTS = Timeouts(connect=4.0, read=5.0)
_BATCH = 1000
#: of an object that is asked for whole, or by a range from a server that sends everything; in memory
WHOLE_MAX = 64 << 20
_SINGLE_DELETES = 8


class S3Store:
    """See the port. Nothing is asked of the server before the first verb; `capabilities()` probes once, unless `known` says the result."""

    def __init__(self, bucket: str, prefix: str = '', *, endpoint: str | None = None, region: str | None = None, profile: str | None = None,
                 addressing: str = 'auto', scratch_prefix: str = '.ctxfs/', known: Mapping[str, Any] | None = None,
                 silence: float | None = None, memory: Memory | None = None, turn_left: Callable[[], float] | None = None,
                 traffic: Traffic | None = None, sse: str | None = None) -> None:
        self._client = S3Client(bucket, endpoint=endpoint, region=region, profile=profile, addressing=addressing, silence=silence,
                                traffic=traffic, sse=sse)
        prefix = prefix.strip('/')
        self._prefix = f'{prefix}/' if prefix else ''
        self._scratch = self._prefix + scratch_prefix
        self._reader = Reader(self._client, self._scratch)
        self.url = f's3://{bucket}/{prefix}'.rstrip('/') + (f'?endpoint={endpoint}' if endpoint else '')
        self._guard = Guard(self._client, prefix=self._prefix, scratch=self._scratch, turn_left=turn_left, memory=memory,
                            known=_remembered(known))
        self._writer = Writer(self._client, self._guard)
        self._copier = Copier(self._client, self._guard, self._writer, self._reader)

    def capabilities(self) -> Capabilities:
        return self._guard.capabilities()

    def learn(self, known: Capabilities | None) -> None:
        self._guard.learn(known)

    def etag_maker(self, size: int) -> EtagMaker:
        return EtagMaker(part_size(size) if size > PARTS_ABOVE else 0)

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
        return _info(key, self._guard.head(key))

    def get(self, key: str, start: int = 0, stop: int | None = None, *, if_match: str | None = None) -> bytes:
        if stop is not None and stop <= start:
            self._guard.expect(key, if_match, missing=NotFound)
            return b''
        headers = {} if (start, stop) == (0, None) else {'Range': f'bytes={start}-{"" if stop is None else stop - 1}'}
        try:
            part = self._reader.read(lambda: self._get(key, headers, if_match, max(WHOLE_MAX, (stop or 0) - start)), key, if_match, start, stop)
        except InvalidArgument as exc:
            if code_of(exc) not in ('InvalidRange', '416'):
                raise
            self._guard.expect(key, if_match, missing=NotFound)
            return b''
        # a server that does not know ranges sent everything
        return part.data if (part.start, part.is_whole) != (0, True) else part.data[start:stop]

    def _get(self, key: str, headers: dict[str, str], if_match: str | None, most: int) -> Response:
        if if_match is None:
            with self._guard.knows_missing(key):
                return self._client.request('GET', self._guard.full(key), headers=headers, body_max=most)
        try:
            with self._guard.knows_missing(key):
                return self._client.request('GET', self._guard.full(key), headers={**headers, 'If-Match': self._guard.spell(if_match)},
                                            body_max=most)
        except RemoteChanged:
            if self._guard.is_unquoted or quoted_etag(self._guard.head(key).headers.get('ETag', '')) != if_match:
                raise
        # the etag is right and was refused: Ceph compares it without the quotes
        response = self._client.request('GET', self._guard.full(key), headers={**headers, 'If-Match': if_match.strip('"')}, body_max=most)
        self._guard.is_unquoted = True
        return response

    def expiry_rules(self) -> list[ExpiryRule]:
        return expiry_rules(self._client, self._prefix)

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
            return msgspec.structs.replace(parse_listing(response.body, strip=self._prefix), now_ns=_time_ns(response, 'Date'))
        except ValueError as exc:
            raise RemoteUnavailable(f'{self._client.endpoint} sent a listing that cannot be read: {exc}') from exc

    def tags(self, key: str) -> dict[str, str]:
        if not self.capabilities().tagging:
            raise Unsupported(f'{self.url} keeps no tags')
        return self._writer.tags_of(key)

    def presigned(self, method: str, key: str, seconds: int) -> str:
        return self._client.presigned(method, self._guard.full(key), seconds)

    # writing

    def put(self, key: str, body: bytes, *, metadata: dict[str, str] | None = None, content_type: str | None = None,
            condition: Condition = ALWAYS, tags: Mapping[str, str] | None = None) -> PutResult:
        headers = write_headers(metadata, content_type)
        if text := self._writer.tagging(tags):
            headers['x-amz-tagging'] = text
        response = self._writer.write(Write.PUT, key, condition, headers, body)
        self._reader.note_put(body, response)
        return PutResult(etag=quoted_etag(response.headers.get('ETag', '')), size=len(body))

    def put_file(self, key: str, file: BinaryIO, size: int, *, metadata: dict[str, str] | None = None,
                 content_type: str | None = None, condition: Condition = ALWAYS, tags: Mapping[str, str] | None = None,
                 may_commit: Callable[[], bool] = lambda: True, progress: Callable[[int], None] = lambda n: None,
                 resume: Resume | None = None) -> PutResult:
        reader = FileReader(file)
        if size <= PARTS_ABOVE:
            body = reader.read(0, size, key=key)
            if not may_commit():
                raise Aborted(f'{key}: the content moved while it was being stored')
            result = self.put(key, body, metadata=metadata, content_type=content_type, condition=condition, tags=tags)
            progress(size)
            return result
        create = write_headers(metadata, content_type)
        if text := self._writer.tagging(tags):
            create['x-amz-tagging'] = text
        self._guard.foresee(key, condition)
        etag = upload_parts(self._client, self._guard.full(key), reader, size, create=create, may_commit=may_commit, progress=progress,
                            commit=self._writer.committer(key, condition), resume=resume)
        return PutResult(etag=etag, size=size)

    def abandon(self, key: str, upload_id: str) -> None:
        with contextlib.suppress(NotFound):
            self._client.request('DELETE', self._guard.full(key), query={'uploadId': upload_id}, is_repeatable=True,
                                 what=f'abort the upload of {key}')

    def copy(self, source: str, key: str, *, source_etag: str | None = None, size: int | None = None, condition: Condition = ALWAYS,
             metadata: dict[str, str] | None = None, content_type: str | None = None, tags: Mapping[str, str] | None = None) -> PutResult:
        return self._copier.copy(source, key, etag=source_etag, size=size, condition=condition, change=Change(metadata, content_type, tags))

    # removing

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        sending = self._guard.admit_delete(key, if_match)
        try:
            with self._guard.verdict(key, Condition(etag=if_match), sending):
                self._client.request('DELETE', self._guard.full(key), headers=sending.headers, is_repeatable=if_match is None,
                                     timeouts=sending.timeouts)
        except NotFound as exc:
            if code_of(exc) == 'NoSuchBucket':
                raise
        except RemoteChanged:
            # some servers say this of what is not there
            if self._guard.exists(key):
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
            body = delete_request((self._guard.full(key), None if etag is None else self._guard.spell(etag)) for key, etag in items)
            response = self._client.request('POST', query={'delete': ''}, body=body, what=f'delete {len(items)} objects',
                                            headers={'Content-MD5': content_md5(body), 'Content-Type': 'application/xml'},
                                            is_repeatable=all(etag is None for _, etag in items))
            errors = parse_delete_errors(response.body)
        except ValueError as exc:
            return [(key, RemoteUnavailable(f'delete {key}: the answer cannot be read: {exc}')) for key, _ in items]
        except Unsupported as exc:
            return [(key, self._guard.contradicted(str(exc))) for key, _ in items]
        except CtxfsError as exc:
            return [(key, exc) for key, _ in items]
        failed = ((key[len(self._prefix):], code, message) for key, code, message in errors)
        return [(key, error_for(412 if code == 'PreconditionFailed' else 500, code, message, what=f'delete {key}', bucket=self._client.bucket))
                for key, code, message in failed
                if code not in ('NoSuchKey', 'NoSuchVersion') and (code != 'PreconditionFailed' or self._guard.exists(key))]

    # the bucket's rules

    def ensure_expiry(self, rule_id: str, *, tag: tuple[str, str], days: int) -> None:
        known = self.capabilities()
        if not known.tagging:
            raise Unsupported('this store does not keep object tags, which a lifecycle rule would go by')
        if not known.lifecycle:
            raise Unsupported('this store has no lifecycle rules, or these credentials may not read them')
        ensure_rule(self._client, rule_id, tag=tag, days=days)

def _remembered(known: Mapping[str, Any] | None) -> Capabilities | None:
    """None where it is not what another day's probe found: it is found out again."""
    try:
        return msgspec.convert(dict(known), Capabilities) if known else None
    except UNREADABLE:
        return None



def _info(key: str, response: Response) -> ObjectInfo:
    headers = response.headers
    return ObjectInfo(key=key, size=size_of(response, key), etag=quoted_etag(headers.get('ETag', '')),
                      mtime_ns=_time_ns(response, 'Last-Modified'), metadata=metadata_of(response), content_type=headers.get('Content-Type'))


def _time_ns(response: Response, header: str) -> int:
    """ns since the epoch; 0 where the header is missing or no date."""
    try:
        return clamp_ns(int(parsedate_to_datetime(response.headers.get(header, '')).timestamp()) * 1_000_000_000)
    except (TypeError, ValueError, OverflowError):
        return 0
