"""What it takes to find the context that a mount is for: one request where this host knows it, and the right one all the same."""
from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ctxfs.edge import preflight
from ctxfs.edge.context_opening import Opened, open_context
from ctxfs.errors import InUse, NotFound, RemoteUnavailable
from ctxfs.storage import registry_changes
from ctxfs.storage.registry import Registry
from ctxfs.storage.stores import open_store
from tests.fakes.s3_server import FakeS3


class Desk:
    def __init__(self, fake: FakeS3, root: Path) -> None:
        self.fake, self.root = fake, root
        self.url = f's3://{fake.bucket}?endpoint={fake.endpoint}'

    def open(self, reference: str = 'c', *, root: Path | None = None, **options: Any) -> tuple[Opened, list[str]]:
        """And what was asked."""
        asked = len(self.fake.requests)
        opened = open_context(self.url, reference, create_store=False, create=options.pop('create', False), state_root=root or self.root)
        opened.store.close()
        return opened, [f'{request.method} {request.key or request.query.get("prefix", "")}' for request in self.fake.requests[asked:]]

    @contextlib.contextmanager
    def store(self) -> Iterator[Any]:
        with contextlib.closing(open_store(self.url)) as store:
            yield store


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'any')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'any')
    with FakeS3() as fake:
        yield Desk(fake, tmp_path / 'state')


def test_the_first_mount_asks_for_name_record_and_what_there_is(desk: Desk) -> None:
    made = desk.open(create=True)[0].context
    with desk.store() as store:
        store.put(f'{made.prefix}.ctxfs/policy', b'{}')
        store.put(f'{made.prefix}.ctxfs/index/x', b'')
    opened, asked = desk.open(root=desk.root.with_name('another host'))
    assert opened.context == made and opened.own == {'policy'}
    assert asked == ['GET .ctxfs/contexts/names/c', f'GET .ctxfs/contexts/ids/{made.id}', f'GET {made.prefix}.ctxfs/']


@pytest.mark.parametrize('by_id', [False, True], ids=['by name', 'by id'])
def test_the_next_one_asks_for_the_record(desk: Desk, by_id: bool) -> None:
    made = desk.open(create=True)[0].context
    reference = made.id if by_id else 'c'
    desk.open(reference)
    opened, asked = desk.open(reference)
    assert opened[1:] == (made, None) and asked == [f'GET .ctxfs/contexts/ids/{made.id}']
    assert desk.root.stat().st_mode & 0o777 == 0o700


def renamed_and_another_made(desk: Desk, made: Any) -> str:
    with desk.store() as store:
        registry_changes.rename(store, made, 'other')
        return Registry(store).create('c').id


def deleted_and_made_anew(desk: Desk, made: Any) -> str:
    with desk.store() as store:
        registry_changes.remove(store, made)
        return Registry(store).create('c').id


def half_deleted_and_made_anew(desk: Desk, made: Any) -> str:
    """Its claim is gone, its record not yet."""
    with desk.store() as store:
        registry_changes.begin_clearing(store, made.id, deletes=True)
        registry_changes.drop_claim(store, 'c', made.id)
        return Registry(store).create('c').id


def half_renamed(desk: Desk, made: Any) -> str:
    """It is to get another name, and has no right to it yet."""
    with desk.store() as store:
        registry_changes.change_record(store, made.id, lambda value: value.update(renamingTo='other'))
    return str(made.id)


def damaged(desk: Desk, made: Any) -> str:
    file, = desk.root.rglob('*.id')
    file.write_bytes(b'{')
    return str(made.id)


@pytest.mark.parametrize('change', [renamed_and_another_made, deleted_and_made_anew, half_deleted_and_made_anew, half_renamed, damaged])
def test_what_was_remembered_is_not_believed(desk: Desk, change: Callable[[Desk, Any], str]) -> None:
    made = desk.open(create=True)[0].context
    wanted = change(desk, made)
    assert desk.open()[0].context.id == wanted
    if wanted != made.id:
        assert desk.open()[1] == [f'GET .ctxfs/contexts/ids/{wanted}']


def test_a_context_that_is_being_cleared_says_so(desk: Desk) -> None:
    made = desk.open(create=True)[0].context
    with desk.store() as store:
        registry_changes.begin_clearing(store, made.id, deletes=False)
    with pytest.raises(InUse):
        registry_changes.check_whole(desk.open()[0].context)


def test_what_is_not_there_is_told_as_ever(desk: Desk) -> None:
    """With the nearest name."""
    desk.open(create=True)
    with pytest.raises(NotFound, match='did you mean c'):
        desk.open('cc')


@pytest.mark.parametrize(('patience', 'times'), [(60.0, 2), (-1.0, 1)], ids=['a moment', 'too long'])
def test_who_does_not_answer_is_asked_again_after_a_moment(desk: Desk, monkeypatch: pytest.MonkeyPatch, patience: float, times: int) -> None:
    monkeypatch.setattr(preflight, 'PATIENT_SECONDS', patience)
    asked: list[str] = []

    def unavailable(*args: Any, **options: Any) -> None:
        asked.append('')
        raise RemoteUnavailable('it hangs')
    monkeypatch.setattr(Registry, 'registered', unavailable)
    monkeypatch.setattr(preflight, 'check_store', unavailable)
    with pytest.raises(RemoteUnavailable, match='it hangs'):
        desk.open()
    assert len(asked) == times


def test_the_command_does_not_load_what_only_workers_need() -> None:
    """A fifth of the time until its first request."""
    done = subprocess.run([sys.executable, '-c', 'import sys, ctxfs.edge.cli_mount, ctxfs.storage.s3_store; print(*sys.modules)'],
                          capture_output=True, text=True, check=True)
    assert not {'ctxfs.sync.protocol', 'ctxfs.sync.index_log', 'ctxfs.storage.index_format', 'zstandard', 'trio', 'pyfuse3'} & {*done.stdout.split()}
