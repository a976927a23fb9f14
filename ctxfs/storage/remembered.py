"""What stores were found to be able to do, remembered on this host, so that it is asked once and not by every mount.

Owns the files below `stores/` in the state root: their names, their format, and when they are out of date. It must not know how anything is
asked, nor what an answer means. Losing a file costs some requests, and so does one that is damaged, of another version, or too old.

    stores/<store>/<prefix>.json    both hashed; one file for each prefix that was asked about, because rights may differ
    stores/<store>/<name>.id        the same; the id of the context that is mounted by that name

Any number of processes read and write: a file appears whole, and whoever writes last knows as much as the others.
"""
from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from ctxfs.config import private_dir, store_identity
from ctxfs.errors import CtxfsError
from ctxfs.records import UNREADABLE
from ctxfs.storage.object_store import PROBE_VERSION, UNKNOWN, Capabilities

log = logging.getLogger(__name__)

EXPIRY_SECONDS = 7 * 86_400.0
#: a clock that was set back a little is no reason to ask again
_FUTURE_SECONDS = 3_600.0
DIRECTORY = 'stores'


class Answer(msgspec.Struct, frozen=True, kw_only=True, rename='camel', forbid_unknown_fields=True):
    """One file: `capabilities` for keys below `prefix` of `store`, asked at that time (Unix seconds)."""
    version: int
    store: str
    prefix: str
    asked_at: float
    capabilities: Capabilities


class Remembered:
    """What is remembered of one store for keys below one prefix. `clock`: Unix seconds."""

    def __init__(self, state_root: Path, store_url: str, prefix: str, *, clock: Callable[[], float] = time.time) -> None:
        self._store = _identity(store_url)
        self._prefix = prefix
        self._root = state_root / DIRECTORY
        self._directory = self._root / _hash(self._store)
        self._file = self._directory / f'{_hash(prefix)}.json'
        self._clock = clock

    def find(self) -> Answer | None:
        """The answer for this prefix; else the newest of another one that was not given for want of rights."""
        _make_private(self._root, self._directory)
        own = self._load(self._file)
        if own is not None and own.prefix == self._prefix:
            return own
        others = [answer for answer in self._all() if not answer.capabilities.is_limited]
        return max(others, key=lambda answer: answer.asked_at, default=None)

    def recall(self) -> Capabilities | None:
        answer = self.find()
        return answer.capabilities if answer is not None else None

    def keep(self, capabilities: Capabilities) -> None:
        """Never raises: what cannot be kept is asked again."""
        if capabilities == UNKNOWN:
            return
        answer = Answer(version=PROBE_VERSION, store=self._store, prefix=self._prefix, asked_at=self._clock(), capabilities=capabilities)
        try:
            private_dir(self._root), private_dir(self._directory)
            self._tidy()
            _publish(self._file, msgspec.json.encode(answer), answer.asked_at)
        except (CtxfsError, OSError) as exc:
            log.info('what the store can do is not remembered: %s', exc)

    def forget(self) -> None:
        """The store is not what it was: no answer of it counts any more, for whatever prefix."""
        for file in self._files():
            with contextlib.suppress(OSError):
                file.unlink()

    def _tidy(self) -> None:
        """Of contexts and stores that nobody asks about any more nothing is kept, nor what a kill has left of a file."""
        for file in self._root.glob('*/*'):
            with contextlib.suppress(OSError):
                if self._clock() - file.stat().st_mtime > EXPIRY_SECONDS:
                    file.unlink()

    def _all(self) -> Iterator[Answer]:
        for file in self._files():
            answer = self._load(file)
            if answer is not None:
                yield answer

    def _files(self) -> list[Path]:
        try:
            return sorted(self._directory.glob('*.json'))
        except OSError:
            return []

    def _load(self, file: Path) -> Answer | None:
        try:
            answer = msgspec.json.decode(file.read_bytes(), type=Answer)
        except (OSError, msgspec.DecodeError, RecursionError):
            return None
        age = self._clock() - answer.asked_at
        is_good = answer.version == PROBE_VERSION and answer.store == self._store and -_FUTURE_SECONDS <= age <= EXPIRY_SECONDS
        return answer if is_good else None


def _make_private(root: Path, directory: Path) -> None:
    """What is remembered of a store, and was laxer before, is mended."""
    try:
        if directory.is_dir():
            private_dir(root), private_dir(directory)
        for file in directory.glob('*.*'):
            if file.stat().st_mode & 0o077:
                file.chmod(0o600)
    except (CtxfsError, OSError) as error:
        log.info('what is remembered of the store may be read by others: %s', error)


class _Id(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    store: str
    reference: str
    id: str


class RememberedId:
    """The id of the context that a name, or the id itself, led to when this host used it last: where to look first, no more."""

    def __init__(self, state_root: Path, store_url: str, reference: str) -> None:
        self._root, self._store, self._reference = state_root / DIRECTORY, _identity(store_url), reference
        self._file = self._root / _hash(self._store) / f'{_hash(reference)}.id'

    def find(self) -> str:
        """'' when nothing is known."""
        _make_private(self._root, self._file.parent)
        try:
            found = msgspec.json.decode(self._file.read_bytes(), type=_Id)
        except (OSError, *UNREADABLE):
            return ''
        return found.id if (found.store, found.reference) == (self._store, self._reference) else ''

    def keep(self, context_id: str) -> None:
        """Never raises."""
        if self.find() == context_id:
            return
        try:
            private_dir(self._root.parent), private_dir(self._root), private_dir(self._file.parent)
            _publish(self._file, msgspec.json.encode(_Id(store=self._store, reference=self._reference, id=context_id)), time.time())
        except (CtxfsError, OSError, *UNREADABLE) as exc:
            log.info('the id of the context is not remembered: %s', exc)


def _identity(store_url: str) -> str:
    """The endpoint that the environment names counts here, though not for the name of a journal."""
    identity = store_identity(store_url)
    if identity.endswith('@'):
        identity += os.environ.get('AWS_ENDPOINT_URL_S3') or os.environ.get('AWS_ENDPOINT_URL') or ''
    return identity


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:16]


def _publish(file: Path, data: bytes, at_s: float) -> None:
    temporary = file.with_name(f'.{file.name}.{os.getpid()}.{secrets.token_hex(4)}')
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), 'wb') as opened:
            opened.write(data)
        os.utime(temporary, (at_s, at_s))       # by which it is too old one day, without being read
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
