"""Two hosts in Archive mode, and an outside writer who knows nothing of archives: the world of tests/model/pair.py, with members.

Owns what the bucket shows where members and objects lie side by side, read without a mount, and what archives alone must give. It must not know how
hosts do it.
"""
from __future__ import annotations

import io
import zipfile
from typing import Any

from ctxfs.errors import NotFound, RemoteChanged
from ctxfs.records import RESERVED_DIR
from ctxfs.storage.archive_log_format import ARCHIVE_DIR, number_in
from ctxfs.storage.members import is_member
from ctxfs.sync.archive_log import ArchiveLog
from ctxfs.sync.content import ContextCache
from ctxfs.sync.context_members import ContextMembers
from ctxfs.sync.growth import Growth
from tests.model.history import Violation, short
from tests.model.pair import Member, PairWorld, Script
from tests.unit.archive_rig import Archived
from tests.unit.test_sync_regressions import PREFIX

#: between the sizes that programs write
MEMBER_MAX = 120


class _InOrder:
    """A worker's helpers, for requests that are counted: one after the other, in the thread that asks."""

    def __init__(self, helpers: Any) -> None:
        self.map, self.submit, self.shutdown = map, helpers.submit, helpers.shutdown


class ArchivedMember(Archived, Member):
    """One host of the pair."""
    member_max = MEMBER_MAX

    def _wire(self, sync_every: float | None) -> None:
        super()._wire(sync_every)
        context, pool = self.workers.context, self
        context.helpers = _InOrder(context.helpers)  # type: ignore[assignment]
        self.upkeep._least_waste = 1
        self.remote.changes.growth = Growth(self.db, self.journal, pool, self.kernel, blocks=ContextCache(context.cache, prefix=PREFIX),  # type: ignore[arg-type]
                                            prefix=PREFIX)


class ArchivedWorld(PairWorld):
    """See the module docstring."""

    async def begin(self) -> None:
        await super().begin()
        self._archive = ContextMembers(self._store, PREFIX, host='judge')
        self._archive._is_archived = True

    def new_member(self, number: int) -> Member:
        return ArchivedMember(self, number)

    def versions(self, below: str = '') -> dict[str, str]:
        """Of an object and a member of one key the object counts, but for the one that the member took the place of."""
        objects = super().versions(below)
        if below:
            return objects
        self._archive.look()
        members = {item.record.path: item for item in self._archive.below('') if not item.record.path.endswith('/')}
        counting = {path: item.record.etag for path, item in members.items() if objects.get(path, item.shadows) == item.shadows}
        return {**objects, **counting}

    def _learn(self) -> None:
        if not hasattr(self, '_archive'):
            return
        objects, asides = PairWorld.versions(self), self.versions('.ctxfs/tmp/')
        self._archive.look()
        members = [(item.record.path, item.record.etag) for item in self._archive.below('') if not item.record.path.endswith('/')]
        for key, etag in [*objects.items(), *asides.items(), *members]:
            if (key, etag) not in self.contents:
                try:
                    self.contents[key, etag] = self._content(key, etag)
                except (RemoteChanged, NotFound):       # another request was quicker
                    continue

    def _content(self, key: str, etag: str) -> bytes:
        if not is_member(etag):
            return self._store.get(PREFIX + key, if_match=etag)
        item = self._archive.get(key)
        if item is None or item.record.etag != etag:
            raise RemoteChanged(key)
        return self._archive.content(item)

    def _sides(self, host: Member, copy: bytes | None, original: str, bucket: dict[str, bytes]) -> tuple[bytes | None, bytes | None]:
        """Of a member and an object that came at one instant both are published, and the object keeps the name. A host that has not seen the object
        speaks of the member."""
        ours, theirs = super()._sides(host, copy, original, bucket)
        ours = copy if copy != theirs else ours
        if ours != theirs:
            return ours, theirs
        member = host.mirror.rows.get(original)  # type: ignore[attr-defined]
        return copy, theirs if copy != theirs or member is None else self.contents.get((original, member.etag), theirs)

    def _is_directory(self, path: str) -> bool:
        return super()._is_directory(path) or self._archive.has_below(f'{path}/')

    # upkeep

    async def _tidy(self, host: Any, script: Script) -> None:
        """Of archives and of the log; what is dropped goes at the next time."""
        await self._alone(host, script, host.upkeep.once)

    # the outside writer: he sees objects

    def _put_outside(self, path: str, data: bytes, metadata: dict[str, str] | None) -> None:
        """See History.put_over_member."""
        before = self.in_bucket().get(path) if is_member(self.versions().get(path, '')) else None
        if before is None:
            super()._put_outside(path, data, metadata)
            return
        self.history.put_over_member(data, before)
        self._lost.add(before)
        self._store.put(PREFIX + path, data, metadata=metadata)
        self._learn()
        self.history.acknowledge(data, 'put')

    def _edit(self, path: str) -> None:
        if not is_member(self.versions().get(path, 'zip-')):
            super()._edit(path)

    def _delete(self, path: str) -> None:
        if path in PairWorld.versions(self) and not is_member(self.versions()[path]):
            super()._delete(path)
            # a member behind the object that no host has met yet shows again
            self._lost.update(content for (key, etag), content in self.contents.items() if key == path and is_member(etag))

    # verdicts

    def _left(self, host: Any) -> str:
        behind = [member.key for member in host.mirror.rows.shadowed()]
        return super()._left(host) + (f' members behind objects: {behind}' if behind else '')

    def _check_end(self) -> None:
        super()._check_end()
        self._check_archives()

    def _check_archives(self) -> None:
        """Unpacked in the order of their names, those that the log names give all members, and nothing else."""
        want = {path: self.contents[path, etag] for path, etag in self.versions().items() if is_member(etag)}
        found = self._unpacked()
        if found != want:
            lines = [f'{path}: {_name(found.get(path))}, the log has {_name(want.get(path))}' for path in sorted(found.keys() | want.keys())
                     if found.get(path) != want.get(path)]
            raise Violation('archives alone give ' + '; '.join(lines))

    def _unpacked(self) -> dict[str, bytes]:
        log, found = ArchiveLog(self._store, PREFIX), {}
        named = {info.name for entry in log.read(log.look()) for info in entry.header.archives}
        there = {info.key.rpartition('/')[2] for info in self._store.list(PREFIX + ARCHIVE_DIR, delimiter='/').objects}
        for name in sorted(name for name in named & there if number_in(name) is not None):
            with zipfile.ZipFile(io.BytesIO(self._store.get(f'{PREFIX}{ARCHIVE_DIR}{name}'))) as archive:
                names = archive.namelist()
                for path in archive.read('.ctxfs/deleted').split(b'\0') if '.ctxfs/deleted' in names else ():
                    found.pop(path.decode(), None)
                found.update((path, archive.read(path)) for path in names if not path.startswith(RESERVED_DIR) and not path.endswith('/'))
        return found


def _name(content: bytes | None) -> str:
    return 'nothing' if content is None else short(content)
