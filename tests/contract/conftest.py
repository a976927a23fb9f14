"""The stores that the contract suite runs against.

Owns how each is made and taken away. The tests must not know which one they have, except through `capabilities()`.

CTXFS_TEST_S3 names a real bucket (`s3://BUCKET[/PREFIX]?endpoint=…`), with CTXFS_TEST_S3_KEY and CTXFS_TEST_S3_SECRET; everything is done
below a prefix of its own and removed.
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
from tests.fakes.s3_server import FakeS3

REAL = os.environ.get('CTXFS_TEST_S3', '')
KINDS = ['file', 's3', 's3-prefix', 'fake', 'memory', *(['real'] if REAL else [])]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A prefix changes keys and nothing else: the modules about keys cover it."""
    if 'store_url' in metafunc.fixturenames:
        is_about_keys = metafunc.module.__name__.rpartition('.')[2] in ('test_objects', 'test_listing')
        is_one_process = 'store_url' not in inspect.signature(metafunc.function).parameters     # a store in memory has no URL for others
        without = {*(() if is_about_keys else ('s3-prefix',)), *(() if is_one_process else ('memory',))}
        metafunc.parametrize('store_url', [kind for kind in KINDS if kind not in without], indirect=True)


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty store."""
    if request.param == 'file':
        yield f'file://{tmp_path}/store'
    elif request.param == 'memory':
        yield MemoryStore.url
    elif request.param == 'fake':
        monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'any')
        monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'any')
        with FakeS3() as fake:
            yield fake.url
    elif request.param == 'real':
        monkeypatch.setenv('AWS_ACCESS_KEY_ID', os.environ['CTXFS_TEST_S3_KEY'])
        monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', os.environ['CTXFS_TEST_S3_SECRET'])
        location, _, options = REAL.partition('?')
        yield f'{location.rstrip("/")}/contract-{secrets.token_hex(6)}?{options}'.rstrip('?')
    else:
        server = request.getfixturevalue('s3_server')
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
        if store_url.startswith(REAL.partition('?')[0] or 'none:'):
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
