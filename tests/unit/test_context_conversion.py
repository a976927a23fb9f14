"""Copies of contexts into the other mode, there and back: what goes along, what is equal already, and what a copy that was cut short leaves."""
from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as replaced

from ctxfs import ContextService
from ctxfs.errors import Exists, InUse
from ctxfs.policy import UploadPolicy
from ctxfs.policy_parse import parse_policy
from ctxfs.records import LIFECYCLE_NAME, Attrs, IndexRecord, Stamp
from ctxfs.storage import posix_meta
from ctxfs.storage.policy_store import load_policy, save_policy
from ctxfs.storage.stores import open_store
from ctxfs.sync import archive_plan, conversion_archives, converting, copying
from ctxfs.sync.context_files import ContextFiles
from ctxfs.sync.context_mode import recorded
from tests.unit.test_context_copy import Killed, home

__all__ = ['home']

#: what lies in the source: path → (mode, content), and what is said of each
FILES: dict[str, tuple[int, bytes]] = {
    'a': (stat.S_IFREG | 0o640, b'a' * 1000), 'd/b': (stat.S_IFREG | 0o755, b'b'), 'd/none': (stat.S_IFREG | 0o600, b''),
    'd/large': (stat.S_IFREG | 0o644, bytes(range(256)) * 40), 'link': (stat.S_IFLNK | 0o777, b'd/b'), 'one': (stat.S_IFREG | 0o644, b'linked'),
    'two': (stat.S_IFREG | 0o644, b'linked'), 'logs/x': (stat.S_IFREG | 0o644, b'short-lived'), 'plain/kept': (stat.S_IFREG | 0o644, b'an object')}
POLICY = b'{"uploadPolicy": {"period": "30s"}}'


class Contexts:
    """A store with the context `src` in File mode."""

    def __init__(self, url: str) -> None:
        self.service = ContextService(url)
        self.store = open_store(url)
        self.desk = self.service._desk()
        self.src = self.service.create('src').context
        self.written: dict[str, IndexRecord] = {}
        files = ContextFiles(self.store, self.src.id, host='h')
        for number, (path, (mode, body)) in enumerate(FILES.items()):
            self.put(path, mode, body, number)
        self.store.put(f'{files.prefix}empty/', b'', content_type=posix_meta.DIRECTORY_TYPE)
        for path in ('empty/', 'd/', '/'):
            self.written[path] = IndexRecord(path=path, changed_ns=time.time_ns(), attrs=attrs_of(stat.S_IFDIR | 0o711, 50))
        files.index.append([self.written[path] for path in sorted(self.written)])
        self.store.put(f'{files.prefix}foreign', b'of another tool', metadata={'mode': str(stat.S_IFREG | 0o604), 'mtime': '12.5'})
        self.store.put(f'{files.prefix}odd//key', b'no file')
        save_policy(self.store, self.src.id, POLICY)

    def put(self, path: str, mode: int, body: bytes, number: int) -> None:
        lifecycle = 'Lifecycle_3Days' if path.startswith('logs/') else ''
        attrs = attrs_of(mode, number, target=body if stat.S_ISLNK(mode) else None, xattrs={'user.x': b'1'} if path == 'a' else None)
        link = 'group' if path in ('one', 'two') else ''
        tags = {LIFECYCLE_NAME: lifecycle} if lifecycle else {}
        done = self.store.put(f'contexts/{self.src.id}/{path}', body, metadata={**posix_meta.encode(attrs, Stamp(host='h')), **tags}, tags=tags)
        self.written[path] = IndexRecord(path=path, changed_ns=time.time_ns(), etag=done.etag, size=len(body), attrs=attrs, link=link,
                                         lifecycle=lifecycle)

    def copy(self, source: str, target: str, mode: str, *, update: bool = False) -> copying.Copied:
        found = self.desk.registry.find(source)
        into = self.desk.begin_copy(found, self.desk.target(target, create=True), update=update, mode=mode)
        return self.desk.finish_copy(found, into, mode=mode)

    def files(self, name: str) -> ContextFiles:
        return ContextFiles(self.store, self.desk.registry.find(name).id, host='judge')

    def tree(self, name: str) -> dict[str, Any]:
        """Path → content, and what is said of it but when it was."""
        files, found = self.files(name), {}
        for entry in files.below('/'):
            found[entry.key] = b'' if entry.is_dir else files.read(entry, 0, entry.size)
        said = {record.path: record for record in files.records()}
        return {path: (body, *((said[path].attrs, said[path].link, said[path].lifecycle) if path in said else ())) for path, body in found.items()}

    def folders(self, name: str) -> dict[str, Attrs | None]:
        """Of a mount's view: what the log, or the index, says."""
        from ctxfs.sync.archive_log import ArchiveLog, merged, since_reset
        log = ArchiveLog(self.store, self.files(name).prefix)
        found = {record.path: record.attrs for record in self.files(name).records() if record.path.endswith('/')}
        found.update((item.record.path, item.record.attrs) for item in merged(since_reset(list(log.read(log.look()))))
                     if item.record.path.endswith('/') and item.record.attrs is not None)
        return found

    def keys(self, name: str) -> list[str]:
        prefix = self.desk.registry.find(name).prefix
        return [info.key[len(prefix):] for info in self.store.list(prefix).objects if not info.key.startswith(f'{prefix}.ctxfs/')]

    def policy(self, name: str) -> UploadPolicy:
        return parse_policy(load_policy(self.store, self.desk.registry.find(name).id) or b'', origin='p').upload_policy

    def close(self) -> None:
        self.service.close()
        self.store.close()


def attrs_of(mode: int, number: int, **more: Any) -> Attrs:
    at = 1_700_000_000_000_000_000 + number
    return Attrs(mode=mode, uid=7, gid=8, mtime_ns=at, atime_ns=at + 1, ctime_ns=at + 2, **more)


@pytest.fixture
def contexts(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Contexts]:
    (home / 'store').mkdir()
    for module in (archive_plan, converting):
        monkeypatch.setattr(module, 'MEMBER_MAX', 5000)
    made = Contexts(f'file://{home}/store?fsync=no')
    yield made
    made.close()


def test_a_copy_in_archive_mode_and_back_has_everything(contexts: Contexts) -> None:
    """Content, attributes with their nanoseconds, links, symlinks, xattrs, lifecycles, empty directories, what another tool wrote; large files and
    excluded paths are objects of their own, and so is what no file system can hold."""
    made = contexts.service.create('packed').context
    save_policy(contexts.store, made.id, b'{"uploadPolicy": {"uploadMode": "Archive", "archiveExcludePaths": ["/plain"], "period": "1m"}}')
    copied = contexts.copy('src', 'packed', 'Archive')
    assert copied.objects == len(FILES) + 3 and (copied.equal, copied.removed) == (0, 0)
    assert sorted(contexts.keys('packed')) == ['d/large', 'odd//key', 'plain/kept']
    record = contexts.desk.registry.find('packed')
    assert record.state == 'available' and recorded(contexts.store, record.prefix) == 'Archive'
    want = contexts.tree('src')
    want['foreign'] = (b'of another tool', *contexts.tree('packed')['foreign'][1:])
    assert want['foreign'][1].mode == stat.S_IFREG | 0o604 and want['foreign'][1].mtime_ns == 12_500_000_000
    assert contexts.tree('packed') == want and want['logs/x'][3] == 'Lifecycle_3Days' and want['one'][2] == want['two'][2] == 'group'
    assert contexts.folders('packed') == {path: contexts.written[path].attrs for path in ('/', 'd/', 'empty/')}
    contexts.copy('packed', 'back', 'File')
    own, changed = (contexts.policy(name) for name in ('packed', 'back'))
    assert (own.upload_mode, own.archive_exclude_paths) == ('Archive', ('/plain',)) and own.period == changed.period
    assert (changed.upload_mode, changed.archive_exclude_paths) == ('File', ())
    assert contexts.tree('back') == want and recorded(contexts.store, contexts.desk.registry.find('back').prefix) == 'File'
    assert sorted(contexts.keys('back')) == sorted([*contexts.keys('src')])
    assert contexts.folders('back') == contexts.folders('packed')
    prefix = contexts.desk.registry.find('back').prefix
    assert contexts.store.tags(f'{prefix}logs/x') == {LIFECYCLE_NAME: 'Lifecycle_3Days'}
    assert posix_meta.decode(contexts.store.head(f'{prefix}link').metadata, key='link', size=3, mtime_ns=0, uid=0, gid=0).mode == stat.S_IFLNK | 0o777


@pytest.mark.parametrize('mode', ['Archive', 'File'])
def test_a_second_copy_writes_what_differs(mode: str, contexts: Contexts) -> None:
    """Content and attributes; what the source has no more goes, and a file that crossed the bound is there once."""
    source = 'src'
    if mode == 'File':
        source = 'packed'
        contexts.copy('src', 'packed', 'Archive')
    contexts.copy(source, 'dst', mode)
    again = contexts.copy(source, 'dst', mode, update=True)
    assert (again.objects, again.removed) == (0, 0) and again.equal == len(FILES) + 3
    with pytest.raises(Exists, match='has files; ctxfs context copy --update'):
        contexts.copy(source, 'dst', mode)
    for path, (kind, body) in {'a': (stat.S_IFREG | 0o600, b'other'), 'd/large': (stat.S_IFREG | 0o644, b'small'),
                               'd/b': (stat.S_IFREG | 0o644, b'grown' * 2000), 'one': (stat.S_IFREG | 0o700, b'linked')}.items():
        contexts.put(path, kind, body, 90)
    contexts.store.delete(f'contexts/{contexts.src.id}/two')
    contexts.files('src').index.append([contexts.written[path] for path in ('a', 'd/b', 'd/large', 'one')])
    if mode == 'File':
        contexts.copy('src', 'packed', 'Archive', update=True)
    done = contexts.copy(source, 'dst', mode, update=True)
    assert (done.objects, done.removed) == (4 if mode == 'Archive' else 3, 1)
    want = contexts.tree('src')
    want['foreign'] = (b'of another tool', *contexts.tree('dst')['foreign'][1:])
    assert contexts.tree('dst') == want and 'two' not in want
    if mode == 'Archive':
        assert sorted(contexts.keys('dst')) == ['d/b', 'odd//key']
        assert contexts.policy('dst') == replaced(contexts.policy('src'), upload_mode='Archive')


@pytest.mark.parametrize('point, after', [('context-copy-after-object', 4), ('context-copy-before-index', 0), ('context-copy-before-state', 0)])
@pytest.mark.parametrize('mode', ['Archive', 'File'])
def test_a_copy_that_was_cut_short_is_not_available_and_goes_on(mode: str, point: str, after: int, contexts: Contexts,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """What was noted is not copied again; nothing is there twice."""
    source = 'src' if mode == 'Archive' else 'packed'
    if mode == 'File':
        contexts.copy('src', 'packed', 'Archive')
    monkeypatch.setattr(conversion_archives, 'ARCHIVE_ITEMS', 3)
    passed = 0

    def crash_point(name: str) -> None:
        nonlocal passed
        passed += name == point
        if name == point and passed > after:
            raise Killed
    with monkeypatch.context() as patch:
        patch.setattr(converting, 'crash_point', crash_point)
        with pytest.raises(Killed):
            contexts.copy(source, 'dst', mode)
    target = contexts.desk.registry.find('dst')
    assert target.state == 'pre-available'
    with pytest.raises(InUse, match='not a whole copy'):
        contexts.desk.files(target, for_writing=True)
    done = contexts.copy(source, 'dst', mode)
    assert done.equal >= after and done.objects + done.equal == len(FILES) + 3
    assert contexts.tree('dst').keys() == contexts.tree('src').keys()
    assert contexts.desk.registry.find('dst').state == 'available'


def test_a_file_that_changes_while_it_is_copied_is_there_as_it_is_then(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another pass meets it again."""
    get, changed = contexts.desk.store.get, []

    def late(key: str, *args: Any, **options: Any) -> bytes:
        if key.endswith('/d/b') and not changed:
            changed.append(contexts.put('d/b', stat.S_IFREG | 0o644, b'afterwards', 3))
        return get(key, *args, **options)
    monkeypatch.setattr(contexts.desk.store, 'get', late)
    contexts.copy('src', 'dst', 'Archive')
    assert contexts.tree('dst')['d/b'][0] == b'afterwards'


def test_a_context_is_not_turned_into_the_other_mode(contexts: Contexts) -> None:
    """A target that is kept in one stays so."""
    contexts.copy('src', 'packed', 'Archive')
    contexts.service.create('empty')
    with pytest.raises(Exists, match='context packed is kept in Archive mode; copy src to a new context'):
        contexts.copy('src', 'packed', 'File', update=True)
    assert contexts.desk.registry.find('packed').state == 'available'
    assert contexts.copy('empty', 'nothing', 'Archive').objects == 0
    assert recorded(contexts.store, contexts.desk.registry.find('nothing').prefix) == 'Archive'
