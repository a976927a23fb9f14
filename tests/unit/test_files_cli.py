"""`ctxfs files` and `ctxfs context` as their users type them, without a mount."""
from __future__ import annotations

import json
import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from ctxfs.edge.cli import run
from ctxfs.errors import Denied
from ctxfs.storage import posix_meta, registry_changes
from ctxfs.storage.heartbeats import live_mounts
from ctxfs.storage.registry import Registry
from ctxfs.storage.stores import open_store
from ctxfs.sync import get_files, put_files
from ctxfs.sync.context_files import ContextFiles
from ctxfs.sync.index_log import IndexLog


@pytest.fixture
def url(tmp_path, monkeypatch):
    for name, variable in (('home', 'HOME'), ('run', 'XDG_RUNTIME_DIR')):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(tmp_path / name))
    (tmp_path / 'store').mkdir()
    made = f'file://{tmp_path}/store?fsync=no'
    monkeypatch.setenv('CTXFS_STORE', made)
    assert run(['context', 'create', 'c']) == 0
    return made


@pytest.fixture
def cli(url, capfd):
    """Runs a command line that must succeed; what it prints, as JSON with --json."""
    capfd.readouterr()

    def call(*arguments, status=0):
        done = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        assert done == status, captured.err
        out = captured.out if status == 0 else captured.err
        return json.loads(captured.out) if '--json' in arguments and captured.out else out
    return call


def a_tree(root):
    (root / 'deep/er').mkdir(parents=True)
    (root / 'empty').mkdir()
    (root / 'deep/er/run.sh').write_text('#!/bin/sh\n')
    (root / 'deep/er/run.sh').chmod(0o751)
    (root / 'ünï ☃\n').write_bytes(b'x')
    (root / 'big').write_bytes(os.urandom(9 << 20))
    os.symlink('deep/er/run.sh', root / 'link')
    with open(os.fsencode(root) + b'/by\xfftes', 'wb') as file:
        file.write(b'not UTF-8')
    for number in range(30):
        (root / f'deep/{number}').write_bytes(b'%d' % number)
    os.utime(root / 'deep/1', ns=(1, 1_700_000_000_123_456_789))


def tree(root):
    found = {}
    for directory, folders, names in os.walk(os.fsencode(root)):
        for name in [*names, *(f for f in folders if not os.listdir(os.path.join(directory, f)))]:
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            what = os.readlink(path) if stat.S_ISLNK(mode) else Path(os.fsdecode(path)).read_bytes() if stat.S_ISREG(mode) else b''
            times = os.lstat(path).st_mtime_ns if stat.S_ISREG(mode) else 0
            found[os.path.relpath(path, os.fsencode(root))] = (stat.S_IFMT(mode), stat.S_IMODE(mode) if stat.S_ISREG(mode) else 0, times, what)
    return found


def test_a_tree_goes_there_and_back(cli, url, tmp_path):
    """Content, modes, times, symlinks, empty directories and names that are no text; and the index knows all of it."""
    (tmp_path / 'source').mkdir()
    a_tree(tmp_path / 'source')
    done = cli('files', 'put', 'c', tmp_path / 'source', '/data', '--json')
    assert done == {'files': 36, 'bytes': (9 << 20) + sum(len(str(n)) for n in range(30)) + 9 + 1 + 10 + 14, 'failed': []}
    cli('files', 'get', 'c', '/data', tmp_path / 'back')
    assert tree(tmp_path / 'back') == tree(tmp_path / 'source')
    store = open_store(url)
    context_id = Registry(store).find('c').id
    records = {record.path: record for record in IndexLog(store, f'contexts/{context_id}/', host='h').read()}
    assert {'data/empty/', 'data/link', 'data/deep/er/run.sh', 'data/by\u201bFFtes'} <= records.keys() and len(records) == 36
    info = store.head(f'contexts/{context_id}/data/big')
    assert records['data/big'].etag == info.etag and posix_meta.decode_stamp(info.metadata).sha256
    store.close()


def test_arguments_are_cps(cli, tmp_path, monkeypatch):
    """Into a folder that is there or is named with a slash, else as that name; nothing below a file, no file over a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'x').write_text('x')
    (tmp_path / 'd').mkdir()
    (tmp_path / 'd/y').write_text('y')

    def paths():
        return [entry['path'] for entry in cli('files', 'ls', 'c', '-r', '--json')['entries']]
    cli('files', 'put', 'c', 'x')
    cli('files', 'put', 'c', 'x', '/a')
    cli('files', 'put', 'c', 'x', 'b/')
    cli('files', 'put', 'c', 'x', '/b')
    cli('files', 'put', 'c', 'd/', '/b')
    cli('files', 'put', 'c', 'd', '/new')
    assert paths() == ['/a', '/b/d/y', '/b/x', '/new/y', '/x']
    assert 'a is a file' in cli('files', 'put', 'c', 'x', '/a/x', status=1)
    assert 'a is a file' in cli('files', 'put', 'c', 'd', '/a', status=1)
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub/d').write_text('')
    assert '/b/d is a folder' in cli('files', 'put', 'c', 'sub/d', '/b', status=1)
    assert 'no such file' in cli('files', 'put', 'c', 'nothing', status=1)
    cli('files', 'get', 'c', '/b/x', 'got')
    cli('files', 'get', 'c', '/new', '.')
    cli('files', 'get', 'c', '/b', 'd/')
    assert (tmp_path / 'got').read_text() == 'x' and (tmp_path / 'new/y').read_text() == 'y' and (tmp_path / 'd/b/d/y').read_text() == 'y'
    assert cli('files', 'get', 'c', '/b/x', '-') == 'x'
    assert 'there is no /b/q' in cli('files', 'get', 'c', '/b/q', status=1)
    assert 'no such directory' in cli('files', 'get', 'c', '/b/x', 'no/where/x', status=2)


def test_ls_and_rm(cli, tmp_path):
    """A folder, a file, what is not there; a folder goes with -r only, and / never."""
    (tmp_path / 'd').mkdir()
    for name in ('one', 'two'):
        (tmp_path / 'd' / name).write_bytes(b'x' * 2000)
    cli('files', 'put', 'c', tmp_path / 'd', '/d')
    assert [line.split()[-1] for line in cli('files', 'ls', 'c').splitlines()] == ['d/']
    lines = cli('files', 'ls', 'c', '/d').splitlines()
    assert [line.split()[-1] for line in lines] == ['one', 'two'] and all(line.startswith('2.0 KiB') for line in lines)
    assert cli('files', 'ls', 'c', '/d/one').split()[-1] == 'one'
    assert 'there is no /e in the context' in cli('files', 'ls', 'c', '/e', status=1)
    assert 'remove it with -r' in cli('files', 'rm', 'c', '/d', status=1)
    assert cli('files', 'rm', 'c', '/d/one', '--json') == {'removed': 1}
    assert cli('files', 'rm', 'c', '-r', '/d', '--json') == {'removed': 1}
    assert 'ctxfs context clear' in cli('files', 'rm', 'c', '-r', '/', status=2)
    assert 'reserved' in cli('files', 'rm', 'c', '/.ctxfs/index', status=1)


def test_what_cannot_be_sent_is_named_and_the_rest_is_sent(cli, tmp_path):
    """A pipe, a name that is reserved: one line each, status 1."""
    (tmp_path / 'd').mkdir()
    (tmp_path / 'd/good').write_text('x')
    os.mkfifo(tmp_path / 'd/pipe')
    err = cli('files', 'put', 'c', tmp_path / 'd', '/d', status=1)
    assert 'd/pipe: neither a file nor a symlink nor a directory' in err and '1 file could not be put' in err
    assert [entry['name'] for entry in cli('files', 'ls', 'c', '/d', '--json')['entries']] == ['good']


def test_what_arrived_before_a_refusal_is_told_to_mounts(url, tmp_path):
    """However many files the store refuses."""
    (tmp_path / 'd').mkdir()
    for number in range(20):
        (tmp_path / f'd/{number:02}').write_bytes(b'x')
    store = open_store(url)
    files = ContextFiles(store, Registry(store).find('c').id, host='h')
    is_over = threading.Barrier(5)

    class Refusing:
        """The first four at once."""

        def __getattr__(self, verb):
            return getattr(store, verb)

        def put(self, key, body, **how):
            if key.rpartition('/')[2] in ('00', '01', '02', '03', '04'):
                is_over.wait(10)
                if not key.endswith('04'):
                    raise Denied(key)
            return store.put(key, body, **how)
    files.store = Refusing()
    with pytest.raises(Denied):
        put_files.put(files, os.fsencode(tmp_path / 'd'), 'd')
    arrived = [info.key.removeprefix(files.prefix) for info in store.list(files.prefix + 'd/').objects]
    assert 'd/04' in arrived and [record.path for record in files.records()] == arrived
    store.close()


def test_nothing_is_written_outside(cli, url, tmp_path):
    """A symlink of the bucket is never written through, in one go or in two."""
    (tmp_path / 'outside').mkdir()
    store = open_store(url)
    context_id = Registry(store).find('c').id
    link = {'mode': str(stat.S_IFLNK | 0o777)}
    store.put(f'contexts/{context_id}/t/way', str(tmp_path / 'outside').encode(), metadata=link)
    cli('files', 'get', 'c', '/', tmp_path / 'back')
    assert os.readlink(tmp_path / 'back/t/way') == str(tmp_path / 'outside')
    store.delete(f'contexts/{context_id}/t/way')
    store.put(f'contexts/{context_id}/t/way/evil', b'x')
    err = cli('files', 'get', 'c', '/', tmp_path / 'back', status=1)
    assert '/t/way/evil: ' in err and not os.listdir(tmp_path / 'outside')
    store.put(f'contexts/{context_id}/u/a/../../../evil', b'x')
    store.put(f'contexts/{context_id}/u/good', b'x')
    cli('files', 'get', 'c', '/u', tmp_path / 'u')
    assert os.listdir(tmp_path / 'u') == ['good']
    store.close()


def test_a_file_that_was_cut_short_is_gone_on_with(cli, url, tmp_path, monkeypatch):
    """From where it was, if the object still is that version; else from the start."""
    body = os.urandom((20 << 20) + 5)
    (tmp_path / 'big').write_bytes(body)
    cli('files', 'put', 'c', tmp_path / 'big', '/big')
    store = open_store(url)
    files = ContextFiles(store, Registry(store).find('c').id, host='h')
    asked = []

    def reading(fails_at):
        class Reading:
            def __getattr__(self, verb):
                return getattr(store, verb)

            def get(self, key, start=0, stop=None, **how):
                if 'big' in key:
                    asked.append(start)
                    if start >= fails_at:
                        raise KeyboardInterrupt
                return store.get(key, start, stop, **how)
        return Reading()
    files.store = reading(16 << 20)
    with pytest.raises(KeyboardInterrupt):
        get_files.get(files, files.find('/big'), os.fsencode(tmp_path / 'back'))
    assert asked == [0, 8 << 20, 16 << 20] and not (tmp_path / 'back').exists()
    asked.clear()
    files.store = reading(1 << 40)
    assert get_files.get(files, files.find('/big'), os.fsencode(tmp_path / 'back')).files == 1
    assert asked == [16 << 20] and (tmp_path / 'back').read_bytes() == body
    assert sorted(os.listdir(tmp_path)) == ['back', 'big', 'home', 'run', 'store']
    store.close()


def test_contexts_on_the_command_line(cli, tmp_path):
    """Renamed, shown, listed by pages, emptied, deleted; a taken name and a missing context are one line."""
    made = cli('context', 'create', 'd', '--json')
    assert 'there is a context c already' in cli('context', 'rename', 'd', 'c', status=1)
    cli('context', 'rename', 'd', 'e')
    shown = cli('context', 'show', 'e', '--json')
    assert (shown['id'], shown['name'], shown['state'], shown['mounts']) == (made['id'], 'e', 'available', [])
    page = cli('context', 'list', '--limit', '1', '--json')
    rest = cli('context', 'list', '--limit', '1', '--next-token', page['nextToken'], '--json')
    assert {context['name'] for context in page['contexts'] + rest['contexts']} == {'c', 'e'}
    assert (page['totalCount'], rest['totalCount'], rest['nextToken']) == (2, 2, None)
    (tmp_path / 'x').write_text('x')
    cli('files', 'put', 'e', tmp_path / 'x')
    assert cli('context', 'clear', 'e') == 'e: 1 object removed\n'
    cli('files', 'put', 'e', tmp_path / 'x')
    assert cli('context', 'delete', 'e', '--json')['deleted'] is True
    assert 'no context e' in cli('context', 'show', 'e', status=1)
    assert [line.split()[-1] for line in cli('context', 'list').splitlines()] == ['c']


def test_a_context_that_is_being_cleared_is_not_mounted(cli, url, tmp_path):
    """The line says what goes on with it."""
    store = open_store(url)
    registry_changes.begin_clearing(store, Registry(store).find('c').id, deletes=False)
    store.close()
    (tmp_path / 'm').mkdir()
    assert 'context c is being cleared; ctxfs context clear c goes on with it' in cli('mount', 'c', tmp_path / 'm', status=1)
    assert 'is being cleared' in cli('files', 'put', 'c', '/etc/hostname', status=1)
    cli('context', 'clear', 'c')
    assert cli('context', 'show', 'c', '--json')['state'] == 'available'


def test_a_clearing_that_begins_while_a_mount_does_is_seen(cli, url, tmp_path, monkeypatch):
    """The mount looked at the context, then it was marked, and nobody saw a heartbeat: nothing is mounted, nor looks so."""
    from ctxfs.edge import cli_mount
    store, real = open_store(url), cli_mount._options

    def late(*args, **how):
        registry_changes.begin_clearing(store, Registry(store).find('c').id, deletes=False)
        return real(*args, **how)
    monkeypatch.setattr(cli_mount, '_options', late)
    place = tmp_path / 'm'
    place.mkdir()
    try:
        assert 'context c is being cleared; ctxfs context clear c goes on with it' in cli('mount', 'c', place, status=1)
    finally:
        subprocess.run(['fusermount3', '-uz', place], check=False, capture_output=True)
    assert live_mounts(store, Registry(store).find('c').id) == [] and cli('status', '--json')['mounts'] == []
    store.close()


def test_urls_are_refused_where_there_is_no_server(cli):
    """One line that names the stores that can, and wrong times are wrong usage."""
    assert 'presigned URLs need an s3:// store' in cli('files', 'url', 'c', '/x', '--upload', status=1)
    for wrong in ('0s', '200h', 'soon', '5'):
        assert f'--expires {wrong}: ' in cli('files', 'url', 'c', '/x', '--expires', wrong, status=2)


def test_changes_are_in_the_audit_log(cli, tmp_path):
    """One line for each command that changes something, failures too."""
    (tmp_path / 'home/.config/ctxfs').mkdir(parents=True)
    (tmp_path / 'home/.config/ctxfs/config.toml').write_text(f'audit_log = "{tmp_path}/audit"\n')
    (tmp_path / 'x').write_text('x')
    cli('files', 'put', 'c', tmp_path / 'x', '/x')
    cli('files', 'rm', 'c', '/x')
    cli('files', 'rm', 'c', '/x', status=1)
    cli('context', 'rename', 'c', 'd')
    cli('context', 'clear', 'd')
    cli('context', 'delete', 'd')
    lines = [json.loads(line) for line in (tmp_path / 'audit').read_text().splitlines()]
    assert [(line['operation'], line['result'], line['context']) for line in lines] == [
        ('files-put', 'ok', 'c'), ('files-rm', 'ok', 'c'), ('files-rm', 'failed', 'c'), ('context-rename', 'ok', 'c'), ('context-clear', 'ok', 'd'),
        ('context-delete', 'ok', 'd')]
