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
from ctxfs.edge.human import human_seconds
from ctxfs.errors import Denied, Unsupported
from ctxfs.records import LIFECYCLE_NAME, RESERVED_DIR
from ctxfs.storage.object_store import UNKNOWN, Capabilities, Condition, Write
from ctxfs.storage.registry import context_prefix
from ctxfs.storage.remembered import Remembered
from ctxfs.storage.stores import directory_of, open_store
from ctxfs.sync.turns import CONTEND_SECONDS, GRACE_SECONDS, LEASE_SECONDS, SETTLE_SECONDS

#: more than any network's delay
SKEW_SECONDS = 10.0
CONTEXTS = 'contexts/'
_OVER, _ABSENT = Condition(etag='any'), Condition(absent=True)
_TURNS = (f'hosts of ctxfs take turns, so none overwrites another (one that dies in its turn holds the others up for at most '
          f'{LEASE_SECONDS + GRACE_SECONDS:.0f} s); what another tool writes in the milliseconds between a look and the write is overwritten')


def check_store(url: str, *, create: bool, context: str | None) -> Iterator[Finding]:
    """`create`: it is the embedded store, made on first use. Raises what preflight.open_checked_store raises."""
    with contextlib.closing(preflight.open_checked_store(url, create=create, context=context)) as store:
        yield Finding(Level.OK, 'store', f'{store.url} answers')


def check_clock(url: str, *, context: str | None) -> Iterator[Finding]:
    """The host's clock beside the store's. Signed requests bear 15 minutes; times of files and conflicts are those of the host's."""
    if directory_of(url) is not None:
        return
    with contextlib.closing(open_store(url)) as store:
        began = time.time()
        page = preflight.patiently(lambda: store.list(_scratch_prefix(url, context), limit=1))
        ended = time.time()
    if not page.now_ns:
        yield Finding(Level.WARN, 'clock', 'the store does not say what time it is', 'see to it that this host\'s clock is right')
        return
    theirs = page.now_ns / 1e9       # whole seconds, cut off
    skew = min(0.0, ended - theirs) or max(0.0, began - theirs - 1)
    if abs(skew) > SKEW_SECONDS:
        yield Finding(Level.WARN, 'clock', f'this host\'s is {human_seconds(abs(skew))} {"ahead of" if skew > 0 else "behind"} the store\'s; from '
                      '15 minutes on it refuses requests', 'set it, for instance by timedatectl set-ntp true')
    else:
        yield Finding(Level.OK, 'clock', f'this host\'s agrees with the store\'s{f" to {abs(skew):.0f} s" if abs(skew) >= 1 else ""}')


def check_rules(url: str, *, context: str | None) -> Iterator[Finding]:
    """Lifecycle rules of the bucket: ctxfs's own, and those of others that remove what is in contexts."""
    if directory_of(url) is not None:
        return
    below = _scratch_prefix(url, context).removesuffix(RESERVED_DIR) or CONTEXTS
    try:
        with contextlib.closing(open_store(url)) as store:
            rules = preflight.patiently(store.expiry_rules)
    except (Denied, Unsupported) as error:
        yield Finding(Level.OK, 'rules', f'lifecycle rules cannot be read: {error}')
        return
    ours = [rule for rule in rules if rule.tag.startswith(f'{LIFECYCLE_NAME}=')]
    others = [rule for rule in rules if rule not in ours and (rule.prefix.startswith(below) or below.startswith(rule.prefix))]
    if ours or not others:
        yield Finding(Level.OK, 'rules', f'lifecycle rules of ctxfs: {", ".join(sorted(rule.rule_id for rule in ours)) or "none"}')
    for rule in others:
        narrowed = ', '.join(word for word in (rule.tag and f'with the tag {rule.tag}', rule.narrowed) if word)
        yield Finding(Level.WARN, 'rules', f'the lifecycle rule {rule.rule_id or "without a name"} of this bucket removes what is below '
                      f'{rule.prefix or "/"}{f" ({narrowed})" if narrowed else ""} {rule.when}, files of contexts with it',
                      'give it another prefix, unless that is meant')


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
    age = 'just now' if answer is None else f'{human_seconds(max(0.0, time.time() - answer.asked_at))} ago (ctxfs doctor --probe asks anew)'
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
    narrow = _Narrow()
    yield _creates(known, narrow)
    yield from _overwrites(known, narrow)
    yield from _others(known, narrow)
    yield from _tags(known)


class _Narrow:
    """Says once what is left open where a condition is not honoured, and then that it is the same."""

    def __init__(self) -> None:
        self._is_said = False

    def __call__(self, more: str = '') -> str:
        is_said, self._is_said = self._is_said, True
        return f'not honoured: {"the same holds" if is_said else _TURNS}{more}'


def _creates(known: Capabilities, narrow: _Narrow) -> Finding:
    if known.can_create:
        how = 'If-None-Match' if known.conditional_create else 'x-oss-forbid-overwrite'
        return Finding(Level.OK, 'conditional create', f'honoured ({how}): of two hosts that make the same file one is told of the other')
    wait = CONTEND_SECONDS + SETTLE_SECONDS
    return Finding(Level.WARN, 'conditional create', narrow(f'. Whose turn it is takes up to {wait:.0f} s to tell, with each upload'))


def _overwrites(known: Capabilities, narrow: _Narrow) -> Iterator[Finding]:
    if known.conditional_overwrite:
        how = 'If-Match, etags without quotes' if known.unquoted_etags else 'If-Match'
        yield Finding(Level.OK, 'conditional overwrite', f'honoured ({how}): a version that was not seen is never overwritten')
    else:
        yield Finding(Level.WARN, 'conditional overwrite', narrow())
    if known.conditional_delete:
        yield Finding(Level.OK, 'conditional delete', 'honoured: a version that was not seen is never deleted')
    else:
        yield Finding(Level.WARN, 'conditional delete', narrow())


def _others(known: Capabilities, narrow: _Narrow) -> Iterator[Finding]:
    for check, write in (('conditional upload in parts', Write.PARTS), ('conditional copy', Write.COPY)):
        creates, overwrites = (known.is_atomic(write, condition) for condition in (_ABSENT, _OVER))
        if creates and overwrites:
            is_native = write is Write.PARTS or known.conditional_copy
            yield Finding(Level.OK, check, 'honoured' if is_native else 'not honoured: renames go by other requests, which do')
        elif creates:
            yield Finding(Level.OK, check, 'honoured where nothing is to be replaced; else as other overwrites')
        else:
            yield Finding(Level.WARN, check, narrow())


def _tags(known: Capabilities) -> Iterator[Finding]:
    if known.tagging and known.lifecycle:
        yield Finding(Level.OK, 'lifetimes', 'object tags and lifecycle rules: the store itself removes what recyclePolicy lets expire')
    else:
        what = 'no object tags' if not known.tagging else 'no lifecycle rules'
        why = ' for these credentials' if known.is_limited else ''
        yield Finding(Level.OK, 'lifetimes', f'{what}{why}: mounts remove what recyclePolicy lets expire')
    if not known.batch_delete:
        yield Finding(Level.WARN, 'batch delete', 'not there: each deleted file is a request of its own')
