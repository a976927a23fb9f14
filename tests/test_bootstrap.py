"""scripts/ctxfs on a machine where nothing is installed yet: alone, many at once, after an interruption, and where it cannot help.

Owns checkouts of its own in temporary directories. One real installation is made, for it is the thing that must work.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

import ctxfs

ROOT = Path(__file__).resolve().parent.parent
SAID = f'ctxfs, version {ctxfs.__version__}\n'
#: the shell's part of a later start
MAX_SHELL_SECONDS = 0.030


@pytest.fixture
def checkout(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Without a virtual environment, in a directory whose name needs quoting. What pip installs there is used once: it is not compiled ahead."""
    monkeypatch.setenv('PIP_NO_COMPILE', '1')
    return copied(tmp)


def copied(tmp: Path) -> Path:
    """A checkout that everybody may read."""
    top = tmp / "it's a checkout"
    top.mkdir()
    tmp.chmod(0o755)
    for name in ('pyproject.toml', 'hatch_build.py', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, top)
    for name in ('ctxfs', 'scripts'):
        shutil.copytree(ROOT / name, top / name, ignore=shutil.ignore_patterns('__pycache__'))
    return top


def start(checkout: Path, *arguments: str, env: dict[str, str] | None = None, **more) -> subprocess.Popen[str]:
    """scripts/ctxfs from another directory, without HOME; as `env` says."""
    environment = {name: value for name, value in os.environ.items() if name != 'HOME'} if env is None else env
    return subprocess.Popen([checkout / 'scripts/ctxfs', *arguments], cwd='/', env=environment, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)  # fmt: skip


def wait_for_line(process: subprocess.Popen[str], part: str, timeout: float) -> None:
    deadline, seen = time.monotonic() + timeout, ''
    while part not in seen:
        assert select.select([process.stderr], [], [], max(0, deadline - time.monotonic()))[0], seen
        piece = os.read(process.stderr.fileno(), 1 << 16).decode()
        assert piece, f'ended: {seen}'
        seen += piece


@pytest.mark.slow
def test_first_run_installs_once_also_after_an_interruption(checkout: Path, tmp: Path) -> None:
    """A run that is killed while it installs is made good by the next; of several at once one installs; stdout is ctxfs's alone."""
    with start(checkout, '--version', start_new_session=True) as interrupted:
        wait_for_line(interrupted, 'installing ctxfs', 120)
        os.killpg(interrupted.pid, signal.SIGKILL)
    assert (checkout / '.venv/ctxfs.unfinished').exists()

    (tmp / 'link').symlink_to(checkout / 'scripts/ctxfs')
    linked = subprocess.Popen([tmp / 'link', '--version'], cwd=tmp, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True)  # fmt: skip
    runs = [start(checkout, '--version'), start(checkout, '--version'), linked]
    results = [(*process.communicate(timeout=250), process.returncode) for process in runs]
    assert [(out, status) for out, _, status in results] == [(SAID, 0)] * 3, results
    assert sum('making a virtual environment' in err for _, err, _ in results) == 1, results

    check_later_start(checkout)
    check_shell_is_quick(checkout)


def check_later_start(checkout: Path) -> None:
    """With stdin closed, where a directory holds what looks like modules of ctxfs."""
    decoy = checkout / 'decoy'
    decoy.mkdir()
    for name in ('click.py', 'ctxfs.py'):
        (decoy / name).write_text('raise SystemExit("imported from the working directory")\n')
    command = ['sh', '-c', 'exec "$0" --version <&-', checkout / 'scripts/ctxfs']
    done = subprocess.run(
        command, cwd=decoy, env=dict(os.environ, PYTHONPATH=str(decoy)), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, SAID, '')


def check_shell_is_quick(checkout: Path) -> None:
    """Measured with a program in Python's place that ends at once; the quickest of twenty, for other load only adds."""
    python = checkout / '.venv/bin/python'
    python.unlink()
    python.symlink_to('/bin/true')
    took = []
    for _ in range(20):
        begin = time.perf_counter()
        subprocess.run([checkout / 'scripts/ctxfs', 'status'], check=True, timeout=60)
        took.append(time.perf_counter() - begin)
    assert min(took) < MAX_SHELL_SECONDS, sorted(took)


def path_without(tmp: Path, *names: str) -> str:
    """A PATH with every command of this machine but those that match; a directory may be prepended to it."""
    farm = tmp / 'bin'
    farm.mkdir()
    for directory in ('/usr/bin', '/usr/sbin', '/bin', '/sbin'):
        for command in os.listdir(directory):
            if not any(re.fullmatch(name, command) for name in names) and not os.path.lexists(farm / command):
                (farm / command).symlink_to(Path(directory, command))
    return str(farm)


def as_user(tmp: Path, path: str) -> tuple[dict[str, str], dict[str, object]]:
    """Environment and Popen arguments of somebody who is not root and has a home."""
    home = tmp / 'home'
    home.mkdir()
    if os.geteuid():
        return {'PATH': path, 'HOME': str(home)}, {}
    os.chown(home, 65534, 65534)
    return {'PATH': path, 'HOME': str(home)}, {'user': 65534, 'group': 65534, 'extra_groups': []}


def test_user_is_told_which_packages_root_must_install(checkout: Path, tmp: Path) -> None:
    """Without root, a missing Debian package ends in one line with the command that installs all that is missing, and status 1."""
    environment, identity = as_user(tmp, path_without(tmp, 'fusermount3', 'cc', 'pkg-config', r'python3\.\d+'))
    with start(checkout, 'status', env=environment, **identity) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, '')
    assert err == 'ctxfs: needs Debian packages, run: sudo apt-get install fuse3 pkg-config libfuse3-dev gcc libc6-dev\n'


def test_old_python_is_refused_in_one_line(checkout: Path, tmp: Path) -> None:
    """Where no Python is new enough the line says which is there and what is needed."""
    path = path_without(tmp, r'python3(\.\d+)?', 'apt-get')
    (tmp / 'bin/python3').write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2\nexit 1\n')
    (tmp / 'bin/python3').chmod(0o755)
    environment, identity = as_user(tmp, path)
    with start(checkout, 'status', env=environment, **identity) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, '')
    assert err.count('\n') == 1
    assert '3.10' in err and '3.9.2' in err


def test_no_place_for_the_environment_is_said(checkout: Path, tmp: Path) -> None:
    """A checkout and a home that cannot be written: the line names the directory, and what to set."""
    if os.geteuid() != 0:
        pytest.skip('the checkout belongs to this user')
    environment, identity = as_user(tmp, os.environ['PATH'])
    environment['HOME'] = '/nonexistent'
    with start(checkout, 'status', env=environment, **identity) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, '')
    assert err.count('\n') == 1
    assert err.startswith('ctxfs: cannot create /nonexistent/') and 'XDG_DATA_HOME' in err
