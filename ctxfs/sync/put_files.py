"""Local files and directories into a context, several at a time, without a mount.

Owns what of a local tree is sent (files, symlinks, empty directories; nothing else can be), as which objects, and that mounts are told when it
is there. It must not know where in the context it goes, nor people. Attributes travel as a mount writes them. Synchronous.

Every file is read twice when it is large, once otherwise; one that changes meanwhile is not sent as a mixture but fails. What was sent before a
failure stays, and is told.
"""
from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import BinaryIO, NamedTuple, cast

import msgspec

from ctxfs.errors import CtxfsError, Denied, NotFound
from ctxfs.records import LIFECYCLE_NAME, Attrs, IndexRecord, Stamp
from ctxfs.storage import posix_meta
from ctxfs.storage.block_sums import BLOCK_SIZE
from ctxfs.storage.keys import KEY_MAX, Unmountable, key_of_path, key_to_path, name_to_component
from ctxfs.storage.object_store import Aborted
from ctxfs.sync.context_files import SEGMENT_RECORDS, ContextFiles
from ctxfs.sync.measured import Measured

THREADS = 8
_WHOLE = 8 << 20
#: files that are looked at ahead of those that are being sent
_AHEAD = 256


class Local(NamedTuple):
    """One thing to send: its local path, its key (a directory's ends with a slash), and what it is."""
    path: bytes
    key: str
    found: os.stat_result


class Failure(NamedTuple):
    """What could not be sent or fetched, and why: for people."""
    path: str
    why: str


class Moved(NamedTuple):
    """What a transfer did."""
    files: int
    bytes: int
    failures: list[Failure]


#: so many more files, so many more bytes
Progress = Callable[[int, int], None]


def measure(path: bytes) -> tuple[int, int]:
    """(files, bytes) that are there to be sent: for a progress bar."""
    files = size = 0
    for item in walk(path, ''):
        if isinstance(item, Local):
            files, size = files + 1, size + (item.found.st_size if stat.S_ISREG(item.found.st_mode) else 0)
    return files, size


def walk(path: bytes, key: str) -> Iterator[Local | Failure]:
    """What is at `path`, to be stored as `key`, and all below it."""
    try:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode):
            yield _checked(path, key, found)
            return
        names = sorted(os.listdir(path))
    except OSError as error:
        yield Failure(os.fsdecode(path), str(error.strerror))
        return
    if not names and key:
        yield _checked(path, key + '/', found)
    for name in names:
        yield from walk(os.path.join(path, name), f'{key}/{name_to_component(name)}' if key else name_to_component(name))


def _checked(path: bytes, key: str, found: os.stat_result) -> Local | Failure:
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return Failure(os.fsdecode(path), 'neither a file nor a symlink nor a directory')
    verdict = key_to_path(key) if len(key.encode('utf-8', 'replace')) <= KEY_MAX else Unmountable(f'its key has more than {KEY_MAX} bytes')
    return Failure(os.fsdecode(path), verdict.reason) if isinstance(verdict, Unmountable) else Local(path, key, found)


def put(files: ContextFiles, path: bytes, key: str, *, progress: Progress = lambda files, size: None) -> Moved:
    """Store what is at `path` as `key`. Raises what the store says to all (Denied, RemoteUnavailable …); what is one file's problem is in the
    result."""
    sent = _Sent(files, progress)
    if files.uploads is not None:
        files.uploads.tidy(files.store)
    files.members.look()
    with ThreadPoolExecutor(THREADS, thread_name_prefix='ctxfs-put') as pool:
        waiting: set[Future[IndexRecord]] = set()
        names: dict[Future[IndexRecord], Local] = {}
        try:
            for item in walk(path, key):
                if isinstance(item, Failure):
                    sent.failures.append(item)
                    continue
                future = pool.submit(_send, files, item)
                names[future] = item
                waiting.add(future)
                if len(waiting) >= _AHEAD:
                    waiting = sent.collect(waiting, names)
            while waiting:
                waiting = sent.collect(waiting, names)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            sent.take_rest(names)
            sent.tell()
    return sent.moved()


class _Sent:
    def __init__(self, files: ContextFiles, progress: Progress) -> None:
        self._files = files
        self._progress = progress
        self._records: list[IndexRecord] = []
        self._count = self._bytes = 0
        self.failures: list[Failure] = []

    def collect(self, waiting: set[Future[IndexRecord]], names: dict[Future[IndexRecord], Local]) -> set[Future[IndexRecord]]:
        """Take the results that are there. Raises what is no single file's problem."""
        done, left = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            self._take(future, names.pop(future))
        if len(self._records) >= SEGMENT_RECORDS:
            self.tell()
        return left

    def take_rest(self, names: dict[Future[IndexRecord], Local]) -> None:
        """When nothing runs any more. One problem of all is raised already; where several files had it, the others are still told."""
        for future, item in names.items():
            if not future.cancelled():
                with contextlib.suppress(CtxfsError):
                    self._take(future, item)

    def _take(self, future: Future[IndexRecord], item: Local) -> None:
        try:
            record = future.result()
        except (OSError, Aborted) as error:
            self.failures.append(Failure(os.fsdecode(item.path), getattr(error, 'strerror', None) or 'it changed while it was being sent'))
            return
        self._records.append(record)
        self._count, self._bytes = self._count + 1, self._bytes + record.size
        self._progress(1, record.size)

    def tell(self) -> None:
        records, self._records = self._records, []
        if records:
            self._files.announce(records)

    def moved(self) -> Moved:
        return Moved(self._count, self._bytes, self.failures)


def _send(files: ContextFiles, item: Local) -> IndexRecord:
    attrs, lifecycle = _attrs(item), ''
    if stat.S_ISREG(item.found.st_mode):
        lifecycle = files.lifecycle_of(item.key)
        etag, size = _send_file(files, item, attrs, lifecycle)
    else:
        is_dir = stat.S_ISDIR(item.found.st_mode)
        body = b'' if is_dir else attrs.target or b''
        with files.turn([item.key]):
            stamp = Stamp(host=files.host, member=files.displaced(item.key))
            result = files.store.put(files.prefix + item.key, body, metadata=posix_meta.encode(attrs, stamp),
                                     content_type=posix_meta.DIRECTORY_TYPE if is_dir else None)
        etag, size = ('', 0) if is_dir else (result.etag, result.size)
    return IndexRecord(path=item.key, changed_ns=time.time_ns(), etag=etag, size=size, attrs=attrs, lifecycle=lifecycle)


def _attrs(item: Local) -> Attrs:
    found = item.found
    return Attrs(mode=found.st_mode, uid=found.st_uid, gid=found.st_gid, mtime_ns=found.st_mtime_ns, atime_ns=found.st_atime_ns,
                 ctime_ns=found.st_ctime_ns, target=os.readlink(item.path) if stat.S_ISLNK(found.st_mode) else None)


def _send_file(files: ContextFiles, item: Local, attrs: Attrs, lifecycle: str) -> tuple[str, int]:
    """(etag, size). Raises Aborted for a file that changed meanwhile."""
    # the name may be a FIFO's by now: nothing here may wait for a writer
    fd = os.open(item.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, 'rb', buffering=0) as file:
        before = os.fstat(fd)
        measured, body = Measured(files.store, before.st_size), b''
        while piece := file.read(BLOCK_SIZE):
            measured.update(piece)
            if before.st_size <= _WHOLE:
                body += piece

        def unchanged() -> bool:
            now = os.fstat(fd)
            return (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        stamp = Stamp(sha256=measured.sha256(), host=files.host, etag=measured.etag(), sums=measured.sums(), member=files.displaced(item.key))
        metadata = posix_meta.encode(msgspec.structs.replace(attrs, mtime_ns=before.st_mtime_ns), stamp)
        tags = {LIFECYCLE_NAME: lifecycle} if lifecycle else None
        metadata.update(tags or {})
        if before.st_size > _WHOLE:
            # not the other metadata: to read a file changes its atime, and the index has them as they are now
            content = f'{measured.sha256()} {lifecycle}'
            resume = files.uploads.upload(files.store, files.prefix + item.key, content) if files.uploads is not None else None
            with files.turn([item.key]):
                result = files.store.put_file(files.prefix + item.key, cast(BinaryIO, file), before.st_size, metadata=metadata, tags=tags,
                                              may_commit=unchanged, resume=resume)
        elif len(body) == before.st_size and unchanged():
            with files.turn([item.key]):
                result = files.store.put(files.prefix + item.key, body, metadata=metadata, tags=tags)
        else:
            raise Aborted(f'{item.key}: the file changed')
    return result.etag, result.size


def target_of(files: ContextFiles, path: bytes, wanted: str | None) -> str:
    """The key for what is at `path`, as cp would choose it: inside an existing folder or one that is named with a slash, else just that.
    Raises NotFound for a local path that is not there, NotADirectory."""
    name = name_to_component(os.path.basename(os.path.abspath(path)))
    if not os.path.lexists(path):
        raise NotFound(f'{os.fsdecode(path)}: no such file or directory')
    if not os.access(path, os.R_OK) and not os.path.islink(path):
        raise Denied(f'{os.fsdecode(path)}: it cannot be read')
    folder = '/' if wanted is None else wanted
    key = _existing_folder(files, folder)
    key = f'{key}{name}' if key is not None else key_of_path(folder)
    files.check_parents(key)
    return key


def _existing_folder(files: ContextFiles, path: str) -> str | None:
    """Its key with a slash at the end ('' for the root); None where it is none."""
    if path.endswith('/') or not key_of_path(path):
        key = key_of_path(path)
        return f'{key}/' if key else ''
    try:
        found = files.find(path)
    except NotFound:
        return None
    return found.key if found.is_dir else None
