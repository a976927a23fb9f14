"""What must not cost by the size of a context: counted in steps of SQLite's machine, with few clean files and with ten times as many; and what its
first listing leaves behind."""
from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from ctxfs.edge import failsafe, housekeeping
from ctxfs.records import ROOT_INO
from ctxfs.storage import repair, tally
from ctxfs.storage.durability import Measure
from ctxfs.storage.hardened import HardenedFiles
from ctxfs.storage.inode import Content, Inode, Reason
from ctxfs.storage.journal import Journal, Known
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_connection import LOG_BYTES, Connected, TreeReader
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.recovery import recover

FEW, MANY = 300, 3000
#: so many steps are counted as one; and so many of these may be more, for trees of pages that are deeper
EVERY, SLACK = 10, 40


class Tree:
    """A context of `count` clean files; beside them one that waits for its upload, one that stays on this host, one that was uploaded, and one
    without a name."""

    def __init__(self, directory: Path, count: int) -> None:
        directory.mkdir()
        self.db = TreeDB(directory / 'tree.db')
        self.journal, self.staging = Journal(self.db), Staging(directory / 'staging')
        self.recover()
        clean = [self.inode(Content.CLEAN) for _ in range(count)]
        others = [self.inode(Content.STAGED), self.inode(Content.STAGED, local=1), self.inode(Content.SEALED), self.inode(Content.STAGED, nlink=0)]
        with self.db.transaction():
            self.db.insert_inodes([*clean, *others])
            self.db.insert_dentries([(ROOT_INO, b'%d' % inode.ino, inode.ino) for inode in clean + others[:-1]])
            self.journal.put_objects([Known(str(inode.ino), 'e', 1, inode.ino, 1, '', 0) for inode in clean])
            self.journal.mark(others[0], Reason.CONTENT)
        for inode in others:
            os.close(self.staging.create(inode.ino))
        self.staged = {inode.ino for inode in others}
        self.orphans = {others[-1].ino}

    def inode(self, content: int, *, local: int = 0, nlink: int = 1) -> Inode:
        return Inode(self.db.allocate_ino(), stat.S_IFREG | 0o644, 0, 0, 0, nlink, 1, 0, 0, 0, content, 1, local=local)

    def recover(self, *, boot_id: str | None = None) -> None:
        """As before a mount; `boot_id`: of the boot in which the one before ended."""
        if boot_id is not None:
            self.db.set_meta('boot_id', boot_id)
        recover(self.db, self.journal, self.staging, uid=0, gid=0)

    def sweep(self) -> None:
        hardened = HardenedFiles(self.db)
        hardened.note(min(self.staged), Measure(0, 0))
        hardened.sweep()


def steps(connected: Connected, work: Callable[[], object]) -> int:
    """How often EVERY steps were made."""
    made: list[None] = []
    connected._connection.set_progress_handler(lambda: made.append(None), EVERY)
    try:
        work()
    finally:
        connected._connection.set_progress_handler(None, 0)
    return len(made)


WORK: dict[str, Callable[[Tree], object]] = {
    'which files are staged': lambda tree: tree.db.staged_inos(),
    'which files have no name': lambda tree: tree.db.orphans(),
    'what is pending': lambda tree: tree.journal.summary(),
    'what a flush has left': lambda tree: tree.journal.left_from(1),
    'what failed': lambda tree: tree.journal.failed(1),
    'opening the journal': lambda tree: Journal(tree.db),
    'which hardened files went': lambda tree: tree.sweep(),
    'recovery before a mount': lambda tree: tree.recover(),
    'recovery after a power cut': lambda tree: tree.recover(boot_id='another'),
}


def test_clean_files_cost_a_mount_a_flush_and_a_status_nothing(tmp: Path) -> None:
    """They look at what changed, however many files there are. (A status counts on a connection of its own.)"""
    made: dict[str, list[int]] = {}
    for count in (FEW, MANY):
        tree = Tree(tmp / str(count), count)
        reader = TreeReader(tree.db.path)
        made.setdefault('status', []).append(steps(reader, lambda reader=reader: tally.count(reader)))      # type: ignore[misc]
        reader.close()
        for what, work in WORK.items():
            made.setdefault(what, []).append(steps(tree.db, lambda tree=tree, work=work: work(tree)))       # type: ignore[misc]
        tree.db.close()
    assert {what: counts for what, counts in made.items() if counts[1] > counts[0] + SLACK} == {}


def test_each_kind_of_staged_file_is_found(tmp: Path) -> None:
    """What waits for its upload, what stays on this host, what was uploaded, and what has no name: each once."""
    tree = Tree(tmp / 'state', FEW)
    assert sorted(tree.db.staged_inos()) == sorted(tree.staged)
    assert set(tree.db.orphans()) == tree.orphans
    tree.db.close()


@pytest.mark.parametrize('kept', [[], ['0'], ['49'], ['0', '1', '25', '49', 'no hint'], [str(number) for number in range(50)]],
                         ids=['none', 'the first', 'the last', 'some', 'all'])
def test_hints_go_but_for_those_that_are_to_be_kept(kept: list[str], tmp: Path) -> None:
    """By their keys, or because their objects have no place."""
    tree = Tree(tmp / 'state', 1)
    tree.journal.note_unmountable('30', 'no name')
    tree.journal.note_unmountable('unlisted', 'no name')
    tree.db.many('INSERT INTO hint VALUES (?, ?, 1, ?)', ((str(number), 'e', b'') for number in range(50)))
    with tree.db.transaction():
        tree.journal.drop_hints(but=kept)
    assert {key for key, in tree.db.rows('SELECT key FROM hint')} == {*kept, '30'} - {'no hint'}
    tree.journal.drop_unmountable(['30'])
    tree.journal.drop_hints()
    assert tree.db.rows('SELECT key FROM hint') == []
    tree.db.close()


# --- the log of the database ---------------------------------------------------------------------------------------------------------------

def write(tree: Tree, count: int) -> None:
    """So many pages and a few more."""
    with tree.db.transaction():
        for number in range(count):
            tree.journal.note_unmountable(str(number), 'x' * 4000)


def log_size(tree: Tree) -> int:
    return os.stat(f'{tree.db.path}-wal').st_size


def test_a_log_that_grew_with_a_listing_is_made_short_again(tmp: Path) -> None:
    """By the first change after all of it was moved into the file: else a mount after a crash reads all that there ever was in it."""
    tree = Tree(tmp / 'state', 1)
    write(tree, 2500)
    assert log_size(tree) > 2 * LOG_BYTES
    tree.db.checkpoint()
    write(tree, 1)
    assert log_size(tree) <= LOG_BYTES
    tree.db.close()


def test_a_log_is_moved_once(tmp: Path) -> None:
    """What is in the file already is not worth moving, however long the log is; what comes then is, and so is what came meanwhile."""
    tree = Tree(tmp / 'state', 1)
    write(tree, 2500)
    assert tree.db.wal_bytes() == log_size(tree)
    tree.db.checkpoint()
    assert tree.db.wal_bytes() == 0 < log_size(tree)
    write(tree, 2500)
    assert tree.db.wal_bytes() == log_size(tree)
    reader = TreeReader(tree.db.path)
    with reader.snapshot():
        reader.meta('boot_id')
        write(tree, 1)
        tree.db.checkpoint()            # not all of it: the reader still reads the database as it was
        assert tree.db.wal_bytes() == log_size(tree)
    tree.db.checkpoint()
    assert tree.db.wal_bytes() == 0
    reader.close()
    tree.db.close()


def test_a_log_is_bounded_while_changes_come_all_the_time(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast: it is begun anew, and what was changed is there."""
    monkeypatch.setattr(housekeeping, 'WAL_BYTES', LOG_BYTES)
    monkeypatch.setattr(housekeeping, 'MOST_WAL_BYTES', 2 * LOG_BYTES)
    tree, sizes, written = Tree(tmp / 'state', 1), [0], 0

    async def change_all_the_time() -> None:
        nonlocal written
        while written < 12 * LOG_BYTES // 4096:
            write(tree, 50)
            written += 50
            sizes.append(log_size(tree))
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change_all_the_time)
            while written < 12 * LOG_BYTES // 4096:
                await housekeeping.move_log(tree.db)
                await trio.lowlevel.checkpoint()

    trio.run(main)
    assert any(later < earlier for earlier, later in itertools.pairwise(sizes)), sizes
    assert len(tree.journal.unmountable(100)) == 50
    tree.db.close()


# --- after the last mount ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('end', [None, 1, 0], ids=['the first mount', 'a clean end', 'an unclean end'])
def test_a_database_is_looked_through_after_an_unclean_end_only(end: int | None, tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking through it costs by its size, and so does tidying up the cache; and from then on this mount's end counts."""
    monkeypatch.setattr(repair, 'CHECKED_BYTES', 0)
    done: list[str] = []
    monkeypatch.setattr(TreeReader, 'integrity_faults', lambda self: done.append('looked through') or [])

    class Pool:
        async def call(self, operation: object) -> None:
            done.append(type(operation).__name__)

    tree = Tree(tmp / 'state', 1)
    if end is not None:
        tree.db.set_meta('ended_cleanly', end)
    trio.run(failsafe.after_unclean_end, tree.db, Pool(), 0.0)
    assert done == (['TidyCache', 'looked through'] if end == 0 else [])
    assert tree.db.meta('ended_cleanly') == 0
    tree.db.close()
