"""Memory that much work took goes back to the system when that work has come to its end, and nothing is done for it in between."""
from __future__ import annotations

import contextlib
import queue
import socket
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

from ctxfs.edge import memory_upkeep
from ctxfs.edge.memory_upkeep import MemoryUpkeep
from ctxfs.records import ROOT_INO
from ctxfs.storage.journal import Journal
from ctxfs.storage.staging import Staging
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync import free_memory, protocol, worker
from ctxfs.sync.frames import FrameReader
from ctxfs.sync.free_memory import WORTH_BYTES, FreeMemory
from ctxfs.sync.protocol import Check, CheckDone, Ready, Reply, Request
from ctxfs.sync.recovery import recover

MANY = 100


class Mount:
    """What a mount's upkeep looks at."""

    def __init__(self, directory: Path) -> None:
        self.db = TreeDB(directory / 'tree.db')
        self.journal = Journal(self.db)
        recover(self.db, self.journal, Staging(directory / 'staging'), uid=0, gid=0)
        self.known, self.is_listed = 0, False
        self.upkeep = MemoryUpkeep(self.db, known=lambda: self.known, is_listed=lambda: self.is_listed)

    def is_given_back(self, *, known: int, is_listed: bool = False, has_grown: bool = True) -> bool:
        """Whether the next look does, when so many are known and the process has grown."""
        self.known, self.is_listed = known, is_listed
        before, self.upkeep.free._left = self.upkeep.free.given_back, 0 if has_grown else 1 << 60
        self.upkeep.look()
        return self.upkeep.free.given_back > before


@pytest.fixture
def mount(tmp: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_upkeep, 'MANY', MANY)
    mount = Mount(tmp)
    yield mount
    mount.db.close()


def test_the_end_of_the_listing_is_a_moment(mount: Mount) -> None:
    """And once more the next moment when no inodes come or go; what is looked at afterwards is none."""
    assert not mount.is_given_back(known=10)
    assert mount.is_given_back(known=20, is_listed=True)
    assert not mount.is_given_back(known=30, is_listed=True)
    assert mount.is_given_back(known=30, is_listed=True)
    assert not any(mount.is_given_back(known=known, is_listed=True) for known in (30, 20, 10 * MANY, 10 * MANY))


def test_many_forgotten_inodes_are_a_moment(mount: Mount) -> None:
    """Also when they go few at a time, and again when as many came and went."""
    assert not any(mount.is_given_back(known=known) for known in (5 * MANY, 5 * MANY - 1, 4 * MANY + 1))
    assert mount.is_given_back(known=4 * MANY)
    assert not any(mount.is_given_back(known=known) for known in (4 * MANY - 1, 6 * MANY, 5 * MANY + 1))
    assert mount.is_given_back(known=MANY - 1)
    assert not mount.is_given_back(known=0)
    assert mount.is_given_back(known=0)
    assert not mount.is_given_back(known=0)


def test_a_small_context_is_not_worth_it(mount: Mount) -> None:
    """The process has hardly grown."""
    assert not any(mount.is_given_back(known=known, is_listed=True, has_grown=False) for known in (10, 5 * MANY, 0, 0))


def test_the_database_lets_go_of_its_pages(mount: Mount) -> None:
    """And inodes that are in use stay the same ones."""
    with mount.db.transaction():
        for number in range(20_000):
            mount.journal.note_unmountable(str(number), 'x' * 200)
    root = mount.db.inode(ROOT_INO)
    before = free_memory.resident()
    mount.db.let_go()
    free_memory.FreeMemory().give_back()
    assert before - free_memory.resident() > 3 << 20
    assert mount.db.inode(ROOT_INO) is root is mount.db.live_inode(ROOT_INO)
    gone = weakref.ref(root)
    del root
    assert gone() is None and mount.db.live_inode(ROOT_INO) is None


def test_it_is_worth_it_for_a_process_that_has_grown() -> None:
    """Since it began, or since the last time."""
    memory = FreeMemory()
    assert not memory.has_grown()
    held = bytearray(2 * WORTH_BYTES)
    assert memory.has_grown()
    memory.give_back()
    assert not memory.has_grown() and len(held) == 2 * WORTH_BYTES


# --- the worker ------------------------------------------------------------------------------------------------------------------------

class Context:
    """Of a worker whose operations wait until they may end."""

    def __init__(self) -> None:
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def attend(self, operation: object) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def work(self, context: Context, operation: Check, channel: object) -> CheckDone:
        self.has_begun.set()
        assert self.may_end.wait(30)
        return CheckDone()


def test_a_worker_gives_back_when_it_has_worked_and_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, not while it is at work, and it answers as before."""
    rests: queue.SimpleQueue[bool] = queue.SimpleQueue()
    silent = worker.Pipe.is_silent

    def is_silent(pipe: worker.Pipe, seconds: float) -> bool:
        found = silent(pipe, seconds)
        rests.put(found)
        return found
    monkeypatch.setattr(worker, '_REST_SECONDS', 0.01)
    monkeypatch.setattr(worker.Pipe, 'is_silent', is_silent)
    given_back = queue.SimpleQueue[bool]()
    monkeypatch.setattr(FreeMemory, 'give_back', lambda self: given_back.put(True))
    monkeypatch.setattr(FreeMemory, 'has_grown', lambda self: True)
    ours, theirs = socket.socketpair()
    context = Context()
    process = threading.Thread(target=worker.Worker(worker.Pipe(theirs), context, {Check: context.work}, 2).run)
    process.start()
    daemon = worker.Pipe(ours)
    try:
        daemon.send(Request(id=1, operation=Check()))
        assert context.has_begun.wait(30)
        while rests.qsize():
            rests.get()
        assert all(rests.get(timeout=30) for _ in range(3)) and given_back.empty()      # it rests, and is at work
        context.may_end.set()
        assert given_back.get(timeout=30)
        daemon.send(Request(id=2, operation=Check()))
        assert given_back.get(timeout=30) and given_back.empty()
    finally:
        context.may_end.set()
        ours.shutdown(socket.SHUT_WR)
        process.join(30)
        theirs.close()
        said = FrameReader().feed(b''.join(iter(lambda: ours.recv(65536), b'')))
        ours.close()
    assert [type(protocol.decode_from_worker(body)) for body in said] == [Ready, Reply, Reply]


def test_all_threads_share_a_heap() -> None:
    """What a thread's own heap has at its end would not be given back."""
    code = """
import threading
from ctxfs.sync import free_memory
free_memory.use_one_heap()
bytes(24 << 20)         # from here on the C library keeps more, as after any large answer of a store
held, together = [], threading.Barrier(4)
def work():
    together.wait()
    held.append([bytes(2000) for _ in range(8000)])
    together.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
grown = free_memory.resident()
held.clear()
free_memory.FreeMemory().give_back()
print(grown - free_memory.resident())
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 56 << 20, done.stdout
