"""SIGKILL at random instants under a small load, hundreds of times: every promise is kept, and nobody promises through the mount.

Owns the rounds and the promises: what returned (close, fsync, rename …) is there after the next mount; what `sync` had returned for is in
the bucket, seen without ctxfs. `CTXFS_FUZZ_ROUNDS` kills in all (40), drawn from `CTXFS_FUZZ_SEED` or from the system; printed. The hosts
are forked (tests/crash/zygote.py); tests/crash/test_kill_daemon.py has fewer rounds with executed ones, and other loads.
"""
from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctxfs.edge.client import ControlClient
from ctxfs.edge.runtime_dir import find_mounts
from ctxfs.errors import CtxfsError
from ctxfs.storage.stores import open_store
from ctxfs.sync.context_files import ContextFiles
from tests.crash.load import Load, check_against
from tests.crash.test_crash_points import Forge, Told, forge
from tests.crash.watch import kill_children
from tests.model import observe
from tests.model.hosts import IS_DOUBLE
from tests.model.operations import Operation, Side, perform
from tests.mount import harness

__all__ = ['forge']

ROUNDS = int(os.environ.get('CTXFS_FUZZ_ROUNDS', '40'))
SEED = int(os.environ.get('CTXFS_FUZZ_SEED') or random.SystemRandom().randrange(1 << 32))
#: tests that share the rounds; each has a context of its own
SITES = 4
#: files and directories beyond which more are removed than made
CROWD = 30

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no daemon'), pytest.mark.timeout(120 + 10 * ROUNDS // SITES)]


class Tree:
    """What the load believes to be there: names by what may be done with them."""

    def __init__(self, root: Path, rng: random.Random, first: int) -> None:
        self._rng = rng
        self._number = first
        found = [(path, path.lstat()) for path in root.rglob('*')]
        self.directories = [b'', *(_name(root, path) for path, _ in found if path.is_dir() and not path.is_symlink())]
        self.files = [_name(root, path) for path, st in found if path.is_file() and not path.is_symlink() and st.st_nlink == 1]
        #: links and symlinks: moved and removed, not written to
        self.others = [_name(root, path) for path, st in found if path.is_symlink() or (path.is_file() and st.st_nlink > 1)]

    def step(self) -> Operation:
        draw, is_crowded = self._rng.random(), len(self.files) + len(self.others) > CROWD
        if draw < 0.06:
            return ('sync',)
        if len(self.files) < 4 or (draw < 0.30 and not is_crowded):
            return (self._rng.choice(('write_file', 'save_durably')), self._new(), self._rng.choice((0, 10, 4097, 30_000, 300_000)), self._number)
        file = self._rng.choice(self.files)
        if draw < 0.5:
            return self._change(file)
        if draw < 0.62:
            return ('rename', file, self._rng.choice((self._new(), self._rng.choice(self.files))))
        if draw < 0.67 and len(self.directories) < 8:
            return ('mkdir', self._new(), 0o755)
        if draw < 0.70 and len(self.directories) > 1:
            return ('rename', self._rng.choice(self.directories[1:]), b'd%06d' % self._number)
        if draw < 0.76:
            return ('symlink', b'nowhere', self._new())
        if draw < 0.80:
            return ('link', file, self._new())
        return ('unlink', self._rng.choice(self.others or self.files) if draw < 0.9 else file)

    def _change(self, file: bytes) -> Operation:
        size = self._rng.choice((0, 1, 5000, 70_000))
        return self._rng.choice((('write_file', file, size, self._number), ('save_durably', file, size, self._number),
                                 ('patch', file, 3, 100, self._number), ('truncate', file, size), ('chmod', file, self._rng.choice((0o600, 0o755)))))

    def _new(self) -> bytes:
        self._number += 1
        return os.path.join(self._rng.choice(self.directories), b'%06d' % self._number)


def _name(root: Path, path: Path) -> bytes:
    return os.fsencode(path.relative_to(root))


def work(seed: int, first: int, oracle: Path, socket: Path) -> Iterator[Operation]:
    """In the load's process. It follows its own steps on nothing but names."""
    rng, side = random.Random(seed), Side(b'.')
    tree = Tree(oracle, rng, first)
    while True:
        step = tree.step()
        yield step
        if step[0] == 'sync':
            _sync(socket)
            continue
        outcome = perform(side, step)
        if outcome.error:
            raise OSError(outcome.error)
        _note(tree, step)


def _sync(socket: Path) -> None:
    try:
        with ControlClient(socket) as client:
            answer = client.call('sync', timeout=60)
    except CtxfsError as error:
        raise OSError(str(error)) from error
    if not answer['ok']:
        raise OSError(answer['message'])


def _note(tree: Tree, step: Operation) -> None:
    verb, path = step[0], step[1]
    if verb == 'mkdir':
        tree.directories.append(path)
    elif verb == 'symlink':
        tree.others.append(step[2])
    elif verb == 'link':
        tree.files.remove(path)
        tree.others += [path, step[2]]
    elif verb == 'unlink':
        (tree.files if path in tree.files else tree.others).remove(path)
    elif verb == 'rename' and path in tree.directories:
        for names in (tree.directories, tree.files, tree.others):
            names[:] = [_moved(name, path, step[2]) for name in names]
    elif verb == 'rename' and path != step[2]:
        tree.files.remove(path)
        tree.files += [step[2]] if step[2] not in tree.files else []
    elif verb in ('write_file', 'save_durably') and path not in tree.files:
        tree.files.append(path)


def _moved(name: bytes, old: bytes, new: bytes) -> bytes:
    return new + name[len(old):] if name == old or name.startswith(old + b'/') else name


class Ledger:
    """What was promised, outside of the mount: the oracle's directory has what was acknowledged; `synced` is what the bucket must have."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.side = Side(os.fsencode(directory))
        self.directory = directory
        self.synced: dict[bytes, bytes] = {}

    def take(self, load: Load) -> Operation | None:
        """Note what the load was promised; the step that had begun."""
        for step in load.acknowledged:
            if step[0] == 'sync':
                self.synced = {_name(self.directory, path): path.read_bytes() for path in self.directory.rglob('*')
                               if path.is_file() and not path.is_symlink()}
            else:
                perform(self.side, step)
                self._forget(step)
        step = load.in_flight
        if step is None or step[0] == 'sync':
            return None
        self._forget(step)
        return step

    def _forget(self, step: Operation) -> None:
        """The bucket may have a later version of these, or none."""
        for path in (operand for operand in step[1:3] if isinstance(operand, bytes)):
            self.synced = {name: content for name, content in self.synced.items() if name != path and not name.startswith(path + b'/')}

    def check_archives(self, store_url: str, context_id: str) -> None:
        """The same in Archive mode, read without a mount."""
        store = open_store(store_url)
        files = ContextFiles(store, context_id, host='judge')
        found = {entry.key: entry for entry in files.below('/')}
        for name, content in self.synced.items():
            assert (key := os.fsdecode(name)) in found, f'{name!r} was in the bucket when sync returned, and is not'
            assert files.read(found[key], 0, found[key].size) == content, f'{name!r} in the bucket is not what it was when sync returned'
        store.close()

    def check_bucket(self, root: Path) -> None:
        """By looking at the store's directory."""
        for name, content in self.synced.items():
            path = root / os.fsdecode(name)
            assert path.exists(), f'{name!r} was in the bucket when sync returned, and is not'
            assert path.read_bytes() == content, f'{name!r} in the bucket is not what it was when sync returned'


def kill(rng: random.Random, host: Any, at: Path, load: Load, pid: int) -> None:
    """After some steps, in the middle of one; now and then its workers a little before."""
    instant = rng.randrange(1, 25)
    if rng.random() < 0.2:
        load.until(rng.randrange(instant))
        kill_children(pid)
    load.until(instant)
    time.sleep(rng.random() * 0.004)
    host.kill9(at, pid=pid)
    load.end()


@pytest.mark.parametrize('number', range(SITES))
def test_no_promise_is_broken(number: int, forge: Forge, tmp_path: Path) -> None:
    """After close, fsync and sync; and the state directory never contradicts itself."""
    _kill_again_and_again(number, forge, tmp_path, -(-ROUNDS // SITES))


def test_no_promise_is_broken_in_archive_mode(forge: Forge, tmp_path: Path) -> None:
    """The same, with files that are members of archives."""
    policy = tmp_path / 'archive.json'
    policy.write_text('{"uploadPolicy": {"uploadMode": "Archive"}}')
    _kill_again_and_again(SITES, forge, tmp_path, -(-ROUNDS // (2 * SITES)), '--policy', str(policy))


def _kill_again_and_again(number: int, forge: Forge, tmp_path: Path, rounds: int, *options: str) -> None:
    print(f'CTXFS_FUZZ_SEED={SEED} CTXFS_FUZZ_ROUNDS={ROUNDS}')
    rng = random.Random(f'{SEED} {number}')
    store, at = tmp_path / 'store', tmp_path / 'mnt'
    store.mkdir()
    at.mkdir()
    since, ledger, in_flight, turn = time.time_ns(), Ledger(tmp_path / 'oracle'), None, 0
    host = forge.host(tmp_path, 'state', f'file://{store}?fsync=no')
    try:
        for turn in range(rounds):
            host.mount('c', at, create=True, options=('--sync-every', rng.choice(('0', '1', 'unmount')), *options))
            mount, = find_mounts(host.runtime / 'ctxfs')
            check_against(ledger.side, Told(in_flight), at, since)  # type: ignore[arg-type]
            load = Load(lambda s=rng.randrange(1 << 30), n=turn * 1000, m=mount: work(s, n, ledger.directory, m.socket), at, 100_000)
            kill(rng, host, at, load, mount.record.pid)
            in_flight = ledger.take(load)
            if options:
                ledger.check_archives(host.store, mount.record.context_id)
            else:
                ledger.check_bucket(store / 'contexts' / mount.record.context_id)
            if rng.random() < 0.1:      # may be lost at any time
                shutil.rmtree(next(host.state_dir.glob('*/cache')))
        host.mount('c', at)
        check_against(ledger.side, Told(in_flight), at, since)  # type: ignore[arg-type]
        host.unmount(at)
        _reach_another_host(forge, host, at, tmp_path)
    except BaseException:
        print(f'round {turn}')
        raise
    finally:
        if harness.leftovers.mounts_below(at):
            host.kill9(at)


def _reach_another_host(forge: Forge, host: Any, at: Path, work_dir: Path) -> None:
    host.mount('c', at)
    got = observe.snapshot(os.fsencode(at))
    host.unmount(at)
    other = forge.host(work_dir, 'other', host.store)
    other.mount('c', at)
    elsewhere = observe.snapshot(os.fsencode(at))
    other.unmount(at)
    assert observe.differences(elsewhere, got, directory_times=False) == []
