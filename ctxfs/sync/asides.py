"""Asides: of two versions that want one name, one gets a name of its own beside the other, here in the tree; the next flush does the rest.

Owns what such a step is made of, and the word about it (log, event). It must not know how a conflict was found, nor requests. A step is one
transaction, so that a crash leaves both versions with a name or nothing changed.

    ours aside     a rename of our file or directory that nobody asked for; it is uploaded as what it is under its new name
    … held         the same, and it stays on this host until somebody settles it
    theirs aside   as if the published file had been renamed here: the flush copies the object to its new key on condition of its etag, and
                   only then our version may replace it, on condition of the same etag (planner.py: `blocked_by`)

A directory against a file: what is published keeps the name, and where both are, the directory does: a file that was uploaded from here, or
has changes of this host, goes aside by the next look; anybody else's is noted and left alone (reconcile.py).
"""
from __future__ import annotations

import logging

from ctxfs.config import Preference
from ctxfs.storage.conflict_rows import Holds
from ctxfs.storage.gating import Gating
from ctxfs.storage.inode import Inode, Reason
from ctxfs.storage.journal import Journal
from ctxfs.storage.keys import KEY_MAX, name_to_component, printable
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.conflict_names import copy_name
from ctxfs.sync.events import Publish, unheard
from ctxfs.sync.ports import Invalidator

log = logging.getLogger(__name__)

#: what stands for the host of a version that carries no stamp of ctxfs
UNKNOWN_HOST = 'other'


class Asides:
    """See the module docstring. `host`: this host's part of names. Raises what TreeDB raises."""

    def __init__(self, db: TreeDB, journal: Journal, invalidator: Invalidator, *, gating: Gating, prefix: str, host: str,
                 preference: Preference = 'keep-both', publish: Publish = unheard) -> None:
        self._db = db
        self._journal = journal
        self._invalidator = invalidator
        self._gating = gating
        self._key_room = KEY_MAX - len(prefix.encode())
        self._host = host
        self.preference = preference
        self._publish = publish

    def free_name(self, parent: int, name: bytes, *, at_s: float, host: str = '') -> bytes:
        """For a version of `host` (this one unless said) beside the name."""
        directory = self._db.dir_key(parent)

        def is_free(found: bytes) -> bool:
            return self._db.lookup(parent, found) is None and self._journal.known(directory + name_to_component(found)) is None

        return copy_name(name, host=host or self._host, at_s=at_s, is_free=is_free,
                         fits=lambda found: len((directory + name_to_component(found)).encode()) <= self._key_room)

    # --- ours -------------------------------------------------------------------------------------------------------------------------

    def move(self, inode: Inode, parent: int, name: bytes, *, at_s: float, refused: str = '') -> None:
        """Our version leaves the name. It is held where the policy says so, its bytes are here, and the bucket has nothing of it for certain;
        `refused`: the key to which it was not written."""
        is_held = self._can_hold(inode, refused)
        with self._db.transaction():
            key = self._gating.key_of(parent, name)
            other = self.free_name(parent, name, at_s=at_s)
            self._db.move_dentry((parent, name), (parent, other), ino=inode.ino)
            self._journal.conflicts.add(inode.ino, key, Holds.OURS)
            if inode.is_dir:
                self._db.forget_dir_keys()
                self._gating.moved_directory(inode, key + '/')
            elif is_held:
                self._gating.hold(inode)
            else:
                self._rename_file(inode)
        self._invalidator.entry(parent, name)
        self._invalidator.entry(parent, other)
        outcome = f'ours is now {printable(name_to_component(other))}{", on this host only" if is_held else ""}, theirs keeps the name'
        self._tell(parent, other, key, Holds.OURS, outcome)

    def _can_hold(self, inode: Inode, refused: str) -> bool:
        """What the bucket has under another name, may have, or gets under one, is uploaded all the same: held, it would be in less places."""
        return (self.preference == 'prefer-remote' and not inode.is_dir and inode.nlink == 1 and self._journal.source_of(inode) is None
                and self._db.row('SELECT 1 FROM attempt WHERE ino = ? AND key <> ?', (inode.ino, refused)) is None)

    def _rename_file(self, inode: Inode) -> None:
        if inode.nlink > 1:     # other hosts must not take the copy for one more name of what keeps the name
            self._db.renew_link_group(inode)
        self._journal.mark(inode, Reason.NAMES | Reason.CONTENT | Reason.ATTRS)
        self._gating.settle(inode)

    def yield_name(self, inode: Inode, parent: int, name: bytes, *, at_s: float) -> None:
        """What is held has a name that somebody published: it gets another one."""
        with self._db.transaction():
            other = self.free_name(parent, name, at_s=at_s)
            self._db.move_dentry((parent, name), (parent, other), ino=inode.ino)
        self._invalidator.entry(parent, name)
        self._invalidator.entry(parent, other)

    # --- theirs -----------------------------------------------------------------------------------------------------------------------

    def moved_theirs(self, theirs: Inode, parent: int, other: bytes, key: str) -> None:
        """The published version was inserted as `other`, a name of free_name's, while its object still is at `key`."""
        with self._db.transaction():
            self._journal.conflicts.add(theirs.ino, key, Holds.THEIRS)
            self._journal.mark(theirs, Reason.NAMES)
            self._gating.settle(theirs)
        self._tell(parent, other, key, Holds.THEIRS, f'theirs is now {printable(name_to_component(other))}, ours keeps the name')

    def found(self, ino: int, parent: int, other: bytes, key: str, holds: Holds) -> None:
        """A version was published as `other` already, because another one has the key."""
        self._journal.conflicts.add(ino, key, holds)
        whose = 'theirs' if holds is Holds.THEIRS else 'ours'
        self._tell(parent, other, key, holds, f'{whose} is now {printable(name_to_component(other))}, the other keeps the name')

    def _tell(self, parent: int, other: bytes, key: str, holds: Holds, outcome: str) -> None:
        log.warning('conflict: %s was changed on another host and here; %s', printable(key), outcome)
        self._publish('conflict', path='/' + printable(self._gating.key_of(parent, other)), original='/' + printable(key),
                      holds='remote' if holds is Holds.THEIRS else 'local')
