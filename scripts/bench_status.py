"""How long a mount takes to answer `status` with many files queued: idle, and while it uploads them. For scripts/bench.py.

Owns how it is measured: every call is one over a connection that is kept (what `--watch` and a program do), with nothing cached by the
caller; half follow each other at once, half come 0.3 s apart, when a count that was made for the one before is too old to be used again.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

PAUSE = 0.3
CLOSE_CALLS = 500
FAR_CALLS = 30
TARGET_MS = 20


class Answers(NamedTuple):
    """Milliseconds, sorted."""

    took: list[float]

    def percentile(self, percent: float) -> float:
        return self.took[min(len(self.took) - 1, int(len(self.took) * percent / 100))]


def measure(mount_point: Path, socket: Path, *, files: int, show: Callable[[str], None]) -> Iterator[dict[str, object]]:
    """A row for each phase; `mount_point` is of a mount without a clock."""
    from ctxfs.edge.client import ControlClient

    write_files(mount_point, files)
    with ControlClient(socket) as client:
        yield row('status idle', ask(client, lambda status: True, files, show))
        with ControlClient(socket) as uploader:
            uploader.send('sync')
            yield row('status busy', ask(client, is_uploading, files, show))
            answer = uploader.receive(600)
    if not answer['ok']:
        raise SystemExit(f'status: {answer["message"]}')


def write_files(directory: Path, files: int) -> None:
    for number in range(files):
        if number % 500 == 0:
            part = directory / f'd{number // 500}'
            part.mkdir()
        (part / f'{number}.txt').write_bytes(os.urandom(200))


def is_uploading(status: dict) -> bool:
    return any(task['status'] == 'Running' for task in status['tasks']) and status['pending']['files'] > 0


def ask(client, counts: Callable[[dict], bool], files: int, show: Callable[[str], None]) -> Answers:
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


def row(name: str, answers: Answers) -> dict[str, object]:
    return {
        'name': name,
        'target': TARGET_MS,
        'unit': f'ms, p99 of {len(answers.took)} answers; p50 {statistics.median(answers.took):.2f}',
        'value': answers.percentile(99),
        'min': answers.took[0],
        'max': answers.took[-1],
        'best': answers.percentile(50),
        'p50': answers.percentile(50),
        'p99': answers.percentile(99),
    }
