"""Few descriptors: a mount needs no more of them when programs open more files, and where there are none left, programs are told."""
from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.watch import children, eventually
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingHost, site_maker

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory needs no descriptors'), pytest.mark.timeout(200)]

LIMIT = 256
FILES = 600


@pytest.fixture(autouse=True)
def many_of_our_own() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def used(pid: int) -> int:
    return len(os.listdir(f'/proc/{pid}/fd'))


def mounted(request: pytest.FixtureRequest, work: Path) -> tuple[MountingHost, Path]:
    """With `ulimit -n 256`, the hard limit too, on a store that takes connections."""
    site = site_maker('s3', request)(work)
    host: MountingHost = site.host()  # type: ignore[assignment]
    at = site.mount_point()
    host.prefix = ('prlimit', f'--nofile={LIMIT}:{LIMIT}')
    host.mount('c', at, create=True, options=('--sync-every', 'unmount'))
    host.prefix = ()
    return host, at


def test_more_open_files_than_descriptors(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """600 files are open and written to in turns, a few of them removed meanwhile; daemon and workers stay within 256 each, all bytes are right,
    and all is uploaded."""
    host, at = mounted(request, tmp_path)
    files = [open(at / f'f{number:03}', 'w+b', buffering=0) for number in range(FILES)]  # noqa: SIM115 - all of them at once
    for turn in range(2):
        for number, file in enumerate(files):
            file.write(b'%d-%d;' % (number, turn))
    for number in range(0, FILES, 100):
        (at / f'f{number:03}').unlink()
    for number, file in enumerate(files):
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(file.fileno(), 100, 0) == b'%d-0;%d-1;' % (number, number)
    pid = host.pid(at)
    host.cli('sync', at)
    assert all(used(process) < LIMIT for process in (pid, *children(pid)))
    for file in files:
        file.close()
    host.unmount(at)
    host.mount('c', at)
    assert len(os.listdir(at)) == FILES - 6 and (at / 'f599').read_bytes() == b'599-0;599-1;'
    host.unmount(at)


def test_no_descriptor_left_is_told_and_ends_nothing(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Every descriptor that the daemon may have is in use: a new file is EMFILE, what is there is listed and read, and later all is as before."""
    host, at = mounted(request, tmp_path)
    (at / 'there').write_bytes(b'there')
    pid = host.pid(at)
    host.cli('sync', at)
    lowest = next(number for number in range(LIMIT) if not os.path.islink(f'/proc/{pid}/fd/{number}'))
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, LIMIT))
    with pytest.raises(OSError) as caught:
        (at / 'new').write_bytes(b'new')
    assert caught.value.errno == errno.EMFILE
    assert os.listdir(at) == ['there'] and (at / 'there').stat().st_size == 5 and (at / 'there').read_bytes() == b'there'
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    eventually('a new file', lambda: (at / 'new').write_bytes(b'new'))
    host.unmount(at)
    host.mount('c', at)
    assert sorted(os.listdir(at)) == ['new', 'there']
    host.unmount(at)
