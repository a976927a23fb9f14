"""The stores that the contract suite runs against.

Owns how each is made and taken away. The tests must not know which one they have, except through `capabilities()`. Beside a directory and a
real S3 server they are fakes with the quirks of whole providers (fakes/profiles.py).

CTXFS_TEST_S3 names a real bucket (`s3://BUCKET[/PREFIX]?endpoint=…`), with CTXFS_TEST_S3_KEY and CTXFS_TEST_S3_SECRET; everything is done
below a prefix of its own and removed. CTXFS_TEST_CEPH=1 starts a Ceph RGW for it (scripts/ceph-test).
"""
from __future__ import annotations

import contextlib
import inspect
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.stores import open_store
from tests.fakes.memory_store import MemoryStore
from tests.fakes.profiles import PROFILES, provider
from tests.servers import S3Server

REAL = os.environ.get('CTXFS_TEST_S3', '')
CEPH = os.environ.get('CTXFS_TEST_CEPH', '') == '1'
#: the one with versions is one that heeds nothing, as test_profiles.py shows
PROVIDERS = [name for name in PROFILES if name != 'oss-versioned']
KINDS = ['file', 's3', 's3-prefix', 'memory', *PROVIDERS, *(['real'] if REAL or CEPH else [])]
#: where a provider's quirks can be seen; keys, listings and bytes are the same everywhere
QUIRKY = 'test_conditions'


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A prefix changes keys and nothing else: the modules about keys cover it."""
    if 'store_url' in metafunc.fixturenames:
        module = metafunc.module.__name__.rpartition('.')[2]
        left_out = {'s3-prefix'} if module not in ('test_objects', 'test_listing') else set()
        if module != QUIRKY:
            left_out |= PROFILES.keys() - {'aws'}
        if 'store_url' in inspect.signature(metafunc.function).parameters:     # a store in memory has no URL for other processes
            left_out.add('memory')
        metafunc.parametrize('store_url', [kind for kind in KINDS if kind not in left_out], indirect=True)


@pytest.fixture
def real_server(request: pytest.FixtureRequest) -> tuple[str, dict[str, str]]:
    """The URL of a real bucket and the credentials for it."""
    if CEPH:
        server: S3Server = request.getfixturevalue('ceph_server')
        return server.url(server.make_bucket()), server.environment
    return REAL, {'AWS_ACCESS_KEY_ID': os.environ['CTXFS_TEST_S3_KEY'], 'AWS_SECRET_ACCESS_KEY': os.environ['CTXFS_TEST_S3_SECRET']}


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty store."""
    if request.param == 'file':
        yield f'file://{tmp_path}/store'
    elif request.param == 'memory':
        yield MemoryStore.url
    elif request.param in PROVIDERS:
        with provider(request.param) as (fake, env):
            for name, value in env.items():
                monkeypatch.setenv(name, value)
            yield fake.url
    elif request.param == 'real':
        url, env = request.getfixturevalue('real_server')
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        location, _, options = url.partition('?')
        yield f'{location.rstrip("/")}/contract-{secrets.token_hex(6)}?{options}'.rstrip('?')
    else:
        server: S3Server = request.getfixturevalue('s3_server')
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url = server.url(server.make_bucket())
        yield url.replace('?', '/a/prefix of its own?') if request.param == 's3-prefix' else url


@pytest.fixture
def store(store_url: str) -> Iterator[ObjectStore]:
    if store_url == MemoryStore.url:
        yield MemoryStore()
        return
    with contextlib.closing(open_store(store_url, create=True)) as store:
        yield store
        if '/contract-' in store_url:
            empty(store)


def empty(store: ObjectStore) -> None:
    while page := store.list('').objects:
        assert not store.delete_many([(info.key, None) for info in page])


def all_keys(store: ObjectStore, prefix: str = '', **options: object) -> list[str]:
    """Objects and common prefixes of all pages, in the order of the pages."""
    found, token = [], None
    while True:
        page = store.list(prefix, token=token, **options)  # type: ignore[arg-type]
        found += sorted([info.key for info in page.objects] + page.prefixes, key=str.encode)
        if page.next_token is None:
            return found
        token = page.next_token
