"""A state directory on a disk that is full, really: programs are told, nothing breaks, and when there is room again everything goes on."""
from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.small_disk import SmallDisk, quota_shim, small_disk
from tests.crash.watch import eventually
from tests.model import observe
from tests.model.hosts import IS_DOUBLE
from tests.model.operations import content
from tests.mount.sites import MountingHost, MountingSite, site_maker

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory is no disk'), pytest.mark.timeout(200), pytest.mark.needs_root,
              pytest.mark.skipif(shutil.which('mkfs.ext4') is None, reason='mkfs.ext4 is not installed')]

MIB = 1 << 20


class Programs:
    """A host, and what programs on its mount get. Nothing is uploaded before it is asked for."""

    def __init__(self, site: MountingSite) -> None:
        self.site = site
        self.host: MountingHost = site.host()  # type: ignore[assignment]
        self.at = site.mount_point()

    def mount(self, env: dict[str, str] | None = None) -> None:
        self.host.mount('c', self.at, create=True, options=('--sync-every', 'unmount', '--cache-size', '1G'), env=env)

    def outcome(self, operation: Callable[[], object]) -> int:
        """0, or the errno that a program gets."""
        try:
            operation()
        except OSError as error:
            return error.errno or -1
        return 0

    def write(self, name: str, size: int, seed: int = 1) -> int:
        def save() -> None:
            with open(self.at / name, 'wb', buffering=0) as file:
                file.write(content(size, seed))
                os.fsync(file.fileno())
        return self.outcome(save)


class Small(Programs):
    """The host's state lies on a disk of 64 MiB."""

    def __init__(self, site: MountingSite, disk: SmallDisk) -> None:
        super().__init__(site)
        self.disk = disk


@pytest.fixture
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Small]:
    site = site_maker('file', request)(tmp_path)
    with small_disk(tmp_path / 'state-0', 64 * MIB) as disk:
        yield Small(site, disk)


def test_a_full_disk_is_told_and_over_when_there_is_room(small: Small) -> None:
    """Writers get ENOSPC; the disk is then filled to its last block: names cannot be made, and what was refused is not there, in memory as in the
    database; a removal is possible all the same. When there is room again everything goes on in the same mount."""
    small.mount()
    at = small.at
    for number in range(4):
        assert small.write(f'before{number}', MIB, number) == 0
    (at / 'doomed').write_bytes(content(2 * MIB, 9))
    results = [small.write(f'large{number}', 8 * MIB, number) for number in range(12)]
    assert set(results) == {0, errno.ENOSPC} and results == sorted(results), results
    assert (at / 'before0').read_bytes() == content(MIB, 0)
    for number, result in enumerate(results):
        if result:
            (at / f'large{number}').unlink()    # what little of it fitted
    small.disk.fill()
    refused = until_refused(small)
    assert small.write('one-more', 1) == errno.ENOSPC
    whole = observe.snapshot(os.fsencode(at))
    assert os.fsencode(refused) not in whole and b'one-more' not in whole
    assert (at / 'before3').read_bytes() == content(MIB, 3)
    small.host.kill9(at)        # what the database has is what was seen
    small.disk.free()
    small.mount()
    assert observe.differences(observe.snapshot(os.fsencode(at)), whole) == []
    small.disk.fill()
    until_refused(small)
    (at / 'doomed').unlink()
    assert not (at / 'doomed').exists()
    small.disk.free()
    eventually('there is room again', lambda: small.write('after', 3 * MIB) == 0)
    small.host.cli('sync', at)
    want = observe.snapshot(os.fsencode(at))
    small.host.unmount(at)
    other, there = small.site.host(), small.site.mount_point()
    other.mount('c', there)
    assert observe.differences(observe.snapshot(os.fsencode(there)), want, directory_times=False) == []
    other.unmount(there)


def until_refused(small: Small) -> str:
    """Make directories until one is refused; its name."""
    start = len(os.listdir(small.at))
    for number in range(start, start + 20_000):
        result = small.outcome(lambda number=number: (small.at / f'd{number:05}').mkdir())  # type: ignore[misc]
        if result:
            assert result == errno.ENOSPC
            return f'd{number:05}'
    raise AssertionError('the disk is never full')


def test_uploads_and_reads_on_a_full_disk(small: Small) -> None:
    """Clean blocks give way to what is written. While nothing fits, an upload fails or succeeds, and loses nothing; a cold file cannot be cached, so
    who reads it is told; the same mount does it all when there is room."""
    other, there = small.site.host(), small.site.mount_point()
    other.mount('c', there, create=True)
    for number in range(10):
        (there / f'cold{number}').write_bytes(content(4 * MIB, number))
    other.unmount(there)
    small.mount()
    for number in range(9):
        assert (small.at / f'cold{number}').read_bytes() == content(4 * MIB, number)
    assert small.write('mine', 24 * MIB) == 0       # more than is free beside the cache
    small.disk.fill()
    pending = small.host.status(small.at)['pending']['files']
    small.host.cli('sync', small.at, check=False)
    assert (small.at / 'mine').read_bytes() == content(24 * MIB, 1)
    read = small.outcome(lambda: (small.at / 'cold9').read_bytes())
    assert read in (0, errno.ENOSPC, errno.EIO) and pending
    small.disk.free()
    eventually('a sync that succeeds', lambda: small.host.cli('sync', small.at, check=False).returncode == 0)
    eventually('it is read', lambda: small.outcome(lambda: (small.at / 'cold9').read_bytes()) == 0)
    assert (small.at / 'cold9').read_bytes() == content(4 * MIB, 9)
    small.host.unmount(small.at)
    bucket = small.site.bucket()
    assert bucket.body(f'contexts/{small.site.context_id("c")}/mine') == content(24 * MIB, 1)


@pytest.mark.skipif(shutil.which('cc') is None, reason='there is no C compiler')
def test_a_quota_that_is_used_up_is_told_as_such(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """EDQUOT, not EIO, from data and from names, where SQLite says no more than "disk I/O error"; and the same mount goes on when there is room."""
    site = site_maker('file', request)(tmp_path)
    env, flag = quota_shim(tmp_path, tmp_path / 'state-0')
    programs = Programs(site)
    programs.mount(env)
    at = programs.at
    assert programs.write('before', 1000) == 0
    flag.touch()
    assert programs.write('before', 2 * MIB, 2) == errno.EDQUOT
    assert programs.outcome((at / 'directory').mkdir) == errno.EDQUOT and os.listdir(at) == ['before']
    assert programs.outcome(lambda: os.chmod(at / 'before', 0o600)) == errno.EDQUOT and (at / 'before').stat().st_mode & 0o777 == 0o644
    flag.unlink()
    eventually('there is room again', lambda: programs.write('after', 1000) == 0)
    (at / 'directory').mkdir()
    programs.host.unmount(at)
    assert site.bucket().body(f'contexts/{site.context_id("c")}/after') == content(1000, 1)
