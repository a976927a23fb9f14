"""Arguments, the order of the groups, and where the results go.

Owns the run: its directory, which is taken away with everything that is mounted in it, and what becomes of a group that fails (it is said, and
the others go on). It must not know how a row is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import busy, chart, group_archive, group_cold, group_disk, group_flush, group_scale, install, report, status
from bench.figures import results
from bench.rivals import ALL
from bench.rows import BY_NAME, GROUPS, RIVALS, ROWS
from bench.world import SMALL, Sizes, World
from tests import leftovers

MEASURE: dict[str, Callable[[World], None]] = {
    'scale': group_scale.scale, 'million': group_scale.million, 'cold': group_cold.cold, 'tree': group_disk.tree, 'git': group_disk.git,
    'large': group_disk.large, 'random': group_disk.random, 'create': group_disk.create, 'create-busy': busy.create_busy, 'flush': group_flush.flush,
    'flush-20ms': group_flush.flush_far, 'unpack-up': group_flush.unpack_up, 'unpack-up-20ms': group_flush.unpack_up_far,
    'flush-large': group_flush.flush_large, 'status': status.status, 'busy': busy.find_busy,
    'archive': group_archive.archive,
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='scripts/bench', description='How fast a mount is; docs/BENCHMARK.md has the rows.')
    parser.add_argument('--only', action='append', default=[], metavar='NAME[,NAME…]', help='rows or groups of rows; may be repeated')
    parser.add_argument('--list', action='store_true', help='the names of rows and groups, and what they say')
    parser.add_argument('--rounds', type=int, default=5, help='of each row beside the local disk; rows that take long have 3 at most')
    parser.add_argument('--rival-rounds', type=int, default=1, help='of other mounts')
    parser.add_argument('--against', default=','.join(RIVALS), metavar='NAME[,NAME…]', help='other mounts that do the same work; "" for none')
    parser.add_argument('--small', action='store_true', help='tiny sizes: everything once, in minutes, for trying it out')
    parser.add_argument('--json', type=Path, metavar='FILE', help='writes what was found')
    parser.add_argument('--chart', type=Path, metavar='FILE', help='draws it as SVG')
    parser.add_argument('--markdown', type=Path, metavar='FILE',
                        help="writes the table and the chart's name, in a document that has its marks between these")
    parser.add_argument('--from', type=Path, metavar='FILE', dest='source', help='measures nothing: draws and prints what --json wrote')
    parser.add_argument('--dir', type=Path, help='where everything is done (a new directory below it)')
    parser.add_argument('--install', action='store_true', help='installs what the other mounts and fio need, and ends')
    for name, default in Sizes()._asdict().items():
        parser.add_argument(f'--{name.replace("_", "-")}', type=int, metavar='N', help=f'a size, {default:,}')
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    if arguments.list:
        for row in ROWS:
            print(f'{row.name:22} {row.group:15} {row.direction} {row.goal:>6,g} {row.unit:16} {row.title}')
        return 0
    if arguments.install:
        return install.install()
    found = json.loads(arguments.source.read_text()) if arguments.source else run(arguments)
    keep(found, arguments)
    print('\r' + '\n'.join(report.lines(found)))
    return 0


def keep(found: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + '\n')
    if arguments.chart:
        arguments.chart.write_text(chart.draw(found))
    if arguments.markdown:
        image = os.path.relpath(arguments.chart, arguments.markdown.parent) if arguments.chart else ''
        text = arguments.markdown.read_text() if arguments.markdown.exists() else ''
        arguments.markdown.write_text(report.inserted(found, text, image=image))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    wanted = wanted_rows(arguments.only)
    begin = time.monotonic()
    chosen = [kind for kind in ALL if kind.name in arguments.against.split(',')]
    missing = [f'{kind.name}: needs {kind.package}; scripts/bench --install' for kind in chosen if not kind.present()]
    if shutil.which('fio') is None and wanted & {'random-read', 'random-write'}:
        missing.append('random-read, random-write: need fio (Debian); scripts/bench --install')
        wanted -= {'random-read', 'random-write'}
    directory = Path(tempfile.mkdtemp(prefix='ctxfs-bench-', dir=arguments.dir)).resolve()
    marker = own_environment(directory)
    try:
        world = World(directory, sizes_of(arguments), rounds=1 if arguments.small else arguments.rounds, rival_rounds=arguments.rival_rounds,
                      rivals=[kind for kind in chosen if kind.present()])
        world.wanted = wanted
        missing += [*measure_groups(world)]
        rows = [row for row in ROWS if row.name in wanted]
        return report.document(results(rows, world.samples), sizes=world.sizes, rounds=world.rounds, took=time.monotonic() - begin,
                               directory=directory, missing=missing)
    finally:
        leftovers.unmount_all(directory)
        leftovers.kill(leftovers.processes(leftovers.RUN_VARIABLE, marker))
        leftovers.remove_tree(directory)


def own_environment(directory: Path) -> str:
    """Nothing of the user reaches what is measured, and a termination ends what was started, which the marker tells."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in list(os.environ):
        if name.startswith(('XDG_', 'AWS_', 'GIT_', 'CTXFS_')):
            del os.environ[name]
    marker = secrets.token_hex(8)
    os.environ.update({'TMPDIR': str(directory), leftovers.RUN_VARIABLE: marker})
    tempfile.tempdir = None
    return marker


def wanted_rows(only: list[str]) -> set[str]:
    names = {name for text in only for name in text.split(',') if name}
    unknown = names - set(BY_NAME) - set(GROUPS)
    if unknown:
        raise SystemExit(f'scripts/bench: no row or group is called {", ".join(sorted(unknown))}; scripts/bench --list has them')
    return {row.name for row in ROWS if not names or row.name in names or row.group in names}


def sizes_of(arguments: argparse.Namespace) -> Sizes:
    given = {name: getattr(arguments, name) for name in Sizes._fields if getattr(arguments, name) is not None}
    return (SMALL if arguments.small else Sizes())._replace(**given)


def measure_groups(world: World) -> list[str]:
    """Lines about what could not be measured."""
    failed = []
    for group in GROUPS:
        if not any(row.group == group and row.name in world.wanted for row in ROWS):
            continue
        begin = time.monotonic()
        try:
            MEASURE[group](world)
            print(f'\r{group}: {time.monotonic() - begin:.0f} s', file=sys.stderr)
        except KeyboardInterrupt:
            failed.append(f'{group} and what follows: interrupted')
            break
        except Exception as error:  # whatever it is: the other groups go on
            said = str(error).splitlines() or [type(error).__name__]
            failed.append(f'{group}: {said[-1][-300:]}')
            print(f'\r{failed[-1]}', file=sys.stderr)
    return failed
