"""Whole listings of a store that need not be trusted: every page is checked against what a listing is, before anybody acts on it.

Owns these checks and the walk from page to page. It must not know what the keys mean. What does not appear in a listing counts as deleted,
so one that leaves out, repeats, or is not in order is worse than none: RemoteUnavailable, and what is known stays as it is.
"""
from __future__ import annotations

from collections.abc import Iterator

from ctxfs.errors import RemoteUnavailable
from ctxfs.records import ListPage
from ctxfs.storage.object_store import ObjectStore

#: pages in a row that have nothing in them; some servers send one where much was deleted
MAX_EMPTY_PAGES = 100


class ListingCheck:
    """The pages of one listing, in the order in which they come."""

    def __init__(self, prefix: str, *, start_after: str = '') -> None:
        self._prefix = prefix
        self._last_key = start_after
        self._last_prefix = ''
        self._token: str | None = None
        self._empty = 0

    def take(self, page: ListPage) -> ListPage:
        """The page itself. Raises RemoteUnavailable where it cannot follow those before it."""
        for info in page.objects:
            self._last_key = self._next(info.key, self._last_key)
        for prefix in page.prefixes:
            self._last_prefix = self._next(prefix, self._last_prefix)
        self._empty = 0 if page.objects or page.prefixes else self._empty + 1
        if page.next_token is not None and (page.next_token == self._token or self._empty > MAX_EMPTY_PAGES):
            raise RemoteUnavailable(f'the listing of {self._prefix!r} does not come to an end: the store sends the same page again and again')
        self._token = page.next_token
        return page

    def _next(self, key: str, last: str) -> str:
        # The order of UTF-8 bytes is the order of code points, which is how Python compares str.
        if not key.startswith(self._prefix):
            raise RemoteUnavailable(f'the listing of {self._prefix!r} has the key {key[:80]!r}, which is none of them; the store is not usable')
        if key <= last:
            raise RemoteUnavailable(f'the listing of {self._prefix!r} is not in order: {key[:80]!r} comes after {last[:80]!r}; '
                                    'the store is not usable')
        return key


def pages(store: ObjectStore, prefix: str, *, start_after: str = '', limit: int = 1000) -> Iterator[ListPage]:
    """Every page of the keys that start with `prefix`, from behind `start_after`, of up to `limit` keys. Raises what the store raises, and
    RemoteUnavailable as ListingCheck."""
    check, token = ListingCheck(prefix, start_after=start_after), None
    more = {'start_after': start_after} if start_after else {}
    while True:
        page = check.take(store.list(prefix, token=token, limit=limit, **more))
        yield page
        token = page.next_token
        if token is None:
            return
