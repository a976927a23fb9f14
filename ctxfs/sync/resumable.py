"""What this host notes of large uploads under way: one that was cut short goes on where it was, one that nobody goes on with is thrown away.

Owns the notes (a small file each, in the state directory) and when they are too old. It must not know what is uploaded: a note is of a key, and of a
`content` that says by its hash which bytes, described how. Losing a note costs the upload's parts, which the bucket's own rules expire.
"""
from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ctxfs.config import private_dir
from ctxfs.errors import CtxfsError
from ctxfs.records import UNREADABLE
from ctxfs.storage.object_store import ObjectStore

log = logging.getLogger(__name__)

#: an upload that nobody went on with for so long is thrown away
OLD_SECONDS = 3 * 86400.0
_MOST = 1 << 20


class _Note(msgspec.Struct, frozen=True):
    store: str
    key: str
    content: str
    upload_id: str
    #: number of a part → its etag
    parts: dict[int, str]


class ResumedUpload:
    """One upload as it goes on; the store's `Resume`. Thread-safe as far as the store uses it: one part after the other is noted."""

    def __init__(self, file: Path, *, store: str, key: str, content: str) -> None:
        self._file = file
        self._store, self._key, self._content = store, key, content
        found = _read(file)
        self._note = found if found is not None and (found.store, found.key, found.content) == (store, key, content) else None
        #: of another content of this key: it will not be gone on with
        self.stale = found if self._note is None else None

    @property
    def upload_id(self) -> str:
        """'' where there is nothing to go on with."""
        return self._note.upload_id if self._note is not None else ''

    @property
    def parts(self) -> dict[int, str]:
        return dict(self._note.parts) if self._note is not None else {}

    def begun(self, upload_id: str) -> None:
        self._keep(_Note(self._store, self._key, self._content, upload_id, {}))

    def sent(self, number: int, etag: str) -> None:
        if self._note is not None:
            self._keep(msgspec.structs.replace(self._note, parts={**self._note.parts, number: etag}))

    def over(self) -> None:
        """It is complete, or cannot be gone on with."""
        self._note = None
        with contextlib.suppress(OSError):
            self._file.unlink()

    def _keep(self, note: _Note) -> None:
        self._note = note
        temporary = self._file.with_suffix(f'.{os.getpid()}')
        try:
            private_dir(self._file.parent)
            temporary.write_bytes(msgspec.json.encode(note))
            temporary.replace(self._file)
        except OSError as error:        # a full disk: then it begins anew the next time
            log.info('the upload of %s is not noted: %s', self._key, error)


class UploadNotes:
    """All of one state directory. `directory` is made when there is something to note."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def upload(self, store: ObjectStore, key: str, content: str) -> ResumedUpload:
        """What there is of this content for this key; what there was of another one is thrown away."""
        name = hashlib.sha256(f'{store.url}\0{key}'.encode('utf-8', 'surrogatepass')).hexdigest()[:32]
        found = ResumedUpload(self._directory / f'{name}.json', store=store.url, key=key, content=content)
        if found.stale is not None:
            _abandon(store, found.stale)
            found.over()
        return found

    def tidy(self, store: ObjectStore) -> int:
        """Throw away what nobody went on with for OLD_SECONDS; how many that were."""
        count = 0
        for file, note in self._old():
            if note is None or note.store == store.url:
                if note is not None:
                    _abandon(store, note)
                    count += 1
                with contextlib.suppress(OSError):
                    file.unlink()
        return count

    def _old(self) -> Iterator[tuple[Path, _Note | None]]:
        with contextlib.suppress(OSError):
            for file in sorted(self._directory.iterdir()):
                with contextlib.suppress(OSError):
                    if time.time() - file.stat().st_mtime > OLD_SECONDS:
                        yield file, _read(file)


def _read(file: Path) -> _Note | None:
    try:
        if file.stat().st_size > _MOST:
            return None
        return msgspec.json.decode(file.read_bytes(), type=_Note)
    except (OSError, *UNREADABLE):
        return None


def _abandon(store: ObjectStore, note: _Note) -> None:
    try:
        store.abandon(note.key, note.upload_id)
    except CtxfsError as error:
        log.info('an upload of %s that was cut short is left to the bucket\'s rules: %s', note.key, error)
