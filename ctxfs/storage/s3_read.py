"""GETs whose bytes are verified, and made again where they are not right.

Owns how often, and what is known of the server's etags. The rules by which bytes are judged are s3_verify's; it must not know ranges, prefixes
or conditions: the request is given as a function.
"""
from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable

from ctxfs.errors import Denied, InvalidArgument, RemoteChanged, Unsupported, WrongBytes
from ctxfs.storage.s3_client import S3Client
from ctxfs.storage.s3_http import Response
from ctxfs.storage.s3_verify import Part, Verdict, is_encrypted, judge, md5_in, part_of
from ctxfs.storage.s3_xml import quoted_etag

log = logging.getLogger(__name__)

#: tries of a GET whose bytes contradict their checksum
ATTEMPTS = 3
_OPAQUE_MOST = 100_000
_GOOD = (Verdict.RIGHT, Verdict.UNPROVEN)


class Reader:
    """See the module docstring. Thread-safe. `scratch`: what the keys of probes begin with."""

    def __init__(self, client: S3Client, scratch: str) -> None:
        self._client = client
        self._scratch = scratch
        #: whether etags are MD5s of the content here, as far as is known
        self._are_md5: bool | None = None
        #: etags of objects that are encrypted, and so are no MD5s, as far as they were met
        self._opaque: set[str] = set()

    def read(self, get: Callable[[], Response], key: str, if_match: str | None, start: int, stop: int | None) -> Part:
        """What `get` brings of [start, stop), unless it contradicts what came along with it: then once more, and WrongBytes if it does not get
        better. What comes twice the same although something speaks against it is what the store has, unless that is beyond doubt."""
        before: Part | None = None
        for _ in range(ATTEMPTS):
            response = get()
            etag = quoted_etag(response.headers.get('ETag', ''))
            if if_match is not None and etag != if_match:
                raise RemoteChanged(f'{key} is no longer the version {if_match}')
            if is_encrypted(response) and len(self._opaque) < _OPAQUE_MOST:
                self._opaque.add(etag)
            part = part_of(response, start, stop)
            verdict = Verdict.DAMAGED if part is None else judge(response, part, etag=etag, are_md5=self._are_md5)
            if part is not None and (verdict in _GOOD or (verdict is Verdict.DOUBTED and part == before and self._may_be_right(part, etag))):
                if verdict is Verdict.DOUBTED:
                    log.info('%s is taken as it is: it came twice the same, and its checksums seem to be of another version', key)
                return part
            log.info('%s came with bytes that are not the object\'s: %s', key, verdict.value)
            before = part
        raise WrongBytes(f'{key}: what came is not what the store has (a checksum does not fit)')

    def _may_be_right(self, part: Part, etag: str) -> bool:
        """Not where the etag is known to be the MD5 of something else."""
        return not (part.is_whole and md5_in(etag) and self._has_md5_etags())

    def md5_of(self, etag: str) -> str | None:
        """The MD5 of the content that an etag of this server is; None where it is none, or that is not known."""
        return md5_in(etag) if etag not in self._opaque and self._has_md5_etags() else None

    def _has_md5_etags(self) -> bool:
        """Found out with a scratch object where nothing was written yet. False where that may not be."""
        if self._are_md5 is None:
            scratch = f'{self._scratch}probe-{os.urandom(8).hex()}'
            try:
                self.note_put(b'probe', self._client.request('PUT', scratch, body=b'probe', is_repeatable=True, what='find out what etags are'))
                self._client.request('DELETE', scratch, is_repeatable=True, what='take a scratch object away')
            except (Denied, InvalidArgument, Unsupported):
                return False
        return bool(self._are_md5)

    def note_put(self, body: bytes, response: Response) -> None:
        """An answer to a PUT of `body` tells what etags are."""
        if self._are_md5 is None:
            self._are_md5 = md5_in(response.headers.get('ETag', '')) == hashlib.md5(body, usedforsecurity=False).hexdigest()
