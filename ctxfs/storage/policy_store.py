"""The policy that is kept with a context, for all hosts that mount it: one object, `contexts/ID/.ctxfs/policy`.

Owns the object's key and how it is read and written. It must not know what a policy means: bytes in, bytes out. A context without the
object has no policy of its own.
"""
from __future__ import annotations

from ctxfs.errors import NotFound, RemoteChanged
from ctxfs.records import RESERVED_DIR
from ctxfs.storage.object_store import ALWAYS, Condition, ObjectStore
from ctxfs.storage.registry import context_prefix

#: one byte more than any policy has, so that a reader finds an object that is too large without fetching it
READ_LIMIT = (1 << 20) + 1
#: below the context's `.ctxfs/`
POLICY_NAME = 'policy'


def policy_key(context_id: str) -> str:
    return f'{context_prefix(context_id)}{RESERVED_DIR}{POLICY_NAME}'


def load_policy(store: ObjectStore, context_id: str) -> bytes | None:
    """At most READ_LIMIT bytes of it; None where the context has none. Raises what the store raises."""
    try:
        return store.get(policy_key(context_id), 0, READ_LIMIT)
    except NotFound:
        return None


def save_policy(store: ObjectStore, context_id: str, data: bytes, *, only_if_none: bool = False) -> bool:
    """Keep `data` with the context, instead of what is there; False where only_if_none and there is one. Raises what the store raises."""
    try:
        store.put(policy_key(context_id), data, content_type='application/json', condition=Condition(absent=True) if only_if_none else ALWAYS)
    except RemoteChanged:
        return False
    return True
