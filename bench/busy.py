"""What a mount keeps of its speed while it uploads many small files: `find` over a warm tree, and creating files.

Owns how it is measured: the same is done again and again, first idle, then from the beginning of an upload to its end; the ratio is of the two
mean rates.
"""

from __future__ import annotations

import functools
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench.processes import run
from bench.rows import CTXFS
from bench.sides import Mount
from bench.work import creating, write_small
from bench.world import World, write_back

TREE_FILES = 2000
IDLE_SECONDS = 4.0
#: an upload that does not end, because what is created meanwhile is uploaded with it
BUSY_SECONDS_MAX = 60.0
#: files that are created at a time, between two looks at the clock
BURST = 100


def find_busy(world: World) -> None:
    def prepare(mount: Mount) -> Callable[[], float]:
        tree = mount.directory / 'tree'
        write_small(tree, TREE_FILES, each=10, size=2000)
        mount.settle()
        return lambda: walk(tree)

    _while_uploading(world, 'find-busy', prepare)


def create_busy(world: World) -> None:
    def prepare(mount: Mount) -> Callable[[], float]:
        bursts = mount.directory / 'bursts'
        bursts.mkdir()
        return lambda: burst(bursts)

    _while_uploading(world, 'create-busy', prepare)


def walk(tree: Path) -> float:
    """Walks a second, by a process of its own, as a user's."""
    begin = time.perf_counter()
    run('find', tree)
    return 1 / (time.perf_counter() - begin)


def burst(directory: Path) -> float:
    """Files a second of one burst in a directory of its own."""
    into = directory / str(time.time_ns())
    into.mkdir()
    return creating(BURST)(into)


def _while_uploading(world: World, row: str, prepare: Callable[[Mount], Callable[[], float]]) -> None:
    """`prepare(mount)` returns what is done, which returns its rate."""
    for _ in range(min(3, world.rounds)):
        with world.server() as server, world.mount(server) as mount:
            work = prepare(mount)
            work()
            write_back()
            world.say(f'{row}: idle')
            idle = _rates(work, lambda elapsed: elapsed > IDLE_SECONDS)
            mount.settle()
            write_small(mount.directory / 'new', world.sizes.busy)
            write_back()
            world.say(f'{row}: beside the upload of {world.sizes.busy} files')
            upload = threading.Thread(target=mount.settle)
            upload.start()
            busy = _rates(work, functools.partial(_is_over, upload))
            upload.join()
        world.samples.add(row, CTXFS, {CTXFS: statistics.harmonic_mean(busy), 'idle': statistics.harmonic_mean(idle)})


def _is_over(upload: threading.Thread, elapsed: float) -> bool:
    return not upload.is_alive() or elapsed > BUSY_SECONDS_MAX


def _rates(work: Callable[[], float], is_over: Callable[[float], bool]) -> list[float]:
    rates: list[float] = []
    began = time.perf_counter()
    while not rates or not is_over(time.perf_counter() - began):
        rates.append(work())
    return rates
