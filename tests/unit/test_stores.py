"""URLs of stores: what each means, and one clear line for each that means nothing."""
from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from ctxfs.errors import UsageError
from ctxfs.storage.s3_store import S3Store
from ctxfs.storage.stores import open_store


@pytest.mark.parametrize(('url', 'word'), [
    ('', 's3://BUCKET'), ('bucket', 's3://BUCKET'), ('http://x/y', 's3://BUCKET'), ('s3:///p', 'no bucket'), ('s3://', 'no bucket'),
    ('file://host/dir', 'absolute'), ('file:relative', 'absolute'), ('s3://b?endpont=x', 'endpoint'), ('s3://b?addressing=dns', 'addressing'),
    ('file:///d?fsync=maybe', 'fsync'), ('file:///d?region=x', 'region'), ('s3://b#x', 's3://BUCKET'), ('s3://b?nonsense', 'malformed'),
    ('s3://[b', 'malformed'), ('s3://b?endpoint=nowhere', 'endpoint'),
])
def test_a_wrong_url_is_refused_with_what_is_right(url: str, word: str) -> None:
    """Before anything is touched."""
    with pytest.raises(UsageError) as caught:
        open_store(url)
    assert word in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_file_url_names_a_directory(tmp_path: Path) -> None:
    """With anything in its name, made only when asked for."""
    for name in ('plain', 'with blank', 'ünï'):
        with contextlib.closing(open_store(f'file://{tmp_path}/{name}/')) as store:
            assert not (tmp_path / name).exists()
        with contextlib.closing(open_store(f'file://localhost{tmp_path}/{name}?fsync=no', create=True)) as store:
            store.put('k', b'v')
        assert (tmp_path / name / 'k').read_bytes() == b'v'


def test_an_s3_url_gives_bucket_prefix_and_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of the server."""
    with contextlib.closing(open_store('s3://bucket/a/b/?endpoint=http://127.0.0.1:1&region=x')) as store:
        assert isinstance(store, S3Store)
        assert store.url == 's3://bucket/a/b?endpoint=http://127.0.0.1:1'
