"""Sites with real mounts: the harness's hosts in one store, and a look into the bucket as another S3 tool has it.

Owns how a test reaches a bucket behind ctxfs's back: boto3 for a server, plain files for a directory (the port only for keys and
metadata that plain files cannot have). It must not know what is tested.
"""
from __future__ import annotations

import fcntl
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import boto3
import pytest
from botocore.config import Config

from ctxfs.storage.consistency import check_state, is_sound
from ctxfs.storage.consistency_rules import Severity
from ctxfs.storage.stores import open_store
from tests.model.hosts import Site
from tests.mount import harness

IS_FORKED = os.environ.get('CTXFS_TEST_FORKED', '1') == '1'


class Bucket(Protocol):
    def put(self, key: str, body: bytes, metadata: dict[str, str] | None = None, content_type: str | None = None) -> None: ...
    def body(self, key: str) -> bytes: ...
    def delete(self, key: str) -> None: ...
    def versions(self, prefix: str) -> dict[str, str]:
        """Key to etag of everything below the prefix."""

    def keys(self, prefix: str) -> list[str]: ...


class S3Bucket:
    """A bucket on a server, through boto3."""

    def __init__(self, endpoint: str, env: dict[str, str], name: str) -> None:
        self.name = name
        self.client: Any = boto3.client('s3', endpoint_url=endpoint, aws_access_key_id=env['AWS_ACCESS_KEY_ID'],
                                        aws_secret_access_key=env['AWS_SECRET_ACCESS_KEY'], region_name=env.get('AWS_DEFAULT_REGION', 'us-east-1'),
                                        config=Config(s3={'addressing_style': 'path'}, request_checksum_calculation='when_required'))

    def put(self, key: str, body: bytes, metadata: dict[str, str] | None = None, content_type: str | None = None) -> None:
        more = {'ContentType': content_type} if content_type else {}
        self.client.put_object(Bucket=self.name, Key=key, Body=body, Metadata=metadata or {}, **more)

    def body(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=key)['Body'].read()

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)

    def versions(self, prefix: str) -> dict[str, str]:
        pages = self.client.get_paginator('list_objects_v2').paginate(Bucket=self.name, Prefix=prefix)
        return {o['Key']: o['ETag'] for page in pages for o in page.get('Contents', [])}

    def keys(self, prefix: str) -> list[str]:
        return list(self.versions(prefix))


class DirectoryBucket:
    """A directory used as a bucket: ordinary keys are plain files that anybody may read, write and remove."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._store = open_store(f'file://{root}')

    def put(self, key: str, body: bytes, metadata: dict[str, str] | None = None, content_type: str | None = None) -> None:
        path = self._plain(key)
        if metadata or content_type or path is None or not path.is_file():
            self._store.put(key, body, metadata=metadata, content_type=content_type)
            return
        fd, temporary = tempfile.mkstemp(dir=self.root.parent)
        with open(fd, 'wb') as f:
            f.write(body)
        os.replace(temporary, path)

    def body(self, key: str) -> bytes:
        path = self._plain(key)
        return path.read_bytes() if path is not None and path.is_file() else self._store.get(key)

    def delete(self, key: str) -> None:
        self._store.delete(key)

    def versions(self, prefix: str) -> dict[str, str]:
        found, token = {}, None
        while True:
            page = self._store.list(prefix, token=token)
            found.update({o.key: o.etag for o in page.objects})
            token = page.next_token
            if token is None:
                return found

    def keys(self, prefix: str) -> list[str]:
        return list(self.versions(prefix))

    def _plain(self, key: str) -> Path | None:
        """Where the key's file is, if the key is an ordinary relative path."""
        components = key.split('/')
        if any(c in ('', '.', '..') or len(c.encode()) > 255 or '\0' in c for c in components):
            return None
        return self.root.joinpath(*components)


def is_locked(state: Path) -> bool:
    """Whether a daemon, or a worker of a daemon that was killed a moment ago, uses the state directory."""
    with open(state / 'lock') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class MountingHost(harness.Host):
    def create_context(self, name: str) -> None:
        self.cli('context', 'create', name)

    def unmount(self, at: Path, *, check: bool = True, timeout: float = harness.TIMEOUT) -> None:
        """As the harness's; with check=False a wait that fails (a conflict, a store that refuses) is no error."""
        try:
            super().unmount(at, timeout=timeout)
        except harness.CommandFailed:
            if check:
                raise
        self.check_state(is_clean=check)

    def kill9(self, at: Path, *, pid: int | None = None) -> None:
        super().kill9(at, pid=pid)
        self.check_state()

    def check_state(self, *, is_clean: bool = False) -> None:
        """What no daemon uses contradicts itself nowhere; after an orderly end (`is_clean`) nothing is left to be settled either."""
        for state in self.state_dir.glob('*/tree.db'):
            if not is_locked(state.parent):
                found = check_state(state.parent)
                assert is_sound(found), found
                assert not is_clean or all(problem.severity is Severity.NOTE for problem in found), found


def new_host(state: Path, url: str, env: dict[str, str]) -> MountingHost:
    """Forked from a process that has everything imported, in a third of the time; or, with CTXFS_TEST_FORKED=0, executed as its user does it."""
    if not IS_FORKED:
        return MountingHost(state, store=url, env=env)
    from tests.crash.zygote import ForkedHost, shared
    return ForkedHost(state, store=url, zygote=shared(), env=env)


class MountingSite(Site):
    """A site whose contexts are in the store `url`."""

    def __init__(self, work: Path, url: str, env: dict[str, str], bucket: Callable[[], Bucket]) -> None:
        super().__init__(work, lambda state: new_host(state, url, env))
        self.url = url
        self.env = env
        self._make_bucket = bucket
        self._bucket: Bucket | None = None

    def bucket(self) -> Bucket:
        if self._bucket is None:
            self._bucket = self._make_bucket()
        return self._bucket

    def context_id(self, name: str) -> str:
        return self.hosts[0].json('context', 'show', name)['id']


def site_maker(kind: str, request: pytest.FixtureRequest) -> Callable[[Path], MountingSite]:
    """Makes sites in a directory of their own (`file`) or in a new bucket of the session's server (`s3`)."""
    if kind == 'file':
        def in_directory(work: Path) -> MountingSite:
            store = work / 'store'
            store.mkdir(mode=0o700)
            return MountingSite(work, f'file://{store}', {}, lambda: DirectoryBucket(store))
        return in_directory
    server = request.getfixturevalue('s3_server')

    def on_server(work: Path) -> MountingSite:
        bucket = S3Bucket(server.endpoint, server.environment, f't-{secrets.token_hex(8)}')
        bucket.client.create_bucket(Bucket=bucket.name)
        request.addfinalizer(bucket.client.close)
        return MountingSite(work, f's3://{bucket.name}?endpoint={server.endpoint}', server.environment, lambda: bucket)
    return on_server


