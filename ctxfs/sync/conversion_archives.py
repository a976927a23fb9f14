"""Archives and commits of a context that nobody uses yet: for copies into Archive mode.

Owns how files are collected, packed and committed without a mount, one lifecycle an archive. It must not know where they come from. Synchronous.
"""
from __future__ import annotations

import secrets
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from ctxfs.errors import CtxfsError, RemoteChanged, RemoteUnavailable
from ctxfs.records import LIFECYCLE_NAME, Attrs, IndexRecord, ObjectInfo
from ctxfs.storage import archive_log_format as log_format
from ctxfs.storage.archive_log_format import ARCHIVE_DIR, ArchiveInfo, LogHeader, MemberRecord
from ctxfs.storage.object_store import ObjectStore
from ctxfs.sync import packing
from ctxfs.sync.archive_log import ArchiveLog
from ctxfs.sync.archive_plan import ARCHIVE_BYTES, ARCHIVE_ITEMS
from ctxfs.sync.archive_protocol import PackItem, PartRef
from ctxfs.sync.context_members import ContextMembers

THREADS = 16
#: contents fetched ahead of the packing
_AHEAD = 32
_LINES = 50_000


class Packable(NamedTuple):
    """A file of the source (`info`, by its full key), and what is to be said of it. `shadows`: the object whose place it takes."""
    key: str
    info: ObjectInfo
    attrs: Attrs
    link: str
    lifecycle: str
    shadows: str


class Archives:
    """See the module docstring. `members`: of the same context, looked at before. Raises what the store raises."""

    def __init__(self, store: ObjectStore, prefix: str, *, members: ContextMembers, host: str) -> None:
        self._store = store
        self._prefix = prefix
        self._members = members
        self._host = host
        self._log = ArchiveLog(store, prefix)
        self._waiting: list[Packable] = []
        self._size = 0
        self._retold: list[MemberRecord] = []

    def add(self, item: Packable) -> None:
        self._waiting.append(item)
        self._size += item.info.size

    def retell(self, member: MemberRecord, attrs: Attrs, link: str) -> None:
        """The member is the same, but for what is said of it."""
        if (member.record.attrs, member.record.link) != (attrs, link):
            record = msgspec.structs.replace(member.record, attrs=attrs, link=link, changed_ns=time.time_ns())
            self._retold.append(msgspec.structs.replace(member, record=record))

    @property
    def is_full(self) -> bool:
        return self._size >= ARCHIVE_BYTES or len(self._waiting) >= ARCHIVE_ITEMS

    def take(self) -> list[Packable]:
        """All that waits."""
        waiting, self._waiting, self._size = self._waiting, [], 0
        return waiting

    def commit(self, items: Sequence[Packable], source: ObjectStore) -> dict[str, str]:
        """Make members of them, by one commit; key → etag of those that did not change meanwhile."""
        retold, self._retold = self._retold, []
        archives: list[ArchiveInfo] = []
        records: list[MemberRecord] = list(retold)
        by_lifecycle = sorted(items, key=lambda item: (item.lifecycle, item.key))
        with tempfile.TemporaryDirectory(prefix='ctxfs-copy-') as scratch:
            for lifecycle, group in groupby(by_lifecycle, key=lambda item: item.lifecycle):
                info, found = self._archive(list(group), lifecycle, source, Path(scratch))
                if found:
                    archives.append(info)
                    records += found
        if records:
            self._commit(archives, records)
        return {item.record.path: item.record.etag for item in records[len(retold):]}

    def _archive(self, items: list[Packable], lifecycle: str, source: ObjectStore, scratch: Path) -> tuple[ArchiveInfo, list[MemberRecord]]:
        part = str(scratch / secrets.token_hex(8))
        with _Fetched(source, items) as contents:
            packed, _ = packing.pack(part, [_item(item) for item in items], source=contents.content, lifecycle=lifecycle, changed_ns=time.time_ns())
        for result in packed:
            error = None if result.failure is None else result.failure.error()
            if error is not None and result.failure is not None and result.failure.name not in ('NotFound', 'RemoteChanged'):
                raise error
        name = log_format.archive_name(self._log.look().number + 1, host=self._host, created_ns=time.time_ns())
        ref = PartRef(path=part)
        found = list(packing.records_of(ref, name))
        if not found:
            return ArchiveInfo(name), []
        named = {LIFECYCLE_NAME: lifecycle} if lifecycle else None
        with packing.completed(ref, ()) as file:
            size = file.seek(0, 2)
            file.seek(0)
            self._store.put_file(f'{self._prefix}{ARCHIVE_DIR}{name}', file, size, content_type='application/zip', metadata=named, tags=named)
        packing.remove(part)
        return ArchiveInfo(name, size, lifecycle), found

    def tell_directories(self, directories: Mapping[str, Attrs]) -> None:
        """What is said of directories that are no members themselves; and what waits to be told."""
        now_ns = time.time_ns()
        lines = iter([*self._retold, *(MemberRecord(IndexRecord(path=path, changed_ns=now_ns, attrs=attrs)) for path, attrs in directories.items()
                                       if self._members.get(path) is None)])
        self._retold = []
        while batch := list(islice(lines, _LINES)):
            self._commit([], batch)

    def _commit(self, archives: list[ArchiveInfo], records: list[MemberRecord]) -> None:
        mentioned = {item.place.archive for item in records if item.place is not None}
        known = [self._known(name) for name in sorted(mentioned.difference(info.name for info in archives))]
        header = LogHeader(kind='commit', number=self._log.look().number + 1, nonce=secrets.token_hex(8), host=self._host,
                           created_ns=time.time_ns(), archives=[*archives, *known])
        try:
            self._log.commit(header, records)
        except RemoteChanged:
            raise RemoteUnavailable('somebody else writes to the context; wait until that is done, and copy it once more') from None
        self._members.look()

    def _known(self, name: str) -> ArchiveInfo:
        info = self._store.head(f'{self._prefix}{ARCHIVE_DIR}{name}')
        return ArchiveInfo(name, info.size, (info.metadata or {}).get(LIFECYCLE_NAME, ''))


def _item(item: Packable) -> PackItem:
    kind = stat.S_IFMT(item.attrs.mode)
    if kind in (stat.S_IFLNK, stat.S_IFDIR):
        return PackItem(key=item.key, attrs=item.attrs, size=item.info.size, body=item.attrs.target or b'', link=item.link, shadows=item.shadows)
    return PackItem(key=item.key, attrs=item.attrs, size=item.info.size, source_key=item.info.key, source_etag=item.info.etag, link=item.link,
                    shadows=item.shadows)


class _Fetched:
    """Contents, fetched side by side in the order in which they are asked for."""

    def __init__(self, store: ObjectStore, items: Sequence[Packable]) -> None:
        self._store = store
        self._left: Iterator[Packable] = (item for item in items if stat.S_ISREG(item.attrs.mode))
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix='ctxfs-copy')
        self._running: dict[str, Future[bytes]] = {}

    def __enter__(self) -> _Fetched:
        self._fill()
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self) -> None:
        for item in islice(self._left, _AHEAD - len(self._running)):
            self._running[item.info.key] = self._pool.submit(self._store.get, item.info.key, if_match=item.info.etag)

    def content(self, item: PackItem) -> bytes:
        future = self._running.pop(item.source_key, None)
        if future is None:
            raise CtxfsError(f'{item.key} is asked for out of order')
        self._fill()
        return future.result()
