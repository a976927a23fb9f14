"""The work that programs do in a directory, the same on every side.

Owns what each step does; whatever is timed is a program of its own, or plain system calls. It must not know whose directory it is.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from bench.processes import Failed, run

MIB = 1 << 20
GIT = {'GIT_CONFIG_GLOBAL': '/dev/null', 'GIT_CONFIG_SYSTEM': '/dev/null', 'GIT_AUTHOR_NAME': 'A Bench', 'GIT_AUTHOR_EMAIL': 'bench@localhost',
       'GIT_COMMITTER_NAME': 'A Bench', 'GIT_COMMITTER_EMAIL': 'bench@localhost'}
CHANGED_FILES = 20


def find(directory: Path) -> None:
    run('find', directory)


def stat_all(directory: Path) -> None:
    """From a list of names that is made with the first, untimed time."""
    names = directory.parent / f'.names of {directory.name}'
    if not names.exists():
        names.write_bytes(run('find', directory, '-type', 'f', '-print0'))
    run('xargs', '-0', '-a', names, 'stat', '-c', '%s %Y %a')


def grep(directory: Path) -> None:
    run('grep', '-r', 'a string that is in none of them', directory, statuses=(1,))


def unpacking(archive: Path) -> Callable[[Path], None]:
    def unpack(directory: Path) -> None:
        run('tar', 'xf', archive, '-C', directory)
    return unpack


def make_repository(path: Path, files: int) -> None:
    """With one commit of text files of 0 to 8 KiB, 30 to a directory."""
    generator = random.Random(1)
    run('git', 'init', '-q', path, env=GIT)
    for number in range(files):
        directory = path / f'part{number // 300}/module{number // 30}'
        directory.mkdir(parents=True, exist_ok=True)
        lines = (f'line {line}: {generator.getrandbits(160):x}\n' for line in range(generator.randrange(160)))
        (directory / f'file{number}.py').write_text(''.join(lines))
    run('git', '-C', path, 'add', '.', env=GIT)
    run('git', '-C', path, 'commit', '-qm', 'all', env=GIT)


def git_session(repository: Path) -> Callable[[Path], None]:
    """Clone, status, change some files, commit: the pack travels as over a network."""
    def session(directory: Path) -> None:
        clone = directory / 'clone'
        run('git', 'clone', '-q', f'file://{repository}', clone, env=GIT)
        run('git', '-C', clone, 'status', '--porcelain', env=GIT)
        for path in sorted(clone.glob('part0/*/*.py'))[:CHANGED_FILES]:
            path.write_text('changed\n')
        run('git', '-C', clone, '-c', 'gc.auto=0', 'commit', '-qam', 'change', env=GIT)
        if run('git', '-C', clone, 'status', '--porcelain', env=GIT):
            raise Failed(f'{clone}: not clean after the commit')
    return session


def writing(megabytes: int) -> Callable[[Path], None]:
    block = random.Random(1).randbytes(MIB)

    def write(directory: Path) -> None:
        with open(directory / 'large', 'wb', buffering=0) as file:
            for number in range(megabytes):
                file.write(number.to_bytes(8, 'big') + block[8:])
            os.fsync(file.fileno())
    return write


def reading(megabytes: int) -> Callable[[Path], None]:
    def read(directory: Path) -> None:
        read_through(directory / 'large', megabytes * MIB)
    return read


def read_through(path: Path, size: int) -> None:
    block, total = bytearray(MIB), 0
    with open(path, 'rb', buffering=0) as file:
        while count := file.readinto(block):
            total += count
    if total != size:
        raise Failed(f'{path}: read {total} bytes of {size}')


def random_access(kind: str, megabytes: int, seconds: int) -> Callable[[Path], float]:
    """Operations a second of fio, buffered, one job, in a file that is in the page cache; `kind` is randread or randwrite."""
    def access(directory: Path) -> float:
        if not (directory / 'large').exists():
            writing(megabytes)(directory)
        reading(megabytes)(directory)
        said = run('fio', '--name=bench', f'--filename={directory / "large"}', f'--rw={kind}', '--bs=4k', f'--size={megabytes}M', '--invalidate=0',
                   '--ioengine=psync', '--time_based', f'--runtime={seconds}', '--randrepeat=1', '--fallocate=none', '--output-format=json')
        found = json.loads(said[said.index(b'{'):])['jobs'][0]
        return float(found['read' if kind == 'randread' else 'write']['iops'])
    return access


def creating(files: int, size: int = 100) -> Callable[[Path], float]:
    """Files a second that one client creates, writes and closes, one after the other."""
    content = random.Random(1).randbytes(size)

    def create(directory: Path) -> float:
        begin = time.perf_counter()
        for number in range(files):
            with open(directory / f'{number}.new', 'wb', buffering=0) as file:
                file.write(content)
        return files / (time.perf_counter() - begin)
    return create


def write_small(directory: Path, files: int, *, each: int = 500, size: int = 100) -> list[tuple[str, bytes]]:
    """So many files of random bytes, `each` to a directory; (name, content) of all."""
    made = []
    for number in range(files):
        name = f'd{number // each:03}/{number:06}'
        if number % each == 0:
            (directory / name).parent.mkdir(parents=True)
        content = os.urandom(size)
        (directory / name).write_bytes(content)
        made.append((name, content))
    return made
