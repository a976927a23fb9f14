"""Notes of a copy of a context: which version of the target is a copy of which version of the source, where their etags do not say it.

Owns the objects below `.ctxfs/copy/` of the target. It must not know what is copied. Thread-safe. What is not noted when a copy is cut short is
copied once more.
"""
from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import msgspec

from ctxfs.records import RESERVED_DIR, UNREADABLE
from ctxfs.storage.listing import pages
from ctxfs.storage.object_store import ObjectStore

COPY_DIR = RESERVED_DIR + 'copy/'
_BATCH = 1000


class Note(msgspec.Struct, frozen=True, array_like=True):
    """`key` of the target is, as `etag`, a copy of the version `source` of the source."""
    key: str
    source: str
    etag: str


class CopyNotes:
    """Of the target whose keys start with `prefix`. Raises what the store raises."""

    def __init__(self, store: ObjectStore, prefix: str, *, host: str) -> None:
        self._store = store
        self._prefix = prefix
        self._host = host
        self._notes = {note.key: note for note in self._read()}
        self._new: list[Note] = []
        self._lock = threading.Lock()

    def _read(self) -> Iterator[Note]:
        for page in pages(self._store, self._prefix + COPY_DIR):
            for info in page.objects:
                try:
                    yield from msgspec.json.decode(self._store.get(info.key), type=list[Note])
                except UNREADABLE:      # what it was about is copied once more
                    continue

    def get(self, key: str) -> Note | None:
        return self._notes.get(key)

    def is_copy(self, key: str, source: str, etag: str) -> bool:
        note = self._notes.get(key)
        return note is not None and (note.source, note.etag) == (source, etag)

    def add(self, key: str, source: str, etag: str) -> None:
        note = Note(key, source, etag)
        with self._lock:
            self._notes[key] = note
            self._new.append(note)

    def store(self, *, most: int = _BATCH) -> None:
        """Those that are new, where there are as many as `most`."""
        with self._lock:
            if len(self._new) < max(most, 1):
                return
            notes, self._new = self._new, []
        self._store.put(f'{self._prefix}{COPY_DIR}{time.time_ns():020}-{self._host}', msgspec.json.encode(notes))
