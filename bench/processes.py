"""Processes of the bench: modules of it as processes of their own, commands, and what a tree of processes costs.

Owns how a process is started and ended (by its pid), and the reading of /proc. It must not know what is measured.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
#: no command that is measured may take longer; less for other mounts
PATIENCE: ContextVar[float] = ContextVar('PATIENCE', default=900.0)
MEGABYTE = 1_000_000


class Failed(Exception):
    """What was to be measured did not work: one line for a person."""


class Memory(NamedTuple):
    """Megabytes of all processes: PSS counts a page that n of them share n times 1/n, RSS n times."""

    pss: float
    rss: float


def start_module(name: str, *arguments: str, stdin: int | None = subprocess.DEVNULL, stdout: int | IO[bytes] | None = None,
                 env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """`main()` of a module of the bench, isolated from the user's Python environment."""
    code = f'import sys; sys.path[:0] = [{str(ROOT)!r}]; from {name} import main; main()'
    return subprocess.Popen([sys.executable, '-I', '-c', code, *arguments], stdin=stdin, stdout=stdout, env={**os.environ, **(env or {})})


def end(process: subprocess.Popen[bytes], *, seconds: float = 20.0) -> None:
    """Its stdin is closed, which some take as a sign, then it is terminated, then killed."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run(*command: str | os.PathLike[str], statuses: Sequence[int] = (0,), env: Mapping[str, str] | None = None,
        cwd: Path | None = None) -> bytes:
    """stdout of a command that ends with one of `statuses`. Failed with what it said otherwise."""
    words = [os.fspath(word) for word in command]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False, cwd=cwd, timeout=PATIENCE.get(),
                          env={**os.environ, **(env or {})})
    if done.returncode not in statuses:
        said = done.stderr.decode(errors='replace').strip() or done.stdout.decode(errors='replace').strip()
        raise Failed(f'{" ".join(words)[:100]}: status {done.returncode}: {said.splitlines()[-1] if said else "it says nothing"}')
    return done.stdout


def wait_until(holds: Callable[[], object], what: str, *, seconds: float = 60.0, every: float = 0.02) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise Failed(f'{what}: not within {seconds:.0f} s')
        time.sleep(every)


def family(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for parent in found:
        for children in Path(f'/proc/{parent}/task').glob('*/children'):
            found += map(int, children.read_text().split())
    return found


def memory(pids: Iterable[int]) -> Memory:
    pss = rss = 0
    for pid in pids:
        for line in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()[1:]:
            name, kilobytes, *_ = line.split()
            pss += 1024 * int(kilobytes) if name == 'Pss:' else 0
            rss += 1024 * int(kilobytes) if name == 'Rss:' else 0
    return Memory(pss / MEGABYTE, rss / MEGABYTE)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Of all threads that live now, to the nanosecond."""
    return sum(int(file.read_text().split()[0]) for pid in pids for file in Path(f'/proc/{pid}/task').glob('*/schedstat')) / 1e9


def forget() -> None:
    """Has the kernel drop names and inodes that nobody uses, for which a FUSE daemon gets forgets. Root's."""
    Path('/proc/sys/vm/drop_caches').write_text('2')
