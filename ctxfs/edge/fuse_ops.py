"""Loads the library that opens directories without Python (fuse_ops.c says what it does and why).

Owns where the library is found, and how its numbers are read. Import it before pyfuse3: the dynamic linker gives pyfuse3 the first
`fuse_session_new` that it finds. Where the library was not built (no compiler at installation, another libfuse), pyfuse3's own way is
as right, and slower: listing a known directory again is four requests instead of one.
"""
from __future__ import annotations

import ctypes
import importlib.util

#: the library's module-like name beside the installed packages (hatch_build.py)
LIBRARY = '_ctxfs_fuse_ops'
#: of the number of a directory handle, the bits above are the library's, those below the inode number
_SERIAL_SHIFT = 40


def _load() -> ctypes.CDLL | None:
    found = importlib.util.find_spec(LIBRARY)
    if found is None or found.origin is None:
        return None
    try:
        return ctypes.CDLL(found.origin, mode=ctypes.RTLD_GLOBAL)
    except OSError:     # built for a libfuse that is not here any more
        return None


_library = _load()
_answered = None if _library is None else ctypes.c_uint64.in_dll(_library, 'ctxfs_answered')


def is_loaded() -> bool:
    return _library is not None


def ino_of(fh: int) -> int:
    """The directory of a handle that the library made."""
    return fh & (1 << _SERIAL_SHIFT) - 1


def answered() -> int:
    """How many requests the library has answered."""
    return 0 if _answered is None else _answered.value
