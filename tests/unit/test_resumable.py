"""`ctxfs files put` of large files that is cut short, and what the context's policy gives a lifetime."""
from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctxfs.edge.cli import run
from ctxfs.storage import fibers
from ctxfs.storage.registry import Registry
from ctxfs.storage.stores import open_store
from ctxfs.sync.index_log import IndexLog
from ctxfs.sync.resumable import OLD_SECONDS
from tests.fakes.s3_server import FakeS3, Fault, Request

MIB = 1 << 20
PARTS = 3


class Desk:
    def __init__(self, fake: FakeS3, home: Path) -> None:
        self.fake = fake
        self.file = home / 'big'
        self.file.write_bytes(os.urandom(PARTS * 8 * MIB - 5))
        assert run(['context', 'create', 'c']) == 0
        self.store = open_store(fake.url)
        self.prefix = Registry(self.store).find('c').prefix
        self.notes = home / 'home/.local/state/ctxfs/uploads'

    def put(self, *, status: int = 0) -> int:
        """How many parts were sent."""
        before = len(self.fake.requests)
        assert run(['files', 'put', 'c', str(self.file), '/big']) == status
        return sum('partNumber' in request.query for request in self.fake.requests[before:])

    def cut_short(self) -> int:
        """A put during which the server goes away behind the first parts; how many have arrived."""
        def is_late(request: Request) -> bool:
            return 'partNumber' in request.query and int(request.query['partNumber']) > 2
        self.fake.forget_faults()
        self.fake.fail_next('PUT', Fault.UNAVAILABLE, times=100, when=is_late)
        self.put(status=1)
        self.fake.forget_faults()
        (_, _, parts), = self.fake.uploads.values()
        return len(parts)

    def noted(self) -> list[str]:
        return [file.name for file in self.notes.iterdir()] if self.notes.exists() else []

    def is_whole(self) -> bool:
        return self.fake.objects[f'{self.prefix}big'].body == self.file.read_bytes()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    for name, variable in (('home', 'HOME'), ('run', 'XDG_RUNTIME_DIR')):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'AKID')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')
    monkeypatch.setattr(fibers, 'sleep', lambda seconds: None)
    with FakeS3() as fake:
        monkeypatch.setenv('CTXFS_STORE', fake.url)
        made = Desk(fake, tmp_path)
        yield made
        made.store.close()


def test_a_large_file_that_was_cut_short_goes_on_where_it_was(desk: Desk) -> None:
    """Only what is missing is sent; afterwards nothing is left in the bucket or noted here."""
    there = desk.cut_short()
    assert there == 2 and len(desk.noted()) == 1
    assert desk.put() == PARTS - there and desk.is_whole()
    assert desk.fake.uploads == {} and desk.noted() == []
    assert desk.put() == PARTS, 'what is complete is not gone on with'


def test_an_upload_that_is_gone_begins_anew(desk: Desk) -> None:
    """The bucket's rules may have expired it."""
    desk.cut_short()
    desk.fake.uploads.clear()
    desk.put()
    assert desk.is_whole() and desk.fake.uploads == {} and desk.noted() == []


def test_another_content_throws_away_what_was_begun(desk: Desk) -> None:
    """The file was changed since: no object is ever made of two states."""
    desk.cut_short()
    desk.file.write_bytes(os.urandom(PARTS * 8 * MIB))
    assert desk.put() == PARTS and desk.is_whole() and desk.fake.uploads == {}


def test_what_nobody_goes_on_with_is_thrown_away(desk: Desk) -> None:
    """By the next put of anything, days later."""
    desk.cut_short()
    note, = desk.notes.iterdir()
    os.utime(note, (time.time() - OLD_SECONDS - 1,) * 2)
    desk.file.with_name('other').write_bytes(b'x')
    assert run(['files', 'put', 'c', str(desk.file.with_name('other')), '/other']) == 0
    assert desk.fake.uploads == {} and desk.noted() == []


def test_a_refusal_leaves_nothing_to_go_on_with(desk: Desk) -> None:
    """Another try would be refused as well."""
    desk.fake.fail_next('PUT', Fault.DENY, times=1, when=lambda request: 'partNumber' in request.query)
    desk.put(status=1)
    assert desk.fake.uploads == {} and desk.noted() == []


def test_a_lifetime_of_the_policy_is_on_what_is_put(desk: Desk, tmp_path: Path) -> None:
    """As a mount's upload would have it: tag, metadata, index and the bucket's rule; only below its paths."""
    policy = tmp_path / 'policy.json'
    policy.write_text(json.dumps({'recyclePolicy': {'lifecycle': 'Lifecycle_3Days', 'paths': ['/logs']}}))
    assert run(['policy', 'set', 'c', str(policy)]) == 0
    small = tmp_path / 'small'
    small.write_bytes(b'x')
    for local, path in ((small, '/logs/a'), (desk.file, '/logs/big'), (small, '/kept')):
        assert run(['files', 'put', 'c', str(local), path]) == 0

    def lifetime(key: str) -> tuple[Any, ...]:
        stored = desk.fake.objects[desk.prefix + key]
        return stored.tags.get('ctxfs-lifecycle'), stored.headers.get('x-amz-meta-ctxfs-lifecycle')
    assert lifetime('logs/a') == lifetime('logs/big') == ('Lifecycle_3Days',) * 2 and lifetime('kept') == (None, None)
    records = {record.path: record.lifecycle for record in IndexLog(desk.store, desk.prefix, host='h').read()}
    assert records == {'logs/a': 'Lifecycle_3Days', 'logs/big': 'Lifecycle_3Days', 'kept': ''}
    assert b'ctxfs-Lifecycle_3Days' in desk.fake.lifecycle
