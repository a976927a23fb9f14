"""How fast `find` goes on a mount while it uploads many small files, beside its idle speed. For scripts/bench.py.

Owns how it is measured: a warm tree of 2,000 files is walked again and again, first idle, then from the beginning of an upload to its end;
the ratio is of the two means. The walks are processes of their own, as a user's.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

DIRECTORIES, FILES_EACH = 200, 10
IDLE_SECONDS = 4.0
ASK_SECONDS = 0.5
TARGET = 0.7


def measure(mount_point: Path, socket: Path, *, files: int, show: Callable[[str], None]) -> dict[str, object]:
    """One row; `mount_point` is of a mount without a clock."""
    from ctxfs.edge.client import ControlClient

    with ControlClient(socket) as asker, ControlClient(socket) as uploader:
        tree = mount_point / 'tree'
        write_files(tree, DIRECTORIES * FILES_EACH, FILES_EACH)
        uploader.call('sync', timeout=600)
        write_files(mount_point / 'new', files, 500)
        show('find, idle')
        walk_until(tree, lambda elapsed: elapsed > 1)
        idle = walk_until(tree, lambda elapsed: elapsed > IDLE_SECONDS)
        show(f'find beside the upload of {files} files')
        uploader.send('sync')
        asked = [0.0]

        def is_over(elapsed: float) -> bool:
            if elapsed - asked[0] < ASK_SECONDS:
                return False
            asked[0] = elapsed
            return asker.call('status')['pending']['files'] == 0

        began = time.perf_counter()
        busy = walk_until(tree, is_over)
        uploader.receive(600)
        rate = files / (time.perf_counter() - began)
    ratios = [statistics.mean(idle) / took for took in busy]
    return {'name': 'find busy', 'target': TARGET, 'value': statistics.mean(idle) / statistics.mean(busy), 'min': min(ratios),
            'max': max(ratios), 'best': min(idle) / min(busy), 'unit': f'of its idle speed; {rate:.0f} files/s uploaded meanwhile'}


def write_files(directory: Path, count: int, each: int) -> None:
    for number in range(count):
        if number % each == 0:
            part = directory / str(number // each)
            part.mkdir(parents=True)
        (part / str(number)).write_bytes(os.urandom(2000))


def walk_until(tree: Path, is_over: Callable[[float], bool]) -> list[float]:
    """Seconds that each walk took."""
    began, took = time.perf_counter(), []
    while not took or not is_over(time.perf_counter() - began):
        start = time.perf_counter()
        subprocess.run(['find', str(tree)], stdout=subprocess.DEVNULL, check=True)
        took.append(time.perf_counter() - start)
    return took
