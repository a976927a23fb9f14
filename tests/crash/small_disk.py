"""A small disk of its own for a host's state, and how to fill it to the last block.

Owns an ext4 image on a loop device, mounted for one test; needs root. It must not know what is tested.
"""
from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class SmallDisk:
    """Mounted at `at`; `fill` leaves nothing free, `free` gives that back."""

    def __init__(self, at: Path) -> None:
        self.at = at
        self._filler = at / 'filler'

    def fill(self) -> None:
        """Also what `fill` left the last time, and what was freed since."""
        with open(self._filler, 'ab', buffering=0) as file:
            for size in (1 << 20, 4096, 512):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))
            os.fsync(file.fileno())
        for number in range(1_000_000):     # the inodes' own blocks and the directory's: until not even an empty file's first byte fits
            try:
                (self.at / f'filler-{number}').write_bytes(b'x')
            except OSError as error:
                assert error.errno == errno.ENOSPC
                return

    def free(self) -> None:
        for path in self.at.glob('filler*'):
            path.unlink()

    def free_bytes(self) -> int:
        found = os.statvfs(self.at)
        return found.f_bavail * found.f_frsize


@contextmanager
def small_disk(at: Path, size: int) -> Iterator[SmallDisk]:
    """`at` is created; the image lies beside it."""
    image = at.with_name(f'{at.name}.img')
    with open(image, 'wb') as file:
        file.truncate(size)
    run('mkfs.ext4', '-q', '-m', '0', '-E', 'root_owner=0:0', str(image))
    at.mkdir(mode=0o700)
    run('mount', '-o', 'loop', str(image), str(at))
    at.chmod(0o700)
    try:
        yield SmallDisk(at)
    finally:
        subprocess.run(['umount', '-l', str(at)], check=False, capture_output=True, timeout=60)


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f'{" ".join(command)}: {done.stderr}'
