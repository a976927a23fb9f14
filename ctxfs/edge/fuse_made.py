"""Files that the library makes without Python (fuse_made.c): what it may do, and what it has done.

Owns the directories that are armed, what the library is allowed until the next look, and how its memory is read. Python runs only between
two of its looks (fuse_loop.py): before one `prepare`, after it `take_over`.

A directory is armed by its first creation: from then on the library knows all its names (those that are removed too, which is only slower).
`TreeDB.watcher` is told of whatever changes in it by another way.
"""
from __future__ import annotations

import ctypes
import logging
from struct import Struct
from typing import Any

from ctxfs.core.filesystem import MAX_ABSENCES, FileSystem
from ctxfs.core.made_files import Made
from ctxfs.core.ports import Room
from ctxfs.edge import fuse_ops
from ctxfs.errors import CtxfsError
from ctxfs.records import RESERVED_DIR, ROOT_INO
from ctxfs.storage.gating import Gating
from ctxfs.storage.inode import Inode
from ctxfs.storage.made_log import MadeLog
from ctxfs.storage.staging import PER_DIRECTORY, Staging
from ctxfs.storage.tree_db import TreeDB, Watcher

log = logging.getLogger(__name__)

#: as fuse_made.c has it: inode numbers with the same remainder share a place
DIRECTORIES = 1024
#: names in a directory that is armed
NAMES_MOST = 8192
#: inode numbers that the library gets at a time, and left when it gets others
NUMBERS = 512
_FEW = 256
_MADE = Struct('<QQQQQqqqqIIIIiIIIII256s')
_ABSENT = Struct('<QQ256s')


class MadeByLibrary(Watcher):
    """See the module docstring. `log_fd`: of the log of made files, which the library writes."""

    def __init__(self, fs: FileSystem, db: TreeDB, staging: Staging, *, gating: Gating, room: Room, made_log: MadeLog,
                 has_xattrs: bool = False) -> None:
        library = fuse_ops.library()
        assert library is not None
        _declare(library)
        self._library = library
        self._fs = fs
        self._db = db
        self._staging = staging
        self._gating = gating
        self._room = room
        self._log = made_log
        self._log_fd = made_log.open()
        #: the generation that the library writes
        self._told = made_log.generation
        self._gate = gating.rules.gate
        #: by remainder, the directory that has the place
        self._armed = [0] * DIRECTORIES
        self._bytes_left, self._absences_left, self._may_make, self._made_count, self._absent_count = (
            ctypes.c_uint64.in_dll(library, f'ctxfs_{name}') for name in ('bytes_left', 'absences_left', 'may_make', 'made_count', 'absent_count'))
        self._made_at = ctypes.addressof(ctypes.c_char.in_dll(library, 'ctxfs_made'))
        self._absent_at = ctypes.addressof(ctypes.c_char.in_dll(library, 'ctxfs_absent'))
        library.ctxfs_begin_log(self._log_fd, self._told)
        ctypes.c_uint64.in_dll(library, 'ctxfs_has_xattrs').value = has_xattrs
        db.watcher = self

    # --- around the library's look ----------------------------------------------------------------------------------------------------

    def prepare(self, *, may_make: bool) -> None:
        """The library is about to look for requests."""
        if self._gating.rules.gate is not self._gate:
            self._gate = self._gating.rules.gate
            self.undone()
        if self._told != self._log.generation:      # whoever took over what there was
            self._renew()
        may_make = may_make and not self._db.damage and not self._fs.made.is_waiting
        self._may_make.value = may_make
        if may_make:
            self._bytes_left.value = self._room.headroom()
            self._absences_left.value = MAX_ABSENCES - self._fs.absences()

    def take_over(self) -> None:
        """The library has looked. What cannot be taken over yet waits in FileSystem.made."""
        if absent := self._absent_count.value:
            data = ctypes.string_at(self._absent_at, absent * _ABSENT.size)
            self._fs.note_absences((parent, name[:length]) for parent, length, name in _ABSENT.iter_unpack(data))
        made = self._made_count.value
        if made:
            data = ctypes.string_at(self._made_at, made * _MADE.size)
            batch = [Made._make((*fields, name[:length])) for *fields, length, _, name in _MADE.iter_unpack(data)]
        if made or absent:
            self._library.ctxfs_taken()
        if made:
            try:
                self._fs.take_over(batch)
            except CtxfsError as error:
                log.warning('%d new files are not in the tree database yet: %s', made, error)
            except Exception:       # raised into pyfuse3's loop it would end the mount
                log.exception('%d new files were not taken over', made)

    def settle(self) -> None:
        """Before a request that Python answers. Raises DiskFull, and as TreeDB, as long as what was made cannot be taken over. A damaged
        database takes over nothing any more, and what is in it can be read all the same."""
        if self._fs.made.is_waiting and not self._db.damage:
            self._fs.take_over(())

    def _renew(self) -> None:
        self._told = self._log.generation
        self._library.ctxfs_begin_log(self._log_fd, self._told)
        if self._library.ctxfs_numbers_left() < _FEW:
            self._give_numbers()

    def _give_numbers(self) -> None:
        """A range whose staging files belong into one directory. Without, the library makes none."""
        try:
            count = min(NUMBERS, PER_DIRECTORY - self._db.next_ino % PER_DIRECTORY)
            first = self._db.allocate_inos(count)
            self._library.ctxfs_set_numbers(first, count, self._staging.open_directory(first))
        except (OSError, CtxfsError) as error:
            log.info('no numbers for new files: %s', error)

    # --- armed directories ----------------------------------------------------------------------------------------------------------------

    def arm(self, parent: int) -> None:
        """The directory, whose entries are all known, is likely to get others. What was asked for is done: nothing is raised."""
        try:
            self._arm(parent)
        except CtxfsError as error:
            log.warning('directory %d is left to Python: %s', parent, error)

    def _arm(self, parent: int) -> None:
        if not self._library.ctxfs_numbers_left():
            self._give_numbers()
        if self._library.ctxfs_is_armed(parent) or parent >> fuse_ops.SERIAL_SHIFT:
            return
        names, local = self._db.names_in(parent, NAMES_MOST), self._gating.local_below(parent)
        if names is None or local is None:
            return
        if parent == ROOT_INO:
            names.append(RESERVED_DIR.rstrip('/').encode())
        packed = b''.join(len(name).to_bytes(2, 'little') + name for name in names)
        if self._library.ctxfs_arm(parent, local, packed, len(packed)):
            self._armed[parent % DIRECTORIES] = parent
            self.changed(self._fs.inode(parent))

    def named(self, parent: int, name: bytes) -> None:
        if self._armed[parent % DIRECTORIES] == parent:
            self._library.ctxfs_add_name(parent, name, len(name))

    def changed(self, inode: Inode) -> None:
        ino = inode.ino
        if self._armed[ino % DIRECTORIES] != ino:
            return
        if not inode.is_dir or not inode.nlink or not inode.attrs_known:
            self.gone(ino)
        else:
            self._library.ctxfs_set_directory(ino, inode.mode, inode.nlink, inode.uid, inode.gid, inode.atime_ns, inode.mtime_ns, inode.ctime_ns)

    def gone(self, ino: int) -> None:
        if self._armed[ino % DIRECTORIES] == ino:
            self._armed[ino % DIRECTORIES] = 0
            self._library.ctxfs_disarm(ino)

    def moved(self) -> None:
        """What the white lists say of a directory may be something else now."""
        if not self._gating.is_open:
            self.undone()

    def undone(self) -> None:
        """No directory is armed."""
        self._armed = [0] * DIRECTORIES
        self._library.ctxfs_disarm_all()


def _declare(library: Any) -> None:
    """The types of the functions that are used here."""
    number, wide, signed = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64
    for name, result, *arguments in (
            ('arm', ctypes.c_int, wide, number, ctypes.c_char_p, ctypes.c_size_t), ('is_armed', ctypes.c_int, wide), ('disarm', None, wide),
            ('disarm_all', None), ('add_name', None, wide, ctypes.c_char_p, ctypes.c_size_t),
            ('set_directory', None, wide, number, number, number, number, signed, signed, signed),
            ('set_numbers', None, wide, wide, ctypes.c_int), ('numbers_left', wide), ('begin_log', None, ctypes.c_int, wide), ('taken', None)):
        function = getattr(library, f'ctxfs_{name}')
        function.restype, function.argtypes = result, arguments
