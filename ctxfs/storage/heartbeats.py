"""Heartbeats: the objects by which a mount says to everybody who can read the bucket that its context is in use.

Owns their keys, their form, when one that was not renewed counts as dead, and when it goes. It must not know who renews them (sync/heartbeat.py),
nor what is refused because of them.

    contexts/ID/.ctxfs/mounts/HOST-HASH   {"hostId", "host", "mountpoint", "pid", "since"}: one for each state directory that writes

A heartbeat is renewed by writing it again. Its age is measured by the store's own clock (Last-Modified against Date); where the store does
not say the time, by this host's.
"""
from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator

import msgspec

from ctxfs.errors import NotFound
from ctxfs.records import RESERVED_DIR, UNREADABLE
from ctxfs.storage.listing import pages
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.registry import context_prefix

MOUNTS_DIR = RESERVED_DIR + 'mounts/'
RENEW_SECONDS = 60.0
#: a host that was suspended for so long renews its own as well
DEAD_SECONDS = 86_400.0
#: two renewals may fail, and the third may take its time
EXPIRE_SECONDS = 210.0
_MAX_BEAT = 4096
#: so many are named
_MAX_BEATS = 100


class Beat(msgspec.Struct, frozen=True, kw_only=True, rename='camel'):
    """One mount. It stays the same as long as the mount lives, so that a renewal changes no etag where etags follow from the content."""
    host_id: str
    host: str
    mountpoint: str
    pid: int
    since: str

    def text(self) -> str:
        """For people: `host:/mountpoint`."""
        return f'{self.host}:{self.mountpoint}'


def beat_name(host_id: str, state_dir: str) -> str:
    """Below the context's prefix. A mount that comes after a crash renews the same one."""
    return f'{MOUNTS_DIR}{host_id}-{hashlib.sha256(state_dir.encode("utf-8", "surrogateescape")).hexdigest()[:8]}'


def encode(beat: Beat) -> bytes:
    return msgspec.json.encode(beat)


def live_mounts(store: ObjectStore, context_id: str, *, is_dead: Callable[[Beat], bool] = lambda beat: False) -> list[Beat]:
    """The mounts that say that they use the context: one LIST, and a GET for each. `is_dead`: what the asker knows better (its own host's).
    What anybody may have written there and is no heartbeat counts as a mount that cannot say who it is."""
    found = [_read(store, key) for key in _fresh_keys(store, context_id)]
    return [beat for beat in found if beat is not None and not is_dead(beat)]


def remove_dead(store: ObjectStore, prefix: str) -> int:
    """Take away what mounts have left that ended without a word (a host that was thrown away) a day ago; how many. Raises what the store raises."""
    dead: list[tuple[str, str | None]] = []
    for page in pages(store, prefix + MOUNTS_DIR):
        now_ns = page.now_ns or time.time_ns()
        dead += [(info.key, None) for info in page.objects if now_ns - info.mtime_ns > DEAD_SECONDS * 1e9]
    return len(dead) - len(store.delete_many(dead)) if dead else 0


def _fresh_keys(store: ObjectStore, context_id: str) -> Iterator[str]:
    count = 0
    for page in pages(store, context_prefix(context_id) + MOUNTS_DIR):
        now_ns = page.now_ns or time.time_ns()
        for info in page.objects:
            if now_ns - info.mtime_ns <= EXPIRE_SECONDS * 1e9 and count < _MAX_BEATS:
                count += 1
                yield info.key


def _read(store: ObjectStore, key: str) -> Beat | None:
    with contextlib.suppress(*UNREADABLE):
        try:
            return msgspec.json.decode(store.get(key, 0, _MAX_BEAT), type=Beat)
        except NotFound:
            return None
    return Beat(host_id='', host='an unknown host', mountpoint='', pid=0, since='')
