"""Loads the library that opens and closes files and directories without Python (fuse_ops.c says what it does and why).

Owns where the library is found, and how its numbers are read. Import it before pyfuse3: the dynamic linker gives pyfuse3 the first
`fuse_session_new` that it finds. Where the library was not built (no compiler at installation, another libfuse), pyfuse3's own way is
as right, and slower: listing a known directory again is four requests instead of one, reading a cached file two instead of none.
"""
from __future__ import annotations

import ctypes
import importlib.util

#: the library's module-like name beside the installed packages (hatch_build.py)
LIBRARY = '_ctxfs_fuse_ops'
#: of a handle that the library made, the bits above number it, those below are the inode; numbers below 1 << SERIAL_SHIFT are Python's
SERIAL_SHIFT = 40

#: what `serve` returns
NOTHING, FOR_PYTHON, TIME_OVER = range(3)
#: generation of an entry of a directory that is answered without attributes, which pyfuse3 cannot say; and of one that stands for many
NAME_ONLY, WHOLE = (1 << 64) - 1, (1 << 64) - 2


def _load() -> ctypes.CDLL | None:
    found = importlib.util.find_spec(LIBRARY)
    if found is None or found.origin is None:
        return None
    try:
        library = ctypes.CDLL(found.origin, mode=ctypes.RTLD_GLOBAL)
    except OSError:     # built for a libfuse that is not here any more
        return None
    library.ctxfs_set_plain.argtypes, library.ctxfs_set_plain.restype = (ctypes.c_uint64, ctypes.c_int), None
    library.ctxfs_opens.argtypes, library.ctxfs_opens.restype = (ctypes.c_uint64,), ctypes.c_uint64
    library.ctxfs_open_inodes.argtypes, library.ctxfs_open_inodes.restype = (), ctypes.c_uint64
    library.ctxfs_serve.argtypes, library.ctxfs_serve.restype = (ctypes.c_long, ctypes.c_long), ctypes.c_int
    return library


_library = _load()
_answered = None if _library is None else ctypes.c_uint64.in_dll(_library, 'ctxfs_answered')
_changes = None if _library is None else ctypes.c_uint64.in_dll(_library, 'ctxfs_changes')


def is_loaded() -> bool:
    return _library is not None


def library() -> ctypes.CDLL | None:
    """For fuse_made.py and fuse_listing.py. None where it was not built."""
    return _library


def set_timeout(seconds: float) -> None:
    """How long the kernel may trust what the library answers."""
    if _library is not None:
        ctypes.c_uint64.in_dll(_library, 'ctxfs_timeout').value = int(seconds)


def serve(linger_seconds: float, limit_seconds: float) -> int:
    """Let the library answer what it can, until nothing comes for the first time (NOTHING), a request waits for Python (FOR_PYTHON), or the second
    has passed (TIME_OVER)."""
    assert _library is not None
    return _library.ctxfs_serve(int(linger_seconds * 1e6), int(limit_seconds * 1e6))


def ino_of(fh: int) -> int:
    """The inode of a handle that the library made; 0 for one of Python's."""
    return fh & (1 << SERIAL_SHIFT) - 1 if fh >> SERIAL_SHIFT else 0


def answered() -> int:
    """How many requests the library has answered."""
    return 0 if _answered is None else _answered.value


def note_changes(count: int) -> None:
    """How many changes were made so far to anything that attributes are made from (TreeDB.changes). To be told before each request and each
    answer: what was answered under the same number is answered again."""
    if _changes is not None:
        _changes.value = count


def set_plain(ino: int, is_plain: bool) -> None:
    """Whether the library may open this file for reading. Everything about the inode that opening would find out is known then; it must
    be taken back before the kernel forgets the inode, and when its open handles become stale."""
    if _library is not None:
        _library.ctxfs_set_plain(ino, is_plain)


def open_inodes() -> int:
    """Of how many files there are such handles as `opens` counts."""
    return 0 if _library is None else _library.ctxfs_open_inodes()


def opens(ino: int) -> int:
    """How many handles of this file the library has made that Python does not know (`FileSystem.opened_file` makes one known)."""
    return 0 if _library is None else _library.ctxfs_opens(ino)
