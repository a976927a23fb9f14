"""What is opened again: files and directories that the kernel knows already cost no Python, and mean what they mean when opened first.

Every test opens before it opens what it is about: the first opening of a file is always the daemon's.
"""
from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from ctxfs.edge import fuse_ops
from tests.crash.watch import eventually
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingSite, site_maker

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no kernel before it'), pytest.mark.timeout(150)]

MIB = 1 << 20
HANDLER = re.compile(r'ctxfs\.edge\.fuse_adapter (\w+)\(.* µs$', re.M)


class Desk:
    """A context with a file and a directory, mounted on a host that has no content of it yet."""

    def __init__(self, site: MountingSite) -> None:
        self.site = site
        self.at = site.mount_point()
        writer: Any = site.host()
        writer.mount('c', self.at, create=True)
        (self.at / 'd/e').mkdir(parents=True)
        for number in range(30):
            (self.at / f'd/{number}').write_bytes(b'x')
        (self.at / 'f').write_bytes(bytes(3 * MIB))
        writer.unmount(self.at)
        self.host: Any = site.host()
        policy = site.work / 'policy.json'
        policy.write_text('{"downloadPolicy": {"autoDownload": false}}')
        self.host.mount('c', self.at, options=('--sync-every', 'unmount', '--log-level', 'debug', '--policy', str(policy)))
        eventually('the context is listed', lambda: self.host.status(self.at)['remote']['isComplete'])
        self.prefix = f'contexts/{site.context_id("c")}/'
        self.log = Path(self.host.status(self.at)['stateDir'], 'ctxfs.log')

    def handled(self) -> list[str]:
        """Names of the requests that Python answered so far."""
        return HANDLER.findall(self.log.read_text())

    def open_again(self, name: str = 'f') -> int:
        for _ in range(2):
            fd = os.open(self.at / name, os.O_RDONLY)
            os.close(fd)
        return os.open(self.at / name, os.O_RDONLY)

    def download(self) -> None:
        self.host.cli('sync', self.at, '--mode', 'download')


@pytest.fixture
def desk(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    made = Desk(site_maker('file', request)(tmp_path))
    yield made
    made.host.unmount(made.at)


def test_the_library_is_built() -> None:
    """Where these tests run there are a compiler and libfuse's headers, for pyfuse3."""
    assert fuse_ops.is_loaded()


def test_a_known_tree_is_walked_and_read_without_python(desk: Desk) -> None:
    """find, grep and stat once more: nothing is asked of the daemon's interpreter."""
    def walk() -> list[tuple[str, bytes]]:
        return [(name, Path(directory, name).read_bytes()) for directory, _, names in os.walk(desk.at) for name in sorted(names)]
    first = walk()
    assert len(first) == 31
    assert walk() == first
    assert {'open', 'readdir'} <= set(desk.handled())
    asked: list[list[str]] = []
    while len(asked) < 5 and [] not in asked:       # a kernel that is short of memory drops a page now and then, and reads it anew
        before = len(desk.handled())
        for _ in range(3):
            assert walk() == first
            assert [os.stat(desk.at / 'd' / str(number)).st_size for number in range(30)] == [1] * 30
        asked.append([name for name in desk.handled()[before:] if name != 'forget'])
    assert [] in asked, asked


def test_a_path_through_a_symlink_asks_for_its_target_once(desk: Desk) -> None:
    """Another one of the same name is another target: made here, and by another host."""
    link, asked = desk.at / 'link', desk.handled().count('readlink')
    link.symlink_to('d/e')
    for _ in range(5):
        assert os.readlink(link) == 'd/e' and (link / '../1').read_bytes() == b'x'
    assert desk.handled().count('readlink') - asked <= 2        # a kernel that is short of memory drops a page now and then
    link.unlink()
    link.symlink_to('a target that is longer')
    assert os.readlink(link) == 'a target that is longer'
    desk.host.cli('sync', desk.at)
    other, elsewhere = desk.site.host(), desk.site.mount_point()
    other.mount('c', elsewhere)
    (elsewhere / 'link').unlink()
    (elsewhere / 'link').symlink_to('d')
    other.unmount(elsewhere)
    desk.download()
    eventually('the target of the other host', lambda: os.readlink(link) == 'd')
    assert os.lstat(link).st_size == 1


def test_a_file_that_was_only_listed_and_is_replaced_elsewhere_is_stale(desk: Desk) -> None:
    """And not missing: on ESTALE the kernel looks its name up again, so who opens it by that gets the new version."""
    path = desk.at / 'd/7'
    os.listdir(desk.at / 'd')
    fd = os.open(path, os.O_PATH)
    desk.site.bucket().put(f'{desk.prefix}d/7', b'newer')
    desk.download()
    eventually('the new version', lambda: path.read_bytes() == b'newer')
    with pytest.raises(OSError) as caught:
        Path(f'/proc/self/fd/{fd}').read_bytes()
    os.close(fd)
    assert caught.value.errno == errno.ESTALE


def test_changes_made_here_are_listed_at_once(desk: Desk) -> None:
    """Created, removed, renamed, replaced: after each the listing is the new one."""
    directory = desk.at / 'd'

    def listed() -> set[str]:
        for _ in range(2):
            names = set(os.listdir(directory))
        return names
    names = listed()
    (directory / 'new').touch()
    assert listed() == names | {'new'}
    (directory / 'new').rename(directory / 'newer')
    assert listed() == names | {'newer'}
    (directory / 'newer').replace(directory / '0')
    assert listed() == names
    (directory / 'e').rmdir()
    (directory / '1').unlink()
    assert listed() == names - {'e', '1'}


def test_changes_of_the_bucket_are_listed(desk: Desk) -> None:
    """A name that the kernel never saw, one that it knows, and a directory: the listing that it remembers is forgotten for each."""
    def listed() -> set[str]:
        for _ in range(2):
            names = set(os.listdir(desk.at / 'd'))
        return names
    names = listed()
    bucket = desk.site.bucket()
    bucket.put(f'{desk.prefix}d/unseen', b'u')
    desk.download()
    eventually('the new name', lambda: listed() == names | {'unseen'})
    bucket.delete(f'{desk.prefix}d/3')
    desk.download()
    eventually('without the old one', lambda: listed() == (names | {'unseen'}) - {'3'})
    bucket.put(f'{desk.prefix}d/deep/er', b'u')
    desk.download()
    eventually('the new directory', lambda: listed() == (names | {'unseen', 'deep'}) - {'3'})


def test_an_unlinked_file_is_read_on(desk: Desk) -> None:
    """Its content is not here, so its object must stay while it is open, and goes afterwards."""
    fd = desk.open_again()
    os.unlink(desk.at / 'f')
    desk.host.cli('sync', desk.at, check=False)
    assert os.pread(fd, 10, 2 * MIB) == bytes(10)
    assert f'{desk.prefix}f' in desk.site.bucket().keys(desk.prefix)
    os.close(fd)

    def is_gone() -> bool:
        desk.host.cli('sync', desk.at, check=False)
        return f'{desk.prefix}f' not in desk.site.bucket().keys(desk.prefix)
    eventually('the object is gone', is_gone)


def test_an_unlinked_file_that_was_never_read_lets_its_object_go(desk: Desk) -> None:
    """Closed without a read: the daemon never heard of the handle, and nothing waits for it."""
    os.close(desk.open_again())
    os.unlink(desk.at / 'f')
    desk.host.cli('sync', desk.at)
    assert f'{desk.prefix}f' not in desk.site.bucket().keys(desk.prefix)


def test_a_replaced_file_is_stale_for_who_has_it_open(desk: Desk) -> None:
    """ESTALE for what was not read, the new content for who opens it then."""
    fd = desk.open_again()
    desk.site.bucket().put(f'{desk.prefix}f', b'y' * MIB)
    desk.download()
    with pytest.raises(OSError) as refused:
        os.pread(fd, 10, 2 * MIB)
    assert refused.value.errno == errno.ESTALE
    os.close(fd)
    for _ in range(2):
        assert (desk.at / 'f').read_bytes() == b'y' * MIB


def test_one_of_two_links_replaced(desk: Desk) -> None:
    """The other keeps its content, for who opens it then."""
    os.link(desk.at / 'f', desk.at / 'g')
    desk.host.cli('sync', desk.at)
    os.close(desk.open_again('g'))
    desk.site.bucket().put(f'{desk.prefix}f', b'y' * MIB)
    desk.download()
    for _ in range(2):
        assert (desk.at / 'f').read_bytes() == b'y' * MIB
        assert (desk.at / 'g').read_bytes() == bytes(3 * MIB)


def test_a_file_that_grows_is_followed(desk: Desk) -> None:
    """As tail -f has it open."""
    assert len((desk.at / 'f').read_bytes()) == 3 * MIB
    fd = desk.open_again()
    desk.site.bucket().put(f'{desk.prefix}f', bytes(3 * MIB) + b'more')
    desk.download()
    eventually('the new bytes', lambda: os.pread(fd, 10, 3 * MIB) == b'more')
    os.close(fd)
    assert (desk.at / 'f').read_bytes()[-5:] == b'\0more'


def test_a_handle_for_reading_can_be_synced_and_written_through_by_others(desk: Desk) -> None:
    """fsync of a reader's descriptor; what a writer changes meanwhile is what the reader reads."""
    fd = desk.open_again()
    os.fsync(fd)
    with open(desk.at / 'f', 'r+b') as file:
        file.write(b'changed')
    assert os.pread(fd, 7, 0) == b'changed'
    os.close(fd)
    directory = os.open(desk.at / 'd', os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def test_a_removed_directory_is_empty_for_who_has_it_open(desk: Desk) -> None:
    """Opened and never listed before it went."""
    os.listdir(desk.at / 'd/e')
    fd = os.open(desk.at / 'd/e', os.O_RDONLY)
    os.rmdir(desk.at / 'd/e')
    assert os.listdir(fd) == []
    os.close(fd)
