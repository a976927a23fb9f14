"""Rows of contexts of very many files: the first mount on a host, the next one, one change, memory.

Owns what the bucket is before: as ctxfs leaves it, with the index that its own code writes. A figure counts only if `find` prints the mode, size,
time and target of everything right. Other mounts see the same objects; JuiceFS, which sees only its own, gets the same tree without content.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import scale_tree
from bench.contest import FAILURES, RIVAL_SECONDS, first_line
from bench.delay_proxy import DelayProxy
from bench.processes import PATIENCE, Failed, cpu_seconds, forget, memory, run, wait_until
from bench.requests import count
from bench.rivals import JuiceFS, Rival
from bench.rows import CTXFS
from bench.scale_server import ScaleServer
from bench.sides import BY_HAND, Mount, new_host, on_demand
from bench.world import ROUND_TRIP, World, write_back
from ctxfs.storage.stores import open_store
from ctxfs.sync.index_log import IndexLog
from tests.fakes.s3_server import FakeS3
from tests.mount.harness import Host

SCALE_ROUNDS = 3
SEGMENT = 50_000
FLUSH_EVERY = '2s'
QUIET_SECONDS = 2.0


class Context:
    """A context of `files` files in the bucket of `server`, seen through `endpoint`; `host()` is one that has never seen it."""

    def __init__(self, world: World, server: ScaleServer, endpoint: str, files: int) -> None:
        self.world, self.server, self.files = world, server, files
        self._far = server.url(FakeS3.bucket).replace(server.endpoint, endpoint)
        near = new_host(world.directory, server.url(FakeS3.bucket), server.environment)
        near.cli('context', 'create', 'bench')
        self.prefix = f'contexts/{near.json("context", "show", "bench")["id"]}/'
        world.say(f'{files:,} files: the bucket')
        server.fill(self.prefix, files)
        world.say(f'{files:,} files: the index')
        write_index(world, server, self.prefix, files)

    def host(self) -> Host:
        return new_host(self.world.directory, self._far, self.server.environment)

    def find(self, directory: Path) -> str:
        return run('find', directory, '-mindepth', '1', '-printf', scale_tree.PRINTF).decode()

    def verify(self, said: str) -> None:
        wrong = scale_tree.differences(said, self.files)
        if wrong:
            raise Failed(f'find over {self.files:,} files: {"; ".join(wrong)}')


def write_index(world: World, server: ScaleServer, prefix: str, files: int) -> None:
    """By ctxfs's own code: segments, as flushes leave them, and a base, as its compaction makes of them."""
    os.environ.update(server.environment)
    store = open_store(server.url(FakeS3.bucket))
    log = IndexLog(store, prefix, host='bench', scratch_dir=str(world.directory))
    pending = []
    for record in scale_tree.records(files, uid=os.getuid(), gid=os.getgid()):
        pending.append(record)
        if len(pending) == SEGMENT:
            log.append(pending)
            pending = []
    log.append(pending)
    log.compact(grace_ns=0)
    store.close()


@contextlib.contextmanager
def mounted_on(host: Host, *, options: Sequence[str] = BY_HAND) -> Iterator[tuple[Mount, float]]:
    """The mount, and how many seconds `ctxfs mount` and `ls` took together."""
    at = Path(tempfile.mkdtemp(dir=host.state_dir.parent, prefix='mount-'))
    write_back()
    begin = time.perf_counter()
    host.mount('bench', at, options=[*options, *on_demand(host)])
    run('ls', at)
    took = time.perf_counter() - begin
    try:
        yield Mount(host, at), took
    finally:
        host.unmount(at)


def scale(world: World) -> None:
    with ScaleServer() as server, DelayProxy(server.endpoint, seconds=ROUND_TRIP) as proxy:
        context = Context(world, server, proxy.endpoint, world.sizes.scale)
        for number in range(min(SCALE_ROUNDS, world.rounds)):
            host = context.host()
            first_mount(context, host, proxy)
            second_mount(context, host, proxy)
            if world.wanted & {'one-change-requests', 'one-change-cpu'}:
                one_change(context, host, proxy, number)
        for kind in world.rivals if world.wanted & {'first-ls', 'first-find'} else ():
            rival_mount(context, kind, proxy)


def first_mount(context: Context, host: Host, proxy: DelayProxy) -> None:
    add = context.world.samples.add
    context.world.say('first mount')
    proxy.reset()
    begin = time.perf_counter()
    with mounted_on(host) as (mount, until_ls):
        said = context.find(mount.directory)
        took = time.perf_counter() - begin
        counted = count(proxy.requests())
    context.verify(said)
    add('first-ls', CTXFS, {CTXFS: until_ls})
    add('first-find', CTXFS, {CTXFS: took})
    add('first-requests', CTXFS, {CTXFS: counted.total})
    add('first-heads', CTXFS, {CTXFS: counted.kinds.get(('HEAD', 'object'), 0)})
    context.world.samples.note('first-requests', counted.text)


def second_mount(context: Context, host: Host, proxy: DelayProxy) -> None:
    context.world.say('second mount')
    proxy.reset()
    with mounted_on(host) as (mount, until_ls):
        said = context.find(mount.directory)
        counted = count(proxy.requests())
    context.verify(said)
    context.world.samples.add('again-ls', CTXFS, {CTXFS: until_ls})
    context.world.samples.add('again-requests', CTXFS, {CTXFS: counted.total})
    context.world.samples.note('again-requests', counted.text)


def one_change(context: Context, host: Host, proxy: DelayProxy, number: int) -> None:
    """A new file, which is uploaded by the clock: from before it is written until nothing was asked for a while. CPU of these seconds in all. Not the
    first one of the host, which asks once what the server can do. Both are removed again, for the next rounds."""
    context.world.say('one change')
    with mounted_on(host, options=('--sync-every', FLUSH_EVERY)) as (mount, _):
        context.find(mount.directory)
        first = mount.directory / f'd0000/s00/first{number}.txt'
        first.write_bytes(b'first change')
        mount.settle()
        wait_until(functools.partial(is_quiet, proxy, QUIET_SECONDS), 'the mount is quiet', seconds=120, every=QUIET_SECONDS / 4)
        pids = mount.pids()
        proxy.reset()
        before = cpu_seconds(pids)
        (mount.directory / f'd0000/s00/new{number}.txt').write_bytes(b'one change')
        wait_until(proxy.requests, 'the flush begins', seconds=60, every=0.2)
        wait_until(functools.partial(is_quiet, proxy, QUIET_SECONDS), 'the flush ends', seconds=60, every=QUIET_SECONDS / 4)
        spent = cpu_seconds(pids) - before
        counted = count(proxy.requests())
        (mount.directory / f'd0000/s00/new{number}.txt').unlink()
        first.unlink()
        directory = next(one for one in scale_tree.directories(context.files) if one.path == 'd0000/s00/')
        os.utime(mount.directory / 'd0000/s00', ns=(directory.mtime_ns, directory.mtime_ns))
    context.world.samples.add('one-change-requests', CTXFS, {CTXFS: counted.total})
    context.world.samples.add('one-change-cpu', CTXFS, {CTXFS: spent * 1000})
    context.world.samples.note('one-change-requests', counted.text)


def is_quiet(proxy: DelayProxy, seconds: float) -> bool:
    """Nothing is asked for so long."""
    before = len(proxy.requests())
    time.sleep(seconds)
    return len(proxy.requests()) == before


def rival_mount(context: Context, kind: type[Rival], proxy: DelayProxy) -> None:
    world = context.world
    world.say(f'first mount: {kind.name}')
    patience = PATIENCE.set(RIVAL_SECONDS)
    try:
        with kind(world.fresh(kind.name), context.server, FakeS3.bucket, endpoint=proxy.endpoint, prefix=context.prefix.rstrip('/')) as rival:
            rival.unmount()
            if kind is JuiceFS:
                rival.mount()
                populate(rival.directory, context.files)
                rival.forget()
            begin = time.perf_counter()
            rival.mount()
            run('ls', rival.directory)
            until_ls = time.perf_counter() - begin
            world.samples.add('first-ls', kind.name, {kind.name: until_ls})
            proxy.reset()
            seen = context.find(rival.directory).count('.txt\t')
            took = time.perf_counter() - begin
            if seen != context.files:
                raise Failed(f'find prints {seen:,} files of {context.files:,}')
            world.samples.add('first-find', kind.name, {kind.name: took})
            world.samples.note('first-find', f'{kind.name}: {count(proxy.requests()).text}')
    except FAILURES as error:
        world.samples.note('first-find', f'{kind.name}: {first_line(error)}')
    finally:
        PATIENCE.reset(patience)


def populate(directory: Path, files: int) -> None:
    """The same tree of files without content, so that nothing but names and attributes is to be written."""
    for made in scale_tree.directories(files):
        (directory / made.path).mkdir()
    for number in range(files):
        one = scale_tree.file(number)
        path = directory / one.path
        if one.target is not None:
            path.symlink_to(os.fsdecode(one.target))
            continue
        fd = os.open(path, os.O_CREAT | os.O_WRONLY, one.mode & 0o777)
        os.ftruncate(fd, len(one.body))
        os.close(fd)


def million(world: World) -> None:
    with ScaleServer() as server:
        context = Context(world, server, server.endpoint, world.sizes.million)
        world.say('1,000,000 files: mount')
        with mounted_on(context.host()) as (mount, until_ls):
            world.samples.add('million-ls', CTXFS, {CTXFS: until_ls})
            context.verify(context.find(mount.directory))
            report_memory(world, 'million-memory', mount)
            if os.geteuid() == 0:
                known = forget_all(mount)
                report_memory(world, 'million-forgotten', mount)
                world.samples.note('million-forgotten', f'{known:,} inodes known then')
            else:
                world.samples.note('million-memory', 'what the kernel forgets is measured by root only')


def report_memory(world: World, row: str, mount: Mount) -> None:
    pids = mount.pids()
    found = memory(pids)
    world.samples.add(row, CTXFS, {CTXFS: found.pss})
    world.samples.note(row, f'{len(pids)} processes, RSS {found.rss:.0f} MB')


def forget_all(mount: Mount) -> int:
    """Inodes that the daemon still knows when the forgets have arrived: when fewer do not get any less."""
    last = -1
    for _ in range(120):
        forget()
        time.sleep(0.5)
        known = inodes(mount.call('statistics'))
        if known == last:
            return known
        last = known
    return last


def inodes(statistics: dict[str, Any]) -> int:
    found = statistics['inodes']
    return int(found if isinstance(found, int) else found['known'])
