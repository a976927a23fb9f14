"""Placing: names for what has none any more, and an end of circles, so that everything is below the root.

Owns `lost+found`. It must not know why names were lost; it is told rows, and works on a tree that nobody else uses.

    a file or directory that the bucket knows by a key, whose place is free   → there
    any other file of which something is only here                            → lost+found/NAME.INODE
    a directory with such files                                               → lost+found/INODE, with nothing in it that the bucket has
    what the bucket has as well                                               → forgotten: the next listing shows it
"""
from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator

from ctxfs.records import ROOT_INO, Ino
from ctxfs.storage.inode import Content, Inode
from ctxfs.storage.keys import NAME_MAX, Unmountable, key_to_path, name_to_component
from ctxfs.storage.tree_db import TreeDB

LOST_AND_FOUND = b'lost+found'
#: files of a directory that are asked for its name
_ASKED = 200
_BELOW = 'WITH RECURSIVE below(ino) AS (SELECT ? UNION SELECT d.ino FROM below b JOIN dentry d ON d.parent = b.ino) '
#: what the bucket cannot bring back: staged bytes, what stays on this host, links that were never uploaded
_ONLY_HERE = (f'(content IN ({Content.STAGED}, {Content.SEALED}) OR (local AND (mode & 61440) <> 16384) '
              'OR ((mode & 61440) = 40960 AND NOT EXISTS (SELECT 1 FROM object o WHERE o.ino = inode.ino AND NOT doomed)))')

#: directories in which nothing is left, and that were not made since the last upload
_EMPTY = ('(mode & 61440) = 16384 AND NOT EXISTS (SELECT 1 FROM dentry d WHERE d.parent = inode.ino) '
          'AND NOT EXISTS (SELECT 1 FROM pending p WHERE p.ino = inode.ino)')


class Placer:
    """See the module docstring. Call `place` in a transaction."""

    def __init__(self, db: TreeDB, *, uid: int, gid: int, now_ns: int) -> None:
        self._db = db
        self._owner = uid, gid
        self._now_ns = now_ns
        self._lost_and_found = 0
        #: what is to be uploaded because of where it is now
        self.placed: set[int] = set()
        self.found = 0
        self.renamed = 0

    def place(self) -> None:
        self._break_circles()
        nameless = f'SELECT ino FROM inode WHERE ino <> {ROOT_INO} AND ino NOT IN (SELECT ino FROM dentry)'
        directories = [ino for ino, in self._db.rows(f'{nameless} AND (mode & 61440) = 16384')]
        known = [(key, ino) for ino in directories if (key := self._key_of_directory(ino)) is not None]
        for key, ino in sorted(known):      # what is above comes first
            self._name_by(key, ino)
        for ino in directories:
            if not self._db.names_of(ino):
                self._place_directory(ino)
        for ino, in self._db.rows(nameless):
            self._place_file(ino)

    def _break_circles(self) -> None:
        """A directory that is below itself loses its name."""
        settled: set[int] = {ROOT_INO}
        for ino, in self._db.rows('SELECT ino FROM inode WHERE (mode & 61440) = 16384'):
            way: list[int] = []
            while ino not in settled and ino not in way:
                way.append(ino)
                above = self._db.names_of(ino)
                ino = above[0][0] if above else ROOT_INO
            if ino in way:
                self._db.delete_dentry(*self._db.names_of(ino)[0])
            settled.update(way)

    # --- by what the bucket calls it ------------------------------------------------------------------------------------------------

    def _key_of_directory(self, ino: int) -> str | None:
        """By its marker, or by the key of something in it."""
        marker = self._db.row('SELECT key FROM object WHERE ino = ? AND NOT doomed', (ino,))
        if marker is not None:
            return str(marker[0]).rstrip('/')
        for below, relative in self._below(ino):
            for key, in self._db.rows('SELECT key FROM object WHERE ino = ? AND NOT doomed', (below,)):
                if key.endswith('/' + relative):
                    return str(key)[:-len(relative) - 1]
        return None

    def _below(self, ino: int) -> Iterator[tuple[int, str]]:
        """(inode, path relative to the directory) of some files in it."""
        stack, asked = [(ino, '')], 0
        while stack and asked < _ASKED:
            directory, path = stack.pop()
            for name, child in self._db.children(directory, b'', _ASKED):
                asked += 1
                if self._db.inode(child).is_dir:
                    stack.append((child, f'{path}{name_to_component(name)}/'))
                yield child, path + name_to_component(name)

    def _name_by(self, key: str, ino: int) -> bool:
        """False where something else has the place."""
        path = key_to_path(key)
        parent = None if isinstance(path, Unmountable) or not path else self._directory(path[:-1], ino)
        if parent is None or isinstance(path, Unmountable) or self._db.lookup(parent, path[-1]) is not None:
            return False
        self._db.insert_dentry(parent, path[-1], ino)
        self.renamed += 1
        return True

    def _directory(self, path: Iterable[bytes], without: int) -> int | None:
        """The directory at that path, made where it is missing (its attributes are in the index); None where a file is in the way, or the
        inode that is to go there."""
        ino = int(ROOT_INO)
        for name in path:
            below = self._db.lookup(ino, name)
            if below is None:
                below = self._make_directory(ino, name, 0o755)
            if below == without or not self._db.inode(below).is_dir:
                return None
            ino = below
        return ino

    def _make_directory(self, parent: int, name: bytes, mode: int) -> int:
        now, inode = self._now_ns, Inode(self._db.allocate_ino(), stat.S_IFDIR | mode, *self._owner, 0, 2, 0, 0, 0, 0, Content.NONE, 1)
        inode.atime_ns = inode.mtime_ns = inode.ctime_ns = now
        self._db.insert_inode(inode)
        self._db.insert_dentry(parent, name, inode.ino)
        return inode.ino

    # --- in lost+found ----------------------------------------------------------------------------------------------------------------

    def _place_directory(self, ino: int) -> None:
        inos = [row[0] for row in self._db.rows(_BELOW + 'SELECT ino FROM below', (ino,))]
        if not self._db.row(_BELOW + f'SELECT 1 FROM inode WHERE ino IN below AND {_ONLY_HERE} LIMIT 1', (ino,)):
            self._forget(inos)
            return
        self._put_into_lost_and_found(ino, b'')
        self._forget([row[0] for row in self._db.rows(
            _BELOW + f'SELECT ino FROM inode WHERE ino IN below AND (mode & 61440) <> 16384 AND NOT {_ONLY_HERE} '
            'AND NOT EXISTS (SELECT 1 FROM dentry d WHERE d.ino = inode.ino AND d.parent NOT IN below)', (ino,))])
        while empty := [row[0] for row in self._db.rows(_BELOW + f'SELECT ino FROM inode WHERE ino IN below AND {_EMPTY}', (ino,))]:
            self._forget(empty)
        self.placed.update(row[0] for row in self._db.rows(_BELOW + 'SELECT ino FROM inode WHERE ino IN below', (ino,)))

    def _place_file(self, ino: int) -> None:
        inode = self._db.row('SELECT content FROM inode WHERE ino = ?', (ino,))
        if inode is None:
            return
        keys = [row[0] for row in self._db.rows('SELECT key FROM object WHERE ino = ? AND NOT doomed ORDER BY revision DESC', (ino,))]
        if not self._db.row(f'SELECT 1 FROM inode WHERE ino = ? AND {_ONLY_HERE}', (ino,)):
            self._forget([ino])
            return
        if inode[0] == Content.SEALED:      # uploaded under a name that it may not have: what it is now is for the next upload to say
            self._db.execute('UPDATE inode SET content = ?, revision = revision + 1 WHERE ino = ?', (Content.STAGED, ino))
        self.placed.add(ino)
        if not any(self._name_by(key, ino) for key in keys):
            path = key_to_path(keys[0]) if keys else ()
            self._put_into_lost_and_found(ino, b'' if isinstance(path, Unmountable) or not path else path[-1])

    def _put_into_lost_and_found(self, ino: int, name: bytes) -> None:
        self._lost_and_found = self._lost_and_found or self._open_lost_and_found()
        mark = b'%d' % ino if not name else b'.%d' % ino
        self._db.insert_dentry(self._lost_and_found, name[:NAME_MAX - len(mark)] + mark, ino)
        self.placed.add(ino)
        self.found += 1

    def _open_lost_and_found(self) -> int:
        """The directory of that name, or, where something else has it, of the next."""
        number = 0
        while True:
            name = LOST_AND_FOUND + (b'.%d' % number if number else b'')
            ino = self._db.lookup(ROOT_INO, name)
            if ino is None:
                ino = self._make_directory(ROOT_INO, name, 0o700)
                self.placed.add(ino)
                return ino
            if self._db.inode(Ino(ino)).is_dir:
                return ino
            number += 1

    def _forget(self, inos: list[int]) -> None:
        """The bucket shows it again. Names that lie in a directory that is forgotten go along."""
        for start in range(0, len(inos), 500):
            part = inos[start:start + 500]
            marks = ','.join('?' * len(part))
            for sql in ('DELETE FROM object WHERE NOT doomed AND ino IN ({})', 'DELETE FROM pending WHERE ino IN ({})',
                        'DELETE FROM dentry WHERE ino IN ({})', 'DELETE FROM dentry WHERE parent IN ({})', 'DELETE FROM inode WHERE ino IN ({})'):
                self._db.execute(sql.format(marks), part)
