"""Mending: rows that were salvaged, some lost and some doubtful, made into a tree that keeps what schema.sql promises.

Owns the verdict on each row that the others contradict. It must not know where rows come from (salvage.py) or what becomes of the file
(repair.py). Names that nobody has any more are placing.py's.

    what the bucket has too                 → may be forgotten here: the next mount lists it, and shows it again
    what only this host has                 → is kept: staged bytes, whatever else of the file is lost
    a staging file, and no row              → a file of its own, named by placing.py
    a staging file, and its row is clean    → staged: one of the two is older, and it is not known which. (Empty, it is neither.)
    a staging file of a removed file        → set aside
    a staged row without a staging file     → the bucket's version, else empty; counted as lost
    an object that fits no name             → forgotten, never deleted; only a certain tombstone deletes
    a name without an object, nothing pending → pending
"""
from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ctxfs.errors import Corrupted
from ctxfs.records import RESERVED_DIR, ROOT_INO
from ctxfs.storage import consistency_keys
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.keys import NAME_MAX
from ctxfs.storage.placing import Placer
from ctxfs.storage.salvage import Found
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_db import SCHEMA_VERSION, TreeDB

_EVERYTHING = Reason.CONTENT | Reason.NAMES | Reason.ATTRS
_TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
_LARGEST = 2**62
_MARK = ('INSERT INTO pending VALUES (?, ?, 1, ?, 0, 0, \'\') ON CONFLICT (ino) DO UPDATE SET reason = reason | excluded.reason, '
         'seq = seq + 1, attempt = 0, retry_ns = 0, error = \'\'')
_NOT_DIR = '(mode & 61440) <> 16384'
#: what belongs to the state directory as it was, not to the tree
_FORGOTTEN_META = ('next_ino', 'index_names', 'archive_number', 'listed_at', 'schema_version')


class Mended(NamedTuple):
    """Counts. `aside`: inode numbers of staging files that nobody is to see again; `lost`: staged files whose bytes are nowhere; `found`: in
    lost+found; `renamed`: got back a name by what the bucket called them."""
    staged: int
    found: int
    renamed: int
    lost: int
    aside: tuple[int, ...]


class Mender:
    """See the module docstring. `db`: new, and nobody else's; `uid`, `gid`: whose what lost its attributes is."""

    def __init__(self, db: TreeDB, staging: Staging, *, uid: int, gid: int) -> None:
        self._db = db
        self._staging = staging
        self._uid = uid
        self._gid = gid
        self._now_ns = time.time_ns()
        self._files = {ino: size for ino, size, _ in staging.inos() if os.path.isfile(staging.path(ino))}
        self._groups: set[str] = set()
        self._guessed: set[tuple[int, bytes]] = set()
        self._aside: set[int] = set()
        self._lost = 0

    # --- rows one by one ------------------------------------------------------------------------------------------------------------

    def take(self, rows: Iterator[Found]) -> None:
        """Keep what can be a row at all; of two with one key the first. Raises Corrupted for the rows of a newer ctxfs."""
        with self._db.transaction():
            for table, row, is_certain in rows:
                checked = self._checked(table, row, is_certain)
                if checked is None:
                    continue
                marks = ','.join('?' * len(checked))
                added = self._db.execute(f'INSERT OR IGNORE INTO {table} VALUES ({marks})', checked).rowcount
                if added and table == 'dentry' and not is_certain:
                    self._guessed.add((checked[0], checked[1]))

    def _checked(self, table: str, row: tuple[Any, ...], is_certain: bool) -> tuple[Any, ...] | None:
        if table == 'inode':
            return self._checked_inode(row)
        if table == 'dentry':
            return row if row[0] > 0 and row[2] > ROOT_INO and row[0] != row[2] and _is_name(*row[:2]) else None
        if table == 'object':
            is_possible = bool(row[0]) and row[2] >= 0 and row[6] in (0, 1, 2) and (is_certain or not row[6])
            return row if is_possible and (row[6] or not row[0].startswith(RESERVED_DIR)) else None
        if table == 'pending':
            return row if 0 < row[1] < 32 and row[2] > 0 else None
        if table == 'meta':
            if row[0] == 'schema_version' and isinstance(row[1], int) and SCHEMA_VERSION < row[1] < 1000:
                raise Corrupted(f'it has schema version {row[1]}, and this ctxfs reads {SCHEMA_VERSION}: use the ctxfs that wrote it')
            return None if row[0] in _FORGOTTEN_META else row
        return None if table == 'hint' else row

    def _checked_inode(self, row: tuple[Any, ...]) -> tuple[Any, ...] | None:
        inode = Inode(*row)
        is_possible = (0 < inode.ino < _LARGEST and stat.S_IFMT(inode.mode) in _TYPES and 0 <= inode.size < _LARGEST and inode.nlink >= 0
                       and inode.content in range(4) and (inode.content != Content.NONE) == inode.is_regular
                       and 0 <= inode.revision < _LARGEST and (inode.target is not None or not inode.is_symlink))
        if not is_possible:
            return None
        if inode.content == Content.CLEAN:      # nothing of it is here
            inode.local = 0
        inode.local = inode.local or int(inode.is_local_type)
        if inode.local and inode.content == Content.SEALED:
            inode.content = Content.STAGED
        if inode.link_group in self._groups:
            inode.link_group = None
        if inode.link_group:
            self._groups.add(inode.link_group)
        if inode.xattrs is not None and not _is_xattrs(inode.xattrs):
            inode.xattrs = None
        return inode.row()

    # --- rows beside each other -----------------------------------------------------------------------------------------------------

    def mend(self) -> Mended:
        with self._db.transaction():
            self._db.execute('CREATE TEMP TABLE staged (ino INTEGER PRIMARY KEY, size INTEGER NOT NULL)')
            self._db.many('INSERT INTO staged VALUES (?, ?)', self._files.items())
            self._make_root()
            self._db.skip_inos(max(self._db.row('SELECT max(ino) FROM inode')[0], max(self._files, default=0)))
            self._set_aside_orphans()
            self._settle_entries()
            self._make_lost_inodes()
            self._settle_contents()
            self._settle_names()
            placer = Placer(self._db, uid=self._uid, gid=self._gid, now_ns=self._now_ns)
            placer.place()
            self._settle_links()
            self._settle_journal(placer.placed)
            self._settle_meta()
            staged, = self._db.row('SELECT count(*) FROM inode WHERE content = ?', (Content.STAGED,))
            self._db.execute('DROP TABLE staged')
        return Mended(staged, placer.found, placer.renamed, self._lost, tuple(sorted(self._aside)))

    def _make_root(self) -> None:
        root = self._db.row('SELECT mode FROM inode WHERE ino = ?', (ROOT_INO,))
        if root is None or not stat.S_ISDIR(root[0]):
            self._db.execute('DELETE FROM inode WHERE ino = ?', (ROOT_INO,))
            self._insert(ROOT_INO, stat.S_IFDIR | 0o755)

    def _insert(self, ino: int, mode: int, **fields: Any) -> None:
        """An inode whose row is lost: its attributes are what is safe."""
        inode = Inode(ino, mode, self._uid, self._gid, 0, 1, 0, self._now_ns, self._now_ns, self._now_ns, Content.NONE, 1)  # type: ignore[arg-type]
        for name, value in fields.items():
            setattr(inode, name, value)
        self._db.store_all(inode)

    def _set_aside_orphans(self) -> None:
        """Open-unlinked when the daemon ended; and what a directory's or a link's row says is no content."""
        orphans = 'nlink = 0 AND NOT EXISTS (SELECT 1 FROM dentry d WHERE d.ino = inode.ino)'
        self._aside |= {ino for ino, in self._db.rows(
            f'SELECT ino FROM staged JOIN inode USING (ino) WHERE content = {Content.NONE} OR ({orphans})')}
        self._db.execute(f'DELETE FROM inode WHERE {orphans}')

    def _settle_entries(self) -> None:
        """Every entry lies in a directory; one that lost its row is made, for what is in it."""
        self._db.execute(f'DELETE FROM dentry WHERE parent IN (SELECT ino FROM inode WHERE {_NOT_DIR})')
        for parent, in self._db.rows('SELECT DISTINCT parent FROM dentry WHERE parent NOT IN (SELECT ino FROM inode)'):
            self._insert(parent, stat.S_IFDIR | 0o755)

    def _make_lost_inodes(self) -> None:
        """Names and staging files without a row."""
        for ino, in self._db.rows('SELECT ino FROM dentry UNION SELECT ino FROM staged EXCEPT SELECT ino FROM inode'):
            if ino in self._aside:
                continue
            known = self._db.row('SELECT size, revision FROM object WHERE ino = ? AND NOT doomed AND substr(key, -1) <> \'/\' '
                                 'ORDER BY revision DESC LIMIT 1', (ino,))
            if ino in self._files:
                self._insert(ino, stat.S_IFREG | 0o600, content=Content.STAGED, size=self._files[ino])
            elif known is not None:     # its attributes are asked for when somebody looks
                self._insert(ino, stat.S_IFREG | 0o644, content=Content.CLEAN, size=known[0], revision=known[1], attrs_known=0)
            else:
                self._db.execute('DELETE FROM dentry WHERE ino = ?', (ino,))

    def _settle_contents(self) -> None:
        run, source = self._db.execute, 'EXISTS (SELECT 1 FROM object o WHERE o.ino = inode.ino AND o.revision = inode.revision)'
        fresh = '(SELECT {} FROM object o WHERE o.ino = inode.ino AND NOT doomed ORDER BY o.revision DESC LIMIT 1)'
        file_size = '(SELECT s.size FROM staged s WHERE s.ino = inode.ino)'
        has_file = 'ino IN (SELECT ino FROM staged)'
        run(f'UPDATE inode SET content = 1, size = {file_size} WHERE content = 1 AND {has_file}')
        run(f'UPDATE inode SET content = 1, size = {file_size} WHERE content = 2 AND {has_file} AND (size <> {file_size} OR NOT {source})')
        run(f'UPDATE inode SET content = 1, size = {file_size} WHERE content = 3 AND {has_file} AND NOT ({file_size} = 0 AND {source})')
        run(f'UPDATE inode SET content = 3 WHERE content = 2 AND NOT {has_file}')
        bare = [ino for ino, in self._db.rows(f'SELECT ino FROM inode WHERE content = 1 AND NOT {has_file}')]
        self._lost = len(bare)
        run(f'UPDATE inode SET content = 3 WHERE content = 1 AND NOT {has_file} AND {fresh.format("1")}')
        run(f'UPDATE inode SET revision = {fresh.format("o.revision")} WHERE content = 3 AND NOT {source} AND {fresh.format("1")}')
        run('UPDATE inode SET size = coalesce((SELECT o.size FROM object o WHERE o.ino = inode.ino AND o.revision = inode.revision '
            'ORDER BY doomed LIMIT 1), size) WHERE content = 3')
        for ino, in self._db.rows(f'SELECT ino FROM inode WHERE content = 1 AND NOT {has_file}'):
            os.close(self._staging.create(ino))
            run('UPDATE inode SET size = 0 WHERE ino = ?', (ino,))
        # what the bucket does not have, and this host neither, the next listing may know
        run(f'DELETE FROM inode WHERE content = 3 AND NOT {source}')
        run('DELETE FROM dentry WHERE ino NOT IN (SELECT ino FROM inode)')
        for table in ('object', 'attempt'):     # nothing that may be in the bucket passes for what is staged
            run(f'UPDATE inode SET revision = max(revision, 1 + coalesce((SELECT max(t.revision) FROM {table} t WHERE t.ino = inode.ino), -1)) '
                'WHERE content = 1')

    def _settle_names(self) -> None:
        """A directory has one name. What the bucket has keeps no name that is a guess beside one that is none."""
        self._db.execute('DELETE FROM dentry WHERE ino = ?', (ROOT_INO,))
        for ino, mode, content in self._db.rows('SELECT ino, mode, content FROM inode i '
                                                'WHERE (SELECT count(*) FROM dentry d WHERE d.ino = i.ino) > 1'):
            names = sorted(self._db.names_of(ino), key=lambda name: name in self._guessed)
            certain = [name for name in names if name not in self._guessed]
            kept = names[:1] if stat.S_ISDIR(mode) else certain if certain and content != Content.STAGED else names
            for parent, name in set(names) - set(kept):
                self._db.delete_dentry(parent, name)

    def _settle_links(self) -> None:
        run = self._db.execute
        run('UPDATE inode SET nlink = (SELECT count(*) FROM dentry d WHERE d.ino = inode.ino)')
        run(f'DELETE FROM inode WHERE nlink = 0 AND ino <> {ROOT_INO}')
        run(f'UPDATE inode SET nlink = 2 + (SELECT count(*) FROM dentry d JOIN inode c ON c.ino = d.ino WHERE d.parent = inode.ino '
            f'AND (c.mode & 61440) = 16384) WHERE NOT {_NOT_DIR}')
        run('DELETE FROM object WHERE NOT doomed AND ino NOT IN (SELECT ino FROM inode WHERE NOT local)')
        run('UPDATE inode SET revision = max(revision, coalesce((SELECT max(o.revision) FROM object o WHERE o.ino = inode.ino AND NOT doomed), 0)) '
            'WHERE content <> 3')

    # --- what is to be uploaded -------------------------------------------------------------------------------------------------------

    def _settle_journal(self, placed: set[int]) -> None:
        run = self._db.execute
        run('DELETE FROM pending WHERE ino NOT IN (SELECT ino FROM inode)')
        self._mark([ino for ino, in self._db.rows('SELECT ino FROM inode WHERE content = 1 AND NOT local')], _EVERYTHING)
        self._mark([ino for ino, in self._db.rows('SELECT ino FROM inode WHERE NOT local') if ino in placed], _EVERYTHING)
        run(f'DELETE FROM pending WHERE ino IN (SELECT ino FROM inode WHERE local AND {_NOT_DIR})')
        for ino, _ in consistency_keys.unexplained_names(self._db, None):
            self._mark([ino], Reason.NAMES if self._db.inode(ino).content == Content.CLEAN else _EVERYTHING)
        self._db.many('DELETE FROM object WHERE key = ?', [(key,) for key, _ in consistency_keys.unexplained_objects(self._db)])

    def _mark(self, inos: list[int], reason: int) -> None:
        """A directory has no content."""
        self._db.many(_MARK, [(ino, reason & ~Reason.CONTENT if self._db.inode(ino).is_dir else reason, self._now_ns) for ino in inos])

    def _settle_meta(self) -> None:
        """The next mount looks at everything once more: the index, the white lists, the cache."""
        self._db.set_meta('white_lists', b'')
        self._db.set_meta('ended_cleanly', 0)
        self._db.set_meta('boot_id', Path('/proc/sys/kernel/random/boot_id').read_text('ascii').strip())


def _is_name(parent: int, name: bytes) -> bool:
    is_reserved = parent == ROOT_INO and name == RESERVED_DIR.rstrip('/').encode()
    return 0 < len(name) <= NAME_MAX and b'/' not in name and b'\0' not in name and name not in (b'.', b'..') and not is_reserved


def _is_xattrs(packed: bytes) -> bool:
    try:
        msgspec.msgpack.decode(packed, type=dict[str, bytes])
        return True
    except msgspec.MsgspecError:
        return False
