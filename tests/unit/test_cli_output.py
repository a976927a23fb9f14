"""How values, progress and errors look: to people, to terminals, to scripts."""
from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from ctxfs.edge import cli, cli_common, progress
from ctxfs.edge.progress import Progress
from ctxfs.edge.runtime_dir import Mount, MountRecord, Pending

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


def test_progress_elsewhere_is_a_line_now_and_then(monkeypatch, capsys):
    """Nothing for work that is soon done, nothing when there is nothing left, nothing with --json."""
    with Progress() as shown:
        shown.update(MOUNT, Pending(files=4, bytes=1))
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(progress, 'LINE_SECONDS', 0)
    for quiet, want in ((True, ''), (False, '[proj]: 4 files (1 byte) left\n')):
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
