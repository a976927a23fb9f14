"""Extended attributes: with `-o xattrs` those of ext4; without, an honest ENOTSUP.

Owns nothing. They are an option because the kernel asks for one at each first write to a file (the cost is in the README).
"""
from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.model.hosts import IS_DOUBLE, Site

MOUNT_OPTIONS = ('-o', 'xattrs')


def fails_with(code: int, call) -> None:
    with pytest.raises(OSError) as raised:
        call()
    assert raised.value.errno == code


def test_user_attributes_are_kept(disk: Path) -> None:
    """Set, read, list, replace, remove; binary values; on files and directories."""
    (disk / 'f').touch()
    (disk / 'd').mkdir()
    for name in ('f', 'd'):
        os.setxattr(disk / name, 'user.a', b'\0\xff binary')
        os.setxattr(disk / name, 'user.ü', b'')
        assert os.getxattr(disk / name, 'user.a') == b'\0\xff binary'
        assert sorted(n for n in os.listxattr(disk / name) if n.startswith('user.')) == ['user.a', 'user.ü']
        os.setxattr(disk / name, 'user.a', b'new', os.XATTR_REPLACE)
        assert os.getxattr(disk / name, 'user.a') == b'new'
        os.removexattr(disk / name, 'user.a')
        fails_with(errno.ENODATA, lambda n=name: os.getxattr(disk / n, 'user.a'))


def test_errors_of_attributes(disk: Path) -> None:
    """Creating twice, replacing nothing, names and values too long, a namespace that does not exist."""
    (disk / 'f').touch()
    os.setxattr(disk / 'f', 'user.a', b'x')
    fails_with(errno.EEXIST, lambda: os.setxattr(disk / 'f', 'user.a', b'y', os.XATTR_CREATE))
    fails_with(errno.ENODATA, lambda: os.setxattr(disk / 'f', 'user.b', b'y', os.XATTR_REPLACE))
    fails_with(errno.ENODATA, lambda: os.removexattr(disk / 'f', 'user.b'))
    fails_with(errno.ERANGE, lambda: os.setxattr(disk / 'f', 'user.' + 'n' * 251, b'x'))
    fails_with(errno.E2BIG, lambda: os.setxattr(disk / 'f', 'user.big', b'x' * 65537))
    fails_with(errno.EOPNOTSUPP, lambda: os.setxattr(disk / 'f', 'nonsense.a', b'x'))
    assert os.getxattr(disk / 'f', 'user.a') == b'x'


def test_attributes_travel_with_rename_and_link(disk: Path) -> None:
    """They belong to the file, not to its name."""
    (disk / 'f').touch()
    os.setxattr(disk / 'f', 'user.a', b'x')
    os.link(disk / 'f', disk / 'g')
    os.rename(disk / 'f', disk / 'h')
    assert os.getxattr(disk / 'g', 'user.a') == os.getxattr(disk / 'h', 'user.a') == b'x'


@pytest.mark.skipif(IS_DOUBLE, reason='says what a mount does, not what any disk does')
def test_attributes_reach_another_host(site: Site) -> None:
    """Attributes of files and directories are there after a mount from another state directory, large ones too."""
    host, at = site.host(), site.mount_point()
    host.mount('x', at, create=True, options=MOUNT_OPTIONS)
    (at / 'f').write_text('x')
    (at / 'd').mkdir()
    os.setxattr(at / 'f', 'user.a', b'\0\xff')
    os.setxattr(at / 'f', 'user.large', b'l' * 3000)
    os.setxattr(at / 'd', 'user.b', b'on a directory')
    host.unmount(at)
    other = site.host()
    other.mount('x', at, options=MOUNT_OPTIONS)
    try:
        assert os.getxattr(at / 'f', 'user.a') == b'\0\xff'
        assert os.getxattr(at / 'f', 'user.large') == b'l' * 3000
        assert os.getxattr(at / 'd', 'user.b') == b'on a directory'
        os.removexattr(at / 'f', 'user.a')
    finally:
        other.unmount(at)
    other.mount('x', at, options=MOUNT_OPTIONS)
    try:
        assert [n for n in os.listxattr(at / 'f') if n.startswith('user.')] == ['user.large']
    finally:
        other.unmount(at)


@pytest.mark.skipif(IS_DOUBLE, reason='says what a mount does, not what any disk does')
def test_without_the_option_they_are_refused(site: Site) -> None:
    """No attribute is accepted and dropped: setting says ENOTSUP, and listing gives none."""
    host, at = site.host(), site.mount_point()
    host.mount('plain', at, create=True)
    try:
        (at / 'f').write_text('x')
        fails_with(errno.ENOTSUP, lambda: os.setxattr(at / 'f', 'user.a', b'x'))
        fails_with(errno.ENOTSUP, lambda: os.getxattr(at / 'f', 'user.a'))
        try:
            assert os.listxattr(at / 'f') == []
        except OSError as e:
            assert e.errno == errno.ENOTSUP
    finally:
        host.unmount(at)
