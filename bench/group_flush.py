"""Rows of what has to get into the bucket: many small files, an unpacked tree, one large file, removals.

Owns what is flushed and how it is verified to have arrived. It must not know other mounts' ways (rivals.py).
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from bench.bare_client import put_all
from bench.boto_alone import alone
from bench.contest import rivals
from bench.delay_proxy import DelayProxy
from bench.processes import Failed
from bench.requests import count
from bench.rows import BARE, BOTO, CTXFS
from bench.sides import Mount, Side
from bench.work import MIB, unpacking, write_small, writing
from bench.world import World, write_back
from tests.servers import S3Server

#: connections of the client that costs nothing, near and 20 ms away: there they bound what it can do
CONNECTIONS, CONNECTIONS_FAR = 32, 96
FLUSH_ROUNDS = 3
#: the clock of uploads where all mounts upload as they like
SOON = '1s'


def flush(world: World) -> None:
    with world.server() as server:
        for _ in range(min(FLUSH_ROUNDS, world.rounds)):
            bucket = server.make_bucket()
            with world.mount(server, bucket=bucket) as mount:
                _flush(world, 'flush', mount, server, bucket, server.endpoint, CONNECTIONS)


def flush_far(world: World) -> None:
    with world.server() as server, world.proxy(server) as proxy:
        for _ in range(min(FLUSH_ROUNDS, world.rounds)):
            bucket = server.make_bucket()
            with world.mount(server, bucket=bucket, endpoint=proxy.endpoint) as mount:
                _flush(world, 'flush-20ms', mount, server, bucket, proxy.endpoint, CONNECTIONS_FAR)
                _remove(world, mount, proxy)


def _flush(world: World, row: str, mount: Mount, server: S3Server, bucket: str, endpoint: str, connections: int) -> None:
    """Files a second; the figure counts only if all are in the bucket then."""
    world.say(f'{row}: {world.sizes.flush} files')
    files = write_small(mount.directory / 'new', world.sizes.flush)
    write_back()
    begin = time.perf_counter()
    mount.settle()
    rate = len(files) / (time.perf_counter() - begin)
    arrived = len(keys_below(server, bucket, '/new/'))
    if arrived != len(files):
        raise Failed(f'{row}: {arrived} files of {len(files)} are in the bucket')
    world.samples.add(row, CTXFS, {CTXFS: rate})
    bare = put_all(server, server.make_bucket(), files, endpoint=endpoint, connections=connections)
    world.samples.add(f'{row}-ceiling', CTXFS, {CTXFS: rate, BARE: bare})
    world.say(f'{row}: {rate:.0f} files/s, the bare client {bare:.0f}')


def keys_below(server: S3Server, bucket: str, part: str) -> list[str]:
    with contextlib.closing(server.client()) as client:
        pages = client.get_paginator('list_objects_v2').paginate(Bucket=bucket, Prefix='contexts/')
        return [found['Key'] for page in pages for found in page.get('Contents', ()) if part in found['Key'] and not found['Key'].endswith('/')]


def _remove(world: World, mount: Mount, proxy: DelayProxy) -> None:
    shutil.rmtree(mount.directory / 'new')
    proxy.reset()
    mount.settle()
    counted = count(proxy.requests())
    world.samples.add('remove-requests', CTXFS, {CTXFS: counted.total})
    world.samples.note('remove-requests', counted.text)


def unpack_up(world: World) -> None:
    with world.server() as server:
        _unpack_up(world, 'unpack-up', server, server.endpoint)


def unpack_up_far(world: World) -> None:
    with world.server() as server, world.proxy(server) as proxy:
        _unpack_up(world, 'unpack-up-20ms', server, proxy.endpoint)


def _unpack_up(world: World, row: str, server: S3Server, endpoint: str) -> None:
    for _ in range(min(FLUSH_ROUNDS, world.rounds)):
        bucket = server.make_bucket()
        with world.mount(server, bucket=bucket, endpoint=endpoint, options=('--sync-every', SOON)) as mount:
            _time_unpack(world, row, mount)
            arrived = len(keys_below(server, bucket, '/tree/'))
            if arrived != world.sizes.files:
                raise Failed(f'{row}: {arrived} files of {world.sizes.files} are in the bucket')
    for rival in rivals(world, server, row, endpoint=endpoint):
        for _ in range(world.rival_rounds):
            _time_unpack(world, row, rival)


def _time_unpack(world: World, row: str, side: Side) -> None:
    directory = side.directory / f'unpack-{time.time_ns()}'
    directory.mkdir()
    world.say(f'{row}: {side.name}')
    archive = world.archive()
    write_back()
    begin = time.perf_counter()
    unpacking(archive)(directory)
    side.settle()
    world.samples.add(row, side.name, {side.name: time.perf_counter() - begin})


def flush_large(world: World) -> None:
    """Which of both begins alternates."""
    size = world.sizes.huge
    source = world.fresh('huge')
    writing(size)(source)
    for number in range(min(FLUSH_ROUNDS, world.rounds)):
        with world.server() as server, world.mount(server) as mount:
            found: dict[str, float] = {}
            for side in (CTXFS, BOTO)[:: -1 if number % 2 else 1]:
                world.say(f'flush-large: {side}')
                found[side] = size * MIB / 1e6 / (_flush_one(mount, size) if side == CTXFS else _upload_alone(server, source))
            world.samples.add('flush-large', CTXFS, found)


def _flush_one(mount: Mount, size: int) -> float:
    writing(size)(mount.directory)
    write_back()
    begin = time.perf_counter()
    mount.settle()
    return time.perf_counter() - begin


def _upload_alone(server: S3Server, source: Path) -> float:
    return alone(server, 'upload', server.make_bucket(), 'large', str(source / 'large'))
