"""The archive log in the bucket: reads, extends and compacts the log of one context in Archive mode.

Owns which log objects there are, which of them a reader needs, and when those that a base replaces may go. It must not know the format's bytes
(storage/archive_log_format.py), the tree database or processes. Synchronous; runs inside a transfer worker, or without a mount.

Commits are numbered, and each is created only where there is none: so of two hosts that commit at once one is refused, reads what the other did,
and commits with the next number. A number is never used twice: what a base replaces stays for a grace time in which whoever was about to commit
with an old number has given up (archiver.py asks for the newest number first, and not long before).
"""
from __future__ import annotations

import heapq
import io
import itertools
import operator
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import BinaryIO, NamedTuple, cast

import msgspec

from ctxfs.crash_points import crash_point
from ctxfs.errors import NotFound, RemoteChanged, RemoteUnavailable
from ctxfs.records import ObjectInfo
from ctxfs.storage import archive_log_format as log_format
from ctxfs.storage.archive_log_format import ARCHIVE_DIR, LOG_DIR, ArchiveInfo, LogHeader, MemberRecord
from ctxfs.storage.listing import pages
from ctxfs.storage.object_store import Condition, ObjectStore

#: bytes that are fetched at a time
_RANGE = 8 << 20


class Entry(NamedTuple):
    """One log object, being read."""
    header: LogHeader
    records: Iterator[MemberRecord]


class Committed(NamedTuple):
    """What named an archive first: its number, and when it was made, by the store's clock."""
    number: int
    at_ns: int
    is_base: bool


class _Found(NamedTuple):
    number: int
    kind: str
    info: ObjectInfo


LOST = ('commits are missing from the archive log of the context (or it was compacted just now); mount the context: a mount that may write makes the '
        'log anew from the archives')


class LogLost(RemoteUnavailable):
    """A reader cannot do without what is missing."""


class Log:
    """What a listing shows of the log."""

    def __init__(self, found: Sequence[_Found], *, since: int, now_ns: int) -> None:
        self._commits = {item.number: item.info for item in found if item.kind == 'commit'}
        self._bases = {item.number: item.info for item in found if item.kind == 'base'}
        newest = max([*self._commits, *self._bases], default=0)
        self.number = max(newest, since)
        #: the newest that a reader knows is gone, and all that came after it
        self.is_lost = newest < since
        self.now_ns = now_ns
        self.base = max(self._bases, default=0)
        #: commits that no base replaces
        self.commits = sum(number > max(self.base, since) for number in self._commits)

    def has_all_after(self, since: int) -> bool:
        """Whether a reader who knows everything up to `since` finds all that he needs."""
        try:
            return not self.is_lost and (self.number == since or bool(self.needed(since)))
        except LogLost:
            return False

    def needed(self, since: int) -> list[ObjectInfo]:
        """What tells all that came after `since`, in order. Raises LogLost where something is missing: it was compacted just now, or is lost."""
        numbers = range(since + 1, self.number + 1)
        if (since or not self.base) and all(number in self._commits for number in numbers):
            return [self._commits[number] for number in numbers]
        numbers = range(self.base + 1, self.number + 1)
        if not self.base or not all(number in self._commits for number in numbers):
            raise LogLost(LOST)
        return [self._bases[self.base], *(self._commits[number] for number in numbers)]

    def in_order(self) -> list[tuple[int, bool, ObjectInfo]]:
        """All that there is, and whether it is a base: of one number the commit before the base that replaces it."""
        found = [(number, False, info) for number, info in self._commits.items()] + [(number, True, info) for number, info in self._bases.items()]
        return sorted(found, key=operator.itemgetter(0, 1))

    def replaced(self, *, grace_ns: int) -> list[str]:
        """Keys of what a base replaces that is old enough."""
        old = [number for number, info in self._bases.items() if self.now_ns - info.mtime_ns > grace_ns]
        newest = max(old, default=0)
        return [info.key for number, info in self._commits.items() if number <= newest] + [
            info.key for number, info in self._bases.items() if number < newest]


class ArchiveLog:
    """The log of the context whose keys start with `prefix` (which ends with '/'). Raises what the store raises."""

    def __init__(self, store: ObjectStore, prefix: str, *, executor: Executor | None = None, scratch_dir: str | None = None) -> None:
        self._store = store
        self._prefix = prefix
        self._executor = executor
        self._scratch_dir = scratch_dir

    # --- reading ------------------------------------------------------------------------------------------------------------------

    def look(self, since: int = 0) -> Log:
        """One request, as long as there are not very many commits. What is shown begins with `since` itself: that tells that nothing is lost."""
        found, now_ns = [], 0
        after = self._prefix + log_format.commit_key(since - 1) if since > 1 else ''
        directory = self._prefix + LOG_DIR
        for page in pages(self._store, directory, start_after=after):
            now_ns = max(now_ns, page.now_ns)
            for info in page.objects:
                if (parsed := log_format.parsed(info.key[len(directory):])) is not None:
                    found.append(_Found(*parsed, info))
        return Log(found, since=since, now_ns=now_ns or max([item.info.mtime_ns for item in found], default=0))

    def read(self, log: Log, since: int = 0) -> Iterator[Entry]:
        """What came after `since`; the first may be a base. Raises LogLost."""
        if log.is_lost:
            raise LogLost(LOST)
        needed = log.needed(since) if log.number > since else []
        run = map if self._executor is None else self._executor.map
        for start in range(0, len(needed), 16):
            for body in run(self._open, needed[start:start + 16]):
                yield Entry(*log_format.read(body))

    def _open(self, info: ObjectInfo) -> BinaryIO:
        try:
            if info.size <= _RANGE:
                return io.BytesIO(self._store.get(info.key, if_match=info.etag))
            parts = (self._store.get(info.key, start, min(start + _RANGE, info.size), if_match=info.etag) for start in range(0, info.size, _RANGE))
            file = tempfile.TemporaryFile(prefix='ctxfs-log-', dir=self._scratch_dir)      # noqa: SIM115 - who reads it drops it
            for part in parts:
                file.write(part)
            file.seek(0)
            return cast(BinaryIO, file)
        except (NotFound, RemoteChanged) as error:
            raise RemoteUnavailable(f'the archive log was compacted while it was read: {error}') from error

    def committed(self, archives: Collection[str]) -> dict[str, Committed]:
        """The commits that first named these archives; where only a base tells, that: it came later. Those of which the log says nothing are left
        out."""
        left = {name: number for name in archives if (number := log_format.number_in(name)) is not None}
        found = self.look(min(left.values())) if left else None
        commits: dict[str, Committed] = {}
        for number, is_base, info in [] if found is None else found.in_order():
            if not left:
                break
            for name in self._named_by(info, left) if number >= min(left.values()) else ():
                del left[name]
                commits[name] = Committed(number, info.mtime_ns, is_base)
        return commits

    def _named_by(self, info: ObjectInfo, archives: Collection[str]) -> list[str]:
        header, _ = log_format.read(self._open(info))
        return [named.name for named in header.archives if named.name in archives]

    # --- writing ------------------------------------------------------------------------------------------------------------------

    def commit(self, header: LogHeader, records: Iterable[MemberRecord]) -> tuple[int, bool]:
        """(bytes, whether the answer was lost and the commit found). Raises RemoteChanged when another has the number."""
        key = self._prefix + log_format.commit_key(header.number)
        body = log_format.encode(header, sorted(records, key=lambda item: item.record.path))
        crash_point('worker-archive-before-commit')
        try:
            self._store.put(key, body, condition=Condition(absent=True))
        except (RemoteChanged, RemoteUnavailable) as error:
            if not self._is_ours(key, header.nonce, error):
                raise
            return len(body), True
        crash_point('worker-archive-after-commit')
        return len(body), False

    def _is_ours(self, key: str, nonce: str, error: Exception) -> bool:
        """Whether the commit that is there is this very attempt. Raises RemoteUnavailable where nobody can say."""
        try:
            found, _ = log_format.read(io.BytesIO(self._store.get(key)))
        except NotFound:
            raise error from None
        return found.nonce == nonce

    # --- compaction ---------------------------------------------------------------------------------------------------------------

    def write_base(self, *, host: str, grace_ns: int) -> tuple[int, int, int]:
        """(number of the base, its records, objects removed). Nothing is written where a base is all there is."""
        log, count = self.look(), 0
        if log.commits:
            count = self._write_base(log, host)
            crash_point('worker-archive-after-base')
        gone = log.replaced(grace_ns=grace_ns)
        failures = self._store.delete_many([(key, None) for key in gone]) if gone else []
        return log.number, count, len(gone) - len(failures)

    def _write_base(self, log: Log, host: str) -> int:
        entries = since_reset(list(self.read(log)))
        archives = {info.name: info for entry in entries for info in entry.header.archives}
        present = self._present()
        gone = {name for entry in entries for name in entry.header.dropped}
        dropped = sorted(gone & present)
        with tempfile.TemporaryFile(prefix='ctxfs-log-', dir=self._scratch_dir) as lines, \
                tempfile.TemporaryFile(prefix='ctxfs-log-', dir=self._scratch_dir) as body:
            # an archive with no member that counts may tell of deletions
            used = (archives.keys() & present) - gone
            with_lengths = cast(BinaryIO, lines)
            for item in merged(entries):
                if item.place is not None:
                    used.add(item.place.archive)
                _put(with_lengths, item)
            oldest = min((log_format.number_in(name) or 0 for name in [*used, *dropped]), default=log.number)
            header = LogHeader(kind='base', number=log.number, host=host, created_ns=time.time_ns(),
                               archives=[archives.get(name, ArchiveInfo(name)) for name in sorted(used)], dropped=dropped)
            lines.seek(0)
            count = log_format.write(cast(BinaryIO, body), header, (
                item for item in _items(with_lengths) if not item.is_deletion or item.number > oldest))
            size = body.tell()
            body.seek(0)
            self._store.put_file(self._prefix + log_format.base_key(log.number), cast(BinaryIO, body), size)
        return count

    def _present(self) -> set[str]:
        directory = self._prefix + ARCHIVE_DIR
        return {info.key[len(directory):] for page in pages(self._store, directory) for info in page.objects}


def merged(entries: Sequence[Entry]) -> Iterator[MemberRecord]:
    """What a base and the commits after it leave, in the order of paths, deletions among it."""
    streams: list[Iterator[tuple[str, int, MemberRecord]]] = [
        _numbered(entry.header.number, entry) for entry in entries]
    for _, same in itertools.groupby(heapq.merge(*streams, key=operator.itemgetter(0, 1)), key=operator.itemgetter(0)):
        yield _last(same)


def members_of(store: ObjectStore, prefix: str, *, below: str = '') -> Iterator[MemberRecord]:
    """What is in archives of a context now, below a key, in the order of paths."""
    log = ArchiveLog(store, prefix)
    found = log.look()
    for item in merged(since_reset(list(log.read(found)))):
        if item.place is not None and item.record.path.startswith(below):
            yield item


def since_reset(entries: list[Entry]) -> list[Entry]:
    """Without those that a later one makes void."""
    resets = [number for number, entry in enumerate(entries) if entry.header.is_reset]
    return entries[resets[-1]:] if resets else entries


def _numbered(number: int, entry: Entry) -> Iterator[tuple[str, int, MemberRecord]]:
    for item in entry.records:
        yield item.record.path, number, item if not item.is_deletion or item.number else msgspec.structs.replace(item, number=number)


def _last(same: Iterable[tuple[str, int, MemberRecord]]) -> MemberRecord:
    """The last one counts; but what gives a directory's attributes leaves its marker alone."""
    found: MemberRecord | None = None
    for _, _, item in same:
        if found is not None and found.place is not None and item.place is None and not item.is_deletion:
            record = msgspec.structs.replace(item.record, etag=found.record.etag)
            item = msgspec.structs.replace(item, record=record, place=found.place)
        found = item
    assert found is not None
    return found


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(MemberRecord).decode


def _put(file: BinaryIO, item: MemberRecord) -> None:
    data = _encode(item)
    file.write(len(data).to_bytes(4, 'little') + data)


def _items(file: BinaryIO) -> Iterator[MemberRecord]:
    while length := file.read(4):
        yield _decode(file.read(int.from_bytes(length, 'little')))
