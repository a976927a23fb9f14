"""ContextService on a directory and on an S3 server: the SDK's results, statuses and texts, and what a crash in the middle leaves."""
from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import re
import subprocess
import textwrap
import threading
import time
from pathlib import Path

import pytest
import trio

import ctxfs
from ctxfs import AgentBayError, AsyncContextService, ClearanceTimeoutError, ContextListParams, ContextService
from ctxfs.edge import context_service
from ctxfs.edge.state_lock import locked
from ctxfs.errors import Denied, InUse, RemoteUnavailable
from ctxfs.storage import registry_changes
from ctxfs.storage.heartbeats import EXPIRE_SECONDS, Beat, beat_name, encode, live_mounts
from ctxfs.storage.stores import open_store
from ctxfs.sync import clearing
from ctxfs.sync.index_log import IndexLog
from tests.sdk import load_source

SDK = load_source(Path(str(importlib.metadata.distribution('wuying-agentbay-sdk').locate_file('agentbay/_common/params/context_sync.py'))))


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name, variable in (('home', 'HOME'), ('run', 'XDG_RUNTIME_DIR')):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(tmp_path / name))
    return tmp_path


@pytest.fixture(params=['file', 's3'])
def url(request, home, monkeypatch):
    if request.param == 'file':
        (home / 'store').mkdir()
        return f'file://{home}/store?fsync=no'
    server = request.getfixturevalue('s3_server')
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server.url(server.make_bucket())


@pytest.fixture
def file_url(home):
    (home / 'store').mkdir()
    return f'file://{home}/store?fsync=no'


@pytest.fixture
def contexts(url):
    with ContextService(url) as made:
        yield made


@pytest.fixture
def local(file_url):
    with ContextService(file_url) as made:
        yield made


def fill(url, context_id, files):
    store = open_store(url)
    for path, body in files.items():
        store.put(f'contexts/{context_id}/{path}', body)
    store.close()


def keys(url, prefix='contexts/'):
    store = open_store(url)
    try:
        return [info.key for info in store.list(prefix).objects]
    finally:
        store.close()


def test_the_life_of_a_context(contexts, url):
    """Created once, found by name and id, renamed, cleared, deleted."""
    made = contexts.get('my-project', create=True)
    assert made.success and made.request_id and made.error_message == '' and re.fullmatch(r'SdkCtx-[a-z0-9]{17}', made.context_id)
    assert contexts.create('my-project').context == made.context == contexts.get(context_id=made.context_id).context
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ', made.context.created_at)
    made.context.name = 'renamed'
    assert contexts.update(made.context).data is True
    assert contexts.get('renamed').context_id == made.context_id and not contexts.get('my-project').success
    fill(url, made.context_id, {'data/a': b'1', 'b': b'2', '.ctxfs/policy': b'{}'})
    cleared = contexts.clear(made.context_id, timeout=30, poll_interval=0.5)
    assert (cleared.success, cleared.status, cleared.context_id) == (True, 'available', made.context_id)
    assert contexts.list_files(made.context_id, '/').entries == [] and contexts.get('renamed').context.id == made.context_id
    assert f'contexts/{made.context_id}/.ctxfs/policy' in keys(url)
    fill(url, made.context_id, {'data/a': b'1'})
    assert contexts.delete(made.context).success
    assert keys(url) == [] and keys(url, '.ctxfs/contexts/') == []
    gone = contexts.delete(made.context)
    assert not gone.success and gone.error_message.startswith('[ContextNotFound] no context SdkCtx-')


def test_what_is_refused(local):
    """With the SDK's texts where it raises, as results where it does not."""
    with pytest.raises(AgentBayError, match=r"^Either 'name' or 'context_id' must be provided$"):
        local.get()
    with pytest.raises(AgentBayError, match=r"^Cannot create context using context_id. Use 'name' parameter when create=True$"):
        local.get(context_id='SdkCtx-x', create=True)
    assert local.get('nothing').error_message == '[ContextNotFound] no context nothing'
    assert local.get('a/b', create=True).error_message.startswith("[InvalidParameter] 'a/b' looks like a path")
    one, two = local.create('one').context, local.create('two').context
    one.name = 'two'
    taken = local.update(one)
    assert (taken.success, taken.data) == (False, False)
    assert taken.error_message == '[Context.NameExists] there is a context two already; choose another name'
    assert local.list(ContextListParams(max_results=0)).error_message == '[InvalidParameter] max_results is 0; write 1 or more'
    assert local.list(ContextListParams(next_token='a b')).error_message.startswith('[InvalidParameter]')
    assert local.list_files(two.id, '/', max_results=3, next_token='?').error_message.startswith('[InvalidParameter]')
    for path in ('../x', '.ctxfs/index', 'a/./b'):
        assert local.delete_file(two.id, path).error_message.startswith('[InvalidParameter]'), path


def test_pages_of_contexts(local):
    """Ten at a time unless it is said otherwise; every one once."""
    made = {local.create(f'c{number}').context_id for number in range(23)}
    page, seen = local.list(), []
    assert (len(page.contexts), page.max_results, page.total_count) == (10, 10, 23)
    while True:
        seen += [context.id for context in page.contexts]
        if not page.next_token:
            break
        page = local.list(ContextListParams(max_results=9, next_token=page.next_token))
        assert page.total_count == 23
    assert len(seen) == 23 and set(seen) == made


def test_files_one_level_at_a_time(contexts, url):
    """Folders and files of one folder, by pages and by tokens; ctxfs's own objects and keys that no disk can have do not show."""
    context = contexts.create('files').context
    fill(url, context.id, {'top': b'123', 'd/x': b'', 'd/deep/y': b'y', 'empty/': b'', '.ctxfs/index/x': b'', 'a//b': b'', 'e ü/z': b''})
    root = contexts.list_files(context.id, '/')
    assert [(entry.file_name, entry.file_path, entry.file_type, entry.size, entry.status) for entry in root.entries] == [
        ('a', '/a', 'FOLDER', None, 'ready'), ('d', '/d', 'FOLDER', None, 'ready'), ('e ü', '/e ü', 'FOLDER', None, 'ready'),
        ('empty', '/empty', 'FOLDER', None, 'ready'), ('top', '/top', 'FILE', 3, 'ready')]
    assert root.entries[-1].gmt_modified == root.entries[-1].gmt_create and root.entries[-1].gmt_modified.endswith('Z') and root.count == 5
    assert [entry.file_path for entry in contexts.list_files(context.id, '/d').entries] == ['/d/deep', '/d/x']
    assert contexts.list_files(context.id, 'd/').entries == contexts.list_files(context.id, '/d').entries
    assert contexts.list_files(context.id, '/empty').entries == [] == contexts.list_files(context.id, '/nothing').entries
    names = [[entry.file_name for entry in contexts.list_files(context.id, '/', page_number=number, page_size=2).entries] for number in (1, 2, 3, 4)]
    assert names == [['a', 'd'], ['e ü', 'empty'], ['top'], []]
    token, names = None, []
    while True:
        page = contexts.list_files(context.id, '/', max_results=2, next_token=token)
        names.append([entry.file_name for entry in page.entries])
        if (token := page.next_token) is None:
            break
    assert names == [['a', 'd'], ['e ü', 'empty'], ['top']]


def test_a_deleted_file_is_announced(contexts, url):
    """Its object goes, and the index says so to mounts that do not list everything."""
    context = contexts.create('files').context
    fill(url, context.id, {'data/old': b'1', 'data/new': b'2'})
    assert contexts.delete_file(context.id, '/data/old').success
    assert [entry.file_name for entry in contexts.list_files(context.id, '/data').entries] == ['new']
    store = open_store(url)
    records = {record.path: record.attrs for record in IndexLog(store, f'contexts/{context.id}/', host='h').read()}
    store.close()
    assert records == {'data/old': None}
    again = contexts.delete_file(context.id, '/data/old')
    assert (again.success, again.error_message) == (False, '[FileNotFound] there is no /data/old in the context')
    assert contexts.delete_file(context.id, '/data').error_message == 'Failed to delete /data: /data is a folder; name a file'


def test_urls_that_curl_can_use(s3_server, home, monkeypatch):
    """As they stand, also with a name that has to be escaped, and without any header."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    with ContextService(s3_server.url(s3_server.make_bucket())) as contexts:
        context = contexts.create('urls').context
        source = home / 'source'
        source.write_bytes(os.urandom(100_000))
        path = "/data/ré port+1 & (2)'~.txt"
        given = contexts.get_file_upload_url(context_id=context.id, file_path=path)
        assert given.success and abs(given.expire_time - time.time() - 3600) < 60
        code = subprocess.run(['curl', '-sS', '-o', '/dev/null', '-w', '%{http_code}', '-T', source, given.url], capture_output=True, text=True,
                              check=True, timeout=60).stdout
        assert code == '200'
        found = contexts.get_file_download_url(context.id, path)
        fetched = subprocess.run(['curl', '-sSf', found.url], capture_output=True, check=True, timeout=60).stdout
        assert fetched == source.read_bytes()
        assert [entry.size for entry in contexts.list_files(context.id, '/data').entries] == [100_000]
        assert contexts.get_file_download_url(context.id, '/data/nothing').error_message == '[FileNotFound] there is no /data/nothing in the context'


def test_a_presigned_url_is_botocores(monkeypatch):
    """The same query as the reference makes, with a session token too."""
    import boto3
    import botocore.config

    from ctxfs.storage.s3_sign import Credentials, presigned_query
    for token in (None, 'a/token+='):
        client = boto3.client('s3', endpoint_url='http://localhost:9', region_name='eu-x', aws_access_key_id='AK', aws_secret_access_key='SK',
                              aws_session_token=token, config=botocore.config.Config(signature_version='s3v4', s3={'addressing_style': 'path'}))
        theirs = client.generate_presigned_url('get_object', Params={'Bucket': 'b', 'Key': 'k ü'}, ExpiresIn=77)
        stamp = re.search(r'X-Amz-Date=(\w+)', theirs)[1]
        now = time.mktime(time.strptime(stamp, '%Y%m%dT%H%M%SZ')) - time.timezone
        ours = presigned_query('GET', 'localhost:9', '/b/k%20%C3%BC', credentials=Credentials('AK', 'SK', token), region='eu-x', seconds=77, now=now)
        assert sorted(ours.split('&')) == sorted(theirs.partition('?')[2].split('&'))
        client.close()


def test_a_directory_has_no_urls(local):
    """And says which stores do."""
    context = local.create('c').context
    for result in (local.get_file_upload_url(context.id, '/x'), local.get_file_download_url(context.id, '/x')):
        assert not result.success and 'presigned URLs need an s3:// store' in result.error_message and not result.url


# --- in use -------------------------------------------------------------------------------------------------------------------------

def beat(url, context_id, *, host='0123456789abcdef'):
    body = encode(Beat(host_id=host, host='desk', mountpoint='/home/me/ctx', pid=4711, since='2024-01-01T00:00:00Z'))
    fill(url, context_id, {beat_name(host, '/state'): body})


def left_behind(home, url, context_id):
    """What the daemon of `beat` leaves on its host when it is killed; its state directory."""
    state = home / f'home/.local/state/ctxfs/{context_id}'
    (state / 'last-mount').mkdir(parents=True)
    record = {'contextId': context_id, 'contextName': 'c', 'mountpoint': '/home/me/ctx', 'store': url, 'stateDir': str(state), 'logFile': '',
              'pid': 4711, 'pidStart': 1, 'bootId': 'an earlier one', 'startedAt': 1.0}
    (state / 'last-mount/mount.json').write_text(json.dumps(record))
    return state


def test_what_is_mounted_somewhere_is_not_emptied(contexts, url):
    """Unless it is forced; what its mounts agree by stays."""
    context = contexts.create('used').context
    fill(url, context.id, {'a': b'1'})
    beat(url, context.id)
    for result in (contexts.clear(context.id), contexts.delete(context), contexts.clear_async(context.id)):
        assert not result.success
        assert re.fullmatch(r'\[Context.InUse\] context used is mounted \(desk:/home/me/ctx\); unmount it there, or (clear|delete) it with --force',
                            result.error_message)
    assert contexts.get_clear_status(context.id).status == 'available'
    assert contexts.clear(context.id, timeout=30, poll_interval=0.5, force=True).success
    assert len([key for key in keys(url) if '/mounts/' in key]) == 1 and contexts.list_files(context.id, '/').entries == []
    assert contexts.delete(context, force=True).success and keys(url) == []


def test_a_heartbeat_expires(local, file_url, home):
    """By the store's clock; and what this host's own killed daemon left does not count."""
    context = local.create('c').context
    beat(file_url, context.id)
    store = open_store(file_url)
    assert [one.host for one in live_mounts(store, context.id)] == ['desk']
    place, = (home / f'store/contexts/{context.id}/.ctxfs/mounts').iterdir()
    old = time.time() - EXPIRE_SECONDS - 5
    os.utime(place, (old, old))
    assert live_mounts(store, context.id) == []
    store.put(f'contexts/{context.id}/.ctxfs/mounts/odd', b'no json')
    assert [one.host for one in live_mounts(store, context.id)] == ['an unknown host']
    store.delete(f'contexts/{context.id}/.ctxfs/mounts/odd')
    beat(file_url, context.id, host=local._desk().host)
    store.close()
    left_behind(home, file_url, context.id)
    assert local.delete(context).success


@pytest.mark.parametrize('known', ['nothing', 'locked'])
def test_a_heartbeat_of_this_host_is_dead_only_where_that_is_known(local, file_url, home, known):
    """A copy of this machine has its id; in another container its processes are not to be seen, only that the state is locked."""
    context = local.create('c').context
    beat(file_url, context.id, host=local._desk().host)
    if known == 'nothing':
        assert local.delete(context).error_message.startswith('[Context.InUse]')
        return
    with locked(left_behind(home, file_url, context.id)):
        assert local.delete(context).error_message.startswith('[Context.InUse]')
    assert local.delete(context).success


def test_a_mount_that_comes_while_it_is_marked_wins(local, file_url, monkeypatch):
    """The clearing sees its heartbeat after the mark, and takes the mark back."""
    context = local.create('c').context
    fill(file_url, context.id, {'a': b'1'})
    monkeypatch.setattr(clearing, 'crash_point', lambda name: beat(file_url, context.id) if name == 'context-clear-after-mark' else None)
    assert local.delete(context).error_message.startswith('[Context.InUse]')
    assert local.get_clear_status(context.id).status == 'available'
    assert [entry.file_name for entry in local.list_files(context.id, '/').entries] == ['a']


# --- two at once ---------------------------------------------------------------------------------------------------------------------

def overtake(monkeypatch, act):
    """`act` once, between a page of the listing and what goes of it."""
    real, is_done = clearing.pages, []

    def late(store, prefix, **how):
        for page in real(store, prefix, **how):
            if not is_done:
                is_done.append(True)
                act()
            yield page
    monkeypatch.setattr(clearing, 'pages', late)


def test_who_is_overtaken_by_another_clearing_removes_nothing_that_came_after(local, file_url, monkeypatch):
    """A slow one listed a file; another came to the end of it, and the context was used again: the new file of that name stays."""
    context = local.create('c').context
    fill(file_url, context.id, {'a': b'1'})
    desk = local._desk()
    slow = desk.begin_clearing(desk.registry.find('c'), deletes=False, force=False)

    def another():
        assert desk.finish_clearing(desk.begin_clearing(desk.registry.find('c'), deletes=False, force=False)) == 1
        fill(file_url, context.id, {'a': b'2'})
    overtake(monkeypatch, another)
    assert desk.finish_clearing(slow) == 0
    assert [entry.file_name for entry in local.list_files(context.id, '/').entries] == ['a']
    assert local.get_clear_status(context.id).status == 'available'


def test_the_end_of_a_clearing_leaves_a_deletion_its_mark(local, file_url, monkeypatch):
    """What is being deleted is not called available, or it would be mounted and lose what is written there."""
    context = local.create('c').context
    fill(file_url, context.id, {'a': b'1'})
    desk = local._desk()
    cleared = desk.begin_clearing(desk.registry.find('c'), deletes=False, force=False)
    doomed = desk.begin_clearing(desk.registry.find('c'), deletes=True, force=False)
    desk.finish_clearing(cleared)
    assert local.get_clear_status(context.id).status == 'clearing'
    desk.finish_clearing(doomed)
    assert keys(file_url) == [] and not local.get('c').success


def test_a_deletion_whose_mark_was_taken_back_ends(local, file_url, monkeypatch):
    """And says so; the files and the name stay."""
    context = local.create('c').context
    fill(file_url, context.id, {'a': b'1'})
    desk = local._desk()
    doomed = desk.begin_clearing(desk.registry.find('c'), deletes=True, force=False)
    overtake(monkeypatch, lambda: registry_changes.take_back_clearing(desk.store, context.id))
    with pytest.raises(InUse, match='not to be deleted any more'):
        desk.finish_clearing(doomed)
    assert local.get('c').success and [entry.file_name for entry in local.list_files(context.id, '/').entries] == ['a']


def test_only_who_marked_a_context_takes_the_mark_back(local, file_url, monkeypatch):
    """A mount that is on its way shows up: another's deletion, which did not see it, goes on and must keep its mark."""
    context = local.create('c').context
    desk = local._desk()
    desk.begin_clearing(desk.registry.find('c'), deletes=True, force=False)
    monkeypatch.setattr(clearing, 'crash_point', lambda name: beat(file_url, context.id))
    assert local.clear(context.id).error_message.startswith('[Context.InUse]')
    record = desk.registry.find('c')
    assert (record.state, record.is_doomed) == ('clearing', True)


# --- cut short ----------------------------------------------------------------------------------------------------------------------

class Killed(BaseException):
    """Nothing runs afterwards."""


@pytest.mark.parametrize('point', ['context-clear-after-mark', 'context-clear-after-batch', 'context-clear-before-state'])
def test_a_clearing_that_was_cut_short_says_so(local, file_url, monkeypatch, point):
    """Nothing can be added meanwhile, and the next try comes to the end."""
    context = local.create('c').context
    fill(file_url, context.id, {f'f{number:04}': b'x' for number in range(1100)})

    def die(name):
        if name == point:
            raise Killed
    monkeypatch.setattr(clearing, 'crash_point', die)
    desk = local._desk()
    with pytest.raises(Killed):
        desk.finish_clearing(desk.begin_clearing(desk.registry.find('c'), deletes=False, force=False))
    monkeypatch.undo()
    assert local.get_clear_status(context.id).status == 'clearing'
    left = len([key for key in keys(file_url) if '/.ctxfs/' not in key])
    assert left == {'context-clear-after-mark': 1000, 'context-clear-after-batch': 100, 'context-clear-before-state': 0}[point]
    assert local.get_file_upload_url(context.id, '/x').error_message == (
        '[Context.InUse] context c is being cleared; ctxfs context clear c goes on with it if that was cut short')
    assert local.clear(context.id, timeout=30, poll_interval=0.2).status == 'available'
    assert local.list_files(context.id, '/').entries == []


def test_a_deletion_that_was_cut_short_goes_on_as_one(local, file_url, monkeypatch):
    """Also when only a clearing is asked for: half of it is gone."""
    context = local.create('c').context
    fill(file_url, context.id, {'a': b'1', 'b': b'2'})

    def die(name):
        if name == 'context-clear-after-batch':
            raise Killed
    monkeypatch.setattr(clearing, 'crash_point', die)
    with pytest.raises(Killed):
        local.delete(context)
    monkeypatch.undo()
    assert local.get_clear_status(context.id).status == 'clearing'
    assert local.clear_async(context.id).success
    local.close()
    assert keys(file_url) == [] and not local.get('c').success


def test_a_clearing_that_fails_tells_why(local, file_url, monkeypatch):
    """The status is a failure with the cause, the context says clearing, and another try helps."""
    context = local.create('c').context
    fill(file_url, context.id, {'a': b'1'})
    real = clearing._remove_batch

    def fail(*args):
        raise RemoteUnavailable('the store is away')
    monkeypatch.setattr(clearing, '_remove_batch', fail)
    failed = local.clear(context.id, timeout=30, poll_interval=0.2)
    assert (failed.success, failed.status, failed.error_message) == (False, 'clearing', 'Failed to clear the context: the store is away')
    monkeypatch.setattr(clearing, '_remove_batch', real)
    assert local.clear(context.id, timeout=30, poll_interval=0.2).success


def test_a_clearing_that_takes_too_long_goes_on(local, file_url, monkeypatch):
    """ClearanceTimeoutError says how long it was waited for; the end comes all the same."""
    context = local.create('c').context
    fill(file_url, context.id, {'a': b'1'})
    may_go_on, real = threading.Event(), clearing._remove_batch

    def slow(*args):
        assert may_go_on.wait(60)
        real(*args)
    monkeypatch.setattr(clearing, '_remove_batch', slow)
    with pytest.raises(ClearanceTimeoutError, match=r'^Context clearing timed out after 0\.\d\d seconds$|^Context clearing timed out after \d'):
        local.clear(context.id, timeout=0.2, poll_interval=0.1)
    assert local.get_clear_status(context.id).status == 'clearing' and local.clear_async(context.id).success
    may_go_on.set()
    local.close()
    assert local.get_clear_status(context.id).status == 'available'


def test_a_context_of_other_tools_can_be_emptied_and_renamed(local, file_url):
    """One that the registry does not know has its id for a name."""
    fill(file_url, 'by-hand', {'a': b'1'})
    fill(file_url, 'SdkCtx-' + '0' * 17, {'a': b'1'})
    assert local.clear('by-hand', timeout=30, poll_interval=0.2).success
    assert local.clear('SdkCtx-' + '0' * 17, timeout=30, poll_interval=0.2).success
    found = local.get('by-hand').context
    found.name = 'named'
    assert local.update(found).success and local.get('named').context_id == 'by-hand'


# --- the other forms ------------------------------------------------------------------------------------------------------------------

def test_the_async_twin(file_url):
    """The same under asyncio and trio, exceptions included."""
    async def use():
        async with AsyncContextService(file_url) as contexts:
            context = (await contexts.get('c', create=True)).context
            with pytest.raises(AgentBayError):
                await contexts.get()
            return (await contexts.list()).total_count, (await contexts.clear(context.id, poll_interval=0.1)).status, (
                await contexts.list_files(context.id, '/')).entries
    assert asyncio.run(use()) == trio.run(use) == (1, 'available', [])
    sync = {name for name in vars(ContextService) if not name.startswith('_')}
    assert sync == {name for name in vars(AsyncContextService) if not name.startswith('_')}


def test_the_policies_are_the_sdks():
    """The same wire form, and the same words about what is wrong."""
    for make in (
        lambda sdk: sdk.SyncPolicy(),
        lambda sdk: sdk.SyncPolicy(
            upload_policy=sdk.UploadPolicy(upload_mode=sdk.UploadMode.ARCHIVE, archive_exclude_paths=['models']),
            delete_policy=sdk.DeletePolicy(sync_local_file=False), extract_policy=sdk.ExtractPolicy(extract_current_folder=True),
            recycle_policy=sdk.RecyclePolicy(lifecycle=sdk.Lifecycle.LIFECYCLE_30DAYS, paths=['/logs']),
            bw_list=sdk.BWList(white_lists=[sdk.WhiteList(path='/src', exclude_paths=['/node_modules']),
                                            sdk.WhiteList(path=r'.*\.json', is_path_regex=True)]),
            mapping_policy=sdk.MappingPolicy(path='c:\\Users')),
    ):
        assert make(ctxfs).to_dict() == make(SDK).__dict__()
    for make in (
        lambda sdk: sdk.UploadPolicy(upload_mode='Archive'), lambda sdk: sdk.RecyclePolicy(lifecycle='Lifecycle_1Day'),
        lambda sdk: sdk.RecyclePolicy(paths=['a*']), lambda sdk: sdk.WhiteList(path='*.json'), lambda sdk: sdk.WhiteList(exclude_paths=['[a]']),
    ):
        with pytest.raises(ValueError) as theirs:
            make(SDK)
        with pytest.raises(ValueError) as ours:
            make(ctxfs)
        assert str(ours.value) == str(theirs.value)
    for kind in (SDK.Lifecycle, SDK.UploadMode, SDK.UploadStrategy, SDK.DownloadStrategy):
        assert {member.name: member.value for member in kind} == {member.name: member.value for member in getattr(ctxfs, kind.__name__)}
    sync = ctxfs.ContextSync.new('SdkCtx-1', '/tmp/d').with_policy(ctxfs.SyncPolicy.default())
    assert (sync.context_id, sync.path, json.loads(sync.policy.to_json())) == ('SdkCtx-1', '/tmp/d', SDK.SyncPolicy().__dict__())


EXAMPLE = '''
from ctxfs import AgentBay, ClearanceTimeoutError, AgentBayError, ContextListParams
agent_bay = AgentBay()

context_result = agent_bay.context.get("my-project", create=True)
if context_result.success:
    context = context_result.context
    print(f"Context Name: {context.name}")
existing_context_result = agent_bay.context.get("no-project", create=False)
if not existing_context_result.success:
    print("Context does not exist")

contexts_result = agent_bay.context.list()
if contexts_result.success:
    print(f"Total contexts: {contexts_result.total_count}")
params = ContextListParams(max_results=20)
result = agent_bay.context.list(params)
while result.next_token:
    params = ContextListParams(max_results=20, next_token=result.next_token)
    result = agent_bay.context.list(params)

context.name = "new-name"
update_result = agent_bay.context.update(context)
if update_result.success:
    print("Context name updated successfully")

page_number = 1
while True:
    list_result = agent_bay.context.list_files(context_id=context.id, parent_folder_path="/data", page_number=page_number, page_size=10)
    if not list_result.success:
        print(f"Failed to list files: {list_result.error_message}")
        break
    if not list_result.entries:
        print("No more files")
        break
    page_number += 1

for file_path in ["/logs/debug.log"]:
    delete_result = agent_bay.context.delete_file(context_id=context.id, file_path=file_path)
    if not delete_result.success:
        print(f"Failed to delete {file_path}: {delete_result.error_message}")

try:
    clear_result = agent_bay.context.clear(context_id=context.id, timeout=30, poll_interval=1.0)
    if clear_result.success:
        print(f"Final status: {clear_result.status}")
except ClearanceTimeoutError as e:
    print(f"Timeout: {e}")
except AgentBayError as e:
    print(f"API error: {e}")

context_to_delete = agent_bay.context.get("new-name", create=False).context
if context_to_delete:
    delete_result = agent_bay.context.delete(context_to_delete)
    if delete_result.success:
        print("Context deleted successfully")
'''


def test_programs_for_the_sdk_run(file_url, monkeypatch, capsys):
    """With another import and a store in the environment, as the SDK's guide writes them."""
    monkeypatch.setenv('CTXFS_STORE', file_url)
    exec(textwrap.dedent(EXAMPLE), {})
    assert capsys.readouterr().out.splitlines() == [
        'Context Name: my-project', 'Context does not exist', 'Total contexts: 1', 'Context name updated successfully', 'No more files',
        'Failed to delete /logs/debug.log: [FileNotFound] there is no /logs/debug.log in the context', 'Final status: available',
        'Context deleted successfully']


def test_without_rights_or_a_store_a_result_says_so(home, monkeypatch):
    """Nothing but wrong arguments is raised."""
    with ContextService(f'file://{home}/nothing') as contexts:
        assert f'{home}/nothing' in contexts.list().error_message and not contexts.list().success
    monkeypatch.setattr(context_service, 'new_desk', lambda *args, **kwargs: (_ for _ in ()).throw(Denied('no rights')))
    with ContextService(f'file://{home}/nothing') as contexts:
        assert contexts.get('x').error_message == '[AccessDenied] no rights'
