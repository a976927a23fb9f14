"""How editors save, and who follows a log: vim itself, emacs's three ways, `tail -F` over rotations."""
from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.watch import eventually
from tests.programs.home import Home

#: vi's commands from the arguments, nobody's settings
VIM = ('vim', '-Nes', '-u', 'NONE', '-i', 'NONE')


def test_vim(home: Home, needs: Callable[..., None]) -> None:
    """vim saves by renaming and by overwriting, with backup, swap and undo files; links and modes stay as vim means them to."""
    needs('vim')
    for name in ('renamed', 'copied', 'linked'):
        (home.at / name).write_text('one\n' * 100)
        (home.at / name).chmod(0o640)
    os.link(home.at / 'linked', home.at / 'link')

    def vim(name: str, *settings: str) -> None:
        home.run(*VIM, '-c', 'set swapfile directory=. updatecount=1 backupskip= writebackup fsync undofile undodir=.',
                 *[word for setting in settings for word in ('-c', f'set {setting}')], '-c', '%s/one/two/', '-c', 'x', name)

    before = {name: (home.at / name).stat().st_ino for name in ('renamed', 'copied')}
    vim('renamed', 'backup', 'backupcopy=no')
    vim('copied', 'backup', 'backupcopy=yes')
    vim('linked', 'backupcopy=auto')
    for name in ('renamed', 'copied', 'linked', 'link'):
        assert (home.at / name).read_text() == 'two\n' * 100
        assert stat.S_IMODE((home.at / name).stat().st_mode) == 0o640
    assert (home.at / 'copied').stat().st_ino == before['copied']
    assert (home.at / 'renamed').stat().st_ino != before['renamed'] == (home.at / 'renamed~').stat().st_ino
    assert (home.at / 'copied~').read_text() == (home.at / 'renamed~').read_text() == 'one\n' * 100
    assert (home.at / 'link').stat().st_nlink == 2
    assert sorted(os.listdir(home.at)) == sorted(['renamed', 'renamed~', 'copied', 'copied~', 'linked', 'link',
                                                  '.renamed.un~', '.copied.un~', '.linked.un~'])
    home.move()
    home.run(*VIM, '-c', 'set undofile undodir=.', '-c', 'rundo .renamed.un~', '-c', 'undo', '-c', 'x', 'renamed')
    assert (home.at / 'renamed').read_text() == 'one\n' * 100


def test_a_swap_file_is_found_on_the_next_host(home: Home, needs: Callable[..., None]) -> None:
    """vim is killed with a change that was not saved; elsewhere `vim -r` recovers it."""
    needs('vim')
    (home.at / 'f').write_text('saved\n')
    home.run(*VIM, '-c', 'set swapfile directory=.', '-c', 'normal Onot saved', '-c', 'preserve',
             '-c', 'exe "!kill -9 " . getpid()', 'f', status=-signal.SIGKILL)
    assert (home.at / '.f.swp').exists()
    home.move()
    home.run(*VIM, '-r', 'f', '-c', 'x!')
    assert (home.at / 'f').read_text() == 'not saved\nsaved\n'


@pytest.mark.skipif(not shutil.which('emacs'), reason='emacs is not installed: its calls are made by the test below')
def test_emacs(home: Home) -> None:
    """emacs itself saves with a backup, with numbered backups, and through a hard link; its lock (a symlink to nowhere) goes again."""
    (home.at / 'f').write_text('one\n')
    (home.at / 'linked').write_text('one\n')
    os.link(home.at / 'linked', home.at / 'link')
    for name, setting in (('f', ''), ('f', '(setq version-control t)'), ('linked', '(setq backup-by-copying-when-linked t)')):
        home.run('emacs', '-Q', '--batch', '--eval', '(progn (setq create-lockfiles t backup-enable-predicate (function identity))'
                 f'{setting} (find-file "{name}") (goto-char (point-max)) (insert "two\\n") (save-buffer))')
    assert sorted(os.listdir(home.at)) == ['f', 'f.~1~', 'f~', 'link', 'linked', 'linked~']
    assert (home.at / 'link').read_text() == 'one\ntwo\n'
    home.move()
    assert (home.at / 'f').read_text() == 'one\ntwo\ntwo\n'


@pytest.mark.parametrize('way', ['renames', 'copies'])
def test_emacs_style_saves(way: str, home: Home) -> None:
    """The calls of a save: a lock that is a dangling symlink, a backup by renaming or copying, the new file written and fsynced."""
    name, lock = home.at / 'f', home.at / '.#f'
    name.write_text('one\n')
    name.chmod(0o600)
    os.link(name, home.at / 'link')
    os.symlink('user@host.1234:5678', lock)
    assert not lock.exists() and os.readlink(lock) == 'user@host.1234:5678'
    if way == 'renames':
        os.rename(name, home.at / 'f~')
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    else:
        shutil.copy2(name, home.at / 'f~')
        fd = os.open(name, os.O_WRONLY | os.O_TRUNC)
    with open(fd, 'w') as f:
        f.write('two\n')
        os.fsync(fd)
    lock.unlink()
    home.move()
    assert (name.read_text(), (home.at / 'f~').read_text()) == ('two\n', 'one\n')
    assert (home.at / 'link').read_text() == ('one\n' if way == 'renames' else 'two\n')


def test_tail_follows_a_log_over_its_rotations(home: Home, outside: Path) -> None:
    """`tail -F` has every line once: of a log that is renamed and made anew, and of one that is copied and truncated."""
    log = home.at / 'app.log'
    log.touch()
    with open(outside / 'seen', 'wb') as seen, open(outside / 'said', 'wb') as said:
        tail = subprocess.Popen(['tail', '-n', '+1', '-s', '0.05', '-F', 'app.log'], cwd=home.at, stdout=seen, stderr=said, stdin=subprocess.DEVNULL)
    written: list[str] = []

    def write(count: int) -> None:
        """As a program that keeps its log open."""
        with open(log, 'a') as f:
            for _ in range(count):
                written.append(f'line {len(written)}')
                f.write(written[-1] + '\n')
                f.flush()
        eventually('tail has seen the lines', lambda: (outside / 'seen').read_text().splitlines() == written, every=0.02)

    try:
        for number in (1, 2):
            write(20)
            os.rename(log, home.at / f'app.log.{number}')
            log.touch()
        write(20)
        shutil.copy(log, home.at / 'app.log.3')
        os.truncate(log, 0)
        eventually('tail has noticed', lambda: b'truncated' in (outside / 'said').read_bytes(), every=0.02)
        write(5)
    finally:
        tail.kill()
        tail.wait()
    home.move()
    assert ''.join((home.at / f'app.log{suffix}').read_text() for suffix in ('.1', '.2', '.3', '')).splitlines() == written
