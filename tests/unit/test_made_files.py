"""Files that were made and acknowledged before Python heard of them: what they become, and what a daemon that was killed leaves of them.

Owns nothing. That the library writes the log in this format, and what the kernel sees, is tests/mount/test_made_files.py's.
"""
from __future__ import annotations

import os
import stat
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from ctxfs.core.filesystem import Change
from ctxfs.core.made_files import Made
from ctxfs.errors import DiskFull
from ctxfs.policy import BWList, SyncPolicy, WhiteList
from ctxfs.records import ROOT_INO, Ino
from ctxfs.storage import made_log, tally
from ctxfs.storage.consistency import check_state
from ctxfs.storage.inode import Content, Reason
from ctxfs.storage.journal import Journal
from ctxfs.storage.made_log import MadeLog
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.recovery import recover
from tests.unit.rig import ME, Disk
from tests.unit.test_sync_regressions import PREFIX

NOW = 1_700_000_000_123_456_789


class State:
    """What a killed daemon leaves: a state directory, and a log with what the library would have written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.db = TreeDB(directory / 'tree.db')
        self.staging = Staging(directory / 'staging')
        self.journal = Journal(self.db)
        self.recover()
        self.generation = MadeLog(self.db).generation
        self.records = b''

    def recover(self) -> None:
        recover(self.db, self.journal, self.staging, uid=7, gid=8)

    def make(self, name: bytes, *, parent: int = ROOT_INO, content: bytes = b'', local: int = 0, generation: int = 0) -> Ino:
        ino = self.db.allocate_ino()
        fd = self.staging.create(ino)
        os.write(fd, content)
        os.close(fd)
        self.record(ino, parent, stat.S_IFREG | 0o640, name=name, local=local, generation=generation)
        return ino

    def record(self, ino: int, parent: int, mode: int, *, name: bytes = b'', mtime_ns: int = NOW, local: int = 0, generation: int = 0) -> None:
        fields = (generation or self.generation, ino, parent, NOW - 1, mtime_ns, NOW, mode, 1, 2, local, len(name), 0)
        whole = made_log._RECORD.pack(0, made_log._RECORD.size + len(name), *fields) + name
        self.records += zlib.crc32(whole[4:]).to_bytes(4, 'little') + whole[4:]

    def kill(self) -> None:
        """The daemon is gone, and the next one begins."""
        (self.directory / made_log.NAME).write_bytes(self.records)
        self.db.close()
        self.db = TreeDB(self.directory / 'tree.db')
        self.journal = Journal(self.db)
        self.recover()

    def names(self) -> list[bytes]:
        return [name for name, _ in self.db.children(ROOT_INO, b'', 100)]


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path)


def test_what_was_acknowledged_has_its_row_after_a_kill(state: State) -> None:
    """With the last attributes, the size of its staging file, and pending."""
    ino = state.make(b'new', content=b'twelve bytes')
    state.record(ino, 0, stat.S_IFREG | 0o755, mtime_ns=NOW - 5_000_000_000)
    state.kill()
    inode = state.db.inode(ino)
    assert (inode.mode, inode.uid, inode.gid, inode.nlink, inode.size) == (stat.S_IFREG | 0o755, 1, 2, 1, 12)
    assert (inode.atime_ns, inode.mtime_ns, inode.ctime_ns) == (NOW - 1, NOW - 5_000_000_000, NOW)
    assert inode.content == Content.STAGED and state.db.lookup(ROOT_INO, b'new') == ino
    pending = state.journal.pending_row(ino)
    assert pending is not None and pending.reason == Reason.CONTENT | Reason.NAMES | Reason.ATTRS
    assert Path(state.staging.path(ino)).read_bytes() == b'twelve bytes'
    assert state.db.allocate_ino() > ino


def test_its_directory_has_changed_too(state: State) -> None:
    before = state.db.inode(ROOT_INO).mtime_ns
    later = time.time_ns() + 3_000_000_000
    ino = state.make(b'new')
    state.records = b''
    fields = (state.generation, ino, ROOT_INO, later, later, later, stat.S_IFREG | 0o644, 0, 0, 0, 3, 0)
    whole = made_log._RECORD.pack(0, made_log._RECORD.size + 3, *fields) + b'new'
    state.records = zlib.crc32(whole[4:]).to_bytes(4, 'little') + whole[4:]
    state.kill()
    assert before < state.db.inode(ROOT_INO).mtime_ns == later


def test_it_is_done_once(state: State) -> None:
    """The log stays as it is: what was taken over, and then removed, does not come back."""
    state.make(b'new')
    state.kill()
    state.db.delete_dentry(ROOT_INO, b'new')
    state.kill()
    assert state.names() == []


@pytest.mark.parametrize('distance', [-1, 1, 100])
def test_another_generation_counts_no_more(state: State, distance: int) -> None:
    """An earlier one is in the database; before a later one something was lost with the power."""
    ino = state.make(b'new', generation=state.generation + distance)
    state.kill()
    assert state.names() == [] and not os.path.exists(state.staging.path(ino))


@pytest.mark.parametrize('kept', [1, 79, 80, 82])
def test_a_torn_record_ends_the_log(state: State, kept: int) -> None:
    state.make(b'first')
    whole = state.records
    state.make(b'new')
    state.records = whole + state.records[len(whole):][:kept]
    state.kill()
    assert state.names() == [b'first']


def test_a_damaged_record_ends_the_log(state: State) -> None:
    state.make(b'first')
    whole = len(state.records)
    state.make(b'new')
    state.make(b'newer')
    damaged = bytearray(state.records)
    damaged[whole + 30] ^= 1
    state.records = bytes(damaged)
    state.kill()
    assert state.names() == [b'first']


def test_what_has_no_place_is_left_out(state: State) -> None:
    """Nothing that a daemon writes: but whatever is in the log, the tree stays sound."""
    state.make(b'new')
    state.make(b'new')
    state.make(b'stray', parent=999)
    ino = state.make(b'other')
    state.record(ino, ROOT_INO, stat.S_IFREG | 0o644, name=b'twice')
    state.kill()
    assert state.names() in ([b'new', b'twice'], [b'new', b'other'])


def test_a_local_file_is_not_pending(state: State) -> None:
    ino = state.make(b'new', local=1)
    state.kill()
    assert state.db.inode(ino).local == 1 and state.journal.pending_row(ino) is None


def test_a_number_of_the_log_is_not_given_again(state: State) -> None:
    """Although the power took that it was reserved, and left the log."""
    ino = Ino(state.db.next_ino + 100_000)
    os.close(state.staging.create(ino))
    state.record(ino, ROOT_INO, stat.S_IFREG | 0o600, name=b'new')
    state.kill()
    assert state.names() == [b'new'] and state.db.allocate_ino() > ino


def test_what_only_the_log_has_is_counted(state: State) -> None:
    """Whoever asks before the next mount hears of it, and that is no fault."""
    ino = state.make(b'new', content=b'text')
    state.record(ino, 0, stat.S_IFREG | 0o755)
    state.make(b'here', content=b'local', local=1)
    (state.directory / made_log.NAME).write_bytes(state.records)
    assert check_state(state.directory) == []
    counts = tally.count_at(state.directory)
    assert (counts.files, counts.bytes, counts.local_files, counts.local_bytes, counts.oldest_ns) == (1, 4, 1, 5, NOW)
    state.kill()
    assert tally.count_at(state.directory)[:2] == (1, 4)


def test_no_log_is_no_fault(state: State) -> None:
    state.kill()
    os.unlink(state.directory / made_log.NAME)
    state.db.close()
    state.db = TreeDB(state.directory / 'tree.db')
    state.journal = Journal(state.db)
    state.recover()
    assert state.names() == []


# --- taken over by a daemon that lives ---------------------------------------------------------------------------------------------------

def made_on(disk: Disk, name: bytes, content: bytes = b'', *, is_open: bool = False, is_known: bool = True, flags: int = os.O_WRONLY) -> Made:
    """As the library makes one."""
    ino = disk.db.allocate_ino()
    fd = disk.staging.create(ino)
    disk.staging.unhardened.discard(ino)
    os.write(fd, content)
    blocks = os.fstat(fd).st_blocks
    if not is_open:
        os.close(fd)
    return Made(ino, ROOT_INO, 1 << 40 | ino, len(content), blocks, NOW, NOW, NOW, time.time_ns(), stat.S_IFREG | 0o600, 3, 4, flags,
                fd if is_open else -1, is_open, bool(content), is_known, name)


Play = Callable[[Callable[[Disk], Awaitable[None]]], None]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """play(scenario): run it on a disk."""
    def run(scenario: Callable[[Disk], Awaitable[None]]) -> None:
        async def main() -> None:
            disk = Disk(tmp_path)
            try:
                async with disk.running():
                    await scenario(disk)
            finally:
                disk.close()
        trio.run(main)
    return run


def test_a_made_file_is_like_any_other(play: Play) -> None:
    """It is read, counted, uploaded, removed."""
    async def scenario(disk: Disk) -> None:
        used, before = disk.staging.used, trio.current_time()
        one = made_on(disk, b'one', b'some bytes')
        disk.fs.note_absence(ROOT_INO, b'one')
        disk.fs.take_over([one])
        inode = await disk.fs.lookup(ROOT_INO, b'one')
        assert inode is not None and inode is disk.fs.inode(one.ino) and disk.fs.absences() == 0
        assert disk.staging.used == used + one.blocks * 512 == used + inode.charged and one.ino in disk.staging.unhardened
        assert inode.changed_at >= before and inode.revision == 2
        fh = await disk.fs.open(one.ino, os.O_RDONLY)
        assert await disk.fs.read(fh, 0, 100) == b'some bytes'
        await disk.fs.release(fh)
        await disk.engine.flush()
        assert disk.workers.context.store.get(f'{PREFIX}one') == b'some bytes'
        await disk.fs.unlink(ROOT_INO, b'one')
        disk.fs.forget([(one.ino, 2)])
        assert not disk.db.inodes_of([one.ino])

    play(scenario)


def test_an_open_one_is_written_on(play: Play) -> None:
    async def scenario(disk: Disk) -> None:
        one = made_on(disk, b'one', b'some ', is_open=True)
        disk.fs.take_over([one])
        assert disk.fs.written_inos() == [one.ino]
        await disk.fs.write(one.fh, 5, b'bytes')
        await disk.fs.release(one.fh)
        assert disk.fs.inode(one.ino).size == 10 and not disk.fs.files.numbers()
        assert Path(disk.staging.path(one.ino)).read_bytes() == b'some bytes'

    play(scenario)


def test_an_open_one_occupies_what_its_staging_file_does(play: Play) -> None:
    """The library looked last when it was empty: no blocks for so many bytes would be a hole, which tar and others skip."""
    async def scenario(disk: Disk) -> None:
        one = made_on(disk, b'one', b'x' * 100_000, is_open=True)._replace(blocks=0)
        disk.fs.take_over([one])
        assert disk.fs.stat_blocks(disk.fs.inode(one.ino)) == os.fstat(one.fd).st_blocks > 0
        await disk.fs.release(one.fh)

    play(scenario)


def test_a_directory_is_as_new_as_its_entries(play: Play) -> None:
    """Also one that somebody dated into the future."""
    async def scenario(disk: Disk) -> None:
        await disk.fs.setattr(ROOT_INO, Change(mtime_ns=time.time_ns() + 10**15))
        one = made_on(disk, b'one')
        disk.fs.take_over([one])
        root = disk.fs.inode(ROOT_INO)
        assert root.mtime_ns == root.ctime_ns == one.made_ns

    play(scenario)


def test_one_that_the_kernel_never_heard_of_is_in_the_tree_only(play: Play) -> None:
    async def scenario(disk: Disk) -> None:
        one = made_on(disk, b'one', is_known=False)
        disk.fs.take_over([one])
        assert not disk.fs.is_known(one.ino) and disk.db.lookup(ROOT_INO, b'one') == one.ino

    play(scenario)


def test_the_white_lists_decide_by_its_name(play: Play) -> None:
    async def scenario(disk: Disk) -> None:
        disk.gating.rules.replace(SyncPolicy(bw_list=BWList(white_lists=(WhiteList(path='in'),))))
        inside, outside = made_on(disk, b'in'), made_on(disk, b'out')
        disk.fs.take_over([inside, outside])
        assert (disk.db.inode(inside.ino).local, disk.db.inode(outside.ino).local) == (0, 1)
        assert disk.journal.pending_row(inside.ino) is not None and disk.journal.pending_row(outside.ino) is None

    play(scenario)


def test_on_a_full_disk_they_wait(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their rows are made when there is space; one that is closed meanwhile is closed, and none is there twice or half."""
    async def scenario(disk: Disk) -> None:
        one, other = made_on(disk, b'one', is_open=True), made_on(disk, b'other', b'text')

        def refuse(*args: object) -> None:
            raise DiskFull('no space')

        with monkeypatch.context() as patch:
            patch.setattr(disk.db, 'insert_dentries', refuse)
            with pytest.raises(DiskFull):
                disk.fs.take_over([one, other])
            disk.fs.settle()
            assert disk.fs.made.is_waiting and disk.db.lookup(ROOT_INO, b'other') is None
            assert disk.fs.made.waiting() == (2, 4)         # what an unmount says is left
            assert not disk.db.inodes_of([one.ino, other.ino])
            await disk.fs.release(one.fh)
            with pytest.raises(OSError, match='descriptor'):
                os.fstat(one.fd)
        disk.fs.settle()
        assert not disk.fs.made.is_waiting and disk.fs.made.waiting() == (0, 0) and disk.db.lookup(ROOT_INO, b'one') == one.ino
        assert disk.fs.inode(other.ino).size == 4 and not disk.fs.files.numbers()
        assert await disk.fs.create(ROOT_INO, b'third', mode=0o600, flags=os.O_WRONLY, caller=ME)

    play(scenario)


@contextmanager
def full(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No row of a new file can be written."""
    def refuse(*args: object) -> None:
        raise DiskFull('no space')

    with monkeypatch.context() as patch:
        patch.setattr(disk.db, 'insert_inodes', refuse)
        yield


def test_nothing_is_written_before_what_waits(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by a program nor by another host may its name be taken; and nobody is told that everything is uploaded."""
    async def scenario(disk: Disk) -> None:
        one = made_on(disk, b'one', b'text')
        with full(disk, monkeypatch):
            with pytest.raises(DiskFull):
                disk.fs.take_over([one])
            with pytest.raises(DiskFull), disk.db.transaction():
                disk.db.insert_dentry(ROOT_INO, b'one', ROOT_INO)
            result = await disk.engine.flush()
            assert not result.ok and 'no space' in result.message
        with disk.db.transaction():
            assert disk.db.lookup(ROOT_INO, b'one') == one.ino
        assert not disk.fs.made.is_waiting and (await disk.engine.flush()).ok
        assert disk.workers.context.store.get(f'{PREFIX}one') == b'text'

    play(scenario)


def test_one_that_waits_is_uploaded_after_the_unmount(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was open then, and is not any more."""
    async def scenario(disk: Disk) -> None:
        one = made_on(disk, b'one', b'x' * 100_000, is_open=True)._replace(blocks=0)
        with full(disk, monkeypatch):
            with pytest.raises(DiskFull):
                disk.fs.take_over([one])
            disk.fs.detached()
        assert (await disk.engine.flush()).ok and disk.workers.context.store.get(f'{PREFIX}one') == b'x' * 100_000
        assert not disk.fs.is_known(one.ino) and not disk.fs.files.numbers()
        with pytest.raises(OSError, match='descriptor'):
            os.fstat(one.fd)

    play(scenario)


def test_one_that_waits_can_be_forgotten(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(disk: Disk) -> None:
        one, other = made_on(disk, b'one'), made_on(disk, b'other')
        with full(disk, monkeypatch):
            with pytest.raises(DiskFull):
                disk.fs.take_over([one, other])
            disk.fs.forget([(one.ino, 1)])
        disk.fs.settle()
        assert not disk.fs.is_known(one.ino) and disk.fs.is_known(other.ino)
        await disk.fs.unlink(ROOT_INO, b'one')
        assert not os.path.exists(disk.staging.path(one.ino))

    play(scenario)


def test_statements_do_not_grow_with_what_is_there(play: Play) -> None:
    """Taking over a batch costs as many statements in a directory of many entries as in an empty one, and as many for a large batch as for a
    small one."""
    async def scenario(disk: Disk) -> None:
        counts: list[int] = []
        for size in (5, 5, 50, 50):
            batch = [made_on(disk, b'%d-%d' % (len(counts), number)) for number in range(size)]
            traced: list[str] = []
            disk.db._connection.set_trace_callback(traced.append)
            disk.fs.take_over(batch)
            disk.db._connection.set_trace_callback(None)
            counts.append(sum(not text.startswith(('INSERT INTO inode', 'INSERT INTO dentry', 'INSERT INTO pending')) for text in traced))
        assert counts[1] == counts[2] == counts[3] <= counts[0] <= 8

    play(scenario)
