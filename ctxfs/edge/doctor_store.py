"""Checks of the store for `ctxfs doctor`: does it answer, and what can it do.

Owns what is asked of the store and what the answers mean to a user. It must not know mounts or this host.
"""
from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from ctxfs.edge import preflight
from ctxfs.edge.doctor import Finding, Level
from ctxfs.records import RESERVED_DIR
from ctxfs.storage.object_store import UNKNOWN, Capabilities, Condition, Write
from ctxfs.storage.registry import context_prefix
from ctxfs.storage.remembered import Remembered
from ctxfs.storage.stores import directory_of, open_store
from ctxfs.sync.turns import CONTEND_SECONDS, GRACE_SECONDS, LEASE_SECONDS, SETTLE_SECONDS

_OVER, _ABSENT = Condition(etag='any'), Condition(absent=True)
_TURNS = 'hosts of ctxfs take turns; another tool is overwritten if it writes in the milliseconds between a look and the write'


def check_store(url: str, *, create: bool, context: str | None) -> Iterator[Finding]:
    """`create`: it is the embedded store, made on first use. Raises what preflight.open_checked_store raises."""
    with contextlib.closing(preflight.open_checked_store(url, create=create, context=context)) as store:
        yield Finding(Level.OK, 'store', f'{store.url} answers')


def check_abilities(url: str, *, state_root: Path, context: str | None, is_asked_anew: bool) -> Iterator[Finding]:
    """What the store can do, as remembered, or asked where it is not. `context`: an id or name, whose credentials may be good for nothing else.
    Raises what the store raises."""
    prefix = _scratch_prefix(url, context)
    if directory_of(url) is not None:
        with contextlib.closing(open_store(url)) as store:
            yield from described(store.capabilities())
        return
    memory = Remembered(state_root, url, prefix)
    answer = None if is_asked_anew else memory.find()
    with contextlib.closing(open_store(url, scratch_prefix=prefix, memory=memory)) as store:
        if is_asked_anew:
            store.learn(None)
        yield from described(preflight.patiently(store.capabilities))
    age = 'just now' if answer is None else f'{max(0.0, time.time() - answer.asked_at) / 3600:.0f} h ago (ctxfs doctor --probe asks anew)'
    yield Finding(Level.OK, 'probe', f'what the store can do was asked {age}')


def _scratch_prefix(url: str, context: str | None) -> str:
    """Below which the questions are asked. Raises NotFound for a context that there is not."""
    if context is None:
        return RESERVED_DIR
    with contextlib.closing(preflight.open_checked_store(url, create=False, context=context)) as store:
        return context_prefix(preflight.find_context(store, context, create=False).id) + RESERVED_DIR


def described(known: Capabilities) -> Iterator[Finding]:
    """One line for each thing that not every store can do, with what follows."""
    if known == UNKNOWN:
        yield Finding(Level.WARN, 'abilities', 'nothing can be found out without the right to write',
                      'use credentials that may, or mount with --read-only')
        return
    yield from _creates(known)
    yield from _overwrites(known)
    yield from _copies(known)
    yield from _tags(known)


def _creates(known: Capabilities) -> Iterator[Finding]:
    how = 'If-None-Match' if known.conditional_create else 'x-oss-forbid-overwrite'
    if known.can_create:
        yield Finding(Level.OK, 'conditional create', f'honoured ({how}): of two hosts that make the same file one is told of the other')
        return
    wait = CONTEND_SECONDS + SETTLE_SECONDS
    yield Finding(Level.WARN, 'conditional create', f'not honoured: {_TURNS}. To tell who is next each upload waits up to {wait:.0f} s, so hosts '
                  f'whose requests take longer than {CONTEND_SECONDS:.0f} s wait again')


def _overwrites(known: Capabilities) -> Iterator[Finding]:
    if known.conditional_overwrite:
        yield Finding(Level.OK, 'conditional overwrite', f'honoured (If-Match{", etags without quotes" if known.unquoted_etags else ""}): a version '
                      'that was not seen is never overwritten')
    else:
        yield Finding(Level.WARN, 'conditional overwrite', f'not honoured: {_TURNS}. A host that dies in its turn holds the others up for '
                      f'{LEASE_SECONDS + GRACE_SECONDS:.0f} s at most')
    if known.conditional_delete:
        yield Finding(Level.OK, 'conditional delete', 'honoured: a version that was not seen is never deleted')
    else:
        yield Finding(Level.WARN, 'conditional delete', f'not honoured: {_TURNS}')


def _copies(known: Capabilities) -> Iterator[Finding]:
    for check, write in (('large files', Write.PARTS), ('renames', Write.COPY)):
        if all(known.is_atomic(write, condition) for condition in (_OVER, _ABSENT)):
            how = '' if write is Write.PARTS or known.conditional_copy else ', by other requests than copies, which would ignore conditions'
            yield Finding(Level.OK, check, f'stored under conditions as well{how}')
        elif write is Write.COPY and known.conditional_copy_source and known.is_atomic(write, _ABSENT):
            yield Finding(Level.OK, check, 'copied inside the store, never over what came meanwhile')
        else:
            yield Finding(Level.WARN, check, f'conditions are not honoured: {_TURNS}')


def _tags(known: Capabilities) -> Iterator[Finding]:
    if known.tagging and known.lifecycle:
        yield Finding(Level.OK, 'lifetimes', 'object tags and lifecycle rules: the store itself removes what recyclePolicy lets expire')
    else:
        what = 'no object tags' if not known.tagging else 'no lifecycle rules'
        why = ' for these credentials' if known.is_limited else ''
        yield Finding(Level.OK, 'lifetimes', f'{what}{why}: mounts remove what recyclePolicy lets expire')
    if not known.batch_delete:
        yield Finding(Level.WARN, 'batch delete', 'not there: each deleted file is a request of its own')
