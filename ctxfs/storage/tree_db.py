"""The tree database: names and attributes in SQLite, one transaction per change, and the live inodes that mirror it.

Owns the transactions, inode numbers, and the SQL of inodes and dentries (schema.sql says what each row means; journal.py has the SQL of
objects and pending work, tree_connection.py the connection). It must not know FUSE, the store or when anything is uploaded.

Used from one thread, the daemon's loop: a statement costs 5-25 µs (WAL, synchronous=NORMAL), which is why each change commits before
it is answered. A committed transaction survives SIGKILL; `make_durable` (any thread) makes it survive a power cut.
"""
from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from ctxfs.crash_points import crash_point
from ctxfs.errors import Corrupted, CtxfsError, NotFound
from ctxfs.records import ROOT_INO, Ino
from ctxfs.storage.inode import Content, Inode
from ctxfs.storage.keys import name_to_component
from ctxfs.storage.tree_connection import TreeConnection

SCHEMA_VERSION = 6
#: inode numbers reserved at a time, so that allocating one is no statement
INO_BATCH = 4096
_INODE_COLUMNS = ('ino, mode, uid, gid, rdev, nlink, size, atime_ns, mtime_ns, ctime_ns, content, revision, attrs_known, target, xattrs, '
                  'link_group, local')
_SELECT_INODE = f'SELECT {_INODE_COLUMNS} FROM inode WHERE ino = ?'
_INSERT_INODE, _INODE_MARKS = f'INSERT INTO inode ({_INODE_COLUMNS})', '(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)'
_LISTED = ('SELECT d.name, i.ino, mode, nlink, uid, gid, rdev, size, atime_ns, mtime_ns, ctime_ns, attrs_known, -1, length(d.name), content '
           'FROM dentry d CROSS JOIN inode i ON i.ino = d.ino WHERE d.parent = ? AND d.name BETWEEN ? AND ? ORDER BY d.name')
#: what most files of a bucket have in common, rdev, nlink and all from `content` on, is not handed over for each
_FILE = (0, 1, Content.CLEAN, 1, 1, None, None, None, 0)
_FILE_MARKS = f'(?,?,?,?,0,1,?,?,?,?,{Content.CLEAN},1,1,NULL,NULL,NULL,0)'


#: version → what makes the next one of it
_MIGRATIONS = {1: '''
    ALTER TABLE inode ADD COLUMN local INTEGER NOT NULL DEFAULT 0;
    UPDATE inode SET local = 1 WHERE (mode & 61440) NOT IN (16384, 32768, 40960);
    CREATE INDEX inode_local ON inode (mode, size) WHERE local;
    ALTER TABLE object ADD COLUMN lifecycle TEXT NOT NULL DEFAULT '';
    ALTER TABLE object ADD COLUMN uploaded_ns INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX object_lifecycle ON object (lifecycle, uploaded_ns) WHERE lifecycle <> '';
    CREATE TABLE announce (key TEXT PRIMARY KEY, deleted_ns INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE touched (ino INTEGER PRIMARY KEY);
    ''', 2: '''
    CREATE TABLE hardened (ino INTEGER PRIMARY KEY, size INTEGER NOT NULL, holes INTEGER NOT NULL);
    INSERT INTO hardened SELECT ino, 0, 1 << 62 FROM inode WHERE content = 1;
    ALTER TABLE conflict RENAME TO conflict_2;
    CREATE TABLE conflict (ino INTEGER NOT NULL, original TEXT NOT NULL, since_ns INTEGER NOT NULL, holds INTEGER NOT NULL,
                           PRIMARY KEY (ino, original)) WITHOUT ROWID;
    INSERT INTO conflict SELECT ino, original, since_ns, 0 FROM conflict_2;
    DROP TABLE conflict_2;
    ALTER TABLE object ADD COLUMN said_ns INTEGER NOT NULL DEFAULT 0;
    ''', 3: '''
    CREATE INDEX inode_sealed ON inode (content) WHERE content = 2;
    ''', 4: '''
    CREATE TABLE member (key TEXT PRIMARY KEY, etag TEXT NOT NULL, size INTEGER NOT NULL, archive INTEGER NOT NULL,
                         at INTEGER NOT NULL, packed INTEGER NOT NULL, method INTEGER NOT NULL, crc INTEGER NOT NULL, shadows TEXT NOT NULL,
                         is_shadowed INTEGER NOT NULL, record BLOB) WITHOUT ROWID;
    CREATE INDEX member_archive ON member (archive);
    CREATE INDEX member_shadowed ON member (key) WHERE is_shadowed;
    CREATE INDEX member_shadows ON member (key) WHERE shadows <> \'\';
    CREATE TABLE archive (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, lifecycle TEXT NOT NULL,
                          made_ns INTEGER NOT NULL, dead_ns INTEGER NOT NULL);
    CREATE TABLE deleted_member (key TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
    ''',
    # a log of made files lies beside it, of which an older ctxfs knows nothing
    5: 'CREATE INDEX inode_orphan ON inode (nlink) WHERE nlink = 0;'}
# Each part finds its inodes by an index, or by rows of the journal: a staged file has a row there, stays on this host, or has no name.
_STAGED = '''
    SELECT p.ino FROM pending p CROSS JOIN inode i ON i.ino = p.ino WHERE i.content = 1
    UNION SELECT ino FROM inode WHERE local AND content = 1
    UNION SELECT ino FROM inode WHERE nlink = 0 AND content = 1
    UNION SELECT ino FROM inode WHERE content = 2'''


class Watcher:
    """Who keeps something of what the database says of directories, and is told of what changes; this one keeps nothing."""

    def named(self, parent: int, name: bytes) -> None:
        """The directory has an entry of this name."""

    def changed(self, inode: Inode) -> None:
        """Its attributes are others, or it has no name any more."""

    def gone(self, ino: int) -> None:
        """There is no such inode."""

    def moved(self) -> None:
        """A directory has another path, or none."""

    def undone(self) -> None:
        """Some of what was told is not so."""


class Transaction:
    """`with db.transaction():` all or nothing; nests (the outermost commits). On failure the live inodes are read back."""

    __slots__ = ('_db',)

    def __init__(self, db: TreeDB) -> None:
        self._db = db

    def __enter__(self) -> None:
        db = self._db
        if db.depth == 0:
            if db.first is not None:
                db.first()
            db.execute('BEGIN')
        db.depth += 1

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        db = self._db
        db.depth -= 1
        if db.depth:
            return
        if error is None:
            crash_point('tree-before-commit')
            try:
                db.execute('COMMIT')
                crash_point('tree-after-commit')
                return
            except CtxfsError:
                db.roll_back()
                raise
        db.roll_back()


class TreeDB(TreeConnection):
    """See the module docstring. All methods raise only ctxfs.errors: NotFound, and as TreeConnection's."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.depth = 0
        self._live: WeakValueDictionary[int, Inode] = WeakValueDictionary()
        self._dir_keys: dict[int, str] = {}
        self._transaction = Transaction(self)
        #: what is to be written before any other transaction; raises while it cannot be
        self.first: Callable[[], None] | None = None
        #: told of each change before a statement makes it
        self.watcher: Watcher = Watcher()
        try:
            self._set_up()
            self._next_ino, self._reserved = int(self.meta('next_ino') or ROOT_INO + 1), 0
            self._reserve_inos()
        except BaseException:
            self.close()
            raise

    def _set_up(self) -> None:
        if self.row("SELECT count(*) FROM sqlite_master WHERE name = 'meta'")[0] == 0:
            schema = resources.files('ctxfs.storage').joinpath('schema.sql').read_text('utf-8')
            self.script(f'BEGIN;{schema};INSERT INTO meta VALUES (\'schema_version\', {SCHEMA_VERSION});COMMIT')
        self._migrate(int(self.meta('schema_version') or 0))

    def _migrate(self, version: int) -> None:
        """Bring the file of an older ctxfs to this schema, each step whole or not at all. A newer one's is refused."""
        while version in _MIGRATIONS:
            version += 1
            self.script(f'BEGIN;{_MIGRATIONS[version - 1]};UPDATE meta SET value = {version} WHERE name = \'schema_version\';COMMIT')
        if version != SCHEMA_VERSION:
            raise Corrupted(f'{self.path} has schema version {version}, and this ctxfs reads {SCHEMA_VERSION}: use the ctxfs that wrote it')

    def transaction(self) -> Transaction:
        return self._transaction

    def roll_back(self) -> None:
        """Undo the open transaction and make every live inode equal to its row again, as far as the rows can be read."""
        self.undo()
        self._reserved = 0      # that more numbers are reserved may be undone with it
        self.watcher.undone()
        self._dir_keys.clear()
        for inode in list(self._live.values()) if not self.damage else ():
            self.restore(inode)

    def restore(self, inode: Inode) -> None:
        """Make a live inode equal to its row again, after a change of it could not be written."""
        row = self.row(_SELECT_INODE, (inode.ino,))
        inode.marked, inode.is_touched = 0, False
        if row is None:
            self._live.pop(inode.ino, None)
            return
        size, revision = inode.size, inode.revision
        inode.assign(row)
        if inode.content == Content.STAGED:     # writes grow these in memory only; the staging file has what they wrote
            inode.size, inode.revision = size, max(revision, inode.revision)

    # --- meta -------------------------------------------------------------------------------------------------------------------

    def meta(self, name: str) -> Any:
        found = self.row('SELECT value FROM meta WHERE name = ?', (name,))
        return found[0] if found else None

    def set_meta(self, name: str, value: Any) -> None:
        self.execute('INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value', (name, value))

    # --- inodes -----------------------------------------------------------------------------------------------------------------

    def allocate_ino(self) -> Ino:
        """A number never used before; crash-safe because a whole batch is reserved ahead (what a crash loses is only numbers)."""
        if self._next_ino >= self._reserved:
            self._reserve_inos()
        ino = self._next_ino
        self._next_ino += 1
        return Ino(ino)

    def allocate_inos(self, count: int) -> Ino:
        """So many numbers, of which this is the first; at most INO_BATCH."""
        if self._next_ino + count > self._reserved:
            self._reserve_inos()
        first = self._next_ino
        self._next_ino += count
        return Ino(first)

    @property
    def next_ino(self) -> int:
        """What is allocated next."""
        return self._next_ino

    def skip_inos(self, last: int) -> None:
        """Numbers up to this one are in use."""
        self._next_ino = max(self._next_ino, last + 1)
        self._reserve_inos()

    def _reserve_inos(self) -> None:
        reserved = self._next_ino + INO_BATCH
        self.set_meta('next_ino', reserved)
        self._reserved = reserved       # only now: a number that is given out must not be given out again after a crash

    def inode(self, ino: int) -> Inode:
        """The live inode. Raises NotFound."""
        live = self._live.get(ino)
        return live if live is not None else self._load(ino)

    def _load(self, ino: int) -> Inode:
        row = self.row(_SELECT_INODE, (ino,))
        if row is None:
            raise NotFound(f'no inode {ino}')
        inode = Inode(*row)
        self._live[ino] = inode
        return inode

    def let_go(self) -> None:
        super().let_go()
        self._live = WeakValueDictionary(self._live)        # a dict of which much was taken keeps its size

    def live_inode(self, ino: int) -> Inode | None:
        """The inode if anything in the process holds it."""
        return self._live.get(ino)

    def inodes_of(self, inos: list[int]) -> dict[int, Inode]:
        """Many inodes with few statements (a directory page)."""
        found = {ino: live for ino in inos if (live := self._live.get(ino)) is not None}
        missing = [ino for ino in inos if ino not in found]
        for start in range(0, len(missing), 500):
            part = missing[start:start + 500]
            marks = ','.join('?' * len(part))
            for row in self.rows(f'SELECT {_INODE_COLUMNS} FROM inode WHERE ino IN ({marks})', part):
                found[row[0]] = self._live[row[0]] = Inode(*row)
        return found

    def insert_inode(self, inode: Inode) -> None:
        self.execute(f'{_INSERT_INODE} VALUES {_INODE_MARKS}', inode.row())
        self._live[inode.ino] = inode

    def insert_inodes(self, inodes: Sequence[Inode]) -> None:
        """Of which nothing in the process holds any: they are not live."""
        self.insert(_INSERT_INODE, _INODE_MARKS, [inode.row() for inode in inodes])

    def insert_file_rows(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """As `Inode.row`, of files of which nothing in the process holds an inode: they are not live."""
        self.insert(_INSERT_INODE, _FILE_MARKS, [row[:4] + row[6:10] for row in rows if row[4:6] + row[10:] == _FILE])
        self.insert(_INSERT_INODE, _INODE_MARKS, [row for row in rows if row[4:6] + row[10:] != _FILE])

    def hold(self, inode: Inode) -> None:
        """This is the live inode of its row, which `insert_inodes` wrote."""
        self._live[inode.ino] = inode

    def store_attrs(self, inode: Inode) -> None:
        """Write mode, owner, size and times."""
        self.execute('UPDATE inode SET mode=?, uid=?, gid=?, size=?, atime_ns=?, mtime_ns=?, ctime_ns=?, attrs_known=1 WHERE ino=?',
                     (inode.mode, inode.uid, inode.gid, inode.size, inode.atime_ns, inode.mtime_ns, inode.ctime_ns, inode.ino))
        self.watcher.changed(inode)

    def store_times(self, inode: Inode) -> None:
        """Write mtime, ctime and nlink: what changing a directory's entries or an inode's names changes."""
        self.execute('UPDATE inode SET mtime_ns=?, ctime_ns=?, nlink=? WHERE ino=?',
                     (inode.mtime_ns, inode.ctime_ns, inode.nlink, inode.ino))
        self.watcher.changed(inode)

    def store_content(self, inode: Inode) -> None:
        """Write content state, revision and size."""
        self.execute('UPDATE inode SET content=?, revision=?, size=? WHERE ino=?',
                     (inode.content, inode.revision, inode.size, inode.ino))

    def renew_link_group(self, inode: Inode) -> None:
        """INVARIANT: names with one link group have one content. So the group of a file is another one as soon as its content is, or as it
        parts from names that other hosts know."""
        inode.link_group = uuid.uuid4().hex
        self.execute('UPDATE inode SET link_group = ? WHERE ino = ?', (inode.link_group, inode.ino))

    def store_all(self, inode: Inode) -> None:
        self.execute(f'INSERT OR REPLACE INTO inode ({_INODE_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)', inode.row())
        self.watcher.changed(inode)

    def delete_inode(self, ino: int) -> None:
        self.watcher.gone(ino)
        self.execute('DELETE FROM inode WHERE ino = ?', (ino,))
        self._live.pop(ino, None)

    def orphans(self) -> list[int]:
        """Inodes without a name (open-unlinked when the daemon ended)."""
        return [row[0] for row in self.rows('SELECT ino FROM inode WHERE nlink = 0')]

    def without_name(self, inos: Iterable[int]) -> list[int]:
        """Which of these have none."""
        wanted = list(inos)
        return [row[0] for row in self.rows(f'SELECT ino FROM inode WHERE nlink = 0 AND ino IN ({",".join("?" * len(wanted))})', wanted)]

    def local_inos(self) -> list[int]:
        """Inodes that stay on this host, directories not among them."""
        return [row[0] for row in self.rows('SELECT ino FROM inode WHERE local AND (mode & 61440) <> 16384')]

    def staged_inos(self) -> list[int]:
        """Inodes whose content has a staging file."""
        return [row[0] for row in self.rows(_STAGED)]

    # --- names ------------------------------------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> int | None:
        found = self.row('SELECT ino FROM dentry WHERE parent = ? AND name = ?', (parent, name))
        return found[0] if found else None

    def insert_dentry(self, parent: int, name: bytes, ino: int) -> None:
        self.watcher.named(parent, name)
        self.execute('INSERT INTO dentry VALUES (?, ?, ?)', (parent, name, ino))

    def insert_dentries(self, entries: Sequence[tuple[int, bytes, int]]) -> None:
        """(parent, name, ino) of each."""
        for parent, name, _ in entries:
            self.watcher.named(parent, name)
        self.insert('INSERT INTO dentry', '(?, ?, ?)', entries)

    def names_between(self, parent: int, first: bytes, last: bytes) -> set[bytes]:
        """Names in a directory, from the first to the last in byte order."""
        return {row[0] for row in self.rows('SELECT name FROM dentry WHERE parent = ? AND name BETWEEN ? AND ?', (parent, first, last))}

    def delete_dentry(self, parent: int, name: bytes) -> None:
        self.execute('DELETE FROM dentry WHERE parent = ? AND name = ?', (parent, name))

    def move_dentry(self, old: tuple[int, bytes], new: tuple[int, bytes], *, ino: int) -> None:
        """Give the entry `old` the name `new`, which must be free."""
        self.delete_dentry(*old)
        self.insert_dentry(*new, ino)

    def forget_dir_keys(self) -> None:
        """A directory moved or went: every remembered directory key may be wrong."""
        self.watcher.moved()
        self._dir_keys.clear()

    def children(self, parent: int, after: bytes, limit: int) -> list[tuple[bytes, int]]:
        """Up to `limit` entries in byte order of their names, after `after` (b'' from the start)."""
        return self.rows('SELECT name, ino FROM dentry WHERE parent = ? AND name > ? ORDER BY name LIMIT ?', (parent, after, limit))

    def listed(self, parent: int, first: bytes, last: bytes) -> list[tuple[Any, ...]]:
        """The entries from one name to the other in byte order of their names: name, ino, mode, nlink, uid, gid, rdev, size, atime, mtime and
        ctime in ns, attrs_known, -1, bytes of the name, content; as the rows have them, so of a live inode something else may be true."""
        return self.rows(_LISTED, (parent, first, last))

    def live_among(self, inos: Sequence[int]) -> set[int]:
        references: dict[int, object] = self._live.data  # type: ignore[attr-defined]  # asked one by one it takes ten times as long
        return references.keys() & inos

    def names_in(self, parent: int, most: int) -> list[bytes] | None:
        """All names in a directory; None when there are more than `most`."""
        names = [row[0] for row in self.rows('SELECT name FROM dentry WHERE parent = ? LIMIT ?', (parent, most + 1))]
        return names if len(names) <= most else None

    def has_children(self, parent: int, *, beside: int = 0) -> bool:
        """More than `beside`."""
        return self.row('SELECT 1 FROM dentry WHERE parent = ? LIMIT 1 OFFSET ?', (parent, beside)) is not None

    def has_synced_child(self, parent: int) -> bool:
        return self.row('SELECT 1 FROM dentry d JOIN inode i ON i.ino = d.ino WHERE d.parent = ? AND NOT i.local LIMIT 1', (parent,)) is not None

    def names_of(self, ino: int) -> list[tuple[int, bytes]]:
        """Every (parent, name) of an inode."""
        return self.rows('SELECT parent, name FROM dentry WHERE ino = ? ORDER BY parent, name', (ino,))

    def dir_key(self, ino: int) -> str:
        """The key prefix of a directory relative to the context: '' for the root, else 'a/b/'. Raises NotFound without a name."""
        if ino == ROOT_INO:
            return ''
        key = self._dir_keys.get(ino)
        if key is None:
            names = self.names_of(ino)
            if not names:
                raise NotFound(f'directory inode {ino} has no name')
            parent, name = names[0]
            key = f'{self.dir_key(parent)}{name_to_component(name)}/'
            if len(self._dir_keys) > 20_000:
                self._dir_keys.clear()
            self._dir_keys[ino] = key
        return key

    def keys_of(self, inode: Inode) -> list[str]:
        """The keys an inode should have: one per name; a directory's is its marker."""
        if inode.is_dir:
            return [self.dir_key(inode.ino)]
        return [self.key_of_name(parent, name) for parent, name in self.names_of(inode.ino)]

    def key_of_name(self, parent: int, name: bytes) -> str:
        return self.dir_key(parent) + name_to_component(name)

    def resolve(self, path: Iterable[bytes]) -> int | None:
        """The inode at a path below the root, or None."""
        ino: int = ROOT_INO
        for name in path:
            found = self.lookup(ino, name)
            if found is None:
                return None
            ino = found
        return ino

    def count_local_only(self) -> tuple[int, int]:
        """(files, bytes) that stay on this host by their type or the policy; directories do not count."""
        row = self.row('SELECT count(*), coalesce(sum(size), 0) FROM inode WHERE local AND (mode & 61440) <> 16384')
        return row[0], row[1]
