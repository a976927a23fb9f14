"""Planning: what the bucket needs for one pending inode, derived from the tree and the objects as they are now.

Owns the decision PUT, copy, marker, or nothing, the condition of each write, and which work must wait for which. It must not know
workers, retries or time; it reads the database and changes nothing.

Nothing is replayed: the plan is the difference between the keys an inode should have (its paths) and the objects that carry its content
now, so a crash at any point, or ten renames in between, lead to the same requests.

    an object with the inode's current revision exists  → every other key is a server-side copy of it
    else                                                → the first key is a PUT of the staging file, the others copies of that
    the key holds the only copy of a clean inode that moved away → that inode's work goes first (`blocked_by`)
    the key holds something nobody wants any more       → overwritten on condition of its etag; no DELETE
"""
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ctxfs.errors import CtxfsError, NameTooLong
from ctxfs.storage.gating import Gating
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal, Known, Pending
from ctxfs.storage.keys import KEY_MAX
from ctxfs.storage.members import is_member
from ctxfs.storage.object_store import Condition
from ctxfs.storage.tree_db import TreeDB


class Work(NamedTuple):
    """What is to be done for one inode; `row` is the journal's row that it was planned from.

    `missing`: keys without the current content, in the order to write them. `unwanted`: keys of the inode's objects that are not its
    paths. `blocked_by`: inodes whose work must be done before. `error`: why nothing can be done (permanent until it is renamed)."""
    row: Pending
    inode: Inode
    revision: int
    missing: list[str]
    unwanted: list[str]
    blocked_by: frozenset[int]
    error: CtxfsError | None = None
    #: no name of it is synced any more: it becomes local (localise.py)
    is_retiring: bool = False
    #: it has a local name too: its bytes must be brought here first
    needs_bytes: bool = False


class Planner:
    """See the module docstring. `prefix`: the context's key prefix, which counts for the length of keys."""

    def __init__(self, db: TreeDB, journal: Journal, *, gating: Gating, prefix: str, covered: Callable[[str], str] = lambda key: '') -> None:
        """`covered`: the etag of an object that a member has the place of and that is still there; '' for most keys."""
        self._db = db
        self._journal = journal
        self._gating = gating
        self._prefix_size = len(prefix.encode())
        self._covered = covered

    def plan(self, row: Pending, inode: Inode) -> Work:
        """Note that the work reflects the journal's row: from now on every change of the inode reaches the row."""
        inode.is_planned = True
        inode.marked = row.reason
        if inode.is_dir:
            missing, unwanted = self._plan_directory(inode)
        else:
            missing, unwanted = self._plan_file(inode)
        error = next((self._too_long(key) for key in missing if self._is_too_long(key)), None)
        blocked = frozenset(ino for key in missing if (ino := self._owner_that_needs(key, inode)) is not None)
        is_retiring = not inode.is_dir and not self._gating.is_open and not self._gating.keys_of(inode)
        needs_bytes = inode.content == Content.CLEAN and not is_retiring and self._gating.has_local_name(inode)
        return Work(row, inode, inode.revision, missing, unwanted, blocked, error, is_retiring, needs_bytes)

    def _plan_file(self, inode: Inode) -> tuple[list[str], list[str]]:
        keys = self._gating.keys_of(inode)
        objects = {known.key: known for known in self._journal.objects_of(inode.ino)}
        missing = [key for key in keys if key not in objects or objects[key].revision != inode.revision]
        return missing, [key for key in objects if key not in keys]

    def _plan_directory(self, inode: Inode) -> tuple[list[str], list[str]]:
        """A directory needs a marker only while nothing in the bucket is below it."""
        key = self._db.dir_key(inode.ino)
        objects = [known.key for known in self._journal.objects_of(inode.ino)]
        is_needed = bool(key) and key not in objects and not self._db.has_synced_child(inode.ino)
        return [key] if is_needed else [], [other for other in objects if other != key]

    def _is_too_long(self, key: str) -> bool:
        return self._prefix_size + len(key.encode()) > KEY_MAX

    def _too_long(self, key: str) -> CtxfsError:
        return NameTooLong(f'the path needs an object key of {self._prefix_size + len(key.encode())} bytes, and a store takes at most '
                           f'{KEY_MAX}: rename it or move it up')

    def condition(self, key: str) -> tuple[Condition, Known | None]:
        """The version that a write to this key may replace, and that version."""
        known = self._journal.known(key)
        if known is None or is_member(known.etag):      # (a member is no object; what comes in its place is one)
            covered = self._covered(key)
            return Condition(etag=covered) if covered else Condition(absent=True), known
        return Condition(etag=known.etag), known

    def _owner_that_needs(self, key: str, inode: Inode) -> int | None:
        """The clean (or sealed) inode whose only object lies at `key`, if it is another one and lives."""
        known = self._journal.known(key)
        if known is None or known.ino == inode.ino:
            return None
        owner = self._db.inodes_of([known.ino]).get(known.ino)
        if owner is None or not owner.is_regular or owner.content == Content.STAGED or owner.revision != known.revision:
            return None
        if owner.nlink == 0 and owner.open_count == 0:
            return None
        copies = [other for other in self._journal.objects_of(owner.ino) if other.revision == owner.revision]
        return owner.ino if len(copies) == 1 else None


def is_index_only(row: Pending) -> bool:
    return row.reason == Reason.INDEX
