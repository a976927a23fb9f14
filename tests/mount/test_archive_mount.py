"""Archive mode on real mounts: what unzip makes of the archives, the refusal of the other mode, and the modes of a context."""
from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.crash.watch import eventually
from tests.model.hosts import IS_DOUBLE, Site
from tests.mount.harness import CommandFailed
from tests.mount.sites import site_maker

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no archives'), pytest.mark.skipif(not shutil.which('unzip'), reason='no unzip')]


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Site:
    return site_maker('file', request)(tmp_path)


def policy(tmp_path: Path, mode: str = 'Archive') -> tuple[str, str, str, str]:
    """Options of a mount in that mode, which uploads when it is told."""
    file = tmp_path / f'{mode}.json'
    file.write_text(json.dumps({'uploadPolicy': {'uploadMode': mode}}))
    return '--sync-every', 'unmount', '--policy', str(file)


def attributes(path: Path) -> tuple[Any, ...]:
    found = path.lstat()
    what = os.readlink(path) if path.is_symlink() else path.read_bytes()
    # unzip sets no times of symlinks
    return stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode), 0 if path.is_symlink() else int(found.st_mtime), what


def tree(root: Path) -> dict[str, Any]:
    return {str(path.relative_to(root)): attributes(path) for path in root.rglob('*') if path.is_symlink() or path.is_file()}


def archives(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob('store/contexts/*/.ctxfs/archive/*.zip'))


def unpack(found: list[Path], into: Path) -> None:
    """As the documentation says: in order, removing first what each says is deleted."""
    into.mkdir()
    for archive in found:
        deleted = subprocess.run(['unzip', '-p', archive, '.ctxfs/deleted'], capture_output=True, check=False).stdout
        for name in filter(None, deleted.split(b'\0')):
            path = os.path.join(os.fsencode(into), name)
            if name.endswith(b'/'):
                if os.path.isdir(path) and not os.listdir(path):
                    os.rmdir(path)
            elif os.path.lexists(path):
                os.unlink(path)
        assert subprocess.run(['unzip', '-tq', archive], capture_output=True, check=False).returncode == 0
        done = subprocess.run(['unzip', '-oqK^', archive, '-x', '.ctxfs/*', '-d', into], capture_output=True, check=False)
        assert done.returncode in (0, 11), done     # 11: nothing but what is left out


def test_unzip_alone_gives_the_tree_back(site: Site, tmp_path: Path) -> None:
    """Contents, modes, times, symlinks, names in any language; after changes, renames and removals, too."""
    host, at = site.host(), site.mount_point()
    host.mount('c', at, create=True, options=policy(tmp_path))
    for number in range(30):
        (at / f'd{number % 3}').mkdir(exist_ok=True)
        (at / f'd{number % 3}/f{number}').write_text(f'{number}\n' * 200)
    (at / 'ünï ☃').write_bytes(b'x')
    (at / 'none').write_bytes(b'')
    (at / 'noise').write_bytes(os.urandom(50_000))
    os.symlink('d0/f0', at / 'link')
    os.chmod(at / 'd0/f0', 0o750)
    os.utime(at / 'd0/f3', (1_000_000_000, 1_100_000_001))
    host.cli('sync', at)
    (at / 'd1').rename(at / 'moved')
    (at / 'd2/f2').unlink()
    shutil.rmtree(at / 'd0')
    (at / 'd2/f5').write_text('changed')
    (at / 'noise').rename(at / 'd2/noise')
    host.cli('sync', at)
    expected = tree(at)
    host.unmount(at)
    assert len(archives(tmp_path)) == 2
    alone, = tmp_path.glob('store/contexts/*/.ctxfs/archive/alone/*.json')
    assert alone.read_text() == '{"version":1,"commits":[1,2]}'
    unpack(archives(tmp_path), tmp_path / 'out')
    assert tree(tmp_path / 'out') == expected
    assert not (tmp_path / 'out/d0').exists() or not list((tmp_path / 'out/d0').iterdir())


def test_tail_follows_a_member_that_another_host_appends_to(site: Site, tmp_path: Path) -> None:
    """`tail -F` goes on as on a local disk: each line once."""
    writer, reader, at, there = site.host(), site.host(), site.mount_point(), site.mount_point()
    writer.mount('c', at, create=True, options=policy(tmp_path))
    lines = [b'line %d\n' % number for number in range(300)]
    (at / 'log').write_bytes(b''.join(lines[:100]))
    writer.cli('sync', at)
    reader.mount('c', there, options=('--poll-every', '1s'))
    out = tmp_path / 'out'
    with open(out, 'wb') as to:
        tail = subprocess.Popen(['tail', '-n', '2', '-s', '0.1', '-F', there / 'log'], stdout=to)
    try:
        eventually('the last two lines', lambda: out.read_bytes() == b''.join(lines[98:100]))
        for count in (101, 300):
            with open(at / 'log', 'ab') as log:
                log.write(b''.join(lines[100 if count == 101 else 101:count]))
            writer.cli('sync', at)
            eventually(f'{count} lines', lambda: out.read_bytes() == b''.join(lines[98:count]))  # noqa: B023
            assert (there / 'log').read_bytes() == b''.join(lines[:count])
    finally:
        tail.terminate()
        tail.wait()
    writer.unmount(at)
    reader.unmount(there)


def test_a_context_keeps_its_mode(site: Site, tmp_path: Path) -> None:
    """Mounting with the other one is refused, with what to do; in both directions."""
    host, at = site.host(), site.mount_point()
    for name, mode, other in (('archived', 'Archive', 'File'), ('filed', 'File', 'Archive')):
        host.mount(name, at, create=True, options=policy(tmp_path, mode))
        (at / 'f').write_bytes(b'1')
        host.unmount(at)
        with pytest.raises(CommandFailed, match=f'is kept in {mode} mode') as refused:
            host.mount(name, at, options=policy(tmp_path, other))
        assert f'ctxfs context copy {name} NEW --create --mode {other.lower()}' in str(refused.value)
        host.mount(name, at)        # without a policy it has the one that it was given
        assert (at / 'f').read_bytes() == b'1'
        host.unmount(at)
