"""Finds out by trial which conditions an S3 endpoint honours, on scratch objects of its own, and takes them away again.

Owns the questions and how an answer is read. It must not know what the store does with the verdict. Asking is needed because documents do
not tell: OSS and Swift answer 501, older proxies and rclone ignore conditions and overwrite, Ceph compares etags only without quotes.
"""
from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping

from ctxfs.errors import CtxfsError, Denied, NotFound, RemoteChanged, RemoteUnavailable
from ctxfs.storage.object_store import Capabilities
from ctxfs.storage.s3_client import S3Client, content_md5
from ctxfs.storage.s3_errors import code_of, status_of
from ctxfs.storage.s3_http import Response
from ctxfs.storage.s3_lifecycle import NO_RULES, is_lifecycle
from ctxfs.storage.s3_retry import BUSY
from ctxfs.storage.s3_xml import delete_request, parse_delete_errors, parse_tags

_ATTEMPTS = 3
_STALE = '"00000000000000000000000000000000"'


def probe(client: S3Client, prefix: str) -> Capabilities:
    """What the bucket honours for keys that begin with `prefix` (about 30 small requests).

    Raises Denied, NotFound (no bucket) and RemoteUnavailable: then nothing is known. No answer that is merely unexpected raises; it means
    that the feature cannot be relied on.
    """
    return _Probe(client, prefix).run()


class _Probe:
    def __init__(self, client: S3Client, prefix: str) -> None:
        self._client = client
        self._key = f'{prefix}probe-{os.urandom(8).hex()}'
        self._other = self._key + '-2'
        self._missing = self._key + '-3'

    def run(self) -> Capabilities:
        etag = self._send('PUT', self._key, body=b'probe').headers.get('ETag', '')
        try:
            return self._ask(etag)
        finally:
            with contextlib.suppress(CtxfsError):       # where one cannot be taken away, the others cannot either
                for key in (self._key, self._other, self._missing):
                    self._client.request('DELETE', key, is_repeatable=True, what='take a scratch object away')

    def _ask(self, etag: str) -> Capabilities:
        creates = self._is_refused('PUT', self._key, {'If-None-Match': '*'}) and self._is_done('PUT', self._other, {'If-None-Match': '*'})
        forbids = not creates and self._is_refused('PUT', self._key, {'x-oss-forbid-overwrite': 'true'})
        etag = self._current_etag() or etag
        is_unquoted, overwrites = self._ask_overwrite(etag)
        self._outcome('PUT', self._other)
        has_copy_source, copies = self._ask_copy()
        deletes = self._is_refused('DELETE', self._key, {'If-Match': self._spell(_STALE, is_unquoted)}) and bool(self._current_etag())
        if not self._current_etag():
            self._outcome('PUT', self._key)
        has_tags = self._ask_tagging()
        batches, batch_conditions = self._ask_batch()
        return Capabilities(conditional_create=creates, conditional_overwrite=overwrites, conditional_delete=deletes,
                            conditional_copy=copies, batch_delete=batches, conditional_batch_delete=batch_conditions,
                            unquoted_etags=is_unquoted, forbid_overwrite=forbids, conditional_copy_source=has_copy_source, tagging=has_tags,
                            lifecycle=self._ask_lifecycle())

    def _ask_overwrite(self, etag: str) -> tuple[bool, bool]:
        """(etags go unquoted, If-Match on a PUT can be relied on)."""
        if not self._is_refused('PUT', self._key, {'If-Match': _STALE}):
            return False, False
        # MinIO before 2025-08 created the object that the condition said was there
        if not self._is_refused('PUT', self._missing, {'If-Match': etag}):
            return False, False
        if self._is_done('PUT', self._key, {'If-Match': etag}):
            return False, True
        unquoted = etag.strip('"')
        return True, self._is_done('PUT', self._key, {'If-Match': unquoted})

    def _ask_copy(self) -> tuple[bool, bool]:
        """(The source's condition is honoured, the target's are too.)"""
        source = {'x-amz-copy-source': self._client.source_header(self._other)}
        has_source = self._is_refused('PUT', self._missing, {**source, 'x-amz-copy-source-if-match': _STALE})
        return has_source, (has_source and self._is_refused('PUT', self._key, {**source, 'If-None-Match': '*'})
                            and self._is_refused('PUT', self._key, {**source, 'If-Match': _STALE}))

    def _ask_tagging(self) -> bool:
        """Tags come with a PUT, can be read, stay with a copy, are replaced by one, and reading them is not answered with something else:
        a server that does not know `?tagging` sends the object (or, to a PUT, overwrites it, so that is not asked)."""
        source = {'x-amz-copy-source': self._client.source_header(self._key)}
        new = {**source, 'x-amz-tagging-directive': 'REPLACE', 'x-amz-tagging': 'ctxfs-probe=2'}
        return (self._is_done('PUT', self._key, {'x-amz-tagging': 'ctxfs-probe=1'}) and self._tag_of(self._key) == '1'
                and self._is_done('PUT', self._other, source) and self._tag_of(self._other) == '1'
                and self._is_done('PUT', self._other, new) and self._tag_of(self._other) == '2' and self._holds_probe(self._other))

    def _tag_of(self, key: str) -> str:
        try:
            return parse_tags(self._send('GET', key, query={'tagging': ''}).body).get('ctxfs-probe', '')
        except (CtxfsError, ValueError):    # also a 500: no mount may fail for want of tags
            return ''

    def _holds_probe(self, key: str) -> bool:
        return self._send('GET', key).body == b'probe'

    def _ask_lifecycle(self) -> bool:
        """The bucket's rules can be read. Whether they may be written shows when one is needed: a trial could only be undone by a race."""
        try:
            return is_lifecycle(self._send('GET', '', query={'lifecycle': ''}).body)
        except CtxfsError as exc:
            return code_of(exc) == NO_RULES

    def _ask_batch(self) -> tuple[bool, bool]:
        """(DeleteObjects works, it honours an etag per object)."""
        refused = self._batch([(self._key, _STALE)])
        is_left = bool(self._current_etag())
        removed = self._batch([(self._key, None), (self._other, None)])
        works = removed == 0 and not self._current_etag()
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

    def _current_etag(self) -> str:
        try:
            return self._send('HEAD', self._key).headers.get('ETag', '')
        except NotFound:
            return ''

    def _is_refused(self, method: str, key: str, headers: Mapping[str, str]) -> bool:
        return isinstance(self._outcome(method, key, headers), (RemoteChanged, NotFound))

    def _is_done(self, method: str, key: str, headers: Mapping[str, str]) -> bool:
        return self._outcome(method, key, headers) is None

    def _outcome(self, method: str, key: str, headers: Mapping[str, str] | None = None) -> CtxfsError | None:
        """What the server said; transient errors are raised, since they say nothing about the feature."""
        try:
            self._send(method, key, headers, b'probe' if method == 'PUT' and 'x-amz-copy-source' not in (headers or {}) else b'')
        except RemoteUnavailable:
            if method != 'DELETE' or headers:
                raise
            return None
        except CtxfsError as exc:
            return exc
        return None

    def _send(self, method: str, key: str, headers: Mapping[str, str] | None = None, body: bytes = b'', *,
              query: Mapping[str, str] | None = None) -> Response:
        """One request, again after a second where the server is busy: R2 allows one write per key and second."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._client.request(method, key, query=query, headers=headers, body=body, what='find out what the store can do')
            except RemoteUnavailable as error:
                if attempt == _ATTEMPTS or status_of(error) not in BUSY:
                    raise
            time.sleep(1.1)
        raise AssertionError('not reached: the last attempt returns or raises')
