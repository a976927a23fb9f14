"""What an ordinary user does with ctxfs, as a program: run by test_unprivileged.py as that user, with a directory as its argument.

Owns the steps. It must not need any right that an ordinary user lacks; it ends with exit status 0 and a last line, or with a traceback.
"""
from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path


def ctxfs(*arguments: object) -> str:
    command = [sys.executable, '-m', 'ctxfs', *map(str, arguments)]
    env = {name: value for name, value in os.environ.items() if name != 'CTXFS_DUMPABLE'}
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, env=env)
    assert done.returncode == 0, f'ctxfs {arguments}: exit {done.returncode}: {done.stderr}'
    return done.stdout


def capabilities() -> int:
    return int(next(line.split()[1] for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('CapEff')), 16)


def check_rights(at: Path) -> None:
    """The user owns what he makes, and may not do what only root may."""
    st = os.stat(at / 'f')
    assert (st.st_uid, st.st_gid) == (os.getuid(), os.getgid())
    for call in (lambda: os.chown(at / 'f', 0, 0), lambda: os.mknod(at / 'null', stat.S_IFCHR | 0o666, os.makedev(1, 3))):
        try:
            call()
        except OSError as e:
            assert e.errno == errno.EPERM
        else:
            raise AssertionError('something succeeded that only root may do')


def check_processes(pid: int) -> None:
    """Another program of the same user sees neither the environment nor the memory nor the files of the daemon and its workers."""
    workers = [int(child) for task in Path(f'/proc/{pid}/task').iterdir() for child in (task / 'children').read_text().split()]
    assert workers
    for process in (pid, *workers):
        for name in ('environ', 'mem', 'maps', 'fd/0', 'cwd'):
            try:
                os.close(os.open(f'/proc/{process}/{name}', os.O_RDONLY))
            except PermissionError:
                continue
            raise AssertionError(f'/proc/{process}/{name} can be opened')


def main(work: Path) -> None:
    assert os.geteuid() != 0 and capabilities() == 0
    at, there = work / 'at', work / 'there'
    at.mkdir()
    there.mkdir()
    ctxfs('mount', '--create', 'mine', at, '--state-dir', work / 's1')
    (at / 'f').write_text('content')
    (at / 'd').mkdir(mode=0o700)
    os.link(at / 'f', at / 'd/hard')
    os.symlink('../f', at / 'd/soft')
    os.chmod(at / 'f', 0o640)
    os.utime(at / 'f', ns=(0, 1_600_000_000_123_456_789))
    check_rights(at)
    mounts = json.loads(ctxfs('status', at, '--json'))['mounts']
    assert [m['contextName'] for m in mounts] == ['mine']
    check_processes(mounts[0]['pid'])
    subprocess.run(['fusermount3', '-u', str(at)], check=True)
    ctxfs('wait', 'mine', '--timeout', 100)
    ctxfs('mount', 'mine', there, '--state-dir', work / 's2')
    st = os.stat(there / 'd/soft')
    assert (stat.S_IMODE(st.st_mode), st.st_nlink, st.st_mtime_ns) == (0o640, 2, 1_600_000_000_123_456_789)
    assert (there / 'd/hard').read_text() == 'content'
    ctxfs('umount', there)
    print('all of it as an ordinary user')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
