"""The commands that talk to running mounts, around a daemon whose answers a test chooses: watch, pause, resume, conflicts, status --watch."""
from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from tests.mount.test_cli_mounts import Cli

SECONDS = 30
EVENTS = [{'kind': 'watching', 'time': 1.0, 'contextId': 'c'}, {'kind': 'pending', 'time': 2.0, 'files': 2, 'bytes': 5},
          {'kind': 'conflict', 'time': 3.0, 'path': '/a (conflict)', 'original': '/a\x1b[2J'}]


@pytest.fixture
def ctxfs(tmp, capfd, monkeypatch):
    ctxfs = Cli(tmp, capfd, monkeypatch)
    yield ctxfs
    subprocess.run(['fusermount3', '-u', ctxfs.at], capture_output=True, check=False)


def started(*args, **kwargs) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, '-m', 'ctxfs', *map(str, args)], **kwargs)


def test_pause_and_resume(ctxfs):
    """Each says whether it changed anything; a status says that it is paused."""
    ctxfs.fails('pause', said='nothing is mounted')
    ctxfs.mount()
    assert ctxfs.run('pause') == f'proj ({ctxfs.at}) paused\n' and ctxfs.run('pause', 'proj') == f'proj ({ctxfs.at}) was paused already\n'
    assert '  paused    nothing begins by itself until ctxfs resume proj\n' in ctxfs.run('status')
    shown, = ctxfs.json('resume', ctxfs.at)['mounts']
    assert (shown['contextName'], shown['mountpoint'], shown['paused']) == ('proj', str(ctxfs.at), False)
    assert ctxfs.run('resume') == f'proj ({ctxfs.at}) was not paused\n'
    ctxfs.fails('pause', 'porj', said='did you mean proj?')


def test_conflicts(ctxfs):
    """Listed with age and whose version it is; resolve asks the mount for either file, named in any way; what is wrong usage says so."""
    ctxfs.mount(conflicts=[{'path': '/a.conflict-x', 'original': '/a', 'since': time.time() - 300, 'holds': 'local', 'held': True}])
    line = f'{ctxfs.at}/a.conflict-x: this host\'s version of /a, not uploaded, 5 min ago\n'
    for args in ((), ('list',), ('proj', 'list'), (ctxfs.at, 'list')):
        assert ctxfs.run('conflicts', *args) == line
    found, = ctxfs.json('conflicts', 'list')['conflicts']
    assert (found['path'], found['original'], found['mountpoint'], found['held']) == ('/a.conflict-x', '/a', str(ctxfs.at), True)
    for args in (('resolve', ctxfs.at / 'd/a'), ('proj', 'resolve', 'd/a'), ('resolve', 'd/a'), ('proj', 'resolve', ctxfs.at / 'd/a')):
        answer = ctxfs.json('conflicts', *args, '--keep', 'local')
        assert (answer['asked'][0].removeprefix(f'{ctxfs.at}/'), answer['asked'][1], answer['mountpoint']) == ('d/a', 'local', str(ctxfs.at))
    assert ctxfs.run('conflicts', 'resolve', 'a', '--keep', 'both') == ''
    for args in (('proj', 'other', 'list'), ('resolve', '--keep', 'both'), ('proj', 'resolve', '--keep', 'both')):
        ctxfs.fails('conflicts', *args, said='write ctxfs conflicts [CTX] list', status=2)
    ctxfs.fails('conflicts', 'resolve', 'a', said='needs --keep local, --keep remote or --keep both', status=2)
    ctxfs.fails('conflicts', 'list', '--keep', 'both', said='list takes no --keep', status=2)
    ctxfs.fails('conflicts', 'resolve', 'a', '--keep', 'ours', said='--keep', status=2)
    ctxfs.fails('conflicts', 'porj', 'resolve', 'a', '--keep', 'both', said='did you mean proj?')


def test_conflicts_without_a_mount(ctxfs):
    """A conflict is settled on a mount; what there is to list may be nothing."""
    ctxfs.fails('conflicts', 'resolve', 'a', '--keep', 'both', said='nothing is mounted: a conflict is settled on a running mount')
    ctxfs.fails('conflicts', 'proj', 'list', said='proj was not mounted here')
    assert ctxfs.run('conflicts', 'list') == ''


def test_watch_ends_with_the_mount(ctxfs):
    """One event a line, in words or as JSON with the mount's name, and exit 0."""
    for as_json in (True, False):
        ctxfs.mount(events=EVENTS)
        with started('watch', *(['--json'] if as_json else []), stdout=subprocess.PIPE, text=True) as watching:
            lines = [watching.stdout.readline() for _ in range(3 if as_json else 2)]
            ctxfs.run('umount', 'proj')
            assert watching.stdout.read() == '' and watching.wait(SECONDS) == 0
        if as_json:
            found = [json.loads(line) for line in lines]
            assert [event['kind'] for event in found] == ['watching', 'pending', 'conflict']
            assert all((event['contextName'], event['mountpoint']) == ('proj', str(ctxfs.at)) for event in found)
        else:
            assert lines[0].endswith(' proj: 2 files (5 bytes) pending\n')
            assert lines[1].endswith(' proj: conflict: another host changed /a\\x1b[2J, too; ours is /a (conflict) now\n')


@pytest.mark.parametrize('args', [('watch',), ('status', '--watch'), ('status', '--watch', '--json')])
def test_an_interrupt_ends_it_and_is_no_failure(ctxfs, args):
    """Ctrl-C is how one ends them."""
    ctxfs.mount(events=EVENTS)
    with started(*args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout.readline()
        running.send_signal(signal.SIGINT)
        _, error = running.communicate(timeout=SECONDS)
    assert (running.returncode, error) == (0, '')


def test_status_watch_into_a_pipe(ctxfs):
    """A block a second, or one line of JSON, until the daemon has ended."""
    ctxfs.mount(pending=[3, 5])
    with started('status', '--watch', '--json', stdout=subprocess.PIPE, text=True) as running:
        first = [json.loads(running.stdout.readline()) for _ in range(2)]
        ctxfs.run('umount', 'proj')
        rest = [json.loads(line) for line in running.stdout]
        assert running.wait(SECONDS) == 0
    assert all(entry['mounts'][0]['pending']['files'] == 3 for entry in first) and rest[-1] == {'mounts': []}
    ctxfs.mount(pending=[3, 5])
    with started('status', '--watch', stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout.readline().startswith('proj (')
        ctxfs.run('umount', 'proj')
        text = running.stdout.read()
        assert running.wait(SECONDS) == 0 and '3 files (5 bytes)' in text and text.endswith('nothing is mounted\n\n')


def test_status_watch_on_a_terminal(ctxfs):
    """In place, on the alternate screen; Ctrl-C leaves the terminal as it was, with the last state on it."""
    ctxfs.mount(pending=[3, 5])
    terminal, inner = pty.openpty()
    with started('status', '--watch', stdout=inner, stderr=inner, env={**os.environ, 'COLUMNS': '60', 'LINES': '10'}) as running:
        os.close(inner)
        text = read_until(terminal, b'3 files (5 bytes)', twice=True)
        running.send_signal(signal.SIGINT)
        assert running.wait(SECONDS) == 0
        text += drain(terminal)
    os.close(terminal)
    assert text.startswith(b'\x1b[?1049h\x1b[?25l') and text.count(b'\x1b[H') >= 2
    during, _, after = text.partition(b'\x1b[?25h\x1b[?1049l')
    assert max(len(line) for line in re.sub(rb'\x1b\[[?0-9]*[A-Za-z]', b'', during).split(b'\r\n')) == 60
    assert b'3 files (5 bytes)' in after and b'\x1b' not in after


def read_until(fd: int, words: bytes, *, twice: bool = False) -> bytes:
    text, deadline = b'', time.monotonic() + SECONDS
    while text.count(words) < 1 + twice:
        assert select.select([fd], [], [], deadline - time.monotonic())[0], text
        text += os.read(fd, 1 << 16)
    return text


def drain(fd: int) -> bytes:
    text = b''
    while True:
        try:
            data = os.read(fd, 1 << 16)
        except OSError:     # EIO: nobody has the other end any more
            return text
        if not data:
            return text
        text += data
