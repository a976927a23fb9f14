"""A disk that goes bad under the block cache: programs on a real mount never see its bytes, and none gets into the bucket.

Owns the damage, done to the cache's files as a disk does it: with neither length nor times telling. What is found, and how, is
tests/unit/test_cache_integrity.py's.
"""
from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingSite

pytestmark = pytest.mark.skipif(IS_DOUBLE, reason='a plain directory has no cache')

CONTENT = {name: random.Random(name).randbytes(size) for name, size in [('small', 300), ('one', 70_000), ('large', (3 << 20) + 77)]}


def damage(state: Path, seed: int) -> int:
    """Flip a bit in every file of the cache; how many there were."""
    chance, files = random.Random(seed), [path for path in state.rglob('cache/??/*') if path.is_file()]
    for path in files:
        before, data = path.stat(), bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        with open(path, 'r+b') as file:
            file.write(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return len(files)


def read_anew(path: Path) -> bytes:
    """The file's bytes as the file system has them, not the kernel's pages of them."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with os.fdopen(os.dup(fd), 'rb') as file:
            return file.read()
    finally:
        os.close(fd)


def test_flipped_bits_reach_neither_a_program_nor_the_bucket(site: MountingSite) -> None:
    """Under a running mount that has read the good bytes, and before the next one; a file that is then appended to goes up whole."""
    host, at = site.host(), site.mount_point()
    host.mount('c', at, create=True)
    for name, data in CONTENT.items():
        (at / name).write_bytes(data)
    host.cli('sync', at)
    assert {name: read_anew(at / name) for name in CONTENT} == CONTENT
    assert damage(host.state_dir, 1) == len(CONTENT)
    assert {name: read_anew(at / name) for name in CONTENT} == CONTENT
    assert host.json('status', at)['mounts'][0]['cache']['damaged'] >= len(CONTENT)
    logs = '\n'.join(path.read_text() for path in host.state_dir.rglob('*.log'))
    assert all(f'bad copy of contexts/{site.context_id("c")}/{name} (' in logs for name in CONTENT)
    host.unmount(at)

    assert damage(host.state_dir, 2) >= len(CONTENT)
    host.mount('c', at)
    for name in CONTENT:
        with open(at / name, 'ab') as file:
            file.write(b'more')
    assert {name: read_anew(at / name) for name in CONTENT} == {name: data + b'more' for name, data in CONTENT.items()}
    host.unmount(at)
    prefix = f'contexts/{site.context_id("c")}/'
    assert {name: site.bucket().body(prefix + name) for name in CONTENT} == {name: data + b'more' for name, data in CONTENT.items()}
