"""New files of a listing, put into the tree many at a time: what a first mount of a large context consists of.

Owns the shortcut for objects that are nothing but new files in a directory where nothing has their names. It must not know what to do with
anything else: that goes the long way (reconcile.py), one by one, in its place in the order of the listing.

Looked at one by one, a new file costs nine statements (150 µs); in a row of those of one directory, three that take many rows at once.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ctxfs.records import IndexRecord, ObjectInfo
from ctxfs.storage.inode import Inode
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.keys import Unmountable, key_to_path
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.descriptions import Describer

Hint = tuple[str, int, bytes]


class _One(NamedTuple):
    info: ObjectInfo
    hint: Hint | None
    record: IndexRecord | None
    name: bytes


class Newcomers:
    """See the module docstring. Lives as long as one transaction. `directory_of`: the inode of the directory with a key, made where missing, or None
    (it may change the tree, and so comes after all that was taken before); `add`: the long way for one file; `added`: is told of each new inode
    with its directory and name."""

    def __init__(self, db: TreeDB, journal: Journal, describer: Describer, *, directory_of: Callable[[str, ObjectInfo], int | None],
                 add: Callable[[ObjectInfo, Hint | None], None], added: Callable[[int, bytes, Inode], None]) -> None:
        self._db = db
        self._journal = journal
        self._describer = describer
        self._directory_of = directory_of
        self._add = add
        self._added = added
        self._directory: str | None = None
        self._parent = 0
        self._row: list[_One] = []
        self._has_doubts = db.row('SELECT 1 FROM attempt LIMIT 1') is not None

    def take(self, info: ObjectInfo, hint: Hint | None) -> bool:
        """Of an object that nothing is known of. False: it is not that simple, and nothing was done."""
        if self._has_doubts:
            return False
        directory, slash, last = info.key.rpartition('/')
        record = self._describer.valid(info, hint)
        path = key_to_path(info.key)
        if not last or isinstance(path, Unmountable) or (record is not None and record.link):
            return False
        if directory + slash != self._directory:
            self.finish()
            parent = self._directory_of(directory + slash, info)
            if parent is None:
                return False
            self._directory, self._parent = directory + slash, parent
        self._row.append(_One(info, hint, record, path[-1]))
        return True

    def finish(self) -> None:
        """Put in what was taken. What follows may change the tree in other ways."""
        row, self._row, self._directory = self._row, [], None
        if not row:
            return
        taken = self._db.names_between(self._parent, min(one.name for one in row), max(one.name for one in row))
        new = [one for one in row if one.name not in taken]
        inodes = [self._describer.made_file(one.info, one.record) for one in new]
        self._db.insert_inodes(inodes)
        self._db.insert_dentries((self._parent, one.name, inode.ino) for one, inode in zip(new, inodes, strict=True))
        self._journal.put_objects(listed(one.info, inode, one.record) for one, inode in zip(new, inodes, strict=True))
        for one, inode in zip(new, inodes, strict=True):
            self._added(self._parent, one.name, inode)
        for one in row:
            if one.name in taken:
                self._add(one.info, one.hint)


def listed(info: ObjectInfo, inode: Inode, record: IndexRecord | None) -> Known:
    """The row of a listed object: its content is the inode's."""
    return Known(info.key, info.etag, info.size, inode.ino, inode.revision, '', 0, '' if record is None else record.lifecycle, info.mtime_ns,
                 0 if record is None else record.changed_ns)
