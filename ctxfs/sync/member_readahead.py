"""Members that are fetched with one that is read: whoever reads file after file (grep -r, cp -r) wants the neighbours, too.

Owns which neighbours, and how many: none before a reader goes on where he was, then twice as many each time. One who jumps about costs
no more than what he reads. It must not know how anything is fetched.
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import msgspec

from ctxfs.storage.journal import Known
from ctxfs.storage.members import is_file
from ctxfs.sync.archive_mirror import ArchiveMirror
from ctxfs.sync.protocol import WarmItem

#: members behind the last one that count as going on: programs skip some
NEAR = 16
#: members of one request, and bytes of their content
MOST, MOST_BYTES = 512, 8 << 20
#: places where readers were, of which each may go on
READERS = 8


class MemberReadahead:
    """See the module docstring. `prefix`: of the mount, which goes before keys in requests."""

    def __init__(self, mirror: ArchiveMirror, *, prefix: str) -> None:
        self._mirror = mirror
        self._prefix = prefix
        #: the last key that was fetched for a reader → how many members were
        self._readers: OrderedDict[str, int] = OrderedDict()

    def neighbours(self, source: Known) -> list[WarmItem]:
        """What to fetch with the member, in the order of their keys."""
        behind = self._reader_before(source.key)
        count = 1 if behind is None else min(max(NEAR, 2 * self._readers.pop(behind)), MOST)
        found = list(self._following(source, count - 1))
        self._readers[source.key if not found else found[-1].key[len(self._prefix):]] = count
        while len(self._readers) > READERS:
            self._readers.popitem(last=False)
        return found

    def _reader_before(self, key: str) -> str | None:
        """Whose next member this may be."""
        last = max((last for last in self._readers if last < key), default=None)
        if last is not None and any(member.key == key for member in self._mirror.rows.after(last, NEAR)):
            return last
        return None

    def _following(self, source: Known, count: int) -> Iterator[WarmItem]:
        """Of the same archive: one GET has them only there."""
        first = self._mirror.rows.get(source.key)
        size = source.size
        for member in self._mirror.rows.after(source.key, count) if first is not None and count else ():
            size += member.size
            if first is None or member.place.archive != first.place.archive or size > MOST_BYTES:
                return
            if member.size and is_file(member.etag) and not member.is_shadowed:
                place = msgspec.structs.replace(member.place, archive=self._mirror.archive_key(member.place.archive))
                yield WarmItem(key=self._prefix + member.key, etag=member.etag, size=member.size, place=place)
