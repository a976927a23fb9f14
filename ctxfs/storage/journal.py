"""The journal: which inodes the bucket does not fully have, and which objects the bucket is known to hold.

Owns the SQL of `pending`, `object`, `unmountable` and `hint` (schema.sql says what each row means; conflict_rows.py has `conflict`). It must
not know when or how anything is transferred: sync plans from it and reports back to it; core only marks.
"""
from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import msgspec

from ctxfs.records import IndexRecord
from ctxfs.storage.conflict_rows import ConflictRows
from ctxfs.storage.held_hints import HeldHints, Hint
from ctxfs.storage.inode import Inode, Reason
from ctxfs.storage.tree_db import TreeDB

_MARK = ('INSERT INTO pending VALUES (?, ?, 1, ?, 0, 0, \'\') ON CONFLICT (ino) DO UPDATE SET reason = reason | excluded.reason, '
         'seq = seq + 1, attempt = 0, retry_ns = 0')
_OBJECT = 'key, etag, size, ino, revision, sha256, doomed, lifecycle, uploaded_ns, said_ns'


class Pending(NamedTuple):
    """One row of the journal; see schema.sql."""
    ino: int
    reason: int
    seq: int
    since_ns: int
    attempt: int
    retry_ns: int
    error: str


class Known(NamedTuple):
    """One object as we know it; see schema.sql."""
    key: str
    etag: str
    size: int
    ino: int
    revision: int
    sha256: str
    doomed: int
    lifecycle: str = ''
    uploaded_ns: int = 0
    said_ns: int = 0


class Journal:
    """See the module docstring. Errors as TreeDB's."""

    def __init__(self, db: TreeDB) -> None:
        self._db = db
        self.conflicts = ConflictRows(db)
        #: hints that have no row: see `hold_hints`
        self._held = HeldHints()
        #: +1 for each change that reached the journal: tells cheaply that there is something new; and who is told at once
        self.marks = 0
        self.on_mark: Callable[[], None] | None = None
        #: when the oldest change that is in the journal was made; 0: none is. Early at most, until `recount` says it exactly
        self.oldest_ns = 0
        self.recount()

    # --- pending ----------------------------------------------------------------------------------------------------------------

    def mark(self, inode: Inode, reason: int) -> None:
        """Note in the running transaction that the bucket is to learn of this inode. Nothing is written where the row says so already
        and no work was planned from it."""
        if inode.marked & reason == reason and not inode.is_planned:
            return
        if inode.local and not reason & Reason.SUBTREE:
            return      # the bucket is not to learn of it
        if not self.oldest_ns:
            self.oldest_ns = time.time_ns()
        self._note_mark()
        self._db.execute(_MARK, (inode.ino, reason, time.time_ns()))
        inode.marked |= reason
        inode.is_planned = False

    def mark_new(self, inodes: Sequence[Inode], reason: int) -> None:
        """`mark` many that have no row in the journal yet, with one statement."""
        shared, now_ns = [inode for inode in inodes if not inode.local], time.time_ns()
        if not shared:
            return
        self.oldest_ns = self.oldest_ns or now_ns
        self._note_mark()
        self._db.many(_MARK, ((inode.ino, reason, now_ns) for inode in shared))
        for inode in shared:
            inode.marked |= reason

    def _note_mark(self) -> None:
        self.marks += 1
        if self.on_mark is not None:
            self.on_mark()

    def touch(self, directory: Inode) -> None:
        """The directory's times changed with its entries: other hosts learn of it with whatever they are told next."""
        if not directory.is_touched and not directory.local:
            self._db.execute('INSERT OR IGNORE INTO touched VALUES (?)', (directory.ino,))
            directory.is_touched = True

    def touched(self, limit: int) -> list[int]:
        return [row[0] for row in self._db.rows('SELECT ino FROM touched LIMIT ?', (limit,))]

    def told(self, inos: Iterable[int]) -> None:
        """Other hosts know the times of these directories."""
        self._db.many('DELETE FROM touched WHERE ino = ?', ((ino,) for ino in inos))

    def due(self, now_ns: int, *, limit: int, after: int = 0) -> list[Pending]:
        """Rows whose retry time has come, by inode number after `after`."""
        return [Pending(*row) for row in self._db.rows(
            'SELECT * FROM pending WHERE ino > ? AND retry_ns <= ? ORDER BY ino LIMIT ?', (after, now_ns, limit))]

    def pending_row(self, ino: int) -> Pending | None:
        row = self._db.row('SELECT * FROM pending WHERE ino = ?', (ino,))
        return Pending(*row) if row else None

    def advance(self, row: Pending, reason: int) -> bool:
        """The work planned from `row` is done but for `reason` (0: all of it). False, and the row stays, when the inode changed since."""
        if reason:      # what is left to do dates from now, and so does whatever changes before that is done
            cursor = self._db.execute('UPDATE pending SET reason=?, since_ns=?, attempt=0, retry_ns=0, error=\'\' WHERE ino=? AND seq=?',
                                      (reason, time.time_ns(), row.ino, row.seq))
        else:
            cursor = self._db.execute('DELETE FROM pending WHERE ino=? AND seq=?', (row.ino, row.seq))
        return cursor.rowcount == 1

    def forget(self, ino: int) -> None:
        """The inode is gone for good: nothing of it is pending."""
        self._db.execute('DELETE FROM pending WHERE ino = ?', (ino,))

    def fail(self, row: Pending, *, error: str, retry_ns: int) -> None:
        """The attempt failed: keep the row, say why, and not before when to try again."""
        self._db.execute('UPDATE pending SET attempt = attempt + 1, retry_ns = ?, error = ? WHERE ino = ?', (retry_ns, error, row.ino))

    def retry_all(self) -> None:
        """Forget waiting times (a mount or an explicit sync tries everything at once), and dates that a wrong clock put into the future."""
        now_ns = time.time_ns()
        self._db.execute('UPDATE pending SET retry_ns = 0, attempt = 0, since_ns = min(since_ns, ?) WHERE retry_ns > 0 OR since_ns > ?',
                         (now_ns, now_ns))

    def next_retry_ns(self, after_ns: int, before_ns: int) -> int | None:
        """The first retry time between the two; None: there is none."""
        return self._db.row('SELECT min(retry_ns) FROM pending WHERE retry_ns > ? AND retry_ns < ?', (after_ns, before_ns))[0]

    def sent_as_of(self, ino: int, instant_ns: int) -> None:
        """The bucket has the inode as it was at this instant, and it has changed since: only what came after is pending."""
        self._db.execute('UPDATE pending SET since_ns = ?, attempt = 0, retry_ns = 0, error = \'\' WHERE ino = ?', (instant_ns, ino))

    def oldest_due_ns(self, now_ns: int, *, without: Collection[int] = ()) -> int:
        """When the oldest change was made that is neither one of the inodes `without` nor waits for its retry time; 0: there is none."""
        return self._db.row('SELECT coalesce(min(since_ns), 0) FROM pending WHERE retry_ns <= ? AND ino NOT IN (SELECT value FROM json_each(?))',
                            (now_ns, json.dumps(list(without))))[0]

    def recount(self) -> None:
        """Ask for the oldest change (a scan of the journal): after an upload, when it may have gone."""
        oldest = self._db.row('SELECT min(since_ns) FROM pending')[0]
        self.oldest_ns = oldest or (time.time_ns() if self.doomed_count() else 0)

    def summary(self) -> tuple[int, int, int | None]:
        """(inodes, bytes, since_ns of the oldest) that the bucket does not have; tombstones count as inodes without bytes. Index-only
        rows count too: until the segment is written another host would not know the attributes."""
        files, size, oldest = self._db.row(
            'SELECT count(*), coalesce(sum(CASE WHEN p.reason & 1 THEN i.size ELSE 0 END), 0), min(p.since_ns) '
            'FROM pending p CROSS JOIN inode i ON i.ino = p.ino WHERE i.nlink > 0')
        return files + self.doomed_count(), size, oldest

    def left_from(self, began_ns: int) -> int:
        """Inodes with changes from before that time, or with a failure."""
        return self._db.row('SELECT count(*) FROM pending p CROSS JOIN inode i ON i.ino = p.ino '
                            'WHERE i.nlink > 0 AND (p.since_ns < ? OR p.error <> \'\')', (began_ns,))[0]

    def failed(self, limit: int) -> list[tuple[Pending, Inode]]:
        """Rows whose last attempt failed."""
        rows = [Pending(*row) for row in self._db.rows('SELECT * FROM pending WHERE error <> \'\' ORDER BY since_ns LIMIT ?', (limit,))]
        inodes = self._db.inodes_of([row.ino for row in rows])
        return [(row, inodes[row.ino]) for row in rows if row.ino in inodes]

    # --- objects ----------------------------------------------------------------------------------------------------------------

    def known(self, key: str) -> Known | None:
        row = self._db.row(f'SELECT {_OBJECT} FROM object WHERE key = ?', (key,))
        return Known(*row) if row else None

    def objects_of(self, ino: int) -> list[Known]:
        return [Known(*row) for row in self._db.rows(f'SELECT {_OBJECT} FROM object WHERE ino = ? ORDER BY key', (ino,))]

    def source_of(self, inode: Inode) -> Known | None:
        """An object that carries the inode's content as it is now."""
        # a tombstone's key may be about to be overwritten
        row = self._db.row(f'SELECT {_OBJECT} FROM object WHERE ino = ? AND revision = ? ORDER BY doomed, key LIMIT 1', (inode.ino, inode.revision))
        return Known(*row) if row else None

    def objects_after(self, after: str, limit: int) -> list[Known]:
        return [Known(*row) for row in self._db.rows(f'SELECT {_OBJECT} FROM object WHERE key > ? ORDER BY key LIMIT ?', (after, limit))]

    def objects_between(self, after: str, last: str | None, prefix: str = '') -> list[Known]:
        """Objects with after < key <= last (to the end of `prefix` when last is None), in key order."""
        sql, args = f'SELECT {_OBJECT} FROM object WHERE key > ?', [after]
        if last is not None:
            sql, args = f'{sql} AND key <= ?', [after, last]
        return [found for row in self._db.rows(sql + ' ORDER BY key', args) if (found := Known(*row)).key.startswith(prefix)]

    def has_objects_between(self, after: str, last: str) -> bool:
        return self._db.row('SELECT 1 FROM object WHERE key >= ? AND key <= ? LIMIT 1', (after, last)) is not None

    def put_object(self, known: Known) -> None:
        self._db.execute('INSERT OR REPLACE INTO object VALUES (?,?,?,?,?,?,?,?,?,?)', known)

    def put_objects(self, known: Sequence[Known]) -> None:
        self._db.insert('INSERT OR REPLACE INTO object', '(?,?,?,?,?,?,?,?,?,?)', known)

    def note_lifetime(self, key: str, etag: str, lifecycle: str, uploaded_ns: int) -> None:
        """What the store says of when this version came, and when it expires."""
        self._db.execute('UPDATE object SET lifecycle = ?, uploaded_ns = ? WHERE key = ? AND etag = ?', (lifecycle, uploaded_ns, key, etag))

    def note_said(self, records: Iterable[tuple[int, str, str]]) -> None:
        """(changed_ns, key, etag) of index records that the attributes here are from."""
        self._db.many('UPDATE object SET said_ns = ? WHERE key = ? AND etag = ?', records)

    def drop_object(self, key: str) -> None:
        self._db.execute('DELETE FROM object WHERE key = ?', (key,))

    def doom_objects_of(self, ino: int) -> None:
        """The content is wanted by nobody any more: its objects become tombstones."""
        cursor = self._db.execute('UPDATE object SET doomed = 1 WHERE ino = ? AND NOT doomed', (ino,))
        if cursor.rowcount:
            self._note_mark()
            self.oldest_ns = self.oldest_ns or time.time_ns()

    def doomed(self, limit: int, after: str = '') -> list[Known]:
        return [Known(*row) for row in self._db.rows(
            f'SELECT {_OBJECT} FROM object WHERE doomed AND doomed = 1 AND key > ? ORDER BY key LIMIT ?', (after, limit))]

    def doomed_count(self) -> int:
        return int(self._db.row('SELECT count(*) FROM object WHERE doomed AND doomed = 1')[0])

    # --- deletions that other hosts are to learn of -----------------------------------------------------------------------------------

    def announce(self, keys: Iterable[str], deleted_ns: int) -> None:
        """These objects were deleted (not before `deleted_ns`); call it in the transaction that drops their rows."""
        self._db.many('INSERT OR REPLACE INTO announce VALUES (?, ?)', ((key, deleted_ns) for key in keys))

    def unannounced(self, limit: int) -> list[tuple[str, int]]:
        """(key, deleted_ns) of deletions that are not in the index yet."""
        return self._db.rows('SELECT key, deleted_ns FROM announce ORDER BY key LIMIT ?', (limit,))

    def announced(self, rows: Iterable[tuple[str, int]]) -> None:
        """They are in the index now, but for those that were deleted once more meanwhile."""
        self._db.many('DELETE FROM announce WHERE key = ? AND deleted_ns = ?', rows)

    # --- what a listing leaves behind ---------------------------------------------------------------------------------------------

    def note_unmountable(self, key: str, reason: str) -> None:
        self._db.execute('INSERT OR REPLACE INTO unmountable VALUES (?, ?)', (key, reason))

    def drop_unmountable(self, keys: Iterable[str]) -> None:
        self._db.many('DELETE FROM unmountable WHERE key = ?', ((key,) for key in keys))

    def unmountable(self, limit: int) -> list[tuple[str, str]]:
        return self._db.rows('SELECT key, reason FROM unmountable ORDER BY key LIMIT ?', (limit,))

    def is_unmountable(self, key: str) -> bool:
        return self._db.row('SELECT 1 FROM unmountable WHERE key = ?', (key,)) is not None

    def unmountable_between(self, after: str, last: str | None) -> list[str]:
        sql, args = 'SELECT key FROM unmountable WHERE key > ?', [after]
        if last is not None:
            sql, args = f'{sql} AND key <= ?', [after, last]
        return [row[0] for row in self._db.rows(sql, args)]

    # --- hints --------------------------------------------------------------------------------------------------------------------

    def add_hints(self, records: Iterable[IndexRecord]) -> None:
        self._db.many('INSERT OR REPLACE INTO hint VALUES (?, ?, ?, ?)',
                      ((record.path, record.etag, record.size, msgspec.msgpack.encode(record)) for record in records))

    def hold_hints(self, packed: bytes, *, first: str, last: str, count: int, objects: int) -> bool:
        """These will be asked for by a listing that begins now, and gain nothing from rows: they are kept in memory until `settle_hint_page` has
        written what is left. As HeldHints.add."""
        return self._held.add(packed, first=first, last=last, count=count, objects=objects)

    def settle_hint_page(self) -> bool:
        """False when none is held any more. Call it in a transaction."""
        if self._held:
            self.add_hints(self._held.take())
        return bool(self._held)

    def forget_held_hints(self) -> None:
        """The index is read once more, from its beginning."""
        self._held.clear()

    def used_hints(self, keys: Iterable[str]) -> None:
        """They said all they had to say. Call it when that was committed."""
        if self._held:
            self._held.drop(keys)

    def hint(self, key: str) -> Hint | None:
        """(etag, size, record) of a key; see `held_hints.record_of`."""
        return (self._held.get(key) if self._held else None) or self._db.row('SELECT etag, size, record FROM hint WHERE key = ?', (key,))

    def hints_beside_objects(self, after: str, limit: int) -> list[tuple[str, str, int, str | None]]:
        """(key, etag, size, etag of the object that is known) of the next hints."""
        return self._db.rows('SELECT h.key, h.etag, h.size, o.etag FROM hint h LEFT JOIN object o ON o.key = h.key '
                             'WHERE h.key > ? ORDER BY h.key LIMIT ?', (after, limit))

    def hints_between(self, after: str, last: str | None) -> dict[str, Hint]:
        sql, args = 'SELECT key, etag, size, record FROM hint WHERE key > ?', [after]
        if last is not None:
            sql, args = f'{sql} AND key <= ?', [after, last]
        found = {row[0]: row[1:] for row in self._db.rows(sql, args)}
        if self._held:
            found.update(self._held.between(after, last))
        return found

    def hint_quantiles(self, parts: int, *, page: int) -> list[str]:
        """Keys that cut the objects that hints name into so many parts of like size, each but the last of whole pages; none where a part would have
        less than a page."""
        held = self._held.objects
        count = held + self._db.row("SELECT count(*) FROM hint WHERE etag <> ''")[0]
        if count < parts * page:
            return []
        numbers = [count * part // parts // page * page - 1 for part in range(1, parts)]
        return sorted(self._held.nth_object(number) if number < held else
                      self._db.row("SELECT key FROM hint WHERE etag <> '' ORDER BY key LIMIT 1 OFFSET ?", (number - held,))[0] for number in numbers)

    def hints_are_few(self, after: str, last: str, most: int) -> bool:
        """Whether there are no more than so many with after < key <= last, a page more or less."""
        held = self._held.count_between(after, last)
        count = held + self._db.row('SELECT count(*) FROM (SELECT 1 FROM hint WHERE key > ? AND key <= ? LIMIT ?)', (after, last, most + 1))[0]
        return int(count) <= most

    def drop_hints_of(self, keys: Collection[str]) -> None:
        self._held.drop(keys)
        self._db.many('DELETE FROM hint WHERE key = ?', ((key,) for key in keys))

    def drop_hints(self, *, but: Iterable[str] = ()) -> None:
        """All that have rows, `but` those of these keys, and of objects that have no place now but may get one."""
        kept = [key for key, in self._db.rows(
            'SELECT key FROM hint WHERE key IN (SELECT value FROM json_each(?) UNION SELECT key FROM unmountable) ORDER BY key',
            (json.dumps(list(but)),))]
        if not kept:        # page by page
            self._db.execute('DELETE FROM hint')
            return
        # range by range: with NOT IN it takes three times as long, and the loop waits (measured: 2.9 s for 1,000,000)
        self._db.execute('DELETE FROM hint WHERE key < ?', kept[:1])
        self._db.many('DELETE FROM hint WHERE key > ? AND key < ?', itertools.pairwise(kept))
        self._db.execute('DELETE FROM hint WHERE key > ?', kept[-1:])
