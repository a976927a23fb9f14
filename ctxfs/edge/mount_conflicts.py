"""The conflicts of a running mount: which there are, and how a user settles one.

Owns what each answer to a conflict does to the two files. It must not know how conflicts come about, nor uploads: what it does is what a
program could do (rename, unlink), and the kernel is told, for it did not ask.

    keep local    this host's version has the name, the other is removed
    keep remote   the published version has the name, the other is removed
    keep both     both stay, nobody asks any more; one that was held on this host is uploaded
"""
from __future__ import annotations

from typing import Any, Literal

from ctxfs.core.filesystem import FileSystem
from ctxfs.edge.tally_json import copy_to_dict
from ctxfs.errors import Exists, InvalidArgument, NotFound, ReadOnly
from ctxfs.records import ROOT_INO
from ctxfs.storage.conflict_rows import Holds
from ctxfs.storage.gating import Gating
from ctxfs.storage.journal import Journal
from ctxfs.storage.tally import Copy, copies, shown
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.ports import Invalidator

#: conflicts that are looked through for a path
MOST = 10_000
Keep = Literal['local', 'remote', 'both']


class ConflictDesk:
    """See the module docstring."""

    def __init__(self, db: TreeDB, journal: Journal, fs: FileSystem, *, gating: Gating, invalidator: Invalidator, read_only: bool) -> None:
        self._db = db
        self._journal = journal
        self._fs = fs
        self._gating = gating
        self._invalidator = invalidator
        self._read_only = read_only

    def conflicts(self) -> list[dict[str, Any]]:
        """See edge.control.MountControl."""
        return [copy_to_dict(copy) for copy in copies(self._db)]

    async def resolve(self, names: list[bytes], keep: Keep) -> dict[str, Any]:
        """See edge.control.MountControl; `names` from below the root. Raises NotFound, InvalidArgument (several copies, or a directory where
        a file is needed), Exists, ReadOnly."""
        if self._read_only:
            raise ReadOnly('the mount is read-only: mount it without --read-only to settle a conflict')
        copy = self._find(names)
        if keep == 'both':
            self._settle(copy)
        elif (keep == 'local') == (copy.holds == Holds.OURS):
            await self._give_name(copy)
        else:
            await self._remove(copy)
        return {'original': shown(copy.original), 'copy': shown(copy.names), 'keep': keep}

    def _find(self, names: list[bytes]) -> Copy:
        every = copies(self._db, MOST)
        found = [copy for copy in every if copy.names == names] or [copy for copy in every if copy.original == names]
        if not found:
            raise NotFound(f'no conflict is known of {shown(names)}; ctxfs conflicts list shows those that this host kept two versions for')
        if len(found) > 1:
            raise InvalidArgument(f'{shown(names)} has {len(found)} copies; name one: {", ".join(shown(copy.names) for copy in found)}')
        return found[0]

    def _settle(self, copy: Copy) -> None:
        with self._db.transaction():
            self._gating.release(self._db.inode(copy.ino))
            self._journal.conflicts.forget(copy.ino)

    async def _give_name(self, copy: Copy) -> None:
        """The copy takes the name; what has it is replaced."""
        parent, name, other = self._directory_of(copy), copy.names[-1], copy.original[-1]
        present = self._db.lookup(parent, other)
        replaced = None if present is None else self._db.inode(present)
        if replaced is not None and replaced.is_dir:
            raise Exists(f'{shown(copy.original)} is a directory: move it away, or give {shown(copy.names)} another name')
        if replaced is not None and copy.is_dir:
            await self._fs.unlink(parent, other)
        await self._fs.rename(parent, name, parent, other, 0)
        self._tell(parent, name, other)

    async def _remove(self, copy: Copy) -> None:
        if copy.is_dir:
            raise InvalidArgument(f'{shown(copy.names)} is a directory: remove it as one (rm -r)')
        parent = self._directory_of(copy)
        await self._fs.unlink(parent, copy.names[-1])
        self._tell(parent, copy.names[-1])

    def _directory_of(self, copy: Copy) -> int:
        found = self._db.resolve(copy.names[:-1])
        return ROOT_INO if found is None else found

    def _tell(self, parent: int, *names: bytes) -> None:
        for name in names:
            self._invalidator.entry(parent, name)
        self._invalidator.attrs(parent)
