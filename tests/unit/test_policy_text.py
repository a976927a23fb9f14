"""What `ctxfs policy show` says, the times that people write, and which policy a mount gets."""
from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from ctxfs.config import FileConfig
from ctxfs.config_file import load_config
from ctxfs.durations import format_duration, parse_duration, poll_every_of, spell_duration, sync_every_of
from ctxfs.edge.download_wait import left_to_download
from ctxfs.edge.policy_choice import Chooser, fallback
from ctxfs.edge.runtime_dir import Pending
from ctxfs.errors import Denied, UsageError
from ctxfs.policy import ONLY_ON_UNMOUNT, SyncPolicy
from ctxfs.policy_check import check_for_mount
from ctxfs.policy_parse import parse_policy
from ctxfs.policy_text import describe, json_schema
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.policy_store import load_policy, policy_key, save_policy
from ctxfs.storage.registry import ContextRecord, Registry
from ctxfs.storage.stores import open_store

UPLOAD, SYNCED, DOWNLOAD, DELETE, EXPIRY, ZIP = range(6)


def sentences(value: dict, **more: float) -> list[str]:
    return describe(parse_policy(value, origin='x'), **more)


# --- sentences ---------------------------------------------------------------------------------------------------------------------

def test_the_default_in_sentences() -> None:
    """All that happens, and when."""
    assert sentences({}) == [
        'uploads 60 s after the oldest change, and on unmount', 'everything is synced',
        'remote changes appear while mounted, and the cache is filled in the background', 'local deletes delete the object', 'nothing expires',
        'zip files are left as they are (extractPolicy is kept, but a mount unpacks no archives but its own)']


@pytest.mark.parametrize('upload, sync_every, text', [
    ({'period': 5}, None, 'uploads 5 minutes after the oldest change, and on unmount (uploadPolicy.period, where a bare number is minutes)'),
    ({'period': '30s'}, None, 'uploads 30 s after the oldest change, and on unmount (uploadPolicy.period, where a bare number is minutes)'),
    ({'period': 0}, None, 'uploads as soon as a file is closed, and on unmount (uploadPolicy.period, where a bare number is minutes)'),
    ({'period': 5}, 2.5, 'uploads 2.5 s after the oldest change, and on unmount (--sync-every)'),
    ({}, 0.0, 'uploads as soon as a file is closed, and on unmount (--sync-every)'),
    ({}, ONLY_ON_UNMOUNT, 'uploads on unmount only (--sync-every)'),
    ({'autoUpload': False, 'period': 5}, None, 'only ctxfs sync uploads; on unmount changes stay on this host'),
])
def test_when_it_uploads(upload: dict, sync_every: float | None, text: str) -> None:
    """The unit of a period is said, and who set it."""
    assert describe(parse_policy({'uploadPolicy': upload}, origin='x'), sync_every=sync_every)[UPLOAD] == text


@pytest.mark.parametrize('lists, text', [
    ([{'path': '/'}], 'everything is synced'),
    ([{'path': '/src', 'excludePaths': ['/node_modules', 'a/b/']}, {'path': 'config'}],
     '2 paths are synced: /src (without /src/node_modules, /src/a/b), /config; everything else stays on this host'),
    ([{'path': 'src'}], '1 path is synced: /src; everything else stays on this host'),
    ([{'excludePaths': ['tmp']}], '1 path is synced: everything (without /tmp); everything else stays on this host'),
    ([{'path': 'p-.*', 'isPathRegex': True, 'excludePaths': ['c.*'], 'isExcludeRegex': True}],
     '1 path is synced: what matches p-.* (without what matches c.* below it); everything else stays on this host'),
    ([{'path': 'p-.*', 'isPathRegex': True, 'excludePaths': ['tmp']}],
     '1 path is synced: what matches p-.* (without /tmp below it); everything else stays on this host'),
    ([{'path': 'src', 'excludePaths': ['c.*'], 'isExcludeRegex': True}],
     '1 path is synced: /src (without what matches c.* below /src); everything else stays on this host'),
])
def test_what_is_synced(lists: list[dict], text: str) -> None:
    """Excludes with the directory that they are in: what they are relative to is what people get wrong."""
    assert sentences({'bwList': {'whiteLists': lists}})[SYNCED] == text


def test_downloads_deletes_expiry_and_the_rest() -> None:
    """One sentence each."""
    found = sentences({
        'downloadPolicy': {'autoDownload': False}, 'deletePolicy': {'syncLocalFile': False}, 'extractPolicy': {'extract': False},
        'recyclePolicy': {'lifecycle': 'Lifecycle_3Days', 'paths': ['/logs', 'tmp/']}, 'mappingPolicy': {'path': 'C:\\x'}})
    assert found[DOWNLOAD:] == [
        'content is fetched when it is read; remote changes come only by ctxfs sync --mode download',
        'local deletes keep the object: the file is hidden on this host', '/logs expires 3 days after upload', '/tmp expires 3 days after upload',
        'zip files are left as they are', 'the root of the mount is C:\\x of the context']
    assert sentences({'recyclePolicy': {'lifecycle': 'Lifecycle_1Day'}})[EXPIRY] == 'everything expires 1 day after upload'
    assert sentences({'uploadPolicy': {'uploadMode': 'Archive', 'archiveExcludePaths': ['models/', 'a']}})[1] == (
        'small files go together into zip archives (Archive mode); large ones stay objects of their own, and so does what is below /models, /a')


def test_the_schema_is_json_and_closed() -> None:
    """An editor underlines a key that ctxfs would refuse."""
    made = json.loads(json.dumps(json_schema()))
    assert made['additionalProperties'] is False and set(made['properties']) >= {'uploadPolicy', 'bwList'}


# --- times -------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('seconds, text, spelt', [(0.0, '0s', '0 s'), (30.0, '30s', '30 s'), (60.0, '1m', '60 s'), (90.0, '90s', '90 s'),
                                                  (300.0, '5m', '5 minutes'), (3600.0, '1h', '1 hour'), (7200.0, '2h', '2 hours'),
                                                  (0.5, '0.5s', '0.5 s'), (0.000001, '0.000001s', '1e-06 s')])
def test_times_are_written_as_they_are_read(seconds: float, text: str, spelt: str) -> None:
    """The shortest text, which means the same when read again."""
    assert (format_duration(seconds), spell_duration(seconds)) == (text, spelt)
    assert parse_duration(text) == seconds


def test_sync_every_and_poll_every() -> None:
    """A bare number is seconds; what does nothing is refused with what to write."""
    assert [sync_every_of(text) for text in (None, '0', '5', 2.5, '30s', '5m', 'unmount')] == [None, 0, 5, 2.5, 30, 300, ONLY_ON_UNMOUNT]
    assert [poll_every_of(text) for text in (None, '1', '2.5s', '1m')] == [10, 1, 2.5, 60]
    for text in ('', '-1', 'never', '5d', '1e3', 'nan', '٣s'):
        with pytest.raises(UsageError, match=f'--sync-every {text}: not a time'):
            sync_every_of(text)
    with pytest.raises(UsageError, match='longer than a year'):
        sync_every_of('10000h')
    for text, said in (('0', 'the least is 1s'), ('0.9', 'the least is 1s'), ('x', 'not a time')):
        with pytest.raises(UsageError, match=f'--poll-every {text}: {said}'):
            poll_every_of(text)


# --- which policy a mount gets -----------------------------------------------------------------------------------------------------

@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f'file://{tmp_path}/store', create=True)


@pytest.fixture
def context(store: ObjectStore) -> ContextRecord:
    return Registry(store).create('proj')


def chooser(tmp_path: Path, *, file: Path | None = None, config: str = '') -> Chooser:
    (tmp_path / 'config.toml').write_text(config)
    return Chooser(str(file) if file else None, load_config(tmp_path / 'config.toml'), tmp_path / 'config.toml',
                   check=functools.partial(check_for_mount, mountpoint='/mnt/x'))


def written(tmp_path: Path, value: dict, name: str = 'p.json') -> Path:
    (tmp_path / name).write_text(json.dumps(value))
    return tmp_path / name


def test_the_order(tmp_path: Path, store: ObjectStore, context: ContextRecord) -> None:
    """--policy, the context's own, config.toml, the default."""
    config = '[policy.deletePolicy]\nsyncLocalFile = false\n'
    assert chooser(tmp_path).choose(store, context).policy == SyncPolicy()
    by_config = chooser(tmp_path, config=config).choose(store, context)
    assert by_config.source == 'config' and not by_config.policy.delete_policy.sync_local_file
    save_policy(store, context.id, b'{"downloadPolicy": {"autoDownload": false}}')
    by_context = chooser(tmp_path, config=config).choose(store, context)
    assert by_context.source == 'context' and not by_context.policy.download_policy.auto_download
    file = written(tmp_path, {'uploadPolicy': {'period': 9}})
    by_file = chooser(tmp_path, config=config, file=file).choose(store, context)
    assert (by_file.source, by_file.file, by_file.policy.upload_policy.period) == (str(file), str(file), 540.0)


def test_a_policy_is_kept_with_a_context_that_has_none(tmp_path: Path, store: ObjectStore, context: ContextRecord) -> None:
    """Once; a different one later is used and said, never stored by itself."""
    first, second = written(tmp_path, {'uploadPolicy': {'period': 9}}), written(tmp_path, {}, 'q.json')
    assert chooser(tmp_path).keep(store, context, read_only=False) == '' and load_policy(store, context.id) is None
    assert chooser(tmp_path, file=first).keep(store, context, read_only=True) == '' and load_policy(store, context.id) is None
    assert chooser(tmp_path, file=first).keep(store, context, read_only=False) == ''
    kept = load_policy(store, context.id)
    assert kept and parse_policy(kept, origin='x').upload_policy.period == 540.0
    assert chooser(tmp_path, file=first).keep(store, context, read_only=False) == ''
    for read_only in (False, True):
        assert chooser(tmp_path, file=second).keep(store, context, read_only=read_only) == (
            f'this mount uses {second}; context proj has another policy stored with it, which ctxfs policy set proj {second} would replace')
    assert load_policy(store, context.id) == kept
    assert store.head(policy_key(context.id)).content_type == 'application/json'


class ReadOnlyStore:
    """A store whose credentials may read only."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def put(self, key: str, body: bytes, **more: object) -> None:
        raise Denied('no right to write')

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


def test_a_store_that_refuses_the_policy_is_told_and_the_mount_goes_on(tmp_path: Path, store: ObjectStore, context: ContextRecord) -> None:
    """One line with the cause."""
    file = written(tmp_path, {})
    note = chooser(tmp_path, file=file).keep(ReadOnlyStore(store), context, read_only=False)  # type: ignore[arg-type]
    assert note == f'this mount uses {file}, which could not be stored with context proj: no right to write'


@pytest.mark.parametrize('data, said', [(b'{', 'not JSON'), (b'\0' * 10, 'not JSON'), (b' ' * (1 << 21), 'are no policy'), (b'{"x": 1}', "'x'"),
                                        (b'{"bwList": {"whiteLists": [{"path": "/mnt/x/src"}]}}', 'write "/src"')])
def test_a_stored_policy_that_cannot_be_had_is_refused_with_the_remedy(tmp_path: Path, store: ObjectStore, context: ContextRecord, data: bytes,
                                                                       said: str) -> None:
    """Whoever wrote it; --policy gets round it."""
    save_policy(store, context.id, data)
    with pytest.raises(UsageError) as caught:
        chooser(tmp_path).choose(store, context)
    text = str(caught.value)
    assert text.startswith('the policy stored with context proj: ') and said in text
    assert text.endswith('; store a right one with ctxfs policy set proj FILE, or mount with --policy FILE')
    assert chooser(tmp_path, file=written(tmp_path, {})).choose(store, context).policy == SyncPolicy()


def test_a_bad_config_policy_is_refused_where_it_would_count(tmp_path: Path, store: ObjectStore, context: ContextRecord) -> None:
    """A wrong text always; one that only this mount cannot have, where the context has none of its own."""
    with pytest.raises(UsageError, match=r'config.toml: \[policy\]: bwList: 5: not an object'):
        chooser(tmp_path, config='[policy]\nbwList = 5\n')
    made = chooser(tmp_path, config='[[policy.bwList.whiteLists]]\npath = "/mnt/x/src"\n')
    assert made.refusal is not None
    with pytest.raises(UsageError, match='write "/src"'):
        made.choose(store, context)
    save_policy(store, context.id, b'{}')
    assert made.choose(store, context).source == 'context'


def test_config_keys_of_times_and_policies(tmp_path: Path) -> None:
    """As in the README."""
    (tmp_path / 'c.toml').write_text('sync_every = "30s"\npoll_every = 5\n[policy.uploadPolicy]\nperiod = 5\n')
    config = load_config(tmp_path / 'c.toml')
    assert config == FileConfig(sync_every='30s', poll_every=5, policy={'uploadPolicy': {'period': 5}})
    assert fallback(config, tmp_path / 'c.toml').policy.upload_policy.period == 300.0


def test_what_is_left_to_download() -> None:
    """Of running downloads only."""
    def task(kind: str, finished: int) -> dict:
        return {'taskType': kind, 'finishTime': finished, 'filesTotal': 10, 'filesDone': 4, 'bytesTotal': 100, 'bytesDone': 30}
    status = {'tasks': [task('download', 0), task('download', 5), task('upload', 0)]}
    assert left_to_download(status) == Pending(files=6, bytes=70)
    assert left_to_download({}) == Pending()
