"""Rows of Archive mode: a flush of thousands of small files over a network with latency, reading them on another host, and what they take in the
bucket beside File mode.

Owns the contexts and policies of these rows. It must not know what a flush is made of.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.processes import Failed, run
from bench.requests import count
from bench.rows import CTXFS
from bench.sides import BY_HAND, ON_DEMAND, Mount, new_host
from bench.world import World, write_back
from tests.servers import S3Server

FILE_SIZE = 4096
PER_DIRECTORY = 500
ROUNDS = 3
#: the source tree whose bytes are counted
SOURCES = ('bench', 'ctxfs', 'docs', 'tests')
ROOT = Path(__file__).resolve().parents[1]
LINE = b'def function_%d(argument):  # what a line of source looks like\n'


def archive(world: World) -> None:
    with world.server() as server, world.proxy(server) as proxy:
        for _ in range(min(ROUNDS, world.rounds)):
            bucket = server.make_bucket()
            far = server.url(bucket).replace(server.endpoint, proxy.endpoint)
            with mounted(world, far, server, 'Archive') as mount:
                world.say('archive: flush')
                fill(mount.directory, world.sizes.flush)
                write_back()
                proxy.reset()
                begin = time.perf_counter()
                mount.settle()
                world.samples.add('archive-flush', CTXFS, {CTXFS: world.sizes.flush / (time.perf_counter() - begin)})
                counted = count(proxy.requests())
                world.samples.add('archive-flush-requests', CTXFS, {CTXFS: counted.total})
                world.samples.note('archive-flush-requests', counted.text)
            with mounted(world, far, server, 'Archive') as mount:
                world.say('archive: grep')
                proxy.reset()
                begin = time.perf_counter()
                found = run('grep', '-rc', 'def function_', mount.directory).count(b'\n')
                world.samples.add('archive-grep', CTXFS, {CTXFS: time.perf_counter() - begin})
                counted = count(proxy.requests())
                world.samples.add('archive-grep-requests', CTXFS, {CTXFS: counted.total})
                world.samples.note('archive-grep-requests', counted.text)
            if found != world.sizes.flush:
                raise Failed(f'grep has seen {found} files of {world.sizes.flush}')
        if 'archive-bytes' in world.wanted:
            world.say('archive: bytes')
            world.samples.add('archive-bytes', CTXFS, {CTXFS: stored(world, server, 'Archive'), 'File mode': stored(world, server, 'File')})


@contextlib.contextmanager
def mounted(world: World, store: str, server: S3Server, mode: str) -> Iterator[Mount]:
    """A context of that mode on a host that has never seen it."""
    host, at = new_host(world.directory, store, server.environment), Path(tempfile.mkdtemp(dir=world.directory, prefix='mount-'))
    policy = host.state_dir.parent / 'policy.json'
    policy.write_text(json.dumps({**ON_DEMAND, 'uploadPolicy': {'uploadMode': mode}}))
    host.mount('bench', at, create=True, options=[*BY_HAND, '--policy', policy])
    try:
        yield Mount(host, at)
    finally:
        host.unmount(at)


def fill(directory: Path, files: int) -> None:
    for number in range(files):
        below = directory / f'd{number // PER_DIRECTORY}'
        if number % PER_DIRECTORY == 0:
            below.mkdir()
        lines = b''.join(LINE % (number * 100 + line) for line in range(FILE_SIZE // len(LINE) + 1))
        (below / f'f{number}.py').write_bytes(lines[:FILE_SIZE])


def stored(world: World, server: S3Server, mode: str) -> float:
    """Bytes in the bucket for the source tree, ctxfs's own among them."""
    bucket = server.make_bucket()
    with mounted(world, server.url(bucket), server, mode) as mount:
        for name in SOURCES:
            shutil.copytree(ROOT / name, mount.directory / name, ignore=shutil.ignore_patterns('__pycache__'))
        mount.settle()
    pages = server.client().get_paginator('list_objects_v2').paginate(Bucket=bucket, Prefix='contexts/')
    return float(sum(found['Size'] for page in pages for found in page.get('Contents', ())))
