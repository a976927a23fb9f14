"""What a running mount answers on its control socket.

Owns the JSON that `ctxfs status` and scripts see (DESIGN §3). It must not know sockets or the command line, and changes nothing itself:
sync and shutdown are asked of the engine and the daemon.
"""
from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import trio

from ctxfs import __version__
from ctxfs.config import MountOptions
from ctxfs.records import ROOT_INO
from ctxfs.storage.inode import Inode
from ctxfs.storage.journal import Journal, Pending
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.conflicts import ConflictKeeper
from ctxfs.sync.engine import FlushResult, UploadEngine
from ctxfs.sync.remote_tree import RemoteTreeLoader
from ctxfs.sync.tasks import TaskLog

#: entries of a list in the status; the counts beside them are exact
LISTED = 100
#: how long the kernel may take to hand over the pages that it has not written yet
PAGES_SECONDS = 60.0


class DaemonControl:
    """Implements edge.control.MountControl."""

    def __init__(self, options: MountOptions, db: TreeDB, journal: Journal, *, engine: UploadEngine, remote: RemoteTreeLoader,
                 conflicts: ConflictKeeper, tasks: TaskLog, request_unmount: Callable[[], None],
                 collect_dirty_pages: Callable[[], Awaitable[None]]) -> None:
        self._options = options
        self._db = db
        self._journal = journal
        self._engine = engine
        self._remote = remote
        self._conflicts = conflicts
        self._tasks = tasks
        self._request_unmount = request_unmount
        self._collect_dirty_pages = collect_dirty_pages
        #: 'mounted', then 'flushing' once the mount point is gone
        self.state = 'mounted'
        #: set when the final write-back ended, with its result
        self.finished = trio.Event()
        self.final: FlushResult | None = None

    # --- methods ------------------------------------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """See edge.control.MountControl."""
        local_files, local_bytes = self._db.count_local_only()
        options = self._options
        return {
            'contextId': options.context_id, 'contextName': options.context_name, 'mountpoint': options.mountpoint, 'pid': os.getpid(),
            'store': options.store_url, 'stateDir': options.state_dir, 'state': self.state, 'readOnly': options.read_only,
            'pending': self._engine.pending(),
            'localOnly': {'files': local_files, 'bytes': local_bytes},
            'conflicts': self._conflicts.count(),
            'tasks': self._tasks.to_list(),
            'uploading': [self._path(inode) for ino in list(self._engine.uploading)[:LISTED]
                          if (inode := self._db.live_inode(ino)) is not None],
            'failed': [self._failure(row, inode) for row, inode in self._journal.failed(LISTED)],
            'unmountable': [{'key': _printable(key), 'reason': reason} for key, reason in self._journal.unmountable(LISTED)],
            'remote': {'isComplete': self._remote.is_complete, 'objects': self._remote.listed_objects,
                       'error': str(self._remote.error or '')}}

    def _failure(self, row: Pending, inode: Inode) -> dict[str, Any]:
        is_retried = 0 < row.retry_ns < 2**62
        return {'path': self._path(inode), 'error': row.error, 'attempt': row.attempt, 'nextRetry': row.retry_ns / 1e9 if is_retried else 0}

    def _path(self, inode: Inode) -> str:
        """For people: the first name, printable."""
        parts: list[bytes] = []
        ino = inode.ino
        while ino != ROOT_INO:
            names = self._db.names_of(ino)
            if not names:
                return '(removed)'
            ino, name = names[0]
            parts.append(name)
        return '/' + b'/'.join(reversed(parts)).decode('utf-8', 'backslashreplace')

    async def info(self) -> dict[str, Any]:
        options = self._options
        return {'version': __version__, 'pid': os.getpid(), 'contextId': options.context_id, 'contextName': options.context_name,
                'mountpoint': options.mountpoint, 'store': options.store_url, 'stateDir': options.state_dir,
                'cacheDir': options.cache_dir, 'cacheSize': options.cache_size, 'readOnly': options.read_only, 'fsync': options.fsync,
                'logFile': options.log_file}

    async def sync(self, path: str | None = None, mode: Literal['upload', 'download'] = 'upload', wait: bool = True) -> dict[str, Any]:
        """Everything pending is uploaded, `path` or not: more than asked for, never less."""
        if self.state != 'mounted':
            return await self._final()
        run = self._engine.flush if mode == 'upload' else self._engine.download
        with trio.move_on_after(PAGES_SECONDS) as pages:
            await self._collect_dirty_pages()
        if pages.cancelled_caught:
            return {'ok': False, 'files': 0, 'bytes': 0, 'message': f'the kernel did not write its pages of open files within {PAGES_SECONDS:g} s'}
        if not wait:
            self._engine.spawn(run)
            return {'ok': True, 'files': 0, 'bytes': 0, 'message': 'scheduled'}
        return _answer(await run())

    async def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """While mounted: upload what is pending now and wait for it; afterwards: wait for the final write-back."""
        ok, message = False, f'not done within {timeout:g} s' if timeout is not None else ''
        with trio.move_on_after(timeout if timeout is not None else 1e9):
            answer = await self.sync()
            ok, message = answer['ok'], answer['message']
        pending = self._engine.pending()
        return {'ok': ok, 'pending': {'files': pending['files'], 'bytes': pending['bytes']}, 'message': message}

    async def _final(self) -> dict[str, Any]:
        await self.finished.wait()
        assert self.final is not None
        return _answer(self.final)

    async def shutdown(self) -> dict[str, Any]:
        self._request_unmount()
        return {'ok': True}


def _answer(result: FlushResult) -> dict[str, Any]:
    return {'ok': result.ok, 'files': result.files, 'bytes': result.bytes, 'message': result.message}


def _printable(key: str) -> str:
    """JSON can hold any text but lone surrogates; terminals get what they can show from the command line."""
    return key.encode('utf-8', 'backslashreplace').decode()
