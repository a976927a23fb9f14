"""mount(8)'s words become those of `ctxfs mount`; the helper's file is ours or left alone."""
from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ctxfs.edge import cli, cli_fstab, installed
from ctxfs.edge.cli_fstab import split_options, translate
from ctxfs.edge.cli_mount import mount
from ctxfs.errors import UsageError


@pytest.mark.parametrize('words, arguments', [
    ('proj /m', 'mount -- proj /m'),
    ('proj /m -o rw', 'mount -o rw -- proj /m'),
    ('proj /m -v -n -o rw,noatime,policy=/p.json,sync-every=5m,state_dir=/s,create,ro,umask=027',
     'mount --policy=/p.json --sync-every=5m --state-dir=/s --create -o rw,noatime,ro,umask=027 -- proj /m'),
    ('proj /m -o rw,user,noauto,_netdev,nofail,x-systemd.requires=a.service,comment=x,user=me,defaults', 'mount -o rw -- proj /m'),
    ('proj /m -t fuse.ctxfs -N ns -s -o allow_other', 'mount -o allow_other -- proj /m'),
    ('proj /m -o store=s3://b?endpoint=http://h:1&region=r', 'mount --store=s3://b?endpoint=http://h:1&region=r -- proj /m'),
    ('proj /m -o browser=standard', 'mount --browser=standard -- proj /m'),
    ('-o ro -- -c /m', 'mount -o ro -- -c /m'),
])
def test_words_of_mount(words: str, arguments: str) -> None:
    """What is ctxfs's goes to ctxfs, what is the kernel's to -o, what is mount's own to nobody."""
    assert translate(tuple(words.split(' '))) == arguments.split(' ')


def test_every_option_of_mount_that_has_a_value_can_be_a_word() -> None:
    """What is new on the command line is new in /etc/fstab."""
    named = {option.opts[0].lstrip('-').replace('-', '_') for option in mount.params
             if option.param_type_name == 'option' and not option.is_flag and len(option.opts[0]) > 2}     # type: ignore[attr-defined]
    assert named - {'state_dir', 'store'} == cli_fstab._VALUES - {'state_dir', 'store'}


def test_a_fake_mount_does_nothing() -> None:
    """mount -f."""
    assert translate(('proj', '/m', '-f')) == []


def test_quotes_keep_commas() -> None:
    """As mount(8) has it."""
    assert split_options('a,policy="/x,y.json",b') == ['a', 'policy=/x,y.json', 'b']
    assert split_options('') == [] and split_options('a="b,c') == ['a=b,c']


@pytest.mark.parametrize('words, said', [(('proj',), 'CTX DIRECTORY'), (('a', 'b', 'c'), 'CTX DIRECTORY'), (('a', 'b', '-q'), '-q'),
                                         (('a', 'b', '-o', 'remount,ro'), 'remount')])
def test_wrong_words_are_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        translate(words)


def test_exit_statuses_are_those_of_mount(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """1 for wrong usage, 32 for a mount that failed; the line is ctxfs's."""
    assert cli.run(['fstab', 'mount', 'proj']) == 1
    assert cli.run(['fstab', 'mount', 'proj', '/m', '-o', 'sync_evry=5']) == 1
    assert 'unknown mount option -o sync_evry=5' in capsys.readouterr().err
    assert cli.run(['fstab', 'mount', 'proj', '/nowhere/at/all']) == 32
    assert '/nowhere/at/all: no such directory' in capsys.readouterr().err
    monkeypatch.setattr(cli_fstab, 'translate', lambda words: ['--version'])
    assert cli.run(['fstab', 'mount', 'proj', '/m']) == 0


def test_the_helper_runs_this_ctxfs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From anywhere, with an empty environment; installed twice is installed once."""
    for _ in range(2):
        assert cli.run(['fstab', 'install', '--directory', str(tmp_path)]) == 0
    helper = tmp_path / 'mount.fuse.ctxfs'
    done = subprocess.run([helper, 'proj'], capture_output=True, text=True, cwd='/', env={'PATH': '/bin'}, check=False)
    assert (done.returncode, done.stderr.count('\n')) == (1, 1) and 'CTX DIRECTORY' in done.stderr
    assert cli.run(['fstab', 'remove', '--directory', str(tmp_path)]) == 0 and list(tmp_path.iterdir()) == []
    assert cli.run(['fstab', 'remove', '--directory', str(tmp_path)]) == 1 and 'nothing is installed there' in capsys.readouterr().err


def test_a_foreign_file_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither replaced nor removed."""
    (tmp_path / 'mount.fuse.ctxfs').write_text('#!/bin/sh\n')
    for command in ('install', 'remove'):
        assert cli.run(['fstab', command, '--directory', str(tmp_path)]) == 1
        assert f'was not {installed.MARK}; move it away first' in capsys.readouterr().err
    assert (tmp_path / 'mount.fuse.ctxfs').read_text() == '#!/bin/sh\n'
