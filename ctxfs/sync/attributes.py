"""Attributes as they travel: an inode's to the bucket, another host's into an inode.

Owns which fields cross and which stay what the object is. It must not know listings, metadata dialects or the database: whoever changes an
inode writes its row.
"""
from __future__ import annotations

import stat

import msgspec

from ctxfs.records import Attrs
from ctxfs.storage.inode import Content, Inode


def set_attrs(inode: Inode, attrs: Attrs) -> None:
    """Take over what another host said; type and size stay what the object is, except that only metadata tells a symlink."""
    if inode.is_regular and stat.S_ISLNK(attrs.mode) and attrs.target is not None:
        inode.mode, inode.content, inode.size = attrs.mode, Content.NONE, len(attrs.target)
    elif stat.S_IFMT(attrs.mode) == stat.S_IFMT(inode.mode):
        inode.mode = attrs.mode
    inode.uid, inode.gid = attrs.uid, attrs.gid
    inode.mtime_ns, inode.atime_ns, inode.ctime_ns = attrs.mtime_ns, attrs.atime_ns, attrs.ctime_ns
    inode.target = attrs.target if inode.is_symlink else None
    inode.xattrs = msgspec.msgpack.encode(attrs.xattrs) if attrs.xattrs else None
    inode.attrs_known = 1


def get_attrs(inode: Inode) -> Attrs:
    """What other hosts are to learn of an inode."""
    return Attrs(mode=inode.mode, uid=inode.uid, gid=inode.gid, mtime_ns=inode.mtime_ns, atime_ns=inode.atime_ns, ctime_ns=inode.ctime_ns,
                 target=inode.target, rdev=inode.rdev,
                 xattrs=msgspec.msgpack.decode(inode.xattrs, type=dict[str, bytes]) if inode.xattrs else None)
