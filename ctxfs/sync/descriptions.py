"""Descriptions: what others say of an inode's attributes (an index record, an object's metadata) put into the inode.

Owns new inodes of remote objects and what is taken over of an existing one's attributes. It must not know names, listings, or which of two
records is the later one.
"""
from __future__ import annotations

import stat
from typing import Any, NamedTuple

import msgspec

from ctxfs.records import Attrs, IndexRecord, ObjectInfo
from ctxfs.storage.held_hints import Hint, record_of
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.attributes import set_attrs
from ctxfs.sync.ports import Invalidator
from ctxfs.sync.protocol import HeadItem


class Defaults(NamedTuple):
    """Owner and mask for objects that carry no attributes."""
    uid: int
    gid: int
    umask: int


class Describer:
    """See the module docstring. Raises what TreeDB raises."""

    def __init__(self, db: TreeDB, journal: Journal, invalidator: Invalidator, *, defaults: Defaults) -> None:
        self._db = db
        self._journal = journal
        self._invalidator = invalidator
        self._defaults = defaults
        self.umask = defaults.umask

    def valid(self, info: ObjectInfo, hint: Hint | None) -> IndexRecord | None:
        """The record of a hint, if it is of this version and no tombstone."""
        if hint is None or hint[0] != info.etag or hint[1] != info.size:
            return None
        record = record_of(hint)
        return record if record.attrs is not None else None

    def new_file(self, info: ObjectInfo, record: IndexRecord | None) -> Inode:
        return self.new_inode(info, record, stat.S_IFREG | (0o666 & ~self.umask))

    def new_inode(self, info: ObjectInfo, record: IndexRecord | None, mode: int) -> Inode:
        inode = Inode(self._db.allocate_ino(), mode, self._defaults.uid, self._defaults.gid, 0, 2 if stat.S_ISDIR(mode) else 1,
                      info.size, info.mtime_ns, info.mtime_ns, info.mtime_ns, Content.CLEAN if stat.S_ISREG(mode) else Content.NONE, 1,
                      attrs_known=0)
        if record is not None and record.attrs is not None:
            set_attrs(inode, record.attrs)
            taken = record.link and self._db.row('SELECT 1 FROM inode WHERE link_group = ?', (record.link,))
            inode.link_group = record.link or None if not taken else None
        self._db.insert_inode(inode)
        return inode

    def file_row(self, ino: int, info: ObjectInfo, record: IndexRecord | None) -> tuple[Any, ...]:
        """The row of what `new_file` would make of a file without links, and of which nothing in the process holds an inode."""
        size, content, at = info.size, Content.CLEAN, info.mtime_ns
        mode = stat.S_IFREG | (0o666 & ~self.umask)
        attrs = None if record is None else record.attrs
        if attrs is None:
            return ino, mode, self._defaults.uid, self._defaults.gid, 0, 1, size, at, at, at, content, 1, 0, None, None, None, 0
        target = None
        if stat.S_ISREG(attrs.mode):
            mode = attrs.mode
        elif stat.S_ISLNK(attrs.mode) and attrs.target is not None:
            mode, content, target, size = attrs.mode, Content.NONE, attrs.target, len(attrs.target)
        xattrs = msgspec.msgpack.encode(attrs.xattrs) if attrs.xattrs else None
        return (ino, mode, attrs.uid, attrs.gid, 0, 1, size, attrs.atime_ns, attrs.mtime_ns, attrs.ctime_ns, content, 1, 1, target, xattrs, None, 0)

    def set_attrs(self, inode: Inode, attrs: Attrs) -> bool:
        """Whether that changed anything."""
        before = inode.row()
        set_attrs(inode, attrs)
        if inode.row() == before:
            return False
        self._db.store_all(inode)
        self._invalidator.attrs(inode.ino)
        return True

    def describe(self, inode: Inode, attrs: Attrs | None) -> None:
        """The object's own metadata was read: `attrs`, or None when the object is gone (what the listing said then stays)."""
        if attrs is None or (inode.content != Content.CLEAN and inode.is_regular):
            inode.attrs_known = 1
        elif stat.S_IFMT(attrs.mode) == stat.S_IFMT(inode.mode):
            self._set_others_attrs(inode, attrs)
        elif inode.is_regular and stat.S_ISLNK(attrs.mode) and attrs.target is not None:
            set_attrs(inode, attrs)
            inode.content, inode.size = Content.NONE, len(attrs.target)
        else:
            inode.attrs_known = 1       # a type that a bucket cannot give to this key: keep what the key says
        self._db.store_all(inode)
        self._invalidator.attrs(inode.ino)

    def describe_by(self, inode: Inode, item: HeadItem, key: str) -> None:
        """The same, and when it expires, by the answer to a HEAD of its object, which has the key `key`."""
        self.describe(inode, item.attrs)
        if item.lifecycle and item.info is not None:
            self._journal.note_lifetime(key, item.info.etag, item.lifecycle, item.info.mtime_ns)

    def _set_others_attrs(self, inode: Inode, attrs: Attrs) -> None:
        """All but what was changed here and is not uploaded yet."""
        pending, ours = self._journal.pending_row(inode.ino), (inode.mode, inode.uid, inode.gid, inode.xattrs)
        set_attrs(inode, attrs)
        if pending is not None and pending.reason & Reason.ATTRS:
            inode.mode, inode.uid, inode.gid, inode.xattrs = ours
