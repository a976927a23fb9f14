"""Lifetimes on real mounts: tags and the bucket's rule on a server; a day that passes, in a directory used as a bucket."""
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctxfs.storage.file_layout import Sidecar, file_etag
from ctxfs.storage.stores import open_store
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingSite, site_maker

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='nothing expires in a directory'), pytest.mark.timeout(150)]

POLICY = {'recyclePolicy': {'lifecycle': 'Lifecycle_1Day', 'paths': ['logs']}}
TAG = 'ctxfs-lifecycle'
DAY = 86_400
QUIET = ('--sync-every', 'unmount', '--poll-every', '1h')


def until(what: Callable[[], bool]) -> bool:
    """Whether it becomes so within 30 s."""
    deadline = time.monotonic() + 30
    while not what() and time.monotonic() < deadline:
        time.sleep(0.02)
    return what()


@pytest.fixture
def policy(tmp_path: Path) -> str:
    path = tmp_path / 'policy.json'
    path.write_text(json.dumps(POLICY))
    return str(path)


def test_uploads_carry_their_lifetime_and_the_bucket_has_one_rule(tmp_path: Path, policy: str, request: pytest.FixtureRequest) -> None:
    """Tag and metadata below the policy's paths and nowhere else; a rename across the border takes the one of its new path; the rule is there
    once for two contexts, beside the foreign one; `status` says that the server does it."""
    site = site_maker('s3', request)(tmp_path)
    bucket: Any = site.bucket()
    foreign = {'ID': 'theirs', 'Status': 'Enabled', 'Filter': {'Prefix': 'tmp/'}, 'Expiration': {'Days': 3}}
    bucket.client.put_bucket_lifecycle_configuration(Bucket=bucket.name, LifecycleConfiguration={'Rules': [foreign]})
    host: Any = site.host()
    for name in ('one', 'two'):
        at = site.mount_point()
        host.mount(name, at, create=True, options=(*QUIET, '--policy', policy))
        (at / 'logs').mkdir()
        (at / 'logs/a').write_bytes(b'a')
        os.symlink('a', at / 'logs/link')
        (at / 'logs/empty').mkdir()
        (at / 'logs/large').write_bytes(bytes(9 << 20))
        (at / 'kept').write_bytes(b'k')
        (at / 'logs/out').write_bytes(b'o')
        host.cli('sync', at)
        assert host.status(at)['recycle']['state'] == 'server'
        (at / 'logs/out').rename(at / 'out')
        (at / 'kept').rename(at / 'logs/in')
        host.unmount(at)
        prefix = f'contexts/{site.context_id(name)}/'
        assert {key: lifetime(bucket, prefix + key) for key in ('logs/a', 'logs/link', 'logs/large', 'logs/in', 'logs/empty/', 'out')} == {
            'logs/a': ('Lifecycle_1Day', 'Lifecycle_1Day'), 'logs/link': ('Lifecycle_1Day', 'Lifecycle_1Day'),
            'logs/large': ('Lifecycle_1Day', 'Lifecycle_1Day'), 'logs/in': ('Lifecycle_1Day', 'Lifecycle_1Day'),
            'logs/empty/': ('', ''), 'out': ('Lifecycle_Forever', '')}
    rules = bucket.client.get_bucket_lifecycle_configuration(Bucket=bucket.name)['Rules']
    assert rules == [foreign, {'ID': 'ctxfs-Lifecycle_1Day', 'Status': 'Enabled', 'Expiration': {'Days': 1},
                               'Filter': {'Tag': {'Key': TAG, 'Value': 'Lifecycle_1Day'}}}]


def lifetime(bucket: Any, key: str) -> tuple[str, str]:
    """By the tag, and by the metadata."""
    tags = {tag['Key']: tag['Value'] for tag in bucket.client.get_object_tagging(Bucket=bucket.name, Key=key)['TagSet']}
    return tags.get(TAG, ''), bucket.client.head_object(Bucket=bucket.name, Key=key)['Metadata'].get(TAG, '')


def test_a_day_passes(tmp_path: Path, policy: str, request: pytest.FixtureRequest) -> None:
    """What one host uploaded is a day old when another host mounts the context, which has no such policy: it goes from the directory and
    from the mount, with what knew of it; the rest stays."""
    site: MountingSite = site_maker('file', request)(tmp_path)
    first: Any = site.host()
    at = site.mount_point()
    first.mount('c', at, create=True, options=(*QUIET, '--policy', policy))
    (at / 'logs').mkdir()
    (at / 'logs/old').write_bytes(b'old')
    (at / 'logs/new').write_bytes(b'new')
    (at / 'kept').write_bytes(b'kept')
    first.cli('sync', at)
    assert first.status(at)['recycle']['state'] == 'ctxfs'
    first.unmount(at)
    context = tmp_path / 'store/contexts' / site.context_id('c')
    for name in ('logs/old', 'kept'):
        set_back(tmp_path / 'store', context / name, DAY + 3600)
    second: Any = site.host()
    everything = tmp_path / 'everything.json'
    everything.write_text('{}')
    for number in (1, 2):
        second.mount('c', at, options=(*QUIET, '--policy', str(everything)))
        if number == 1:
            # the index is about the version before the day passed: a look at the file finds its lifetime, the next sweep its end
            assert (at / 'logs/old').read_bytes() == b'old'
            assert sorted(os.listdir(at / 'logs')) == ['new', 'old']
            second.unmount(at)
    assert until(lambda: os.listdir(at / 'logs') == ['new'])
    assert not (at / 'logs/old').exists()
    assert until(lambda: second.status(at)['recycle']['removed'] == 1)
    assert sorted(path.name for path in context.iterdir() if path.name[0] != '.') == ['kept', 'logs']
    assert [path.name for path in (context / 'logs').iterdir()] == ['new']
    assert ((at / 'kept').read_bytes(), (at / 'logs/new').read_bytes()) == (b'kept', b'new')
    second.unmount(at)


def set_back(store: Path, path: Path, seconds: int) -> None:
    """Let an object be older: its file's time, and the name of that version in the sidecar that has its metadata."""
    before = os.stat(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns - seconds * 10**9))
    for sidecar in (store / '.bucket/meta').rglob('*'):
        if sidecar.is_file() and json.loads(sidecar.read_bytes())['key'] == str(path.relative_to(store)):
            kept = json.loads(sidecar.read_bytes())
            kept['versions'] = {file_etag(os.stat(path)): kept['versions'][file_etag(before)]}
            sidecar.write_text(json.dumps(kept))
            assert set(kept) == set(Sidecar.__struct_fields__)
            return
    raise AssertionError(f'no sidecar of {path}')


def test_the_lifetime_is_in_the_directory_too(tmp_path: Path, policy: str, request: pytest.FixtureRequest) -> None:
    """As tags and metadata that the store's own verbs show."""
    site: MountingSite = site_maker('file', request)(tmp_path)
    host: Any = site.host()
    at = site.mount_point()
    host.mount('c', at, create=True, options=(*QUIET, '--policy', policy))
    (at / 'logs').mkdir()
    (at / 'logs/a').write_bytes(b'a')
    (at / 'b').write_bytes(b'b')
    host.unmount(at)
    store = open_store(site.url)
    prefix = f'contexts/{site.context_id("c")}/'
    assert store.tags(prefix + 'logs/a') == {TAG: 'Lifecycle_1Day'}
    assert (store.head(prefix + 'logs/a').metadata or {})[TAG] == 'Lifecycle_1Day'
    assert store.tags(prefix + 'b') == {}
    store.close()
