"""Finds out by trial which conditions an S3 endpoint honours, on scratch objects of its own, and takes them away again.

Owns the questions and how an answer is read. It must not know what the store does with the verdict. Asking is needed because documents do
not tell: OSS and Swift answer 501, older proxies and rclone ignore conditions and overwrite, Ceph compares etags only without quotes.
"""
from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

from ctxfs.errors import CtxfsError, Denied, NotFound, RemoteChanged, RemoteUnavailable
from ctxfs.storage import fibers
from ctxfs.storage.object_store import Capabilities
from ctxfs.storage.s3_client import S3Client, content_md5
from ctxfs.storage.s3_errors import code_of, status_of
from ctxfs.storage.s3_http import Response
from ctxfs.storage.s3_lifecycle import NO_RULES, is_lifecycle
from ctxfs.storage.s3_retry import BUSY
from ctxfs.storage.s3_xml import complete_request, delete_request, parse_delete_errors, parse_tags, parse_upload_id, quoted_etag

_ATTEMPTS = 3
_FORBID = {'x-oss-forbid-overwrite': 'true'}
_STALE = '"00000000000000000000000000000000"'


def probe(client: S3Client, prefix: str) -> Capabilities:
    """What the bucket honours for keys that begin with `prefix` (about 50 small requests, in the time of 15).

    Raises Denied, NotFound (no bucket) and RemoteUnavailable: then nothing is known. No answer that is merely unexpected raises; it means
    that the feature cannot be relied on.
    """
    return _Probe(client, prefix).run()


class _Probe:
    def __init__(self, client: S3Client, prefix: str) -> None:
        self._client = client
        self._first = f'{prefix}probe-{os.urandom(8).hex()}'
        self._keys: list[str] = []
        self._is_limited = False

    def run(self) -> Capabilities:
        """A first write shows whether there is anything to ask. Questions that do not depend on each other go side by side, each with its objects."""
        key, etag = self._put()
        try:
            return self._ask(key, etag)
        finally:
            with contextlib.suppress(CtxfsError):       # where one cannot be taken away, the others cannot either
                _side_by_side(*[functools.partial(self._client.request, 'DELETE', key, is_repeatable=True, what='take a scratch object away')
                                for key in self._keys])

    def _ask(self, key: str, etag: str) -> Capabilities:
        (creates, forbids, is_unquoted, overwrites), (has_copy_source, copies), has_tags, has_lifecycle, (batches, batch_conditions) = _side_by_side(
            lambda: self._ask_writes(key, etag), self._ask_copy, self._ask_tagging, self._ask_lifecycle, self._ask_batch)
        deletes, has_parts, forbids_all = _side_by_side(
            lambda: self._ask_delete(is_unquoted), lambda: creates and overwrites and self._ask_conditional_parts(is_unquoted),
            lambda: forbids and self._ask_forbid_everywhere())
        return Capabilities(conditional_create=creates, conditional_overwrite=overwrites, conditional_delete=deletes,
                            conditional_copy=copies, batch_delete=batches, conditional_batch_delete=batch_conditions,
                            unquoted_etags=is_unquoted, forbid_overwrite=forbids, conditional_copy_source=has_copy_source, tagging=has_tags,
                            lifecycle=has_lifecycle, conditional_parts=has_parts, forbid_overwrite_everywhere=forbids_all,
                            is_limited=self._is_limited)

    # --- scratch objects --------------------------------------------------------------------------------------------------------------

    def _key(self) -> str:
        """A new one, of an object that is not there; whatever comes there is taken away in the end."""
        self._keys.append(f'{self._first}-{len(self._keys)}' if self._keys else self._first)
        return self._keys[-1]

    def _put(self) -> tuple[str, str]:
        """(key, etag) of a new scratch object."""
        key = self._key()
        return key, self._send('PUT', key, body=b'probe').headers.get('ETag', '')

    # --- questions --------------------------------------------------------------------------------------------------------------------

    def _ask_writes(self, key: str, etag: str) -> tuple[bool, bool, bool, bool]:
        """(creates, forbids, etags go unquoted, overwrites)"""
        creates = self._creates_by(key, {'If-None-Match': '*'})
        forbids = not creates and self._creates_by(key, _FORBID)
        is_unquoted, overwrites = self._ask_overwrite(key, self._etag_of(key) or etag)
        return creates, forbids, is_unquoted, overwrites

    def _creates_by(self, key: str, headers: Mapping[str, str]) -> bool:
        return self._is_refused('PUT', key, headers) and self._is_done('PUT', self._key(), headers)

    def _ask_overwrite(self, key: str, etag: str) -> tuple[bool, bool]:
        """(etags go unquoted, If-Match on a PUT can be relied on)."""
        if not self._is_refused('PUT', key, {'If-Match': _STALE}):
            return False, False
        # MinIO before 2025-08 created the object that the condition said was there
        # (403: without the right to list the bucket nobody is told what is there)
        if not isinstance(self._outcome('PUT', self._key(), {'If-Match': etag}), (RemoteChanged, NotFound, Denied)):
            return False, False
        if self._is_done('PUT', key, {'If-Match': etag}):
            return False, True
        unquoted = etag.strip('"')
        return True, self._is_done('PUT', key, {'If-Match': unquoted})

    def _copied(self, key: str) -> dict[str, str]:
        return {'x-amz-copy-source': self._client.source_header(key)}

    def _ask_copy(self) -> tuple[bool, bool]:
        """(The source's condition is honoured, the target's are too.)"""
        source = self._copied(self._put()[0])
        has_source = self._is_refused('PUT', self._key(), {**source, 'x-amz-copy-source-if-match': _STALE})
        if not has_source:
            return False, False
        target, _ = self._put()
        return True, (self._is_refused('PUT', target, {**source, 'If-None-Match': '*'})
                      and self._is_refused('PUT', target, {**source, 'If-Match': _STALE}))

    def _ask_delete(self, is_unquoted: bool) -> bool:
        key, _ = self._put()
        return self._is_refused('DELETE', key, {'If-Match': self._spell(_STALE, is_unquoted)}) and bool(self._etag_of(key))

    def _ask_conditional_parts(self, is_unquoted: bool) -> bool:
        key, etag = self._put()
        return self._ask_parts(key, {'If-None-Match': '*'}, {'If-Match': self._spell(_STALE, is_unquoted)},
                               may={'If-Match': self._spell(self._etag_of(key) or etag, is_unquoted)})

    def _ask_forbid_everywhere(self) -> bool:
        key, source = self._put()[0], self._put()[0]
        return self._is_refused('PUT', key, {**self._copied(source), **_FORBID}) and self._ask_parts(key, _FORBID, may={})

    def _ask_parts(self, key: str, *refusals: Mapping[str, str], may: Mapping[str, str]) -> bool:
        """An upload in parts is not completed over the object with such headers, and is with `may`. A server that ignores conditions has stored
        the probe by then, and that is the answer."""
        try:
            upload = {'uploadId': parse_upload_id(self._send('POST', key, query={'uploads': ''}).body)}
            part = self._send('PUT', key, body=b'probe', query={**upload, 'partNumber': '1'}).headers.get('ETag', '')
        except (RemoteUnavailable, Denied):
            raise
        except (CtxfsError, ValueError):
            return False
        body = complete_request([quoted_etag(part)])
        is_honoured = all(self._is_refused('POST', key, headers, body, upload) for headers in refusals) and self._is_done(
            'POST', key, may, body, upload)
        if not is_honoured:
            self._outcome('DELETE', key, query=upload)
        return is_honoured

    def _ask_tagging(self) -> bool:
        """Tags come with a PUT, can be read, stay with a copy, are replaced by one, and reading them is not answered with something else:
        a server that does not know `?tagging` sends the object (or, to a PUT, overwrites it, so that is not asked)."""
        key, other = self._key(), self._key()
        source = self._copied(key)
        new = {**source, 'x-amz-tagging-directive': 'REPLACE', 'x-amz-tagging': 'ctxfs-probe=2'}
        return (self._is_done('PUT', key, {'x-amz-tagging': 'ctxfs-probe=1'}) and self._tag_of(key) == '1'
                and self._is_done('PUT', other, source) and self._tag_of(other) == '1'
                and self._is_done('PUT', other, new) and self._tag_of(other) == '2' and self._holds_probe(other))

    def _tag_of(self, key: str) -> str:
        try:
            return parse_tags(self._send('GET', key, query={'tagging': ''}).body).get('ctxfs-probe', '')
        except (CtxfsError, ValueError) as exc:    # also a 500: no mount may fail for want of tags
            self._note_limit(exc)
            return ''

    def _holds_probe(self, key: str) -> bool:
        return self._send('GET', key).body == b'probe'

    def _ask_lifecycle(self) -> bool:
        """The bucket's rules can be read. Whether they may be written shows when one is needed: a trial could only be undone by a race."""
        try:
            return is_lifecycle(self._send('GET', '', query={'lifecycle': ''}).body)
        except CtxfsError as exc:
            self._note_limit(exc)
            return code_of(exc) == NO_RULES

    def _ask_batch(self) -> tuple[bool, bool]:
        """(DeleteObjects works, it honours an etag per object)."""
        key, other = self._put()[0], self._put()[0]
        refused = self._batch([(key, _STALE)])
        is_left = bool(self._etag_of(key))
        removed = self._batch([(key, None), (other, None)])
        works = removed == 0 and not self._etag_of(key)
        return works, works and refused == 1 and is_left

    def _batch(self, items: list[tuple[str, str | None]]) -> int:
        """How many the server did not remove; -1 when it refused the whole request."""
        body = delete_request(items)
        try:
            response = self._send('POST', '', {'Content-MD5': content_md5(body), 'Content-Type': 'application/xml'}, body, query={'delete': ''})
            return len(parse_delete_errors(response.body))
        except (RemoteUnavailable, Denied):
            raise
        except (CtxfsError, ValueError):
            return -1

    @staticmethod
    def _spell(etag: str, is_unquoted: bool) -> str:
        return etag.strip('"') if is_unquoted else etag

    def _etag_of(self, key: str) -> str:
        try:
            return self._send('HEAD', key).headers.get('ETag', '')
        except (NotFound, Denied):      # 403: the same, to whoever may not list the bucket
            return ''

    def _is_refused(self, method: str, key: str, headers: Mapping[str, str], body: bytes = b'probe',
                    query: Mapping[str, str] | None = None) -> bool:
        return isinstance(self._outcome(method, key, headers, body, query), (RemoteChanged, NotFound))

    def _is_done(self, method: str, key: str, headers: Mapping[str, str], body: bytes = b'probe',
                 query: Mapping[str, str] | None = None) -> bool:
        return self._outcome(method, key, headers, body, query) is None

    def _outcome(self, method: str, key: str, headers: Mapping[str, str] | None = None, body: bytes = b'probe',
                 query: Mapping[str, str] | None = None) -> CtxfsError | None:
        """What the server said; transient errors are raised, since they say nothing about the feature."""
        has_body = method == 'POST' or (method == 'PUT' and 'x-amz-copy-source' not in (headers or {}))
        try:
            self._send(method, key, headers, body if has_body else b'', query=query)
        except RemoteUnavailable:
            if method != 'DELETE' or headers:
                raise
            return None
        except CtxfsError as exc:
            self._note_limit(exc)
            return exc
        return None

    def _note_limit(self, exc: Exception) -> None:
        self._is_limited = self._is_limited or isinstance(exc, Denied)

    def _send(self, method: str, key: str, headers: Mapping[str, str] | None = None, body: bytes = b'', *,
              query: Mapping[str, str] | None = None) -> Response:
        """One request, again after a second where the server is busy: R2 allows one write per key and second."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._client.request(method, key, query=query, headers=headers, body=body, what='find out what the store can do')
            except RemoteUnavailable as error:
                if attempt == _ATTEMPTS or status_of(error) not in BUSY:
                    raise
            fibers.sleep(1.1)
        raise AssertionError('not reached: the last attempt returns or raises')


def _side_by_side(*jobs: Callable[[], Any]) -> list[Any]:
    """What each returned. Raises the first error of them, when all have ended."""
    if fibers.is_fiber():       # they do not nest
        return [job() for job in jobs]
    found = fibers.run_all(jobs, most=len(jobs))
    for outcome in found:
        if isinstance(outcome, Exception):
            raise outcome
    return found
