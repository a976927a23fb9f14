"""Watching files of this host: the policy file, and the directory of a `file://` store. The one importer of watchdog.

Owns inotify's threads, the bounded notes of what changed between them and the loop, and watches whose directory went and came back. It must
not know what a change means: callbacks do, on the loop, one at a time for each watch. It sees nothing of a bucket.

Where the system has no watch to give (fs.inotify.max_user_watches), that is logged once and polling does alone what it does anyway.
"""
from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

import trio
from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

log = logging.getLogger(__name__)

# watchdog 7 sees a new directory twice where another one was made in it at once, sets its watch twice, and warns itself of it
warnings.filterwarnings('ignore', message='Callback with id', category=RuntimeWarning)

#: paths noted for one watch; beyond, the callback is told that anything may have changed
MAX_NOTED = 10_000
#: how long changes are gathered: a file's owner makes several at once, and an editor replaces a file in steps
FILE_SECONDS = 0.2
TREE_SECONDS = 0.1
#: how often it is checked that a watched directory is still the one at its path
TEND_SECONDS = 0.5
_STOP_SECONDS = 5.0
#: opening, reading and touching a file changes no object
_KINDS: list[type[FileSystemEvent]] = [DirCreatedEvent, DirDeletedEvent, DirMovedEvent, FileClosedEvent, FileCreatedEvent, FileDeletedEvent,
                                       FileModifiedEvent, FileMovedEvent]


class Changes(NamedTuple):
    """Paths (absolute; a directory's ends with `/`). `is_all`: anything may have changed besides."""
    paths: frozenset[bytes]
    is_all: bool


Callback = Callable[[Changes], Awaitable[None]]


class _Watch(FileSystemEventHandler):
    """One watched directory. `dispatch` is called by watchdog's thread, all else by the loop."""

    def __init__(self, directory: str, callback: Callback, *, name: bytes | None, seconds: float) -> None:
        self.directory = directory
        self.seconds = seconds
        self.callback = callback
        self.is_tree = name is None
        #: of the directory as it was when the watch was set; None: not watched
        self.identity: tuple[int, int] | None = None
        self.is_new = True
        self.is_gone = False
        self.observed: ObservedWatch | None = None
        self._path = None if name is None else os.path.join(os.fsencode(directory), name)
        self._lock = threading.Lock()
        self._noted: set[bytes] = set()
        self._is_all = False
        self._token = trio.lowlevel.current_trio_token()
        self._arrived = trio.Event()

    def dispatch(self, event: FileSystemEvent) -> None:
        if event.event_type == 'deleted' and os.fsencode(event.src_path) == os.fsencode(self.directory):
            self.is_gone = True     # one that is made at its place may well get its inode number
        end = b'/' if event.is_directory else b''
        self.note(os.fsencode(path) + end for path in (event.src_path, event.dest_path) if path)

    def note(self, paths: Iterable[bytes]) -> None:
        """Any thread's. The loop is woken by the first path only: a flood costs it nothing more."""
        with self._lock:
            was_empty = not self._noted and not self._is_all
            for path in paths:
                if self._path is None or path == self._path:
                    self._noted.add(path)
            if len(self._noted) > MAX_NOTED:
                self._noted.clear()
                self._is_all = True
            is_first = was_empty and bool(self._noted or self._is_all)
        if is_first:
            self._wake()

    def note_all(self) -> None:
        with self._lock:
            self._is_all = True
        self._wake()

    def _wake(self) -> None:
        try:
            self._token.run_sync_soon(lambda: self._arrived.set())
        except trio.RunFinishedError:
            return      # the mount ended

    async def deliver(self) -> None:
        """Until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived = trio.Event()
            await trio.sleep(self.seconds)
            with self._lock:
                changes = Changes(frozenset(self._noted), self._is_all)
                self._noted.clear()
                self._is_all = False
            if changes.paths or changes.is_all:
                await self.callback(changes)


class Watcher:
    """See the module docstring. Name what to watch, then `run`; made on the loop."""

    def __init__(self) -> None:
        self._watches: list[_Watch] = []
        self._is_limited = False

    def watch_file(self, path: str, callback: Callable[[], Awaitable[None]]) -> None:
        """Call back when the file at `path` was changed, replaced, made or removed. Its directory is watched: editors replace files."""
        directory, name = os.path.split(os.path.abspath(path))

        async def changed(changes: Changes) -> None:
            await callback()

        self._watches.append(_Watch(directory, changed, name=os.fsencode(name), seconds=FILE_SECONDS))

    def watch_tree(self, directory: str, callback: Callback) -> None:
        """Call back with what changed in the directory and below. It need not exist yet."""
        self._watches.append(_Watch(directory, callback, name=None, seconds=TREE_SECONDS))

    async def run(self) -> None:
        """Until cancelled; then nothing of it is left."""
        if not self._watches:
            return
        try:
            observer = await trio.to_thread.run_sync(_start)
        except OSError as error:
            log.info('files cannot be watched (%s); changes of the store are seen by polling', error)
            return
        try:
            async with trio.open_nursery() as nursery:
                for watch in self._watches:
                    nursery.start_soon(watch.deliver)
                while True:
                    await trio.to_thread.run_sync(self._tend, observer)
                    await trio.sleep(TEND_SECONDS)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_stop, observer)

    def _tend(self, observer: BaseObserver) -> None:
        """In a thread: set the watches that are not set, or whose directory is another one by now."""
        for watch in self._watches:
            identity = _identity(watch.directory)
            is_new, watch.is_new = watch.is_new, False
            if identity == watch.identity and not watch.is_gone:
                continue
            watch.is_gone = False
            if watch.observed is not None:
                observer.unschedule(watch.observed)
                watch.observed = None
            watch.identity = identity if identity is not None and self._schedule(observer, watch) else None
            if not is_new:
                watch.note_all()        # what changed while nobody watched

    def _schedule(self, observer: BaseObserver, watch: _Watch) -> bool:
        try:
            watch.observed = observer.schedule(watch, watch.directory, recursive=watch.is_tree, event_filter=_KINDS)
        except OSError as error:
            if not self._is_limited and not isinstance(error, FileNotFoundError):
                self._is_limited = True
                log.info('%s cannot be watched (%s); its changes are seen by polling', watch.directory, error)
            return False
        return True


def _start() -> BaseObserver:
    observer = Observer()
    observer.start()
    return observer


def _stop(observer: BaseObserver) -> None:
    observer.stop()
    observer.join(_STOP_SECONDS)


def _identity(directory: str) -> tuple[int, int] | None:
    try:
        found = os.stat(directory)
    except OSError:
        return None
    return found.st_dev, found.st_ino
