"""The index in the bucket: reads, merges, extends and compacts the index objects of one context.

Owns which index objects there are, which of them make others superfluous, and when those may go. It must not know the format's bytes
(storage/index_format.py), the tree database or processes. Synchronous; runs inside a transfer worker.

Objects are immutable and have names of their own, so hosts never overwrite each other. A *base* lists in `covers` the objects whose
records it contains. Covered objects stay for a grace time, because another host may have listed them and be about to read them; that time
is measured by the store's clock as the objects' own mtimes show it. Two hosts that compact at once leave two bases that cover the same:
readers merge both, the next compaction covers both. A missing, torn or unknown object costs HEAD requests later, never a wrong answer,
because a record counts only for the object version that it names.
"""
from __future__ import annotations

import heapq
import io
import itertools
import operator
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import BinaryIO, cast

import msgspec

from ctxfs.crash_points import crash_point
from ctxfs.errors import Corrupted, NotFound, RemoteChanged, Unsupported
from ctxfs.records import IndexRecord, ObjectInfo, Stamp
from ctxfs.storage import index_format, posix_meta
from ctxfs.storage.index_format import INDEX_DIR, Header
from ctxfs.storage.listing import pages
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.piece_sums import Summer

#: more segments than this, or more bytes in segments than in the bases (and than the floor), make a compaction due
MAX_SEGMENTS = 64
_COMPACT_FLOOR = 1 << 20
#: objects that are read in one go; hosts that compact leave a tenth of it
MAX_OPEN = 512
#: objects up to this are read whole and in parallel; larger ones as a stream of ranges of this size
_RANGE = 4 << 20
_SMALL = 1 << 20


class IndexState(msgspec.Struct, kw_only=True):
    """What a reading found; complete when its records are exhausted. Fields as in protocol.IndexDone."""
    names: list[str] = []
    segments: int = 0
    segment_bytes: int = 0
    base_bytes: int = 0
    skipped: list[tuple[str, str]] = []

    @property
    def is_compaction_due(self) -> bool:
        return self.segments > MAX_SEGMENTS or self.segment_bytes > max(self.base_bytes, _COMPACT_FLOOR)


class _Source:
    """One index object: its description, its header once read, and its records."""

    def __init__(self, info: ObjectInfo, name: str) -> None:
        self.info = info
        self.name = name
        self.is_base = index_format.kind_of(name) == 'base'
        self.header: Header | None = None
        self.records: Iterator[IndexRecord] = iter(())
        self.is_open = False
        self.problem: Exception | None = None

    @property
    def covers(self) -> set[str]:
        return set(self.header.covers) if self.header is not None and self.problem is None else set()


class IndexReading:
    """The merged records of a set of index objects, sorted by path, the latest record of each. Iterate once, then see `state`."""

    def __init__(self, sources: list[_Source], state: IndexState) -> None:
        self._sources = sources
        self.state = state

    def __iter__(self) -> Iterator[IndexRecord]:
        streams = [self._stream(source) for source in self._sources]
        if len(streams) == 1:       # there is nothing to merge
            yield from streams[0]
            self._settle()
            return
        by_path = operator.attrgetter('path')
        for _, same in itertools.groupby(heapq.merge(*streams, key=by_path), key=by_path):
            # Of equal times the last object by name counts; heapq.merge keeps the order of the streams.
            yield max(enumerate(same), key=lambda pair: (pair[1].changed_ns, pair[0]))[1]
        self._settle()

    def _stream(self, source: _Source) -> Iterator[IndexRecord]:
        try:
            yield from source.records
        except (Corrupted, NotFound, RemoteChanged) as error:
            source.problem = error

    def _settle(self) -> None:
        for source in self._sources:
            if source.problem is not None:
                self.state.skipped.append((source.name, str(source.problem)))
            # A torn object is done with: it is immutable. One that vanished or is too new may be read another day, as part of a base.
            if source.problem is None or isinstance(source.problem, Corrupted):
                self.state.names.append(source.name)
        lost = {name for source in self._sources if source.problem is not None and source.header for name in source.header.covers}
        # What an unreadable base stood for has not been read either: the next reading takes it from the objects themselves.
        self.state.names = [name for name in self.state.names if name not in lost]


class IndexLog:
    """The index of the context whose keys start with `prefix` (which ends with '/'). Raises what the store raises."""

    def __init__(self, store: ObjectStore, prefix: str, *, host: str, executor: Executor | None = None,
                 scratch_dir: str | None = None, clock_ns: Callable[[], int] = time.time_ns) -> None:
        """`executor` opens objects in parallel; `scratch_dir` is where a new base grows before it is sent."""
        self._store = store
        self._directory = prefix + INDEX_DIR
        self._host = host
        self._executor = executor
        self._scratch_dir = scratch_dir
        #: after `compact`: the names of what is there then
        self.left: list[str] = []
        self._clock_ns = clock_ns

    # --- reading -----------------------------------------------------------------------------------------------------------------

    def read(self, seen: Iterable[str] = ()) -> IndexReading:
        """The records of all index objects that are not in `seen` (names, as an earlier state gave them); of very many of some, and the others
        stay unread until the next reading."""
        known = set(seen)
        sources = self._list()
        state = _sizes(sources)
        present = {source.name for source in sources}
        unread = _at_once([source for source in sources if source.name not in known])
        self._open_all([source for source in unread if source.is_base])
        done, needed = _plan(unread, known, present)
        self._open_all([source for source in needed if not source.is_open and source.problem is None])
        state.names = sorted((present & known) | done)
        return IndexReading(needed, state)

    def _list(self) -> list[_Source]:
        """In the order in which they were made."""
        return [_Source(info, name) for page in pages(self._store, self._directory) for info in page.objects
                if index_format.kind_of(name := info.key[len(self._directory):]) is not None]

    def _open_all(self, sources: list[_Source]) -> None:
        if self._executor is None:
            for source in sources:
                self._open(source)
        else:
            list(self._executor.map(self._open, sources))

    def _open(self, source: _Source) -> None:
        """Read the header, and a small object whole. What is wrong with the object is noted, what is wrong with the store is raised."""
        try:
            source.header, source.records = index_format.read(self._reader(source.info))
            source.is_open = True
        except (Corrupted, Unsupported, NotFound, RemoteChanged) as error:
            source.problem = error

    def _reader(self, info: ObjectInfo) -> BinaryIO:
        if info.size <= _SMALL:
            return io.BytesIO(self._store.get(info.key, if_match=info.etag))
        return cast(BinaryIO, io.BufferedReader(_Ranges(self._store, info), _RANGE))

    # --- writing -----------------------------------------------------------------------------------------------------------------

    def append(self, records: Iterable[IndexRecord]) -> tuple[str, int]:
        """Add a segment with these records; its name and its size in bytes. A retry after a lost response adds it twice, harmlessly."""
        created_ns = self._clock_ns()
        name = index_format.object_name('segment', host=self._host, created_ns=created_ns)
        body = index_format.encode(Header(kind='segment', host=self._host, created_ns=created_ns), records)
        self._store.put(self._directory + name, body)       # nobody else makes that name, and it is never written again
        crash_point('worker-segment-after-commit')
        return name, len(body)

    def compact(self, *, grace_ns: int) -> tuple[str, int, int]:
        """Merge all into a new base unless one base is all there is; delete what verified bases older than `grace_ns` cover.

        Returns (name of the new base or '', its records, objects deleted)."""
        sources = _at_once(self._list())
        self._open_all([source for source in sources if source.is_base])
        name, count, live = '', 0, _live(sources)
        if len(live) > 1 or any(not source.is_base for source in live):
            name, count, live = self._write_base(sources)
            crash_point('worker-compact-after-base')
        return name, count, self._delete_covered(live, sources, grace_ns)

    def _write_base(self, sources: list[_Source]) -> tuple[str, int, list[_Source]]:
        """Tombstones are left out: a base is everything there is. An object that turns out unreadable is not covered, and what it covers
        itself is merged from its own objects, so no record is given up that can be read anywhere."""
        while True:
            live = _live(sources)
            self._open_all([source for source in live if not source.is_open])
            live = [source for source in live if source.problem is None]
            created_ns = self._clock_ns()
            present = {source.name for source in sources}
            covers = {source.name for source in live}.union(*(source.covers for source in live)) & present
            header = Header(kind='base', host=self._host, created_ns=created_ns, covers=sorted(covers))
            with tempfile.TemporaryFile(prefix='ctxfs-index-', dir=self._scratch_dir) as body:
                records = (record for record in IndexReading(live, IndexState()) if record.attrs is not None)
                count = index_format.write(cast(BinaryIO, body), header, records)
                for source in live:
                    source.is_open = False
                if all(source.problem is None for source in live):
                    name = index_format.object_name('base', host=self._host, created_ns=created_ns)
                    size = body.tell()
                    self._store.put_file(self._directory + name, cast(BinaryIO, body), size,
                                         metadata=self._checksums(cast(BinaryIO, body), size))
                    return name, count, live

    def _checksums(self, body: BinaryIO, size: int) -> dict[str, str]:
        """A large base is read in ranges, which are verified with these. Leaves the file at its start."""
        body.seek(0)
        summer, etag = Summer(size), self._store.etag_maker(size)
        while piece := body.read(_SMALL):
            summer.update(piece)
            if etag is not None:
                etag.update(piece)
        body.seek(0)
        return posix_meta.encode(None, Stamp(host=self._host, etag=etag.etag() if etag is not None else '', sums=summer.sums().encode()))

    def _delete_covered(self, live: list[_Source], sources: list[_Source], grace_ns: int) -> int:
        if not sources:
            return 0
        listed = self._list()
        now_ns = max(source.info.mtime_ns for source in listed)
        covered: set[str] = set()
        for source in live:
            if source.is_base and source.problem is None and now_ns - source.info.mtime_ns > grace_ns:
                covered |= source.covers
        items: list[tuple[str, str | None]] = [(source.info.key, None) for source in sources if source.name in covered]
        failures = self._store.delete_many(items) if items else []
        self.left = sorted({source.name for source in listed} - covered)
        return len(items) - len(failures)


def _at_once(sources: list[_Source]) -> list[_Source]:
    """As many as may be open: each takes memory of its own. Bases, which stand for many, then the oldest."""
    return sorted(sorted(sources, key=lambda source: not source.is_base)[:MAX_OPEN], key=lambda source: source.name)


def _live(sources: list[_Source]) -> list[_Source]:
    """Those that no readable base covers."""
    covered = set().union(*(source.covers for source in sources)) if sources else set()
    return [source for source in sources if source.name not in covered]


def _plan(unread: list[_Source], known: set[str], present: set[str]) -> tuple[set[str], list[_Source]]:
    """What of `unread` need not be read (names), and what must be.

    A base whose new parts are still there as segments is not worth its bytes to somebody who knows the rest; to somebody who knows
    nothing, the base is worth more than what it covers."""
    superfluous = {source.name for source in unread
                   if source.covers and known and source.covers - known <= present and source.covers & known}
    covered = set().union(*(source.covers for source in unread if source.name not in superfluous)) if unread else set()
    done = superfluous | {source.name for source in unread if source.name in covered}
    return done, [source for source in unread if source.name not in done]


def _sizes(sources: list[_Source]) -> IndexState:
    segments = [source.info.size for source in sources if not source.is_base]
    return IndexState(segments=len(segments), segment_bytes=sum(segments),
                      base_bytes=sum(source.info.size for source in sources if source.is_base))


class _Ranges(io.RawIOBase):
    """A remote object as a file, read range by range, of one version."""

    def __init__(self, store: ObjectStore, info: ObjectInfo) -> None:
        self._store = store
        self._info = info
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        stop = min(self._at + min(len(buffer), _RANGE), self._info.size)
        if stop <= self._at:
            return 0
        data = self._store.get(self._info.key, self._at, stop, if_match=self._info.etag)
        buffer[:len(data)] = data
        self._at += len(data)
        return len(data)
