"""Objects in parts: large files in parallel with bounded memory, and copies above the 5 GiB that one request can copy.

Owns the sizes of parts and the life of an upload: it is completed or aborted, whatever happens. It must not know conditions beyond the
headers it is given, nor whether the content moved: `may_commit` tells.
"""
from __future__ import annotations

import concurrent.futures
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO

from ctxfs.crash_points import crash_point
from ctxfs.errors import CtxfsError, NotFound, RemoteUnavailable, Unanswered
from ctxfs.storage.object_store import Aborted, Resume
from ctxfs.storage.s3_client import S3Client
from ctxfs.storage.s3_errors import code_of
from ctxfs.storage.s3_guard import Sending
from ctxfs.storage.s3_xml import complete_request, parse_completed_etag, parse_copy_etag, parse_upload_id, quoted_etag

log = logging.getLogger(__name__)

MIB = 1 << 20
PART_MIN = 8 * MIB
#: bytes of one upload that may be in memory, over all of its parts in flight
MEMORY = 64 * MIB
PARALLEL = 4
#: S3 allows 10,000; the rest is room
PARTS_MAX = 9_000
COPY_MAX = 5 << 30
_COPY_PART = 1 << 30

Sender = Callable[[str, int], str]
#: headers
Headers = Mapping[str, str]
#: around the request that completes an upload: what it is sent with; may raise
Commit = Callable[[], AbstractContextManager[Sending]]


def part_size(size: int) -> int:
    """Bytes of each part but the last: as small as the number of parts allows, in whole MiB."""
    return max(PART_MIN, -(-size // (PARTS_MAX * MIB)) * MIB)


class FileReader:
    """Ranges of one file for several threads, by pread where there is a descriptor, else one at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        try:
            self._fd = file.fileno()
        except OSError:
            self._fd = -1

    def read(self, start: int, stop: int, *, key: str) -> bytes:
        """Exactly [start, stop). Raises Aborted when the file ends before: it became shorter."""
        data = self._pread(start, stop - start)
        if len(data) < stop - start:
            raise Aborted(f'{key}: the content moved while it was being stored')
        return data

    def _pread(self, start: int, count: int) -> bytes:
        if self._fd < 0:
            with self._lock:
                self._file.seek(start)
                return self._file.read(count)
        data = os.pread(self._fd, count, start)
        while len(data) < count:
            more = os.pread(self._fd, count - len(data), start + len(data))
            if not more:
                break
            data += more
        return data


def upload_parts(client: S3Client, key: str, reader: FileReader, size: int, *, create: Headers, commit: Commit,
                 may_commit: Callable[[], bool], progress: Callable[[int], None], resume: Resume | None = None) -> str:
    """Upload and complete; returns the etag. `create`: the new object's headers; `resume`: see the port. Raises RemoteUnavailable where it is
    unknown whether the object is there now."""
    step = part_size(size)

    def send(upload_id: str, number: int) -> str:
        start, stop = (number - 1) * step, min(number * step, size)
        data = reader.read(start, stop, key=key)
        response = client.request('PUT', key, query={'partNumber': str(number), 'uploadId': upload_id}, body=data, is_repeatable=True,
                                  what=f'upload part {number} of {key}')
        progress(len(data))
        return quoted_etag(response.headers.get('ETag', ''))

    def confirm() -> AbstractContextManager[Sending]:
        if not may_commit():
            raise Aborted(f'{key}: the content moved while it was being stored')
        return commit()
    workers = max(1, min(PARALLEL, MEMORY // step))
    count = -(-size // step)
    if resume is not None and resume.upload_id:
        try:
            return _resumed(client, key, count, send, commit=confirm, workers=workers, resume=resume,
                            skipped=lambda number: progress(min(number * step, size) - (number - 1) * step))
        except (NotFound, Unanswered) as exc:
            cause = exc.__cause__ if isinstance(exc.__cause__, CtxfsError) else exc
            if code_of(cause) != 'NoSuchUpload':
                raise
            log.info('the upload of %s that was cut short is gone; it begins anew', key)
            resume.over()
    return _run(client, key, count, send, create=create, commit=confirm, workers=workers, resume=resume)


def copy_parts(client: S3Client, source: str, key: str, size: int, *, source_etag: str, create: Headers, commit: Commit) -> str:
    """Server-side copy of an object above COPY_MAX; returns the etag."""
    step = max(_COPY_PART, part_size(size))

    def send(upload_id: str, number: int) -> str:
        last = min(number * step, size) - 1
        headers = {'x-amz-copy-source': client.source_header(source), 'x-amz-copy-source-range': f'bytes={(number - 1) * step}-{last}',
                   'x-amz-copy-source-if-match': source_etag}
        what = f'copy part {number} of {source}'
        response = client.request('PUT', key, query={'partNumber': str(number), 'uploadId': upload_id}, headers=headers, is_repeatable=True,
                                  what=what, is_long=True)
        try:
            return parse_copy_etag(response.body)
        except ValueError:
            raise client.error(response._replace(status=500), what) from None
    return _run(client, key, -(-size // step), send, create=create, commit=commit, workers=PARALLEL)


def _run(client: S3Client, key: str, count: int, send: Sender, *, create: Headers, commit: Commit, workers: int,
         resume: Resume | None = None) -> str:
    upload_id = _begin(client, key, create)
    if resume is not None:
        resume.begun(upload_id)
    return _finish(client, key, upload_id, count, _noting(send, resume), commit=commit, workers=workers, resume=resume)


def _resumed(client: S3Client, key: str, count: int, send: Sender, *, commit: Commit, workers: int, resume: Resume,
             skipped: Callable[[int], None]) -> str:
    """Go on with an upload that was cut short. Raises NotFound, or Unanswered from it, of the code NoSuchUpload, where it is gone."""
    known, note = resume.parts, _noting(send, resume)

    def send_missing(upload_id: str, number: int) -> str:
        if number in known:
            skipped(number)
            return known[number]
        return note(upload_id, number)
    log.info('the upload of %s goes on: %d of %d parts are there', key, len(known), count)
    return _finish(client, key, resume.upload_id, count, send_missing, commit=commit, workers=workers, resume=resume)


def _noting(send: Sender, resume: Resume | None) -> Sender:
    if resume is None:
        return send
    lock = threading.Lock()

    def sent(upload_id: str, number: int) -> str:
        etag = send(upload_id, number)
        with lock:
            resume.sent(number, etag)
        return etag
    return sent


def _finish(client: S3Client, key: str, upload_id: str, count: int, send: Sender, *, commit: Commit, workers: int,
            resume: Resume | None) -> str:
    try:
        etags = _send_all(send, upload_id, count, workers)
        with commit() as sending:
            crash_point('worker-multipart-before-complete')
            etag = _complete(client, key, upload_id, etags, sending)
        crash_point('worker-multipart-after-complete')
    except BaseException as exc:
        if resume is None or not _passes(exc):
            _abort(client, key, upload_id)
            if resume is not None:
                resume.over()
        raise
    if resume is not None:
        resume.over()
    return etag


def _passes(exc: BaseException) -> bool:
    """Whether another try may succeed with the same parts: an outage, an interruption; and what is told by its code is the caller's."""
    return not isinstance(exc, Exception) or (isinstance(exc, CtxfsError) and (exc.transient or code_of(exc) == 'NoSuchUpload'))


def _begin(client: S3Client, key: str, headers: Headers) -> str:
    what = f'begin the upload of {key}'
    response = client.request('POST', key, query={'uploads': ''}, headers=headers, what=what, is_repeatable=True)
    try:
        return parse_upload_id(response.body)
    except ValueError as exc:
        raise RemoteUnavailable(f'{what}: the answer cannot be read: {exc}') from exc


def _complete(client: S3Client, key: str, upload_id: str, etags: Sequence[str], sending: Sending) -> str:
    what = f'complete the upload of {key}'
    try:
        response = client.request('POST', key, query={'uploadId': upload_id}, headers={'Content-Type': 'application/xml', **sending.headers},
                                  body=complete_request(etags), what=what, is_repeatable=False, timeouts=sending.timeouts, is_long=True)
    except NotFound as exc:
        if code_of(exc) == 'NoSuchUpload':      # an earlier try, whose answer was lost, may have completed it
            raise Unanswered(f'{what}: {exc}') from exc
        raise
    try:
        etag = parse_completed_etag(response.body)
    except ValueError:      # it may answer 200 and then report an error
        raise client.error(response._replace(status=500), what) from None
    return etag or _etag_of_parts(client, key, etags)


def _etag_of_parts(client: S3Client, key: str, etags: Sequence[str]) -> str:
    """Ceph RGW 16 does not say the etag: the object is asked, and is the one just made if its etag is what becomes of the parts'."""
    found = quoted_etag(client.request('HEAD', key).headers.get('ETag', ''))
    digests = b''.join(bytes.fromhex(etag.strip('"')) for etag in etags if len(etag) == 34)
    if found != f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(etags)}"':
        raise Unanswered(f'{key} was uploaded, but the server does not say as which version')
    return found


def _send_all(send: Sender, upload_id: str, count: int, workers: int) -> list[str]:
    """The etags in order. The first failure stops what has not begun, and is raised when the rest has ended."""
    with concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix='ctxfs-part') as pool:
        futures = [pool.submit(send, upload_id, number) for number in range(1, count + 1)]
        done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
        if any(future.exception() for future in done):
            pool.shutdown(cancel_futures=True)
            raise next(exc for future in futures if future.done() and not future.cancelled() and (exc := future.exception()))
        return [future.result() for future in futures]


def _abort(client: S3Client, key: str, upload_id: str) -> None:
    """Best effort: what fails here is reported by nobody else, but the cause of the abort is what the caller must see."""
    try:
        client.request('DELETE', key, query={'uploadId': upload_id}, what=f'abort the upload of {key}')
    except NotFound:
        return      # it is completed, or was never begun
    except CtxfsError as exc:
        log.info('%s; its parts stay until the bucket expires them', exc)
