"""Gating: which inodes the bucket is to know of, by the policy's white lists, and what follows when a name crosses their boundary.

Owns `Inode.local` and its transitions, and the keys that an inode should have in the bucket. It must not know stores, workers or when
anything is uploaded: like everything else it only marks in the journal.

An inode is local when none of its names is synced (or by its type), or when it is held: a conflict was decided for the other version, and
what was written here stays on this host under the name that it got, until somebody settles that. The crossings, each in the transaction of
the change itself:

    in:   local inode gets a synced name           → not local any more, everything of it is pending
    out:  the last synced name went, never uploaded → local at once, nothing is pending
          … and the bucket has objects of it        → pending; the next flush brings its bytes here, then makes it local and its objects
                                                      tombstones (sync/localise.py). Its content stays readable in between.
    both: a synced and a local name (hard links)   → pending until its bytes are here: they stay in staging (SEALED) as long as both names
                                                      do, because what happens to the object remotely must not take the local name's bytes
A directory has no bytes: it is local or not at once. Its children are looked at when its SUBTREE mark is expanded.
"""
from __future__ import annotations

from ctxfs.records import ROOT_INO
from ctxfs.rules import Reach, Rules
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal
from ctxfs.storage.keys import name_to_component
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_db import TreeDB

_ALL = Reason.CONTENT | Reason.NAMES | Reason.ATTRS
#: `Inode.local` of what is held
HELD = 2


class Gating:
    """See the module docstring. Errors as TreeDB's."""

    def __init__(self, db: TreeDB, journal: Journal, staging: Staging, *, rules: Rules) -> None:
        self._db = db
        self._journal = journal
        self._staging = staging
        self.rules = rules

    # --- questions ----------------------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Every path is synced: nobody needs to ask for one."""
        return self.rules.gate.is_everything

    def key_of(self, parent: int, name: bytes) -> str:
        return self._db.dir_key(parent) + name_to_component(name)

    def is_synced(self, parent: int, name: bytes) -> bool:
        return self.is_open or self.rules.gate.is_synced(self.key_of(parent, name))

    def local_below(self, directory: int) -> int | None:
        """`Inode.local` of whatever is made in the directory; None where that depends on its name."""
        if self.is_open:
            return 0
        return {Reach.ALL: 0, Reach.NONE: 1}.get(self.rules.gate.reach(self._db.dir_key(directory)))

    def keys_of(self, inode: Inode) -> list[str]:
        """The keys under which the bucket should have the inode."""
        if inode.local:
            return []
        keys = self._db.keys_of(inode)
        return keys if self.is_open or inode.is_dir else [key for key in keys if self.rules.gate.is_synced(key)]

    def has_local_name(self, inode: Inode) -> bool:
        """Whether its bytes must stay on this host although the bucket has them."""
        return not self.is_open and any(not self.is_synced(parent, name) for parent, name in self._db.names_of(inode.ino))

    def needs_marker(self, directory: Inode) -> bool:
        """Whether nothing in the bucket says any more that there is this directory."""
        if directory.local or directory.ino == ROOT_INO or not directory.nlink or self._db.has_synced_child(directory.ino):
            return False
        marker = self._journal.known(self._db.dir_key(directory.ino))
        return marker is None or bool(marker.doomed)

    # --- changes ------------------------------------------------------------------------------------------------------------------

    def place(self, inode: Inode, parent: int, name: bytes) -> None:
        """The inode is about to be inserted under its first name."""
        inode.local = int(inode.is_local_type or not self.is_synced(parent, name))

    def settle(self, inode: Inode) -> None:
        """Names of the inode changed, or the rules did: make `local` what they say, and mark what the bucket must learn of it."""
        if inode.is_local_type or not inode.nlink or inode.local == HELD or (self.is_open and not inode.local):
            return
        if inode.is_dir:
            is_synced = inode.ino == ROOT_INO or self.rules.gate.is_synced(self._db.dir_key(inode.ino))
            is_mixed = False
        else:
            verdicts = {self.is_synced(parent, name) for parent, name in self._db.names_of(inode.ino)}
            is_synced, is_mixed = True in verdicts, len(verdicts) > 1
        if is_synced == bool(inode.local):
            self._admit(inode) if is_synced else self._retire(inode)
        elif is_mixed and inode.is_regular and inode.content != Content.STAGED:
            self._journal.mark(inode, Reason.NAMES)

    def moved_directory(self, inode: Inode, old_key: str) -> None:
        """A directory has another path: what is below it has other keys, and perhaps other verdicts."""
        self.settle(inode)
        gate = self.rules.gate
        if not gate.is_everything and gate.reach(old_key) is gate.reach(self._db.dir_key(inode.ino)) is Reach.NONE:
            return      # nothing below is or was the bucket's
        self._journal.mark(inode, Reason.SUBTREE | Reason.NAMES | Reason.ATTRS)

    def _admit(self, inode: Inode) -> None:
        self._set_local(inode, 0)
        self._journal.mark(inode, _ALL if not inode.is_dir else Reason.NAMES | Reason.ATTRS)

    def _retire(self, inode: Inode) -> None:
        if inode.is_dir or not self._is_in_bucket(inode):
            self.make_local(inode)
        else:
            self._journal.mark(inode, Reason.NAMES)

    def _is_in_bucket(self, inode: Inode) -> bool:
        """Whether the bucket has it, or may have it (a write in doubt)."""
        return bool(self._journal.objects_of(inode.ino)) or inode.upload is not None \
            or self._db.row('SELECT 1 FROM attempt WHERE ino = ? LIMIT 1', (inode.ino,)) is not None

    def hold(self, inode: Inode) -> None:
        """It is not to be uploaded although its name is synced. As make_local."""
        self.make_local(inode, HELD)

    def release(self, inode: Inode) -> None:
        """It is settled which version counts, or the inode gets another name: what is held is like any other file again."""
        if inode.local == HELD:
            self._admit(inode)
            self.settle(inode)

    def make_local(self, inode: Inode, local: int = 1) -> None:
        """Everything of it is on this host: the bucket's objects of it are wanted by nobody, and nothing is pending.
        A regular file must have a staging file. A directory that moved stays in the journal until what is below it was looked at."""
        assert not inode.is_regular or inode.has_staging
        if inode.content == Content.SEALED:     # no object is to be its equal any more
            inode.content = Content.STAGED
            self._db.store_content(inode)
        self._journal.doom_objects_of(inode.ino)
        self._set_local(inode, local)
        if inode.is_dir:
            self._db.execute('DELETE FROM pending WHERE ino = ? AND NOT reason & ?', (inode.ino, Reason.SUBTREE))
        else:
            self._journal.forget(inode.ino)
        inode.marked = 0
        inode.is_planned = False

    def _set_local(self, inode: Inode, local: int) -> None:
        if inode.has_staging:
            self._staging.change_owner(inode, local)
        inode.local = local
        self._db.execute('UPDATE inode SET local = ? WHERE ino = ?', (local, inode.ino))
