"""Records of mounts: which process they name, what is left when it ends, and waiting for that with real processes."""
from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from ctxfs.config import MountOptions
from ctxfs.edge import flush_wait, runtime_dir
from ctxfs.edge.runtime_dir import Mount, MountRecord, Pending, current_mounts, find_mounts, process_start
from ctxfs.edge.state_lock import locked


@pytest.fixture
def sleeper():
    """A process that stands for a daemon: ends when its stdin closes."""
    with subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        yield process
        process.stdin.close()


def options(tmp: Path, name='one', state='s1') -> MountOptions:
    state_dir = tmp / state
    state_dir.mkdir(exist_ok=True)
    path = runtime_dir.runtime_dir_of(tmp / 'run', f'/m/{name}', 'id', state_dir)
    return MountOptions(context_id='id', context_name=name, mountpoint=f'/m/{name}', store_url='s3://bucket', state_dir=str(state_dir),
                        cache_dir='/c', runtime_dir=str(path), log_file='/l', host_id='h', cache_size=1)


def record_of(process: subprocess.Popen, mount: Mount) -> Mount:
    """The same mount, but of `process`, as if that were the daemon."""
    record = msgspec.structs.replace(mount.record, pid=process.pid, pid_start=process_start(process.pid))
    (mount.path / 'mount.json').write_bytes(msgspec.json.encode(record))
    return Mount(path=mount.path, record=record)


def end(process: subprocess.Popen) -> None:
    process.stdin.close()
    process.wait(10)


def test_a_record_is_found_with_its_documented_keys(tmp):
    """mount.json is JSON for anybody."""
    mount = runtime_dir.claim(options(tmp))
    assert find_mounts(tmp / 'run') == [mount] and mount.is_alive() and not mount.is_attached()
    value = json.loads((mount.path / 'mount.json').read_text())
    assert value['contextId'] == 'id' and value['mountpoint'] == '/m/one' and value['pid'] == os.getpid()
    assert len(mount.path.name) == 12 and mount.path.stat().st_mode & 0o777 == 0o700


def test_records_of_other_contexts_are_bounded(tmp, monkeypatch):
    """A host that mounts one context after the other keeps the newest that ended; who runs, and whose workers still do, stays."""
    monkeypatch.setattr(runtime_dir, 'KEEP_RESULT_SECONDS', -1)
    monkeypatch.setattr(runtime_dir, 'MOST_ENDED', 3)

    def ended(number):
        o = options(tmp, f'm{number}', state=f's{number}')
        mount = runtime_dir.claim(o)
        record = msgspec.structs.replace(mount.record, pid_start=1, started_at=float(number))
        (mount.path / 'mount.json').write_bytes(msgspec.json.encode(record))
        runtime_dir.finish(o, ok=True, pending=Pending(), message='')
        return mount.path
    paths = []
    with locked(Path(options(tmp, 'm0', state='s0').state_dir)):
        for number in range(12):
            paths.append(ended(number))
            assert len(find_mounts(tmp / 'run')) <= 1 + 3 + 1
        runtime_dir.claim(options(tmp, 'live', state='live'))
    assert [path for path in paths if path.exists()] == [paths[0], *paths[-3:]]
    assert all((tmp / f's{number}/last-mount/result.json').exists() for number in range(12))


def test_a_used_again_pid_is_not_the_daemon(tmp):
    """Same pid, but another start time or another boot: dead."""
    mount = runtime_dir.claim(options(tmp))
    assert not Mount(path=mount.path, record=msgspec.structs.replace(mount.record, pid_start=1)).is_alive()
    assert not Mount(path=mount.path, record=msgspec.structs.replace(mount.record, boot_id='before')).is_alive()


def test_a_zombie_is_dead(tmp, sleeper):
    """In a container nobody may reap it, and it does nothing any more."""
    mount = record_of(sleeper, runtime_dir.claim(options(tmp)))
    assert mount.is_alive()
    sleeper.stdin.close()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not mount.is_alive() and runtime_dir.wait_for_end(mount, 0)


def test_a_process_name_with_parentheses_is_no_trap(tmp):
    """/proc/PID/stat has the name in the middle."""
    program = tmp / ') R 1 2 (x'
    shutil.copy('/bin/sleep', program)
    with subprocess.Popen([program, '60']) as process:
        try:
            assert process_start(process.pid) == int(Path(f'/proc/{process.pid}/stat').read_text().rpartition(')')[2].split()[19])
        finally:
            process.kill()
    assert process_start(process.pid) is None


def test_claim_removes_the_last_result_and_confirm_the_durable_one(tmp):
    """Until the new mount is there, the state directory keeps saying how the last one ended."""
    o = options(tmp)
    runtime_dir.confirm(runtime_dir.claim(o))
    runtime_dir.finish(o, ok=True, pending=Pending(), message='fine')
    last = Path(o.state_dir) / runtime_dir.LAST_MOUNT
    mount = runtime_dir.claim(o)
    assert mount.result() is None and (last / 'result.json').exists()
    runtime_dir.confirm(mount)
    assert not (last / 'result.json').exists()
    runtime_dir.discard(mount.path)
    assert not mount.path.exists() and (last / 'mount.json').exists()


def test_the_newest_mount_of_a_state_directory_counts(tmp):
    """An earlier failure at another mount point is history; another state directory is another story."""
    first, second, other = options(tmp, 'one'), options(tmp, 'two'), options(tmp, 'three', state='s2')
    for o in (first, second, other):
        runtime_dir.claim(o)
    assert {m.record.context_name for m in current_mounts(tmp / 'run', tmp)} == {'two', 'three'}


def test_who_has_another_runtime_directory_finds_the_socket(tmp):
    """As a cron job does, or a shell without a login: the state directory's record says where the mount listens."""
    mount = runtime_dir.claim(options(tmp))
    runtime_dir.confirm(mount)
    found, = current_mounts(tmp / 'elsewhere', tmp)
    assert found.is_alive() and found.path != mount.path and found.socket == mount.socket == mount.path / 'control.sock'


def test_what_a_logout_or_a_reboot_emptied_is_known_from_the_state_directory(tmp, sleeper):
    """/run/user/UID is gone, the unfinished mount is not forgotten."""
    o = options(tmp)
    mount = record_of(sleeper, runtime_dir.claim(o))
    runtime_dir.confirm(mount)
    runtime_dir.discard(mount.path)
    found, = current_mounts(tmp / 'run', tmp)
    assert found.record == mount.record
    runtime_dir.finish(o, ok=False, pending=Pending(files=2, bytes=3), message='store away')
    end(sleeper)
    outcome = flush_wait.wait_for(found, timeout=10)
    assert (outcome.ok, outcome.message, outcome.pending) == (False, 'store away', Pending(files=2, bytes=3))


def test_a_deleted_state_directory_takes_its_record_along(tmp, sleeper):
    """Nothing can be pending there."""
    record_of(sleeper, runtime_dir.claim(options(tmp)))
    end(sleeper)
    assert len(current_mounts(tmp / 'run', tmp)) == 1
    (tmp / 's1').rmdir()
    assert current_mounts(tmp / 'run', tmp) == []


def test_old_superseded_results_are_pruned(tmp, sleeper, monkeypatch):
    """A day's results of one context do not pile up, those of this hour stay for who waits."""
    old = options(tmp, 'old')
    mount = record_of(sleeper, runtime_dir.claim(old))
    runtime_dir.finish(old, ok=True, pending=Pending(), message='')
    end(sleeper)
    runtime_dir.claim(options(tmp, 'new'))
    assert mount.path.exists()
    monkeypatch.setattr(runtime_dir, 'KEEP_RESULT_SECONDS', -1)
    runtime_dir.claim(options(tmp, 'newer'))
    assert not mount.path.exists()


def test_torn_or_foreign_files_are_no_records(tmp):
    """Nothing in the directory can break the commands."""
    for name, content in (('a', '{'), ('b', '[]'), ('c', '{"pid": "x"}')):
        (tmp / 'run' / name).mkdir(parents=True)
        (tmp / 'run' / name / 'mount.json').write_text(content)
    (tmp / 'run/file').write_text('')
    assert find_mounts(tmp / 'run') == [] == find_mounts(tmp / 'nowhere')


# --- waiting -----------------------------------------------------------------------------------------------------------------------

def test_a_result_is_waited_for_until_the_process_is_gone(tmp, sleeper):
    """The caller may want to mount again: the daemon's locks must be free when wait returns."""
    o = options(tmp)
    mount = record_of(sleeper, runtime_dir.claim(o))
    runtime_dir.finish(o, ok=True, pending=Pending(), message='fine')
    timer = threading.Timer(0.3, sleeper.stdin.close)
    timer.start()
    outcome = flush_wait.wait_for(mount, timeout=30)
    timer.join()
    assert outcome.ok and outcome.message == 'fine' and not mount.is_alive()


def test_a_daemon_that_died_without_a_result_is_a_failure(tmp, sleeper):
    """Killed: what is journaled is uploaded by the next mount, and the message says so."""
    mount = record_of(sleeper, runtime_dir.claim(options(tmp)))
    end(sleeper)
    outcome = flush_wait.wait_for(mount, timeout=None)
    assert not outcome.ok and outcome.message == 'its daemon died; mount again to upload what is journaled'
    assert 'one (/m/one): its daemon died' in str(flush_wait.failure_of([outcome]))


def test_the_result_of_a_daemon_that_ends_between_the_questions_counts(tmp, sleeper, monkeypatch):
    """It writes its result after the process was asked about and before the result is read: that is no death."""
    o = options(tmp)
    mount = record_of(sleeper, runtime_dir.claim(o))
    asked = flush_wait.wait_for_end

    def ends_just_then(mount, timeout):
        found = asked(mount, 0)
        if not found:
            runtime_dir.finish(o, ok=True, pending=Pending(), message='just in time')
            end(sleeper)
        return found
    monkeypatch.setattr(flush_wait, 'wait_for_end', ends_just_then)
    assert flush_wait.wait_for(mount, timeout=10).message == 'just in time'


def test_a_new_mount_in_the_same_place_is_followed(tmp, sleeper):
    """The daemon that was waited for ended and the next one took its directory: nothing is pending only when that one says so."""
    o = options(tmp)
    mount = record_of(sleeper, runtime_dir.claim(o))
    end(sleeper)
    with subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as second:
        record_of(second, runtime_dir.claim(o))
        runtime_dir.finish(o, ok=False, pending=Pending(files=1, bytes=1), message='from the second')
        second.stdin.close()
        second.wait(10)
    assert flush_wait.wait_for(mount, timeout=10).message == 'from the second'


def test_the_timeout_says_what_is_left(tmp, sleeper):
    """Also of a daemon that does not answer."""
    mount = record_of(sleeper, runtime_dir.claim(options(tmp)))
    outcome = flush_wait.wait_for(mount, timeout=0.1)
    assert not outcome.ok and outcome.message == 'still 0 files (0 bytes) pending after 0.1 s'


def test_progress_and_the_end_of_a_flush(tmp, sleeper):
    """What the daemon says is reported while it flushes; the result ends the wait."""
    o = options(tmp)
    mount = record_of(sleeper, runtime_dir.claim(o))
    reports = []

    def report(mount, pending):
        reports.append(pending)
        runtime_dir.finish(o, ok=True, pending=Pending(), message='')
        end(sleeper)
    with answering(mount, {'state': 'flushing', 'pending': {'files': 3, 'bytes': 9}}):
        assert flush_wait.wait_for(mount, timeout=30, report=report).ok
    assert reports == [Pending(files=3, bytes=9)]


def test_an_idle_daemon_that_flushes_is_waited_for(tmp, sleeper):
    """Nothing pending is not the end while the mount point is gone: its locks are still held."""
    mount = record_of(sleeper, runtime_dir.claim(options(tmp)))
    with answering(mount, {'state': 'mounted', 'pending': {'files': 0, 'bytes': 0}}):
        assert not flush_wait.wait_for(mount, timeout=0.5).ok


@contextlib.contextmanager
def answering(mount: Mount, status: dict):
    """A socket that answers every request with `status`."""
    line = json.dumps({'jsonrpc': '2.0', 'id': 1, 'result': status}).encode() + b'\n'
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(mount.socket))
        listener.listen()

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(line)
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_the_record_of_this_process():
    """What claim() writes about itself is what is_alive() asks for."""
    record = MountRecord.of_this_process(MountOptions(context_id='i', context_name='n', mountpoint='/m', store_url='s3://b', state_dir='/s',
                                                      cache_dir='/c', runtime_dir='/r', log_file='/l', host_id='h', cache_size=1))
    assert record.pid_start == process_start(os.getpid()) and record.boot_id == runtime_dir.boot_id()
