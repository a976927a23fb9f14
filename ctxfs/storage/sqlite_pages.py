"""The pages of a SQLite database, read without SQLite, as far as they can be read (sqlite.org/fileformat2.html).

Owns the format of pages, cells and records. It must not know what a table means: it hands out records as tuples. Whatever contradicts
the format is left out and noted, never raised, and never costs more than the page that it is in: this is how a file is read that SQLite
refuses.
"""
from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ctxfs.storage import sqlite_wal

Record = tuple[object, ...]
_INDEX_INTERIOR, _TABLE_INTERIOR, _INDEX_LEAF, _TABLE_LEAF = 2, 5, 10, 13
_KINDS = (_INDEX_INTERIOR, _TABLE_INTERIOR, _INDEX_LEAF, _TABLE_LEAF)
_INTEGER_BYTES = (0, 1, 2, 3, 4, 6, 8)
#: no B-tree of 2^32 pages is deeper
_DEPTH = 30
#: no record of ours is longer
_PAYLOAD_MAX = 64 << 20


class Damage(Exception):
    """These bytes are no page, cell or record."""


class Row(NamedTuple):
    """`number`: the row's integer key, None where the table (or index) has none."""
    number: int | None
    record: Record


class Pages:
    """The pages of a database and its log; pages count from 1."""

    def __init__(self, path: Path) -> None:
        with path.open('rb') as file:
            self._bytes = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if os.fstat(file.fileno()).st_size else b''
        self.log = sqlite_wal.read(path)
        self._newer = {frame.page: frame.data for frame in self.log.frames}
        self.size = self._page_size()
        self.count = max([-(-len(self._bytes) // self.size), *self._newer])
        self._usable = self.size - self._reserved()

    def close(self) -> None:
        if isinstance(self._bytes, mmap.mmap):
            self._bytes.close()

    def _page_size(self) -> int:
        if self._newer:
            return len(self.log.frames[0].data)
        size = int.from_bytes(self._bytes[16:18], 'big')
        size = 65536 if size == 1 else size
        return size if size >= 512 and size & (size - 1) == 0 else 4096

    def _reserved(self) -> int:
        reserved = self.page(1)[20:21]
        return reserved[0] if reserved and reserved[0] <= 32 else 0

    def page(self, number: int) -> bytes:
        """Its bytes; zeros where the file ends before."""
        found = self._newer.get(number)
        if found is None:
            found = bytes(self._bytes[(number - 1) * self.size:number * self.size])
        return found.ljust(self.size, b'\0')

    # --- trees --------------------------------------------------------------------------------------------------------------------

    def tree(self, root: int, visited: set[int]) -> Iterator[Row | Damage]:
        """The rows of the table or index with this root page, and each thing that is damaged on the way. Adds the pages to `visited`, and
        takes one that is there already for damage."""
        stack = [(root, 0)]
        while stack:
            number, depth = stack.pop()
            if number in visited or not 0 < number <= self.count or depth > _DEPTH:
                yield Damage(f'page {number} is no page of this tree')
                continue
            visited.add(number)
            try:
                page = _Page(self.page(number), number)
            except Damage as damage:
                yield damage
                continue
            stack += [(child, depth + 1) for child in page.children()]
            yield from self._rows(page, visited)

    def leaf(self, number: int) -> list[Row]:
        """The rows of a page that belongs to no tree that is known, if it looks like a page with rows; those that can be read."""
        try:
            page = _Page(self.page(number), number)
        except Damage:
            return []
        return [row for row in self._rows(page, set()) if isinstance(row, Row)]

    def _rows(self, page: _Page, visited: set[int]) -> Iterator[Row | Damage]:
        if page.kind == _TABLE_INTERIOR:
            return
        for offset in page.cells():
            try:
                yield self._row(page, offset, visited)
            except Damage as damage:
                yield damage

    def _row(self, page: _Page, offset: int, visited: set[int]) -> Row:
        offset += 4 if page.kind == _INDEX_INTERIOR else 0
        size, offset = _varint(page.data, offset)
        number = None
        if page.kind == _TABLE_LEAF:
            number, offset = _varint(page.data, offset)
            number -= (number >> 63) << 64
        return Row(number, _record(self._payload(page, offset, size, visited)))

    def _payload(self, page: _Page, offset: int, size: int, visited: set[int]) -> bytes:
        if size > _PAYLOAD_MAX:
            raise Damage(f'page {page.number}: a record of {size} bytes')
        usable = self._usable
        most = usable - 35 if page.kind == _TABLE_LEAF else (usable - 12) * 64 // 255 - 23
        if size <= most:
            return page.data[offset:offset + size]
        least = (usable - 12) * 32 // 255 - 23
        local = least + (size - least) % (usable - 4)
        local = local if local <= most else least
        following, = struct.unpack_from('>I', page.data.ljust(offset + local + 4, b'\0'), offset + local)
        return page.data[offset:offset + local] + self._overflow(following, size - local, visited)

    def _overflow(self, number: int, size: int, visited: set[int]) -> bytes:
        parts = []
        while size > 0:
            if number in visited or not 0 < number <= self.count:
                raise Damage(f'page {number} does not go on with a record')
            visited.add(number)
            data = self.page(number)
            parts.append(data[4:min(self._usable, 4 + size)])
            size -= len(parts[-1])
            number, = struct.unpack_from('>I', data)
        return b''.join(parts)

    def free_pages(self) -> set[int]:
        """Pages that belong to nothing, as far as the list of them can be read. Their rows were deleted."""
        found: set[int] = set()
        trunk, = struct.unpack_from('>I', self.page(1), 32)
        while 0 < trunk <= self.count and trunk not in found:
            data = self.page(trunk)
            following, leaves = struct.unpack_from('>II', data)
            if leaves > self._usable // 4 - 2:
                break
            found.add(trunk)
            found.update(number for number in struct.unpack_from(f'>{leaves}I', data, 8) if 0 < number <= self.count)
            trunk = following
        return found


class _Page:
    """One page of a B-tree. Raises Damage where it cannot be one."""

    def __init__(self, data: bytes, number: int) -> None:
        self.data = data
        self.number = number
        self._header = 100 if number == 1 else 0
        self.kind, _, self._count = struct.unpack_from('>BHH', data, self._header)
        self._pointers = self._header + (12 if self.kind in (_INDEX_INTERIOR, _TABLE_INTERIOR) else 8)
        if self.kind not in _KINDS or self._pointers + 2 * self._count > len(data):
            raise Damage(f'page {number} is no page of a tree')

    def cells(self) -> Iterator[int]:
        """Where each begins; those that lie outside are left out."""
        first = self._pointers + 2 * self._count
        for offset, in struct.iter_unpack('>H', self.data[self._pointers:first]):
            if first <= offset < len(self.data) - 3:
                yield offset

    def children(self) -> list[int]:
        if self.kind not in (_INDEX_INTERIOR, _TABLE_INTERIOR):
            return []
        below = [struct.unpack_from('>I', self.data, offset)[0] for offset in self.cells()]
        return [*below, struct.unpack_from('>I', self.data, self._header + 8)[0]]


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for byte in data[offset:offset + 8]:
        offset += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, offset
    if offset >= len(data):
        raise Damage('a number does not end')
    return value << 8 | data[offset], offset + 1


def _record(payload: bytes) -> Record:
    size, offset = _varint(payload, 0)
    if size > len(payload):
        raise Damage('a record ends before its header')
    kinds = []
    while offset < size:
        kind, offset = _varint(payload, offset)
        kinds.append(kind)
    values = []
    for kind in kinds:
        value, offset = _value(payload, offset, kind)
        values.append(value)
    if offset != len(payload):
        raise Damage('a record is longer than its values')
    return tuple(values)


def _value(payload: bytes, offset: int, kind: int) -> tuple[object, int]:
    """A text that is no UTF-8 stays bytes: it is none of ours."""
    if kind >= 12:
        size = (kind - 12) // 2
    elif kind <= 6:
        size = _INTEGER_BYTES[kind]
    else:
        size = 8 if kind == 7 else 0
    data = payload[offset:offset + size]
    if len(data) < size or kind in (10, 11):
        raise Damage('a value ends before its length')
    if kind >= 12:
        return (_text(data) if kind % 2 else data), offset + size
    if kind == 7:
        return struct.unpack('>d', data)[0], offset + size
    return (kind - 8 if kind >= 8 else int.from_bytes(data, 'big', signed=True) if kind else None), offset + size


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode('utf-8')
    except UnicodeDecodeError:
        return data
