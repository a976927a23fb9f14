"""The model can fail: a double with one defect is told apart from a local directory, and a double without any is not.

Owns the defects. It must not need a mount: it runs in seconds, everywhere.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.model import machine, operations
from tests.model.hosts import LocalHost, Site, fresh_site, local_site
from tests.model.world import Divergence, World, replay

PROGRAM: list[operations.Operation] = [
    ('mkdir', b'dir', 0o755), ('write_file', b'dir/a', 5000, 1), ('link', b'dir/a', b'b'), ('symlink', b'b', b'c'),
    ('utimens', b'b', 1_000_000_000_123_456_789, True), ('mkdir', b'empty', 0o755), ('remount',)]


def test_a_directory_equals_a_directory(tmp_path: Path) -> None:
    """The machine finds nothing where both sides are local directories: what it compares is what a local disk promises."""
    numbers = iter(range(1 << 30))

    class Machine(machine.StateMachine):
        new_world = staticmethod(lambda: World(fresh_site(local_site, tmp_path, next(numbers))))

    run_state_machine_as_test(Machine, settings=hypothesis.settings(
        max_examples=60, stateful_step_count=50, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)))


def _forget_mode(root: Path) -> None:
    os.chmod(root / 'dir/a', 0o600)


def _lose_nanoseconds(root: Path) -> None:
    os.utime(root / 'b', ns=(0, 1_000_000_000_123_456_000))


def _break_link(root: Path) -> None:
    data = (root / 'b').read_bytes()
    st = (root / 'b').stat()
    (root / 'b').unlink()
    (root / 'b').write_bytes(data)
    os.utime(root / 'b', ns=(st.st_atime_ns, st.st_mtime_ns))


def _lose_last_byte(root: Path) -> None:
    st = (root / 'b').stat()
    os.truncate(root / 'b', 4999)
    os.utime(root / 'b', ns=(st.st_atime_ns, st.st_mtime_ns))


def _lose_empty_directory(root: Path) -> None:
    (root / 'empty').rmdir()


def _follow_symlink(root: Path) -> None:
    (root / 'c').unlink()
    (root / 'c').write_bytes((root / 'b').read_bytes())


@pytest.mark.parametrize('defect', [_forget_mode, _lose_nanoseconds, _break_link, _lose_last_byte, _lose_empty_directory, _follow_symlink])
def test_a_loss_in_a_remount_is_found(defect: Callable[[Path], None], tmp_path: Path) -> None:
    """Each thing that a remount could lose is noticed, and the program that shows it is printed."""
    class Forgetful(LocalHost):
        def mount(self, name: str, at: Path, *, create: bool = False, options: Sequence[str] = (), env: object = None) -> None:
            super().mount(name, at, create=create)
            if not create:
                defect(at)

    (tmp_path / 'contexts').mkdir()
    with pytest.raises(Divergence, match='remount'):
        replay(Site(tmp_path, lambda state: Forgetful(tmp_path / 'contexts')), PROGRAM)


def _allow_unlinking_directories(side: operations.Side, path: bytes) -> None:
    (os.rmdir if os.path.isdir(side.at(path)) else os.unlink)(side.at(path))


@pytest.mark.parametrize(('verb', 'wrong', 'program'), [
    ('unlink', _allow_unlinking_directories, [('mkdir', b'a', 0o755), ('unlink', b'a')]),
    ('write', lambda side, slot, size, seed: size, [('open', 0, b'a', os.O_RDWR | os.O_CREAT, 0o644), ('write', 0, 5, 1)]),
    ('listdir', lambda side, path: [], [('write_file', b'a', 1, 1), ('listdir', b'')])])
def test_a_wrong_answer_is_found(verb: str, wrong: Callable[..., object], program: list[operations.Operation], tmp_path: Path,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that answers or does something else on one side is noticed in that very step."""
    right = operations.VERBS[verb]
    monkeypatch.setitem(operations.VERBS, verb, lambda side, *a: (wrong if b'mnt-' in side.root else right)(side, *a))
    with pytest.raises(Divergence):
        replay(local_site(tmp_path), program)


