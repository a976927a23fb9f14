"""What the tree database says of keys: whether each name has its object or is pending, and whether the bucket has what is known of it.

Owns these two comparisons. It must not know the staging files, and changes nothing.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from ctxfs.records import RESERVED_DIR, ROOT_INO
from ctxfs.rules import Rules
from ctxfs.storage.consistency_rules import Problem, Severity, several
from ctxfs.storage.file_layout import is_found_marker
from ctxfs.storage.inode import Reason
from ctxfs.storage.keys import name_to_component, printable
from ctxfs.storage.object_store import ObjectStore

#: rows read at a time
SLICE = 2_000
#: (etag, doomed) of an object as it is known
_Row = tuple[str, int]


class Rows(Protocol):
    """A tree database: whoever has a connection to it."""

    def rows(self, sql: str, args: Iterable[Any] = ()) -> list[Any]: ...


class _Place(NamedTuple):
    """A directory's key, None where its names lead to no root; and whether it, or one above it, moved, and the journal has not got all that
    is below it yet."""
    key: str | None
    is_moving: bool


class _Places:
    """Where directories are, each found once. Any depth: keys bound it for what is synced only."""

    def __init__(self, reader: Rows) -> None:
        self._reader = reader
        self._moving = {row[0] for row in reader.rows('SELECT ino FROM pending WHERE reason & ?', (Reason.SUBTREE,))}
        self._found: dict[int, _Place] = {ROOT_INO: _Place('', ROOT_INO in self._moving)}

    def of(self, directory: int) -> _Place:
        below: dict[int, bytes] = {}
        while directory not in self._found and directory not in below:
            above = self._reader.rows('SELECT parent, name FROM dentry WHERE ino = ? LIMIT 1', (directory,))
            below[directory] = above[0][1] if above else b''
            directory = above[0][0] if above else 0
        place = self._found.get(directory, _Place(None, False))
        for ino, name in reversed(below.items()):
            key = None if place.key is None else f'{place.key}{name_to_component(name)}/'
            place = self._found[ino] = _Place(key, place.is_moving or ino in self._moving)
        return place

    def is_at(self, key: str, parent: int, name: bytes) -> bool:
        """Whether that entry's key is `key`, or may be."""
        place = self.of(parent)
        return place.key is None or place.is_moving or place.key + name_to_component(name) == key


def check_names(reader: Rows, rules: Rules | None) -> Iterator[Problem]:
    """Each name that the bucket should have has an object with the content, or something says that it is still to come; and no object has
    a key that is not its file's. `rules` None: which names these are is being found out."""
    if rules is None:
        return
    yield from several(Severity.WRONG, 'journal', [
        f'{printable(key)} (inode {ino}) has no object with its content, and the journal does not say that one is to come'
        for ino, key in unexplained_names(reader, rules)])
    yield from several(Severity.WRONG, 'journal', [
        f'object {printable(key)} is inode {ino}\'s, whose name is another, and the journal does not say that it moved'
        for key, ino in unexplained_objects(reader)])


def unexplained_names(reader: Rows, rules: Rules | None) -> list[tuple[int, str]]:
    """(inode, key) of synced names (all, where `rules` is None) that have no object with the content, and nothing is pending of."""
    places = _Places(reader)
    found = []
    for ino, parent, name in _settled_files(reader):
        place = places.of(parent)
        if place.key is None or place.is_moving:
            continue
        key = place.key + name_to_component(name)
        if (rules is None or rules.gate.is_synced(key)) and not reader.rows(
                'SELECT 1 FROM object o JOIN inode i ON i.ino = o.ino WHERE key = ? AND o.ino = ? AND o.revision IN (0, i.revision)', (key, ino)):
            found.append((ino, key))
    return found


def unexplained_objects(reader: Rows) -> list[tuple[str, int]]:
    """(key, inode) of objects that are not at any name of their inode, of which nothing is pending."""
    places = _Places(reader)
    return [(key, ino) for key, ino in _settled_objects(reader) if not _is_named(reader, places, key, ino)]


def _settled_files(reader: Rows) -> Iterator[tuple[int, int, bytes]]:
    """(inode, parent, name) of what the bucket should have and nothing is pending of."""
    after = 0
    while rows := reader.rows('SELECT ino FROM inode WHERE ino > ? ORDER BY ino LIMIT ?', (after, SLICE)):
        yield from reader.rows(
            'SELECT i.ino, d.parent, d.name FROM inode i JOIN dentry d ON d.ino = i.ino WHERE i.ino > ? AND i.ino <= ? AND NOT local '
            'AND (mode & 61440) <> 16384 AND NOT EXISTS (SELECT 1 FROM pending p WHERE p.ino = i.ino AND p.reason <> ?)',
            (after, rows[-1][0], Reason.INDEX))
        after = rows[-1][0]


def _settled_objects(reader: Rows) -> Iterator[tuple[str, int]]:
    after = ''
    while rows := reader.rows('SELECT key, ino, doomed FROM object WHERE key > ? ORDER BY key LIMIT ?', (after, SLICE)):
        after = rows[-1][0]
        for key, ino, doomed in rows:
            if not doomed and not reader.rows('SELECT 1 FROM pending WHERE ino = ? AND reason <> ?', (ino, Reason.INDEX)):
                yield key, ino


def _is_named(reader: Rows, places: _Places, key: str, ino: int) -> bool:
    """Whether the key is one of the inode's, or may be; an inode without names is another check's."""
    if key.endswith('/'):
        place = places.of(ino)
        return place.key in (None, key) or place.is_moving
    names = reader.rows('SELECT parent, name FROM dentry WHERE ino = ?', (ino,))
    return not names or any(places.is_at(key, parent, name) for parent, name in names)


# --- the bucket --------------------------------------------------------------------------------------------------------------------

def check_bucket(reader: Rows, there: Iterator[tuple[str, str]]) -> Iterator[Problem]:
    """What is known of objects beside a listing of all, (key, etag), both in the order of their keys. Whatever differs, the next mount notices.
    Raises what the store raises."""
    texts: dict[str, list[str]] = {'gone': [], 'other': [], 'new': []}
    for key, etag, known in _beside(there, _known(reader)):
        if reader.rows('SELECT 1 FROM attempt WHERE key = ? UNION SELECT 1 FROM unmountable WHERE key = ?', (key, key)):
            continue    # nobody claims to know
        if known is None:
            texts['new'] += [] if key.startswith(RESERVED_DIR) else [f'object {printable(key)} is not known here']
        elif etag is None:
            if not known[1] and not _is_no_marker_now(reader, key, known[0]):
                texts['gone'].append(f'object {printable(key)} is not in the bucket any more')
        elif etag != known[0]:
            texts['other'].append(f'object {printable(key)} is version {etag}, and {known[0]} is known here')
    for found in texts.values():
        yield from several(Severity.NOTE, 'bucket', found)


def _is_no_marker_now(reader: Rows, key: str, etag: str) -> bool:
    """An empty directory of a file:// store that was listed (a writer that died had just made it), and has got something in it since."""
    return is_found_marker(etag) and bool(reader.rows('SELECT 1 FROM object WHERE key > ? AND key < ? LIMIT 1', (key, key[:-1] + '0')))


def _known(reader: Rows) -> Iterator[tuple[str, _Row]]:
    """What the tree database knows, by key."""
    after = ''
    while rows := reader.rows('SELECT key, etag, doomed FROM object WHERE key > ? ORDER BY key LIMIT ?', (after, SLICE)):
        after = rows[-1][0]
        yield from ((key, (etag, doomed)) for key, etag, doomed in rows)


def _beside(listed: Iterator[tuple[str, str]], known: Iterator[tuple[str, _Row]]) -> Iterator[tuple[str, str | None, _Row | None]]:
    """(key, etag in the bucket, what is known) of each key where the two differ."""
    there, here = next(listed, None), next(known, None)
    while there is not None or here is not None:
        if here is None or (there is not None and there[0] < here[0]):
            assert there is not None
            yield there[0], there[1], None
            there = next(listed, None)
        elif there is None or here[0] < there[0]:
            yield here[0], None, here[1]
            here = next(known, None)
        else:
            if there[1] != here[1][0]:
                yield there[0], there[1], here[1]
            there, here = next(listed, None), next(known, None)


def listed(store: ObjectStore, prefix: str) -> Iterator[tuple[str, str]]:
    """(key, etag) of all objects below the prefix."""
    token: str | None = None
    while True:
        page = store.list(prefix, token=token)
        for info in page.objects:
            if info.key != prefix:
                yield info.key[len(prefix):], info.etag
        token = page.next_token
        if token is None:
            return
