"""Held hints: index records that wait for their object to be listed, in memory, for as long as one first listing takes.

Owns their packed pages and which of these are unpacked. It must not know what a record means, nor the table that has the hints which outlive a
listing (journal.py): what nobody took goes there. Lost at a crash, like every hint that was not applied: the index counts as read only then.

A whole index comes in the order of its paths and is asked for stretch by stretch in that order, from a few places at once. So the pages stay as they
came, which is a sixth of what the records take as objects, and a page is unpacked when the listing gets there.
"""
from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from ctxfs.records import IndexRecord

#: (etag, size, the record or what is packed of it)
Hint = tuple[str, int, bytes | IndexRecord]
#: bytes of packed pages: of about 200,000 files
MOST = 24 << 20
#: pages that are unpacked at a time, 1,000 records each
UNPACKED = 12
_pack, _unpack = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(list[IndexRecord]).decode
_unpack_one = msgspec.msgpack.Decoder(IndexRecord).decode


def record_of(hint: Hint) -> IndexRecord:
    record = hint[2]
    return record if isinstance(record, IndexRecord) else _unpack_one(record)


class _Page:
    __slots__ = ('count', 'first', 'last', 'objects', 'packed', 'records')

    def __init__(self, packed: bytes, first: str, last: str, count: int, objects: int) -> None:
        self.packed, self.first, self.last, self.count, self.objects = packed, first, last, count, objects
        self.records: dict[str, IndexRecord] | None = None


class HeldHints:
    """See the module docstring. False when there are none."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self.clear()

    def clear(self) -> None:
        self._pages: list[_Page] = []
        self._firsts: list[str] = []
        self._unpacked: OrderedDict[_Page, None] = OrderedDict()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._pages)

    def add(self, packed: bytes, *, first: str, last: str, count: int, objects: int) -> bool:
        """`count` records from `first` to `last`, `objects` of them of objects. False, and nothing is done, where there is no room, or where they do
        not follow what there is."""
        if self._bytes + len(packed) > self._most or (self._pages and first <= self._pages[-1].last):
            return False
        self._bytes += len(packed)
        self._pages.append(_Page(packed, first, last, count, objects))
        self._firsts.append(first)
        return True

    def get(self, key: str) -> Hint | None:
        at = bisect_right(self._firsts, key) - 1
        record = self._records(self._pages[at]).get(key) if at >= 0 else None
        return None if record is None else (record.etag, record.size, record)

    def between(self, after: str, last: str | None) -> dict[str, Hint]:
        """Those with after < key <= last (None: to the end)."""
        found: dict[str, Hint] = {}
        for at in range(max(0, bisect_right(self._firsts, after) - 1), len(self._pages)):
            page = self._pages[at]
            if last is not None and page.first > last:
                break
            if page.last > after:
                found.update((key, (record.etag, record.size, record)) for key, record in self._records(page).items()
                             if key > after and (last is None or key <= last))
        return found

    def drop(self, keys: Iterable[str]) -> None:
        first, last, records = '', '', {}       # of the page of the key before
        for key in keys:
            if not first <= key <= last and (at := bisect_right(self._firsts, key) - 1) >= 0:
                page = self._pages[at]
                first, last, records = page.first, page.last, self._records(page)
            records.pop(key, None)

    def take(self) -> list[IndexRecord]:
        """What is left of the first page, which is forgotten."""
        page = self._pages.pop(0)
        del self._firsts[0]
        self._unpacked.pop(page, None)
        return _unpack(page.packed) if page.records is None else list(page.records.values())

    # --- of the records as they came --------------------------------------------------------------------------------------------------

    @property
    def objects(self) -> int:
        return sum(page.objects for page in self._pages)

    def nth_object(self, number: int) -> str:
        """The key of the object with so many before it. Nothing was dropped yet."""
        for page in self._pages:
            if number < page.objects:
                return [record.path for record in self._records(page).values() if record.etag][number]
            number -= page.objects
        raise IndexError(number)

    def count_between(self, after: str, last: str) -> int:
        """How many there were with after < key <= last, a page more at most."""
        first, end = max(0, bisect_right(self._firsts, after) - 1), bisect_right(self._firsts, last)
        return sum(page.count for page in self._pages[first:end] if page.last > after)

    # --- pages ------------------------------------------------------------------------------------------------------------------------

    def _records(self, page: _Page) -> dict[str, IndexRecord]:
        if page.records is None:
            page.records = {record.path: record for record in _unpack(page.packed)}
            page.packed = b''
            self._unpacked[page] = None
            if len(self._unpacked) > UNPACKED:
                self._pack_again(self._unpacked.popitem(last=False)[0])
        else:
            self._unpacked.move_to_end(page)
        return page.records

    @staticmethod
    def _pack_again(page: _Page) -> None:
        assert page.records is not None
        page.packed, page.records = _pack(list(page.records.values())), None
