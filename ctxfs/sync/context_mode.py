"""The mode of a context: whether its files are objects, or members of archives; recorded by its first flush, and kept.

Owns the object that says so (`.ctxfs/mode`), and the refusal of the other mode. It must not know what the modes do.

The record is created where there is none before the first byte is written, so of two hosts that begin at once in different modes one is refused.
A context without a record in which there are files is in File mode: what was written before there were records, or by other tools.
"""
from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from ctxfs.errors import CtxfsError, NotFound, RemoteChanged
from ctxfs.records import RESERVED_DIR, UNREADABLE
from ctxfs.storage.object_store import Condition, ObjectStore

if TYPE_CHECKING:      # commands, which only ask for the mode, begin a fifth sooner without it
    from ctxfs.sync.protocol import Operation

MODE_NAME = RESERVED_DIR + 'mode'


class WrongMode(CtxfsError):
    """The context is kept in the other mode."""


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    mode: str
    version: int = 1


class Writers(Protocol):
    """The pool."""

    async def call(self, operation: Operation[Any], **options: Any) -> Any: ...


def encoded(mode: str) -> bytes:
    return msgspec.json.encode(_Record(mode=mode)) + b'\n'


def recorded(store: ObjectStore, prefix: str) -> str:
    """'File' or 'Archive'; '' where no flush has recorded it. Raises what the store raises."""
    try:
        body = store.get(prefix + MODE_NAME)
    except NotFound:
        return ''
    with contextlib.suppress(*UNREADABLE):
        return msgspec.json.decode(body, type=_Record).mode
    return ''


def mode_of(store: ObjectStore, prefix: str) -> str:
    """As `recorded`, or 'File' where there is no record but files; '' for a context that is free to become either."""
    return recorded(store, prefix) or ('File' if has_files(store, prefix) else '')


def has_files(store: ObjectStore, prefix: str) -> bool:
    """Whether anything in the context is not ctxfs's own: two requests at most."""
    first = store.list(prefix, limit=1).objects
    if first and not first[0].key.startswith(prefix + RESERVED_DIR):
        return True
    return bool(first) and bool(store.list(prefix, start_after=f'{prefix}{RESERVED_DIR[:-1]}0', limit=1).objects)


def record(store: ObjectStore, prefix: str, mode: str) -> None:
    """Without a mount. Raises WrongMode where the other mode is recorded."""
    try:
        store.put(prefix + MODE_NAME, encoded(mode), condition=Condition(absent=True))
    except RemoteChanged:
        if (found := recorded(store, prefix)) not in (mode, ''):
            raise WrongMode(refusal(prefix, found, mode)) from None


def refusal(name: str, found: str, wanted: str) -> str:
    """What is wrong, and what to do."""
    return (f'context {name} is kept in {found} mode, and the policy says uploadPolicy.uploadMode "{wanted}"; mount it with "{found}", or make a '
            f'copy in the other mode: ctxfs context copy {name} NEW --create --mode {wanted.lower()}')


class ModeRecorder:
    """Records the mode of one mount's context, once. `is_done`: it is recorded already."""

    def __init__(self, pool: Writers, *, prefix: str, name: str, mode: str, is_done: bool = False) -> None:
        self._pool = pool
        self._prefix = prefix
        self._name = name
        self._mode = mode
        self._is_done = is_done

    async def record(self) -> None:
        """Before anything else is written. Raises WrongMode."""
        if self._is_done:
            return
        from ctxfs.sync.protocol import PutBytes
        try:
            await self._pool.call(PutBytes(key=self._prefix + MODE_NAME, body=encoded(self._mode), condition=Condition(absent=True),
                                           content_type='application/json'))
        except RemoteChanged:
            other = 'File' if self._mode == 'Archive' else 'Archive'
            raise WrongMode(refusal(self._name, other, self._mode)) from None
        self._is_done = True
