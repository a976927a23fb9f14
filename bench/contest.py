"""Work done by two sides in turn, and by each other mount after that.

Owns fairness: both sides of a round do the same work in fresh directories on the same disk and server, one after the other, in alternating
order; before each timing all dirty pages are written out, after it a side brings to the bucket what it has to, so that nobody pays for
another's. Trees stay until the end, because ext4 steps around inodes that were deleted in the last seconds one by one, which would be
billed to whoever creates files next. It must not know the work.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.processes import PATIENCE, Failed
from bench.rivals import Rival
from bench.rows import BY_NAME, LOCAL
from bench.sides import Disk, Side
from bench.world import World, write_back
from tests.servers import S3Server

#: what work of another mount may raise: then the mount is left out of that row, and it is said why
FAILURES = (Failed, OSError, subprocess.TimeoutExpired)
#: what one command may take on another mount
RIVAL_SECONDS = 300.0


class Step(NamedTuple):
    """`work(directory)` is timed, or returns a rate; `is_warm`: it is done once before, untimed. Steps follow each other in one directory."""

    row: str
    work: Callable[[Path], float | None]
    is_warm: bool = False


def beside_disk(world: World, steps: Sequence[Step], *, keep: bool = True) -> None:
    """ctxfs, then each other mount, beside the local disk; directories are removed after each round unless they are to be kept."""
    with world.server() as server:
        disk = world.disk()
        with world.mount(server) as mount:
            for number in range(world.rounds):
                one_round(world, steps, number, disk, mount, keep=keep)
        for rival in rivals(world, server, steps[0].row):
            for number in range(world.rival_rounds):
                one_round(world, steps, number, disk, rival, keep=keep)


def rivals(world: World, server: S3Server, row: str, *, endpoint: str = '') -> Iterator[Rival]:
    """Each other mount, of a bucket of its own, while the caller works with it; what it fails at ends its turn and is noted."""
    for kind in world.rivals:
        patience = PATIENCE.set(RIVAL_SECONDS)
        try:
            with kind(world.fresh(kind.name), server, server.make_bucket(), endpoint=endpoint) as rival:
                yield rival
        except FAILURES as error:
            world.samples.note(row, f'{kind.name} failed: {first_line(error)}')
        finally:
            PATIENCE.reset(patience)


def first_line(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f'not done within {error.timeout:.0f} s'
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def one_round(world: World, steps: Sequence[Step], number: int, disk: Disk, other: Side, *, keep: bool) -> None:
    """Who begins alternates from step to step and from round to round."""
    directories = {side: side.directory / f'{other.name} {steps[0].row} {number}' for side in (disk, other)}
    for directory in directories.values():
        directory.mkdir()
    for turn, step in enumerate(steps, number):
        order: list[Side] = [other, disk] if turn % 2 else [disk, other]
        found = {side.name: measure(world, step, side, directories[side]) for side in order}
        world.samples.add(step.row, other.name, {other.name: found[other.name], LOCAL: found[LOCAL]})
    if not keep:
        for directory in directories.values():
            shutil.rmtree(directory)


def measure(world: World, step: Step, side: Side, directory: Path) -> float:
    """Seconds, or the rate that the step reports."""
    world.say(f'{step.row}: {side.name}')
    if step.is_warm:
        step.work(directory)
    write_back()
    begin = time.perf_counter()
    rate = step.work(directory)
    took = time.perf_counter() - begin
    side.settle()
    raw = took if rate is None else rate
    world.say(f'{step.row}: {side.name} {raw:.3f} {BY_NAME[step.row].raw_unit}')
    return raw
