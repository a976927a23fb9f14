"""Listings that the library writes (fuse_listing.c): entries handed over as numbers, and what it did of a listing without Python.

Owns how entries are handed over. It must not know where they come from (core/listed_entries.py).
"""
from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable

from ctxfs.core.listed_entries import ListedEntries
from ctxfs.edge import fuse_ops
from ctxfs.errors import CtxfsError

log = logging.getLogger(__name__)

_library = fuse_ops.library()
if _library is not None:
    _library.ctxfs_list.restype = None
    _library.ctxfs_list.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
    _written, _count = (ctypes.c_uint64.in_dll(_library, f'ctxfs_{name}') for name in ('written', 'released_count'))
    _released_at = ctypes.addressof(ctypes.c_uint64.in_dll(_library, 'ctxfs_released'))


def write(entries: ListedEntries, fh: int, offset: int, add: Callable[[], object]) -> int:
    """Write as many as there is room for into the answer to which `add` adds an entry of generation WHOLE; returns how many. They follow `offset` in
    the listing of the directory that is open as `fh`."""
    assert _library is not None
    at, _ = entries.numbers.buffer_info()
    names = b''.join(entries.names)     # to be kept until they are written
    _library.ctxfs_list(at, names, len(entries), offset, fh if entries.is_whole else 0)
    add()
    return _written.value


def close_released(close: Callable[[int], None]) -> None:
    """`close` each directory that the library was told of in listings and has closed since."""
    if _library is None or not (count := _count.value):
        return
    handles = list((ctypes.c_uint64 * count).from_address(_released_at))
    _count.value = 0
    for fh in handles:
        try:
            close(fh)
        except CtxfsError as error:     # Python never knew it; or it had no name any more, and there is no space to note its end
            log.debug('directory %d: %s', fh, error)
        except Exception:       # raised into pyfuse3's loop it would end the mount
            log.exception('directory %d was not closed', fh)
