"""The members of a context in Archive mode without a mount: what is in archives now, their content, and their removal.

Owns the state that the archive log leaves, kept up to date with one request at each look, and commits that only delete. It must not know paths as
people write them, nor objects. Synchronous, thread-safe. Holds a record of each member in memory.
"""
from __future__ import annotations

import bisect
import io
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, cast

import msgspec

from ctxfs.errors import RemoteChanged, RemoteUnavailable
from ctxfs.records import IndexRecord, ObjectInfo
from ctxfs.storage import archive_log_format as log_format
from ctxfs.storage.archive_log_format import ARCHIVE_DIR, ArchiveInfo, LogHeader, MemberRecord
from ctxfs.storage.object_store import ObjectStore
from ctxfs.sync import packing
from ctxfs.sync.archive_log import ArchiveLog, Entry
from ctxfs.sync.context_mode import recorded
from ctxfs.sync.member_content import member_content

_ATTEMPTS = 20


class ContextMembers:
    """See the module docstring. Raises what the store raises."""

    def __init__(self, store: ObjectStore, prefix: str, *, host: str) -> None:
        self._store = store
        self._prefix = prefix
        self._host = host
        self._log = ArchiveLog(store, prefix)
        self._lock = threading.Lock()
        self._is_archived: bool | None = None
        self._number = 0
        self._members: dict[str, MemberRecord] = {}
        self._sorted: list[str] = []
        #: what the log says of directories that are no members
        self.directories: dict[str, IndexRecord] = {}

    @property
    def is_archived(self) -> bool:
        """Whether the context is in Archive mode: asked once."""
        if self._is_archived is None:
            self._is_archived = recorded(self._store, self._prefix) == 'Archive'
        return self._is_archived

    # --- looking --------------------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Follow the log; nothing for a context in File mode."""
        if not self.is_archived:
            return
        with self._lock:
            self._look()

    def _look(self) -> None:
        log = self._log.look(self._number)
        is_new = False
        for entry in self._log.read(log, self._number):
            self._apply(entry)
            is_new = True
        if is_new:
            self._sorted = sorted(self._members)

    def _apply(self, entry: Entry) -> None:
        if entry.header.kind == 'base' or entry.header.is_reset:
            self._members.clear()
            self.directories.clear()
        for item in entry.records:
            path = item.record.path
            if item.place is not None:
                self._members[path] = item
            elif item.is_deletion:
                self._members.pop(path, None)
                self.directories.pop(path, None)
            else:
                self.directories[path] = item.record
        self._number = entry.header.number

    def get(self, key: str) -> MemberRecord | None:
        return self._members.get(key)

    def below(self, key: str) -> Iterator[MemberRecord]:
        """All whose keys start so, in their order, as of the last look."""
        keys = self._sorted
        for at in range(bisect.bisect_left(keys, key), len(keys)):
            if not keys[at].startswith(key):
                return
            if (item := self._members.get(keys[at])) is not None:
                yield item

    def has_below(self, key: str) -> bool:
        return next(self.below(key), None) is not None

    def info(self, item: MemberRecord) -> ObjectInfo:
        """As a listing would show it."""
        record = item.record
        return ObjectInfo(key=self._prefix + record.path, size=record.size, etag=record.etag, mtime_ns=record.changed_ns)

    def content(self, item: MemberRecord) -> bytes:
        """Raises RemoteChanged where it moved meanwhile, WrongBytes."""
        place = item.place
        assert place is not None
        at = msgspec.structs.replace(place, archive=f'{self._prefix}{ARCHIVE_DIR}{place.archive}')
        return member_content(self._store, at, etag=item.record.etag, size=item.record.size)

    # --- changing -------------------------------------------------------------------------------------------------------------------

    def delete(self, keys: Sequence[str], *, known: Mapping[str, str] | None = None) -> list[str]:
        """Those of the keys that are members, by one commit; which they were. `known`: only those that still have the etags in it."""
        if not self.is_archived:
            return []
        with self._lock:
            for _ in range(_ATTEMPTS):
                self._look()
                gone = [key for key in keys if (item := self._members.get(key)) is not None and (known is None or known.get(key) == item.record.etag)]
                if not gone or self._commit([*gone, *self._emptied(gone)]):
                    return gone
        raise RemoteUnavailable('hosts commit to the context without a pause; try again')

    def _emptied(self, gone: list[str]) -> list[str]:
        """Directories that went with these although they were no members themselves: whoever unpacks archives has made them."""
        left, above = set(gone), set()
        for key in gone:
            while (key := key.rstrip('/').rpartition('/')[0]) and key + '/' not in above:
                above.add(key + '/')
        return [key for key in above if key not in left and all(item.record.path in left for item in self.below(key))]

    def clear(self) -> bool:
        """All of them: the log begins anew. Whether there was anything."""
        if not self.is_archived:
            return False
        with self._lock:
            for _ in range(_ATTEMPTS):
                self._look()
                if not self._members or self._commit([], is_reset=True):
                    return bool(self._members)
        raise RemoteUnavailable('hosts commit to the context without a pause; try again')

    def _commit(self, gone: list[str], *, is_reset: bool = False) -> bool:
        """False: another host had the number."""
        now_ns = time.time_ns()
        archives = [] if is_reset else [self._tell_deleted(gone, now_ns)]
        header = LogHeader(kind='commit', number=self._number + 1, nonce=secrets.token_hex(8), host=self._host, created_ns=now_ns, archives=archives,
                           is_reset=is_reset)
        try:
            self._log.commit(header, [MemberRecord(IndexRecord(path=key, changed_ns=now_ns)) for key in gone])
        except RemoteChanged:
            for info in archives:
                self._store.delete(f'{self._prefix}{ARCHIVE_DIR}{info.name}')
            return False
        return True

    def _tell_deleted(self, gone: list[str], now_ns: int) -> ArchiveInfo:
        """An archive that says so, for who reads only archives."""
        body = io.BytesIO()
        packing.deletions_only(cast(BinaryIO, body), gone)
        name = log_format.archive_name(self._number + 1, host=self._host, created_ns=now_ns)
        self._store.put(f'{self._prefix}{ARCHIVE_DIR}{name}', body.getvalue(), content_type='application/zip')
        return ArchiveInfo(name, len(body.getvalue()))
