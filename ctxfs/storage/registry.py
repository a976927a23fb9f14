"""The registry of contexts inside the bucket: unique name → id, and what is known of each context.

Owns the objects below `.ctxfs/contexts/` and the order in which they are written. It must not know mounts or the content of a context;
it works on any ObjectStore.

    .ctxfs/contexts/names/ESCAPED   {"id", "name", "createdAt"}: the claim of a name, made by one conditional create: one winner
    .ctxfs/contexts/ids/ID          {"id", "name", "createdAt", "lastUsedAt", "state", …}: the record; keys unknown here are kept

Anybody who may write to the store may have written these objects, so one is believed only as far as it names a context of its own: an id that
is a single component, and in a record the one that its key has. Anything else is Corrupted; a list leaves such a record out, and says so.

INVARIANT: the claim comes first and holds all that its record needs, so a crash between the two leaves a name that the next lookup
completes, never a record that no name leads to. A record counts for a name only if it has that name, or says that it is about to get it
(registry_changes.py, which renames and removes): then the next lookup completes the renaming. Any other claim is a leftover.

Where the store cannot create atomically, the last one who wrote a claim has it, and who made one waits for longer than anybody takes between his
look and his write before he believes what he reads (Fischer's algorithm, as for turns).
"""
from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from itertools import islice
from urllib.parse import unquote

import msgspec

from ctxfs.config import nearest
from ctxfs.errors import Corrupted, Denied, Exists, NotFound, ReadOnly, RemoteChanged, RemoteUnavailable, UsageError
from ctxfs.storage.listing import pages
from ctxfs.storage.object_store import Condition, ObjectStore
from ctxfs.storage.registry_changes import complete_renaming, drop_claim
from ctxfs.storage.registry_entries import ANY_ID as ANY_ID
from ctxfs.storage.registry_entries import CONTEXTS as CONTEXTS
from ctxfs.storage.registry_entries import ID_PATTERN as ID_PATTERN
from ctxfs.storage.registry_entries import IDS as IDS
from ctxfs.storage.registry_entries import MAX_RECORD as MAX_RECORD
from ctxfs.storage.registry_entries import NAMES as NAMES
from ctxfs.storage.registry_entries import Claim, checked, converted, encoded, json_at, new_id, seconds_of
from ctxfs.storage.registry_entries import ContextRecord as ContextRecord
from ctxfs.storage.registry_entries import check_name as check_name
from ctxfs.storage.registry_entries import context_prefix as context_prefix
from ctxfs.storage.registry_entries import escape_name as escape_name
from ctxfs.storage.registry_entries import iso_now as iso_now

log = logging.getLogger(__name__)

#: so many names are looked at for a suggestion
MAX_SUGGESTIONS = 10_000
ABSENT = Condition(absent=True)
#: longer than anybody takes from looking for a claim to having written one
SETTLE_SECONDS = 3.0
#: seconds by which the time of the last use may be behind
USED_JUST_NOW = 600.0
_ATTEMPTS = 5
_PAGE = 1000


class ContextPage(msgspec.Struct, frozen=True, kw_only=True, rename='camel'):
    """One page in the order of ids. next_token is None on the last one."""
    contexts: list[ContextRecord]
    next_token: str | None
    total_count: int


class Registry:
    """The contexts of one store. Every method may raise what the store raises (Denied, RemoteUnavailable, …)."""

    def __init__(self, store: ObjectStore, *, clock: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep) -> None:
        self._store = store
        self._clock = clock
        self._sleep = sleep

    def create(self, name: str) -> ContextRecord:
        """The context of that name, made if there is none (so never "already exists"). Raises UsageError for a name that cannot be."""
        check_name(name)
        for _ in range(_ATTEMPTS):
            claim = self._claim_of(name) or self._make_claim(name)
            if claim is None:
                break
            record = self._named(self._complete(claim), name)
            if record is not None:
                return record
            drop_claim(self._store, name, claim.id)
        raise RemoteUnavailable(f'context {name} could not be created; try again')

    def _make_claim(self, name: str) -> Claim | None:
        wanted = Claim(id=new_id(), name=name, created_at=iso_now(self._clock))
        try:
            self._store.put(NAMES + escape_name(name), encoded(wanted), content_type='application/json', condition=ABSENT)
        except (RemoteChanged, RemoteUnavailable):
            pass        # somebody else was first, or the answer was lost: the claim that is there now decides
        if not self._store.capabilities().can_create:
            self._sleep(SETTLE_SECONDS)
        return self._claim_of(name)

    def _named(self, record: ContextRecord, name: str) -> ContextRecord | None:
        """The record, if a claim of that name may lead to it."""
        if record.name != name and record.renaming_to == name:
            try:
                record = complete_renaming(self._store, record)
            except (Denied, ReadOnly):
                return msgspec.structs.replace(record, name=name)
            except Exists:
                return None
        return record if record.name == name else None

    def find(self, reference: str) -> ContextRecord:
        """The context with that id or name; also one that no registry knows but that has files (filled by other tools), or an id whose
        prefix may be listed by credentials that do not reach the registry. Raises NotFound with the nearest name."""
        try:
            found = self.registered(reference)
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

    def registered(self, reference: str, *, likely: str = '') -> ContextRecord | None:
        """As `find`, of those in the registry only, and without a suggestion. `likely`: the id that the name led to another day. One request where it
        does still: a record that has the name, and is not about to lose it, is the one that the claim leads to."""
        found = self._record(likely) if likely else None
        if found is not None and reference in (found.id, found.name) and found.state == 'available' and found.renaming_to is msgspec.UNSET:
            return found
        ways = (self._record, self._by_name) if ID_PATTERN.fullmatch(reference) else (self._by_name, self._record)
        return ways[0](reference) or ways[1](reference)

    def list_contexts(self, limit: int | None = None, token: str | None = None) -> ContextPage:
        """Up to `limit` contexts (all, without one) after `token` (a next_token). Raises UsageError for a token that is none."""
        after, total = _parse_token(token)
        if total is None:       # the first page: later ones take the count along
            total = sum(1 for _ in self._keys(IDS))
        wanted = None if limit is None else limit + 1
        ids = list(islice(self._keys(IDS, after=after, at_once=min(wanted or _PAGE, _PAGE)), wanted))
        page = ids[:limit]
        next_token = f'{page[-1]}~{total}' if len(ids) > len(page) else None
        return ContextPage(contexts=self._records(page), next_token=next_token, total_count=total)

    def record(self, context_id: str) -> ContextRecord | None:
        """The record of that id as it is now; None where no registry knows it."""
        return self._record(context_id)

    def touch(self, context: ContextRecord) -> None:
        """Note that the context is used now, unless it says so for the last minutes: three requests. Two hosts at once: either time is right,
        so a lost race is no failure. A context without a record, or one that we may not write, has no such time."""
        if abs(self._clock() - seconds_of(context.last_used_at)) < USED_JUST_NOW:
            return
        key = IDS + context.id
        try:
            info = self._store.head(key)
            value = json_at(self._store, key, etag=info.etag)
            value['lastUsedAt'] = iso_now(self._clock)
            self._store.put(key, msgspec.json.encode(value), content_type='application/json', condition=Condition(etag=info.etag))
        except (NotFound, RemoteChanged, Denied):
            return

    def _by_name(self, name: str) -> ContextRecord | None:
        claim = self._claim_of(name)
        if claim is None:
            return None
        return self._named(self._complete(claim), name)

    def _claim_of(self, name: str) -> Claim | None:
        try:
            key = NAMES + escape_name(name)
            return checked(key, converted(key, json_at(self._store, key), Claim), name=name)
        except (NotFound, UnicodeEncodeError):
            return None

    def _complete(self, claim: Claim) -> ContextRecord:
        """The claim's record; written now where a crash kept it from being."""
        found = self._record(claim.id)
        if found is not None:
            return found
        record = ContextRecord(id=claim.id, name=claim.name, created_at=claim.created_at, last_used_at=claim.created_at)
        try:
            self._store.put(IDS + claim.id, encoded(record), content_type='application/json', condition=ABSENT)
        except RemoteChanged:
            return self._record(claim.id) or record
        return record

    def _record(self, context_id: str) -> ContextRecord | None:
        if not ANY_ID.fullmatch(context_id):
            return None
        try:
            record = converted(IDS + context_id, json_at(self._store, IDS + context_id), ContextRecord)
        except NotFound:
            return None
        return checked(IDS + context_id, record, context_id=context_id)

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
        if not ANY_ID.fullmatch(reference):
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

    def _keys(self, prefix: str, *, after: str = '', at_once: int = 1000) -> Iterator[str]:
        for page in pages(self._store, prefix, start_after=prefix + after if after else '', limit=at_once):
            yield from (info.key[len(prefix):] for info in page.objects)


def _parse_token(token: str | None) -> tuple[str, int | None]:
    """(the id to go on behind, how many contexts the first page counted)."""
    found = re.fullmatch(r'([^/\s~]+)(?:~([0-9]{1,12}))?', token or '')
    if token is not None and found is None:
        raise UsageError(f'{token!r} is no token of a list')
    return (found[1], int(found[2]) if found[2] else None) if found else ('', None)
