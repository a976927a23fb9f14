"""What comes into the cache of a real mount without being read, what does not, and what that costs.

Owns the warm-up and `ctxfs sync --mode download` on mounts. In which order and within which bounds files come is tests/unit/test_warmup.py's.
"""
from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ctxfs.edge.client import ControlClient
from tests.crash.fault_proxy import FaultProxy
from tests.crash.watch import eventually
from tests.fakes.counting_proxy import CountingProxy
from tests.model.hosts import IS_DOUBLE
from tests.mount.harness import CommandFailed
from tests.mount.sites import MountingHost, MountingSite, S3Bucket, site_maker
from tests.servers import S3Server

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no cache'), pytest.mark.timeout(200)]

MIB = 1 << 20
FILES = {f'd{number % 3}/f{number:02}': os.urandom(3000 + number) for number in range(30)} | {'big': os.urandom(20 * MIB + 7), 'empty': b''}


class Desk:
    """A context that another host filled, to be mounted by a host that has nothing of it."""

    def __init__(self, site: MountingSite, files: dict[str, bytes] | None = None) -> None:
        self.site = site
        self.files = FILES if files is None else files
        self.host: MountingHost = site.host()  # type: ignore[assignment]
        self.host.create_context('c')
        self.prefix = f'contexts/{site.context_id("c")}/'
        for key, body in self.files.items():
            site.bucket().put(self.prefix + key, body)
        self.at = site.mount_point()
        self.no_download = site.work / 'no-download.json'
        self.no_download.write_text('{"downloadPolicy": {"autoDownload": false}}')

    def mount(self, *options: str) -> None:
        self.host.mount('c', self.at, options=('--sync-every', 'unmount', *options))

    def unmount(self) -> None:
        self.host.unmount(self.at)

    def call(self, method: str, **params: Any) -> Any:
        socket, = Path(self.host.runtime).rglob('control.sock')
        with ControlClient(socket) as client:
            return client.call(method, **params)

    def wait(self) -> dict[str, Any]:
        return self.call('wait', what='download')

    def download(self, *arguments: str) -> dict[str, Any]:
        answer, = self.host.json('sync', str(self.at), *arguments, '--mode', 'download')['mounts']
        return answer

    def check(self, *keys: str) -> None:
        for key in keys or self.files:
            assert (self.at / key).read_bytes() == self.files[key], key


@pytest.fixture
def desk(new_site: Callable[[Path], Any], tmp_path: Path) -> Desk:
    return Desk(new_site(tmp_path))


class Counted(Desk):
    """With every request on the record."""

    proxy: CountingProxy

    def fetched(self) -> list[str]:
        """Keys of the users' objects whose content was asked for, sorted."""
        keys = [seen.key.removeprefix(self.prefix) for seen in self.proxy.requests(method='GET', kind='object')]
        return sorted(key for key in keys if not key.startswith('.ctxfs/'))


def through(endpoint: str, server: S3Server, tmp_path: Path) -> tuple[MountingSite, S3Bucket]:
    bucket = S3Bucket(server.endpoint, server.environment, f't-{secrets.token_hex(8)}')
    bucket.client.create_bucket(Bucket=bucket.name)
    return MountingSite(tmp_path, f's3://{bucket.name}?endpoint={endpoint}', server.environment, lambda: bucket), bucket


@pytest.fixture
def counted(s3_server: S3Server, tmp_path: Path) -> Iterator[Counted]:
    with CountingProxy(s3_server.endpoint) as proxy:
        site, bucket = through(proxy.endpoint, s3_server, tmp_path)
        with closing(bucket.client):
            made = Counted(site)
            made.proxy = proxy
            yield made


# --- by itself ------------------------------------------------------------------------------------------------------------------------

def test_after_the_warm_up_nobody_needs_the_store(s3_server: S3Server, tmp_path: Path) -> None:
    """`ctxfs mount --wait-download` returns when everything is here: with the server out of reach every file reads right, never read before."""
    with FaultProxy(s3_server.endpoint) as proxy:
        site, bucket = through(proxy.endpoint, s3_server, tmp_path)
        with closing(bucket.client):
            desk = Desk(site)
            desk.mount('--wait-download')
            proxy.plan = lambda method, path: 'cut'
            desk.check()
            proxy.plan = lambda method, path: None
            desk.unmount()


def test_after_the_warm_up_nobody_needs_the_directory(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The same with a `file://` store that is moved away."""
    desk = Desk(site_maker('file', request)(tmp_path))
    desk.mount('--wait-download', '--poll-every', '1h')
    (tmp_path / 'store').rename(tmp_path / 'elsewhere')
    desk.check()
    (tmp_path / 'elsewhere').rename(tmp_path / 'store')
    desk.unmount()


def test_the_next_mount_fetches_nothing(counted: Counted) -> None:
    """What the cache has is not asked for again; what the mount says is that all is here."""
    counted.mount('--wait-download')
    told = counted.call('statistics')['warmup']
    size = sum(map(len, FILES.values()))
    assert (told['state'], told['filesDone'], told['bytesDone'], told['fetchedBytes']) == ('idle', 31, size, size)
    task, = [task for task in counted.host.status(counted.at)['tasks'] if task['taskType'] == 'download']
    assert (task['status'], task['filesDone'], task['filesTotal'], task['bytesDone']) == ('Success', 31, 31, size)
    assert set(counted.fetched()) == set(FILES) - {'empty'}
    counted.unmount()
    counted.proxy.reset()
    counted.mount('--wait-download')
    counted.check()
    assert counted.fetched() == []
    assert counted.host.status(counted.at)['tasks'] == []
    counted.unmount()


def test_a_cache_smaller_than_the_content(new_site: Callable[[Path], Any], tmp_path: Path) -> None:
    """It is filled so far that nothing has to go, which is not waited beyond; what is not in it is read from the store."""
    desk = Desk(new_site(tmp_path), {f'{number:02}': os.urandom(2 * MIB) for number in range(30)})
    desk.mount('--cache-size', '40M')
    answer = desk.wait()
    assert answer['ok'] and '--cache-size' in answer['message']
    told, cache = desk.call('statistics')['warmup'], desk.call('status')['cache']
    assert told['state'] == 'full' and 10 <= told['filesDone'] <= 16
    assert told['bytesDone'] <= cache['used'] <= 0.8 * cache['limit']
    desk.check()
    desk.unmount()


def test_what_another_host_flushes_comes_without_being_read(counted: Counted) -> None:
    """A poll brings the name, the warm-up the content: what changed and nothing else."""
    counted.mount('--poll-every', '1s', '--wait-download')
    other, at = counted.site.host(), counted.site.mount_point()
    other.mount('c', at, options=('--policy', str(counted.no_download), '--sync-every', 'unmount'))
    counted.proxy.reset()
    (at / 'd0/f00').write_bytes(b'changed')
    (at / 'new').write_bytes(b'new')
    other.unmount(at)
    eventually('both are fetched', lambda: {'d0/f00', 'new'} <= set(counted.fetched()))
    assert set(counted.fetched()) == {'d0/f00', 'new'}
    eventually('and at rest', lambda: counted.wait()['ok'])
    counted.files = counted.files | {'d0/f00': b'changed', 'new': b'new'}
    counted.proxy.reset()
    counted.check()
    assert counted.fetched() == []
    counted.unmount()


def test_what_is_read_goes_first(s3_server: S3Server, tmp_path: Path) -> None:
    """A program that reads at the end of the walk, while it is at the beginning of a slow store, gets its answer next, and then its
    directory before all others."""
    asked: list[str] = []

    def slow(method: str, path: str) -> str | None:
        key = path.partition('?')[0].rpartition('/contexts/')[2].partition('/')[2]
        if method != 'GET' or key not in desk.files:
            return None
        asked.append(key)
        return 'slow'

    files = {f'a{number % 5}/{number:03}': b'a' * 2000 for number in range(150)} | {f'z/{number}': b'z' for number in range(5)}
    with FaultProxy(s3_server.endpoint) as proxy:
        site, bucket = through(proxy.endpoint, s3_server, tmp_path)
        with closing(bucket.client):
            desk = Desk(site, files)
            proxy.plan = slow
            desk.mount()
            eventually('the walk has begun', lambda: asked)
            before = len(asked)
            desk.check('z/4')
            assert asked.index('z/4') <= before + 12
            eventually('its directory is here', lambda: {f'z/{number}' for number in range(5)} <= set(asked))
            assert len(asked) < 120 and asked.count('z/4') == 1
            proxy.plan = lambda method, path: None
            assert desk.wait()['ok']
            desk.check()
            desk.unmount()


def test_without_automatic_download_only_what_is_read_comes(counted: Counted) -> None:
    """No content before a read, and then that file's; nor does anybody wait for what will not come."""
    counted.mount('--policy', str(counted.no_download))
    assert sorted(os.listdir(counted.at / 'd0')) == [f'f{number:02}' for number in range(0, 30, 3)]
    answer = counted.wait()
    assert answer['ok'] and 'autoDownload is off' in answer['message']
    assert counted.fetched() == []
    counted.check('d1/f01')
    assert counted.fetched() == ['d1/f01']
    assert counted.call('statistics')['warmup']['state'] == 'off'
    counted.unmount()


# --- when asked -----------------------------------------------------------------------------------------------------------------------

def test_a_download_of_a_path_fetches_that_path(counted: Counted) -> None:
    """Names and content below it and nothing else; relative to the root, below the mount point, or a single file."""
    counted.mount('--policy', str(counted.no_download))
    eventually('listed', lambda: counted.host.status(counted.at)['remote']['isComplete'])
    counted.site.bucket().put(f'{counted.prefix}d1/new', b'new')
    counted.site.bucket().put(f'{counted.prefix}d2/new', b'not yet')
    answer = counted.download('d1')
    assert (answer['ok'], answer['files'], answer['message']) == (True, 11, '')
    assert counted.fetched() == sorted([f'd1/f{number:02}' for number in range(1, 30, 3)] + ['d1/new'])
    assert not (counted.at / 'd2/new').exists()
    counted.proxy.reset()
    assert (counted.at / 'd1/new').read_bytes() == b'new'
    counted.check(*(key for key in FILES if key.startswith('d1/')))
    assert counted.fetched() == []
    assert counted.download(str(counted.at / 'd2/new'))['files'] == 1
    assert counted.fetched() == ['d2/new']
    assert counted.download()['files'] == len(FILES) + 1
    counted.check()
    counted.unmount()


def test_a_download_keeps_what_was_changed_here(desk: Desk) -> None:
    """Dirty files stay dirty and as they are, whatever the bucket has by now; the flush keeps both."""
    desk.mount('--policy', str(desk.no_download))
    (desk.at / 'd0/f00').write_bytes(b'mine')
    (desk.at / 'mine').write_bytes(b'only here')
    desk.site.bucket().put(f'{desk.prefix}d0/f00', b'theirs')
    assert desk.download()['ok']
    assert (desk.at / 'd0/f00').read_bytes() == b'mine' and (desk.at / 'mine').read_bytes() == b'only here'
    assert desk.host.status(desk.at)['pending']['files'] == 2
    desk.host.unmount(desk.at, check=False)
    bodies = {desk.site.bucket().body(key) for key in desk.site.bucket().keys(f'{desk.prefix}d0/')}
    assert {b'mine', b'theirs'} <= bodies


def test_a_path_that_is_nowhere(desk: Desk) -> None:
    """One line that names it, status 1; a path outside of the mount is a wrong command."""
    desk.mount()
    with pytest.raises(CommandFailed, match='status 1\nctxfs: /nope/x is neither in the bucket nor in the mount'):
        desk.host.cli('sync', 'c', 'nope/x', '--mode', 'download')
    with pytest.raises(CommandFailed, match='status 2'):
        desk.host.cli('sync', 'c', '../x', '--mode', 'download')
    desk.unmount()


def test_a_download_that_does_not_fit(new_site: Callable[[Path], Any], tmp_path: Path) -> None:
    """Done as far as the cache goes, and the command says how far that is."""
    desk = Desk(new_site(tmp_path), {f'{number:02}': os.urandom(2 * MIB) for number in range(30)})
    desk.mount('--cache-size', '40M', '--policy', str(desk.no_download))
    done = desk.host.cli('sync', str(desk.at), '--mode', 'download')
    assert '16 of 30 files' in done.stdout + done.stderr and '--cache-size' in done.stdout + done.stderr
    desk.check()
    desk.unmount()


def test_a_download_that_nobody_waits_for(counted: Counted) -> None:
    """`--no-wait` returns at once; `ctxfs status` tells how far it is and how it ended."""
    counted.mount('--policy', str(counted.no_download))
    assert counted.download('d2', '--no-wait')['message'] == 'scheduled'

    def ended() -> list[dict[str, Any]]:
        tasks = json.loads(counted.host.cli('status', str(counted.at), '--json').stdout)['mounts'][0]['tasks']
        return [task for task in tasks if task['taskType'] == 'download' and task['finishTime']]
    task, = eventually('the download has ended', ended)
    assert (task['status'], task['filesDone'], task['filesTotal']) == ('Success', 10, 10)
    assert len(counted.fetched()) == 10
    counted.unmount()
