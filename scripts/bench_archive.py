"""What Archive mode is for, measured: a flush of thousands of small files, and reading them on another host, over a network with latency.

Owns the scenario and its rows. It must not know how rows are shown: `measure` returns them. Run by itself it prints them, with the targets.

    scripts/bench_archive.py [--files 10000] [--size 4096] [--rtt 0.02]

The store is the fake S3 server of the tests behind a proxy that counts requests and adds the round-trip time to each.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.fakes.counting_proxy import CountingProxy  # noqa: E402
from tests.fakes.s3_server import FakeS3  # noqa: E402

CTXFS = (sys.executable, '-I', '-m', 'ctxfs')


class Row(NamedTuple):
    """One figure; `is_met`: whether it reaches its target."""
    name: str
    value: float
    unit: str
    target: str
    is_met: bool


class _Bench:
    def __init__(self, work: Path, store: str, environment: dict[str, str]) -> None:
        self.work = work
        self.store = store
        self._environment = {**os.environ, **environment, 'HOME': str(work), 'XDG_RUNTIME_DIR': str(work / 'run')}
        (work / 'run').mkdir(mode=0o700)

    def cli(self, host: str, *arguments: str) -> str:
        done = subprocess.run([*CTXFS, *arguments, '--store', self.store, '--state-dir', str(self.work / host)], env=self._environment, check=True,
                              capture_output=True, text=True)
        return done.stdout

    @contextmanager
    def mounted(self, host: str, mode: str, *options: str) -> Iterator[Path]:
        at = self.work / f'mnt-{host}-{mode}'
        at.mkdir()
        policy = self.work / f'{mode}.json'
        policy.write_text(json.dumps({'uploadPolicy': {'uploadMode': mode}}))
        self.cli(host, 'mount', f'c-{mode}'.lower(), str(at), '--create', '--policy', str(policy), '--sync-every', 'unmount', *options)
        try:
            yield at
        finally:
            self.cli(host, 'umount', str(at))


def _fill(at: Path, *, files: int, size: int) -> None:
    line = b'def function_%d(argument):  # what a line of source looks like\n'
    for number in range(files):
        directory = at / f'd{number // 500}'
        if number % 500 == 0:
            directory.mkdir()
        (directory / f'f{number}.py').write_bytes(b''.join(line % (number * 100 + n) for n in range(size // len(line) + 1))[:size])


def measure(work: Path, store: str, environment: dict[str, str], requests: 'CountingProxy', *, files: int, size: int) -> list[Row]:
    """All rows. `requests` counts what goes to the store, and is where its latency comes from."""
    bench, rows = _Bench(work, store, environment), []
    with bench.mounted('one', 'Archive') as at:
        _fill(at, files=files, size=size)
        requests.reset()
        began = time.monotonic()
        bench.cli('one', 'sync', str(at))
        took = time.monotonic() - began
        rows.append(Row('flush', files / took, 'files/s', '>= 6000', files / took >= 6000))
        rows.append(Row('flush: requests', requests.count, '', '<= 20', requests.count <= 20))
    with bench.mounted('two', 'Archive') as at:
        requests.reset()
        began = time.monotonic()
        subprocess.run(['grep', '-r', 'no such line', str(at)], check=False, stdout=subprocess.DEVNULL)
        took = time.monotonic() - began
        rows.append(Row('cold grep -r', took, 's', '<= 2', took <= 2))
        rows.append(Row('cold grep -r: requests', requests.count, '', '<= 30', requests.count <= 30))
    return rows


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--files', type=int, default=10_000)
    parser.add_argument('--size', type=int, default=4096)
    parser.add_argument('--rtt', type=float, default=0.02)
    options = parser.parse_args(arguments)
    return options.files
