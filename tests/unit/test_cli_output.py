"""How values, progress and errors look: to people, to terminals, to scripts."""
from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ctxfs.edge import cli, cli_common, cli_watch, progress
from ctxfs.edge.flush_wait import left_to_upload
from ctxfs.edge.progress import Course, Progress
from ctxfs.edge.runtime_dir import Mount, MountRecord, Pending
from ctxfs.edge.screen import Screen
from ctxfs.edge.status_text import render

MOUNT = Mount(path=Path('/r'), record=MountRecord(context_id='i', context_name='[proj]', mountpoint='/m', store='s3://b', state_dir='/s',
                                                  log_file='/l', pid=1, pid_start=1, boot_id='', started_at=0))


@pytest.mark.parametrize('count, text', [(0, '0 bytes'), (1, '1 byte'), (1023, '1023 bytes'), (1024, '1.0 KiB'), (10 << 10, '10 KiB'),
                                         (1536 << 10, '1.5 MiB'), (20 << 30, '20 GiB'), (1 << 62, '4096 PiB')])
def test_sizes_for_people(count, text):
    assert cli_common.human_bytes(count) == text


@pytest.mark.parametrize('seconds, text', [(0, '0 s'), (119, '119 s'), (120, '2 min'), (7300, '2 h'), (200_000, '2 d')])
def test_durations_for_people(seconds, text):
    assert cli_common.human_seconds(seconds) == text


def test_names_cannot_drive_the_terminal():
    """Control characters and broken encodings are shown as escapes."""
    assert cli_common.printable('a\x1b[2J\nü\udcff\u202e') == 'a\\x1b[2J\\nü\\udcff\\u202e'


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    """It names the context literally (brackets are no markup) and says what is left."""
    monkeypatch.setenv('TERM', 'xterm')
    terminal = Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    with Progress() as shown:
        shown.update(MOUNT, Pending(files=4, bytes=4 << 20))
        shown.update(MOUNT, Pending(files=1, bytes=1 << 20))
    assert '[proj]' in terminal.getvalue() and '1 file, 1.0 MiB left' in terminal.getvalue()


def test_progress_has_rate_and_time_left():
    """Of the last seconds; what is added meanwhile neither counts as done nor makes the rate negative."""
    now = [100.0]
    course = Course(Pending(files=10, bytes=10 << 20), lambda: now[0])
    for left in range(9, 4, -1):
        now[0] += 1
        course.note(Pending(files=left, bytes=left << 20))
    assert course.done == pytest.approx(0.5) and course.text() == '5 files, 5.0 MiB left, 1.0 MiB/s, 5 s'
    now[0] += 1
    course.note(Pending(files=20, bytes=20 << 20))
    assert course.done == 0 and 0 < course.rate() <= 1 << 20
    now[0] += 60
    course.note(Pending(files=20, bytes=20 << 20))
    now[0] += 10
    course.note(Pending(files=20, bytes=20 << 20))
    assert course.rate() == 0 and course.text() == '20 files, 20 MiB left'


@pytest.mark.parametrize('tasks, left', [
    ([], (10, 1000)), ([('download', 'Running', 5, 10, 0, 100)], (10, 1000)), ([('upload', 'Success', 10, 10, 0, 0)], (10, 1000)),
    ([('upload', 'Running', 0, 0, 0, 0)], (10, 1000)), ([('upload', 'Running', 6, 10, 900, 1000)], (4, 100)),
    ([('upload', 'Running', 10, 10, 1000, 1000)], (1, 0)), ([('upload', 'Running', 6, 30, 0, 5000)], (10, 1000))])
def test_what_is_left_to_upload(tasks, left):
    """What the running upload has not sent, never more than what is pending, and never nothing while it runs."""
    names = ('taskType', 'status', 'filesDone', 'filesTotal', 'bytesDone', 'bytesTotal')
    status = {'pending': {'files': 10, 'bytes': 1000}, 'tasks': [dict(zip(names, task, strict=True)) for task in tasks]}
    assert left_to_upload(status) == Pending(files=left[0], bytes=left[1])


def test_a_screen_is_left_as_it_was(monkeypatch, capsys):
    """Cut to its size while it shows, whole and on the ordinary screen afterwards, also after an interrupt."""
    monkeypatch.setattr(shutil, 'get_terminal_size', lambda *_, **__: os.terminal_size((10, 4)))
    with pytest.raises(KeyboardInterrupt), Screen() as screen:
        screen.show(['a line that is too long', 'b', 'c', 'd', 'e'])
        raise KeyboardInterrupt
    during, _, after = capsys.readouterr().out.partition('\x1b[?1049l')
    assert during.startswith('\x1b[?1049h\x1b[?25l') and during.endswith('\x1b[?25h')
    assert [line.removesuffix('\x1b[K') for line in during.split('\x1b[H')[1].split('\n')[:3]] == ['a line tha', 'b', '… 3 more l']
    assert after == 'a line that is too long\nb\nc\nd\ne\n'


NOW = 1_785_489_290.0
STATUS = {'contextName': 'proj', 'contextId': 'SdkCtx-1', 'mountpoint': '/m', 'pid': 7, 'store': 's3://b', 'state': 'mounted',
          'pending': {'files': 0, 'bytes': 0, 'oldestSeconds': 0}}
TASK = {'path': '/m', 'taskType': 'upload', 'status': 'Running', 'startTime': 0, 'filesDone': 1, 'filesTotal': 4, 'bytesDone': 0, 'bytesTotal': 0,
        'attempt': 1, 'nextRetry': 0, 'errorMessage': ''}


@pytest.mark.parametrize('more, line', [
    ({}, '  pending   nothing'),
    ({'pending': {'files': 1, 'bytes': 5, 'oldestSeconds': 3}}, '  pending   1 file (5 bytes), the oldest for 3 s'),
    ({'policy': {'source': 'default', 'period': 60, 'autoUpload': True, 'autoDownload': True, 'whiteLists': 0}},
     '  policy    uploads 60 s after a change (default)'),
    ({'policy': {'source': '/p', 'period': None, 'autoUpload': False, 'autoDownload': False, 'whiteLists': 1}},
     '  policy    uploads only by ctxfs sync, 1 white list, remote changes only by ctxfs sync --mode download (/p)'),
    ({'paused': True}, '  paused    nothing begins by itself until ctxfs resume proj'),
    ({'tasks': [TASK | {'startTime': NOW - 10}], 'rates': {'uploadBytes': 2048}}, '  upload    25 %, 1 of 4 files, 2.0 KiB/s, 30 s left'),
    ({'tasks': [TASK | {'nextRetry': NOW + 1000, 'attempt': 2}]}, '  upload    25 %, 1 of 4 files, attempt 3 in 17 min'),
    ({'localOnly': {'files': 2, 'bytes': 1 << 20}}, '  local     2 files (1.0 MiB) stay on this host'),
    ({'conflicts': 2}, '  conflicts 2; see ctxfs conflicts proj list'),
    ({'remote': {'isComplete': False, 'objects': 3000, 'error': ''}}, '  bucket    is being listed: 3000 objects so far'),
    ({'remote': {'isComplete': True, 'objects': 3, 'error': 'timed out'}}, '  bucket    cannot be read: timed out'),
    ({'failedFiles': 3, 'failed': [{'path': '/a', 'error': 'denied', 'attempt': 1, 'nextRetry': 0}]}, '  failed    /a: denied (attempt 1)'),
    ({'failedFiles': 3, 'failed': [{'path': '/a', 'error': 'denied', 'attempt': 1, 'nextRetry': 0}]}, '            and 2 more'),
    ({'tasks': [TASK | {'status': 'Failed', 'errorMessage': 'timed out', 'attempt': 0}]}, '  failed    /m: timed out'),
    ({'tasks': [TASK | {'errorMessage': 'timed out', 'attempt': 2}]}, '  failed    /m: timed out (attempt 2)')])
def test_status_lines(monkeypatch, more, line):
    """What is as usual is not mentioned, what is not has a line."""
    monkeypatch.setattr(time, 'time', lambda: NOW)
    lines = list(render([STATUS | more]))
    assert line in lines, lines
    assert len(lines) <= 5


@pytest.mark.parametrize('event, words', [
    ({'kind': 'pending', 'files': 0, 'bytes': 0}, 'nothing is pending'),
    ({'kind': 'pending', 'files': 2, 'bytes': 5, 'dropped': 7}, '2 files (5 bytes) pending (7 events before it are lost)'),
    ({'kind': 'task-began', **TASK}, 'upload begins'), ({'kind': 'task-progress', **TASK, 'startTime': NOW}, 'upload 25 %, 1 of 4 files'),
    ({'kind': 'task-ended', **TASK, 'bytesDone': 7}, 'upload done: 1 file, 7 bytes'),
    ({'kind': 'task-ended', **TASK, 'errorMessage': 'no'}, 'upload failed: no'),
    ({'kind': 'conflict', 'path': '/a (conflict)', 'original': '/a'}, 'conflict: another host changed /a, too; ours is /a (conflict) now'),
    ({'kind': 'remote-change', 'created': 2, 'changed': 0, 'removed': 1}, 'from the bucket: 2 created, 1 removed'),
    ({'kind': 'error', 'message': 'x', 'logger': 'l'}, 'error: x'), ({'kind': 'paused'}, 'paused')])
def test_events_in_words(monkeypatch, event, words):
    """One line each."""
    monkeypatch.setattr(time, 'time', lambda: NOW)
    assert cli_watch.describe({'time': 0, **event}) == words


def test_progress_elsewhere_is_a_line_now_and_then(monkeypatch, capsys):
    """Nothing for work that is soon done, nothing when there is nothing left, nothing with --json."""
    with Progress() as shown:
        shown.update(MOUNT, Pending(files=4, bytes=1))
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(progress, 'LINE_SECONDS', 0)
    for quiet, want in ((True, ''), (False, '[proj]: 4 files, 1 byte left\n')):
        with Progress(quiet=quiet) as shown:
            shown.update(MOUNT, Pending(files=4, bytes=1))
            shown.update(MOUNT, Pending())
        assert capsys.readouterr().err == want


@pytest.mark.parametrize('args, said', [(['foo'], 'no command foo'), (['mont'], 'did you mean mount?'), (['--foo'], 'No such option'),
                                        (['status', '--foo'], "see ctxfs status --help"), (['mount'], "Missing argument 'CTX'"),
                                        (['wait', '--timeout', '-1'], 'not in the range'), (['context', 'foo'], 'No such command')])
def test_wrong_usage_is_one_line_and_exit_2(capsys, args, said):
    """With where to read more."""
    assert cli.run(args) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('ctxfs: ') and err.count('\n') == 1 and said in err


def test_help_lists_the_commands(capsys):
    """Each with a line of its own, and nothing of them is imported for it."""
    assert cli.run(['--help']) == 0
    out = capsys.readouterr().out
    for name, (_, _, text) in cli.COMMANDS.items():
        assert f'\n  {name} ' in out and text in out


@pytest.mark.parametrize('name', list(cli.COMMANDS))
def test_every_command_has_help(capsys, name):
    """That opens with what it does."""
    assert cli.run([name, '--help']) == 0
    assert 'Usage: ctxfs ' + name in capsys.readouterr().out


def test_commands_start_without_what_they_do_not_need():
    """Scripts call them often: no trio, boto3, pyfuse3, rich or sqlite3 for a status."""
    code = ("import sys; from ctxfs.edge import cli; cli.run(['status', '--json']); "
            "sys.exit(' '.join({'trio', 'boto3', 'pyfuse3', 'rich', 'sqlite3', 'diskcache'} & set(sys.modules)) or None)")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ''), done.stderr


@pytest.mark.parametrize('args', [['--help'], ['status', '--json']])
def test_a_reader_that_closes_early_makes_no_noise(args):
    """As `ctxfs context list | head -1`."""
    code = 'import sys; from ctxfs.edge import cli; sys.exit(cli.run(sys.argv[1:]))'
    with subprocess.Popen([sys.executable, '-c', code, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait(30)) == (b'', 1)
