"""SIGKILL at every named place of Archive mode: what was acknowledged is there after the next mount, in one version, and reaches another host."""
from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ctxfs import crash_points
from tests.crash import test_crash_points as points
from tests.crash.test_crash_points import Armed, Forge
from tests.crash.watch import eventually
from tests.model.hosts import IS_DOUBLE

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no daemon'), pytest.mark.timeout(120)]
forge = points.forge
POLICY = {'uploadPolicy': {'uploadMode': 'Archive'}}
NAMES = [name for name in crash_points.NAMES if name.startswith(('archive-', 'worker-archive-', 'worker-pack-'))]
#: on hosts that follow another's commits, or tidy up the log: tests/unit/test_archive_mode.py
ELSEWHERE = ('archive-after-follow', 'worker-archive-after-base')


@pytest.fixture
def armed(forge: Forge, tmp_path: Path) -> Iterator[Armed]:
    made = Armed(forge, tmp_path)
    policy = tmp_path / 'archive.json'
    policy.write_text(json.dumps(POLICY))
    made.options = ('--sync-every', 'unmount', '--policy', str(policy))
    yield made
    forge.file.unlink(missing_ok=True)
    made.end()


def _work(armed: Armed) -> None:
    armed.steps(points.WORK)
    if armed.is_alive:
        armed.sync()
    if armed.is_alive:
        armed.steps([('write_file', b'again', 1000, 2), ('unlink', b'moved/f5')])
        armed.sync()


@pytest.mark.parametrize('name', [name for name in NAMES if name.startswith('worker-') and name not in ELSEWHERE])
def test_a_worker_dies_at(name: str, armed: Armed) -> None:
    """The daemon replaces it, and everything is uploaded, once."""
    armed.prepare()
    armed.forge.arm(name)
    _work(armed)
    assert armed.forge.is_hit(), f'nothing that this test does leads by {name}'
    assert armed.is_alive
    armed.sync()
    armed.check()
    armed.leave()
    _check_archives(armed)


@pytest.mark.parametrize('name', [name for name in NAMES if name.startswith('archive-') and name not in ELSEWHERE]
                         + ['upload-before-record', 'upload-after-record', 'adopt-before-commit', 'subtree-before-clear', 'index-after-segment'])
def test_the_daemon_dies_at(name: str, armed: Armed) -> None:
    """The next mount has everything, and brings it into the bucket; what was committed is not taken for somebody else's."""
    armed.prepare()
    armed.forge.arm(name)
    armed.steps([('write_file', b'huge', 5 << 20, 3)])      # an object of its own, beside the archives
    _work(armed)
    assert armed.forge.is_hit(), f'nothing that this test does leads by {name}'
    armed.bury()
    armed.mount()
    tree = armed.check()
    assert not [path for path in tree if b'conflict' in path]
    armed.leave()
    _check_archives(armed)


def _check_archives(armed: Armed) -> None:
    """Those that no commit names are gone: the next flush of the host that left them took them away."""
    def names() -> Sequence[str]:
        return [path.name for path in armed.work.glob('store/contexts/*/.ctxfs/archive/*.zip')]
    commits = list(armed.work.glob('store/contexts/*/.ctxfs/archive/log/*.commit.zst'))
    eventually('archives of nobody are gone', lambda: len(names()) <= 2 * len(commits))
