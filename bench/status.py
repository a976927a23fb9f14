"""How long a mount takes to answer `status` with many files queued: idle, and while it uploads them.

Owns how it is measured: every call is one over a connection that is kept (what `--watch` and a program do), with nothing cached by the
caller; half follow each other at once, half come 0.3 s apart, when a count that was made for the one before is too old to be used again.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.rows import CTXFS
from bench.world import World
from ctxfs.edge.client import ControlClient

PAUSE = 0.3
CLOSE_CALLS = 500
FAR_CALLS = 30


class Answers(NamedTuple):
    """Milliseconds, sorted."""

    took: list[float]

    def percentile(self, percent: float) -> float:
        return self.took[min(len(self.took) - 1, int(len(self.took) * percent / 100))]


def status(world: World) -> None:
    files = world.sizes.queued
    with world.server() as server, world.mount(server) as mount:
        write_files(mount.directory, files)
        with ControlClient(mount.socket) as client, ControlClient(mount.socket) as uploader:
            report(world, 'status-idle', ask(client, lambda status: True, files, world.say))
            uploader.send('sync')
            report(world, 'status-busy', ask(client, is_uploading, files, world.say))
            uploader.receive(600)


def write_files(directory: Path, files: int) -> None:
    for number in range(files):
        if number % 500 == 0:
            part = directory / f'd{number // 500}'
            part.mkdir()
        (part / f'{number}.txt').write_bytes(os.urandom(200))


def is_uploading(status: dict) -> bool:
    return any(task['status'] == 'Running' for task in status['tasks']) and status['pending']['files'] > 0


def ask(client: ControlClient, counts: Callable[[dict], bool], files: int, show: Callable[[str], None]) -> Answers:
    """Calls until there are enough, or until `counts` says of an answer that the phase is over."""
    took: list[float] = []
    has_begun = False
    for number in range(CLOSE_CALLS + FAR_CALLS + 10_000):
        begin = time.perf_counter()
        status = client.call('status')
        seconds = time.perf_counter() - begin
        if counts(status):
            has_begun = True
            took.append(seconds * 1000)
            show(f'status {len(took)}: {seconds * 1000:.1f} ms, {status["pending"]["files"]} of {files} files pending')
        elif has_begun:
            break
        if len(took) >= CLOSE_CALLS + FAR_CALLS:
            break
        time.sleep(PAUSE if number % (CLOSE_CALLS // FAR_CALLS) == 0 and has_begun else 0)
    return Answers(sorted(took))


def report(world: World, row: str, answers: Answers) -> None:
    """The figure is the 99th percentile."""
    if not answers.took:
        world.samples.note(row, 'the upload was over before the first answer')
        return
    world.samples.add(row, CTXFS, {CTXFS: answers.percentile(99)})
    world.samples.note(row, f'{len(answers.took)} answers, p50 {statistics.median(answers.took):.2f} ms, longest {answers.took[-1]:.1f} ms')
