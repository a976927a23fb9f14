"""Finding the context that a mount is for, with as few requests as show that the store answers and that it is the right one.

Owns what this host has found before under that name, and what one listing of the context's own objects saves. It must not know how a registry works
(storage/registry.py), nor what is wrong with a store that shows no context: that is found out the long way, which says so in one line (preflight.py).
"""
from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ctxfs.edge import preflight
from ctxfs.errors import CtxfsError, RemoteUnavailable
from ctxfs.records import RESERVED_DIR
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.registry import ContextRecord, Registry
from ctxfs.storage.remembered import Remembered, RememberedId


class Opened(NamedTuple):
    """`own`: names of ctxfs's own objects just below the context's `.ctxfs/`; None: not known."""
    store: ObjectStore
    context: ContextRecord
    own: frozenset[str] | None


def open_context(url: str, reference: str, *, create_store: bool, create: bool, state_root: Path,
                 created: Callable[[ContextRecord], None] = lambda record: None) -> Opened:
    """The store, to be closed by the caller, and the context; either is made where that is said and it is missing. Raises as
    preflight.open_checked_store and find_context."""
    from ctxfs.storage.stores import open_store  # boto3 and its like
    memory = RememberedId(state_root, url, reference)
    store = open_store(url, create=create_store, memory=Remembered(state_root, url, RESERVED_DIR))
    try:
        opened = _directly(store, reference, memory.find())
        if opened is None:
            preflight.check_store(store, reference)
            opened = Opened(store, preflight.find_context(store, reference, create=create, created=created), None)
        memory.keep(opened.context.id)
        return opened
    except BaseException:
        store.close()
        raise


def _directly(store: ObjectStore, reference: str, likely: str) -> Opened | None:
    """None where anything is not as it is for most mounts. Raises RemoteUnavailable where that took so long that nobody should ask again."""
    began = time.monotonic()
    try:
        context = Registry(store).registered(reference, likely=likely)
        if context is None:
            return None
        return Opened(store, context, None if context.id == likely else _own_objects(store, context.prefix + RESERVED_DIR))
    except CtxfsError as error:
        if isinstance(error, RemoteUnavailable) and time.monotonic() - began > preflight.PATIENT_SECONDS:
            raise
        return None


def _own_objects(store: ObjectStore, prefix: str) -> frozenset[str] | None:
    """Who may not list the context must not mount it. (Where this host did before, the daemon tells.)"""
    page = store.list(prefix, delimiter='/')
    return None if page.next_token is not None else frozenset(info.key[len(prefix):] for info in page.objects)
