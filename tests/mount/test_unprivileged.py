"""A user without any rights mounts, works and unmounts, through the setuid fusermount3 alone.

Owns the user's surroundings: where this test runs as root it plays `nobody` in a mount namespace of its own, in which the
interpreter, the environment, the checkout and /dev/fuse are open to everybody; otherwise it is that user already. What the user does is in
unprivileged_scenario.py.
"""
from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.hosts import IS_DOUBLE
from tests.model.processes import NOBODY

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(IS_DOUBLE, reason='says what a mount does, not what any disk does')


def closed_ancestor(path: Path) -> Path | None:
    """The topmost directory above (or at) `path` that another user may not enter."""
    for ancestor in [*reversed(path.parents), path]:
        if not ancestor.stat().st_mode & 0o001:
            return ancestor
    return None


def readable_by_all(hold: Path) -> str:
    """Shell commands that make what the user runs reachable, in this mount namespace only; `hold` is a directory to be made."""
    trees = {Path(p).resolve() for p in (sys.base_prefix, sys.prefix, REPOSITORY)}
    closed = {tree: closed_ancestor(tree) for tree in trees}
    lines = [f'hold={shlex.quote(str(hold))}', 'mkdir -m 711 $hold']
    for n, tree in enumerate(sorted(t for t in trees if closed[t])):
        lines += [f'mkdir $hold/{n}', f'mount --bind {shlex.quote(str(tree))} $hold/{n}']
    for directory in sorted({str(c) for c in closed.values() if c}):
        lines += [f'mount -t tmpfs -o mode=755 none {shlex.quote(directory)}']
    for n, tree in enumerate(sorted(t for t in trees if closed[t])):
        lines += [f'mkdir -p {shlex.quote(str(tree))}', f'mount --bind $hold/{n} {shlex.quote(str(tree))}', f'umount $hold/{n}', f'rmdir $hold/{n}']
    # udev makes /dev/fuse 0666; where there is no udev it may be root's alone.
    lines += ['mknod -m 666 $hold/fuse c 10 229', 'mount --bind $hold/fuse /dev/fuse']
    return '\n'.join(lines)


def test_a_user_without_rights_mounts_works_and_unmounts(tmp_path: Path) -> None:
    """mount --create, files of all kinds, fusermount3 -u, wait, another host: as nobody, with nothing but fusermount3's setuid bit."""
    command = [sys.executable, '-m', 'tests.mount.unprivileged_scenario', str(tmp_path)]
    if os.geteuid() == 0:
        os.chown(tmp_path, NOBODY, NOBODY)
        inner = shlex.join(['setpriv', f'--reuid={NOBODY}', f'--regid={NOBODY}', '--clear-groups', '--bounding-set=-all,+setuid,+setgid,+sys_admin,'
                            '+dac_override,+dac_read_search,+fowner,+chown', *command])
        command = ['unshare', '--mount', '--propagation', 'private', 'sh', '-ec', readable_by_all(tmp_path / 'hold') + f'\nexec {inner}']
    (tmp_path / 'run').mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(tmp_path / 'run', NOBODY, NOBODY)
    env = {**os.environ, 'HOME': str(tmp_path), 'XDG_RUNTIME_DIR': str(tmp_path / 'run'), 'PYTHONDONTWRITEBYTECODE': '1'}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == 'all of it as an ordinary user'
