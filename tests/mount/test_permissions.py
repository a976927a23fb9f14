"""Who may do what on a mount: ownership, modes and the clearing of setuid bits, played by an unprivileged user on a mount of root's.

Owns nothing. It must not know ctxfs: the kernel enforces modes (default_permissions), the mount has to tell them right. With
CTXFS_TEST_DOUBLE=1 all of it passes on a local disk.
"""
from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.model.hosts import IS_DOUBLE
from tests.model.processes import NOBODY, in_child

MOUNT_OPTIONS = ('-o', 'allow_other')

pytestmark = [pytest.mark.needs_root, pytest.mark.skipif(os.geteuid() != 0, reason='needs root to be two users')]


def errno_of(call: Callable[[], object]) -> str | None:
    try:
        call()
    except OSError as e:
        return errno.errorcode[e.errno or 0]
    return None


def as_nobody(directory: Path, *calls: Callable[[], object]) -> list[str | None]:
    """The errno's name, or None, of each call, made by an unprivileged user whose working directory is `directory`."""
    return in_child(lambda: [errno_of(call) for call in calls], directory, NOBODY)


def test_modes_are_enforced_for_other_users(disk: Path) -> None:
    """Reading, writing, listing and entering need the bits that they need on a local disk."""
    disk.chmod(0o755)
    for name, mode in (('readable', 0o644), ('private', 0o600), ('writable', 0o666)):
        (disk / name).write_text(name)
        (disk / name).chmod(mode)
    for name, mode in (('open', 0o755), ('closed', 0o700), ('unlisted', 0o711)):
        (disk / name).mkdir()
        (disk / name / 'f').write_text('x')
        (disk / name).chmod(mode)
    got = as_nobody(
        disk, lambda: Path('readable').read_text(), lambda: Path('private').read_text(), lambda: Path('readable').write_text('y'),
        lambda: Path('writable').write_text('y'), lambda: os.listdir('open'), lambda: os.listdir('closed'), lambda: os.stat('closed/f'),
        lambda: os.listdir('unlisted'), lambda: Path('unlisted/f').read_text(), lambda: Path('new').touch(), lambda: os.unlink('writable'),
        lambda: os.rename('readable', 'open/x'), lambda: os.chmod('writable', 0o777), lambda: os.chown('writable', NOBODY, NOBODY),
        lambda: os.utime('readable', (1, 1)), lambda: os.utime('writable'), lambda: os.truncate('readable', 0))
    assert got == [None, 'EACCES', 'EACCES', None, None, 'EACCES', 'EACCES', 'EACCES', None, 'EACCES', 'EACCES', 'EACCES', 'EPERM', 'EPERM',
                   'EPERM', None, 'EACCES']


def test_new_files_belong_to_their_creator(disk: Path) -> None:
    """What an unprivileged user makes is his, whoever mounted."""
    disk.chmod(0o777)
    assert as_nobody(disk, lambda: Path('f').touch(), lambda: os.mkdir('d'), lambda: os.symlink('x', 'l'), lambda: os.mkfifo('p')) == [None] * 4
    assert {(os.lstat(disk / n).st_uid, os.lstat(disk / n).st_gid) for n in 'fdlp'} == {(NOBODY, NOBODY)}


def test_sticky_directory_protects_the_files_of_others(disk: Path) -> None:
    """In a directory like /tmp one user cannot remove or rename another's files."""
    disk.chmod(0o1777)
    (disk / 'roots').write_text('x')
    assert as_nobody(disk, lambda: Path('mine').touch(), lambda: os.unlink('roots'), lambda: os.rename('roots', 'y'), lambda: os.unlink('mine')) == [
        None, 'EPERM', 'EPERM', None]
    assert (disk / 'roots').exists()


@pytest.mark.parametrize('change', ['write', 'truncate'])
def test_writing_clears_setuid_and_setgid(change: str, disk: Path) -> None:
    """An unprivileged write to a setuid program takes its bits away, at once and for good."""
    (disk / 'f').write_bytes(b'x' * 100)
    os.chown(disk / 'f', NOBODY, NOBODY)
    os.chmod(disk / 'f', 0o6777)

    def act() -> int:
        fd = os.open('f', os.O_RDWR)
        os.write(fd, b'y') if change == 'write' else os.ftruncate(fd, 10)
        seen = stat.S_IMODE(os.fstat(fd).st_mode)
        os.close(fd)
        return seen

    assert in_child(act, disk, NOBODY) == 0o777
    assert stat.S_IMODE(os.stat(disk / 'f').st_mode) == 0o777


def test_chown_clears_setuid_and_setgid(disk: Path) -> None:
    """Giving a setuid program to another user or group takes the bits away; a directory keeps them."""
    (disk / 'f').touch()
    (disk / 'd').mkdir()
    os.chmod(disk / 'f', 0o6755)
    os.chmod(disk / 'd', 0o2755)
    os.chown(disk / 'f', NOBODY, -1)
    os.chown(disk / 'd', NOBODY, -1)
    assert stat.S_IMODE(os.stat(disk / 'f').st_mode) == 0o755
    assert stat.S_IMODE(os.stat(disk / 'd').st_mode) == 0o2755


def test_setgid_needs_membership(disk: Path) -> None:
    """chmod g+s by an owner who is not in the file's group leaves the bit off, without an error."""
    (disk / 'f').touch()
    os.chown(disk / 'f', NOBODY, 0)
    assert as_nobody(disk, lambda: os.chmod('f', 0o2755)) == [None]
    assert stat.S_IMODE(os.stat(disk / 'f').st_mode) == 0o755


def test_only_root_makes_devices(disk: Path) -> None:
    """mknod of a device by an unprivileged user is EPERM."""
    disk.chmod(0o777)
    assert as_nobody(disk, lambda: os.mknod('null', stat.S_IFCHR | 0o666, os.makedev(1, 3))) == ['EPERM']


def test_read_only_file_can_be_created_open_for_writing(disk: Path) -> None:
    """git and tar create files of mode 0444 open for writing: the new handle writes although the mode forbids it."""
    disk.chmod(0o777)

    def make() -> str:
        fd = os.open('f', os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o444)
        os.write(fd, b'written')
        os.close(fd)
        return Path('f').read_text()

    assert in_child(make, disk, NOBODY) == 'written'
    assert as_nobody(disk, lambda: os.open('f', os.O_WRONLY), lambda: os.chmod('f', 0)) == ['EACCES', None]
    assert as_nobody(disk, lambda: os.open('f', os.O_RDONLY)) == ['EACCES']


@pytest.mark.skipif(IS_DOUBLE, reason='says what a mount does, not what any disk does')
def test_without_allow_other_nobody_else_gets_in(site, tmp_path: Path) -> None:
    """A mount without -o allow_other is for the user who made it alone, whatever the modes say."""
    host, at = site.host(), site.mount_point()
    host.mount('alone', at, create=True)
    try:
        (at / 'f').write_text('x')
        (at / 'f').chmod(0o777)
        directory = os.open(at.parent, os.O_RDONLY)
        try:
            got = in_child(lambda: errno_of(lambda: os.open(f'{at.name}/f', os.O_RDONLY, dir_fd=directory)), Path('/'), NOBODY)
        finally:
            os.close(directory)
        assert got == 'EACCES'
    finally:
        host.unmount(at)
