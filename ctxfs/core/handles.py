"""Open files and open directories, one class each.

Owns handle numbers and what belongs to one open(): read-ahead, the place in a directory. It must not know FUSE or the store.
"""
from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ctxfs.core.block_reader import ReadAhead
from ctxfs.errors import StaleHandle
from ctxfs.records import Fh
from ctxfs.storage.inode import Inode

#: directory entries read from the tree database at a time
PAGE = 512
#: offsets of a directory stream: 1 after '.', 2 after '..', then 2 + position + 1
_FIRST = 2
#: pages a handle can seek back to exactly, also when the directory changed since
KEPT_PAGES = 16
#: names in an answer: a directory with fewer is read in one go, however long they are (32 KiB at a time)
LARGE = 100


def is_for_writing(flags: int) -> bool:
    """Whether open(2) with these flags allows to write."""
    return flags & os.O_ACCMODE != os.O_RDONLY


class FileHandle:
    """One open() of a regular file. `remote_version`: the remote content it was opened on."""

    __slots__ = ('inode', 'flags', 'ahead', 'remote_version')

    def __init__(self, inode: Inode, flags: int) -> None:
        self.inode = inode
        self.flags = flags
        self.ahead = ReadAhead()
        self.remote_version = inode.remote_version

    @property
    def writes(self) -> bool:
        return is_for_writing(self.flags)


class Listing:
    """The names of a directory as one reading from its beginning has them: what its offsets mean. Pages that are read, and where each begins."""

    __slots__ = ('pages', 'starts')

    def __init__(self) -> None:
        self.pages: OrderedDict[int, list[tuple[bytes, int]]] = OrderedDict()
        self.starts: list[bytes] = [b'']       # of each page: the last name before it


class LastListings:
    """Of each directory the last one, for who goes on with it and has not begun it: the kernel keeps listings, gives a reader the beginning from its
    own memory, and may lose that in the middle (a change from elsewhere, want of memory). With other names offsets would mean other places: what
    came or went before them would be left out or there twice. Of as many directories as their pages allow; what is small is read in one go."""

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._listings: OrderedDict[int, Listing] = OrderedDict()

    def note(self, ino: int, listing: Listing, names: int) -> None:
        """It was asked for, and so many names were the answer."""
        if names < LARGE:
            return
        self._listings[ino] = listing
        self._listings.move_to_end(ino)
        while len(self._listings) > 1 and sum(len(one.pages) for one in self._listings.values()) > self._most:
            self._listings.popitem(last=False)

    def forget(self, ino: int) -> None:
        """Another one begins."""
        self._listings.pop(ino, None)

    def of(self, ino: int) -> Listing | None:
        return self._listings.get(ino)


class DirHandle:
    """One opendir(). Entries come in byte order of their names, a page at a time, each page starting after the last name of the one
    before: whatever is created or removed meanwhile, a name that stays is returned exactly once. `listing`: to go on with."""

    __slots__ = ('inode', '_children', 'listing')

    def __init__(self, inode: Inode, children: Callable[[int, bytes, int], list[tuple[bytes, int]]], listing: Listing | None = None) -> None:
        self.inode = inode
        self._children = children
        self.listing = listing or Listing()

    def page_at(self, offset: int) -> tuple[list[tuple[bytes, int]], int]:
        """The entries that follow the stream offset (_FIRST or more), and the offset of the first of them."""
        number, within = divmod(offset - _FIRST, PAGE)
        page = self._page(number)
        return page[within:], offset

    def ends_at(self, offset: int) -> bool:
        """Whether nothing followed this offset, as far as was read."""
        number, within = divmod(offset - _FIRST, PAGE)
        page = self.listing.pages.get(number)
        return page is not None and len(page) < PAGE and within >= len(page)

    def rewind(self) -> None:
        """rewinddir(): see the directory as it is now."""
        self.listing = Listing()

    def _page(self, number: int) -> list[tuple[bytes, int]]:
        pages, starts = self.listing.pages, self.listing.starts
        if number in pages:
            return pages[number]
        while number >= (there := len(starts)):       # the kernel has read what comes before it from its own memory
            self._page(there - 1)
            if len(starts) == there:
                return []       # a full page notes where the next starts: there is none
        page = self._children(self.inode.ino, starts[number], PAGE)
        pages[number] = page
        if len(pages) > KEPT_PAGES:
            pages.popitem(last=False)
        if len(page) == PAGE and number + 1 == len(starts):
            starts.append(page[-1][0])
        return page


H = TypeVar('H')


class HandleTable(Generic[H]):
    """Numbers for open things; a number is not used again while the daemon lives."""

    def __init__(self) -> None:
        self._next = 1
        self._open: dict[int, H] = {}

    def add(self, handle: H) -> Fh:
        fh = self._next
        self._next += 1
        self._open[fh] = handle
        return Fh(fh)

    def put(self, fh: int, handle: H) -> None:
        """The same under a number that somebody else made; not beside `add`."""
        self._open[fh] = handle

    def __contains__(self, fh: int) -> bool:
        return fh in self._open

    def get(self, fh: int) -> H:
        handle = self._open.get(fh)
        if handle is None:
            raise StaleHandle(f'no open handle {fh}')
        return handle

    def remove(self, fh: int) -> H:
        handle = self.get(fh)
        del self._open[fh]
        return handle

    def numbers(self) -> list[int]:
        return list(self._open)

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[H]:
        return iter(list(self._open.values()))
