"""rsync and tar with everything they can keep: links, holes, owners, times, attributes."""
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.model import observe
from tests.mount.test_programs import a_small_tree
from tests.programs.home import Home

MOUNT_OPTIONS = ('-o', 'xattrs')


@pytest.fixture
def source(outside: Path) -> Path:
    """A tree with attributes on a file, a directory and a hard link; large ones too."""
    root = outside / 'source'
    root.mkdir()
    a_small_tree(root)
    try:
        os.setxattr(root / 'script', 'user.comment', b'\0 binary \xff')
    except OSError as error:
        pytest.skip(f'the local disk has no extended attributes: {error}')
    os.setxattr(root / 'sub/f', 'user.large', b'l' * 3000)
    os.setxattr(root / 'sub/empty', 'user.of.a.directory', b'')
    if os.geteuid() == 0:
        os.chown(root / 'script', 1234, 5678)
        os.chown(root / 'dangling', 1234, 5678, follow_symlinks=False)
    (root / 'script').chmod(0o4750)
    return root


def attributes(root: Path) -> dict[str, dict[str, bytes]]:
    return {str(path.relative_to(root)): {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
            for path in root.rglob('*') if (names := [n for n in os.listxattr(path, follow_symlinks=False) if n.startswith('user.')])}


def assert_equal(copy: Path, source: Path) -> None:
    assert observe.differences(observe.snapshot(os.fsencode(copy)), observe.snapshot(os.fsencode(source))) == []
    assert attributes(copy) == attributes(source)


def test_rsync(home: Home, source: Path, outside: Path, needs: Callable[..., None]) -> None:
    """rsync -aHAXS there and back: nothing is left to do, neither at once nor elsewhere, by times or by checksums."""
    needs('rsync')
    home.run('rsync', '-aHAXS', f'{source}/', 'copy/')
    assert home.run('rsync', '-aHAXSi', '--delete', f'{source}/', 'copy/') == ''
    home.move()
    assert home.run('rsync', '-aHAXSic', '--delete', f'{source}/', 'copy/') == ''
    home.run('rsync', '-aHAXS', 'copy/', f'{outside}/back/')
    assert_equal(outside / 'back', source)
    (source / 'sub/f').write_bytes(b'changed')
    (source / 'soft').unlink()
    home.run('rsync', '-aHAXS', '--inplace', '--delete', f'{source}/', 'copy/')
    assert_equal(home.at / 'copy', source)
    home.move()
    assert_equal(home.at / 'copy', source)


def test_tar(home: Home, source: Path, outside: Path) -> None:
    """tar --xattrs packed on the mount, and unpacked there and, on the next host, outside: equal trees."""
    flags = ('--xattrs', '--xattrs-include=user.*', '--numeric-owner')
    home.run('tar', *flags, '-cSpf', 'packed.tar', '-C', source, '.')
    (home.at / 'unpacked').mkdir()
    home.run('tar', *flags, '-xpf', 'packed.tar', '-C', 'unpacked')
    assert_equal(home.at / 'unpacked', source)
    home.move()
    assert attributes(home.at / 'unpacked') == attributes(source)
    (outside / 'again').mkdir()
    home.run('tar', *flags, '-cSpf', 'again.tar', '-C', 'unpacked', '.')
    home.run('tar', *flags, '-xpf', 'again.tar', '-C', outside / 'again')
    assert attributes(outside / 'again') == attributes(source)
    home.run('tar', '--compare', *flags, '-f', 'packed.tar', '-C', 'unpacked')
