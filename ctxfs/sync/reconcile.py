"""Reconciling: making the tree database agree with what a listing says, entry by entry.

Owns the rules what a listed, changed or missing object means for the local tree. It must not know how listings are made or when; it
never waits. Each call is one transaction, idempotent, and safe at any time beside local changes:

    listed, unknown             → a new clean file, unless a local file that was never uploaded has the name (its upload will be refused
                                  by its condition, and both contents are kept)
    listed, same etag           → nothing; attributes that another host wrote to the index are taken over
    listed, other etag          → a clean inode follows; one with local changes keeps its old base etag (its upload will be refused)
    listed, other etag, doomed  → what we deleted is not what is there now: it comes back
    gone, clean                 → the name goes
    gone, local changes         → only the object row goes: the upload creates it anew
    a file where a directory is → what is published keeps the name, and the directory where both are (asides.py)
    no place in a file system   → noted with the reason, never touched
    outside the white lists     → not shown, never touched; what has the name here is this host's own
"""
from __future__ import annotations

import stat
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from ctxfs.records import RESERVED_DIR, ROOT_INO, ROOT_PATH, IndexRecord, ObjectInfo
from ctxfs.rules import Reach
from ctxfs.storage.gating import HELD, Gating
from ctxfs.storage.held_hints import Hint, record_of
from ctxfs.storage.inode import Inode, Reason
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.keys import LAST, Unmountable, component_to_name, key_to_path
from ctxfs.storage.members import is_member
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.asides import UNKNOWN_HOST, Asides
from ctxfs.sync.changed_directories import ChangedDirectories
from ctxfs.sync.descriptions import Defaults, Describer
from ctxfs.sync.newcomers import Newcomers, listed
from ctxfs.sync.obstructed import Obstructed
from ctxfs.sync.ports import Invalidator
from ctxfs.sync.protocol import HeadItem
from ctxfs.sync.removals import Removals

#: what ctxfs itself keeps under `.ctxfs/`; anything else there is somebody's object that has no place in the mount
OWN_PREFIXES = tuple(RESERVED_DIR + name for name in ('index/', 'tmp/', 'probe', 'policy', 'mode', 'archive/', 'turn/', 'mounts/'))


class Reconciler:
    """See the module docstring. Raises what TreeDB raises."""

    def __init__(self, db: TreeDB, journal: Journal, invalidator: Invalidator, *, gating: Gating, asides: Asides, defaults: Defaults) -> None:
        self._db = db
        self._journal = journal
        self._invalidator = invalidator
        self._gating = gating
        self._asides = asides
        self._describer = Describer(db, journal, invalidator, defaults=defaults)
        self.describe, self.describe_by = self._describer.describe, self._describer.describe_by
        self.directories = ChangedDirectories(db, journal, invalidator)
        #: until then there may be records that say more of what is listed
        self.is_index_read = True
        #: names so far: 'created', 'changed', 'removed'
        self.counts: Counter[str] = Counter()
        self.obstructed = Obstructed()
        self._removals = Removals(db, journal, invalidator, gating=gating, directories=self.directories, counts=self.counts,
                                  look_again_at=self.obstructed.add)
        #: called with the inode of a file that has content in the bucket which was not known before, within the transaction
        self.on_content: Callable[[int], None] = lambda ino: None
        #: whether an object that is listed counts; in Archive mode a member may have taken its place (archive_mirror.py)
        self.may_show: Callable[[ObjectInfo], bool] = lambda info: True

    def is_synced(self, key: str) -> bool:
        return self._gating.is_open or self._gating.rules.gate.is_synced(key)

    # --- a stretch of a listing ---------------------------------------------------------------------------------------------------

    def apply(self, objects: Sequence[ObjectInfo], *, after: str, last: str | None) -> None:
        """The objects are all there are with after < key <= last (None: to the end), keys relative to the context, in key order."""
        with self._db.transaction():
            known = {row.key: row for row in self._journal.objects_between(after, last)}
            hints = self._journal.hints_between(after, last)
            self._journal.drop_unmountable(self._journal.unmountable_between(after, last))      # until they are found so again
            newcomers = Newcomers(self._db, self._journal, self._describer, directory_of=self._directory, add=self._add_file, added=self._has_gained)
            for info in objects:
                if info.key in known or not self.is_synced(info.key) or not self.may_show(info) or not newcomers.take(info, hints.get(info.key)):
                    newcomers.finish()
                    self._apply_object(info, known.get(info.key), hints.get(info.key))
            newcomers.finish()
            keys = {info.key for info in objects}
            for row in known.values():
                if row.key not in keys and not is_member(row.etag):       # of members the archive log tells
                    self.object_gone(row)
            self.directories.touch()
        self._journal.used_hints(newcomers.described)

    def apply_directory(self, objects: Sequence[ObjectInfo], prefixes: Sequence[str]) -> None:
        """One directory's own entries (a listing by delimiter). Only adds and updates: what is missing is the whole listing's to say."""
        with self._db.transaction():
            for info in objects:
                self._apply_object(info, self._journal.known(info.key), self._journal.hint(info.key))
            for prefix in prefixes:
                # What is known below it is here, or was moved or removed here, and the bucket has not followed yet.
                is_new = not self._journal.has_objects_between(prefix, prefix + LAST)
                if is_new and not isinstance(key_to_path(prefix), Unmountable) and self._gating.rules.gate.reach(prefix) is not Reach.NONE:
                    self._directory(prefix, None)
            self.directories.touch()

    def apply_member(self, info: ObjectInfo, hint: Hint | None) -> None:
        """A file of an archive, as if it were listed; call it in a transaction."""
        self._apply_object(info, self._journal.known(info.key), hint)

    def _apply_object(self, info: ObjectInfo, known: Known | None, hint: Hint | None) -> None:
        if not self.is_synced(info.key) or not (is_member(info.etag) or self.may_show(info)):
            return
        inode = None if known is None else self._inode_or_none(known.ino)
        if known is not None and (known.etag != info.etag or hint is not None or inode is None):
            known = self._journal.known(info.key)       # as it is now: what was applied before may have moved it to a new inode
            inode = None if known is None else self._inode_or_none(known.ino)
        if known is not None and inode is None and not known.doomed:
            self._journal.drop_object(known.key)        # a row that names nothing says nothing
            known = None
        if known is not None and known.etag == info.etag and (known.revision or known.doomed):
            if hint is not None and not known.doomed:
                self._take_over(known, hint)
            return
        if self._is_in_doubt(info.key):
            self.obstructed.add(info.key)
            return
        if info.key.startswith(OWN_PREFIXES):
            return
        if info.key.endswith('/'):
            self._apply_marker(info, hint)
            return
        if known is None or known.doomed or inode is None:
            self._add_file(info, hint)
        elif self._removals.may_follow(inode):
            self.replace_content(inode, known, info, hint)
        else:
            self.obstructed.add(info.key)

    def _is_in_doubt(self, key: str) -> bool:
        """This host wrote to the key and does not know how that ended: what is there may be ours, of a file that moved or went since."""
        return self._db.row('SELECT 1 FROM attempt WHERE key = ?', (key,)) is not None

    # --- new --------------------------------------------------------------------------------------------------------------------------

    def _add_file(self, info: ObjectInfo, hint: Hint | None) -> None:
        path = key_to_path(info.key)
        if isinstance(path, Unmountable):
            self._journal.note_unmountable(info.key, path.reason)
            return
        directory, slash, name = info.key.rpartition('/')
        parent = self._directory(directory + slash, info)
        if parent is None:
            self._journal.note_unmountable(info.key, 'a file stands where it needs a directory')
            self.obstructed.add(info.key)
            return
        at = component_to_name(name)
        existing = self._db.lookup(parent, at)
        if existing is None:
            self._insert_file(parent, at, info, hint)
        elif (inode := self._db.inode(existing)).is_dir:
            self._meet_directory(inode, parent, at, info, hint)
        elif inode.local == HELD:
            self._asides.yield_name(inode, parent, at, at_s=time.time())
            self._insert_file(parent, at, info, hint)
        else:       # a local file that was never uploaded; its upload is conditional on there being none
            self.obstructed.add(info.key)

    def _meet_directory(self, directory: Inode, parent: int, name: bytes, info: ObjectInfo, hint: Hint | None) -> None:
        """A published file has the name of a directory. Of one that nobody published the versions are two, as of files."""
        if directory.local or self._journal.has_objects_between(info.key + '/', info.key + '/\U0010ffff'):
            self._journal.note_unmountable(info.key, 'a directory has the same name')
        elif self._asides.preference == 'prefer-local':
            other = self._asides.free_name(parent, name, at_s=info.mtime_ns / 1e9, host=UNKNOWN_HOST)
            self._asides.moved_theirs(self._insert_file(parent, other, info, hint), parent, other, info.key)
        else:
            self._asides.move(directory, parent, name, at_s=time.time())
            self._insert_file(parent, name, info, hint)

    def insert_published(self, parent: int, name: bytes, info: ObjectInfo, item: HeadItem) -> Inode:
        """The version that a HEAD found gets this name; `info.key` need not be its key. Call it in a transaction."""
        inode = self._insert_file(parent, name, info, self._journal.hint(info.key))
        if not inode.attrs_known:
            self._describer.describe_by(inode, item, info.key)
        return inode

    def _insert_file(self, parent: int, name: bytes, info: ObjectInfo, hint: Hint | None) -> Inode:
        record = self._describer.valid(info, hint)
        inode = self._linked_inode(record, info)
        if inode is None:
            inode = self._describer.new_file(info, record)
        self._db.insert_dentry(parent, name, inode.ino)
        self._journal.put_object(listed(info, inode.ino, inode.revision, record))
        self._has_gained([(parent, name, inode.ino)])
        return inode

    def _has_gained(self, entries: Collection[tuple[int, bytes, int]]) -> None:
        """(parent, name, ino) of each new file."""
        for parent, name, ino in entries:
            self._invalidator.appeared(parent, name)
            self.on_content(ino)
        self.directories.gained(*{parent for parent, _, _ in entries})
        self.counts['created'] += len(entries)

    def _linked_inode(self, record: IndexRecord | None, info: ObjectInfo) -> Inode | None:
        """The inode of which this is one more name, by the link group that its host wrote."""
        if record is None or not record.link:
            return None
        row = self._db.row('SELECT ino FROM inode WHERE link_group = ?', (record.link,))
        if row is None:
            return None
        inode = self._db.inode(row[0])
        if inode.nlink == 0 or (inode.is_regular and (inode.size != info.size or inode.has_staging)):
            return None
        inode.nlink += 1
        self._db.store_times(inode)
        return inode

    # --- directories ------------------------------------------------------------------------------------------------------------------

    def _directory(self, key: str, info: ObjectInfo | None) -> int | None:
        """The inode of the directory with this key ('' or 'a/b/'), made where missing; None where a file is in the way."""
        if not key:
            return ROOT_INO
        above, _, name = key[:-1].rpartition('/')
        parent = self._directory(f'{above}/' if above else '', info)
        if parent is None:
            return None
        at = component_to_name(name)
        ino = self._db.lookup(parent, at)
        if ino is not None:
            inode = self._db.inode(ino)
            if inode.is_dir:
                return ino
            if not self._step_aside(inode, parent, at):
                return None
        return self._make_directory(key, parent, at, info)

    def _step_aside(self, inode: Inode, parent: int, name: bytes) -> bool:
        """`a` beside `a/b`: the directory keeps the name. Of somebody else's clean file the object is noted and left alone; what has changes
        of this host, or was uploaded from it, goes on beside the directory. What the bucket is not to know of keeps its place."""
        if inode.local:
            return False
        key = self._gating.key_of(parent, name)
        known = self._journal.known(key)
        if known is not None and known.ino == inode.ino and not known.sha256 and self._removals.may_follow(inode) \
                and self._journal.pending_row(inode.ino) is None:
            self._journal.drop_object(key)
            self._journal.note_unmountable(key, 'a directory has the same name')
            self._removals.remove_name(inode, parent, name)
        else:
            self._asides.move(inode, parent, name, at_s=time.time())
        return True

    def _make_directory(self, key: str, parent: int, name: bytes, info: ObjectInfo | None) -> int:
        now = info.mtime_ns if info is not None else time.time_ns()
        made = ObjectInfo(key=key, size=0, etag='', mtime_ns=now)
        inode = self._describer.new_inode(made, self._describer.valid(made, self._journal.hint(key)), stat.S_IFDIR | (0o777 & ~self._describer.umask))
        self._gating.place(inode, parent, name)     # local where it only leads to what is synced
        if inode.local or not inode.attrs_known:
            inode.attrs_known |= int(self.is_index_read)        # unless it has a marker, nothing remote says more about it
            self._db.store_all(inode)
        self._db.insert_dentry(parent, name, inode.ino)
        above = self._db.inode(parent)
        above.nlink += 1
        self._db.store_times(above)
        self._invalidator.attrs(above.ino)
        self._invalidator.appeared(parent, name)
        self.directories.gained(parent)
        return inode.ino

    def _apply_marker(self, info: ObjectInfo, hint: Hint | None) -> None:
        path = key_to_path(info.key)
        if isinstance(path, Unmountable):
            self._journal.note_unmountable(info.key, path.reason)
            return
        if info.size:
            self._journal.note_unmountable(info.key, 'its name ends with a slash, as a directory\'s, but it has content')
            return
        ino = self._directory(info.key, info)
        if ino is None:
            self._journal.note_unmountable(info.key, 'a file has the same name')
            return
        inode = self._db.inode(ino)
        self._journal.put_object(Known(info.key, info.etag, info.size, ino, inode.revision, '', 0))
        if hint is None and self._journal.hint(info.key) is None and self._journal.pending_row(ino) is None:
            self._db.execute('UPDATE inode SET attrs_known = 0 WHERE ino = ?', (ino,))
            inode.attrs_known = 0
            self._db.watcher.changed(inode)

    def describe_by_index(self, inodes: Iterable[Inode]) -> None:
        """What was listed before the index was read gets what its records say, as far as there are any."""
        with self._db.transaction():
            for inode in inodes:
                if inode.is_dir and inode.nlink:
                    key = self._db.dir_key(inode.ino)
                    if (hint := self._journal.hint(key)) is not None:
                        self.describe_directories([(key, record_of(hint))])
                    continue
                for known in self._journal.objects_of(inode.ino):
                    if (hint := self._journal.hint(known.key)) is not None:
                        self._take_over(known, hint)

    def apply_directory_hints(self, after: str, limit: int) -> str | None:
        """Attributes of directories that other hosts changed; returns where to go on, None at the end."""
        rows = self._db.rows('SELECT key, record FROM hint WHERE key > ? AND etag = \'\' ORDER BY key LIMIT ?', (after, limit))
        with self._db.transaction():
            self.describe_directories((key, record_of(('', 0, packed))) for key, packed in rows)
        return rows[-1][0] if len(rows) == limit else None

    def describe_directories(self, records: Iterable[tuple[str, IndexRecord]]) -> None:
        """(key, record) of directories; call it in a transaction."""
        for key, record in records:
            path = () if key == ROOT_PATH else key_to_path(key)
            ino = None if isinstance(path, Unmountable) else self._db.resolve(path)
            if ino is not None and record.attrs is not None and self._journal.pending_row(ino) is None:
                inode = self._db.inode(ino)
                if inode.is_dir:
                    self._describer.set_attrs(inode, record.attrs)

    # --- changed ------------------------------------------------------------------------------------------------------------------------

    def replace_content(self, inode: Inode, known: Known, info: ObjectInfo, hint: Hint | None) -> Inode | None:
        """A clean inode's object is another version now: its name gets a new inode, which is returned; the old one lives on, stale, for who
        has it open. A new one, because with its writeback cache the kernel never takes size and mtime of a regular file it knows from us
        (fuse_get_cache_mask in Linux): it would show the new bytes cut at the old size.

        Of several hard links only the one whose object changed is rebound, unless its host says that it changed them all. What was renamed
        or chmod'ed here, and is not uploaded, stays so. None: a directory here has the name."""
        record = self._describer.valid(info, hint)
        if not known.revision and record is not None and record.link and record.link == inode.link_group and inode.size == info.size:
            self._journal.put_object(listed(info, inode.ino, inode.revision, record))      # one more link of what another of its keys brought already
            return inode
        names = self._following(inode, known, record)
        if not names:       # its own name moved away here, and took the content along: this is a new file
            self._journal.drop_object(known.key)
            self._add_file(info, hint)
            added = self._journal.known(info.key)
            return None if added is None else self._inode_or_none(added.ino)
        pending = self._journal.pending_row(inode.ino)
        fresh = self._replacement(inode, names, info, record)
        inode.remote_version += 1
        self._invalidator.replaced(inode.ino)
        self._journal.put_object(listed(info, fresh.ino, fresh.revision, record))
        self._gating.settle(fresh)
        if pending is not None:
            self._carry_over(inode, pending.reason, fresh)
        self.counts['changed'] += 1
        self.on_content(fresh.ino)
        return fresh

    def _following(self, inode: Inode, known: Known, record: IndexRecord | None) -> list[tuple[int, bytes]]:
        """The names that mean the new version: all, unless others have their content elsewhere. A name outside the white lists has no object
        of its own: it goes with the one that changed."""
        names = self._db.names_of(inode.ino)
        is_one = record is not None and bool(record.link) and record.link == inode.link_group
        if is_one or not any(other.key != known.key and other.revision == inode.revision for other in self._journal.objects_of(inode.ino)):
            return names
        synced = [self._gating.key_of(*name) for name in names if self._gating.is_synced(*name)]
        return [name for name in names if self._gating.key_of(*name) == known.key
                or (known.key in synced and not self._gating.is_synced(*name))]

    def _replacement(self, inode: Inode, names: list[tuple[int, bytes]], info: ObjectInfo, record: IndexRecord | None) -> Inode:
        """The names are another inode's now: one that has the content already, or a new one."""
        other = self._linked_inode(record, info) if len(names) == 1 and record is not None and record.link != inode.link_group else None
        if other is None:
            if len(names) == inode.nlink and inode.link_group is not None:
                inode.link_group = None     # free for the new inode
                self._db.execute('UPDATE inode SET link_group = NULL WHERE ino = ?', (inode.ino,))
            other = self._describer.new_file(info, record)
            other.nlink = len(names)
            self._db.store_times(other)
        if len(names) == inode.nlink:
            for row in self._journal.objects_of(inode.ino):
                self._journal.put_object(row._replace(ino=other.ino, revision=other.revision if self._is_link(row, record) else 0))
                if row.key != info.key and not row.doomed:      # another look tells what became of it
                    self.obstructed.add(row.key)
        for parent, name in names:
            self._removals.remove_name(inode, parent, name)
            self._db.insert_dentry(parent, name, other.ino)
        return other

    def _is_link(self, row: Known, record: IndexRecord | None) -> bool:
        """Whether the host that wrote `record` says that this object is, as it is, one more link of the same content."""
        hint = self._journal.hint(row.key)
        if record is None or not record.link or row.doomed or hint is None or (hint[0], hint[1]) != (row.etag, row.size):
            return False
        return row.size == record.size and record_of(hint).link == record.link

    def _carry_over(self, inode: Inode, reason: int, fresh: Inode) -> None:
        """What was changed here beside the content, and is not uploaded yet, goes on with the new version."""
        if reason & Reason.ATTRS:
            fresh.mode, fresh.uid, fresh.gid, fresh.xattrs, fresh.attrs_known = inode.mode, inode.uid, inode.gid, inode.xattrs, 1
            self._db.store_all(fresh)
        if reason & (Reason.ATTRS | Reason.NAMES):
            self._journal.mark(fresh, reason & (Reason.ATTRS | Reason.NAMES))

    def _take_over(self, known: Known, hint: Hint) -> None:
        """Same content, newer attributes or a hard link made by another host."""
        if hint[0] != known.etag or hint[1] != known.size:
            return
        record = record_of(hint)
        inode = self._db.inode(known.ino)
        is_taken = (record.attrs is not None and inode.revision == known.revision and record.changed_ns >= known.said_ns
                    and self._journal.pending_row(inode.ino) is None)
        if (record.lifecycle and not known.lifecycle) or is_taken:
            known = known._replace(lifecycle=known.lifecycle or record.lifecycle, said_ns=record.changed_ns if is_taken else known.said_ns)
            self._journal.put_object(known)
        if not is_taken or record.attrs is None:
            return
        if record.link and record.link != inode.link_group:
            self._join_group(inode, known, record)
            inode = self._db.inode((self._journal.known(known.key) or known).ino)
        if self._describer.set_attrs(inode, record.attrs) and inode.nlink > 1 and not record.link:
            self._journal.mark(inode, Reason.INDEX)     # a host that does not know of the links: what it said is said of the other names, too

    def _join_group(self, inode: Inode, known: Known, record: IndexRecord) -> None:
        """Another host linked this name to others: make them one inode here too."""
        other = self._db.row('SELECT ino FROM inode WHERE link_group = ?', (record.link,))
        if other is None:
            inode.link_group = record.link
            self._db.store_all(inode)
            return
        target = self._db.inode(other[0])
        names = self._db.names_of(inode.ino)
        if target.has_staging or inode.open_count or len(names) != 1 or target.size != inode.size:
            return
        parent, name = names[0]
        self._removals.remove_name(inode, parent, name)
        self._db.insert_dentry(parent, name, target.ino)
        target.nlink += 1
        self._db.store_times(target)
        self._journal.put_object(known._replace(ino=target.ino, revision=target.revision))
        self._invalidator.appeared(parent, name)

    # --- gone -------------------------------------------------------------------------------------------------------------------------

    def object_gone(self, row: Known) -> None:
        """The bucket has no such object any more; call it in a transaction."""
        self._removals.object_gone(row)

    def remove_empty_directories(self) -> list[str]:
        """Directories that only existed by what was in them, and lost it; to be called when all that is known was applied. Returns keys of
        objects that had no place because of them: they are to be applied again."""
        freed = self.directories.remove_empty()
        return [key for key in freed if self._journal.is_unmountable(key)]

    # --- small ------------------------------------------------------------------------------------------------------------------------

    def _inode_or_none(self, ino: int) -> Inode | None:
        return self._db.inodes_of([ino]).get(ino)
