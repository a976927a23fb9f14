"""Listings of directories: what they say of each entry is what stat said, however they are cut into answers, and what they cost."""
from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctxfs.core import listed_entries
from ctxfs.core.handles import PAGE
from tests.crash.watch import eventually
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingSite, site_maker

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no kernel before it'), pytest.mark.timeout(150)]

HANDLER = re.compile(r'ctxfs\.edge\.fuse_adapter (\w+)\(.* µs$', re.M)
#: of a directory that is read in several answers, and in two pages of the database
MANY = 700


class Desk:
    """A context, and mounts of it on one host after the other."""

    def __init__(self, site: MountingSite) -> None:
        self.site = site
        self.at = site.mount_point()
        self.host: Any = None
        self.mount('--create')

    def mount(self, *options: str) -> None:
        self.host = self.site.host()
        self.host.mount('c', self.at, options=('--sync-every', 'unmount', *options))
        eventually('the context is listed', lambda: self.host.status(self.at)['remote']['isComplete'])
        self.log = Path(self.host.status(self.at)['stateDir'], 'ctxfs.log')

    def mount_elsewhere(self, *options: str) -> None:
        """Nothing is known there but what the bucket says."""
        self.host.unmount(self.at)
        self.mount(*options)

    def mount_again(self) -> None:
        """On the same host."""
        self.host.unmount(self.at)
        self.host.mount('c', self.at, options=('--sync-every', 'unmount'))

    def handled(self) -> list[str]:
        """Names of the requests that Python answered so far."""
        return HANDLER.findall(self.log.read_text())

    def known(self) -> int:
        return int(float(re.search(r'^ctxfs_known_inodes(?:{.*})? (\S+)$', self.host.cli('metrics', self.at).stdout, re.M)[1]))


@pytest.fixture
def desk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Desk]:
    made = Desk(site_maker('file', request)(tmp_path))
    yield made
    made.host.unmount(made.at)


def described(directory: Path) -> dict[str, tuple[int, ...]]:
    """What a listing of it says; the kernel asks for nothing else, because the listing has told it everything."""
    with os.scandir(directory) as entries:
        found = {}
        for entry in entries:
            it = entry.stat(follow_symlinks=False)
            assert (entry.is_dir(follow_symlinks=False), entry.is_symlink(), entry.inode()) == (
                stat.S_ISDIR(it.st_mode), stat.S_ISLNK(it.st_mode), it.st_ino)
            found[entry.name] = (it.st_mode, it.st_nlink, it.st_uid, it.st_gid, it.st_rdev, it.st_size, it.st_mtime_ns)
            assert it.st_blocks >= (it.st_size + 511) // 512 or not stat.S_ISREG(it.st_mode)        # a staging file occupies whole pages
    return found


def fill(directory: Path) -> None:
    """One of every kind, and times before 1970 and after 2106."""
    directory.mkdir()
    for number, seconds in enumerate((-1.5, -86_400, 0, 1_600_000_000.123456789, 2**32 + 5)):
        path = directory / f'file {number}'
        path.write_bytes(b'x' * (number * 700))
        path.chmod((0o644, 0o600, 0o755, 0o4711, 0o444)[number])
        os.chown(path, number, 2 * number)
        os.utime(path, ns=(int(seconds * 1e9), int(seconds * 1e9)))
    (directory / 'sub' / 'below').mkdir(parents=True)
    (directory / 'link').symlink_to('file 1')
    os.link(directory / 'file 3', directory / 'another')
    (directory / ('é' * 127)).write_bytes(b'as long as a name may be')


@pytest.mark.parametrize('where', ['here', 'again', 'elsewhere'])
def test_a_listing_says_what_stat_says(desk: Desk, where: str) -> None:
    """While its files wait to be uploaded, on the host that has uploaded them, and on another one."""
    directory = desk.at / 'd'
    fill(directory)
    names = sorted(os.listdir(directory))
    os.mkfifo(directory / 'fifo')
    before = described(directory)
    assert sorted(before) == sorted([*names, 'fifo'])
    if where == 'here':
        desk.host.cli('sync', desk.at)
        Path('/proc/sys/vm/drop_caches').write_text('2')
    elif where == 'again':
        desk.mount_again()
    else:
        desk.mount_elsewhere()
        del before['fifo']      # it means something on its own host only
    assert described(directory) == before
    assert [path.read_bytes() for path in sorted(directory.glob('file*'))] == [b'x' * (number * 700) for number in range(5)]


def test_what_is_open_for_writing_is_listed_as_it_is(desk: Desk) -> None:
    """Its row says what it was."""
    directory = desk.at / 'd'
    directory.mkdir()
    (directory / 'f').write_bytes(b'1')
    desk.mount_elsewhere()
    with open(directory / 'f', 'r+b') as file:
        file.write(b'x' * 100_000)
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), 0o640)
        (directory / 'new').write_bytes(b'2')
        listed = described(directory)['f']
    assert (stat.S_IMODE(listed[0]), listed[5]) == (0o640, 100_000)


def test_every_name_is_listed_once(desk: Desk) -> None:
    """Where an answer ends with the directory, and where a page of the database does; from its beginning once more, with what came meanwhile."""
    directory = desk.at / 'd'
    directory.mkdir()
    names: list[str] = []
    for count in (0, 1, listed_entries.MOST - 2, listed_entries.MOST, PAGE - 1, PAGE, PAGE + 1, MANY):
        fd = os.open(directory, os.O_RDONLY)
        try:
            assert sorted(os.listdir(fd)) == names
            while len(names) < count:
                names.append(f'{len(names):04}')
                (directory / names[-1]).touch()
            assert sorted(os.listdir(fd)) == names        # rewinddir(3)
        finally:
            os.close(fd)


@pytest.mark.parametrize('is_known', [False, True], ids=['new', 'known'])
def test_a_directory_is_emptied_while_it_is_read(desk: Desk, is_known: bool) -> None:
    """As `rm -r` does: what is removed leaves no gap in what is read after it. Of one that was listed before, the kernel reads the beginning from its
    own memory, which it forgets with the first name that is removed."""
    directory, count = desk.at / 'd', 3000 if is_known else MANY
    directory.mkdir()
    for number in range(count):
        (directory / f'{number:04}').touch()
    for _ in range(2 if is_known else 0):
        assert len(os.listdir(directory)) == count
    seen = []
    with os.scandir(directory) as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
    assert sorted(seen) == [f'{number:04}' for number in range(count)]
    directory.rmdir()


def test_a_listing_that_the_kernel_loses_in_the_middle_goes_on(desk: Desk) -> None:
    """The daemon was never asked for its beginning by who reads it. What another host removed before that place changes nothing about it."""
    directory = desk.at / 'd'
    directory.mkdir()
    names = [f'{number:04}' for number in range(3000)]
    for name in names:
        (directory / name).touch()
    desk.mount_elsewhere()
    for _ in range(2):
        assert sorted(os.listdir(directory)) == names
    bucket, prefix = desk.site.bucket(), f'contexts/{desk.site.context_id("c")}/d/'
    with os.scandir(directory) as entries:
        seen = [next(entries).name]
        for name in names[:100]:
            bucket.delete(prefix + name)
        desk.host.cli('sync', desk.at, '--mode', 'download')
        eventually('they are gone', lambda: not (directory / names[99]).exists())
        Path('/proc/sys/vm/drop_caches').write_text('1')
        seen += [entry.name for entry in entries]
    assert sorted(seen)[-2900:] == names[100:] and len(seen) == len(set(seen))


def test_a_listing_is_one_request_of_python(desk: Desk) -> None:
    """That nothing follows it, and that the directory is closed, is nothing for Python; what the kernel forgets is counted right."""
    for name in 'abc':
        (desk.at / name).mkdir()
        for number in range(50):
            (desk.at / name / str(number)).touch()
    desk.mount_elsewhere('--log-level', 'debug')
    before = len(desk.handled())
    for name in 'abc':
        assert len(described(desk.at / name)) == 50
    handled = desk.handled()[before:]
    assert handled.count('readdir') == 3 and not {'releasedir', 'getattr', 'opendir'}.intersection(handled), handled
    assert desk.known() == 153

    def is_forgotten() -> bool:
        Path('/proc/sys/vm/drop_caches').write_text('2')
        return desk.known() == 0
    eventually('the kernel forgets', is_forgotten)
    assert len(described(desk.at / 'a')) == 50


def test_a_removed_directory_goes_when_its_reader_closes_it(desk: Desk) -> None:
    """It is read until then, and has nothing in it."""
    directory = desk.at / 'd'
    directory.mkdir()
    (directory / 'f').touch()
    fd = os.open(directory, os.O_RDONLY)
    assert os.listdir(fd) == ['f']
    (directory / 'f').unlink()
    directory.rmdir()
    assert os.listdir(fd) == []
    os.close(fd)
    desk.host.cli('sync', desk.at)
    desk.mount_again()
    assert os.listdir(desk.at) == []
