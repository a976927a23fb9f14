"""SIGKILL at every named place of Archive mode: what was acknowledged is there after the next mount, in one version, and reaches another host."""
from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ctxfs import crash_points
from ctxfs.storage.archive_log_format import LogHeader
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.registry import context_prefix
from ctxfs.storage.stores import open_store
from ctxfs.sync.archive_log import ArchiveLog
from ctxfs.sync.archive_upkeep import LOG_COMMITS
from ctxfs.sync.context_members import ContextMembers
from tests.crash import test_crash_points as points
from tests.crash.test_crash_points import Armed, Forge
from tests.crash.watch import eventually
from tests.model.hosts import IS_DOUBLE

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no daemon'), pytest.mark.timeout(120)]
forge = points.forge
POLICY = {'uploadPolicy': {'uploadMode': 'Archive'}}
NAMES = [name for name in crash_points.NAMES if name.startswith(('archive-', 'worker-archive-', 'worker-pack-'))]
#: on hosts that follow another's commits, or tidy up the log
APART = ('archive-after-follow', 'worker-archive-after-base')


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


@pytest.mark.parametrize('name', [name for name in NAMES if name.startswith('worker-') and name not in APART])
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


@pytest.mark.parametrize('name', [name for name in NAMES if name.startswith('archive-') and name not in APART]
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


def test_the_daemon_dies_when_it_has_followed_another_host(armed: Armed) -> None:
    """What that one deleted is gone, and nothing else; the next mount goes on behind that commit."""
    armed.prepare()
    store, prefix = _elsewhere(armed)
    assert ContextMembers(store, prefix, host='elsewhere').delete(['old/f9']) == ['old/f9']
    os.unlink(os.path.join(armed.oracle.root, b'old/f9'))
    armed.forge.arm('archive-after-follow')
    armed.host.cli('sync', armed.at, '--mode', 'download', check=False)
    assert armed.forge.is_hit(), 'no commit was followed'
    armed.bury()
    armed.mount()
    armed.check()
    armed.leave()


def test_a_worker_dies_when_it_has_compacted_the_log(armed: Armed) -> None:
    """Commits and the base that replaces them lie side by side, and say the same; a mount that begins sees to it."""
    armed.prepare()
    armed.host.unmount(armed.at)
    store, prefix = _elsewhere(armed)
    log = ArchiveLog(store, prefix)
    for number in range(first := log.look().number + 1, first + LOG_COMMITS + 1):
        log.commit(LogHeader(kind='commit', number=number, nonce=str(number), host='elsewhere'), [])
    armed.forge.arm('worker-archive-after-base')
    armed.mount()
    eventually('the log is compacted', armed.forge.is_hit)
    armed.steps([('write_file', b'after', 100, 1)])
    armed.sync()
    armed.check()
    armed.leave()
    assert log.look().base >= first + LOG_COMMITS


def _elsewhere(armed: Armed) -> tuple[ObjectStore, str]:
    """The store, and where the context is in it."""
    return open_store(armed.store), context_prefix(armed.state_dir.name.rpartition('-')[0])


def _check_archives(armed: Armed) -> None:
    """Those that no commit names are gone: the next flush of the host that left them took them away."""
    def names() -> Sequence[str]:
        return [path.name for path in armed.work.glob('store/contexts/*/.ctxfs/archive/*.zip')]
    commits = list(armed.work.glob('store/contexts/*/.ctxfs/archive/log/*.commit.zst'))
    eventually('archives of nobody are gone', lambda: len(names()) <= 2 * len(commits))
