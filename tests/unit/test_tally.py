"""Counts of a tree database: what they include, that they are never yesterday's, and what another process reads of a dead daemon's."""
from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys

import pytest
import trio
import trio.testing

from ctxfs.edge import live_tally
from ctxfs.edge.live_tally import LiveTally
from ctxfs.edge.tally_json import tally_to_dict
from ctxfs.errors import Corrupted, NotFound
from ctxfs.records import ROOT_INO
from ctxfs.storage import tally
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.tree_connection import TreeReader
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.tasks import TaskLog


@pytest.fixture
def db(tmp):
    db = TreeDB(tmp / 'tree.db')
    yield db
    db.close()


@pytest.fixture
def journal(db):
    return Journal(db)


def make(db, journal, name, *, size=100, reason=Reason.CONTENT, local=0, mode=stat.S_IFREG | 0o644, nlink=1) -> Inode:
    inode = Inode(db.allocate_ino(), mode, 0, 0, 0, nlink, size, 0, 0, 0, Content.STAGED, 1, local=local)
    with db.transaction():
        db.insert_inode(inode)
        db.insert_dentry(ROOT_INO, name, inode.ino)
        journal.mark(inode, reason)
    return inode


def counted(db) -> tally.Tally:
    return tally.count_at(db.path.parent)


def test_what_is_counted(db, journal):
    """As the journal's own summary; local-only files beside, their directories not; tombstones without bytes; nameless ones not at all."""
    make(db, journal, b'a')
    make(db, journal, b'b', size=7, reason=Reason.ATTRS)
    make(db, journal, b'gone', nlink=0)
    make(db, journal, b'local', size=30, local=1)
    make(db, journal, b'local-dir', local=1, mode=stat.S_IFDIR | 0o755)
    journal.put_object(Known('dead', 'e', 5, 99, 1, '', 1))
    journal.put_object(Known('kept', 'e', 5, 98, 1, '', 2))
    found = counted(db)
    assert (found.files, found.bytes, found.oldest_ns) == journal.summary() == (3, 100, found.oldest_ns)
    assert (found.local_files, found.local_bytes) == db.count_local_only() == (1, 30)


def test_failures_have_path_cause_and_next_attempt(db, journal):
    """What only a change can help has no next attempt; names are printable."""
    directory = make(db, journal, b'd', mode=stat.S_IFDIR | 0o755)
    inode = make(db, journal, b'x')
    db.move_dentry((ROOT_INO, b'x'), (directory.ino, b'\xff'), ino=inode.ino)
    other = make(db, journal, b'other')
    journal.fail(journal.pending_row(inode.ino), error='denied', retry_ns=2**62)
    journal.fail(journal.pending_row(other.ino), error='slow', retry_ns=5_000_000_000)
    found = tally_to_dict(counted(db))
    assert found['failedFiles'] == 2
    assert sorted(found['failed'], key=lambda entry: entry['error']) == [
        {'path': '/d/\\xff', 'error': 'denied', 'attempt': 1, 'nextRetry': 0}, {'path': '/other', 'error': 'slow', 'attempt': 1, 'nextRetry': 5.0}]


def test_conflicts_and_odd_keys(db, journal):
    """A conflict counts while its copy has a name; odd keys come with the reason."""
    inode = make(db, journal, b'copy')
    db.execute('INSERT INTO conflict VALUES (?, ?, 1, 0), (12345, ?, 1, 0)', (inode.ino, 'a', 'b'))
    journal.note_unmountable('a//b', 'an empty name')
    found = counted(db)
    assert (found.conflicts, found.unmountable) == (1, (('a//b', 'an empty name'),))


def test_a_state_directory_without_a_readable_database(tmp):
    """Said as an error of ctxfs's own: none there, no database, one of another version."""
    with pytest.raises(NotFound):
        tally.count_at(tmp)
    (tmp / 'tree.db').write_bytes(b'no database at all' * 1000)
    with pytest.raises(Corrupted):
        tally.count_at(tmp)
    (tmp / 'tree.db').unlink()
    sqlite3.connect(tmp / 'tree.db').execute('CREATE TABLE pending (ino)').connection.close()
    with pytest.raises(Corrupted):
        tally.count_at(tmp)


def test_a_reader_writes_nothing(db):
    """It is for looking."""
    reader = TreeReader(db.path)
    try:
        with pytest.raises(Corrupted, match='readonly'):
            reader.rows('DELETE FROM inode')
    finally:
        reader.close()


def test_what_a_killed_process_journaled_is_counted(tmp):
    """From the write-ahead log that it left."""
    code = ('import sys; from pathlib import Path; from tests.unit.test_tally import *\n'
            'db = TreeDB(Path(sys.argv[1]) / "tree.db"); journal = Journal(db)\n'
            'for n in range(5): make(db, journal, b"%d" % n)\n'
            'print(flush=True); sys.stdin.read()')
    with subprocess.Popen([sys.executable, '-c', code, tmp], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}) as process:
        assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert (tmp / 'tree.db-wal').stat().st_size
    assert tally.count_at(tmp)[:2] == (5, 500)
    assert tally.count_at(tmp)[:2] == (5, 500)      # looking changed nothing


# --- of a running mount ------------------------------------------------------------------------------------------------------------

class Live:
    """A LiveTally that says how often it counted."""

    def __init__(self, db, journal, monkeypatch) -> None:
        self.tasks = TaskLog(context_id='c', path='/m')
        self.tally = LiveTally(db, journal, self.tasks)
        self.scans = 0
        count = tally.count

        def counting(reader):
            self.scans += 1
            return count(reader)
        monkeypatch.setattr(tally, 'count', counting)

    async def files(self) -> int:
        return (await self.tally.read()).files


@pytest.fixture
def live(db, journal, monkeypatch):
    live = Live(db, journal, monkeypatch)
    yield live
    live.tally.close()


def run(test, clock=None):
    async def bounded():
        with trio.fail_after(1000 if clock else 20):
            await test()
    trio.run(bounded, clock=clock)


def test_every_change_is_in_the_next_count(db, journal, live):
    """And where nothing was written, nothing is counted again."""
    async def test():
        for number in range(1, 5):
            make(db, journal, b'%d' % number)
            assert [await live.files() for _ in range(10)] == [number] * 10
            assert live.scans == number
    run(test)


def test_a_running_transfer_makes_a_count_good_for_a_moment(db, journal, live):
    """Then it is counted again, in the background at first; the end of the transfer counts at once."""
    async def test():
        make(db, journal, b'first')
        assert await live.files() == 1
        task = live.tasks.begin('upload')
        make(db, journal, b'second')
        assert await live.files() == 1 and live.scans == 1
        await trio.sleep(live_tally.MAX_AGE + 0.01)
        assert await live.files() == 2 and live.scans == 2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live.tally.run)
            make(db, journal, b'third')
            await trio.sleep(live_tally.RENEW_AGE + 0.01)
            assert await live.files() == 2      # at once, and then
            await trio.sleep(live_tally.RENEW_AGE)
            assert await live.files() == 3 and live.scans == 3
            nursery.cancel_scope.cancel()
        make(db, journal, b'fourth')
        task.finish()
        assert await live.files() == 4
    run(test, trio.testing.MockClock(autojump_threshold=0.02))


def test_nothing_pending_is_never_out_of_date(db, journal, live):
    """Also while something is transferred: it is what `ctxfs wait` waits for."""
    async def test():
        live.tasks.begin('download')
        assert await live.files() == 0
        make(db, journal, b'a')
        assert await live.files() == 1
    run(test)


def test_many_that_ask_at_once_share_a_count(db, journal, live):
    """At most one runs, and one more for who asked while it ran."""
    async def test():
        make(db, journal, b'a')
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(live.files)
        assert live.scans <= 2
    run(test)


def test_a_count_that_fails_fails_for_all_and_is_tried_again(db, journal, live, monkeypatch):
    """Nobody waits for ever."""
    async def test():
        def fail(reader):
            raise Corrupted('oops')
        with monkeypatch.context() as broken:
            broken.setattr(tally, 'count', fail)
            outcomes = []

            async def ask():
                with pytest.raises(Corrupted):
                    await live.files()
                outcomes.append(1)
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(ask)
            assert len(outcomes) == 3
        assert await live.files() == 0
    run(test)
