"""The FUSE side: pyfuse3 requests in, `core.FileSystem` calls out, errors as errnos. It only translates.

Owns the kernel-facing settings (timeouts, caching, mount options) and the boundary at which no exception may pass: an error that is
not FUSEError ends the whole mount (pyfuse3 answers nothing else). It must not know the tree database, the store or any policy. The one
importer of pyfuse3.

Timeouts are long and `keep_cache` is always on, because nobody changes the tree behind the kernel's back but ctxfs itself, which then
says so (`KernelInvalidator`).
"""
from __future__ import annotations

import errno
import functools
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from ctxfs.edge import fuse_ops  # before pyfuse3, which is to find what it loads

# isort: split
import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields, StatvfsData

from ctxfs.core.filesystem import Change, FileSystem
from ctxfs.core.namespace import Caller
from ctxfs.core.xattrs import XAttrs
from ctxfs.edge import fuse_listing, fuse_loop
from ctxfs.edge.fuse_made import MadeByLibrary
from ctxfs.edge.kernel_invalidator import KernelInvalidator
from ctxfs.edge.overheard import overheard
from ctxfs.errors import CtxfsError, DiskFull, RemoteUnavailable
from ctxfs.records import ROOT_INO
from ctxfs.storage.disk_space import FULL
from ctxfs.storage.inode import Inode

log = logging.getLogger(__name__)

#: seconds the kernel may trust a name or attributes; positive and negative
TIMEOUT = 86_400.0


#: what makes room (also a rename over a file, a truncation), and what takes it
REMOVING = frozenset({'unlink', 'rmdir', 'rename', 'setattr', 'open'})
GROWING = frozenset({'write', 'create', 'mkdir', 'mknod', 'symlink', 'link', 'setxattr'})
#: of a request on a full disk: each gives back half of what is cached
ATTEMPTS = 8
#: cannot be done twice
ENDING = frozenset({'release', 'releasedir'})


class Space(Protocol):
    """What can be done when the disk of the state directory is full."""

    def check(self) -> None:
        """Raises DiskFull while what little is left is kept for removals."""

    async def free(self, code: int, *, is_removal: bool) -> bool:
        """The system refused with the errno `code`. Whether another try is worth it."""


def boundary(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Known errors become their errno, a bound on waiting becomes EIO, anything else is logged and becomes EIO."""

    name = handler.__name__

    async def attempt(self: FuseAdapter, args: tuple[Any, ...]) -> Any:
        """On a full disk again, where something could be done about that. A failed attempt has changed nothing."""
        if name in GROWING:
            self._space.check()
        for _ in range(ATTEMPTS - 1):
            try:
                self.settle_made(name)
                return await handler(self, *args)
            except (DiskFull, OSError) as error:
                code = error.errno or 0
                if code not in FULL or name in ENDING or not await self._space.free(code, is_removal=name in REMOVING):
                    raise
        self.settle_made(name)
        return await handler(self, *args)

    @functools.wraps(handler)
    async def guarded(self: FuseAdapter, *args: Any) -> Any:
        self._requests += 1
        started = time.perf_counter() if self.is_debugging else 0.0
        try:
            return await attempt(self, args)
        except FUSEError:
            raise
        except CtxfsError as error:
            if error.errno == errno.EIO:
                log.warning('%s%s failed: %s', name, args[:2], error)
            raise FUSEError(error.errno) from None
        except OSError as error:    # the disk of the state directory: ENOSPC, EDQUOT, EIO are the program's to see
            log.warning('%s%s failed: %s', name, args[:2], error)
            raise FUSEError(error.errno or errno.EIO) from None
        except Exception:
            log.exception('%s%s failed unexpectedly', name, args[:2])
            raise FUSEError(errno.EIO) from None
        finally:
            fuse_ops.note_changes(self._fs.changes)
            if self.is_debugging:
                log.debug('%s%s %.0f µs', name, args[:2], 1e6 * (time.perf_counter() - started))

    return guarded


class FuseAdapter(pyfuse3.Operations):
    """See the module docstring. `statfs_path`: a path on the disk that bounds what can be written."""

    enable_writeback_cache = True
    supports_dot_lookup = True

    def __init__(self, fs: FileSystem, *, statfs_path: str, xattrs: XAttrs | None, read_seconds: float, space: Space) -> None:
        super().__init__()
        self._space = space
        self._read_seconds = read_seconds
        self._fs = fs
        self._statfs_path = statfs_path
        self._requests = 0
        self._xattrs = xattrs
        self.is_debugging = log.isEnabledFor(logging.DEBUG)
        #: what the library makes without us, where there is one
        self.made: MadeByLibrary | None = None
        fuse_ops.set_timeout(TIMEOUT)
        self._negative, self._unsure, self._whole = self._make_negative(TIMEOUT), self._make_negative(0), EntryAttributes()
        self._whole.generation = fuse_ops.WHOLE     # stands for all entries of a listing

    @property
    def requests(self) -> int:
        """How many the kernel has made so far."""
        return self._requests + fuse_ops.answered()

    @property
    def open_handles(self) -> int:
        """Open files and directories; of files that the library knows as many as there are inodes."""
        return len(self._fs.files) + len(self._fs.dirs) + fuse_ops.open_inodes()

    def note_changes(self) -> None:
        """Before each request: something else may have changed the tree since the last one."""
        fuse_ops.note_changes(self._fs.changes)

    def serve(self, linger_seconds: float, limit_seconds: float) -> int:
        """fuse_loop.install's."""
        made = self.made
        if made is not None:
            made.prepare(may_make=self._has_space())
        try:
            return fuse_ops.serve(linger_seconds, limit_seconds)
        finally:
            if made is not None:
                made.take_over()
            fuse_listing.close_released(self._fs.releasedir)
            self.note_changes()     # of which the request that waits for Python is to know

    def _has_space(self) -> bool:
        try:
            self._space.check()
        except DiskFull:
            return False
        return True

    def settle_made(self, name: str) -> None:
        """Before a request of this name. Raises DiskFull while what was made for the kernel has no row; closing a file need not wait for it."""
        if self.made is not None and name not in ENDING:
            self.made.settle()

    # --- translation --------------------------------------------------------------------------------------------------------------

    def _entry(self, inode: Inode) -> EntryAttributes:
        """Made anew only when a field changed: a directory listing needs thousands of them, and one costs 6 µs."""
        fields = (inode.mode, inode.nlink, inode.uid, inode.gid, inode.size, inode.atime_ns, inode.mtime_ns, inode.ctime_ns,
                  inode.content, inode.revision)
        answer = inode.answer
        if answer is not None and answer[0] == fields:
            return answer[1]  # type: ignore[return-value]
        entry = self._make_entry(inode)
        inode.answer = (fields, entry)
        return entry

    def _make_entry(self, inode: Inode) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = inode.ino
        entry.st_mode = inode.mode
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid
        entry.st_gid = inode.gid
        entry.st_rdev = inode.rdev
        entry.st_size = 4096 if inode.is_dir else inode.size
        entry.st_blksize = 4096
        entry.st_blocks = self._fs.stat_blocks(inode)
        entry.st_atime_ns = inode.atime_ns
        entry.st_mtime_ns = inode.mtime_ns
        entry.st_ctime_ns = inode.ctime_ns
        entry.entry_timeout = TIMEOUT
        entry.attr_timeout = TIMEOUT
        return entry

    @staticmethod
    def _make_negative(timeout: float) -> EntryAttributes:
        """There is no such name, and the kernel need not ask again for so many seconds."""
        entry = EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = timeout
        return entry

    # --- names --------------------------------------------------------------------------------------------------------------------

    @boundary
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        inode = await self._fs.lookup(parent_inode, name)
        if inode is not None:
            return self._entry(inode)
        return self._negative if self._fs.note_absence(parent_inode, name) else self._unsure

    @boundary
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._fs.make(parent_inode, name, mode=mode, caller=Caller(ctx.uid, ctx.gid), rdev=rdev))

    @boundary
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        inode = await self._fs.make(parent_inode, name, mode=mode, caller=Caller(ctx.uid, ctx.gid))
        if self.made is not None:
            self.made.arm(inode.ino)
        return self._entry(inode)

    @boundary
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._fs.make(parent_inode, name, mode=stat.S_IFLNK | 0o777, caller=Caller(ctx.uid, ctx.gid),
                                               target=target))

    @boundary
    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int,
                     ctx: RequestContext) -> tuple[FileInfo, EntryAttributes]:
        fh, inode = await self._fs.create(parent_inode, name, mode=mode, flags=flags, caller=Caller(ctx.uid, ctx.gid))
        if self.made is not None:
            self.made.arm(parent_inode)
        return FileInfo(fh=fh, keep_cache=True), self._entry(inode)

    @boundary
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._fs.link(inode, new_parent_inode, new_name))

    @boundary
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._fs.unlink(parent_inode, name)

    @boundary
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._fs.rmdir(parent_inode, name)

    @boundary
    async def rename(self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int,
                     ctx: RequestContext) -> None:
        await self._fs.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @boundary
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self._fs.readlink(inode)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Has no answer, so its failure can only be logged; what stays behind is removed by the next recovery."""
        try:
            self._fs.forget(inode_list)
            for ino, _ in inode_list:
                if not self._fs.is_known(ino):
                    fuse_ops.set_plain(ino, False)
        except Exception:
            log.exception('forget failed')

    def detached(self) -> None:
        """There is no mount any more. What this cannot settle is settled by the next recovery."""
        Inode.counted_elsewhere = staticmethod(lambda ino: 0)
        try:
            self._fs.detached()
        except Exception:
            log.exception('not all that was open could be closed')

    # --- attributes ---------------------------------------------------------------------------------------------------------------

    @boundary
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._fs.getattr(inode))

    @boundary
    async def setattr(self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None,
                      ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._fs.setattr(inode, Change(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None)))

    @boundary
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """The local disk's numbers: what can be written before the next upload is bounded by it, the bucket is not."""
        local = os.statvfs(self._statfs_path)
        found = StatvfsData()
        found.f_bsize, found.f_frsize = local.f_bsize, local.f_frsize
        found.f_blocks, found.f_bfree, found.f_bavail = local.f_blocks, local.f_bfree, local.f_bavail
        found.f_files, found.f_ffree, found.f_favail = local.f_files, local.f_ffree, local.f_favail
        found.f_namemax = 255
        return found

    @boundary
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """ENOSYS is remembered by the kernel: it never asks again (it would before every first write to a file)."""
        return self._require_xattrs().get(await self._fs.getattr(inode), name)

    @boundary
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._require_xattrs().set(await self._fs.getattr(inode), name, value)

    @boundary
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return self._require_xattrs().names(await self._fs.getattr(inode))

    @boundary
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self._require_xattrs().remove(await self._fs.getattr(inode), name)

    def _require_xattrs(self) -> XAttrs:
        if self._xattrs is None:
            raise FUSEError(errno.ENOSYS)
        return self._xattrs

    # --- files --------------------------------------------------------------------------------------------------------------------

    @boundary
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        fh = await self._fs.open(inode, flags)
        if self._fs.inode(inode).remote_version == 0:
            fuse_ops.set_plain(inode, True)
        return FileInfo(fh=fh, keep_cache=True)

    @boundary
    async def read(self, fh: int, off: int, size: int) -> bytes | memoryview:
        if ino := fuse_ops.ino_of(fh):
            self._fs.opened_file(fh, ino)
        # A process that waits here dies on a signal; the request itself must end all the same.
        with trio.move_on_after(self._read_seconds):
            return await self._fs.read(fh, off, size)
        raise RemoteUnavailable(f'no answer from the store within {self._read_seconds:g} s')

    @boundary
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._fs.write(fh, off, buf)

    @boundary
    async def flush(self, fh: int) -> None:
        """Nothing to do: the kernel has written its dirty pages before. ENOSYS makes it stop asking, and close() still succeeds."""
        raise FUSEError(errno.ENOSYS)

    @boundary
    async def release(self, fh: int) -> None:
        await self._fs.release(fh)

    @boundary
    async def fsync(self, fh: int, datasync: bool) -> None:
        if ino := fuse_ops.ino_of(fh):
            self._fs.opened_file(fh, ino)
        await self._fs.fsync(fh)

    # --- directories --------------------------------------------------------------------------------------------------------------

    @boundary
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return await self._fs.opendir(inode)

    @boundary
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        is_kept = fuse_ops.is_loaded()
        if is_kept:
            await self._fs.opened_dir(fh, fuse_ops.ino_of(fh))
            if (entries := self._fs.listed(fh, start_id)) is not None:
                self._fs.told(entries, fuse_listing.write(entries, fh, start_id, lambda: pyfuse3.readdir_reply(token, b'', self._whole, 0)))
                return
        for name, inode, next_id in await self._fs.readdir(fh, start_id, is_kept=is_kept):
            if not pyfuse3.readdir_reply(token, name, self._entry(inode) if inode.attrs_known else _name_only(inode), next_id):
                return
            if name != b'.' and name != b'..' and inode.attrs_known:      # the kernel takes no reference for others
                self._fs.remember(inode)

    @boundary
    async def releasedir(self, fh: int) -> None:
        self._fs.releasedir(fh)

    @boundary
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._fs.fsyncdir(fuse_ops.ino_of(fh) if fuse_ops.is_loaded() else self._fs.dirs.get(fh).inode.ino)


def _name_only(inode: Inode) -> pyfuse3.EntryAttributes:
    """Of which the kernel learns number and type; that of a file, which may be a symlink, is not known."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino, entry.st_mode, entry.generation = inode.ino, stat.S_IFDIR if inode.is_dir else 0, fuse_ops.NAME_ONLY
    return entry


def fuse_options(*, name: str, read_only: bool, allow_other: bool, kernel_options: Sequence[str]) -> set[str]:
    """Options of the mount itself. `default_permissions`: the kernel checks modes and owners."""
    # as fuse_opt.h has it: else what follows a comma would be an option of its own
    escaped = name.replace('\\', '\\\\').replace(',', '\\,')
    options = set(pyfuse3.default_options) | {f'fsname=ctxfs#{escaped}', 'subtype=ctxfs', *kernel_options}
    if read_only:
        options.add('ro')
    if allow_other:
        options.add('allow_other')
    return options


def new_invalidator() -> KernelInvalidator:
    return KernelInvalidator(pyfuse3)


def attach(adapter: FuseAdapter, mountpoint: str, options: set[str]) -> None:
    """Mount. Raises CtxfsError with what libfuse said."""
    with overheard() as last_line:      # the exception says only that it failed
        try:
            pyfuse3.init(adapter, mountpoint, options)
        except RuntimeError as error:
            raise CtxfsError(f'cannot mount on {mountpoint}: {last_line() or error}') from error


async def serve_requests(adapter: FuseAdapter) -> None:
    """Answer the kernel until the file system is unmounted."""
    fuse_loop.install(pyfuse3, before_request=adapter.note_changes, serve=adapter.serve if fuse_ops.is_loaded() else None)
    await pyfuse3.main(min_tasks=4)
    adapter.detached()


def detach(*, unmount: bool) -> None:
    """Close the session; `unmount`: the mount may still be there."""
    pyfuse3.close(unmount=unmount)


def terminate() -> None:
    """Make `serve_requests` return (from the loop's own thread)."""
    pyfuse3.terminate()


def root_ino() -> int:
    assert pyfuse3.ROOT_INODE == ROOT_INO
    return pyfuse3.ROOT_INODE
