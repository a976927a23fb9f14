"""The same operations on a mount and on a local directory, compared after every step; among them unmounting, other hosts and kill -9.

Owns the size of a run: `CTXFS_FUZZ_EXAMPLES` examples for each store (scripts/fuzz sets it), `CTXFS_FUZZ_STEPS` steps each,
`CTXFS_FUZZ_SEED` to repeat one, `CTXFS_FUZZ_SHRINK=1` to shrink what is found. A failure prints the program; what it taught stays
below as a `regression_*` list. It must not know the operations.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.model import machine
from tests.model.hosts import IS_DOUBLE, Site, fresh_site
from tests.model.operations import Operation
from tests.model.seeds import first_seed
from tests.model.world import World, replay
from tests.mount.sites import site_maker

EXAMPLES = int(os.environ.get('CTXFS_FUZZ_EXAMPLES', '8'))
STEPS = int(os.environ.get('CTXFS_FUZZ_STEPS', '60'))
PHASES = (hypothesis.Phase.explicit, hypothesis.Phase.generate, *([hypothesis.Phase.shrink] if os.environ.get('CTXFS_FUZZ_SHRINK') else []))


@pytest.mark.timeout(300 + EXAMPLES * 60)
def test_mount_and_local_disk_cannot_be_told_apart(new_site: Callable[[Path], Site], tmp_path: Path) -> None:
    """Whatever a program does, it sees on the mount what it would see on a local disk, also across remounts, hosts and kills."""
    _search(new_site, tmp_path, EXAMPLES)


@pytest.mark.skipif(IS_DOUBLE, reason='a directory has no archives')
@pytest.mark.timeout(300 + EXAMPLES * 60)
def test_in_archive_mode_they_cannot_be_told_apart_either(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The same of a context whose small files are members of archives."""
    _search(site_maker('file', request), tmp_path, -(-EXAMPLES // 5), archived(tmp_path))


def archived(work: Path) -> Sequence[str]:
    policy = work / 'archive.json'
    policy.write_text('{"uploadPolicy": {"uploadMode": "Archive"}}')
    return '--policy', str(policy)


def _search(new_site: Callable[[Path], Site], tmp_path: Path, examples: int, options: Sequence[str] = ()) -> None:
    seed = first_seed()
    print(f'CTXFS_FUZZ_SEED={seed} CTXFS_FUZZ_EXAMPLES={EXAMPLES} CTXFS_FUZZ_STEPS={STEPS}')
    numbers = iter(range(1 << 30))

    class Machine(machine.StateMachine):
        new_world = staticmethod(lambda: World(fresh_site(new_site, tmp_path, next(numbers)), options=options))

    settings = hypothesis.settings(
        max_examples=examples, stateful_step_count=STEPS, deadline=None, database=None, phases=PHASES, report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck), print_blob=False)
    hypothesis.seed(seed)(Machine)
    run_state_machine_as_test(Machine, settings=settings)


#: programs that once told them apart, and some that are likely to: each a list of operations as a Divergence prints it
REGRESSIONS: dict[str, list[Operation]] = {
    'regression_everything_once': [
        ('mkdir', b'dir', 0o2755), ('write_file', b'dir/a', 5000, 1), ('link', b'dir/a', b'b'), ('symlink', b'dir/a', b'\xff\xfe'),
        ('open', 0, b'dir/a', os.O_RDWR, 0), ('unlink', b'dir/a'), ('pwrite', 0, 3_000_001, 100, 2), ('mkfifo', b'fifo', 0o640),
        ('utimens', b'b', 1_000_000_000_123_456_789, True), ('kill9', False), ('chmod', b'b', 0o4711), ('remount',),
        ('rename', b'dir', b'd'), ('mkdir', b'empty', 0o700), ('utimens', b'empty', 1_234_567_890_000_000_001, True), ('other_host', 0),
        ('write_file', b'd/new\nline', 70_000, 3), ('truncate', b'b', 1), ('other_host', 1), ('listdir', b'd')],
    'regression_unlinked_open_file_dies_with_the_daemon': [
        ('open', 0, b'a', os.O_RDWR | os.O_CREAT, 0o644), ('write', 0, 4097, 1), ('unlink', b'a'), ('write_file', b'a', 5, 2),
        ('kill9', True), ('stat', b'a'), ('other_host', 0)],
    'regression_directory_replaces_empty_directory': [
        ('mkdir', b'a', 0o755), ('write_file', b'a/b', 100, 1), ('mkdir', b'c', 0o755), ('rename', b'a', b'c'), ('remount',),
        ('mkdir', b'a', 0o755), ('rename', b'c', b'a'), ('other_host', 0), ('rename', b'a', b'c'), ('kill9', False), ('other_host', 0)],
    'regression_file_becomes_directory_and_back': [
        ('write_file', b'a', 5, 1), ('remount',), ('unlink', b'a'), ('mkdir', b'a', 0o755), ('write_file', b'a/b', 5, 2),
        ('other_host', 0), ('unlink', b'a/b'), ('rmdir', b'a'), ('write_file', b'a', 7, 3), ('other_host', 0)],
    'regression_exchange_of_file_and_directory': [
        ('write_file', b'a', 5, 1), ('mkdir', b'dir', 0o755), ('write_file', b'dir/b', 6, 2), ('remount',),
        ('renameat2', b'a', b'dir', 2), ('kill9', False), ('other_host', 0)],
    'regression_same_bytes_again_keep_their_new_time': [
        ('write_file', b'a', 100, 1), ('other_host', 0), ('write_file', b'a', 100, 1), ('utimens', b'a', 1_000_000_000_123_456_789, True),
        ('other_host', 0)],
    'regression_attributes_alone_travel': [
        ('write_file', b'a', 100, 1), ('mkdir', b'dir', 0o755), ('symlink', b'a', b'b'), ('other_host', 0), ('chmod', b'a', 0o600),
        ('chown', b'b', 1000, 65534), ('chown', b'dir', 1000, 0), ('utimens', b'b', -1_000_000_001, False),
        ('utimens', b'dir', 4_300_000_000_987_654_321, True), ('other_host', 0), ('kill9', False)],
    'regression_hard_link_written_on_another_host': [
        ('write_file', b'a', 100, 1), ('link', b'a', b'b'), ('other_host', 0), ('write_file', b'b', 200, 2), ('other_host', 0),
        ('unlink', b'a'), ('other_host', 0), ('truncate', b'b', 50), ('other_host', 1)],
    'regression_truncating_to_the_same_size_moves_no_time_behind_the_kernel': [
        # With its writeback cache the kernel keeps its own mtime here: the daemon's must not move either.
        ('write_file', b'a', 100, 2), ('truncate', b'a', 1_048_577), ('truncate', b'a', 1_048_577), ('remount',), ('other_host', 0)],
    'regression_hard_links_exchanged_on_another_host': [
        ('mkdir', b'dir', 0o755), ('write_file', b'dir/a', 70_000, 1), ('link', b'dir/a', b'b'), ('mknod', b'dir/new', 0o640),
        ('other_host', 0), ('rename', b'b', b'c'), ('other_host', 0), ('renameat2', b'dir/new', b'c', 2), ('other_host', 2)],
    'regression_old_host_comes_back': [
        ('write_file', b'a', 100, 1), ('write_file', b'b', 100, 2), ('other_host', 0), ('unlink', b'a'), ('write_file', b'b', 100, 3),
        ('mkdir', b'c', 0o700), ('other_host', 1), ('listdir', b''), ('rmdir', b'c'), ('other_host', 2)],
}


@pytest.mark.parametrize('name', sorted(REGRESSIONS))
def test_regressions_stay_fixed(name: str, new_site: Callable[[Path], Site], tmp_path: Path) -> None:
    """Each program that once told mount and local disk apart runs through."""
    replay(fresh_site(new_site, tmp_path, 0), REGRESSIONS[name])


@pytest.mark.skipif(IS_DOUBLE, reason='a directory has no archives')
def test_regressions_stay_fixed_in_archive_mode(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """One that does everything once."""
    replay(fresh_site(site_maker('file', request), tmp_path, 0), REGRESSIONS['regression_everything_once'], options=archived(tmp_path))
