"""What a running mount knows of one path.

Owns the words for a path's state. It must not change anything, nor know the command line: paths come relative to the mount's root.
"""
from __future__ import annotations

import os
from typing import Any

import trio

from ctxfs.edge.mount_conflicts import MOST
from ctxfs.edge.mount_status import Parts
from ctxfs.edge.tally_json import copy_to_dict
from ctxfs.errors import InvalidArgument
from ctxfs.records import RESERVED_DIR, ROOT_INO
from ctxfs.storage.gating import HELD
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Known, Pending
from ctxfs.storage.keys import path_to_key, printable
from ctxfs.storage.tally import copies

#: how long a directory that was never looked at may take to be listed
LIST_SECONDS = 10.0
#: why a version that lost its name under --conflict prefer-remote is not uploaded
HELD_RULE = '--conflict prefer-remote: it stays on this host until ctxfs conflicts resolve, or until it gets another name'
_REASONS = {Reason.CONTENT: 'content', Reason.NAMES: 'names', Reason.ATTRS: 'attributes', Reason.SUBTREE: 'subtree', Reason.INDEX: 'index'}


class Explainer:
    """See the module docstring."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def explain(self, path: str) -> dict[str, Any]:
        """See edge.control.MountControl. Raises InvalidArgument, NameTooLong, and what the store says while the tree is not known yet."""
        names = self.names_of(path)
        inode = await self._find(names)
        # a directory's own marker object ends with a slash; the rules do not ask
        key = path_to_key(names, is_dir=inode is not None and inode.is_dir)
        decision = self._parts.rules.gate.decide(key)
        is_held = inode is not None and inode.local == HELD
        known = self._parts.journal.known(key)
        pending = self._parts.journal.pending_row(inode.ino) if inode is not None else None
        return {'path': '/' + printable(path_to_key(names)), 'exists': inode is not None, 'isSynced': decision.is_synced and not is_held,
                'rule': HELD_RULE if is_held else decision.rule, 'state': self._state(inode, known, pending), 'etag': known.etag if known else '',
                'size': inode.size if inode is not None else known.size if known else 0,
                'lifecycle': self._lifecycle(key, known, is_synced=decision.is_synced),
                'pending': None if pending is None else _pending(pending),
                'keys': [printable(each) for each in self._parts.db.keys_of(inode)] if inode is not None and inode.nlink else [],
                'conflict': self._conflict(inode)}

    def names_of(self, path: str) -> list[bytes]:
        """The components below the root. `path` is relative to it or below the mount point, which nothing else can be mistaken for."""
        mountpoint = self._parts.options.mountpoint
        if path == mountpoint or path.startswith(mountpoint.rstrip('/') + '/'):
            path = path[len(mountpoint.rstrip('/')):]
        try:
            names = [name for name in os.fsencode(path).split(b'/') if name not in (b'', b'.')]
        except UnicodeEncodeError:
            raise InvalidArgument(f'{printable(path)}: half of a surrogate pair is no character of a path') from None
        if b'..' in names or b'\0' in b''.join(names):
            raise InvalidArgument(f'{printable(path)}: write the path from the root of the mount, without ".."')
        return names

    async def _find(self, names: list[bytes]) -> Inode | None:
        """The inode, or None; waits, boundedly, where a directory on the way was not listed yet."""
        inode = self._parts.db.inode(ROOT_INO)
        if names[:1] == [RESERVED_DIR.rstrip('/').encode()]:
            return None
        for name in names:
            if not inode.is_dir:
                return None
            ino = self._parts.db.lookup(inode.ino, name)
            if ino is None:
                with trio.move_on_after(LIST_SECONDS):
                    await self._parts.remote.ensure_listed(inode)
                ino = self._parts.db.lookup(inode.ino, name)
            if ino is None:
                return None
            inode = self._parts.db.inode(ino)
        return inode

    def _state(self, inode: Inode | None, known: Known | None, pending: Pending | None) -> str:
        """absent, kept (removed here, the policy keeps the object), directory, local, uploading, dirty, sealed, clean."""
        if inode is None:
            return 'kept' if known is not None and known.doomed == 2 else 'absent'
        if inode.is_dir:
            return 'directory'
        if inode.local:
            return 'local'
        if inode.ino in self._parts.engine.uploading:
            return 'uploading'
        if inode.content == Content.STAGED or (pending is not None and pending.reason & ~Reason.INDEX):
            return 'dirty'
        return 'sealed' if inode.content == Content.SEALED else 'clean'

    def _lifecycle(self, key: str, known: Known | None, *, is_synced: bool) -> str:
        """What the object carries; of a path without one, what an upload would give it; '' for ever."""
        if known is not None:
            return known.lifecycle
        return self._parts.rules.lifecycle_of(key.rstrip('/')) if is_synced else ''

    def _conflict(self, inode: Inode | None) -> dict[str, Any] | None:
        if inode is None or not self._parts.journal.conflicts.has(inode.ino):
            return None
        found = next((copy for copy in copies(self._parts.db, MOST) if copy.ino == inode.ino), None)
        return None if found is None else {key: value for key, value in copy_to_dict(found).items() if key != 'path'}


def _pending(row: Pending) -> dict[str, Any]:
    is_retried = 0 < row.retry_ns < 2**62
    return {'since': row.since_ns / 1e9, 'reasons': [name for bit, name in _REASONS.items() if row.reason & bit], 'attempt': row.attempt,
            'error': row.error, 'nextRetry': row.retry_ns / 1e9 if is_retried else 0}
