"""Rivals: an object and a member of an archive that have one key. Which of the two was written by somebody who knew the other?

Owns the evidence. It must not know what follows from a verdict (archive_rivals.py). Synchronous; runs in a transfer worker.

Of the two the object counts. Hosts look at the log just before they write an object, and at the object before they commit a member over it; but no
store can make both depend on each other. So at one instant both may come, and then neither may be taken for outdated:

    ctxfs wrote the object   its stamp names the member whose place it takes, or it did not know the member
    another tool did         it came later where a listing showed the member alone (this host's, or one of which the other host tells:
                             archive_alone.py), or where it came so long after the commit, by the store's clock, that any host would have noticed
                             another object in its place before
    both hold the same       one of them is enough
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from ctxfs.errors import NotFound, RemoteChanged
from ctxfs.records import UNREADABLE, ObjectInfo
from ctxfs.storage.archive_log_format import ARCHIVE_DIR, host_in
from ctxfs.storage.members import hash_in, is_file
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.posix_meta import decode_stamp, version_id
from ctxfs.sync.archive_log import ArchiveLog, Committed
from ctxfs.sync.archive_protocol import Rival, Verdict

#: stores tell whole seconds; nearer to each other than this, nobody can say which of two came first
NEAR_NS = 2 * 10**9
#: hosts list a whole context every ten minutes
LONG_NS = 900 * 10**9


#: nobody writes a longer AloneList
_MAX_BYTES = 64 << 10
Run = Callable[..., Iterable[Any]]


class AloneList(msgspec.Struct, frozen=True):
    """What a host tells (archive_alone.py): numbers of commits beside whose members no object lay."""
    version: int
    commits: list[int]


def alone_key(host: str) -> str:
    """Where it does, relative to the context; `host` as in the names of its archives."""
    return f'{ARCHIVE_DIR}alone/{host}.json'


def _alone_of(store: ObjectStore, prefix: str, host: str) -> frozenset[int]:
    try:
        found = msgspec.json.decode(store.get(prefix + alone_key(host), 0, _MAX_BYTES), type=AloneList)
    except (NotFound, *UNREADABLE):
        return frozenset()
    return frozenset(found.commits if found.version == 1 else ())


def weigh(store: ObjectStore, log: ArchiveLog, rivals: Sequence[Rival], *, prefix: str, run: Run = map) -> list[Verdict]:
    """One verdict for each. `prefix`: the context's. `run`: a map that may do several at once. Raises what the store raises."""
    infos = list(run(lambda rival: _head(store, rival.key), rivals))
    commits = log.committed(_archives(rivals, infos))
    tellers = {host_in(name) for name, commit in commits.items() if not commit.is_base}
    proven = {host: _alone_of(store, prefix, host) for host in sorted(tellers)}
    found = {name: _Commit(commit, not commit.is_base and commit.number in proven[host_in(name)]) for name, commit in commits.items()}
    return list(run(lambda rival, info: Verdict.GONE if info is None else _verdict(store, rival, info, found.get(rival.archive)), rivals, infos))


class _Commit(NamedTuple):
    """`is_alone`: its host found no object beside its members when it was made."""
    made: Committed
    is_alone: bool


def _head(store: ObjectStore, key: str) -> ObjectInfo | None:
    try:
        return store.head(key)
    except NotFound:
        return None


def _archives(rivals: Sequence[Rival], infos: Sequence[ObjectInfo | None]) -> Collection[str]:
    return {rival.archive for rival, info in zip(rivals, infos, strict=True) if info is not None}


def _verdict(store: ObjectStore, rival: Rival, info: ObjectInfo, commit: _Commit | None) -> Verdict:
    after_ns = None if commit is None else info.mtime_ns - commit.made.at_ns
    if info.etag == rival.shadows:      # what the member took the place of; or the same content, put there again since
        is_later, is_earlier = after_ns is not None and after_ns > NEAR_NS, after_ns is not None and after_ns < -NEAR_NS
        return Verdict.LATER if is_later else Verdict.EARLIER if is_earlier else Verdict.UNAWARE
    stamp = decode_stamp(info.metadata)
    if stamp is None or (stamp.etag and stamp.etag != info.etag.strip('"')):      # by another tool
        is_later = commit is not None and after_ns is not None and (
            commit.is_alone or commit.made.number <= rival.listed or after_ns > LONG_NS)
    else:
        is_later = stamp.member == version_id(rival.key, rival.etag) and (after_ns is None or after_ns >= -NEAR_NS)
    return Verdict.LATER if is_later or _is_same(store, rival, info) else Verdict.UNAWARE


def _is_same(store: ObjectStore, rival: Rival, info: ObjectInfo) -> bool:
    """Whether both have the same content. (A member is small.)"""
    if info.size != rival.size or not is_file(rival.etag):
        return False
    try:
        return hashlib.sha256(store.get(rival.key, if_match=info.etag)).hexdigest() == hash_in(rival.etag)
    except (NotFound, RemoteChanged):
        return False
