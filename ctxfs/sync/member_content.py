"""The content of members: their bytes out of archives, unpacked and proven.

Owns how a member comes from its archive: by one ranged GET, and nothing of it is used before it is what its etag says. It must not know who wants
it, nor the block cache.
"""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from ctxfs.errors import Corrupted, NotFound, RemoteChanged, RemoteUnavailable, WrongBytes
from ctxfs.storage import zip_format
from ctxfs.storage.members import Place, hash_in
from ctxfs.storage.object_store import ObjectStore


def member_content(store: ObjectStore, place: Place, *, etag: str, size: int) -> bytes:
    """The whole content. Raises RemoteChanged where the archive is gone (its members have other places by now, or are gone, too), WrongBytes."""
    stop = place.offset + place.packed
    try:
        data = store.get(place.archive, place.offset, stop) if place.packed else b''
    except NotFound as error:
        raise RemoteChanged(f'{place.archive} is not there any more') from error
    if len(data) != place.packed:
        raise RemoteUnavailable(f'{place.archive}: {len(data)} bytes came where a member has {place.packed}')
    return proven(data, place, etag=etag, size=size)


class Placed(NamedTuple):
    """A member to be read."""
    place: Place
    etag: str
    size: int


def members_content(store: ObjectStore, members: Sequence[Placed]) -> list[bytes]:
    """The contents of members of one archive, by one GET of the range that has them all. Raises as `member_content`."""
    archive = members[0].place.archive
    start = min(member.place.offset for member in members)
    stop = max(member.place.offset + member.place.packed for member in members)
    try:
        data = memoryview(store.get(archive, start, stop) if stop > start else b'')
    except NotFound as error:
        raise RemoteChanged(f'{archive} is not there any more') from error
    if len(data) != stop - start:
        raise WrongBytes(f'{archive}: {len(data)} bytes came of {stop - start}')
    return [proven(bytes(data[place.offset - start:place.offset - start + place.packed]), place, etag=etag, size=size)
            for place, etag, size in members]


def proven(data: bytes, place: Place, *, etag: str, size: int) -> bytes:
    """The content of a member whose packed bytes are `data`. Raises WrongBytes."""
    try:
        content = zip_format.unpack(data, place.method, size=size, crc=place.crc)
    except Corrupted as error:
        raise WrongBytes(f'{place.archive}: {error}') from error
    if hashlib.sha256(content).hexdigest() != hash_in(etag):
        raise WrongBytes(f'{place.archive}: what came is not what was packed')
    return content
