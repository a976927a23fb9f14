"""What attributes can be at all: the bounds of the kernel and of the tree database for what others wrote into a bucket.

Owns these bounds, for the two ways on which attributes arrive (the index, and objects' metadata). It must not know either's format.
"""
from __future__ import annotations

import stat
from collections.abc import Mapping

FILE_TYPES = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK})
#: ns since the epoch, and sizes, are integers of SQLite and of the kernel
INT64_MAX = (1 << 63) - 1
INT64_MIN = -(1 << 63)
#: PATH_MAX less the NUL that ends it (limits.h)
TARGET_MAX = 4095
#: a name of 255 bytes that is not UTF-8 takes up to four characters for each
XATTR_NAME_MAX = 1020
XATTRS_MAX = 64 << 10


def clamp_ns(ns: int) -> int:
    """The time, or the nearest that a file can have."""
    return max(INT64_MIN, min(ns, INT64_MAX))


def is_target(target: bytes) -> bool:
    """Whether a symlink can have it."""
    return 0 < len(target) <= TARGET_MAX and b'\0' not in target


def are_xattrs(xattrs: Mapping[str, bytes]) -> bool:
    """Whether a file can have them."""
    return sum(map(len, xattrs.values())) <= XATTRS_MAX and all(map(_is_xattr_name, xattrs))


def _is_xattr_name(name: str) -> bool:
    try:
        return 0 < len(name.encode('utf-8')) <= XATTR_NAME_MAX and '\0' not in name
    except UnicodeEncodeError:      # half of a surrogate pair
        return False
