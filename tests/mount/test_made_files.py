"""Files that are made without Python: programs and the next mount see what they would have seen otherwise.

The first file of a directory that was here before is always the daemon's; the directory is armed then, and one that was made here at once.
"""
from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.watch import eventually
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingSite, site_maker
from tests.mount.test_known_again import HANDLER

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no kernel before it'), pytest.mark.timeout(150)]

OPTIONS = ('--sync-every', 'unmount', '--log-level', 'debug')


class Desk:
    """An empty context, mounted."""

    def __init__(self, site: MountingSite) -> None:
        self.site = site
        self.at = site.mount_point()
        self.host: Any = site.host()
        self.host.mount('c', self.at, create=True, options=OPTIONS)
        self.log = Path(self.host.status(self.at)['stateDir'], 'ctxfs.log')
        self.prefix = f'contexts/{site.context_id("c")}/'

    def handled(self, *names: str) -> list[str]:
        """Which of these requests Python answered so far."""
        return [name for name in HANDLER.findall(self.log.read_text()) if name in names]

    def again(self, *options: str) -> None:
        self.host.unmount(self.at)
        self.host.mount('c', self.at, options=(*OPTIONS, *options))

    def put_and_hear(self, key: str, body: bytes) -> None:
        """Another tool writes to the bucket, and the mount hears of it."""
        self.site.bucket().put(f'{self.prefix}{key}', body)
        self.host.cli('sync', self.at, '--mode', 'download')


@pytest.fixture
def desk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Desk]:
    made = Desk(site_maker('file', request)(tmp_path))
    yield made
    made.host.unmount(made.at)


def make(directory: Path, number: int) -> None:
    for index in range(number):
        (directory / f'{index}').write_bytes(b'x' * index)


def about(path: Path) -> tuple[object, ...]:
    found = path.lstat()
    return (found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_nlink, found.st_mtime_ns, found.st_ctime_ns, found.st_atime_ns,
            found.st_ino, path.read_bytes() if path.is_file() else sorted(os.listdir(path)))


def forget_all() -> None:
    """The kernel asks for everything anew."""
    os.sync()
    Path('/proc/sys/vm/drop_caches').write_text('3')


def test_python_makes_none_of_many_files(desk: Desk) -> None:
    """Ten or a hundred: no creation, and no look for a free name, is a handler's."""
    for number in (10, 100):
        directory = desk.at / f'd{number}'
        directory.mkdir()
        before = len(desk.handled('create', 'lookup'))
        make(directory, number)
        assert len(desk.handled('create', 'lookup')) == before
        assert sorted(os.listdir(directory), key=int) == [str(index) for index in range(number)]


def test_the_first_of_a_known_directory_is_the_daemons(desk: Desk) -> None:
    (desk.at / 'd').mkdir()
    (desk.at / 'd/before').touch()
    desk.again()
    make(desk.at / 'd', 20)
    assert len(desk.handled('create')) == 1
    assert len(os.listdir(desk.at / 'd')) == 21


def test_what_programs_were_told_is_what_is_there(desk: Desk) -> None:
    """Of files that were written, chmodded, chowned, touched and closed: after the kernel forgot them, and after the next mount."""
    directory = desk.at / 'd'
    directory.mkdir()
    for number, size in enumerate((0, 1, 5000, 3 << 20)):
        path = directory / f'{number}'
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
        os.write(fd, bytes([number]) * size)
        os.fchmod(fd, 0o4755 if number % 2 else 0o600)
        os.close(fd)
        os.chown(path, 12, 34)
        os.utime(path, ns=(1_111_111_111_000_000_001, 1_222_222_222_123_456_789))
    os.utime(directory / '0')
    told = {path: about(path) for path in (directory, *directory.iterdir())}
    forget_all()
    assert {path: about(path) for path in told} == told
    desk.again()
    def kept(found: tuple[object, ...]) -> tuple[object, ...]:
        return (*found[:6], found[9])       # neither the time of the last change nor of the last reading, nor the number
    assert {path: kept(about(path)) for path in told} == {path: kept(found) for path, found in told.items()}


def test_a_directory_has_changed_with_each(desk: Desk) -> None:
    directory = desk.at / 'd'
    directory.mkdir()
    for number in range(5):
        before = directory.stat().st_mtime_ns
        (directory / f'{number}').touch()
        assert before < directory.stat().st_mtime_ns == directory.stat().st_ctime_ns
        forget_all()
        assert before < directory.stat().st_mtime_ns == directory.stat().st_ctime_ns
    later = directory.stat().st_mtime_ns + 10**15
    os.utime(directory, ns=(later, later))
    (directory / 'new').touch()
    for _ in range(2):
        assert directory.stat().st_mtime_ns == directory.stat().st_ctime_ns < later
        forget_all()


def test_a_group_is_the_directorys_where_that_says_so(desk: Desk) -> None:
    """Also when that changes after the first file."""
    directory = desk.at / 'd'
    directory.mkdir()
    (directory / 'plain').touch()
    os.chown(directory, 0, 77)
    directory.chmod(0o2775)
    (directory / 'grouped').touch()
    os.chown(directory, 0, 78)
    directory.chmod(0o2775)
    (directory / 'other').touch()
    directory.chmod(0o775)
    (directory / 'plain again').touch()
    for _ in range(2):
        assert [(directory / name).stat().st_gid for name in ('plain', 'grouped', 'other', 'plain again')] == [0, 77, 78, 0]
        forget_all()


def test_names_are_refused_as_ever(desk: Desk) -> None:
    (desk.at / 'first').touch()
    (desk.at / ('n' * 255)).touch()
    for name, code in (('n' * 256, errno.ENAMETOOLONG), ('.ctxfs', errno.EPERM), ('first', errno.EEXIST), ('n' * 255, errno.EEXIST),
                       ('no/file', errno.ENOENT), ('first/file', errno.ENOTDIR)):
        with pytest.raises(OSError, match=os.strerror(code)):
            os.open(desk.at / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    assert not (desk.at / '.ctxfs').exists()
    assert sorted(os.listdir(desk.at)) == ['first', 'n' * 255]


def test_whatever_made_a_name_it_is_there(desk: Desk) -> None:
    """mkdir, mknod, symlink, link, rename: a file is not made over it; and one that was removed is free."""
    directory = desk.at / 'd'
    directory.mkdir()
    (directory / 'file').write_bytes(b'kept')
    (directory / 'sub').mkdir()
    os.mkfifo(directory / 'fifo')
    (directory / 'soft').symlink_to('nowhere')
    (directory / 'hard').hardlink_to(directory / 'file')
    (desk.at / 'elsewhere').write_bytes(b'moved')
    (desk.at / 'elsewhere').rename(directory / 'moved')
    names = {'file', 'sub', 'fifo', 'soft', 'hard', 'moved'}
    forget_all()        # else it is the kernel that knows
    for name in names:
        with pytest.raises(FileExistsError):
            os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    assert set(os.listdir(directory)) == names
    for name in names - {'sub'}:
        (directory / name).unlink()
        (directory / name).write_bytes(b'anew')
    (directory / 'sub').rmdir()
    (directory / 'sub').write_bytes(b'anew')
    assert {(directory / name).read_bytes() for name in names} == {b'anew'}


def test_a_file_that_stays_open_is_the_same_file(desk: Desk) -> None:
    """Between its requests others are answered by Python: its number, its bytes and its lock stay its own."""
    directory = desk.at / 'd'
    directory.mkdir()
    fd = os.open(directory / 'it', os.O_RDWR | os.O_CREAT)
    os.write(fd, b'one ')
    os.fsync(fd)
    os.close(os.dup(fd))        # the kernel asks anew
    assert os.fstat(fd).st_blocks > 0
    os.statvfs(desk.at)
    os.write(fd, b'two ')
    os.fsync(fd)
    with open(directory / 'it', 'rb') as reader:
        assert reader.read() == b'one two '
    (directory / 'it').rename(directory / 'other')
    os.pwrite(fd, b'TWO', 4)
    assert os.pread(fd, 100, 0) == b'one TWO '
    (directory / 'other').unlink()
    os.ftruncate(fd, 3)
    os.write(fd, b'three')
    assert os.fstat(fd).st_nlink == 0 and os.pread(fd, 100, 0) == b'one' + bytes(5) + b'three'
    os.close(fd)
    assert os.listdir(directory) == []


def test_what_comes_from_elsewhere_is_seen(desk: Desk) -> None:
    """A name that programs were told to be free is not, once the bucket has it; and what was made here is not touched by it."""
    directory = desk.at / 'd'
    directory.mkdir()
    make(directory, 3)
    assert not (directory / 'theirs').exists()
    desk.host.cli('sync', desk.at)
    desk.put_and_hear('d/theirs', b'theirs')
    eventually('the name', (directory / 'theirs').exists)
    with pytest.raises(FileExistsError):
        os.open(directory / 'theirs', os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    assert (directory / 'theirs').read_bytes() == b'theirs'
    (directory / 'mine').write_bytes(b'mine')
    assert sorted(os.listdir(directory)) == ['0', '1', '2', 'mine', 'theirs']


def test_nothing_is_made_in_a_directory_that_is_gone(desk: Desk) -> None:
    """Removed here, or elsewhere, while a program is in it."""
    for number, is_elsewhere in enumerate((False, True)):
        directory = desk.at / f'd{number}'
        directory.mkdir()
        (directory / 'file').write_bytes(b'text')
        fd = os.open(directory, os.O_RDONLY)
        desk.host.cli('sync', desk.at)
        if is_elsewhere:
            for key in desk.site.bucket().keys(f'{desk.prefix}d{number}/'):
                desk.site.bucket().delete(key)
            desk.host.cli('sync', desk.at, '--mode', 'download')
            eventually('it is gone', lambda gone=directory: not gone.exists())
        else:
            (directory / 'file').unlink()
            directory.rmdir()
        with pytest.raises(FileNotFoundError):
            os.open('new', os.O_WRONLY | os.O_CREAT, dir_fd=fd)
        os.close(fd)


def test_white_lists_are_kept(desk: Desk) -> None:
    """Those of the mount, and others that it gets while the directory is armed."""
    policy = desk.site.work / 'policy.json'
    policy.write_text('{"bwList": {"whiteLists": [{"path": "/in"}]}}')
    desk.again('--policy', str(policy))
    for name in ('in', 'out'):
        (desk.at / name).mkdir()
        make(desk.at / name, 10)
    assert desk.host.status(desk.at)['localOnly']['files'] == 10
    policy.write_text('{"bwList": {"whiteLists": [{"path": "/in"}, {"path": "/out"}]}}')
    eventually('the other policy', lambda: desk.host.status(desk.at)['localOnly']['files'] == 0)
    (desk.at / 'out/new').write_bytes(b'new')
    desk.host.cli('sync', desk.at)
    assert desk.host.status(desk.at)['localOnly']['files'] == 0
    assert desk.site.bucket().body(f'{desk.prefix}out/new') == b'new'


def test_many_at_once(desk: Desk) -> None:
    """Threads that make, read, rename and remove in one directory."""
    directory = desk.at / 'd'
    directory.mkdir()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for index in range(60):
                path = directory / f'{number}-{index}'
                path.write_bytes(b'%d' % index)
                assert path.read_bytes() == b'%d' % index
                if index % 3 == 1:
                    path.rename(directory / f'{number}+{index}')
                elif index % 3 == 2:
                    path.unlink()
        except BaseException as error:
            failures.append(error)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    expected = {f'{number}{"-" if index % 3 == 0 else "+"}{index}' for number in range(4) for index in range(60) if index % 3 < 2}
    assert set(os.listdir(directory)) == expected
    desk.again()
    assert set(os.listdir(directory)) == expected
    assert all((directory / name).read_bytes() == name[2:].encode() and stat.S_ISREG((directory / name).stat().st_mode) for name in expected)


def test_a_file_is_uploaded_once_it_is_closed(desk: Desk) -> None:
    """Where the policy says so."""
    desk.again('--sync-every', '0')
    (desk.at / 'd').mkdir()
    make(desk.at / 'd', 5)
    eventually('all are in the bucket', lambda: desk.host.status(desk.at)['pending']['files'] == 0)
    assert [desk.site.bucket().body(f'{desk.prefix}d/{number}') for number in range(5)] == [b'x' * number for number in range(5)]


def test_extended_attributes_are_the_files_own(desk: Desk) -> None:
    """Where the mount has them: the kernel asks for one before each first write, and none is there."""
    desk.again('-o', 'xattrs')
    directory = desk.at / 'd'
    directory.mkdir()
    make(directory, 20)
    fd = os.open(directory / 'new', os.O_RDWR | os.O_CREAT)
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        os.getxattr(fd, 'user.a')
    os.write(fd, b'text')
    os.setxattr(fd, 'user.a', b'value')
    assert os.listxattr(fd) == ['user.a'] and os.getxattr(directory / 'new', 'user.a') == b'value'
    os.close(fd)
    assert desk.handled('create') == []
    assert [(directory / f'{number}').read_bytes() for number in range(20)] == [b'x' * number for number in range(20)]
