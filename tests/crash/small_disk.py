"""A small disk of its own for a host's state, and how to fill it to the last block; and a quota that is used up.

Owns an ext4 image on a loop device, mounted for one test (needs root), and a library that refuses data as a quota does: no file system of
this kind of machine has quotas, so that is done where programs meet the system. It must not know what is tested.
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


QUOTA_SHIM = r"""
/* Writes of data to files below QUOTA_BELOW fail with EDQUOT while the file QUOTA_FLAG exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int refused(int fd) {
    char link[64], path[4096];
    const char *below = getenv("QUOTA_BELOW"), *flag = getenv("QUOTA_FLAG");
    if (!below || !flag || access(flag, F_OK)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    return length > 0 && !strncmp(path, below, strlen(below));
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pwrite64");
    return refused(fd) ? (errno = EDQUOT, -1) : real(fd, data, size, at);
}
ssize_t write(int fd, const void *data, size_t size) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    return refused(fd) ? (errno = EDQUOT, -1) : real(fd, data, size);
}
int posix_fallocate64(int fd, off64_t at, off64_t size) {
    int (*real)(int, off64_t, off64_t) = dlsym(RTLD_NEXT, "posix_fallocate64");
    return refused(fd) ? EDQUOT : real(fd, at, size);
}
"""


def quota_shim(directory: Path, below: Path) -> tuple[dict[str, str], Path]:
    """(environment, flag): while the file `flag` exists, programs with that environment get EDQUOT for data below `below`."""
    source, library, flag = directory / 'quota.c', directory / 'quota.so', directory / 'quota-is-used-up'
    source.write_text(QUOTA_SHIM)
    run('cc', '-shared', '-fPIC', '-O1', '-o', str(library), str(source), '-ldl')
    return {'LD_PRELOAD': str(library), 'QUOTA_BELOW': f'{below}/', 'QUOTA_FLAG': str(flag)}, flag


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f'{" ".join(command)}: {done.stderr}'
