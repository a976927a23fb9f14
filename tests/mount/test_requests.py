"""What things cost: requests counted between real mounts and an S3 server that checks signatures, by kind.

Counted is everything that passes while a change is made and `ctxfs sync` uploads it; the index segment of each flush (`PUT index`) is named
wherever it is expected. The clock of uploads, polls and the warm-up are off, so nothing else happens meanwhile; what a worker asks once to find out
what the server can do is asked before.
"""
from __future__ import annotations

import concurrent.futures
import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ctxfs.storage.stores import open_store
from tests.fakes.counting_proxy import CountingProxy
from tests.fakes.s3_server import FakeS3
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingHost, MountingSite, S3Bucket
from tests.servers import S3Server

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory makes no requests'), pytest.mark.timeout(200)]

PUT, INDEX = ('PUT', 'object'), ('PUT', 'index')
WORKERS_WARM = 40

Counts = dict[tuple[str, str], int]


class Desk:
    """A context mounted through the proxy. `cost(change)` is what the change and its upload cost."""

    def __init__(self, site: MountingSite, proxy: CountingProxy) -> None:
        self.site, self.proxy = site, proxy
        self.host: MountingHost = site.host()  # type: ignore[assignment]
        self.at = site.mount_point()
        policy = site.work / 'policy.json'
        policy.write_text('{"downloadPolicy": {"autoDownload": false}}')
        self.options = ('--sync-every', 'unmount', '--policy', str(policy))

    def mount(self, *, host: MountingHost | None = None) -> None:
        """With workers that know the server: every one of them has written something under a condition."""
        (host or self.host).mount('c', self.at, create=True, options=self.options)
        (self.at / 'warm').mkdir()
        for number in range(WORKERS_WARM):
            (self.at / f'warm/{number}').write_bytes(b'w')
        self.sync()
        for number in range(WORKERS_WARM):
            (self.at / f'warm/{number}').unlink()
        (self.at / 'warm').rmdir()
        self.sync()
        self.proxy.reset()

    def sync(self) -> None:
        self.site.hosts[-1].cli('sync', self.at)

    def cost(self, change: Callable[[], Any]) -> Counts:
        self.proxy.reset()
        change()
        self.sync()
        return self.proxy.counts()

    def unmount(self) -> None:
        self.site.hosts[-1].unmount(self.at)


@pytest.fixture
def desk(s3_server: S3Server, tmp_path: Path) -> Iterator[Desk]:
    """Not mounted yet."""
    with CountingProxy(s3_server.endpoint) as proxy:
        bucket = S3Bucket(s3_server.endpoint, s3_server.environment, f't-{secrets.token_hex(8)}')
        bucket.client.create_bucket(Bucket=bucket.name)
        site = MountingSite(tmp_path, f's3://{bucket.name}?endpoint={proxy.endpoint}', s3_server.environment, lambda: bucket)
        yield Desk(site, proxy)
        bucket.client.close()


@pytest.fixture
def exact_desk(tmp_path: Path) -> Iterator[Desk]:
    """On a server that honours every condition, also those on the target of a copy, which the other one ignores."""
    with FakeS3() as fake, CountingProxy(fake.endpoint) as proxy:
        env = {'AWS_ACCESS_KEY_ID': 'any', 'AWS_SECRET_ACCESS_KEY': 'any'}
        yield Desk(MountingSite(tmp_path, f's3://{fake.bucket}?endpoint={proxy.endpoint}', env, lambda: pytest.fail('not needed')), proxy)


def save_as_editors_do(path: Path, content: bytes) -> None:
    """A new file beside the old one, synced, then renamed over it."""
    beside = path.with_name(f'.{path.name}.swp')
    with open(beside, 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)


def test_small_changes_cost_what_they_must(desk: Desk) -> None:
    """An editor's save one PUT; touch and chmod none, nor the same content again; created, renamed and removed in between:
    none."""
    desk.mount()
    path = desk.at / 'file.txt'
    assert desk.cost(lambda: path.write_bytes(b'one')) == {PUT: 1, INDEX: 1}
    assert desk.cost(lambda: save_as_editors_do(path, b'two')) == {PUT: 1, INDEX: 1}
    assert [seen.key.rpartition('/')[2] for seen in desk.proxy.requests(kind='object')] == ['file.txt']
    assert desk.cost(lambda: os.utime(path, (1, 2))) == {INDEX: 1}
    assert desk.cost(lambda: path.chmod(0o600)) == {INDEX: 1}
    assert desk.cost(lambda: path.write_bytes(b'two')) == {INDEX: 1}
    assert desk.cost(lambda: None) == {}

    def come_and_go() -> None:
        (desk.at / 'passing').write_bytes(b'x')
        (desk.at / 'passing').rename(desk.at / 'passed')
        (desk.at / 'passed').unlink()
    assert desk.cost(come_and_go) == {}

    (desk.at / 'other').write_bytes(b'o')
    desk.sync()
    # the directory's record goes along with the tombstone
    assert desk.cost(lambda: (desk.at / 'other').unlink()) == {('POST', 'batch-delete'): 1, INDEX: 1}
    assert desk.cost(lambda: [(desk.at / f'many{n}').write_bytes(b'%d' % n) for n in range(20)]) == {PUT: 20, INDEX: 1}
    desk.unmount()


def test_content_that_the_bucket_holds_is_not_sent_by_a_host_that_never_read_it(desk: Desk) -> None:
    """Only its listing was seen: the etag proves that the content is the same. Other content of the same size is sent."""
    desk.mount()
    (desk.at / 'a').write_bytes(b'same content')
    (desk.at / 'b').write_bytes(b'same content')
    desk.unmount()
    desk.mount(host=desk.site.host())  # type: ignore[arg-type]

    def write_both() -> None:
        (desk.at / 'a').write_bytes(b'same content')
        (desk.at / 'b').write_bytes(b'other stuff!')
    assert desk.cost(write_both) == {PUT: 1, INDEX: 1}
    assert [seen.key.rpartition('/')[2] for seen in desk.proxy.requests(kind='object')] == ['b']
    desk.unmount()


def test_one_changed_file_of_thousands_is_two_requests(desk: Desk) -> None:
    """The others were put into the bucket directly, as a context that other hosts wrote: a change costs by its own size."""
    desk.host.create_context('c')
    fill(desk, 2500)
    desk.mount()
    names = sorted(os.listdir(desk.at / 'd12'))
    assert len(names) == 100
    assert desk.cost(lambda: (desk.at / 'd12' / names[7]).write_bytes(b'changed')) == {PUT: 1, INDEX: 1}
    desk.unmount()


def test_the_next_mount_of_a_large_context_costs_five_requests(exact_desk: Desk) -> None:
    """Record, mode and policy of the context, the record once more behind the heartbeat, and one look at the index, whatever the size; names and
    attributes of all are there without another."""
    desk = exact_desk
    desk.host.cli('context', 'create', 'c')
    fill(desk, 1100)
    desk.mount()
    assert len(list(desk.at.rglob('*'))) == 1111
    desk.unmount()
    desk.proxy.reset()
    desk.host.mount('c', desk.at, options=desk.options)
    assert len([path.stat() for path in desk.at.rglob('*')]) == 1111
    asked = [seen for seen in desk.proxy.requests() if '/.ctxfs/mounts/' not in seen.key]
    context = desk.site.context_id('c')
    assert sorted(seen.key.removeprefix(f'contexts/{context}/') for seen in asked) == [
        '', f'.ctxfs/contexts/ids/{context}', f'.ctxfs/contexts/ids/{context}', '.ctxfs/mode', '.ctxfs/policy']
    desk.unmount()


def fill(desk: Desk, count: int) -> None:
    """Files of the context, 100 in a directory, past the mount and the proxy's memory."""
    prefix = f'contexts/{desk.site.context_id("c")}/'
    with pytest.MonkeyPatch.context() as patch:
        for name, value in desk.site.env.items():
            patch.setenv(name, value)
        with contextlib.closing(open_store(desk.site.url)) as store, concurrent.futures.ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda n: store.put(f'{prefix}d{n // 100}/f{n % 100:02}', b'x'), range(count)):
                pass


def move_a_directory(desk: Desk, count: int) -> Counts:
    desk.mount()
    (desk.at / 'old').mkdir()
    for number in range(count):
        (desk.at / f'old/{number:04}').write_bytes(b'%d' % number)
    desk.sync()
    counts = desk.cost(lambda: (desk.at / 'old').rename(desk.at / 'new'))
    assert len(os.listdir(desk.at / 'new')) == count
    desk.unmount()
    return counts


def test_a_moved_directory_is_copied_inside_the_store(exact_desk: Desk) -> None:
    """400 unchanged files: 400 copies of one request each and one batch delete; the index learns of the new names in one segment and
    of the old ones in another."""
    assert move_a_directory(exact_desk, 400) == {('PUT', 'copy'): 400, ('POST', 'batch-delete'): 1, INDEX: 2}


def test_a_server_that_ignores_the_conditions_of_copies_is_asked_for_none(desk: Desk) -> None:
    """Small files are read and put instead, with their tags: a copy could replace what another host has just put there."""
    assert move_a_directory(desk, 100) == {('GET', 'object'): 100, ('GET', 'tagging'): 100, PUT: 100, ('POST', 'batch-delete'): 1, INDEX: 2}
