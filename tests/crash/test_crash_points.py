"""SIGKILL at every named place: CTXFS_CRASH_POINT makes the daemon, or a worker, kill itself there.

Owns the work that leads through all of them. A point that this work does not reach fails the test: nobody would know that it holds.
"""
from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ctxfs.sync import crash_points
from tests.crash.watch import eventually, is_running
from tests.model import observe
from tests.model.hosts import IS_DOUBLE, Site
from tests.model.operations import Operation, Side, content, perform
from tests.mount.harness import CommandFailed
from tests.mount.sites import site_maker

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no daemon'), pytest.mark.timeout(200)]

#: what another host left there before
BEFORE = [('mkdir', b'old', 0o755), *(('write_file', b'old/f%d' % n, 5000, n) for n in range(8)), ('write_file', b'large', 3 << 20, 9),
          ('symlink', b'large', b'soft')]
#: each step leads to other transfers: reads, hydration, uploads, copies, removals, markers, index records
WORK = [('write_file', b'new', 70_000, 1), ('mkdir', b'empty', 0o700), ('symlink', b'new', b'link'), ('rename', b'old/f0', b'renamed'),
        ('rename', b'old', b'moved'), ('unlink', b'moved/f1'), ('chmod', b'moved/f2', 0o640), ('write_file', b'moved/f3', 100, 4),
        ('link', b'new', b'hard'), ('truncate', b'moved/f4', 10), ('utimens', b'moved/f5', 1_000_000_000_123_456_789, True),
        ('read_whole', b'renamed'), ('patch', b'large', 1_000_000, 1000, 77), ('write_file', b'big', 20 << 20, 5)]
#: left behind by a crash for the recovery of an armed mount
RECOVERED = [('write_file', b'late', 3000, 6), ('unlink', b'moved/f6'), ('rename', b'moved/f7', b'last'), ('truncate', b'moved/f2', 0)]


#: need white lists, or a store without compare and swap: tests/mount/test_white_lists.py, test_providers.py
ELSEWHERE = {'localise-after-stage', 'turn-after-make'}


@pytest.mark.parametrize('name', [name for name in crash_points.NAMES if name not in ELSEWHERE])
def test_nothing_is_lost_at(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Whoever dies there, what was acknowledged is there after the next mount, and reaches another host."""
    site = site_maker('file', request)(tmp_path)
    since = time.time_ns()
    left_by_another_host(site)
    armed = Armed(site, tmp_path / 'oracle', name)
    armed.work()
    if not armed.is_hit():      # the point lies in recovery: die there on the way up
        armed.mount_again()
    assert armed.is_hit(), f'nothing that this test does leads by {name}'
    host, at = armed.host, armed.at
    host.mount('c', at)
    got = observe.snapshot(os.fsencode(at))
    armed.check(got, since)
    host.unmount(at)
    other = site.host()
    other.mount('c', at)
    elsewhere = observe.snapshot(os.fsencode(at))
    other.unmount(at)
    assert observe.differences(elsewhere, got, directory_times=False) == []


def left_by_another_host(site: Site) -> None:
    host, at = site.host(), site.mount_point()
    host.mount('c', at, create=True)
    side = Side(os.fsencode(at))
    for step in BEFORE:
        assert perform(side, step).error is None
    host.unmount(at)


class Armed:
    """A host whose daemon and workers die at one point, and the local directory that has what they acknowledged."""

    def __init__(self, site: Site, oracle: Path, name: str) -> None:
        self.host: Any = site.host()
        self.at = site.mount_point()
        self._name = name
        self._env = {'CTXFS_CRASH_POINT': name}
        self._mounted = Side(os.fsencode(self.at))
        oracle.mkdir()
        self._oracle = Side(os.fsencode(oracle))
        for step in BEFORE:
            assert perform(self._oracle, step).error is None
        self._daemon_died = False
        self._pid = 0
        self._uncertain: set[bytes] = set()

    def is_hit(self) -> bool:
        """Whether the daemon died without being told to, or it told its log that a worker did."""
        logs = self.host.state_dir.rglob('ctxfs.log')
        return self._daemon_died or any(re.search(r'transfer worker \d+ ended', log.read_text(errors='replace')) for log in logs)

    def work(self) -> None:
        """Until something dies or all is written back; then nothing of this mount runs any more."""
        self.host.mount('c', self.at, env=self._env)
        self._pid = self.host.pid(self.at)
        for step in WORK:
            self._step(step)
        for n in range(70 if 'compact' in self._name else 2):
            self._command('sync', self.at)
            if self.is_hit() or not is_running(self._pid):
                break
            self._step(('write_file', b'again', 1000 + n, n))
        subprocess.run(['fusermount3', '-u', str(self.at)], capture_output=True, check=False)
        self._settle()

    def mount_again(self) -> None:
        """A crash with pending work, then an armed mount that recovers."""
        self.host.mount('c', self.at)
        self._pid = self.host.pid(self.at)
        for step in RECOVERED:
            self._step(step)
        self._kill(self._pid)
        try:
            self.host.mount('c', self.at, env=self._env)
        except CommandFailed:
            self._daemon_died = True
            self._kill(None)
            return
        self._pid = self.host.pid(self.at)
        self._command('sync', self.at)
        subprocess.run(['fusermount3', '-u', str(self.at)], capture_output=True, check=False)
        self._settle()

    def _settle(self) -> None:
        """After an unmount: until something died or all is written back; then nothing runs any more."""
        eventually('a death, or the end', lambda: self.is_hit() or not is_running(self._pid), seconds=60)
        self._daemon_died = not is_running(self._pid) and self._command('wait', 'c', '--timeout', '5') != 0
        self._kill(self._pid)

    def check(self, got: observe.Tree, since_ns: int) -> None:
        """`got` is the oracle's tree, but for files whose last operation failed: they have the old content or the new."""
        want = observe.snapshot(self._oracle.root)
        assert self._uncertain <= {b'large'}
        lines = observe.differences(got, want, since_ns=since_ns)
        assert [line for line in lines if not line.startswith(tuple(f'{path!r}: ' for path in self._uncertain))] == []
        if self._uncertain:
            patched = bytearray(want[b'large'].content)
            patched[1_000_000:1_001_000] = content(1000, 77)
            assert got[b'large'].content in (want[b'large'].content, bytes(patched))

    def _step(self, step: Operation) -> None:
        """On the mount, then on the oracle; what fails, failed because the daemon is dead or its workers are."""
        if self._daemon_died or not is_running(self._pid):
            return
        outcome = perform(self._mounted, step)
        if outcome.error is None:
            assert perform(self._oracle, step) == outcome
            return
        assert self.is_hit() or not is_running(self._pid), f'{step} is {outcome} although nothing died'
        if step[0] == 'patch':
            self._uncertain.add(step[1])

    def _command(self, *arguments: object) -> int:
        """Its exit status; 1 also where it waits for what cannot come."""
        try:
            return self.host.cli(*arguments, check=False, timeout=8).returncode
        except subprocess.TimeoutExpired:
            return 1

    def _kill(self, pid: int | None) -> None:
        if pid is not None and is_running(pid):
            os.kill(pid, signal.SIGKILL)
            eventually('the daemon is gone', lambda: not is_running(pid))
        subprocess.run(['fusermount3', '-uz', str(self.at)], capture_output=True, check=False)
