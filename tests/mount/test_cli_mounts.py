"""mount, umount, wait, sync and status around a daemon whose file system is empty: every ending, with real mounts and processes."""
from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ctxfs.edge import cli_mount, command, daemon_process, launch
from ctxfs.edge.client import ControlClient
from ctxfs.edge.mount_table import mount_at
from ctxfs.edge.runtime_dir import find_mounts, process_start
from tests.crash.watch import children, eventually

ROOT = Path(__file__).resolve().parents[2]


class Cli:
    """The command line in this process, on a host of its own."""

    def __init__(self, tmp: Path, capfd, monkeypatch) -> None:
        self.capfd, self.monkeypatch = capfd, monkeypatch
        self.runtime = tmp / 'run/ctxfs'
        self.at, self.other = tmp / 'm', tmp / 'm2'
        for path in (tmp / 'home', tmp / 'run', self.at, self.other):
            path.mkdir()
        monkeypatch.setenv('HOME', str(tmp / 'home'))
        monkeypatch.setenv('XDG_RUNTIME_DIR', str(tmp / 'run'))
        monkeypatch.setenv('PYTHONPATH', str(ROOT))
        monkeypatch.setattr(daemon_process, 'MODULE', 'tests.fakes.fake_daemon')
        self.behave()

    def behave(self, **behaviour) -> None:
        self.monkeypatch.setenv('CTXFS_FAKE_DAEMON', json.dumps(behaviour))

    def run(self, *args, status=0) -> str:
        """Its stdout; stderr must be empty on success, else one line that `self.error` keeps."""
        self.capfd.readouterr()
        got = command.run([str(a) for a in args])
        out, self.error = self.capfd.readouterr()
        assert got == status, f'{args}: exit {got}: {self.error}'
        if status:
            assert self.error.startswith('ctxfs: ') and self.error.count('\n') == 1, self.error
        else:
            assert self.error == ''
        return out

    def json(self, *args, status=0):
        return json.loads(self.run(*args, '--json', status=status))

    def mount(self, name='proj', at=None, *args, **behaviour) -> int:
        """The daemon's pid."""
        self.behave(**behaviour)
        return self.json('mount', name, at or self.at, '--create', *args)['pid']

    def fails(self, *args, said: str, status=1) -> None:
        self.run(*args, status=status)
        assert said in self.error, self.error

    def unmount(self, at=None) -> None:
        subprocess.run(['fusermount3', '-u', at or self.at], check=True)


@pytest.fixture
def ctxfs(tmp, capfd, monkeypatch):
    return Cli(tmp, capfd, monkeypatch)


def is_mounted(path) -> bool:
    return mount_at(str(path)) is not None


# --- mount -------------------------------------------------------------------------------------------------------------------------

def test_mount_returns_when_the_mount_answers(ctxfs):
    """Silent for scripts, findable at once, gone after umount; the daemon is a process of its own with nothing of the terminal."""
    assert ctxfs.run('mount', '--create', 'proj', ctxfs.at) == ''
    assert is_mounted(ctxfs.at) and os.listdir(ctxfs.at) == []
    mount, = find_mounts(ctxfs.runtime)
    with ControlClient(mount.socket) as client:
        info = client.call('mount_info')
    assert info['session'] == info['pid'] == mount.record.pid
    assert (info['cwd'], info['stdin'], info['umask'], len(info['argv'])) == ('/', '/dev/null', 0o077, 1)
    assert info['log'] == mount.record.log_file
    ctxfs.run('umount', ctxfs.at)
    assert not is_mounted(ctxfs.at) and process_start(mount.record.pid) is None
    assert ctxfs.json('status') == {'mounts': []}


@pytest.mark.parametrize('behaviour, said, status', [
    ({'raise': 'the bucket has gone'}, 'the bucket has gone', 1), ({'bug': 'oops\nat\n once'}, 'RuntimeError: oops at once', 1),
    ({'die': True}, 'ended (status 3) before the mount was there: last words; see /', 1),
])
def test_a_failed_mount_says_why_and_leaves_nothing(ctxfs, behaviour, said, status):
    """No process, no mount, no runtime directory."""
    ctxfs.behave(**behaviour)
    ctxfs.fails('mount', '--create', 'proj', ctxfs.at, said=said, status=status)
    assert not is_mounted(ctxfs.at) and list(ctxfs.runtime.iterdir()) == []
    ctxfs.mount()
    ctxfs.run('umount', ctxfs.at)


def test_a_daemon_that_cannot_even_begin_says_why(ctxfs, monkeypatch):
    """It has no log yet: its words are in the log of the mount that it would have been, and the last of them on the terminal."""
    monkeypatch.setattr(daemon_process, 'MODULE', 'tests.fakes.no_such_daemon')
    ctxfs.fails('mount', '--create', 'proj', ctxfs.at, said='ended (status 1) before the mount was there: ')
    assert 'No module named tests.fakes.no_such_daemon; see /' in ctxfs.error
    log, = (ctxfs.runtime.parent.parent / 'home').rglob('ctxfs.log')
    assert 'No module named tests.fakes.no_such_daemon' in log.read_text()
    assert not is_mounted(ctxfs.at)


def test_a_mount_that_is_refused_leaves_no_process(ctxfs, monkeypatch):
    """Its daemon's process began before anybody knew."""
    begun = []
    monkeypatch.setattr(daemon_process, '_end', lambda process, end=daemon_process._end: (begun.append(process.pid), end(process)))
    ctxfs.fails('mount', 'nowhere', ctxfs.at, said='nowhere')
    pid, = begun
    assert process_start(pid) is None
    ctxfs.run('mount', '--help')
    assert begun == [pid]


def test_a_command_that_is_killed_leaves_no_process(ctxfs, tmp):
    """Neither the daemon that waits for its options nor the worker that waits for its mount."""
    with socket.create_server(('127.0.0.1', 0)) as silent:
        store = f's3://bucket?endpoint=http://127.0.0.1:{silent.getsockname()[1]}'
        command = subprocess.Popen([sys.executable, '-I', '-m', 'ctxfs', 'mount', 'proj', ctxfs.at, '--store', store, '--state-dir', tmp / 'state'],
                                   env={**os.environ, 'AWS_ACCESS_KEY_ID': 'a', 'AWS_SECRET_ACCESS_KEY': 'b', 'AWS_DEFAULT_REGION': 'us-east-1'})
        try:
            daemon, = eventually('the daemon begins', lambda: children(command.pid))
            worker, = eventually('the worker begins', lambda: children(daemon))
        finally:
            command.kill()
            command.wait()
    eventually('both are gone', lambda: not {pid for pid in (daemon, worker) if process_start(pid) is not None})


def test_a_new_context_needs_no_directory(ctxfs, tmp):
    """--create makes it, with those above; they go again where the mount fails, before the daemon or in it. Without --create nothing is made."""
    deep = tmp / 'home/a/b'
    for behaviour, options, status in (({'raise': 'no'}, (), 1), ({'die': True}, (), 1), ({}, ('-o', 'nonsense'), 2)):
        ctxfs.behave(**behaviour)
        ctxfs.run('mount', '--create', 'proj', deep, *options, status=status)
        assert os.listdir(tmp / 'home') in ([], ['.local'], ['.cache', '.local'], ['.local', '.cache'])
    ctxfs.behave()
    ctxfs.run('mount', '--create', 'proj', deep)
    assert is_mounted(deep)
    ctxfs.run('umount', deep)
    ctxfs.fails('mount', 'proj', tmp / 'other', said='no such directory; make it with mkdir -p')


def test_a_mount_that_never_becomes_ready_ends_in_time(ctxfs, monkeypatch):
    """Its process with it."""
    monkeypatch.setattr(launch.start, '__kwdefaults__', {'timeout': 1.5})
    ctxfs.behave(hang=True)
    ctxfs.fails('mount', '--create', 'proj', ctxfs.at, said='did not answer within 1.5 s; see /')
    assert not is_mounted(ctxfs.at)


def test_a_named_mount(ctxfs, tmp, monkeypatch):
    """`ctxfs mount NAME` does what the config file says, the command line wins; NAME is then a name of the mount."""
    (tmp / 'home/.config/ctxfs').mkdir(parents=True)
    (tmp / 'home/.config/ctxfs/config.toml').write_text(
        f'fsync = "remote"\n[mounts.work]\ncontext = "proj"\nmountpoint = "{ctxfs.at}"\nstate_dir = "{tmp}/state"\ncreate = true\n'
        f'store = "file://{tmp}/store"\noptions = "noatime,uid=5"\nsync_every = "30s"\nlog_level = "debug"\n')
    seen = []
    start = launch.start
    monkeypatch.setattr(launch, 'start', lambda options, **others: seen.append(options) or start(options, **others))
    mounted = ctxfs.json('mount', 'work', '--log-level', 'error', '-o', 'gid=6')
    assert (mounted['contextName'], mounted['mountpoint'], mounted['store']) == ('proj', str(ctxfs.at), f'file://{tmp}/store')
    assert mounted['stateDir'].startswith(f'{tmp}/state/')
    options, = seen
    assert (options.fsync, options.sync_every, options.log_level, options.uid, options.gid) == ('remote', 30.0, 'error', 5, 6)
    assert options.kernel_options == ('noatime',)
    assert ctxfs.json('status', 'work')['mounts'][0]['mountpoint'] == str(ctxfs.at)
    ctxfs.run('umount', 'work')
    assert not is_mounted(ctxfs.at)
    ctxfs.fails('umount', 'work', said=f'{ctxfs.at}: nothing is mounted there')
    ctxfs.fails('mount', 'wrok', said='no [mounts.wrok] in ', status=2)
    assert '(did you mean work?)' in ctxfs.error and '; to mount the context wrok, say where: ctxfs mount wrok MOUNTPOINT' in ctxfs.error


def test_unknown_contexts_are_not_created(ctxfs):
    """Nearest name and the option that creates, exit 1."""
    ctxfs.run('context', 'create', 'my-project')
    ctxfs.fails('mount', 'my-projct', ctxfs.at, said='(did you mean my-project?); ctxfs mount --create makes a new one')
    assert ctxfs.run('context', 'list').count('\n') == 1


@pytest.mark.parametrize('args, said', [
    (('--cache-size', '10Q'), 'is not a size'), (('--cache-size', '1'), 'holds nothing'), (('-o', 'allow_othr'), 'did you mean allow_other'),
    (('--store', 'bucket'), 's3://BUCKET'), (('--fsync', 'never'), "'never' is not one of"), (('--no-such',), 'No such option'),
    (('--store', 's3://bucket?endpoint=x'), 'endpoint must be'),
])
def test_wrong_usage_is_exit_2(ctxfs, args, said):
    """One line, and nothing was made."""
    ctxfs.fails('mount', '--create', 'proj', ctxfs.at, *args, said=said, status=2)
    assert not (Path(os.environ['HOME']) / '.local').exists()


def test_an_unreachable_endpoint_is_told_within_ten_seconds(ctxfs, monkeypatch):
    """Nobody listens on a port that was just given back."""
    import socket
    import time
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'x')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'x')
    start = time.monotonic()
    ctxfs.fails('mount', '--create', 'proj', ctxfs.at, '--store', f's3://bucket?endpoint=http://127.0.0.1:{port}', said=f'127.0.0.1:{port}')
    assert time.monotonic() - start < 10


def test_mounted_already(ctxfs):
    """The same place, or the same context elsewhere: pid and mount point are named. Another state directory is another host."""
    pid = ctxfs.mount()
    ctxfs.fails('mount', 'proj', ctxfs.at, said=f'context proj is mounted there already (pid {pid})')
    ctxfs.fails('mount', 'proj', ctxfs.other, said=f'context proj is mounted here already, at {ctxfs.at} (pid {pid})')
    second = ctxfs.mount('proj', ctxfs.other, '--state-dir', ctxfs.at.parent / 's2')
    assert {m['pid'] for m in ctxfs.json('status', 'proj')['mounts']} == {pid, second}
    assert ctxfs.json('context', 'show', 'proj')['state'] == 'in-use'
    ctxfs.run('umount', ctxfs.other)
    ctxfs.run('umount', 'proj')


def test_a_dead_mount_is_freed(ctxfs):
    """Its daemon was killed; the next mount needs no help, in the same place or elsewhere."""
    for place in (ctxfs.at, ctxfs.other):
        pid = ctxfs.mount('proj', place)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(OSError) as caught:
            os.stat(place / 'x')
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    assert is_mounted(ctxfs.other)
    ctxfs.mount('proj', ctxfs.at)
    assert not is_mounted(ctxfs.other), 'what the killed daemon left elsewhere was freed too'
    ctxfs.run('umount', ctxfs.at)


def test_a_remount_waits_for_the_last_flush(ctxfs, tmp):
    """`fusermount3 -u A; ctxfs mount CTX B` needs no wait between."""
    first = ctxfs.mount(pending=[3, 4096], flush_until=str(tmp / 'go'))
    ctxfs.unmount()
    timer = threading.Timer(0.5, (tmp / 'go').touch)
    timer.start()
    second = ctxfs.mount('proj', ctxfs.other)
    timer.join()
    assert process_start(first) is None and second != first
    ctxfs.run('umount', ctxfs.other)


def test_a_remount_does_not_wait_forever(ctxfs, tmp, monkeypatch):
    """It names the daemon that still uploads, and how to follow it."""
    monkeypatch.setattr(cli_mount, 'TAKE_OVER_SECONDS', 0.3)
    pid = ctxfs.mount(pending=[3, 4096], flush_until=str(tmp / 'go'))
    ctxfs.unmount()
    ctxfs.fails('mount', 'proj', ctxfs.other, said=f'still being written back after its last unmount (pid {pid}); follow it with ctxfs wait proj')
    (tmp / 'go').touch()
    ctxfs.run('wait', 'proj')


# --- umount and wait ---------------------------------------------------------------------------------------------------------------

def test_wait_after_fusermount_has_no_race(ctxfs, tmp):
    """Whenever it is asked: while the daemon flushes, as it ends, and after."""
    pid = ctxfs.mount(pending=[3, 4096], flush_until=str(tmp / 'go'))
    ctxfs.unmount()
    ctxfs.fails('wait', 'proj', '--timeout', 0.3, said=f'proj ({ctxfs.at}): still 3 files (4.0 KiB) pending after 0.3 s')
    timer = threading.Timer(0.3, (tmp / 'go').touch)
    timer.start()
    for reference in ('proj', ctxfs.at, None):
        assert ctxfs.json('wait', *([reference] if reference else []))['ok']
        assert process_start(pid) is None
    timer.join()


def test_wait_returns_the_cause_of_a_failed_flush(ctxfs):
    """Exit 1 with the cause, as often as it is asked, until the next mount ends well."""
    ctxfs.mount(pending=[2, 10], failure='2 files could not be uploaded: access denied')
    ctxfs.unmount()
    for _ in range(2):
        ctxfs.fails('wait', 'proj', said=f'proj ({ctxfs.at}): 2 files could not be uploaded: access denied')
    shown, = ctxfs.json('status')['mounts']
    assert (shown['state'], shown['pid'], shown['pending']['files']) == ('failed', None, 2)
    assert '2 files could not be uploaded' in ctxfs.run('status')
    ctxfs.mount('proj', ctxfs.other)
    ctxfs.run('umount', ctxfs.other)
    ctxfs.run('wait', 'proj')
    assert ctxfs.json('status') == {'mounts': []}


def test_wait_for_a_killed_daemon_fails(ctxfs):
    """What it had not uploaded is journaled, and the line says how it gets out."""
    pid = ctxfs.mount()
    os.kill(pid, signal.SIGKILL)
    ctxfs.fails('wait', 'proj', said='its daemon died; mount again to upload what is journaled')
    assert ctxfs.json('status')['mounts'][0]['state'] == 'died'
    ctxfs.fails('umount', ctxfs.at, said='its daemon died')
    assert not is_mounted(ctxfs.at)


def test_wait_while_mounted(ctxfs):
    """Nothing pending is done at once; something is not."""
    ctxfs.mount()
    assert ctxfs.json('wait', 'proj')['mounts'][0]['message'] == 'everything is in the bucket'
    ctxfs.run('umount', 'proj')
    ctxfs.mount(pending=[1, 5])
    ctxfs.fails('wait', 'proj', '--timeout', 0.2, said='still 1 file (5 bytes) pending')
    ctxfs.run('umount', 'proj')


def test_wait_for_what_was_never_mounted(ctxfs):
    """A context that exists has nothing pending; one that does not exist must not look like it."""
    ctxfs.run('context', 'create', 'my-project')
    assert ctxfs.json('wait', 'my-project') == {'ok': True, 'mounts': []}
    assert ctxfs.json('wait') == {'ok': True, 'mounts': []}
    ctxfs.fails('wait', 'my-projct', said='did you mean my-project?')
    ctxfs.fails('wait', ctxfs.at, said=f'no context is or was mounted at {ctxfs.at}')


def test_umount_of_a_busy_mount_names_the_program(ctxfs):
    """And leaves it mounted; --lazy detaches it."""
    ctxfs.mount()
    with subprocess.Popen([sys.executable, '-c', 'print(1, flush=True); input()'], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, cwd=ctxfs.at) as user:
        user.stdout.readline()
        command = Path(f'/proc/{user.pid}/comm').read_text().strip()
        ctxfs.fails('umount', ctxfs.at, said=f'is busy: {command} (pid {user.pid}, working directory {ctxfs.at})')
        assert is_mounted(ctxfs.at)
        ctxfs.fails('umount', '--lazy', ctxfs.at, '--timeout', 0.1, said='pending after 0.1 s')
        assert not is_mounted(ctxfs.at)
    ctxfs.run('wait', 'proj')


def test_umount_of_something_else(ctxfs):
    """Nothing, or another file system, is left alone and named."""
    ctxfs.fails('umount', ctxfs.at, said='nothing is mounted there')
    ctxfs.fails('umount', '/proc', said='not a ctxfs mount but proc')


def test_umount_through_a_symlink(ctxfs, tmp):
    """The path that a person has is enough."""
    (tmp / 'link').symlink_to(ctxfs.at)
    ctxfs.mount('proj', tmp / 'link')
    assert is_mounted(ctxfs.at)
    ctxfs.run('wait', tmp / 'link')
    ctxfs.run('umount', tmp / 'link')


# --- sync and status ---------------------------------------------------------------------------------------------------------------

def test_sync(ctxfs):
    """All mounts, one, a path below one, or a lone path; absolute or relative."""
    ctxfs.mount(pending=[1, 1])
    ctxfs.run('sync')
    for args, asked in (((), [None, 'upload', True]), (('proj', 'a//b/'), ['a/b', 'upload', True]), (('proj', '/a'), ['a', 'upload', True]),
                        (('proj', ctxfs.at / 'a'), ['a', 'upload', True]), ((ctxfs.at / 'a/b',), ['a/b', 'upload', True]),
                        ((ctxfs.at, '--mode', 'download'), [None, 'download', True]), (('proj', '.', '--no-wait'), ['', 'upload', False])):
        result = ctxfs.json('sync', *args)
        assert result['ok'] and result['mounts'][0]['asked'] == asked
    ctxfs.fails('sync', 'proj', 'missing', said='no such file: missing')
    ctxfs.fails('sync', 'proj', '../x', said='outside of the mount', status=2)
    ctxfs.fails('sync', 'proj', '--mode', 'both', said='is not one of', status=2)
    ctxfs.fails('sync', 'porj', said='porj is not mounted (did you mean proj?)')
    ctxfs.run('umount', 'proj')
    ctxfs.fails('sync', said='nothing is mounted')


def test_a_failed_sync_is_exit_1_with_the_cause(ctxfs):
    """One line that names the mount."""
    ctxfs.mount(failure='a: access denied')
    ctxfs.fails('sync', said=f'proj ({ctxfs.at}): a: access denied')
    ctxfs.fails('umount', 'proj', said='a: access denied')


def test_status_for_people(ctxfs):
    """Mount point, pending, failures with cause and next attempt, hidden keys with reason; control characters are shown, not sent."""
    import time
    failed = [{'path': '/a\x1b[2Jb', 'error': 'access denied', 'attempt': 3, 'nextRetry': time.time() + 100}]
    tasks = [{'path': str(ctxfs.at), 'taskType': 'upload', 'status': 'Running', 'startTime': time.time() - 30, 'filesDone': 10, 'filesTotal': 20,
              'bytesDone': 1 << 20, 'bytesTotal': 4 << 20, 'errorMessage': '', 'attempt': 1, 'nextRetry': 0}]
    ctxfs.mount(pending=[3, 5 << 20], tasks=tasks, failed=failed, unmountable=[{'key': 'a//b', 'reason': 'an empty name'}])
    shown = ctxfs.run('status', ctxfs.at)
    for words in ('proj (SdkCtx-', f') at {ctxfs.at}: mounted, pid ', '3 files (5.0 MiB), the oldest for 5 s',
                  '/a\\x1b[2Jb: access denied (attempt 3, next in ', 'a//b: an empty name',
                  'upload    38 %, 10 of 20 files, 1.0 MiB of 4.0 MiB, 5'):
        assert words in shown, shown
    assert ctxfs.json('status', 'proj')['mounts'][0]['tasks'] == tasks
    ctxfs.fails('status', 'porj', said='did you mean proj?')
    ctxfs.fails('status', '--store', 's3://nope', 'proj', said='proj is not mounted here')
    ctxfs.run('umount', 'proj')
    assert ctxfs.json('status', 'proj') == {'mounts': []}


def test_a_mount_point_with_odd_characters(ctxfs, tmp):
    """Blanks, newlines and bytes that are no UTF-8 are escaped in the kernel's table."""
    odd = tmp / os.fsdecode(b'a b\n\xc3\xbc\\x')
    odd.mkdir()
    ctxfs.mount('proj', odd)
    assert ctxfs.json('status', odd)['mounts'][0]['mountpoint'] == str(odd)
    ctxfs.run('umount', odd)


# --- S3 ----------------------------------------------------------------------------------------------------------------------------

def test_a_bucket_that_does_not_exist(ctxfs, s3_endpoint):
    """One line that names it; nothing is made."""
    ctxfs.fails('mount', '--create', 'proj', ctxfs.at, '--store', f's3://no-such-bucket?endpoint={s3_endpoint}', said='no-such-bucket')
    assert not is_mounted(ctxfs.at)


def test_missing_credentials(ctxfs, s3_endpoint, monkeypatch):
    """The line says where they come from."""
    for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_SESSION_TOKEN'):
        monkeypatch.delenv(name, raising=False)
    ctxfs.fails('mount', '--create', 'proj', ctxfs.at, '--store', f's3://bucket?endpoint={s3_endpoint}', said='AWS_ACCESS_KEY_ID')


def test_contexts_in_a_bucket(ctxfs, s3_endpoint, s3_server):
    """The registry works over S3 as it does over a directory, and a mount's URL is enough for the daemon."""
    url = f's3://{s3_server.make_bucket()}?endpoint={s3_endpoint}'
    pid = ctxfs.mount('proj', ctxfs.at, '--store', url)
    shown, = ctxfs.json('context', 'list', '--store', url)['contexts']
    assert (shown['name'], shown['state']) == ('proj', 'in-use') and shown['lastUsedAt'] >= shown['createdAt']
    mount, = ctxfs.json('status', '--store', url)['mounts']
    assert (mount['pid'], mount['store']) == (pid, url)
    ctxfs.run('umount', ctxfs.at)
