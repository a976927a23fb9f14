"""Times a mounted context beside the local disk and prints ratios; started by scripts/bench. Asserts nothing: figures are for people.

Owns how it is measured. Local disk and mount do the same work in fresh directories on the same file system, one after the other in the
same round, in alternating order; before each timing all dirty pages are written out, so that nobody pays for another's. What is said
of a step is the ratio of the two medians, with the smallest and the largest ratio of one round; and, since other load only ever adds
time, the ratio of the two fastest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]

import bench_busy  # noqa: E402
import bench_status  # noqa: E402 - this script runs isolated, without its directory on the path
import bench_tree  # noqa: E402

MIB = 1 << 20
FLUSH = 'flush'
STATUS = 'status'
BUSY = 'busy'
FLUSH_TARGET = 600
ARCHIVE = 'tree.tar'


class Step(NamedTuple):
    """`work(directory, arguments)` is timed; `warm`: it runs once before, untimed. Steps of a group follow each other in one directory."""

    name: str
    target: float
    group: str
    warm: bool
    work: Callable[[Path, argparse.Namespace], None]


class Side(NamedTuple):
    name: str
    directory: Path


def unpack(directory: Path, arguments: argparse.Namespace) -> None:
    run('tar', 'xf', arguments.dir / ARCHIVE, '-C', directory)


def find_names(directory: Path, arguments: argparse.Namespace) -> None:
    run('find', directory)


def find_attributes(directory: Path, arguments: argparse.Namespace) -> None:
    run('find', directory, '-size', '+0', '-newermt', '2001-01-01')


def grep(directory: Path, arguments: argparse.Namespace) -> None:
    run('grep', '-r', 'a string that is in none of them', directory, statuses=(1,))


def write_file(directory: Path, arguments: argparse.Namespace) -> None:
    block = os.urandom(MIB)
    with open(directory / 'large', 'wb', buffering=0) as file:
        for _ in range(arguments.large):
            file.write(block)
        os.fsync(file.fileno())


def read_file(directory: Path, arguments: argparse.Namespace) -> None:
    block, total = bytearray(MIB), 0
    with open(directory / 'large', 'rb', buffering=0) as file:
        while count := file.readinto(block):
            total += count
    if total != arguments.large * MIB:
        raise SystemExit(f'{file.name}: read {total} bytes of {arguments.large * MIB}')


STEPS = (
    Step('unpack', 1.8, 'tree', False, unpack),
    Step('find', 2.5, 'tree', True, find_names),
    Step('find-stat', 2.5, 'tree', True, find_attributes),
    Step('grep', 2.0, 'tree', True, grep),
    Step('write', 1.3, 'large file', False, write_file),
    Step('read', 2.5, 'large file', True, read_file),
)


def run(*command: str | os.PathLike[str], statuses: tuple[int, ...] = (0,)) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if done.returncode not in statuses:
        raise SystemExit(f'{" ".join(map(str, command))}: status {done.returncode}')


def measure(step: Step, side: Side, directory: Path, arguments: argparse.Namespace) -> float:
    """Seconds."""
    if step.warm:
        step.work(directory, arguments)
    os.sync()
    begin = time.perf_counter()
    step.work(directory, arguments)
    took = time.perf_counter() - begin
    if sys.stderr.isatty():
        print(f'\r  {step.name:10} {side.name:6} {took:8.3f} s ', end='', file=sys.stderr, flush=True)
    return took


def measure_round(number: int, group: str, sides: list[Side], arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """step → side → seconds, of one round of a group; who begins alternates from step to step and from round to round."""
    directories = {side: side.directory / f'{group} {number}' for side in sides}
    for directory in directories.values():
        directory.mkdir()
    found: dict[str, dict[str, float]] = {}
    for turn, step in enumerate((step for step in STEPS if step.group == group), number):
        order = sides[::-1] if turn % 2 else sides
        found[step.name] = {side.name: measure(step, side, directories[side], arguments) for side in order}
    if group == 'large file':
        # Trees stay until the end: ext4 steps around inodes that were deleted in the last seconds one by one, which would be billed to
        # whoever creates files next.
        for directory in directories.values():
            shutil.rmtree(directory)
    return found


def compare(sides: list[Side], arguments: argparse.Namespace) -> list[dict[str, object]]:
    wanted = [step for step in STEPS if not arguments.only or step.name in arguments.only]
    rounds: dict[str, list[dict[str, float]]] = {}
    for group in dict.fromkeys(step.group for step in wanted):
        for number in range(arguments.rounds):
            for name, seconds in measure_round(number, group, sides, arguments).items():
                rounds.setdefault(name, []).append(seconds)
    return [summary(step, sides, rounds[step.name]) for step in wanted]


def summary(step: Step, sides: list[Side], rounds: list[dict[str, float]]) -> dict[str, object]:
    seconds = {side.name: [one[side.name] for one in rounds] for side in sides}
    local, mount = (side.name for side in sides)
    ratios = [one[mount] / one[local] for one in rounds]
    return {
        'name': step.name,
        'target': step.target,
        'unit': 'times the local disk',
        'value': statistics.median(seconds[mount]) / statistics.median(seconds[local]),
        'min': min(ratios),
        'max': max(ratios),
        'best': min(seconds[mount]) / min(seconds[local]),
        'seconds': {name: {'median': statistics.median(all_), 'min': min(all_), 'max': max(all_)} for name, all_ in seconds.items()},
    }


@contextlib.contextmanager
def mounted(work: Path, store: str, env: dict[str, str]) -> Iterator[Path]:
    """A new context of `store`, mounted; unmounted at the end, with everything written back."""
    host, at = new_host(work, store, env), Path(tempfile.mkdtemp(dir=work, prefix='mount-'))
    host.mount('bench', at, create=True)
    try:
        yield at
    finally:
        host.unmount(at)


def new_host(work: Path, store: str, env: dict[str, str]):
    from tests.mount.harness import Host

    state = Path(tempfile.mkdtemp(dir=work, prefix='state-'))
    return Host(state, store=store, runtime=Path(tempfile.mkdtemp(prefix='ctxfs-bench-run-', dir=work)), env=env)


def flush(arguments: argparse.Namespace) -> dict[str, object]:
    """Files a second from fusermount3 -u until `ctxfs wait` says that all is in the bucket of an S3 server on this machine."""
    from tests.servers import ministack

    rates = []
    with ministack() as server:
        for number in range(arguments.flush_rounds):
            rates.append(arguments.files / flush_once(arguments, server.url(server.make_bucket(f'bench-{number}')), server.environment))
    return {
        'name': FLUSH,
        'target': FLUSH_TARGET,
        'unit': 'files/s',
        'value': statistics.median(rates),
        'min': min(rates),
        'max': max(rates),
        'best': max(rates),
    }


def flush_once(arguments: argparse.Namespace, store: str, env: dict[str, str]) -> float:
    """Seconds. The figure counts only if another host then sees every file."""
    host, at = new_host(arguments.dir, store, env), Path(tempfile.mkdtemp(dir=arguments.dir, prefix='mount-'))
    host.mount('bench', at, create=True)
    unpack(at, arguments)
    os.sync()
    begin = time.perf_counter()
    host.unmount(at)
    took = time.perf_counter() - begin
    with mounted(arguments.dir, store, env) as elsewhere:
        arrived = sum(len(files) for _, _, files in os.walk(elsewhere))
    if arrived != arguments.files:
        raise SystemExit(f'flush: {arrived} files of {arguments.files} are in the bucket')
    return took


def status(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """How fast a mount with many files queued for an S3 server on this machine says what it does."""
    from tests.servers import ministack

    with ministack() as server:
        host = new_host(arguments.dir, server.url(server.make_bucket('bench-status')), server.environment)
        at = Path(tempfile.mkdtemp(dir=arguments.dir, prefix='mount-'))
        host.mount('bench', at, create=True, options=['--sync-every', 'unmount'])
        socket, = Path(host.runtime).glob('ctxfs/*/control.sock')
        rows = list(bench_status.measure(at, socket, files=arguments.queued, show=say))
        host.unmount(at)
    return rows


def busy(arguments: argparse.Namespace) -> dict[str, object]:
    """How much of its speed `find` keeps while files are uploaded to an S3 server on this machine."""
    from tests.servers import ministack

    with ministack() as server:
        host = new_host(arguments.dir, server.url(server.make_bucket('bench-busy')), server.environment)
        at = Path(tempfile.mkdtemp(dir=arguments.dir, prefix='mount-'))
        host.mount('bench', at, create=True, options=['--sync-every', 'unmount'])
        socket, = Path(host.runtime).glob('ctxfs/*/control.sock')
        row = bench_busy.measure(at, socket, files=arguments.queued // 2, show=say)
        host.unmount(at)
    return row


def say(text: str) -> None:
    if sys.stderr.isatty():
        print(f'\r  {text:70}', end='', file=sys.stderr, flush=True)


def show(rows: list[dict[str, object]], arguments: argparse.Namespace) -> None:
    print(
        f'\r{os.cpu_count()} cores shared by server, load and ctxfs; {arguments.rounds} rounds; {arguments.files} files, {arguments.size} MB; '
        f'large file {arguments.large} MiB; {arguments.dir} ({arguments.file_system}); Linux {platform.release()}'
    )
    print(f'{"":12} {"value":>8} {"min":>8} {"max":>8} {"best":>8}  {"target":>9}  unit')
    for row in rows:
        sign = '>=' if row['name'] in (FLUSH, 'find busy') else '<='
        print(
            f'{row["name"]:12} {row["value"]:8.2f} {row["min"]:8.2f} {row["max"]:8.2f} {row["best"]:8.2f}  {sign} {row["target"]:>6}  {row["unit"]}'
            + ''.join(f'; {side} {figures["median"]:.3f} s' for side, figures in row.get('seconds', {}).items())
        )


def file_system(path: Path) -> str:
    return subprocess.run(['stat', '-f', '-c', '%T', path], capture_output=True, text=True, check=True).stdout.strip()


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='scripts/bench', description=__doc__.splitlines()[0])
    parser.add_argument('--only', action='append', metavar='NAME', choices=[*(step.name for step in STEPS), FLUSH, STATUS, BUSY],
                        help='may be repeated')
    parser.add_argument('--rounds', type=int, default=5, help='of everything but flush')
    parser.add_argument('--flush-rounds', type=int, default=3)
    parser.add_argument('--files', type=int, default=2500, help='in the tree')
    parser.add_argument('--queued', type=int, default=10_000, help='files that wait while the status is asked for')
    parser.add_argument('--size', type=int, default=100, help='of the tree, MB')
    parser.add_argument('--large', type=int, default=512, help='size of the large file, MiB')
    parser.add_argument('--dir', type=Path, help='where everything is done (a new directory below it)')
    parser.add_argument('--store', help='of the mount that is compared; default: a directory beside the local one')
    parser.add_argument('--json', action='store_true')
    parser.add_argument('--self-test', action='store_true', help='the local disk beside itself: what the method adds')
    return parser.parse_args(argv)


def measure_all(arguments: argparse.Namespace) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    wanted = set(arguments.only or [*(step.name for step in STEPS), FLUSH, STATUS, BUSY])
    beside_disk = wanted - {FLUSH, STATUS, BUSY}
    local = Side('local', arguments.dir / 'local')
    local.directory.mkdir()
    bench_tree.write_archive(arguments.dir / ARCHIVE, files=arguments.files, size=arguments.size * 1_000_000)
    with contextlib.ExitStack() as stack:
        if arguments.self_test:
            other = Side('again', arguments.dir / 'again')
            other.directory.mkdir()
        elif beside_disk:
            store = arguments.store or f'file://{arguments.dir}/store'
            (arguments.dir / 'store').mkdir()
            other = Side('ctxfs', stack.enter_context(mounted(arguments.dir, store, {})))
        if beside_disk:
            rows += compare([local, other], arguments)
    if FLUSH in wanted and not arguments.self_test:
        rows.append(flush(arguments))
    if STATUS in wanted and not arguments.self_test:
        rows += status(arguments)
    if BUSY in wanted and not arguments.self_test:
        rows.append(busy(arguments))
    return rows


def main(argv: list[str]) -> None:
    arguments = parse(argv)
    arguments.dir = Path(tempfile.mkdtemp(prefix='ctxfs-bench-', dir=arguments.dir)).resolve()
    arguments.file_system = file_system(arguments.dir)
    try:
        rows = measure_all(arguments)
    finally:
        from tests import leftovers

        leftovers.remove_tree(arguments.dir)
    if arguments.json:
        json.dump({'cores': os.cpu_count(), 'rounds': arguments.rounds, 'files': arguments.files, 'results': rows}, sys.stdout, indent=1)
        print()
    else:
        show(rows, arguments)


if __name__ == '__main__':
    main(sys.argv[1:])
