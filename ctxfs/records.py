"""The values that cross layers: identifiers, attributes, object descriptions, listing pages, index records.

Owns their names, types and units, nothing else: no I/O and no behaviour beyond what a value can say of itself. Everything here is
immutable and msgspec-encodable, so that it can also cross the pipe to a transfer worker.
"""
from __future__ import annotations

from typing import NewType

import msgspec

#: what msgspec raises for a text that is not what it should be, whoever wrote it
UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)

Ino = NewType('Ino', int)
Fh = NewType('Fh', int)
#: a full object key inside the bucket (after the store's own prefix), as the store returns it
Key = NewType('Key', str)

ROOT_INO = Ino(1)
#: the root directory's own path in the index, where every path has at least one character
ROOT_PATH = '/'
#: reserved directory inside a context for ctxfs's own objects; hidden in the mount
RESERVED_DIR = '.ctxfs/'


#: the tag, and the user metadata key beside it, that say when an object expires
LIFECYCLE_NAME = 'ctxfs-lifecycle'


class Attrs(msgspec.Struct, frozen=True, kw_only=True):
    """The attributes that travel with a file to other hosts. Times are ns since the epoch; mode includes the type (S_IFMT)."""
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    target: bytes | None = None
    rdev: int = 0
    xattrs: dict[str, bytes] | None = None


class ObjectInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a store knows of one object. `etag` is opaque: kept and sent back exactly as it came. `metadata` is None in a listing
    (stores do not list it); keys in it are lower case without the x-amz-meta- prefix."""
    key: str
    size: int
    etag: str
    mtime_ns: int
    metadata: dict[str, str] | None = None
    content_type: str | None = None


class ListPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a listing in the store's key order. `prefixes` are the common prefixes when a delimiter was given (they end with it).
    `next_token` is None on the last page. `now_ns`: the store's own clock when it answered (0: it did not say)."""
    objects: list[ObjectInfo]
    prefixes: list[str]
    next_token: str | None
    now_ns: int = 0


class PutResult(msgspec.Struct, frozen=True, kw_only=True):
    """The version that a PUT, a completed multipart upload or a copy made."""
    etag: str
    size: int


class Stamp(msgspec.Struct, frozen=True, kw_only=True):
    """Who wrote this version of an object: the `ctxfs` user-metadata key, decoded. A lost response is resolved by it: the object
    carries the id of our attempt exactly when our request arrived (or when somebody copied the object: then it has another key). `link` is the
    id of the hard-link group, '' when alone. `base` tells the version that this one replaced, '' where there was none: a lost write that somebody
    saw and replaced before its writer heard of it is known by that. `member`: the same of the member of an archive whose place the object takes.

    `etag` (without quotes): what the object should get; where it did, the stamp is known to be this version's. `sums`: see piece_sums.py."""
    sha256: str = ''
    host: str = ''
    revision: int = 0
    link: str = ''
    etag: str = ''
    sums: str = ''
    attempt: str = ''
    base: str = ''
    member: str = ''


class IndexRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the index knows of one path. Valid only for the object version (etag, size); for directories etag is '' and size 0.

    `path` is the key relative to the context's prefix (a directory's ends with '/'); `attrs` None is a tombstone: the path was removed.
    `changed_ns`: when its host made the change; of two records of one path the later one counts. `lifecycle`: the tag that the object
    carries, '' when none."""
    path: str
    changed_ns: int
    etag: str = ''
    size: int = 0
    attrs: Attrs | None = None
    link: str = ''
    lifecycle: str = ''
