"""New files of a listing, put into the tree many at a time: what a first mount of a large context consists of.

Owns the shortcut for objects that are nothing but new files where nothing has their names. It must not know what to do with anything else: that
goes the long way (reconcile.py), one by one, in its place in the order of the listing.

Looked at one by one, a new file costs nine statements (150 µs). Here it is a row of each of three that take many rows at once, of however many
directories, and no inode is made in memory.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ctxfs.records import ROOT_INO, IndexRecord, ObjectInfo
from ctxfs.storage.held_hints import Hint
from ctxfs.storage.inode import Inode
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.keys import KEY_MAX, Unmountable, component_to_valid_name, key_to_path
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.descriptions import Describer

#: (inode of the directory, name, object, hint, what is valid of it)
_One = tuple[int, bytes, ObjectInfo, 'Hint | None', 'IndexRecord | None']


class Newcomers:
    """See the module docstring. Lives as long as one transaction. `directory_of`: the inode of the directory with a key, made where missing, or None;
    `add`: the long way for one file; `added`: is told of new files by directory, name and number."""

    def __init__(self, db: TreeDB, journal: Journal, describer: Describer, *, directory_of: Callable[[str, ObjectInfo], int | None],
                 add: Callable[[ObjectInfo, Hint | None], None], added: Callable[[list[tuple[int, bytes, int]]], None]) -> None:
        self._db = db
        self._journal = journal
        self._describer = describer
        self._directory_of = directory_of
        self._add = add
        self._added = added
        self._directory: str | None = None
        self._parent = 0
        self._taken: dict[str, _One] = {}
        #: directories that were on the way so far: as long as somebody has them, they are not loaded again
        self._way: dict[int, Inode] = {ROOT_INO: db.inode(ROOT_INO)}
        self._has_doubts = db.row('SELECT 1 FROM attempt LIMIT 1') is not None
        #: keys of which all that the index says is in the tree
        self.described: list[str] = []

    def take(self, info: ObjectInfo, hint: Hint | None) -> bool:
        """Of an object that nothing is known of. False: it is not that simple, and nothing was done."""
        directory, slash, last = info.key.rpartition('/')
        name = component_to_valid_name(last)
        record = self._describer.valid(info, hint)
        if self._has_doubts or name is None or len(info.key) > KEY_MAX or (record is not None and record.link):
            return False
        if (directory != self._directory or not directory) and not self._enter(directory, slash, info):
            return False
        self._taken[info.key] = (self._parent, name, info, hint, record)
        return True

    def _enter(self, directory: str, slash: str, info: ObjectInfo) -> bool:
        path = key_to_path(info.key)
        if isinstance(path, Unmountable):
            return False
        if self._taken and not self._is_plain(directory, path[:-1]):
            self.finish()
        parent = self._directory_of(directory + slash, info)
        if parent is None:
            self._directory = None
            return False
        self._directory, self._parent = directory, parent
        return True

    def _is_plain(self, directory: str, path: tuple[bytes, ...]) -> bool:
        """Whether nothing but directories is on the way to it, or taken: what was taken can wait while it is made."""
        ino: int | None = ROOT_INO
        at = 0
        for name in path:
            at = directory.find('/', at + 1)
            if (directory if at < 0 else directory[:at]) in self._taken:
                return False
            ino = None if ino is None else self._db.lookup(ino, name)
            if ino is not None:
                self._way[ino] = inode = self._db.inode(ino)
                if not inode.is_dir:
                    return False
        return True

    def finish(self) -> None:
        """Put in what was taken. What follows may change the tree in other ways."""
        taken, self._taken, self._directory = self._taken, {}, None
        if not taken:
            return
        others = self._with_names_that_are_there(taken)
        ino: int = self._db.allocate_inos(len(taken) - len(others))
        files: list[tuple[Any, ...]] = []
        entries: list[tuple[int, bytes, int]] = []
        objects: list[Known] = []
        for key, (parent, name, info, _, record) in taken.items():
            if key in others:
                continue
            files.append(self._describer.file_row(ino, info, record))
            entries.append((parent, name, ino))
            objects.append(listed(info, ino, 1, record))
            if record is not None:
                self.described.append(key)
            ino += 1
        self._db.insert_file_rows(files)
        self._db.insert_dentries(entries)
        self._journal.put_objects(objects)
        self._added(entries)
        for key in others:
            _, _, info, hint, _ = taken[key]
            self._add(info, hint)

    def _with_names_that_are_there(self, taken: dict[str, _One]) -> list[str]:
        """Keys of those that are not as simple as they seemed."""
        names: dict[int, dict[bytes, str]] = {}
        for key, (parent, name, *_) in taken.items():
            its = names.get(parent)
            if its is None:
                its = names[parent] = {}
            its[name] = key
        found = []
        for parent, its in names.items():
            there = self._db.names_between(parent, min(its), max(its))
            if there:
                found += [key for name, key in its.items() if name in there]
        return found


def listed(info: ObjectInfo, ino: int, revision: int, record: IndexRecord | None) -> Known:
    """The row of a listed object: its content is that of the inode with this number."""
    return Known(info.key, info.etag, info.size, ino, revision, '', 0, '' if record is None else record.lifecycle, info.mtime_ns,
                 0 if record is None else record.changed_ns)
