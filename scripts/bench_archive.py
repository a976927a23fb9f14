"""What Archive mode is for, measured: a flush of thousands of small files, and reading them on another host, over a network with latency.

Owns the scenario and its rows. It must not know how rows are shown: `measure` returns them. Run by itself it prints them, with the targets.

    scripts/bench_archive.py [--files 10000] [--size 4096] [--rtt 0.02]

The store is ministack on this host, behind a proxy that adds half of the round-trip time to each direction, behind one that counts requests.
"""
from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.fakes.counting_proxy import CountingProxy  # noqa: E402
from tests.servers import ministack  # noqa: E402

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


def measure(work: Path, store: str, environment: dict[str, str], requests: CountingProxy, *, files: int, size: int) -> list[Row]:
    """All rows. `requests` counts what goes to the store."""
    bench, rows = _Bench(work, store, environment), []
    with bench.mounted('one', 'Archive') as at:
        _fill(at, files=files, size=size)
        requests.reset()
        began = time.monotonic()
        bench.cli('one', 'sync', str(at))
        took, count = time.monotonic() - began, requests.total()
        rows.append(Row('flush', files / took, 'files/s', '>= 6000', files / took >= 6000))
        rows.append(Row('flush: requests', count, '', '<= 20', count <= 20))
    with bench.mounted('two', 'Archive') as at:
        requests.reset()
        began = time.monotonic()
        found = subprocess.run(['grep', '-rc', 'def function_', str(at)], check=False, stdout=subprocess.PIPE).stdout.count(b'\n')
        took, count = time.monotonic() - began, requests.total()
        assert found == files, f'grep has seen {found} of {files} files'
        rows.append(Row('cold grep -r', took, 's', '<= 2', took <= 2))
        rows.append(Row('cold grep -r: requests', count, '', '<= 30', count <= 30))
    return rows


class Latency:
    """A TCP proxy that adds a delay to what comes back. `endpoint` goes where the server's went."""

    def __init__(self, upstream: str, seconds: float) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or '127.0.0.1', parts.port or 80)
        self._seconds = seconds
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, '127.0.0.1', 0), self._loop).result()
        self.endpoint = f'http://127.0.0.1:{server.sockets[0].getsockname()[1]}'

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._upstream)
        await asyncio.gather(self._pass(reader, back, 0.0), self._pass(there, writer, self._seconds), return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
        try:
            while data := await reader.read(1 << 18):
                if delay:
                    await asyncio.sleep(delay if len(data) < 1 << 16 else 0)
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


def _run(options: argparse.Namespace) -> int:
    with ministack() as server, tempfile.TemporaryDirectory(prefix='bench-') as directory:
        latency = Latency(server.endpoint, options.rtt)
        with CountingProxy(latency.endpoint) as requests:
            store = f's3://{server.make_bucket()}?endpoint={requests.endpoint}'
            rows = measure(Path(directory), store, server.environment, requests, files=options.files, size=options.size)
        latency.close()
    for row in rows:
        print(f'{row.name:28} {row.value:12.1f} {row.unit:8} {row.target:10} {"" if row.is_met else "NOT MET"}')
    return 0 if all(row.is_met for row in rows) else 1


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--files', type=int, default=10_000)
    parser.add_argument('--size', type=int, default=4096)
    parser.add_argument('--rtt', type=float, default=0.02)
    options = parser.parse_args(arguments)
    return _run(options)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
