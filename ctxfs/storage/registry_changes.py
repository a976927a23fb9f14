"""Changes of contexts in the registry: another name, another state, the end. Each can be cut short anywhere, and be gone on with.

Owns the order of these writes (registry.py has the layout and the order of a creation). It must not know a context's files, nor who may change
it. Records are changed field by field under their etag, so two hosts never undo each other's change.

    rename   record: renamingTo → claim of the new name → record: name → the old claim goes
             From the new claim on, whoever looks for the new name completes it. Without it, nothing has happened.
    remove   the claim goes → the record goes        (its state has said `clearing` all the time)
    copy     record: pre-available, copyOf → its files come → record: available
"""
from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from typing import Any

import msgspec

from ctxfs.crash_points import crash_point
from ctxfs.errors import CtxfsError, Exists, InUse, NotFound, RemoteChanged, RemoteUnavailable
from ctxfs.storage.object_store import Condition, ObjectStore
from ctxfs.storage.registry_entries import IDS, NAMES, Claim, ContextRecord, check_name, checked, converted, encoded, escape_name, json_at

_ATTEMPTS = 8
_JSON = 'application/json'

Change = Callable[[dict[str, Any]], object]


def change_record(store: ObjectStore, context_id: str, change: Change) -> ContextRecord:
    """Let `change` alter the record's fields (again, where somebody else was faster) and store it; what it raises ends it. Raises NotFound."""
    key = IDS + context_id
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(RemoteChanged):
            info = store.head(key)
            value = json_at(store, key, info.etag)
            before = dict(value)
            change(value)
            if value != before:
                store.put(key, msgspec.json.encode(value), content_type=_JSON, condition=Condition(etag=info.etag))
            return checked(key, converted(key, value, ContextRecord), context_id=context_id)
    raise RemoteUnavailable(f'the record of {context_id} is changed by others again and again; try again')


def keep_record(store: ObjectStore, record: ContextRecord) -> None:
    """Of a context that other tools made, and that has its id for a name: from now on the registry knows it."""
    with contextlib.suppress(RemoteChanged):
        store.put(IDS + record.id, encoded(record), content_type=_JSON, condition=Condition(absent=True))


def rename(store: ObjectStore, record: ContextRecord, name: str) -> ContextRecord:
    """Raises UsageError for a name that cannot be, Exists for one that is taken, NotFound."""
    check_name(name)
    intended = change_record(store, record.id, lambda value: value.update(renamingTo=name) if value['name'] != name else value.pop('renamingTo', 0))
    if intended.name == name:
        return intended
    crash_point('context-rename-after-intent')
    if not _claim(store, name, intended):
        change_record(store, record.id, lambda value: value.get('renamingTo') == name and value.pop('renamingTo'))
        raise Exists(f'there is a context {name} already; choose another name')
    crash_point('context-rename-after-claim')
    return complete_renaming(store, intended)


def _claim(store: ObjectStore, name: str, record: ContextRecord) -> bool:
    """False when another context has the name."""
    key = NAMES + escape_name(name)
    claim = Claim(id=record.id, name=name, created_at=record.created_at, nonce=secrets.token_hex(4))
    for _ in range(_ATTEMPTS):
        try:
            found = store.head(key)
            if json_at(store, key, found.etag).get('id') != record.id:
                return False
            condition = Condition(etag=found.etag)      # written anew, so that nobody takes it away as a leftover
        except NotFound:
            condition = Condition(absent=True)
        except RemoteChanged:
            continue
        try:
            store.put(key, encoded(claim), content_type=_JSON, condition=condition)
            return True
        except (RemoteChanged, RemoteUnavailable):
            continue        # or the answer was lost: look again
    return False


def complete_renaming(store: ObjectStore, record: ContextRecord) -> ContextRecord:
    """From the new claim on. Raises Exists where somebody gave it another name meanwhile."""
    old, name = record.name, record.renaming_to

    def apply(value: dict[str, Any]) -> None:
        if value.get('renamingTo') == name:
            value['name'] = value.pop('renamingTo')
        if value['name'] != name:
            raise Exists(f'{record.id} was given the name {value["name"]} meanwhile')
    try:
        renamed = change_record(store, record.id, apply)
    except Exists:
        drop_claim(store, str(name), record.id)
        raise
    crash_point('context-rename-after-record')
    with contextlib.suppress(CtxfsError):       # it leads to no record of its name, and the next who wants the name removes it
        drop_claim(store, old, record.id)
    return renamed


def remove(store: ObjectStore, record: ContextRecord) -> None:
    """Its files are gone."""
    for name in {record.name, record.renaming_to} - {msgspec.UNSET}:
        drop_claim(store, str(name), record.id)
    crash_point('context-delete-after-claim')
    store.delete(IDS + record.id)


def drop_claim(store: ObjectStore, name: str, context_id: str) -> None:
    """Remove the claim of a name, if it still is that context's."""
    key = NAMES + escape_name(name)
    with contextlib.suppress(NotFound, RemoteChanged):
        info = store.head(key)
        if json_at(store, key, info.etag).get('id') == context_id:
            store.delete(key, if_match=info.etag)


def check_whole(record: ContextRecord) -> None:
    """Raises InUse for a context of which the rest is about to go, or to come: it cannot be mounted."""
    if record.state == 'pre-available' and record.copy_of is not msgspec.UNSET:
        raise InUse(f'context {record.name} is not a whole copy of {record.copy_of} yet; ctxfs context copy {record.copy_of} {record.name} goes '
                    'on with it if that was cut short')
    if record.state == 'clearing':
        verb, done = ('delete', 'deleted') if record.is_doomed is True else ('clear', 'cleared')
        raise InUse(f'context {record.name} is being {done}; ctxfs context {verb} {record.name} goes on with it if that was cut short')


def begin_clearing(store: ObjectStore, context_id: str, *, deletes: bool) -> tuple[ContextRecord, bool]:
    """The record, and whether it says so from now on only: else somebody is at it, or was. Raises NotFound."""
    is_new = False

    def apply(value: dict[str, Any]) -> None:
        nonlocal is_new
        is_new = value.get('state') != 'clearing'
        value['state'] = 'clearing'
        if deletes:
            value['isDoomed'] = True
    return change_record(store, context_id, apply), is_new


def take_back_clearing(store: ObjectStore, context_id: str) -> None:
    """Nothing was removed: what was a half copy is one still. Raises NotFound."""
    change_record(store, context_id, lambda value: (
        value.update(state='pre-available' if value.get('copyOf') else 'available'), value.pop('isDoomed', None)))


def end_clearing(store: ObjectStore, context_id: str) -> None:
    """Its files are gone. What somebody deletes meanwhile stays as it is. Raises NotFound."""
    change_record(store, context_id, lambda value: None if value.get('isDoomed') else (value.update(state='available'), value.pop('copyOf', None)))


def begin_copy(store: ObjectStore, context_id: str, source_id: str) -> tuple[ContextRecord, str]:
    """The record, and the state that it had. Raises NotFound, and InUse where it is being cleared, or is a half copy of another context."""
    was = ''

    def apply(value: dict[str, Any]) -> None:
        nonlocal was
        was = str(value.get('state'))
        if was == 'clearing':
            raise InUse(f'context {value["name"]} is being cleared or deleted')
        if value.get('copyOf', source_id) != source_id:
            raise InUse(f'context {value["name"]} is a half copy of {value["copyOf"]}; finish that copy, or ctxfs context clear {value["name"]}')
        value.update(state='pre-available', copyOf=source_id)
    return change_record(store, context_id, apply), was


def end_copy(store: ObjectStore, context_id: str) -> None:
    """It is whole, or nothing was copied into it. Who clears it meanwhile goes on with that. Raises NotFound."""
    change_record(store, context_id, lambda value: (value.pop('copyOf', None), value.update(state='available'))
                  if value.get('state') == 'pre-available' else None)
