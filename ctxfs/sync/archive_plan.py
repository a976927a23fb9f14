"""What goes into a flush's archives: which planned works, as which items, and what the commit deletes.

Owns the choice between an archive and an object of its own (size, archiveExcludePaths), the items of a work, how they are cut into parts, and the
comparison with what the log has by now. It must not know requests, nor how a commit ends (archiver.py). It reads and changes nothing.

    a regular file up to MEMBER_MAX, a symlink, an empty directory   → a member
    a directory of which only attributes are to be told               → goes along where anything is committed
    larger, or below archiveExcludePaths                              → an object of its own, as in File mode
"""
from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from ctxfs.errors import NotFound
from ctxfs.rules import Rules
from ctxfs.storage.inode import Content, Inode
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.members import Place, is_member
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.archive_mirror import ArchiveMirror
from ctxfs.sync.archive_protocol import PackItem
from ctxfs.sync.attributes import get_attrs
from ctxfs.sync.planner import Work

#: larger files are objects of their own: who reads one byte of a member has all of it fetched
MEMBER_MAX = 4 << 20
#: content and items in one archive
ARCHIVE_BYTES, ARCHIVE_ITEMS = 64 << 20, 20_000
#: a part that one core packs in less time is not worth another archive
LEAST_BYTES, LEAST_ITEMS = 4 << 20, 2000


class Choice(NamedTuple):
    """One item and the work that it is of. `base`: what this host's file is based on at that key."""
    work: Work
    key: str
    item: PackItem
    lifecycle: str
    base: Known | None


class ArchivePlan:
    """See the module docstring. `prefix`: where the mount's root lies in the bucket."""

    def __init__(self, db: TreeDB, journal: Journal, staging: Staging, *, mirror: ArchiveMirror, rules: Rules, prefix: str,
                 member_max: int = MEMBER_MAX) -> None:
        self._db = db
        self._journal = journal
        self._staging = staging
        self._mirror = mirror
        self._rules = rules
        self._prefix = prefix
        self._member_max = member_max

    # --- which --------------------------------------------------------------------------------------------------------------------

    def takes(self, work: Work) -> bool:
        """Whether the work is an archive's, if only as what goes along."""
        inode = work.inode
        if work.error is not None or work.is_retiring or work.needs_bytes:
            return False
        if inode.is_dir:
            return bool(work.missing) or not work.unwanted
        if not work.missing or (inode.is_regular and inode.size > self._member_max):
            return False
        return not any(self._is_excluded(key) for key in work.missing)

    def _is_excluded(self, key: str) -> bool:
        paths = self._rules.policy.upload_policy.archive_exclude_paths
        return any(key == path or key.startswith(path + '/') for path in (path.strip('/') for path in paths) if path)

    def is_in_place(self, work: Work) -> bool:
        """Whether the inode still has the names that the work is of. What others commit may move it aside, or keep it on this host."""
        if work.inode.is_dir:
            return not work.missing or self._db.dir_key(work.inode.ino) in work.missing
        return not work.inode.local and set(self._db.keys_of(work.inode)).issuperset(work.missing)

    def needs_bytes(self, work: Work) -> bool:
        """Whether an object of its own is to be made of what is only a member: nobody can copy that in the bucket."""
        if not work.missing or work.inode.content != Content.CLEAN or self.takes(work):
            return False
        source = self._journal.source_of(work.inode)
        return source is not None and is_member(source.etag)

    # --- as what ------------------------------------------------------------------------------------------------------------------

    def items_of(self, work: Work, *, copy: str = '') -> list[tuple[str, PackItem]]:
        """(key, item) of each key that the work is missing. `copy`: the file to be packed instead of the staging file. Raises NotFound."""
        inode = work.inode
        attrs, link = get_attrs(inode), inode.link_group or ''
        if inode.is_dir:
            key = self._db.dir_key(inode.ino)
            return [(key, PackItem(key=self._mirror.path_of(key), attrs=attrs, size=0, is_marker=bool(work.missing)))] if key else []
        common: dict[str, object] = {'attrs': attrs, 'link': link, **self._content_of(inode, copy)}
        return [(key, PackItem(key=self._mirror.path_of(key), shadows=self._shadow(key), **common)) for key in work.missing]  # type: ignore[arg-type]

    def _content_of(self, inode: Inode, copy: str) -> dict[str, object]:
        if inode.is_symlink:
            return {'body': inode.target or b'', 'size': len(inode.target or b'')}
        if inode.has_staging:
            path = copy or self._staging.path(inode.ino)
            return {'path': path, 'size': os.stat(path).st_size}
        source = self._journal.source_of(inode)
        if source is None:
            raise NotFound('the object that had its content is gone from the bucket')
        return {'source_key': self._prefix + source.key, 'source_etag': source.etag, 'source_place': self.place_of(source), 'size': source.size}

    def place_of(self, source: Known) -> Place | None:
        """Where a member's bytes are, the archive by its full key. Raises RemoteChanged."""
        return self._mirror.place_of(source)

    def _shadow(self, key: str) -> str:
        """The object whose place the member takes."""
        known = self._journal.known(key)
        if known is not None and not is_member(known.etag):
            return known.etag
        member = self._mirror.rows.get(key)
        return '' if member is None else member.shadows

    # --- cutting ------------------------------------------------------------------------------------------------------------------

    @staticmethod
    def cut(choices: Iterable[Choice], cores: int) -> list[list[Choice]]:
        """Parts of one lifecycle each, in the order of paths, so that what lies together is read together; as many as there are cores where
        that pays."""
        parts: list[list[Choice]] = []
        for lifecycle in sorted({choice.lifecycle for choice in choices}):
            group = sorted((choice for choice in choices if choice.lifecycle == lifecycle), key=lambda choice: choice.item.key)
            parts += _cut_group(group, cores)
        return parts

    # --- what the commit finds ----------------------------------------------------------------------------------------------------

    def is_current(self, key: str, base: Known | None) -> bool:
        """Whether the log has at the key what the file here is based on."""
        member = self._mirror.rows.get(key)
        current = None if member is None or member.is_shadowed else member.etag
        if base is not None and not is_member(base.etag):
            return current is None
        return current == (None if base is None else base.etag)

    def deletions(self, works: Sequence[Work], written: Collection[str], *, is_wanted: Callable[[Known], bool]) -> list[Known]:
        """Members that the commit of these works deletes: what they leave behind, tombstones, and those that objects took the place of."""
        found = {known.key: known for work in works for known in self._journal.objects_of(work.inode.ino) if known.key in work.unwanted}
        if self._rules.deletes_remotely:
            after = ''
            while batch := self._journal.doomed(1000, after):
                after = batch[-1].key
                found.update((known.key, known) for known in batch if known.key not in found and not is_wanted(known))
        else:
            found.clear()
        return [known for key, known in sorted(found.items()) if is_member(known.etag) and key not in written]


def _cut_group(group: list[Choice], cores: int) -> list[list[Choice]]:
    size = sum(choice.item.size for choice in group)
    least = min(cores, max(size // LEAST_BYTES, len(group) // LEAST_ITEMS))
    count = max(1, least, -(-size // ARCHIVE_BYTES), -(-len(group) // ARCHIVE_ITEMS))
    parts: list[list[Choice]] = [[]]
    share_bytes, share_items = size / count, len(group) / count
    filled = 0
    for choice in group:
        is_full = filled + choice.item.size > ARCHIVE_BYTES or len(parts[-1]) >= min(share_items, ARCHIVE_ITEMS) or filled >= share_bytes > 0
        if parts[-1] and is_full and (len(parts) < count or filled + choice.item.size > ARCHIVE_BYTES or len(parts[-1]) >= ARCHIVE_ITEMS):
            parts.append([])
            filled = 0
        parts[-1].append(choice)
        filled += choice.item.size
    return parts
