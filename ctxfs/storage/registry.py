"""The registry of contexts inside the bucket: unique name → id, and what is known of each context.

Owns the objects below `.ctxfs/contexts/` and the order in which they are written. It must not know mounts or the content of a context;
it works on any ObjectStore.

    .ctxfs/contexts/names/ESCAPED   {"id", "name", "createdAt"}: the claim of a name, made by one conditional create: one winner
    .ctxfs/contexts/ids/ID          {"id", "name", "createdAt", "lastUsedAt", "state", …}: the record; keys unknown here are kept

Anybody who may write to the store may have written these objects, so one is believed only as far as it names a context of its own: an id that
is a single component, and in a record the one that its key has. Anything else is Corrupted; a list leaves such a record out, and says so.

INVARIANT: the claim comes first and holds all that its record needs, so a crash between the two leaves a name that the next lookup
completes, never a record that no name leads to. A record counts for a name only if it has that name, so that a rename may later write
new claim, record, removal of the old claim in this order.
"""
from __future__ import annotations

import hashlib
import logging
import re
import secrets
import string
import time
import unicodedata
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal, TypeVar
from urllib.parse import quote, unquote

import msgspec

from ctxfs.config import nearest
from ctxfs.errors import Corrupted, Denied, NotFound, RemoteChanged, RemoteUnavailable, UsageError
from ctxfs.records import UNREADABLE
from ctxfs.storage.listing import pages
from ctxfs.storage.object_store import Condition, ObjectStore

log = logging.getLogger(__name__)

NAMES = '.ctxfs/contexts/names/'
IDS = '.ctxfs/contexts/ids/'
CONTEXTS = 'contexts/'

ID_PREFIX = 'SdkCtx-'
ID_LENGTH = 17
_ID_ALPHABET = string.ascii_lowercase + string.digits
ID_PATTERN = re.compile(rf'{ID_PREFIX}[a-z0-9]{{{ID_LENGTH}}}')
#: what may be an id: also of contexts that other tools made. One component of a key that means itself everywhere
_ANY_ID = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,127}')
_TIME = re.compile(r'[0-9TZ:.+-]{0,40}')
MAX_NAME = 128
#: bytes of a record; what is longer was not written here
MAX_RECORD = 64 << 10
#: so many names are looked at for a suggestion
MAX_SUGGESTIONS = 10_000
ABSENT = Condition(absent=True)


class ContextRecord(msgspec.Struct, frozen=True, kw_only=True, rename='camel'):
    """One context. Times are ISO 8601 in UTC; last_used_at is that of the last mount, on any host."""
    id: str
    name: str
    created_at: str
    last_used_at: str
    state: Literal['available', 'in-use', 'clearing'] = 'available'

    @property
    def prefix(self) -> str:
        return context_prefix(self.id)


class ContextPage(msgspec.Struct, frozen=True, kw_only=True, rename='camel'):
    """One page in the order of ids. next_token is None on the last one."""
    contexts: list[ContextRecord]
    next_token: str | None
    total_count: int


class _Claim(msgspec.Struct, frozen=True, kw_only=True, rename='camel'):
    id: str
    name: str
    created_at: str


_Entry = TypeVar('_Entry', ContextRecord, _Claim)


def context_prefix(context_id: str) -> str:
    """Where a context's files are: every key of it starts with this."""
    return f'{CONTEXTS}{context_id}/'


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


class Registry:
    """The contexts of one store. Every method may raise what the store raises (Denied, RemoteUnavailable, …)."""

    def __init__(self, store: ObjectStore, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    def create(self, name: str) -> ContextRecord:
        """The context of that name, made if there is none (so never "already exists"). Raises UsageError for a name that cannot be."""
        check_name(name)
        claim = self._claim_of(name)
        if claim is None:
            wanted = _Claim(id=new_id(), name=name, created_at=iso_now(self._clock))
            try:
                self._store.put(NAMES + escape_name(name), _json(wanted), content_type='application/json', condition=ABSENT)
            except (RemoteChanged, RemoteUnavailable):
                pass        # somebody else was first, or the answer was lost: the claim that is there now decides
            claim = self._claim_of(name)    # asked again also after success: a store without conditions lets the last writer win
        if claim is None:
            raise RemoteUnavailable(f'context {name} could not be created; try again')
        return self._complete(claim)

    def find(self, reference: str) -> ContextRecord:
        """The context with that id or name; also one that no registry knows but that has files (filled by other tools), or an id whose
        prefix may be listed by credentials that do not reach the registry. Raises NotFound with the nearest name."""
        try:
            found = self._record(reference) or self._by_name(reference)
        except Denied:
            # whoever may look into the prefix of an id has that context, also while it is empty
            if not self._has_files(reference) and not ID_PATTERN.fullmatch(reference):
                raise
            return self._unregistered(reference)
        if found is None and self._has_files(reference):
            found = self._unregistered(reference)
        if found is None:
            raise NotFound(f'no context {reference}{nearest(reference, self._known())}')
        return found

    def list_contexts(self, limit: int | None = None, token: str | None = None) -> ContextPage:
        """Up to `limit` contexts (all, without one) after `token` (a next_token). Raises UsageError for a token that is none."""
        if token is not None and not re.fullmatch(r'[^/\s]+', token):
            raise UsageError(f'{token!r} is no token of a list')
        ids = list(self._keys(IDS))
        rest = [i for i in ids if token is None or i.encode() > token.encode()]
        page = rest[:limit]
        next_token = page[-1] if page and len(rest) > len(page) else None
        return ContextPage(contexts=self._records(page), next_token=next_token, total_count=len(ids))

    def touch(self, context_id: str) -> None:
        """Note that the context is used now. Two hosts at once: either time is right, so a lost race is no failure. A context without a
        record, or one that we may not write, has no such time."""
        key = IDS + context_id
        try:
            info = self._store.head(key)
            value = self._json_at(key, etag=info.etag)
            value['lastUsedAt'] = iso_now(self._clock)
            self._store.put(key, msgspec.json.encode(value), content_type='application/json', condition=Condition(etag=info.etag))
        except (NotFound, RemoteChanged, Denied):
            return

    def _by_name(self, name: str) -> ContextRecord | None:
        claim = self._claim_of(name)
        if claim is None:
            return None
        record = self._complete(claim)
        return record if record.name == name else None

    def _claim_of(self, name: str) -> _Claim | None:
        try:
            key = NAMES + escape_name(name)
            return _checked(key, _convert(key, self._json_at(key), _Claim), name=name)
        except (NotFound, UnicodeEncodeError):
            return None

    def _complete(self, claim: _Claim) -> ContextRecord:
        """The claim's record; written now where a crash kept it from being."""
        found = self._record(claim.id)
        if found is not None:
            return found
        record = ContextRecord(id=claim.id, name=claim.name, created_at=claim.created_at, last_used_at=claim.created_at)
        try:
            self._store.put(IDS + claim.id, _json(record), content_type='application/json', condition=ABSENT)
        except RemoteChanged:
            return self._record(claim.id) or record
        return record

    def _record(self, context_id: str) -> ContextRecord | None:
        if not _ANY_ID.fullmatch(context_id):
            return None
        try:
            record = _convert(IDS + context_id, self._json_at(IDS + context_id), ContextRecord)
        except NotFound:
            return None
        return _checked(IDS + context_id, record, context_id=context_id)

    def _records(self, ids: list[str]) -> list[ContextRecord]:
        """Those that are still there, in the order of `ids`, several requests at a time."""
        from concurrent.futures import ThreadPoolExecutor  # only a listing needs it
        with ThreadPoolExecutor(max_workers=8) as pool:
            return [record for record in pool.map(self._record_or_none, ids) if record is not None]

    def _record_or_none(self, context_id: str) -> ContextRecord | None:
        """One bad record must not hide all others."""
        try:
            return self._record(context_id)
        except Corrupted as e:
            log.warning('%s: left out of the list', e)
            return None

    def _has_files(self, reference: str) -> bool:
        if not _ANY_ID.fullmatch(reference):
            return False
        page = self._store.list(context_prefix(reference), limit=1)
        return bool(page.objects)

    def _unregistered(self, context_id: str) -> ContextRecord:
        objects = self._store.list(context_prefix(context_id), limit=1).objects
        created = iso_now((lambda: objects[0].mtime_ns / 1e9) if objects else self._clock)
        return ContextRecord(id=context_id, name=context_id, created_at=created, last_used_at=created)

    def _known(self) -> Iterator[str]:
        """Names and ids to suggest; none where the registry may not be read."""
        try:
            yield from (unquote(key) for key in islice(self._keys(NAMES), MAX_SUGGESTIONS))
            yield from islice(self._keys(IDS), MAX_SUGGESTIONS)
        except Denied:
            return

    def _keys(self, prefix: str) -> Iterator[str]:
        for page in pages(self._store, prefix):
            yield from (info.key[len(prefix):] for info in page.objects)

    def _json_at(self, key: str, etag: str | None = None) -> dict[str, Any]:
        try:
            return msgspec.json.decode(self._store.get(key, 0, MAX_RECORD, if_match=etag), type=dict[str, Any])
        except UNREADABLE as e:
            raise Corrupted(f'{key} in the bucket is not what the registry writes: {e}') from e


def _json(value: msgspec.Struct) -> bytes:
    return msgspec.json.encode(value)


def _convert(key: str, value: dict[str, Any], kind: type) -> Any:
    try:
        return msgspec.convert(value, kind)
    except UNREADABLE as e:
        raise Corrupted(f'{key} in the bucket is not what the registry writes: {e}') from e


def _checked(key: str, value: _Entry, *, name: str | None = None, context_id: str | None = None) -> _Entry:
    """The value, if it says of itself what its key says. Raises Corrupted."""
    is_right = _ANY_ID.fullmatch(value.id) is not None and context_id in (None, value.id) and name in (None, value.name)
    times = [value.created_at, *([value.last_used_at] if isinstance(value, ContextRecord) else [])]
    try:
        check_name(value.name)
    except UsageError:
        is_right = False
    if not is_right or not all(map(_TIME.fullmatch, times)):
        raise Corrupted(f'{key} in the bucket is not what the registry writes: it is about {value.id[:40]!r}, {value.name[:40]!r}')
    return value
