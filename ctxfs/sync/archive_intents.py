"""Intents: commits to the archive log that were begun and whose end is not recorded.

Owns what is written down before a commit is sent (in `meta`), and what becomes of it when the log shows how it ended: found by its nonce, it is
what this host knows; where another commit has its number, it never happens, and its archives are nobody's. It must not know how commits are made
(archiver.py). The counterpart of doubt.py, for commits.

An intent outlives a crash, an unanswered request, and the next attempts: these use the same number until something has it, so the first of
them that arrives is the only one.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import msgspec

from ctxfs.storage.archive_log_format import LogHeader
from ctxfs.storage.inode import Content, Inode
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.members import hash_in
from ctxfs.storage.tree_db import TreeDB

log = logging.getLogger(__name__)

_META = 'archive_intents'


class Written(msgspec.Struct, frozen=True, array_like=True):
    """One member of a commit, and which state of which inode it is."""
    key: str
    ino: int
    revision: int
    etag: str
    size: int
    lifecycle: str = ''


class Intent(msgspec.Struct, frozen=True, array_like=True):
    """A commit that may have happened. `deleted`: (key, etag) of members that it deletes."""
    nonce: str
    number: int
    archives: list[str]
    written: list[Written]
    deleted: list[tuple[str, str]]


class Intents:
    """See the module docstring."""

    def __init__(self, db: TreeDB, journal: Journal, *, number: int = 0, on_arrived: Callable[[Known], object] = lambda known: None) -> None:
        """`number`: up to which the log was read."""
        self._db = db
        self._journal = journal
        self._on_arrived = on_arrived
        self._open: dict[str, Intent] = {
            intent.nonce: intent for intent in msgspec.msgpack.decode(db.meta(_META) or b'\x90', type=list[Intent])}
        #: names of archives of commits that can never happen any more
        self.orphans: list[str] = []
        #: being committed: it goes on with the next number where another has its own
        self._active = ''
        for intent in [intent for intent in self._open.values() if intent.number <= number]:
            self.orphans += intent.archives
            del self._open[intent.nonce]

    def begin(self, intent: Intent) -> None:
        """It is about to be sent, with this number."""
        self._open[intent.nonce], self._active = intent, intent.nonce
        self._store()

    def rest(self) -> None:
        """Nothing is being committed."""
        self._active = ''

    def end(self, nonce: str) -> None:
        """How it ended is recorded; call it in the transaction that does so."""
        if self._open.pop(nonce, None) is not None:
            self._store()

    def give_up(self, nonce: str) -> None:
        """It was not sent, and will not be."""
        if (intent := self._open.get(nonce)) is not None:
            self.orphans += intent.archives
            self.end(nonce)

    def settle(self, header: LogHeader) -> bool:
        """The log has this commit (or a base that replaces all up to its number): whether it is this host's. Call it in the transaction that takes
        it over."""
        intent = self._open.get(header.nonce) if header.nonce else None
        if intent is not None:
            self._take_over(intent)
            log.info('commit %d had arrived although nobody heard of it', intent.number)
        self._pass(header, intent)
        return intent is not None

    def recorded(self, header: LogHeader) -> None:
        """This host's commit is done; call it in the transaction that records it."""
        self._pass(header, self._open.get(header.nonce))

    def _pass(self, header: LogHeader, intent: Intent | None) -> None:
        """What had this number or an earlier one, and is not `intent`, will never be."""
        past = [other for other in self._open.values() if other.number <= header.number and (other is intent or other.nonce != self._active)]
        for other in past:
            if other is not intent:
                self.orphans += [] if header.kind == 'base' else other.archives     # a base does not say whose they were
            del self._open[other.nonce]
        if past:
            self._store()

    def _store(self) -> None:
        self._db.set_meta(_META, msgspec.msgpack.encode(list(self._open.values())))

    def _take_over(self, intent: Intent) -> None:
        inodes = self._db.inodes_of(list({item.ino for item in intent.written}))
        for item in intent.written:
            self._take_over_one(item, inodes.get(item.ino))
        forget_deleted(self._db, intent.deleted)

    def _take_over_one(self, item: Written, inode: Inode | None) -> None:
        """What has become of the file since decides: changed, the next flush replaces the member; removed or renamed, it deletes it."""
        before = self._journal.known(item.key)
        if before is not None and before.etag == item.etag and (before.ino, before.revision) == (item.ino, item.revision):
            return      # recorded already
        is_wanted = inode is not None and inode.nlink > 0
        found = Known(item.key, item.etag, item.size, item.ino, item.revision, hash_in(item.etag), 0 if is_wanted else 1, item.lifecycle,
                      time.time_ns())
        self._journal.put_object(found)
        if inode is not None and inode.content == Content.STAGED and inode.revision <= item.revision:
            # in memory it had counted further before the crash: what is staged may be later than what arrived
            inode.revision = item.revision + 1
            self._db.store_content(inode)
        self._on_arrived(found)


def forget_deleted(db: TreeDB, deleted: Iterable[tuple[str, str]]) -> None:
    """These members are gone."""
    db.many('DELETE FROM object WHERE key = ? AND etag = ? AND doomed', deleted)
