"""Files and folders of a context as local files, several at a time, without a mount.

Owns what they become here, with which attributes, and that nothing is written outside of where it was asked for, whatever the bucket holds. It
must not know people. Attributes are those of the index where it knows the version, else of the object's metadata. Synchronous.

A file arrives under a name of its own (`.NAME.ctxfs-VERSION`) and is renamed when it is complete. One that was cut short is gone on with, if
the object still is that version.
"""
from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from ctxfs.errors import Corrupted, CtxfsError, Denied, NotFound, RemoteChanged, RemoteUnavailable
from ctxfs.records import Attrs, IndexRecord
from ctxfs.storage import posix_meta
from ctxfs.storage.keys import component_to_name
from ctxfs.sync.context_files import ContextFiles, Entry
from ctxfs.sync.put_files import THREADS, Failure, Moved, Progress

_RANGE = 8 << 20
_AHEAD = 256
#: what is no single file's problem
_FATAL = (Denied, RemoteUnavailable)


class _Plan:
    """What is fetched, where to, and what the index says of it. Directories above a file are made once, and never through a symlink."""

    def __init__(self, files: ContextFiles, base: bytes, cut: int) -> None:
        self.files = files
        self._base = base
        self._cut = cut
        self._made: set[bytes] = set()

    def place(self, entry: Entry) -> bytes:
        """Raises OSError."""
        names = [component_to_name(component) for component in entry.key.rstrip('/')[self._cut:].split('/') if component]
        at = self._base
        for name in names[:-1] if not entry.is_dir else names:
            at = os.path.join(at, name)
            self._make(at)
        if names and not entry.is_dir:
            at = os.path.join(at, names[-1])
        return at

    def _make(self, directory: bytes) -> None:
        if directory in self._made:
            return
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory)
        if not stat.S_ISDIR(os.lstat(directory).st_mode):
            raise NotADirectoryError(20, 'a file or a symlink is in the place of a directory')
        self._made.add(directory)


def get(files: ContextFiles, entry: Entry, to: bytes, *, progress: Progress = lambda files, size: None) -> Moved:
    """Fetch a file, or a folder with all below it, as `to`. Raises what the store says to all; what is one file's problem is in the result."""
    plan = _Plan(files, to, len(entry.key))
    entries: Iterable[Entry] = [entry]
    if entry.is_dir:
        os.makedirs(to, exist_ok=True)
        entries = files.below(entry.path)
    got = _Got(progress)
    links: list[tuple[bytes, bytes]] = []
    with ThreadPoolExecutor(THREADS, thread_name_prefix='ctxfs-get') as pool:
        waiting: dict[Future[bytes | None], Entry] = {}
        places: dict[Future[bytes | None], bytes] = {}
        try:
            for one, record in _with_records(files, entries):
                try:
                    place = plan.place(one) if entry.is_dir else to
                except OSError as error:
                    got.failed(one, error)
                    continue
                if one.is_dir:
                    continue
                future = pool.submit(_fetch, files, one, record, place)
                waiting[future], places[future] = one, place
                if len(waiting) >= _AHEAD:
                    got.collect(waiting, places, links)
            while waiting:
                got.collect(waiting, places, links)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for place, target in links:     # last, so that nothing was written through one
        got.link(place, target)
    return got.moved()


class _Got:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._count = self._bytes = 0
        self._failures: list[Failure] = []

    def collect(self, waiting: dict[Future[bytes | None], Entry], places: dict[Future[bytes | None], bytes],
                links: list[tuple[bytes, bytes]]) -> None:
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            entry, place = waiting.pop(future), places.pop(future)
            try:
                target = future.result()
            except (OSError, CtxfsError) as error:
                if isinstance(error, _FATAL):
                    raise
                self.failed(entry, error)
                continue
            if target is not None:
                links.append((place, target))
            self._count, self._bytes = self._count + 1, self._bytes + entry.size
            self._progress(1, entry.size)

    def failed(self, entry: Entry, error: Exception) -> None:
        self._failures.append(Failure(entry.path, getattr(error, 'strerror', None) or str(error)))

    def link(self, place: bytes, target: bytes) -> None:
        try:
            if os.path.islink(place):
                os.unlink(place)
            os.symlink(target, place)
        except OSError as error:
            self._count -= 1
            self._failures.append(Failure(os.fsdecode(place), str(error.strerror)))

    def moved(self) -> Moved:
        return Moved(self._count, self._bytes, self._failures)


def _with_records(files: ContextFiles, entries: Iterable[Entry]) -> Iterator[tuple[Entry, IndexRecord | None]]:
    """Each with what the index says of this very version. Both are in the order of keys, so one walk does it."""
    records = iter(files.records())
    record = next(records, None)
    for entry in entries:
        while record is not None and record.path < entry.key:
            record = next(records, None)
        is_it = record is not None and (record.path, record.etag, record.size) == (entry.key, entry.etag, entry.size)
        yield entry, record if is_it else None


def _fetch(files: ContextFiles, entry: Entry, record: IndexRecord | None, place: bytes) -> bytes | None:
    """The target of what is a symlink, which is not made yet; a file is in its place afterwards."""
    attrs = record.attrs if record is not None else None
    if attrs is None:
        attrs = _attrs_of(files, entry)
    if stat.S_ISLNK(attrs.mode):
        return attrs.target if attrs.target is not None else files.read(entry, 0, 4096)
    if not stat.S_ISREG(attrs.mode):
        raise Corrupted('it is neither a file nor a symlink; mount the context to have it')
    temporary = _temporary(place, entry)
    _download(files, entry, temporary)
    os.chmod(temporary, stat.S_IMODE(attrs.mode) & 0o777)
    os.utime(temporary, ns=(attrs.atime_ns, attrs.mtime_ns))
    os.replace(temporary, place)
    return None


def _attrs_of(files: ContextFiles, entry: Entry) -> Attrs:
    info = files.head(entry.key)
    if info.etag != entry.etag:
        raise RemoteChanged('it was changed a moment ago; get it again')
    return posix_meta.decode(info.metadata, key=entry.key, size=info.size, mtime_ns=info.mtime_ns, content_type=info.content_type,
                             uid=os.getuid(), gid=os.getgid())


def _temporary(place: bytes, entry: Entry) -> bytes:
    directory, name = os.path.split(place)
    version = hashlib.sha256(f'{entry.key}\0{entry.etag}'.encode('utf-8', 'surrogatepass')).hexdigest()[:12]
    return os.path.join(directory, b'.' + name[:220] + b'.ctxfs-' + version.encode())


def _download(files: ContextFiles, entry: Entry, temporary: bytes) -> None:
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        done = os.fstat(fd).st_size
        if done > entry.size:
            os.ftruncate(fd, 0)
            done = 0
        while done < entry.size:
            data = files.read(entry, done, min(done + _RANGE, entry.size))
            if not data:
                raise NotFound('it is shorter than it was')
            written = 0
            while written < len(data):
                written += os.pwrite(fd, data[written:], done + written)
            done += len(data)
    except RemoteChanged as error:
        os.unlink(temporary)
        raise RemoteChanged('it was changed meanwhile; get it again') from error
    finally:
        os.close(fd)
