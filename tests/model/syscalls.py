"""System calls that Python's os module lacks: renameat2 with flags, directory streams with telldir and seekdir.

Owns their ctypes declarations. It must not know what is tested with them. Every failure is an OSError with the call's errno.
"""
from __future__ import annotations

import ctypes
import os

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.opendir.argtypes = [ctypes.c_char_p]
_libc.readdir.argtypes = _libc.closedir.argtypes = _libc.rewinddir.argtypes = [ctypes.c_void_p]
_libc.telldir.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_libc.rewinddir.restype = _libc.seekdir.restype = None


class _Dirent(ctypes.Structure):
    """struct dirent of 64-bit Linux (readdir(3))."""
    _fields_ = [('d_ino', ctypes.c_uint64), ('d_off', ctypes.c_int64), ('d_reclen', ctypes.c_ushort), ('d_type', ctypes.c_ubyte),
                ('d_name', ctypes.c_char * 256)]


_libc.readdir.restype = ctypes.POINTER(_Dirent)


def _failed(*paths: bytes) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), *paths)


def renameat2(source: bytes, target: bytes, flags: int) -> None:
    if _libc.renameat2(AT_FDCWD, source, AT_FDCWD, target, flags) != 0:
        raise _failed(source)


class DirectoryStream:
    """opendir(3) as a context manager; iterating gives raw names, `.` and `..` included."""

    def __init__(self, path: bytes) -> None:
        self._stream = _libc.opendir(path)
        if not self._stream:
            raise _failed(path)

    def __enter__(self) -> DirectoryStream:
        return self

    def __exit__(self, *exc: object) -> None:
        _libc.closedir(self._stream)

    def __iter__(self) -> DirectoryStream:
        return self

    def __next__(self) -> bytes:
        ctypes.set_errno(0)
        entry = _libc.readdir(self._stream)
        if entry:
            return entry.contents.d_name
        if ctypes.get_errno():
            raise _failed()
        raise StopIteration

    def tell(self) -> int:
        return _libc.telldir(self._stream)

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)
