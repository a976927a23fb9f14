"""The oracle of the crash tests can fail: a lost, torn or extra file is found, and a step in flight is excused only where it may be.

Owns nothing. It must not need a mount.
"""
from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.load import Load, check_against, files
from tests.model.operations import Operation, Side, perform

STEPS: list[Operation] = [('mkdir', b'd', 0o755), ('write_file', b'd/a', 5000, 1), ('write_file', b'b', 100, 2), ('rename', b'b', b'c')]


class Told:
    """A load that ended: `done` of its steps acknowledged."""

    def __init__(self, steps: list[Operation], done: int) -> None:
        self.acknowledged = steps[:done]
        self.in_flight = steps[done] if len(steps) > done else None


def disks(tmp_path: Path, steps: list[Operation]) -> tuple[Side, Path]:
    """A local oracle that has seen nothing yet, and a "mount" on which all steps were done."""
    for name in ('local', 'mounted'):
        (tmp_path / name).mkdir()
    mounted = Side(os.fsencode(tmp_path / 'mounted'))
    for step in steps:
        assert perform(mounted, step).error is None
    return Side(os.fsencode(tmp_path / 'local')), tmp_path / 'mounted'


@pytest.mark.parametrize('done', [3, 4])
def test_all_acknowledged_is_accepted(done: int, tmp_path: Path) -> None:
    """An equal tree passes, also where the last step, a rename, was in flight and has happened."""
    local, mounted = disks(tmp_path, STEPS)
    check_against(local, Told(STEPS, done), mounted, time.time_ns() - 10**10)


def test_a_rename_in_flight_may_not_have_happened(tmp_path: Path) -> None:
    """The tree before the step in flight passes too."""
    local, mounted = disks(tmp_path, STEPS[:3])
    check_against(local, Told(STEPS, 3), mounted, time.time_ns() - 10**10)


@pytest.mark.parametrize('damage', [lambda m: os.unlink(m / 'd/a'), lambda m: os.truncate(m / 'd/a', 4999), lambda m: (m / 'extra').touch(),
                                    lambda m: os.link(m / 'c', m / 'b'), lambda m: os.chmod(m / 'd', 0o700)])
@pytest.mark.parametrize('done', [3, 4])
def test_damage_is_found(damage: Callable[[Path], None], done: int, tmp_path: Path) -> None:
    """A lost file, a torn one, one too many, a half-done rename, a lost mode: each fails, whatever was in flight."""
    local, mounted = disks(tmp_path, STEPS)
    damage(mounted)
    with pytest.raises(AssertionError):
        check_against(local, Told(STEPS, done), mounted, time.time_ns() - 10**10)


def test_only_the_interrupted_write_may_be_partial(tmp_path: Path) -> None:
    """A file whose write was in flight may hold any part of it; the oracle then goes on from there."""
    steps = [*STEPS, ('write_file', b'c', 9000, 3)]
    local, mounted = disks(tmp_path, steps)
    os.truncate(mounted / 'c', 10)
    check_against(local, Told(steps, 4), mounted, time.time_ns() - 10**10)
    assert (tmp_path / 'local/c').stat().st_size == 10
    os.truncate(mounted / 'd/a', 10)
    with pytest.raises(AssertionError):
        check_against(local, Told(steps, 4), mounted, time.time_ns() - 10**10)


def test_the_load_reports_what_it_did(tmp_path: Path) -> None:
    """The steps that a load tells, repeated elsewhere, give the tree that it made."""
    for name in ('local', 'mounted'):
        (tmp_path / name).mkdir()
    load = Load(lambda: files(7, 0), tmp_path / 'mounted', 200)
    load.until(50)
    assert load.done == 50
    load.end()
    assert load.done == 200
    check_against(Side(os.fsencode(tmp_path / 'local')), load, tmp_path / 'mounted', time.time_ns() - 10**11)
    assert len(os.listdir(tmp_path / 'local')) > 10
