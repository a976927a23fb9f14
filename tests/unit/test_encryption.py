"""Encryption by the server: every write asks for it, in its endpoint's words, and nothing else does."""
from __future__ import annotations

import io
from contextlib import closing
from pathlib import Path

import pytest

from ctxfs.config import FileConfig
from ctxfs.config_file import resolve_store_url
from ctxfs.errors import UsageError
from ctxfs.storage.registry import Registry
from ctxfs.storage.s3_encryption import encryption_headers
from ctxfs.storage.stores import open_store
from ctxfs.store_url import normalise_store_url, store_identity, with_sse
from ctxfs.sync.index_log import IndexLog
from tests.fakes.s3_server import FakeS3, Quirk, Request

MIB = 1 << 20
KMS = 'aws:kms:arn:aws:kms:eu-west-1:1:key/a-b'


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'AKID')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')


def is_making(request: Request) -> bool:
    """Whether it puts an object into the bucket, or begins to."""
    return (request.method == 'PUT' and not request.query) or 'uploads' in request.query


@pytest.mark.parametrize('quirks', [set(), {Quirk.UNCONDITIONAL_COPY, Quirk.UNCONDITIONAL_PARTS}])
def test_every_write_asks_for_it_and_nothing_else_does(quirks: set[Quirk]) -> None:
    """Objects, uploads in parts, copies of either kind, probes, the index and the registry."""
    with FakeS3(quirks=quirks) as fake, closing(open_store(with_sse(fake.url, KMS))) as store:
        Registry(store).create('name')
        store.put('a', b'1')
        store.copy('a', 'b', metadata={'x': 'y'})
        store.put_file('big', io.BytesIO(bytes(17 * MIB)), 17 * MIB)
        IndexLog(store, 'contexts/c/', host='h').append([])
        store.get('a')
        store.list('')
        store.delete_many([('a', None), ('b', None)])
        said = {(is_making(request), *map(request.headers.get, ('x-amz-server-side-encryption', 'x-amz-server-side-encryption-aws-kms-key-id')))
                for request in fake.requests}
        assert said == {(True, 'aws:kms', KMS.removeprefix('aws:kms:')), (False, None, None)}
        kinds = {(request.method, 'uploads' in request.query, 'x-amz-copy-source' in request.headers) for request in fake.requests
                 if is_making(request)}
        assert kinds >= {('PUT', False, False), ('POST', True, False), ('PUT', False, True)}


def test_oss_has_words_of_its_own() -> None:
    """x-oss-…, KMS instead of aws:kms."""
    endpoint = 'https://s3.oss-cn-hangzhou.aliyuncs.com'
    assert encryption_headers('AES256', endpoint) == {'x-oss-server-side-encryption': 'AES256'}
    assert encryption_headers('aws:kms:id-1', endpoint) == {'x-oss-server-side-encryption': 'KMS', 'x-oss-server-side-encryption-key-id': 'id-1'}
    assert encryption_headers('aws:kms', 'https://s3.eu-west-1.amazonaws.com') == {'x-amz-server-side-encryption': 'aws:kms'}


@pytest.mark.parametrize('text', ['', 'aes256', 'AES256:key', 'aws:kms:', 'aws:kms:a key', 'kms'])
def test_what_is_none_is_refused(text: str) -> None:
    """In one line that says what could be."""
    with pytest.raises(UsageError, match='write AES256, aws:kms, or aws:kms:KEYID'):
        with_sse('s3://bucket', text)
    with pytest.raises(UsageError):
        normalise_store_url(f's3://bucket?sse={text}')


def test_where_it_may_be_said() -> None:
    """In the URL, which wins over the config file; the store is the same one, and a directory is not told."""
    config = FileConfig(sse='AES256')
    url = resolve_store_url('s3://bucket', {}, config, Path('/data'))
    assert url == 's3://bucket?sse=AES256' and store_identity(url) == store_identity('s3://bucket')
    assert resolve_store_url(f's3://bucket?sse={KMS}', {}, config, Path('/data')) == f's3://bucket?sse={KMS}'
    assert resolve_store_url('file:///d', {}, config, Path('/data')) == 'file:///d'
    with pytest.raises(UsageError, match='no effect on a file:// store'):
        with_sse('file:///d', 'AES256')
