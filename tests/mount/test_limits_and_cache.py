"""Limits, counts of requests and the cache's commands on one real mount of an S3 server, through a proxy that counts as well."""
from __future__ import annotations

import json
import os
import secrets
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families

from ctxfs.edge import read_ahead
from ctxfs.edge.log_file import MAX_LOG_BYTES
from tests.crash.watch import eventually
from tests.fakes.counting_proxy import CountingProxy
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingHost, MountingSite, S3Bucket, site_maker
from tests.servers import S3Server, free_port

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory makes no requests'), pytest.mark.timeout(200)]

MIB = 1 << 20


class Desk:
    def __init__(self, site: MountingSite, proxy: CountingProxy, bucket: S3Bucket) -> None:
        self.site, self.proxy = site, proxy
        self.host: MountingHost = site.host()  # type: ignore[assignment]
        self.host.create_context('c')
        self.prefix = f'contexts/{site.context_id("c")}/'
        self.bucket = bucket
        self.at = site.mount_point()
        self.policy = site.work / 'policy.json'
        self.policy.write_text('{"downloadPolicy": {"autoDownload": false}}')

    def cache(self, *words: str | Path) -> Any:
        return self.host.json('cache', *map(str, words))


@pytest.fixture
def desk(s3_server: S3Server, tmp_path: Path) -> Iterator[Desk]:
    with CountingProxy(s3_server.endpoint) as proxy:
        bucket = S3Bucket(s3_server.endpoint, s3_server.environment, f't-{secrets.token_hex(8)}')
        with closing(bucket.client):
            bucket.client.create_bucket(Bucket=bucket.name)
            yield Desk(MountingSite(tmp_path, f's3://{bucket.name}?endpoint={proxy.endpoint}', s3_server.environment, lambda: bucket), proxy, bucket)


def test_limits_counts_and_metrics(desk: Desk) -> None:
    """A mount with limits says so; its requests are counted as the proxy between counts them; both are in the metrics of the command and in
    those over HTTP, which parsers of Prometheus read; and the counts outlive a worker that is killed."""
    port = free_port()
    desk.host.mount('c', desk.at, options=('--policy', str(desk.policy), '--sync-every', 'unmount', '--max-upload-rate', '64M',
                                           '--max-download-rate', '64M', '--transfers', '1', '--metrics-addr', f'127.0.0.1:{port}'))
    status = desk.host.status(desk.at)
    assert status['limits'] == {'uploadBytes': 64 * MIB, 'downloadBytes': 64 * MIB, 'transfers': 1}
    assert 'uploads 64 MiB/s, downloads 64 MiB/s, 1 transfer at once' in desk.host.cli('status').stdout
    (desk.at / 'warm').write_bytes(b'w')        # what the workers ask the server once
    desk.host.cli('sync', desk.at)
    before = desk.host.status(desk.at)['requests']
    desk.proxy.reset()
    for number in range(5):
        (desk.at / f'{number}').write_bytes(os.urandom(1000))
    (desk.at / 'big').write_bytes(os.urandom(20 * MIB))
    desk.host.cli('sync', desk.at)
    after = desk.host.status(desk.at)['requests']
    grown = {kind: counts['count'] - before.get(kind, {'count': 0})['count'] for kind, counts in after.items()}
    assert grown['put'] == desk.proxy.total(method='PUT', kind='object') + desk.proxy.total(method='PUT', kind='index') == 6
    assert grown['part'] == desk.proxy.total(method='PUT', kind='multipart') == 3 and grown['multipart'] == 2
    assert after['part']['bytesSent'] == 20 * MIB and after['put']['errors'] == 0
    text = urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics', timeout=30).read().decode()
    scraped = {family.name: family for family in text_string_to_metric_families(text)}
    told = {family.name: family for family in text_string_to_metric_families(desk.host.cli('metrics').stdout)}
    said = {family.name: family for family in open_families(desk.host.cli('metrics', '--openmetrics').stdout)}
    for families in (scraped, told, said):
        parts, = [sample for sample in families['ctxfs_requests'].samples if sample.labels['kind'] == 'part']
        assert (parts.value, parts.labels['mountpoint']) == (3, str(desk.at))
        times = families['ctxfs_request_duration_seconds'].samples
        assert [time.value for time in times if time.labels.get('le') == '+Inf' and time.labels['kind'] == 'part'] == [3]
        assert families['ctxfs_upload_limit_bytes_per_second'].samples[0].value == 64 * MIB
    assert scraped.keys() == told.keys() == said.keys()
    pid, *_ = desk.host.json('metrics')['mounts'][0]['statistics']['workers']['pids']
    os.kill(pid, 9)
    eventually('another worker', lambda: pid not in desk.host.json('metrics')['mounts'][0]['statistics']['workers']['pids'])
    assert desk.host.status(desk.at)['requests']['part']['count'] == 3
    other = desk.host.cli('mount', 'c2', desk.site.mount_point(), '--create', '--metrics-addr', f'127.0.0.1:{port}', check=False)
    assert other.returncode == 1 and other.stderr.count('\n') == 1 and 'Address already in use; choose another --metrics-addr' in other.stderr
    desk.host.unmount(desk.at)
    with pytest.raises(OSError):
        urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics', timeout=30)


def test_the_cache_is_shown_warmed_and_dropped(desk: Desk) -> None:
    """What is warm is read without a request, what is dropped is not here any more, and what is not uploaded yet stays whatever is dropped."""
    files = {f'd/{number}': os.urandom(5000) for number in range(4)} | {'e/big': os.urandom(3 * MIB), 'other': b'o'}
    for key, body in files.items():
        desk.bucket.put(desk.prefix + key, body)
    desk.host.mount('c', desk.at, options=('--policy', str(desk.policy), '--sync-every', 'unmount'))
    desk.proxy.reset()
    warmed = desk.cache('warm', 'c', 'd', '/e/')
    assert [(m['path'], m['files'], m['ok']) for m in warmed['mounts']] == [('/d', 4, True), ('/e', 1, True)]
    assert desk.proxy.total(method='GET', kind='object') == 5 and len(desk.proxy.requests(kind='list')) == 0
    desk.proxy.reset()
    for key in files.keys() - {'other'}:
        assert (desk.at / key).read_bytes() == files[key]
    assert desk.proxy.total(method='GET', kind='object') == 0
    assert '/d/0: 1 file (4.9 KiB) is in the cache' in desk.host.cli('cache', 'warm', desk.at / 'd/0').stdout
    (desk.at / 'new').write_bytes(b'n' * 100)
    (desk.at / 'd/1').write_bytes(b'changed')
    shown, = desk.cache('show')['mounts']
    dirty = shown['dirty']
    assert shown['used'] > 3 * MIB and dirty >= 107 and shown['hits'] > 0 and Path(shown['directory']).is_dir()
    assert 'wait for their upload' in desk.host.cli('cache', 'show', desk.at).stdout
    assert desk.cache('drop', 'c', 'e')['mounts'][0]['bytes'] >= 3 * MIB
    desk.proxy.reset()
    assert (desk.at / 'd/0').read_bytes() == files['d/0'] and desk.proxy.total(method='GET', kind='object') == 0
    desk.host.cli('cache', 'drop')
    shown, = desk.cache('show')['mounts']
    assert shown['dirty'] == dirty and shown['used'] < MIB
    missing = desk.host.cli('cache', 'warm', 'c', 'nowhere', check=False)
    assert missing.returncode == 1 and missing.stderr == 'ctxfs: /nowhere is neither in the bucket nor in the mount\n'
    assert (desk.at / 'd/1').read_bytes() == b'changed' and (desk.at / 'new').read_bytes() == b'n' * 100
    desk.host.unmount(desk.at)
    assert desk.bucket.body(desk.prefix + 'd/1') == b'changed' and desk.bucket.body(desk.prefix + 'e/big') == files['e/big']
    left, = desk.cache('show', 'c')['mounts']
    assert left['limit'] is None and left['used'] > 0 and left['directory'] == shown['directory']
    assert 'not mounted' in desk.host.cli('cache', 'show', 'c').stdout
    assert desk.cache('drop', 'c')['mounts'][0]['entries'] > 0 == desk.cache('drop', 'c')['mounts'][0]['entries']
    desk.host.mount('c', desk.at, options=('--policy', str(desk.policy), '--sync-every', 'unmount'))
    assert (desk.at / 'd/0').read_bytes() == files['d/0']
    desk.host.unmount(desk.at)


def test_a_file_is_read_in_few_requests(desk: Desk) -> None:
    """From its beginning to its end: the kernel asks for more at a time than by itself, where root can tell it to."""
    body = os.urandom(16 * MIB)
    desk.bucket.put(desk.prefix + 'large', body)
    desk.host.mount('c', desk.at, options=['--policy', str(desk.policy)])
    try:
        device = os.stat(desk.at).st_dev
        width = Path(f'/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb')
        if not os.access(width, os.W_OK):
            pytest.skip('only root can tell the kernel')
        eventually('the kernel is told', lambda: int(width.read_text()) == read_ahead.WIDTH_KIB)
        assert (desk.at / 'large').read_bytes() == body
        shown, = desk.cache('show')['mounts']
        requests = len(body) / (read_ahead.WIDTH_KIB << 10)
        assert shown['hits'] + shown['misses'] <= 1.5 * requests
    finally:
        desk.host.unmount(desk.at)


def test_limits_that_would_do_nothing_are_refused(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """On a directory, where no request is made, by the command line or the named mount; the config file's default is about other stores. A
    wrong address gets one line."""
    site = site_maker('file', request)(tmp_path)
    host, at = site.host(), site.mount_point()
    for option, value, said in (('--max-upload-rate', '1M', 'no effect on a file:// store'), ('--max-download-rate', 'x', 'not a rate'),
                                ('--metrics-addr', 'x:y', 'write HOST:PORT'), ('--transfers', '0', 'from 1 to')):
        refused = host.cli('mount', 'c', at, '--create', option, value, check=False)
        assert refused.returncode == 2 and said in refused.stderr and refused.stderr.count('\n') == 1, refused.stderr
    config = tmp_path / 'config/ctxfs/config.toml'
    config.parent.mkdir(parents=True)
    config.write_text(f'max_upload_rate = "1M"\n[mounts.home]\ncontext = "c"\nmountpoint = {json.dumps(str(at))}\ntransfers = 2\ncreate = true\n')
    host.cli('mount', 'home', env={'XDG_CONFIG_HOME': str(tmp_path / 'config')})
    assert host.status(at)['limits'] == {'uploadBytes': MIB, 'downloadBytes': None, 'transfers': 2}
    host._names[at] = 'c'
    host.unmount(at)


def test_the_log_of_a_mount_is_bounded(desk: Desk) -> None:
    """The daemon looks after it, from the beginning: a log that grows too long while it is mounted is moved aside, and goes on."""
    desk.host.mount('c', desk.at)
    log = Path(desk.host.status(desk.at)['stateDir']) / 'ctxfs.log'
    desk.host.unmount(desk.at)
    os.truncate(log, MAX_LOG_BYTES - 10)
    desk.host.mount('c', desk.at)
    aside = log.with_name('ctxfs.log.1')
    eventually('the log is cut', lambda: aside.exists() and log.stat().st_size < 1 << 20)
    assert aside.stat().st_size > MAX_LOG_BYTES
    desk.host.unmount(desk.at)
    assert 'write-back: ' in log.read_text()
