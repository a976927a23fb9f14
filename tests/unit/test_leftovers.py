"""The look for leaks finds them: a guard that cannot fail would guard nothing."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests import leftovers

ROOT = Path(__file__).resolve().parents[2]
SLEEP = [sys.executable, '-c', 'import sys; sys.stdin.read()']

LEAKS = {
    'process': (
        'import subprocess, sys\ndef test_it():\n    subprocess.Popen(["sleep", "600"], start_new_session=True).returncode = 0\n',
        'left running',
    ),
    'forked child': ('import os, signal\ndef test_it():\n    os.fork() or signal.pause()\n', 'a forked child'),
    'file': ('def test_it():\n    open("/dev/null")\n', 'unclosed file'),
    'warning': ('import warnings\ndef test_it():\n    warnings.warn("something odd")\n', 'something odd'),
    'mount': (
        'import subprocess\ndef test_it(tmp):\n    subprocess.run(["mount", "-t", "tmpfs", "none", tmp], check=True)\n',
        'left mounted',
    ),
}


@pytest.mark.parametrize('kind', LEAKS)
def test_a_test_that_leaks_fails(kind: str, tmp: Path) -> None:
    """A process, a file, a mount or a warning that a test leaves makes it fail, by the configuration that all tests run with."""
    if kind == 'mount' and os.geteuid() != 0:
        pytest.skip('only root mounts a tmpfs')
    source, message = LEAKS[kind]
    (tmp / 'test_leak.py').write_text(source)
    done = run_pytest(tmp / 'test_leak.py', '--override-ini', 'pythonpath=' + str(ROOT))
    assert done.returncode == 1, done.stdout
    assert message in done.stdout
    assert not leftovers.mounts_below(tmp)


def test_a_test_that_cleans_up_passes(tmp: Path) -> None:
    """The same guards let a tidy test pass, and nothing of the run remains in the temporary directory."""
    (tmp / 'test_tidy.py').write_text(
        'import subprocess\ndef test_it(tmp):\n    subprocess.run(["true"], check=True)\n    open(tmp / "f", "w").close()\n'
    )
    done = run_pytest(tmp / 'test_tidy.py')
    assert done.returncode == 0, done.stdout + done.stderr
    assert os.listdir(tmp) == ['test_tidy.py'] or sorted(os.listdir(tmp)) == ['__pycache__', 'test_tidy.py']


def run_pytest(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest on one file, configured as this run is, in a run of its own below the file's directory."""
    environment = {name: value for name, value in os.environ.items() if name not in (leftovers.RUN_VARIABLE, leftovers.TEST_VARIABLE)}
    return subprocess.run(
        [
            sys.executable,
            '-m',
            'pytest',
            '-c',
            ROOT / 'pyproject.toml',
            '--rootdir',
            ROOT,
            '-p',
            'tests.conftest',
            '-p',
            'no:cacheprovider',
            *arguments,
            path,
        ],
        cwd=ROOT,
        env=dict(environment, TMPDIR=str(path.parent), CTXFS_TEST_GRACE='0.2'),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_report_names_and_removes_what_is_left(tmp: Path) -> None:
    """A process with the run's marker and a file in the run's directory are both named, ended and removed."""
    run, directory = secrets.token_hex(8), tmp / 'run-directory'
    directory.mkdir()
    (directory / 'forgotten').mkdir(mode=0)
    with subprocess.Popen(SLEEP, stdin=subprocess.PIPE, env={**os.environ, leftovers.RUN_VARIABLE: run}) as child:
        left = leftovers.report(directory, run, grace=0)
        assert child.wait(10) == -9
    assert [line.partition(' ')[0] for line in left] == ['process', 'temporary']
    assert str(child.pid) in left[0] and str(directory / 'forgotten') in left[1]
    assert not directory.exists()


def test_a_process_without_the_marker_is_not_ours(tmp: Path) -> None:
    """Another run's processes are neither named nor ended."""
    with subprocess.Popen(SLEEP, stdin=subprocess.PIPE) as child:
        directory = tmp / 'run-directory'
        directory.mkdir()
        assert leftovers.report(directory, secrets.token_hex(8), grace=0) == []
        assert child.poll() is None
