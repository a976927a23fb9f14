"""Crash points kill where they are told to, and nowhere else."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ctxfs import crash_points

CODE = 'from ctxfs.crash_points import crash_point\nfor n in range(5):\n    crash_point("a")\n    print(n, flush=True)'


def run(setting: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, '-c', CODE], env={**os.environ, 'CTXFS_CRASH_POINT': setting}, capture_output=True, text=True,
                          cwd=Path(__file__).parents[2], check=False)
    return done.stdout, done.returncode


@pytest.mark.parametrize(('setting', 'printed', 'status'), [
    ('a', '', -signal.SIGKILL), ('a:1', '', -signal.SIGKILL), ('a:3', '0\n1\n', -signal.SIGKILL),
    ('b', '0\n1\n2\n3\n4\n', 0), ('', '0\n1\n2\n3\n4\n', 0)])
def test_the_process_is_killed_at_the_hit_that_is_named(setting: str, printed: str, status: int) -> None:
    """`name:N` survives N-1 hits; another name or none does nothing."""
    assert run(setting) == (printed, status)


def test_a_file_kills_one_process_and_can_be_written_while_it_runs(tmp_path: Path) -> None:
    """What is hit removes the file first, so that the next process lives; without the file nothing is named."""
    file = tmp_path / 'point'
    assert run(str(file)) == ('0\n1\n2\n3\n4\n', 0)
    file.write_text('a:3')
    assert run(str(file)) == ('0\n1\n', -signal.SIGKILL)
    assert not file.exists()
    assert run(str(file))[1] == 0


def test_every_crash_point_in_the_sources_is_registered_and_the_other_way_round() -> None:
    """NAMES is what the crash tests iterate over: a point that is missing there is never tested."""
    sources = ''.join(path.read_text() for path in Path(crash_points.__file__).parent.rglob('*.py'))
    for name in crash_points.NAMES:
        assert f"crash_point('{name}')" in sources, name
    used = {part.split("'")[0] for part in sources.split("crash_point('")[1:]} - {'name'}
    assert used <= set(crash_points.NAMES)
