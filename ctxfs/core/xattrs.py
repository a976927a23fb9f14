"""Extended attributes, where the mount was asked for them (`-o xattrs`).

Owns the namespaces it keeps and the limits. It must not know FUSE. Only `user.*`, and for root `trusted.*` and `security.*`, are kept,
as on ext4; they travel in the index and in the s3fs metadata dialect.
"""
from __future__ import annotations

import time

import msgspec

from ctxfs.core.filesystem import FileSystem
from ctxfs.errors import InvalidArgument, NoAttribute, NoSpace, NotPermitted, Unsupported
from ctxfs.storage.inode import Inode
from ctxfs.storage.tree_db import TreeDB

#: bytes of all names and values of one inode: what ext4 has without EA inodes is 4 KiB; the index record stays small with it
MAX_TOTAL = 64 << 10
_NAMESPACES = (b'user.', b'trusted.', b'security.')


class XAttrs:
    """See the module docstring. Raises NoAttribute, Unsupported (namespace), NoSpace, NotPermitted (user.* on what is neither file nor
    directory, as xattr(7) says)."""

    def __init__(self, db: TreeDB, fs: FileSystem) -> None:
        self._db = db
        self._fs = fs

    def _load(self, inode: Inode) -> dict[str, bytes]:
        return msgspec.msgpack.decode(inode.xattrs, type=dict[str, bytes]) if inode.xattrs else {}

    def _store(self, inode: Inode, values: dict[str, bytes]) -> None:
        packed = msgspec.msgpack.encode(values) if values else None
        if packed is not None and len(packed) > MAX_TOTAL:
            raise NoSpace(f'extended attributes of more than {MAX_TOTAL} bytes')
        with self._db.transaction():
            inode.xattrs = packed
            inode.ctime_ns = time.time_ns()
            self._db.execute('UPDATE inode SET xattrs = ? WHERE ino = ?', (packed, inode.ino))
            self._fs.store_attrs(inode)

    @staticmethod
    def _key(name: bytes) -> str:
        return name.decode('utf-8', 'surrogateescape').encode('utf-8', 'backslashreplace').decode()

    def get(self, inode: Inode, name: bytes) -> bytes:
        value = self._load(inode).get(self._key(name))
        if value is None:
            raise NoAttribute(f'no attribute {name!r}')
        return value

    def set(self, inode: Inode, name: bytes, value: bytes) -> None:
        if not name.startswith(_NAMESPACES):
            raise Unsupported(f'attribute namespace of {name!r}')
        if name in _NAMESPACES:
            raise InvalidArgument('an attribute needs a name after its namespace')
        if name.startswith(b'user.') and not (inode.is_regular or inode.is_dir):
            raise NotPermitted('user attributes belong to files and directories')
        self._store(inode, {**self._load(inode), self._key(name): value})

    def names(self, inode: Inode) -> list[bytes]:
        return [name.encode() for name in self._load(inode)]

    def remove(self, inode: Inode, name: bytes) -> None:
        values = self._load(inode)
        if values.pop(self._key(name), None) is None:
            raise NoAttribute(f'no attribute {name!r}')
        self._store(inode, values)
