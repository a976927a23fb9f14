"""The log of files that were made and acknowledged, and are not in the tree database yet.

Owns the format of the log, which edge/fuse_made.c writes, and the rows that a made file becomes. It must not know who makes files.

A daemon that is killed with records in the log has acknowledged these files: the next one's recovery makes their rows. The bytes are in the
staging files already. Each batch that was taken over into the tree database ends a generation, in the same transaction; the log is then
written from its start again. So records count only if they are of the generation that comes next after the one in the database: others are
in it already, or what they build upon was lost with the power.
"""
from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from ctxfs.records import Ino
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal
from ctxfs.storage.tree_db import TreeDB

#: no .log, which is for reading
NAME = 'made.records'
_META = 'made_generation'
#: crc, length, generation, ino, parent, atime, mtime, ctime, mode, uid, gid, local, name_length, spare
_RECORD = Struct('<IIQQQqqqIIIIII')
_CRC_BYTES = 4
_NEW = Reason.CONTENT | Reason.NAMES | Reason.ATTRS


class Placed(NamedTuple):
    """A new file with its only name, and when it was made (ns since the epoch)."""
    inode: Inode
    parent: int
    name: bytes
    made_ns: int


class _Record(NamedTuple):
    generation: int
    ino: Ino
    parent: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    uid: int
    gid: int
    local: int
    #: empty: other attributes of a file that was made before
    name: bytes


class MadeLog:
    """The log of one state directory. Raises OSError, and as TreeDB does."""

    def __init__(self, db: TreeDB) -> None:
        self._db = db
        self.path = db.path.parent / NAME
        #: of the records that are written next
        self.generation = self._taken() + 1

    def _taken(self) -> int:
        """The generation that the tree database has. A new database's first is no number that an old log can have."""
        taken = self._db.meta(_META)
        if taken is None:
            taken = time.time_ns()
            self._db.set_meta(_META, taken)
        return int(taken)

    def open(self) -> int:
        """A descriptor for whoever writes the log, which is nobody else's to read."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(fd, 0o600)
        return fd

    def take(self, placed: Sequence[Placed], journal: Journal) -> None:
        """Make these files' rows; `generation` has ended when this returns. Nothing changes when it raises."""
        db = self._db
        with db.transaction():
            db.insert_inodes([one.inode for one in placed])
            db.insert_dentries([(one.parent, one.name, one.inode.ino) for one in placed])
            for parent, made_ns in {one.parent: one.made_ns for one in placed}.items():
                self._touch(db.inode(parent), made_ns, journal)
            journal.mark_new([one.inode for one in placed], _NEW)
            db.set_meta(_META, self.generation)
        self.generation += 1

    def _touch(self, directory: Inode, made_ns: int, journal: Journal) -> None:
        directory.mtime_ns = directory.ctime_ns = max(made_ns, directory.mtime_ns)
        self._db.store_times(directory)
        journal.touch(directory)

    def replay(self, journal: Journal) -> int:
        """After an unclean end: make the rows of what was acknowledged; returns of how many files."""
        made: dict[int, Placed] = {}
        for record in _records(self.path):
            if record.generation != self.generation:
                break
            if record.name:
                made[record.ino] = Placed(_inode(record), record.parent, record.name, record.ctime_ns)
            elif record.ino in made:
                made[record.ino] = made[record.ino]._replace(inode=_inode(record, local=made[record.ino].inode.local))
        if made:
            self.take(list(self._possible(made.values())), journal)
        return len(made)

    def _possible(self, made: Iterable[Placed]) -> Iterator[Placed]:
        """What has a place: nothing else can be, but a file of another database may be here."""
        taken: set[tuple[int, bytes]] = set()
        for one in made:
            if (one.parent, one.name) in taken:
                continue
            taken.add((one.parent, one.name))
            parent = self._db.inodes_of([one.parent]).get(one.parent)
            if parent is not None and parent.is_dir and parent.nlink and self._db.lookup(one.parent, one.name) is None \
                    and not self._db.inodes_of([one.inode.ino]):
                yield one


def _inode(record: _Record, local: int | None = None) -> Inode:
    return Inode(record.ino, record.mode, record.uid, record.gid, 0, 1, 0, record.atime_ns, record.mtime_ns, record.ctime_ns,
                 Content.STAGED, 2, local=record.local if local is None else local)


def _records(path: Path) -> Iterator[_Record]:
    """As far as they are whole."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    at = 0
    while at + _RECORD.size <= len(data):
        crc, length, *fields, name_length, _ = _RECORD.unpack_from(data, at)
        if length != _RECORD.size + name_length or at + length > len(data) or crc != zlib.crc32(data[at + _CRC_BYTES:at + length]):
            return
        yield _Record._make((*fields, data[at + _RECORD.size:at + length]))
        at += length
