"""Listings of a directory that is used as a bucket: its keys in UTF-8 byte order, from any key on, without walking what lies before it.

Owns the order, the seeking, and what a page and its token are. It must not know conditions or sidecars: it yields candidates
(`file_find` decides which directory is a marker), and knows of the layout only where the tree and the odd area begin.

The order of keys is not the order of names: `a.txt` < `a/b` < `a0`. Sorting each directory with its subdirectories' names ended by a slash
gives exactly the order of the keys below it, so a walk in that order needs no more than one directory per level in memory.
"""
from __future__ import annotations

import bisect
import contextlib
import heapq
import logging
import os
import threading
import time
from collections.abc import Generator, Iterator
from typing import NamedTuple

from ctxfs.errors import InvalidArgument
from ctxfs.records import ListPage, ObjectInfo
from ctxfs.storage.file_layout import ODD_CHUNK, PRIVATE, Layout, NotInTree, open_dir, tree_names
from ctxfs.storage.keys import KEY_MAX

log = logging.getLogger(__name__)

#: directories with fewer names are read again for each page: that is cheaper than it is to remember them
_REMEMBER_FROM = 2000
_REMEMBER = 8
#: a directory changed within this time before it was read may change again without a new mtime (the clock tick of the file system)
_SETTLED_NS = 100_000_000


class Candidate(NamedTuple):
    """A key that lies here: `name` in the open `directory`, valid until the walk is advanced."""
    raw: bytes
    directory: int
    name: bytes
    is_dir: bool


class _Frame(NamedTuple):
    directory: int
    base: bytes
    names: Iterator[bytes]


class Walker:
    """Thread-safe. Remembers the sorted names of a few huge directories, while their mtime shows that they did not change."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._remembered: dict[tuple[int, int, bytes], tuple[int, list[bytes]]] = {}

    @contextlib.contextmanager
    def walk(self, prefix: bytes, lower: bytes) -> Iterator[Iterator[Candidate]]:
        """The candidates with `prefix` from the key `lower` on; one key may come twice, the one in the tree first."""
        lower = max(prefix, lower)
        tree, odd = self._tree(prefix, lower), self._odd(lower)
        with contextlib.closing(tree), contextlib.closing(odd):
            yield heapq.merge(_while_prefixed(tree, prefix), _while_prefixed(odd, prefix), key=lambda candidate: candidate.raw)

    def _tree(self, prefix: bytes, lower: bytes) -> Generator[Candidate, None, None]:
        base = prefix[:prefix.rfind(b'/') + 1]
        try:
            directory = open_dir(self._layout.root, tree_names(base) if base else [])
        except (OSError, NotInTree):
            # not there, not a directory, a symlink: no key below it is in the tree
            return
        frames = [_Frame(directory, base, iter(()))]
        try:
            if base and base == prefix and base >= lower:
                yield Candidate(base, directory, b'.', True)
            frames[0] = _Frame(directory, base, self._names_from(directory, base, lower, b'/'))
            yield from self._descend(frames, lower, b'/')
        finally:
            for frame in frames:
                os.close(frame.directory)

    def _odd(self, lower: bytes) -> Generator[Candidate, None, None]:
        try:
            directory = self._layout.private_dir(b'odd')
        except FileNotFoundError:
            return
        digits = lower.hex().encode()
        frames = [_Frame(directory, b'', iter(()))]
        try:
            frames[0] = _Frame(directory, b'', self._names_from(directory, b'', digits, b''))
            for found in self._descend(frames, digits, b''):
                if not found.is_dir:
                    yield found._replace(raw=bytes.fromhex(found.raw[:-1].decode()))
        finally:
            for frame in frames:
                os.close(frame.directory)

    def _descend(self, frames: list[_Frame], lower: bytes, slash: bytes) -> Iterator[Candidate]:
        """Depth first from the frame given. The stack is explicit: a key may have 500 levels. The caller closes what is left on it."""
        while frames:
            directory, base, names = frames[-1]
            name = next(names, None)
            if name is None:
                os.close(frames.pop().directory)
                continue
            raw = base + name
            if not _is_dir_name(name, slash):
                yield Candidate(raw, directory, name, False)
                continue
            try:
                child = open_dir(directory, [name.rstrip(b'/')])
            except OSError:
                # gone since it was read, or not ours to read: a listing shows what it can see
                continue
            frames.append(_Frame(child, raw, iter(())))
            if raw >= lower:
                yield Candidate(raw, child, b'.', True)
            frames[-1] = _Frame(child, raw, self._names_from(child, raw, lower, slash))

    def _names_from(self, directory: int, base: bytes, lower: bytes, slash: bytes) -> Iterator[bytes]:
        names = self._names(directory, base, slash)
        if not lower.startswith(base):
            return iter(names if base > lower else ())
        rest = lower[len(base):]
        at = bisect.bisect_left(names, rest)
        # a directory whose name begins `rest` sorts right before it and may hold keys that do not
        if at and _is_dir_name(names[at - 1], slash) and rest.startswith(names[at - 1]):
            at -= 1
        return iter(names[at:]) if at else iter(names)

    def _names(self, directory: int, base: bytes, slash: bytes) -> list[bytes]:
        st = os.fstat(directory)
        place = (st.st_dev, st.st_ino, slash)
        with self._lock:
            mtime_ns, names = self._remembered.get(place, (-1, []))
        if mtime_ns == st.st_mtime_ns:
            return names
        read_at_ns = time.time_ns()
        names = _read_names(directory, base, slash)
        if len(names) >= _REMEMBER_FROM and read_at_ns - st.st_mtime_ns > _SETTLED_NS:
            with self._lock:
                self._remembered.pop(place, None)
                while len(self._remembered) >= _REMEMBER:
                    del self._remembered[next(iter(self._remembered))]
                self._remembered[place] = (st.st_mtime_ns, names)
        return names


class Page:
    """A page being filled: objects and common prefixes in one order, and where the walk goes on."""

    def __init__(self, prefix: bytes, delimiter: bytes, limit: int) -> None:
        self.prefix = prefix
        self.lower = b''
        self.is_truncated = False
        self._delimiter = delimiter
        self._limit = limit
        self._objects: list[ObjectInfo] = []
        self._prefixes: list[str] = []

    def is_full(self) -> bool:
        return len(self._objects) + len(self._prefixes) >= self._limit

    def add(self, raw: bytes, info: ObjectInfo) -> bool:
        """True when `raw` went into a common prefix: the walk goes on behind all keys that begin with it."""
        cut = raw.find(self._delimiter, len(self.prefix)) if self._delimiter else -1
        if cut < 0:
            self._objects.append(info)
            self.lower = after(raw)
            return False
        common = raw[:cut + len(self._delimiter)]
        self._prefixes.append(common.decode('utf-8'))
        self.lower = _behind(common)
        return True

    def result(self) -> ListPage:
        return ListPage(objects=self._objects, prefixes=self._prefixes, next_token=self.lower.hex() if self.is_truncated else None)


def after(raw: bytes) -> bytes:
    return raw + b'\0'


def _behind(prefix: bytes) -> bytes:
    """The least key above all that begin with `prefix`: no byte of UTF-8 is 0xff, so its last one can be raised."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def from_token(token: str) -> bytes:
    try:
        return bytes.fromhex(token)
    except ValueError as exc:
        raise InvalidArgument(f'{token!r} is no listing token of this store') from exc


def _read_names(directory: int, base: bytes, slash: bytes) -> list[bytes]:
    names = []
    with os.scandir(directory) as entries:
        for entry in entries:
            # scandir of a descriptor gives str; fsencode restores the bytes
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                if base or name != PRIVATE:
                    names.append(name + slash)
            elif entry.is_file(follow_symlinks=False) and (not slash or _is_key(base + name)):
                names.append(name)
    names.sort()
    return names


def _is_key(raw: bytes) -> bool:
    """Whether a file that somebody put here can be an object; one that cannot is reported, since nobody will ever see it in a mount."""
    try:
        raw.decode('utf-8')
    except UnicodeDecodeError:
        log.warning('not in the bucket: the name of the file %r is not UTF-8', raw)
        return False
    if len(raw) > KEY_MAX:
        log.warning('not in the bucket: the path of the file %r… is longer than the %d bytes of a key', raw[:60], KEY_MAX)
        return False
    return True


def _is_dir_name(name: bytes, slash: bytes) -> bool:
    return name.endswith(slash) if slash else len(name) == ODD_CHUNK


def _while_prefixed(candidates: Iterator[Candidate], prefix: bytes) -> Iterator[Candidate]:
    for candidate in candidates:
        if candidate.raw.startswith(prefix):
            yield candidate
        elif candidate.raw > prefix:
            return
