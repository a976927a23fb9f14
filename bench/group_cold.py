"""Rows of reading what this host has not: the first byte of a file, and a large file from its beginning to its end.

Owns that it is cold: each mount is of a new host, or has its cache taken away. Other mounts read the same bytes: those that see plain objects
the same object, JuiceFS what was written through it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bench.boto_alone import alone
from bench.contest import FAILURES, first_line
from bench.group_flush import keys_below
from bench.rivals import JuiceFS, Rival
from bench.rows import BOTO, CTXFS
from bench.sides import mounted
from bench.work import MIB, read_through, writing
from bench.world import ROUND_TRIP, World, write_back
from tests.servers import S3Server

#: files whose first byte is read; the first of them has the mount begin to read at all
SMALL_FILES = 11
SMALL_SIZE = 100_000
COLD_ROUNDS = 3


def cold(world: World) -> None:
    with world.server() as server:
        bucket = server.make_bucket()
        with world.mount(server, bucket=bucket) as mount:
            fill(world, mount.directory)
        if 'cold-read' in world.wanted:
            _cold_read(world, server, bucket)
        if 'first-byte' in world.wanted:
            _first_byte(world, server, bucket)


def fill(world: World, directory: Path) -> None:
    writing(world.sizes.huge)(directory)
    fill_small(directory)


def fill_small(directory: Path) -> None:
    (directory / 'small').mkdir()
    for number in range(SMALL_FILES):
        (directory / f'small/{number}').write_bytes(number.to_bytes(8, 'big') * (SMALL_SIZE // 8))


def _cold_read(world: World, server: S3Server, bucket: str) -> None:
    key, = keys_below(server, bucket, '/large')
    for number in range(min(COLD_ROUNDS, world.rounds)):
        found: dict[str, float] = {}
        for side in (CTXFS, BOTO)[:: -1 if number % 2 else 1]:
            world.say(f'cold-read: {side}')
            if side == BOTO:
                found[BOTO] = _rate(world, alone(server, 'download', bucket, key, str(world.sizes.huge * MIB)))
            else:
                with mounted(world.directory, server.url(bucket), server.environment) as mount:
                    found[CTXFS] = _rate(world, timed_read(world, mount.directory / 'large'))
        world.samples.add('cold-read', CTXFS, found)
    for kind in world.rivals:
        _rival_reads(world, server, bucket, kind, key)


def _rate(world: World, seconds: float) -> float:
    return world.sizes.huge * MIB / 1e6 / seconds


def timed_read(world: World, path: Path) -> float:
    path.stat()
    write_back()
    begin = time.perf_counter()
    read_through(path, world.sizes.huge * MIB)
    return time.perf_counter() - begin


def _rival_reads(world: World, server: S3Server, bucket: str, kind: type[Rival], key: str) -> None:
    world.say(f'cold-read: {kind.name}')
    try:
        with kind(world.fresh(kind.name), server, bucket if kind is not JuiceFS else server.make_bucket()) as rival:
            took = timed_read(world, rival_path(rival, key, writing(world.sizes.huge)))
    except FAILURES as error:
        world.samples.note('cold-read', f'{kind.name} failed: {first_line(error)}')
        return
    bare = alone(server, 'download', bucket, key, str(world.sizes.huge * MIB))
    world.samples.add('cold-read', kind.name, {kind.name: _rate(world, took), BOTO: _rate(world, bare)})


def rival_path(rival: Rival, key: str, fill_own: Callable[[Path], None]) -> Path:
    """Where the file is on another mount that has nothing of it on this host; JuiceFS, which reads only its own, is filled first."""
    if rival.name != JuiceFS.name:
        return rival.directory / key
    fill_own(rival.directory)
    rival.forget()
    rival.mount()
    return rival.directory / key.split('/', 2)[2]


def _first_byte(world: World, server: S3Server, bucket: str) -> None:
    with world.proxy(server) as proxy:
        store = server.url(bucket).replace(server.endpoint, proxy.endpoint)
        with mounted(world.directory, store, server.environment) as mount:
            for took in first_bytes(mount.directory / 'small'):
                world.samples.add('first-byte', CTXFS, {CTXFS: took})
        for kind in world.rivals:
            key = keys_below(server, bucket, '/small/')[0]
            world.say(f'first-byte: {kind.name}')
            try:
                with kind(world.fresh(kind.name), server, bucket if kind is not JuiceFS else server.make_bucket(), endpoint=proxy.endpoint) as rival:
                    for took in first_bytes(rival_path(rival, key, fill_small).parent):
                        world.samples.add('first-byte', kind.name, {kind.name: took})
            except FAILURES as error:
                world.samples.note('first-byte', f'{kind.name} failed: {first_line(error)}')


def first_bytes(directory: Path) -> list[float]:
    """Milliseconds beyond a round trip from open to the first byte of each file but the first; names and sizes are known by then."""
    names = sorted(path.name for path in directory.iterdir())
    took = []
    for name in names:
        (directory / name).stat()
    for name in names:
        begin = time.perf_counter()
        with open(directory / name, 'rb', buffering=0) as file:
            file.read(1)
        took.append((time.perf_counter() - begin - ROUND_TRIP) * 1000)
    return took[1:]
