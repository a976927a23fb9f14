"""What the registry of contexts writes: its two kinds of object, their keys, and what is believed of one that anybody may have written.

Owns the names and the forms below `.ctxfs/contexts/`; registry.py has the layout in words, and the order of writes. It must not know requests
beyond the reading of one object.
"""
from __future__ import annotations

import calendar
import hashlib
import re
import secrets
import string
import time
import unicodedata
from collections.abc import Callable
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import msgspec

from ctxfs.errors import Corrupted, UsageError
from ctxfs.records import UNREADABLE
from ctxfs.storage.object_store import ObjectStore

NAMES = '.ctxfs/contexts/names/'
IDS = '.ctxfs/contexts/ids/'
CONTEXTS = 'contexts/'

ID_PREFIX = 'SdkCtx-'
ID_LENGTH = 17
_ID_ALPHABET = string.ascii_lowercase + string.digits
ID_PATTERN = re.compile(rf'{ID_PREFIX}[a-z0-9]{{{ID_LENGTH}}}')
#: what may be an id: also of contexts that other tools made. One component of a key that means itself everywhere
ANY_ID = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,127}')
_TIME = re.compile(r'[0-9TZ:.+-]{0,40}')
MAX_NAME = 128
#: bytes of a record; what is longer was not written here
MAX_RECORD = 64 << 10


class ContextRecord(msgspec.Struct, frozen=True, kw_only=True, rename='camel'):
    """One context. Times are ISO 8601 in UTC; last_used_at is that of the last mount, on any host."""
    id: str
    name: str
    created_at: str
    last_used_at: str
    state: Literal['available', 'in-use', 'clearing', 'pre-available'] = 'available'
    #: the name that it is about to get: its claim may be there already
    renaming_to: str | msgspec.UnsetType = msgspec.UNSET
    #: when its files are gone, it goes as well
    is_doomed: bool | msgspec.UnsetType = msgspec.UNSET
    #: the id of the context that it is becoming a copy of; as long as it is none it says `pre-available`
    copy_of: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def prefix(self) -> str:
        return context_prefix(self.id)


class Claim(msgspec.Struct, frozen=True, kw_only=True, rename='camel', omit_defaults=True):
    """`nonce`: of a renaming, so that no two of them write the same claim."""
    id: str
    name: str
    created_at: str
    nonce: str = ''


Entry = TypeVar('Entry', ContextRecord, Claim)


def context_prefix(context_id: str) -> str:
    """Where a context's files are: every key of it starts with this."""
    return f'{CONTEXTS}{context_id}/'


def prefix_in(key: str) -> str:
    """The prefix of the context that a full key lies in."""
    top, context_id, _ = key.split('/', 2)
    return f'{top}/{context_id}/'


def new_id() -> str:
    return ID_PREFIX + ''.join(secrets.choice(_ID_ALPHABET) for _ in range(ID_LENGTH))


def check_name(name: str) -> str:
    """`name` itself. Raises UsageError for one that could be taken for an id or a path, or that nobody could type again."""
    if ID_PATTERN.fullmatch(name) or name.startswith(ID_PREFIX):
        raise UsageError(f'{name} looks like a context id; ids are given out, choose a name')
    if not 1 <= len(name) <= MAX_NAME:
        raise UsageError(f'a context name has 1 to {MAX_NAME} characters')
    if '/' in name or name in ('.', '..'):
        raise UsageError(f'{name!r} looks like a path; a context name has no slash')
    if name != name.strip() or any(unicodedata.category(c) in ('Cc', 'Cs') for c in name):
        raise UsageError(f'{name!r}: a context name has no control characters and no blanks at its ends')
    return name


def escape_name(name: str) -> str:
    """A reversible name as one key component that every store can hold; a very long one is cut and told apart by its hash."""
    escaped = quote(name, safe='')
    if escaped.startswith('.'):
        escaped = '%2E' + escaped[1:]
    if len(escaped) <= 200:
        return escaped
    return f'{escaped[:120]}%~{hashlib.sha256(name.encode()).hexdigest()}'


def iso_now(clock: Callable[[], float] = time.time) -> str:
    return time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(clock()))


def seconds_of(text: str) -> float:
    """When `iso_now` said so (Unix seconds); 0 for what it never says."""
    try:
        return float(calendar.timegm(time.strptime(text, '%Y-%m-%dT%H:%M:%SZ')))
    except (ValueError, OverflowError):
        return 0.0


def encoded(value: msgspec.Struct) -> bytes:
    return msgspec.json.encode(value)


def converted(key: str, value: dict[str, Any], kind: type) -> Any:
    try:
        return msgspec.convert(value, kind)
    except UNREADABLE as e:
        raise Corrupted(f'{key} in the bucket is not what the registry writes: {e}') from e


def checked(key: str, value: Entry, *, name: str | None = None, context_id: str | None = None) -> Entry:
    """The value, if it says of itself what its key says. Raises Corrupted."""
    is_right = ANY_ID.fullmatch(value.id) is not None and context_id in (None, value.id) and name in (None, value.name)
    times = [value.created_at, *([value.last_used_at] if isinstance(value, ContextRecord) else [])]
    try:
        if value.name != value.id:      # a context that was made elsewhere has no other name
            check_name(value.name)
    except UsageError:
        is_right = False
    if not is_right or not all(map(_TIME.fullmatch, times)):
        raise Corrupted(f'{key} in the bucket is not what the registry writes: it is about {value.id[:40]!r}, {value.name[:40]!r}')
    return value


def json_at(store: ObjectStore, key: str, etag: str | None = None) -> dict[str, Any]:
    """The object's fields, all of them. Raises NotFound, RemoteChanged, Corrupted."""
    try:
        return msgspec.json.decode(store.get(key, 0, MAX_RECORD, if_match=etag), type=dict[str, Any])
    except UNREADABLE as e:
        raise Corrupted(f'{key} in the bucket is not what the registry writes: {e}') from e
