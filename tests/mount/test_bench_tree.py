"""What the bench's rows of very many files find in the bucket is what ctxfs itself leaves there: objects, metadata and index."""
from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from bench import scale_tree
from bench.scale_server import Objects
from ctxfs.records import IndexRecord
from ctxfs.storage.stores import open_store
from ctxfs.sync.index_log import IndexLog
from tests.model.hosts import IS_DOUBLE
from tests.mount.harness import Host
from tests.servers import S3Server

COUNT = 60


@pytest.mark.skipif(IS_DOUBLE, reason='a directory has no etags of S3')
def test_a_written_tree_is_the_numbered_tree(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, sizes, etags, modes, times and targets; who wrote it, when it was read and when its inode changed are its own."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    url = s3_server.url(s3_server.make_bucket())
    host, at = Host(tmp_path / 'state', store=url, env=s3_server.environment), tmp_path / 'at'
    at.mkdir()
    host.mount('c', at, create=True, options=['--sync-every', 'unmount'])
    write_tree(at)
    host.unmount(at)
    prefix = f'contexts/{host.json("context", "show", "c")["id"]}/'
    store, made = open_store(url), Objects()
    made.fill(prefix, COUNT)
    listed = {info.key: info for info in store.list(prefix).objects if '/.ctxfs/' not in info.key}
    assert {key: (info.etag, info.size) for key, info in listed.items()} == {key: made.listed(key)[:2] for key in made}
    for key in made:
        assert metadata_of(made[key].headers) == {name: (store.head(key).metadata or {})[name] for name in ('mode', 'mtime')}
    kept = {record.path: essence(record) for record in IndexLog(store, prefix, host='test').read()}
    kept.pop('', None)
    expected = {record.path: essence(record) for record in scale_tree.records(COUNT, uid=os.getuid(), gid=os.getgid())}
    assert {path: record for path, record in kept.items() if path in expected} == expected
    assert set(kept) - set(expected) <= {'./', '/'}
    store.close()


def write_tree(at: Path) -> None:
    for number in range(COUNT):
        one = scale_tree.file(number)
        path = at / one.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if one.target is None:
            path.write_bytes(one.body)
            path.chmod(one.mode & 0o7777)
        else:
            path.symlink_to(os.fsdecode(one.target))
        os.utime(path, ns=(one.mtime_ns, one.mtime_ns), follow_symlinks=False)
    for directory in reversed([*scale_tree.directories(COUNT)]):
        (at / directory.path).chmod(directory.mode & 0o7777)
        os.utime(at / directory.path, ns=(directory.mtime_ns, directory.mtime_ns))


def metadata_of(headers: dict[str, str]) -> dict[str, str]:
    return {name: headers[f'x-amz-meta-{name}'] for name in ('mode', 'mtime')}


def essence(record: IndexRecord) -> IndexRecord:
    attrs = record.attrs
    assert attrs is not None
    return msgspec.structs.replace(record, changed_ns=0, attrs=msgspec.structs.replace(attrs, atime_ns=0, ctime_ns=0))
