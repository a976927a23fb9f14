"""Copies of contexts on a directory and on an S3 server: what goes along, what is equal already, and what a copy that was cut short leaves."""
from __future__ import annotations

import io
import stat
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ctxfs import ContextService
from ctxfs.errors import CtxfsError, Exists, InUse, InvalidArgument
from ctxfs.records import Attrs, IndexRecord
from ctxfs.storage import registry_changes
from ctxfs.storage.object_store import PARTS_ABOVE
from ctxfs.storage.policy_store import load_policy, save_policy
from ctxfs.storage.stores import open_store
from ctxfs.sync import copying
from ctxfs.sync.index_log import IndexLog

MIB = 1 << 20
BIG = PARTS_ABOVE + MIB


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, variable in (('home', 'HOME'), ('run', 'XDG_RUNTIME_DIR')):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(tmp_path / name))
    return tmp_path


@pytest.fixture(params=['file', 's3'])
def url(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == 'file':
        (home / 'store').mkdir()
        return f'file://{home}/store?fsync=no'
    server = request.getfixturevalue('s3_server')
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server.url(server.make_bucket())


class Contexts:
    """A store with the context `src`, and what a test does with it. `copied`: the keys that the store was told to copy."""

    def __init__(self, url: str) -> None:
        self.service = ContextService(url)
        self.store = open_store(url)
        self.src = self.service.create('src').context
        self.desk = self.service._desk()
        self.copied: list[str] = []
        copy = self.desk.store.copy

        def counted(source: str, key: str, **options: Any) -> Any:
            self.copied.append(key.partition('/')[2].partition('/')[2])
            return copy(source, key, **options)
        self.desk.store.copy = counted  # type: ignore[method-assign]

    def put(self, key: str, body: bytes, **options: Any) -> str:
        return self.store.put(f'contexts/{self.src.id}/{key}', body, **options).etag

    def copy(self, name: str = 'dst', *, update: bool = False) -> copying.Copied:
        self.copied.clear()
        source = self.desk.registry.find('src')
        target = self.desk.begin_copy(source, self.desk.target(name, create=True), update=update)
        return self.desk.finish_copy(source, target)

    def files(self, name: str = 'dst') -> dict[str, bytes]:
        prefix = self.desk.registry.find(name).prefix
        found = [info.key for info in self.store.list(prefix).objects if not info.key.startswith(prefix + '.ctxfs/')]
        return {key[len(prefix):]: self.store.get(key) for key in found}

    def records(self, name: str) -> dict[str, IndexRecord]:
        return {record.path: record for record in IndexLog(self.store, self.desk.registry.find(name).prefix, host='h').read()}

    def state(self, name: str = 'dst') -> str:
        return self.desk.registry.find(name).state

    def close(self) -> None:
        self.service.close()
        self.store.close()


@pytest.fixture
def contexts(url: str) -> Any:
    made = Contexts(url)
    yield made
    made.close()


@pytest.fixture
def local(home: Path) -> Any:
    (home / 'store').mkdir(exist_ok=True)
    made = Contexts(f'file://{home}/store?fsync=no')
    yield made
    made.close()


class Killed(BaseException):
    """Nothing runs afterwards."""


def die_at(monkeypatch: pytest.MonkeyPatch, wanted: str, *, after: int = 0) -> None:
    passed = 0

    def crash_point(name: str) -> None:
        nonlocal passed
        if name == wanted:
            passed += 1
            if passed > after:
                raise Killed
    monkeypatch.setattr(copying, 'crash_point', crash_point)


def test_a_copy_has_everything(contexts: Contexts) -> None:
    """Content, metadata and types of the objects, a large one too, the policy, and what the index says, of the copies' own versions."""
    etag = contexts.put('a/b', b'body', metadata={'mode': '33188'}, content_type='text/plain')
    contexts.put('empty/', b'', content_type='application/x-directory')
    big = bytes(range(256)) * (BIG // 256)
    big_etag = contexts.store.put_file(f'contexts/{contexts.src.id}/big', io.BytesIO(big), len(big)).etag
    save_policy(contexts.store, contexts.src.id, b'{"uploadPolicy": {"period": "30s"}}')
    attrs = Attrs(mode=stat.S_IFREG | 0o640, uid=1, gid=2, mtime_ns=3, atime_ns=4, ctime_ns=5)
    folder = msgspec.structs.replace(attrs, mode=stat.S_IFDIR | 0o711)
    now = time.time_ns()
    IndexLog(contexts.store, f'contexts/{contexts.src.id}/', host='h').append([
        IndexRecord(path='a/b', changed_ns=now, etag=etag, size=4, attrs=attrs, link='L'),
        IndexRecord(path='big', changed_ns=now, etag=big_etag, size=len(big), attrs=attrs),
        IndexRecord(path='a/', changed_ns=now, attrs=folder),
        IndexRecord(path='stale', changed_ns=now, etag='"0"', size=1, attrs=attrs), IndexRecord(path='gone', changed_ns=now)])
    result = contexts.service.copy(contexts.src, 'dst')
    assert result.success and result.context is not None and contexts.state() == 'available'
    assert contexts.files() == {'a/b': b'body', 'empty/': b'', 'big': big}
    prefix = contexts.desk.registry.find('dst').prefix
    head = contexts.store.head(prefix + 'a/b')
    assert (head.metadata or {})['mode'] == '33188' and head.content_type == 'text/plain'
    assert load_policy(contexts.store, result.context_id) == b'{"uploadPolicy": {"period": "30s"}}'
    found = contexts.records('dst')
    assert set(found) == {'a/b', 'big', 'a/'} and found['a/'].attrs == folder
    assert (found['a/b'].attrs, found['a/b'].link, found['a/b'].etag) == (attrs, 'L', head.etag)
    assert found['big'].etag == contexts.store.head(prefix + 'big').etag


def test_a_second_copy_copies_what_differs(contexts: Contexts) -> None:
    """And removes what the source does not have; without being asked it touches nothing. Large ones, whose copies have other etags, are known."""
    contexts.put('same', b'1')
    contexts.put('changed', b'1')
    contexts.store.put_file(f'contexts/{contexts.src.id}/big', io.BytesIO(bytes(BIG)), BIG)
    assert contexts.copy()[:3] == (3, 2 + BIG, 0)
    contexts.put('changed', b'22')
    contexts.put('new', b'3')
    target = contexts.desk.registry.find('dst')
    contexts.store.put(target.prefix + 'extra', b'x')
    with pytest.raises(Exists, match='has files; ctxfs context copy --update'):
        contexts.copy()
    assert contexts.state() == 'available' and contexts.files()['changed'] == b'1'
    assert contexts.copy(update=True) == copying.Copied(2, 3, 2, 1)
    assert sorted(contexts.copied) == ['changed', 'new']
    assert contexts.files().keys() == {'same', 'changed', 'new', 'big'} and contexts.files()['changed'] == b'22'


@pytest.mark.parametrize('point, left', [('context-copy-after-mark', 20), ('context-copy-after-object', 2), ('context-copy-before-index', 0),
                                         ('context-copy-before-state', 0)])
def test_a_copy_that_was_cut_short_is_not_available_and_goes_on(local: Contexts, monkeypatch: pytest.MonkeyPatch, point: str, left: int) -> None:
    """It cannot be mounted or written to, says what to do, and the same call copies only the rest (with the one that it was at)."""
    for number in range(20):
        local.put(f'{number:02}', b'x' * number)
    monkeypatch.setattr(copying, 'THREADS', 1)
    die_at(monkeypatch, point, after=18 if point == 'context-copy-after-object' else 0)
    with pytest.raises(Killed):
        local.copy()
    monkeypatch.undo()
    assert local.state() == 'pre-available'
    target = local.desk.registry.find('dst')
    with pytest.raises(InUse, match=r'not a whole copy of SdkCtx-\w+ yet; ctxfs context copy SdkCtx-\w+ dst goes on with it'):
        local.desk.files(target, for_writing=True)
    copied = local.copy()
    assert len(local.copied) == left == copied.objects and local.state() == 'available'
    assert local.files() == {f'{number:02}': b'x' * number for number in range(20)}


def test_a_half_copy_becomes_no_copy_of_another_and_can_be_cleared(local: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is asked for; a clearing makes an empty context of it."""
    local.put('a', b'1')
    local.service.create('other')
    die_at(monkeypatch, 'context-copy-before-state')
    with pytest.raises(Killed):
        local.copy()
    monkeypatch.undo()
    other, target = local.desk.registry.find('other'), local.desk.registry.find('dst')
    for update in (False, True):
        with pytest.raises(CtxfsError):
            local.desk.begin_copy(other, target, update=update)
    assert local.state() == 'pre-available'
    assert local.service.clear(target.id, timeout=30, poll_interval=0.1).status == 'available'
    assert local.files() == {} and local.desk.registry.find('dst').copy_of is not target.copy_of


def test_a_mark_for_clearing_that_is_taken_back_leaves_a_half_copy(local: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not whole before, so it is not afterwards."""
    die_at(monkeypatch, 'context-copy-after-mark')
    with pytest.raises(Killed):
        local.copy()
    target = local.desk.registry.find('dst')
    registry_changes.begin_clearing(local.store, target.id, deletes=False)
    registry_changes.take_back_clearing(local.store, target.id)
    assert local.state() == 'pre-available'


def test_an_object_that_changes_meanwhile_is_copied_as_it_is_then(contexts: Contexts) -> None:
    """One version, whole; one that is removed meanwhile is not copied."""
    contexts.put('a', b'before')
    contexts.put('b', b'before')
    copy, done = contexts.desk.store.copy, []

    def late(source: str, key: str, **options: Any) -> Any:
        if source.endswith('/a') and not done:
            done.append(contexts.put('a', b'afterwards'))
        if source.endswith('/b'):
            contexts.store.delete(source)
        return copy(source, key, **options)
    contexts.desk.store.copy = late  # type: ignore[method-assign]
    contexts.copy()
    assert contexts.files() == {'a': b'afterwards'}


GUIDE = '''
from datetime import datetime
from ctxfs import AgentBay

class ContextBackupManager:
    def __init__(self, agent_bay):
        self.agent_bay = agent_bay

    def create_daily_backup(self, context_name):
        timestamp = datetime.now().strftime("%Y%m%d")
        backup_context_name = f"{context_name}-backup-{timestamp}"
        original_result = self.agent_bay.context.get(context_name)
        if not original_result.success:
            return False, "Original context not found"
        backup_result = self.agent_bay.context.get(backup_context_name, create=True)
        if not backup_result.success:
            return False, f"Failed to create backup context: {backup_result.error_message}"
        backup_context = backup_result.context
        copied = self.agent_bay.context.copy(original_result.context, backup_context.name)
        return copied.success, f"Backup created: {backup_context.name}"

    def list_backups(self, context_name):
        contexts_result = self.agent_bay.context.list()
        if not contexts_result.success:
            return False, "Failed to list contexts", []
        return True, "", [context for context in contexts_result.contexts if context.name.startswith(f"{context_name}-backup-")]

manager = ContextBackupManager(AgentBay())
print(*manager.create_daily_backup("src"))
print(len(manager.list_backups("src")[2]))
'''


def test_the_guides_recipe_for_backups_makes_one(local: Contexts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With another import, and the copy that the recipe leaves out: in the context that it has just made."""
    local.put('a', b'1')
    monkeypatch.setenv('CTXFS_STORE', local.store.url)
    exec(GUIDE, {})
    name = f'src-backup-{time.strftime("%Y%m%d")}'
    assert capsys.readouterr().out == f'True Backup created: {name}\n1\n' and local.files(name) == {'a': b'1'}


def test_what_is_refused(local: Contexts) -> None:
    """To itself, and to what is not there."""
    with pytest.raises(InvalidArgument, match='to itself'):
        local.copy('src')
    with pytest.raises(CtxfsError, match='--create makes a new one'):
        local.desk.target('nowhere', create=False)
    assert local.state('src') == 'available'


def test_a_failure_leaves_what_is_copied_and_says_why(local: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the state says that it is not whole."""
    local.put('a', b'1')
    monkeypatch.setattr(local.desk.store, 'copy', lambda *args, **options: (_ for _ in ()).throw(CtxfsError('the disk is on fire')))
    result = local.service.copy(local.src, 'dst')
    assert not result.success and 'the disk is on fire' in result.error_message and local.state() == 'pre-available'
