"""Two hosts at work on one context, for so many minutes, while what they use of the machine is sampled; started by scripts/soak.

Owns the workload and the samples. What is worked on stays of one size, so whatever grows after the warm-up is a leak: resident memory of
daemons and workers, descriptors, threads, the state directory without its cache, the bucket's own objects of ctxfs. It ends with a table, and
with status 1 where something grows, an operation failed, or a mount does not end cleanly.
"""
from __future__ import annotations

import argparse
import collections
import contextlib
import errno
import json
import math
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]

from soak_trend import Allowance, table, trend  # noqa: E402 - this script runs isolated, without its directory on the path

from tests import leftovers  # noqa: E402
from tests.crash.watch import children  # noqa: E402
from tests.mount.harness import CommandFailed, Host  # noqa: E402
from tests.servers import ministack  # noqa: E402

MIB = 1 << 20
#: names in a directory of the workload, about
FILES = 40
DIRECTORIES = 6
#: --cache-size: the cache may fill up to it
CACHE_MIB = 64
ALLOWED = {'daemon MiB': Allowance(6, 0.05), 'workers MiB': Allowance(8, 0.05), 'descriptors': Allowance(6, 0.05), 'threads': Allowance(2, 0),
           'state MiB': Allowance(3, 0.2), 'cache MiB': Allowance(CACHE_MIB, 0), 'index objects': Allowance(40, 0.5)}
#: from here on the index is judged, too
INDEX_SECONDS = 1800.0
#: what two hosts in one directory do to each other
EXPECTED = {errno.ENOENT, errno.ESTALE, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR}


class Work(threading.Thread):
    """Programs on one mount, `rate` operations a second: half in directories of its own, half in those that both hosts change."""

    def __init__(self, root: Path, name: str, seed: int, rate: float) -> None:
        super().__init__(name=f'work-{name}', daemon=True)
        self._root, self._own, self._rate = root, name, rate
        self._random = random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self.failure = ''
        self.is_over = threading.Event()

    def run(self) -> None:
        moves: list[Callable[[Path], None]] = [*[self.create, self.read] * 3, *[self.append, self.replace, self.remove] * 2,
                                               self.rename, self.link, self.patch, self.walk]
        while not self.is_over.wait(self._random.expovariate(self._rate)):
            move, place = self._random.choice(moves), self._random.choice([self._own, 'both'])
            try:
                move(self._directory(place))
                self.counts[move.__name__] += 1
            except OSError as error:
                # the kernel's word for a write-back that was answered ESTALE: the other host replaced what was opened for writing
                if error.errno not in EXPECTED and (error.errno, place) != (errno.EIO, 'both'):
                    self.failure = f'{move.__name__} in {place}: {error}'
                    return
                self.counts['overtaken'] += 1

    def _directory(self, place: str) -> Path:
        directory = self._root / place / f'd{self._random.randrange(DIRECTORIES)}'
        directory.mkdir(parents=True, exist_ok=True)
        names = os.listdir(directory)
        for name in names if len(names) > 2 * FILES else [n for n in names if '.conflict-' in n]:
            with contextlib.suppress(FileNotFoundError):
                (directory / name).unlink()
        return directory

    def _some(self, directory: Path) -> Path:
        return directory / f'f{self._random.randrange(FILES)}'

    def _bytes(self, most: int) -> bytes:
        return self._random.randbytes(self._random.randrange(most))

    def create(self, directory: Path) -> None:
        self._some(directory).write_bytes(self._bytes(20_000))

    def append(self, directory: Path) -> None:
        path = self._some(directory)
        if path.exists() and path.stat().st_size > 200_000:
            os.truncate(path, 0)
        with path.open('ab') as f:
            f.write(self._bytes(30_000))

    def replace(self, directory: Path) -> None:
        temporary = directory / f'.tmp-{self._own}'
        with temporary.open('wb') as f:
            f.write(self._bytes(50_000))
            os.fsync(f.fileno())
        temporary.rename(self._some(directory))

    def rename(self, directory: Path) -> None:
        self._some(directory).rename(self._some(directory))

    def remove(self, directory: Path) -> None:
        self._some(directory).unlink()

    def read(self, directory: Path) -> None:
        self._some(directory).read_bytes()

    def link(self, directory: Path) -> None:
        os.link(self._some(directory), self._some(directory))

    def patch(self, directory: Path) -> None:
        with self._some(directory).open('r+b') as f:
            f.seek(self._random.randrange(10_000))
            f.write(b'patched')

    def walk(self, directory: Path) -> None:
        for path in (self._root / self._random.choice(['a', 'b', 'both'])).rglob('*'):
            path.lstat()


# --- samples ---------------------------------------------------------------------------------------------------------------------------

def resident(pid: int) -> float:
    try:
        for line in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines():
            if line.startswith('Pss:'):     # workers share pages with each other: each counts its part
                return int(line.split()[1]) / 1024
    except OSError:     # a worker that ended meanwhile
        pass
    return 0.0


def size_below(directory: Path, *, without: str = '') -> float:
    total = 0
    for parent, names, files in os.walk(directory):
        names[:] = [name for name in names if name != without]
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total / MIB


class Samples:
    """(second, value) of each figure of a host."""

    def __init__(self, host: Host, at: Path) -> None:
        status = host.status(at)
        self._pid, self._state = int(status['pid']), Path(status['stateDir'])
        self.figures: dict[str, list[tuple[float, float]]] = {}

    def take(self, second: float) -> None:
        for name, value in self._now().items():
            self.figures.setdefault(name, []).append((second, value))

    def _is_block(self, descriptor: Path) -> bool:
        """A cached block that is kept open: as many as a bound of their own allows."""
        try:
            return os.readlink(descriptor).startswith(f'{self._state}/cache/')
        except FileNotFoundError:
            return True

    def _now(self) -> dict[str, float]:
        proc = Path(f'/proc/{self._pid}')
        return {'daemon MiB': resident(self._pid), 'workers MiB': sum(map(resident, children(self._pid))),
                'descriptors': float(sum(not self._is_block(proc / 'fd' / fd) for fd in os.listdir(proc / 'fd'))),
                'threads': float(len(os.listdir(proc / 'task'))),
                'state MiB': size_below(self._state, without='cache'), 'cache MiB': size_below(self._state / 'cache')}


def index_objects(bucket: list[object], context: str) -> float:
    client, name = bucket
    pages = client.get_paginator('list_objects_v2').paginate(Bucket=name, Prefix=f'contexts/{context}/.ctxfs/')  # type: ignore[attr-defined]
    return float(sum(len(page.get('Contents', [])) for page in pages))


# --- the run ---------------------------------------------------------------------------------------------------------------------------

def soak(arguments: argparse.Namespace, work: Path) -> int:
    with ministack() as server, contextlib.closing(server.client()) as client:
        bucket = server.make_bucket()
        hosts = {name: (Host(work / f'state-{name}', store=server.url(bucket), env=server.environment), work / f'm-{name}') for name in 'ab'}
        faults: list[str] = []
        with mounted(hosts, faults):
            samples = {name: Samples(host, at) for name, (host, at) in hosts.items()}
            context = hosts['a'][0].json('context', 'show', 'soak')['id']
            threads = [Work(at, name, arguments.seed + n, arguments.rate) for n, (name, (_, at)) in enumerate(hosts.items())]
            index: list[tuple[float, float]] = []
            for thread in threads:
                thread.start()
            began = time.monotonic()
            while (second := time.monotonic() - began) < arguments.minutes * 60 and not any(thread.failure for thread in threads):
                for sample in samples.values():
                    sample.take(second)
                index.append((second, index_objects([client, bucket], context)))
                time.sleep(max(0.5, arguments.minutes / 5))
            for thread in threads:
                thread.is_over.set()
            for thread in threads:
                thread.join()
        figures = {f'{name}: {figure}': taken for name, sample in samples.items() for figure, taken in sample.figures.items()}
        return tell({**figures, 'index objects': index}, threads, hosts, faults)


@contextlib.contextmanager
def mounted(hosts: dict[str, tuple[Host, Path]], faults: list[str]) -> Iterator[None]:
    """`faults`: of mounts that do not end cleanly."""
    for host, at in hosts.values():
        at.mkdir()
        host.mount('soak', at, create=True, options=('--sync-every', '2s', '--poll-every', '1s', '--cache-size', f'{CACHE_MIB}M'))
    yield
    for host, at in hosts.values():
        try:
            host.unmount(at)
        except CommandFailed as error:
            faults.append(str(error).splitlines()[-1])


def tell(figures: dict[str, list[tuple[float, float]]], threads: list[Work], hosts: dict[str, tuple[Host, Path]],
         faults: list[str]) -> int:
    trends = {name: trend(samples, ALLOWED[name.split(': ')[-1]]) for name, samples in figures.items()}
    if figures['index objects'][-1][0] < INDEX_SECONDS:     # what has been merged is removed ten minutes later
        trends['index objects'] = trends['index objects']._replace(allowed=math.inf)
    print(table(trends))
    for thread in threads:
        told = ', '.join(f'{count:,} {kind}' for kind, count in sorted(thread.counts.items()))
        print(f'{thread.name}: {sum(thread.counts.values()):,} operations: {told}')
    faults += [f'{thread.name}: {thread.failure}' for thread in threads if thread.failure]
    faults += [f'{name} grows' for name, found in trends.items() if not found.is_flat]
    for host, _ in hosts.values():
        answer = json.loads(host.cli('doctor', '--state', 'soak', '--json', check=False).stdout)
        faults += [finding['text'] for finding in answer['findings'] if finding['level'] == 'fail']
    for fault in faults:
        print(f'soak: {fault}', file=sys.stderr)
    for host, _ in hosts.values() if faults else ():
        for log in host.state_dir.glob('*/ctxfs.log'):
            lines = [line for line in log.read_text(errors='replace').splitlines() if ' WARNING ' in line or ' ERROR ' in line]
            print(f'{log}:', *lines[-20:], sep='\n  ', file=sys.stderr)
    return 1 if faults else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog='scripts/soak', description='Two hosts at work on one context; fails where what they use grows.')
    parser.add_argument('minutes', nargs='?', type=float, default=10.0, help='how long (default: 10)')
    parser.add_argument('--rate', type=float, default=40.0, metavar='N', help='operations a second of each host (default: 40)')
    parser.add_argument('--seed', type=int, default=1, metavar='N', help='of the workload (default: 1)')
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix='ctxfs-soak-'))
    (work / 'run').mkdir(mode=0o700)
    os.environ.update({'XDG_RUNTIME_DIR': str(work / 'run'), leftovers.RUN_VARIABLE: work.name})
    status = 1
    try:
        status = soak(arguments, work)
    finally:
        leftovers.unmount_all(work)
        leftovers.kill(leftovers.wait_for_end(leftovers.processes(leftovers.RUN_VARIABLE, work.name), 20))
        if status:
            print(f'soak: the states and logs are kept in {work}', file=sys.stderr)
        else:
            shutil.rmtree(work, ignore_errors=True)
    return status


if __name__ == '__main__':
    sys.exit(main())
