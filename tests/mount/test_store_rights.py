"""Mounts with a store that is not at its best: busy for a moment, closed but for one prefix, or with another idea of the time."""
from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.s3_server import FakeS3, Fault, Request
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingSite

pytestmark = pytest.mark.skipif(IS_DOUBLE, reason='a directory has no store')

ENV = {'AWS_ACCESS_KEY_ID': 'any', 'AWS_SECRET_ACCESS_KEY': 'any'}
ID = 'SdkCtx-0123456789abcdefg'


@pytest.fixture
def fake() -> Iterator[FakeS3]:
    with FakeS3() as fake:
        yield fake


def host_of(fake: FakeS3, work: Path) -> tuple[Any, Path]:
    site = MountingSite(work, fake.url, ENV, lambda: pytest.fail('look at fake.objects'))
    return site.host(), site.mount_point()


def test_credentials_for_one_prefix_are_enough(fake: FakeS3, tmp_path: Path) -> None:
    """On a host that never saw the store, for a context that is empty: mounted by its id, written, renamed, removed, and mounted again. Nothing
    outside of the prefix is asked for twice, and nothing is told of what is missing inside. Every write asks for the encryption that was wished."""
    fake.only_prefix = f'contexts/{ID}/'
    host, at = host_of(fake, tmp_path)
    host.mount(ID, at, options=('--sync-every', 'unmount', '--sse', 'AES256'))
    (at / 'd').mkdir()
    (at / 'd/a').write_bytes(b'one')
    (at / 'b').write_bytes(b'two')
    host.cli('sync', str(at))
    (at / 'd/a').write_bytes(b'three')
    (at / 'b').rename(at / 'c')
    host.cli('sync', str(at))
    (at / 'c').unlink()
    host.unmount(at)
    bodies = {key.removeprefix(fake.only_prefix): stored.body for key, stored in fake.objects.items() if '/.ctxfs/' not in key}
    assert bodies == {'d/': b'', 'd/a': b'three'} or bodies == {'d/a': b'three'}
    assert all(key.startswith(fake.only_prefix) for key in fake.objects)
    writes = [request for request in fake.requests if request.method == 'PUT' and not request.query]
    assert len(writes) > 10 and all(request.headers['x-amz-server-side-encryption'] == 'AES256' for request in writes
                                    if request.key.startswith(fake.only_prefix))
    host.mount(ID, at)
    assert (at / 'd/a').read_bytes() == b'three'
    host.unmount(at)
    checks = {finding['check']: finding for finding in host.json('doctor', ID)['findings']}
    assert checks['conditional overwrite']['level'] == 'ok'
    assert 'for these credentials' in checks['lifetimes']['text']


def test_nothing_outside_of_the_prefix_is_needed_or_tried_again(fake: FakeS3, tmp_path: Path) -> None:
    """A mount asks for the registry until it is refused, and the bucket for its rules; from then on every key and every listing is inside of the
    prefix: of the mount, of the commands about it, of its end and of the next one. What needs the registry says so."""
    fake.only_prefix = f'contexts/{ID}/'
    host, at = host_of(fake, tmp_path)

    def outside() -> set[str]:
        found = {request.key or request.query.get('prefix', '') for request in fake.requests
                 if request.query.keys() not in ({'delete'}, {'lifecycle'})}
        fake.requests.clear()
        return {name for name in found if not name.startswith(str(fake.only_prefix))}
    registry = {'.ctxfs/', f'.ctxfs/contexts/ids/{ID}'}
    host.mount(ID, at, options=('--sync-every', 'unmount'))
    assert sum(request.is_heartbeat for request in fake.requests) == 1, 'the first heartbeat is not made again because of the registry'
    assert outside() <= registry
    (at / 'a').write_bytes(b'one')
    host.cli('sync', ID)
    assert host.status(at)['failedFiles'] == 0 and host.status(at)['remote']['error'] == ''
    host.cli('wait', ID)
    assert outside() == set()
    local = tmp_path / 'local'
    local.write_bytes(b'put')
    host.cli('files', 'put', ID, local, '/p')
    assert [entry['name'] for entry in host.json('files', 'ls', ID)['entries']] == ['a', 'p']
    assert host.json('context', 'show', ID)['state'] == 'in-use'
    assert outside() <= registry
    host.cli('umount', at)
    host.cli('wait', ID)
    assert outside() == set()
    host.mount(ID, at)
    assert (at / 'a').read_bytes() == b'one' and (at / 'p').read_bytes() == b'put'
    host.unmount(at)
    done = host.cli('context', 'clear', ID, check=False)
    assert done.returncode == 1 and done.stderr.startswith('ctxfs: to clear a context takes rights to its record below .ctxfs/contexts/, too')
    assert not [key for key in fake.objects if not key.startswith(fake.only_prefix)]


def test_another_context_is_refused_with_a_reason(fake: FakeS3, tmp_path: Path) -> None:
    """One line, no mount."""
    fake.only_prefix = f'contexts/{ID}/'
    host, at = host_of(fake, tmp_path)
    for reference in ('SdkCtx-g0123456789abcdef', 'a-name'):
        done = host.cli('mount', reference, at, check=False)
        assert (done.returncode, done.stderr.count('\n')) == (1, 1)
        assert 'AccessDenied' in done.stderr


@pytest.mark.parametrize('fault', [Fault.UNAVAILABLE, Fault.DROP])
def test_a_store_that_is_busy_for_a_moment_is_asked_again(fake: FakeS3, tmp_path: Path, fault: Fault) -> None:
    """Whatever the mount asks first: the registry, what the context has, the policy."""
    def is_list(request: Request) -> bool:
        return 'list-type' in request.query

    def is_registry(request: Request) -> bool:
        return '.ctxfs/contexts/' in request.key

    def is_policy(request: Request) -> bool:
        return request.key.endswith('.ctxfs/policy')
    host, at = host_of(fake, tmp_path)
    (tmp_path / 'policy.json').write_text('{"downloadPolicy": {"autoDownload": false}}')
    host.mount('c', at, create=True, options=('--policy', str(tmp_path / 'policy.json')))
    host.unmount(at)
    (tmp_path / 'elsewhere').mkdir()
    host, at = host_of(fake, tmp_path / 'elsewhere')
    asked = len(fake.requests)
    for when in (is_registry, is_list, is_policy):
        # a lost connection of a read is tried again at once, so there it takes two
        fake.fail_next('GET', fault, when=when, times=2 if fault is Fault.DROP and when is not is_list else 1)
    host.mount('c', at)
    assert not fake._faults['GET'], 'all of them were met'
    assert len(fake.requests) > asked
    (at / 'f').write_bytes(b'x')
    host.unmount(at)


def test_a_store_that_stays_busy_fails_the_mount_within_seconds(fake: FakeS3, tmp_path: Path) -> None:
    """One line with the cause; nothing is left mounted."""
    host, at = host_of(fake, tmp_path)
    host.create_context('c')
    fake.fail_next('GET', Fault.SLOW_DOWN, times=100)
    done = host.cli('mount', 'c', at, check=False)
    assert (done.returncode, done.stderr.count('\n')) == (1, 1)
    assert 'SlowDown' in done.stderr


def test_a_clock_that_is_wrong_is_named(fake: FakeS3, tmp_path: Path) -> None:
    """With how wrong it is, and what to do."""
    fake.clock = lambda: time.time() + 3600
    fake.fail_next('GET', Fault.SKEWED_CLOCK, times=100)
    host, at = host_of(fake, tmp_path)
    done = host.cli('mount', 'c', at, check=False)
    assert (done.returncode, done.stderr.count('\n')) == (1, 1)
    assert 'with the clock 60 minutes behind' in done.stderr
    assert 'set the clock' in done.stderr
