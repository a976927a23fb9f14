"""What is under a key in a directory that is used as a bucket: the object in the tree, the one in the odd area, a marker, or nothing.

Owns the lookup order and the answers `ObjectInfo` and condition checks are made from. It must not know how objects get there or go.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from ctxfs.errors import NotFound, RemoteChanged
from ctxfs.records import ObjectInfo
from ctxfs.storage import file_layout as at
from ctxfs.storage.file_walk import Candidate
from ctxfs.storage.object_store import Condition

READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Found(NamedTuple):
    """An object that exists: its name in an open directory (for a marker the directory itself), and what is known of it."""
    directory: int
    name: bytes
    info: ObjectInfo
    version: at.Version
    in_tree: bool

    @property
    def is_marker(self) -> bool:
        return self.name == b'.'


#: how often a file that is replaced while it is looked at is looked at again
_STAT_ATTEMPTS = 10


class Finder:
    """Looks objects up, by key or by candidate. Thread-safe: it has no state of its own."""

    def __init__(self, layout: at.Layout) -> None:
        self._layout = layout

    def examine(self, candidate: Candidate) -> Found | None:
        """What a candidate of the walk is; None where it is no object (a directory that only holds some), or gone meanwhile."""
        raw, directory, name, is_dir = candidate
        if is_dir:
            marker = self._layout.marker(raw, directory)
            return _marker_found(raw, directory, marker) if marker else None
        try:
            st = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return file_found(raw, directory, name, st, None) if at.is_file(st) else None

    @contextlib.contextmanager
    def found(self, raw: bytes) -> Iterator[Found | None]:
        """The object in the tree, or else the one in the odd area, or None; its directory stays open inside the block."""
        with contextlib.ExitStack() as stack:
            yield self._find_in_tree(raw, stack) or self.find_odd(raw, stack)

    def _find_in_tree(self, raw: bytes, stack: contextlib.ExitStack) -> Found | None:
        try:
            names = at.tree_names(raw)
            is_marker = raw.endswith(b'/')
            with at.in_tree():
                directory = at.open_dir(self._layout.root, names if is_marker else names[:-1])
            stack.callback(os.close, directory)
            if not is_marker:
                return self._stat(raw, directory, names[-1], in_tree=True)
        except (at.NotInTree, FileNotFoundError):
            return None
        marker = self._layout.marker(raw, directory)
        return _marker_found(raw, directory, marker) if marker else None

    def find_odd(self, raw: bytes, stack: contextlib.ExitStack) -> Found | None:
        *parents, name = at.odd_names(raw)
        try:
            directory = self._layout.private_dir(b'odd', *parents)
            stack.callback(os.close, directory)
            return self._stat(raw, directory, name, in_tree=False)
        except FileNotFoundError:
            return None

    def _stat(self, raw: bytes, directory: int, name: bytes, *, in_tree: bool) -> Found | None:
        st = os.stat(name, dir_fd=directory, follow_symlinks=False)
        for _ in range(_STAT_ATTEMPTS):
            if not at.is_file(st):
                return None
            sidecar = self._layout.read_sidecar(raw)
            version = sidecar.versions.get(at.file_etag(st)) if sidecar else None
            # A sidecar knows two versions: replaced twice since it was looked at, the file has another one by now.
            before, st = st, st if version else os.stat(name, dir_fd=directory, follow_symlinks=False)
            if at.file_etag(st) == at.file_etag(before):
                break
        return file_found(raw, directory, name, st, version or at.Version(), in_tree=in_tree)

    @contextlib.contextmanager
    def opened(self, raw: bytes, key: str) -> Iterator[tuple[int | None, ObjectInfo]]:
        """A descriptor to read (None for a marker, which is empty) and the description of exactly what it reads."""
        with self.found(raw) as maybe:
            found = existing(maybe, key)
            if found.is_marker:
                yield None, found.info
                return
            try:
                fd = os.open(found.name, READ_FLAGS, dir_fd=found.directory)
            except FileNotFoundError as exc:
                raise missing(key) from exc
            with at.closing_fd(fd):
                st = os.fstat(fd)
                if at.file_etag(st) != found.info.etag:
                    # replaced between stat and open: the new version is as good, but its metadata was not read
                    found = file_found(raw, found.directory, found.name, st, None)
                yield fd, found.info


def existing(found: Found | None, key: str) -> Found:
    if found is None:
        raise missing(key)
    return found


def missing(key: str) -> NotFound:
    return NotFound(f'there is no object {key!r}')


def file_found(raw: bytes, directory: int, name: bytes, st: os.stat_result, version: at.Version | None, *, in_tree: bool = True) -> Found:
    info = ObjectInfo(key=raw.decode('utf-8'), size=st.st_size, etag=at.file_etag(st), mtime_ns=st.st_mtime_ns,
                      metadata=version.metadata if version else None, content_type=version.content_type if version else None)
    return Found(directory, name, info, version or at.Version(), in_tree)


def _marker_found(raw: bytes, directory: int, marker: tuple[str, at.Version]) -> Found:
    etag, version = marker
    info = ObjectInfo(key=raw.decode('utf-8'), size=0, etag=etag, mtime_ns=version.mtime_ns, metadata=version.metadata,
                      content_type=version.content_type)
    return Found(directory, b'.', info, version, True)


def check_etag(info: ObjectInfo, etag: str | None, key: str) -> None:
    if etag is not None and info.etag != etag:
        raise RemoteChanged(f'{key} is no longer the version {etag}')


def check_condition(found: Found | None, condition: Condition, raw: bytes) -> None:
    if condition.absent and found:
        raise RemoteChanged(f'{raw.decode("utf-8")} exists already')
    if condition.etag is not None and (found is None or found.info.etag != condition.etag):
        raise RemoteChanged(f'{raw.decode("utf-8")} is no longer the version {condition.etag}')
