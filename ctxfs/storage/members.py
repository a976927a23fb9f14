"""Members: files of a context in Archive mode that lie in archives, and what is known of them here.

Owns the spelling of a member's etag, and the SQL of `member`, `archive` and `deleted_member` (schema.sql says what a row means). It must not know
the log that the rows are read from (archive_log_format.py), nor what a member means for the tree.

A member's etag says what it is and what it holds, not where it lies: `zip-` and a letter (f: file, l: symlink, d: directory), and the SHA-256 of the
content. So it stays the same when its bytes move to another archive, cached blocks stay good, and what came from an archive can be proven.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from ctxfs.records import IndexRecord
from ctxfs.storage.tree_db import TreeDB

_PREFIX = 'zip-'
_KEYS = 500
#: bytes of a member's header and of its line in the directory, but for the name
_HEADERS = 124


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a member's bytes lie: `packed` bytes from `offset` of the archive (its name), packed by `method` (zip_format.py)."""
    archive: str
    offset: int
    packed: int
    method: int
    crc: int


class Member(NamedTuple):
    """A row of the mirror: the current member at a key. `shadows`: the etag of the object that it took the place of; `is_shadowed`: another
    object has the key by now, and counts. `record`: the attributes, None where this host wrote them itself."""
    key: str
    etag: str
    size: int
    place: Place
    shadows: str = ''
    is_shadowed: int = 0
    record: IndexRecord | None = None


class ArchiveUse(NamedTuple):
    """An archive, and how much of it is in use: `live` estimates the bytes of its members with their headers. `dead_ns`: since when this host knows
    that a commit dropped it, 0 while none has."""
    name: str
    size: int
    lifecycle: str
    made_ns: int
    dead_ns: int
    members: int
    packed: int
    live: int


def file_etag(sha256: str) -> str:
    return f'{_PREFIX}f-{sha256}'


def symlink_etag(sha256: str) -> str:
    return f'{_PREFIX}l-{sha256}'


#: of the row by which an empty directory is there
DIRECTORY_ETAG = f'{_PREFIX}d-'


def is_member(etag: str) -> bool:
    """Whether this is a member's etag, and no object's."""
    return etag.startswith(_PREFIX)


def is_file(etag: str) -> bool:
    """Whether this is the etag of a member with a file's content."""
    return etag.startswith(f'{_PREFIX}f-')


def hash_in(etag: str) -> str:
    """The SHA-256 that a member's etag tells."""
    return etag[len(_PREFIX) + 2:]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(IndexRecord).decode
_COLUMNS = 'm.key, m.etag, m.size, a.name, m.at, m.packed, m.method, m.crc, m.shadows, m.is_shadowed, m.record'
_SELECT = f'SELECT {_COLUMNS} FROM member m JOIN archive a ON a.id = m.archive'


class MemberRows:
    """See the module docstring. Errors as TreeDB's."""

    def __init__(self, db: TreeDB) -> None:
        self._db = db
        self._ids: dict[str, int] = {}

    # --- members ------------------------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Member | None:
        row = self._db.row(f'{_SELECT} WHERE m.key = ?', (key,))
        return None if row is None else _to_member(row)

    def get_all(self, keys: Sequence[str]) -> dict[str, Member]:
        """Those of the keys that are members."""
        found: dict[str, Member] = {}
        for start in range(0, len(keys), _KEYS):
            part = keys[start:start + _KEYS]
            marks = ','.join('?' * len(part))
            found.update((row[0], _to_member(row)) for row in self._db.rows(f'{_SELECT} WHERE m.key IN ({marks})', part))
        return found

    def etags(self, keys: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for start in range(0, len(keys), _KEYS):
            part = keys[start:start + _KEYS]
            found.update(self._db.rows(f'SELECT key, etag FROM member WHERE key IN ({",".join("?" * len(part))})', part))
        return found

    def after(self, key: str, limit: int, *, last: str = '\U0010ffff') -> list[Member]:
        """The next members in the order of keys, up to `last`."""
        return [_to_member(row) for row in self._db.rows(f'{_SELECT} WHERE m.key > ? AND m.key <= ? ORDER BY m.key LIMIT ?', (key, last, limit))]

    def put(self, members: Iterable[Member]) -> None:
        self._db.many('INSERT OR REPLACE INTO member VALUES (?,?,?,?,?,?,?,?,?,?,?)', (
            (member.key, member.etag, member.size, self._id(member.place.archive), member.place.offset, member.place.packed, member.place.method,
             member.place.crc, member.shadows, member.is_shadowed, None if member.record is None else _encode(member.record)) for member in members))

    def remove(self, keys: Iterable[str], number: int) -> None:
        """They were deleted by commit `number`."""
        gone = list(keys)
        self._db.many('DELETE FROM member WHERE key = ?', ((key,) for key in gone))
        self._db.many('INSERT OR REPLACE INTO deleted_member VALUES (?, ?)', ((key, number) for key in gone))

    def revive(self, keys: Iterable[str]) -> None:
        """There are members of these keys again: that they were deleted need not be told any more."""
        self._db.many('DELETE FROM deleted_member WHERE key = ?', ((key,) for key in keys))

    def set_shadowed(self, key: str, is_shadowed: bool) -> None:
        self._db.execute('UPDATE member SET is_shadowed = ? WHERE key = ?', (int(is_shadowed), key))

    def shadowed(self) -> list[Member]:
        return [_to_member(row) for row in self._db.rows(f'{_SELECT} WHERE m.is_shadowed')]

    def covering(self) -> list[tuple[str, str]]:
        """(key, etag) of objects whose place a member took: they are to go."""
        return self._db.rows('SELECT key, shadows FROM member WHERE shadows <> \'\'')

    def uncover(self, keys: Iterable[str]) -> None:
        """The objects are gone."""
        self._db.many('UPDATE member SET shadows = \'\' WHERE key = ?', ((key,) for key in keys))

    def clear(self) -> None:
        for table in ('member', 'archive', 'deleted_member'):
            self._db.execute(f'DELETE FROM {table}')
        self._ids.clear()

    # --- archives -----------------------------------------------------------------------------------------------------------------

    def _id(self, name: str) -> int:
        found = self._ids.get(name)
        if found is None:
            self._db.execute('INSERT OR IGNORE INTO archive (name, size, lifecycle, made_ns, dead_ns) VALUES (?, 0, \'\', 0, 0)', (name,))
            found = self._ids[name] = self._db.row('SELECT id FROM archive WHERE name = ?', (name,))[0]
        return found

    def note_archive(self, name: str, *, size: int, lifecycle: str, made_ns: int) -> None:
        self._db.execute('UPDATE archive SET size = ?, lifecycle = ?, made_ns = ? WHERE id = ?', (size, lifecycle, made_ns, self._id(name)))

    def uses(self) -> list[ArchiveUse]:
        """All archives that the log tells of. Costs by the number of members."""
        return [ArchiveUse(*row) for row in self._db.rows(
            'SELECT a.name, a.size, a.lifecycle, a.made_ns, a.dead_ns, count(m.key), coalesce(sum(m.packed), 0), '
            f'coalesce(sum(m.packed + {_HEADERS} + 2 * length(m.key)), 0) '
            'FROM archive a LEFT JOIN member m ON m.archive = a.id GROUP BY a.id ORDER BY a.name')]

    def members_of(self, archive: str) -> list[Member]:
        return [_to_member(row) for row in self._db.rows(f'{_SELECT} WHERE a.name = ? ORDER BY m.at', (archive,))]

    def made_ns(self, archive: str) -> int:
        row = self._db.row('SELECT made_ns FROM archive WHERE name = ?', (archive,))
        return 0 if row is None else int(row[0])

    def note_dead(self, names: Iterable[str], dead_ns: int) -> None:
        """They were dropped by a commit that this host learnt of just now."""
        self._db.many('UPDATE archive SET dead_ns = ? WHERE name = ? AND dead_ns = 0', ((dead_ns, name) for name in names))

    def forget_archives(self, names: Iterable[str]) -> None:
        gone = list(names)
        self._db.many('DELETE FROM archive WHERE name = ?', ((name,) for name in gone))
        for name in gone:
            self._ids.pop(name, None)

    def deletions(self, after: int) -> list[str]:
        """Keys whose deletion was told by a commit later than `after`, and that are no members now."""
        return [row[0] for row in self._db.rows('SELECT key FROM deleted_member WHERE number > ? ORDER BY key', (after,))]


def _to_member(row: Sequence[object]) -> Member:
    key, etag, size, archive, at, packed, method, crc, shadows, is_shadowed, record = row
    return Member(key, etag, size, Place(archive, at, packed, method, crc), shadows, is_shadowed,  # type: ignore[arg-type]
                  None if record is None else _decode(record))  # type: ignore[arg-type]


def level(rows: MemberRows, below: str) -> Iterator[Member | str]:
    """What lies directly below the key `below` ('' or 'a/b/'): members, and keys of directories ('a/b/c/')."""
    after, last = below, below + '\U0010ffff'
    while page := rows.after(after, _KEYS, last=last):
        for member in page:
            if member.key <= after:
                continue
            name, slash, rest = member.key[len(below):].partition('/')
            if not slash or not rest:
                after = member.key
                yield member
                continue
            yield f'{below}{name}/'
            after = f'{below}{name}/\U0010ffff'
            break
        else:
            after = page[-1].key
