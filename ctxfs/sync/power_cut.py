"""After a power cut: which staged bytes are whole, and what becomes of those that are not.

Owns the verdict on each staged file when the host was booted anew, and the rule behind it: what a power cut left half-written never replaces
a whole object. It must not know the store; recovery.py calls it before anything is mounted. Idempotent.

The tree database is what it was at some instant, at or after the last fsync. The staging files are what the disk has: any part of what was
written since they were hardened, and zeros where nothing was (storage/durability.py). So:

    hardened, and nothing is missing since     it is the file: with all that was fsynced, and what else reached the disk
    … but zeros were appended                  cut where they begin; the appended bytes were not fsynced
    not hardened, or cut or replaced since:
        the bucket has a version of it         that is the file again; what the disk has goes to quarantine/
        it took the name of one that the       that gets its name back; what the disk has goes to quarantine/
          bucket has (saved by a rename)
        the bucket has nothing by that name    it stays, as on a disk; also what stays on this host by the policy
    sealed                                     the bucket has it: the staging file is not asked

Writes in doubt to the objects of staged files are forgotten. What arrived may be later than what the disk has: it is not ours to replace,
and makes a conflict where it differs.
"""
from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple

from ctxfs.storage.durability import whole_size
from ctxfs.storage.hardened import HardenedFiles
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.keys import printable
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_db import TreeDB

log = logging.getLogger(__name__)

LISTED = 5
REASON = 'the power went off before its bytes were on the disk'


class Reverted(NamedTuple):
    """A file that is the bucket's version again; `kept_at`: what the disk had of the other one, None when that was nothing."""
    path: str
    kept_at: Path | None


def boot_id() -> str:
    return Path('/proc/sys/kernel/random/boot_id').read_text('ascii').strip()


class PowerCut:
    """The verdict on all staged files; `sizes`: the bytes of each staging file that a row owns, kept up to date. Call `settle` in a
    transaction, and `finish` after it. `reverted`: see Reverted."""

    def __init__(self, db: TreeDB, journal: Journal, staging: Staging, sizes: dict[int, int]) -> None:
        self._db = db
        self._journal = journal
        self._staging = staging
        self._hardened = HardenedFiles(db)
        self._sizes = sizes
        self._to_remove: list[int] = []
        #: kept by their names, because the bucket has nothing that they could spoil
        self._doubtful: list[str] = []
        self.reverted: list[Reverted] = []

    def settle(self) -> None:
        self._db.execute('DELETE FROM attempt WHERE EXISTS (SELECT 1 FROM inode i WHERE i.ino = attempt.ino AND content = ?)', (Content.STAGED,))
        for ino in self._db.staged_inos():
            inode = self._db.inode(ino)
            if inode.content == Content.SEALED and self._journal.source_of(inode) is not None:
                self._unseal(inode)
            elif not self._is_whole(ino) and not inode.local:
                self._protect_objects(inode)

    def finish(self) -> None:
        """Their rows need these no more."""
        if self._doubtful:
            log.warning('new files of the last seconds before the power went off may be incomplete: %s%s', ', '.join(self._doubtful[:LISTED]),
                        f' and {len(self._doubtful) - LISTED} more' if len(self._doubtful) > LISTED else '')
        for ino in self._to_remove:
            self._staging.remove(ino)
            self._sizes.pop(ino, None)

    def _unseal(self, inode: Inode) -> None:
        inode.content = Content.CLEAN
        self._db.store_content(inode)
        if inode.nlink > 1:     # one of the names may stay on this host, and want the bytes here
            self._journal.mark(inode, Reason.NAMES)
        self._to_remove.append(inode.ino)

    def _is_whole(self, ino: int) -> bool:
        """What is no part of the file, because it did not reach the disk, is cut off."""
        hardened = self._hardened.measure_of(ino)
        if hardened is None or ino not in self._sizes:
            return False
        fd = os.open(self._staging.path(ino), os.O_RDWR | os.O_CLOEXEC)
        try:
            size = whole_size(fd, hardened)
            if size is None:
                return False
            if size < self._sizes[ino]:
                log.info('inode %d: of %d bytes the first %d were on the disk', ino, self._sizes[ino], size)
                os.ftruncate(fd, size)
                self._sizes[ino] = size
            return True
        finally:
            os.close(fd)

    # --- the bucket's version counts ----------------------------------------------------------------------------------------------

    def _protect_objects(self, inode: Inode) -> None:
        own = [known for known in self._journal.objects_of(inode.ino) if not known.doomed]
        if own:
            path = self._path(inode)
            self._follow(inode, max(own, key=lambda known: known.revision))
            self._set_aside(inode, path)
            return
        path = self._path(inode)
        for parent, name in self._db.names_of(inode.ino):
            known = self._journal.known(self._db.key_of_name(parent, name))
            if known is not None and known.ino != inode.ino and not self._is_needed(known.ino):
                self._give_back(inode, parent, name, known)
        if not inode.nlink:
            self._set_aside(inode, path)
            self._forget(inode)
        elif inode.ino in self._sizes:
            self._doubtful.append(path)

    def _is_needed(self, ino: int) -> bool:
        """The object's own inode has another name by now: its content goes there before anything replaces it."""
        owner = self._db.inodes_of([ino]).get(ino)
        return owner is not None and owner.nlink > 0

    def _follow(self, inode: Inode, known: Known) -> None:
        """The content is that of the object. Names and attributes are what they are here, and still to be uploaded where they were; but it
        is no newer than the object, else make(1) would take it for done."""
        inode.content, inode.revision, inode.size = Content.CLEAN, known.revision, known.size
        if known.uploaded_ns:
            inode.mtime_ns = min(inode.mtime_ns, known.uploaded_ns)
        self._db.store_all(inode)
        self._hardened.forget(inode.ino)
        self._db.execute('UPDATE pending SET reason = (reason & ~?) | ?, seq = seq + 1 WHERE ino = ?',
                         (Reason.CONTENT, Reason.ATTRS, inode.ino))

    def _give_back(self, inode: Inode, parent: int, name: bytes, known: Known) -> None:
        """The name is the object's again, as an inode of its own."""
        winner = Inode(self._db.allocate_ino(), 0o100644, inode.uid, inode.gid, 0, 1, known.size, known.uploaded_ns, known.uploaded_ns,
                       known.uploaded_ns, Content.CLEAN, 1, attrs_known=0)
        self._db.insert_inode(winner)
        self._db.delete_dentry(parent, name)
        self._db.insert_dentry(parent, name, winner.ino)
        self._journal.put_object(known._replace(ino=winner.ino, revision=winner.revision, doomed=0))
        inode.nlink -= 1
        self._db.store_times(inode)

    def _forget(self, inode: Inode) -> None:
        self._journal.forget(inode.ino)
        self._hardened.forget(inode.ino)
        self._db.delete_inode(inode.ino)

    def _set_aside(self, inode: Inode, path: str) -> None:
        kept_at = None
        if self._sizes.get(inode.ino):
            kept_at = self._staging.quarantine(inode.ino, path=path, reason=REASON)
            del self._sizes[inode.ino]
        elif inode.ino in self._sizes:
            self._to_remove.append(inode.ino)
        self.reverted.append(Reverted(path, kept_at))
        log.error('%s: %s; it is the version in the bucket again%s', path, REASON, f', and what is there is kept as {kept_at}' if kept_at else '')

    def _path(self, inode: Inode) -> str:
        keys = self._db.keys_of(inode)
        return '/' + printable(keys[0]) if keys else f'inode {inode.ino}'
