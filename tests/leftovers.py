"""What a test run must not leave behind: mounts, processes, temporary directories; and how to take them away.

Owns the rule by which something is ours: a mount lies below the run's directory, a process has the run's marker in its environment, a
temporary file lies in the run's directory. Never a name, for other ctxfs mounts may run on the same machine. It must not know pytest.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

#: in the environment of every process that a run starts; the value names the run
RUN_VARIABLE = 'CTXFS_TEST_RUN'
#: the same for one test
TEST_VARIABLE = 'CTXFS_TEST_ID'
#: what a run has in its directory on purpose
EXPECTED_NAMES = frozenset({'home', 'run'})
#: tries of removing a directory that somebody still uses
REMOVALS = 5
CONNECTIONS = Path('/sys/fs/fuse/connections')


class Process(NamedTuple):
    pid: int
    command: str


class Mounted(NamedTuple):
    path: str
    connection: int


def mounts_below(root: os.PathLike[str] | str) -> list[Mounted]:
    """Mounts at `root` or below it, the deepest and latest first; read from the kernel's table, for a stat of a dead mount may hang."""
    top = os.path.realpath(root)
    found = []
    for line in Path('/proc/self/mountinfo').read_bytes().splitlines():
        fields = line.split(b' ')
        path = os.fsdecode(re.sub(rb'\\([0-7]{3})', lambda m: bytes([int(m[1], 8)]), fields[4]))
        if path == top or path.startswith(top + '/'):
            found.append(Mounted(path, int(fields[2].split(b':')[1])))
    return found[::-1]


def abort(root: os.PathLike[str] | str) -> None:
    """End every request that waits for a FUSE daemon below `root`: even SIGKILL does not end a process that waits in a lookup."""
    for mounted in mounts_below(root):
        try:
            (CONNECTIONS / str(mounted.connection) / 'abort').write_text('1')
        except OSError:  # fusectl is not mounted here; umount -f does the same, for root
            if os.geteuid() == 0:
                subprocess.run(['umount', '-f', '--', mounted.path], capture_output=True, check=False, timeout=30)


def unmount_all(root: os.PathLike[str] | str) -> list[str]:
    """Take away every mount below `root`, alive or dead; returns where they were."""
    found = mounts_below(root)
    for mounted in found:
        subprocess.run(['fusermount3', '-uz', '--', mounted.path], capture_output=True, check=False, timeout=30)
    for mounted in mounts_below(root):  # not FUSE, or not ours to unmount by fusermount3
        subprocess.run(['umount', '-l', '--', mounted.path], capture_output=True, check=False, timeout=30)
    return [mounted.path for mounted in found]


def processes(variable: str, value: str, *, among: Iterable[int] | None = None) -> list[Process]:
    """Living processes that were started with `variable=value` in their environment, this one excepted."""
    wanted = b'\0' + os.fsencode(f'{variable}={value}') + b'\0'
    found = []
    for pid in pids() if among is None else among:
        try:
            if pid != os.getpid() and wanted in b'\0' + Path(f'/proc/{pid}/environ').read_bytes() + b'\0':
                found.append(
                    Process(pid, Path(f'/proc/{pid}/cmdline').read_bytes().replace(b'\0', b' ').decode('utf-8', 'replace').strip())
                )
        except OSError:  # it ended meanwhile, or belongs to somebody else and so is not ours
            continue
    return found


def pids() -> set[int]:
    return {int(name) for name in os.listdir('/proc') if name.isdigit()}


def wait_for_end(found: Iterable[Process], timeout: float) -> list[Process]:
    """Those of `found` that still run after `timeout` seconds; returns as soon as none does."""
    deadline = time.monotonic() + timeout
    return [process for process in found if not _ended(process.pid, max(0.0, deadline - time.monotonic()))]


def _ended(pid: int, timeout: float) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()  # select() fails for descriptors of 1024 and more
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    finally:
        os.close(handle)


def kill(found: Iterable[Process]) -> None:
    """SIGKILL each and wait until it is gone (bounded: one in an uninterruptible wait stays)."""
    found = list(found)
    for process in found:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    wait_for_end(found, 10)


def remove_tree(root: Path) -> None:
    """rm -rf, mounts inside it unmounted first, directories without permissions included."""
    unmount_all(root)
    for directory, names, _ in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            with contextlib.suppress(FileNotFoundError):
                if not os.path.islink(path) and os.lstat(path).st_mode & stat.S_IRWXU != stat.S_IRWXU:
                    os.chmod(path, stat.S_IRWXU)
    for _ in range(REMOVALS - 1):   # what a daemon that ends takes away itself, or puts there
        with contextlib.suppress(OSError):
            shutil.rmtree(root)
            return
    shutil.rmtree(root)


def report(root: Path, run: str, *, grace: float = 20) -> list[str]:
    """Lines about everything that the run left, after `grace` seconds for daemons that are about to end. Takes it all away."""
    left = [f'process {process.pid}: {process.command}' for process in wait_for_end(processes(RUN_VARIABLE, run), grace)]
    left += [f'mount: {mounted.path}' for mounted in mounts_below(root)]
    kill(processes(RUN_VARIABLE, run))
    abort(root)
    unmount_all(root)
    left += [f'temporary file: {root / name}' for name in sorted(set(os.listdir(root)) - EXPECTED_NAMES)]
    remove_tree(root)
    return left


def complain(lines: list[str]) -> None:
    for line in lines:
        print(f'left behind: {line}', file=sys.stderr)
