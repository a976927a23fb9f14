"""A `file://` store that is changed behind ctxfs: what somebody does in its directory appears in the mount at once.

Owns how a path in the store's directory becomes a key to look at, and the quick look (one stat) that leaves out what this host wrote itself.
It must not know watchdog, nor what a changed object means. A directory costs one more step: a look at what is directly in it, or a listing
of what was known below it when it is gone.
"""
from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from ctxfs.config import MountOptions
from ctxfs.edge.watcher import Changes, Watcher
from ctxfs.records import RESERVED_DIR
from ctxfs.storage.file_layout import file_etag
from ctxfs.storage.index_format import INDEX_DIR
from ctxfs.storage.journal import Journal
from ctxfs.storage.stores import directory_of
from ctxfs.sync.poller import Poller
from ctxfs.sync.remote_tree import RemoteTreeLoader

#: until the next try while the store does not answer or the mount is paused
RETRY_SECONDS = 2.0
#: entries of one directory that are looked at one by one; more are listed
MAX_ENTRIES = 2000
_LAST = '\U0010ffff'


class StoreWatch:
    """See the module docstring. `root`: where the context's keys begin, as a directory."""

    def __init__(self, root: bytes, journal: Journal, *, remote: RemoteTreeLoader, poller: Poller) -> None:
        self._root = root
        self._journal = journal
        self._remote = remote
        self._poller = poller

    async def changed(self, changes: Changes) -> None:
        """Bring the tree up to date with these paths; returns when that is done, or nobody wants it."""
        await self._remote.wait_complete()
        while self._poller.is_wanted:
            if self._poller.may_look and await self._poller.attempt(lambda: self._apply(changes)):
                return
            await trio.sleep(RETRY_SECONDS)

    async def _apply(self, changes: Changes) -> None:
        """While nothing is uploaded: what this host wrote is recorded by now."""
        look = self._remote.changes
        if changes.is_all:
            await look.reload()
            return
        keys: set[str] = set()
        directories: set[str] = set()
        for path in changes.paths:
            key = self._key(path)
            if key is None or (key.startswith(RESERVED_DIR) and not key.startswith(INDEX_DIR)):
                continue
            if key.endswith('/'):
                await self._note_directory(path, key, keys, directories)
            elif self._is_news(path, key):
                keys.add(key)
        index = {key for key in keys if key.startswith(INDEX_DIR)}
        await look.examine_also(keys - index)
        for key in sorted(directories):
            await look.list_below(key)
        if self._remote.index.has_unread(index):
            await look.read_new_segments()
        elif keys or directories:
            await look.finish()

    def _key(self, path: bytes) -> str | None:
        """The key relative to the context; None for what is no object's place."""
        if not path.startswith(self._root):
            return None
        try:
            return path[len(self._root):].decode() or None
        except UnicodeDecodeError:
            return None

    def _is_news(self, path: bytes, key: str) -> bool:
        known = self._journal.known(key)
        try:
            etag = file_etag(os.stat(path, follow_symlinks=False))
        except OSError:
            return known is not None
        return known is None or known.etag != etag

    async def _note_directory(self, path: bytes, key: str, keys: set[str], directories: set[str]) -> None:
        entries = await trio.to_thread.run_sync(_entries, path)
        if entries is None:
            if self._journal.has_objects_between(key, key + _LAST):
                directories.add(key)
        elif len(entries) > MAX_ENTRIES:
            directories.add(key)
        elif not entries:
            if self._journal.known(key) is None:
                keys.add(key)       # an empty directory is a marker
        else:
            keys.update(child for entry in entries if (child := self._key(entry)) is not None and self._is_news(entry, child))


def _entries(path: bytes) -> list[bytes] | None:
    """The files in a directory; None when there is no such directory."""
    try:
        with os.scandir(path) as found:
            return [entry.path for _, entry in zip(range(MAX_ENTRIES + 1), found, strict=False) if entry.is_file(follow_symlinks=False)]
    except OSError:
        return None


def build_watcher(options: MountOptions, journal: Journal, *, prefix: str, remote: RemoteTreeLoader, poller: Poller,
                  policy_changed: Callable[[], Awaitable[None]]) -> Watcher:
    """What this mount watches: its policy file if it has one, and the context's directory if the store is one. To be called on the loop."""
    watcher = Watcher()
    if options.policy_file is not None:
        watcher.watch_file(options.policy_file, policy_changed)
    store = directory_of(options.store_url)
    if store is not None:
        directory = str(Path(store) / prefix)
        watcher.watch_tree(directory, StoreWatch(os.fsencode(directory) + b'/', journal, remote=remote, poller=poller).changed)
    return watcher
