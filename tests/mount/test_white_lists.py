"""White lists on a real mount: what is outside stays on this host, whole and usable, and never costs a request.

Owns what a user sees of bwList and deletePolicy: names that cross the boundary, remounts, other white lists than before. The matching of
single paths is tests/unit/test_rules.py's.
"""
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.crash.watch import eventually, is_running
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingSite, site_maker

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no bucket'), pytest.mark.timeout(150)]

POLICY = {'bwList': {'whiteLists': [{'path': '/src', 'excludePaths': ['/node_modules']}, {'path': '/config'}]}}


class Disk:
    """A context `c` under a policy, at one mount point of the first of any number of hosts."""

    def __init__(self, site: MountingSite, work: Path) -> None:
        self.site = site
        self.at = site.mount_point()
        self.host: Any = site.host()
        self._policy = work / 'policy.json'

    def mount(self, policy: dict[str, Any] | None = None, *, host: Any = None, env: dict[str, str] | None = None) -> Path:
        policy = POLICY if policy is None else policy
        self._policy.write_text(json.dumps(policy))
        clock = ('--sync-every', 'unmount') if policy.get('uploadPolicy', {}).get('autoUpload', True) else ()
        (host or self.host).mount('c', self.at, create=True, options=(*clock, '--policy', str(self._policy)), env=env)
        return self.at

    def unmount(self, host: Any = None) -> None:
        (host or self.host).unmount(self.at)

    def sync(self) -> None:
        self.host.cli('sync', str(self.at))

    def keys(self) -> list[str]:
        """The user's objects, without markers of directories."""
        prefix = f'contexts/{self.site.context_id("c")}/'
        found = [key.removeprefix(prefix) for key in self.site.bucket().keys(prefix)]
        return sorted(key for key in found if not key.startswith('.ctxfs/') and not key.endswith('/'))

    def status(self) -> dict[str, Any]:
        return self.host.status(self.at)


@pytest.fixture(params=['file', 's3'])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    (tmp_path / 'site').mkdir()
    return Disk(site_maker(request.param, request)(tmp_path / 'site'), tmp_path)


@pytest.fixture
def file_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    (tmp_path / 'site').mkdir()
    return Disk(site_maker('file', request)(tmp_path / 'site'), tmp_path)


def write(root: Path, *paths: str) -> None:
    """Files whose content is their path."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob('*')) if path.is_file()}


def test_only_white_listed_paths_reach_the_bucket_and_the_rest_survives_remounts(disk: Disk) -> None:
    """Local-only files are counted, not pending, and there again after a remount."""
    at = disk.mount()
    write(at, 'src/a.py', 'src/node_modules/x.js', 'config/c.toml', 'cache/big', 'srcx/no')
    os.symlink('a.py', at / 'src/link')
    os.symlink('a.py', at / 'cache/link')
    disk.sync()
    assert disk.keys() == ['config/c.toml', 'src/a.py', 'src/link']
    status = disk.status()
    assert status['pending']['files'] == 0 and status['localOnly']['files'] == 4
    assert status['localOnly']['bytes'] == len('src/node_modules/x.js' + 'cache/big' + 'srcx/no' + 'a.py')
    before = tree(at)
    disk.unmount()
    disk.mount()
    assert tree(at) == before and os.readlink(at / 'cache/link') == 'a.py'
    disk.unmount()


def test_another_host_sees_only_what_is_synced(disk: Disk) -> None:
    """And its own local-only files are its own."""
    at = disk.mount()
    write(at, 'src/a.py', 'cache/big')
    disk.unmount()
    other = disk.site.host()
    disk.mount(host=other)
    assert tree(at) == {'src/a.py': 'src/a.py'}
    disk.unmount(other)


def test_what_others_keep_outside_the_white_lists_is_not_shown_and_not_touched(disk: Disk) -> None:
    """An object there, a local file of the same name here: two different things."""
    at = disk.mount({})
    write(at, 'cache/x', 'src/a')
    disk.unmount()
    other = disk.site.host()
    disk.mount(host=other)
    assert tree(at) == {'src/a': 'src/a'}
    write(at, 'cache/mine')
    (at / 'cache/x').write_text('mine')
    disk.unmount(other)
    assert disk.keys() == ['cache/x', 'src/a']
    disk.mount({})
    assert (at / 'cache/x').read_text() == 'cache/x'
    disk.unmount()


def test_a_file_renamed_into_a_white_list_is_uploaded(disk: Disk) -> None:
    """With what was written to it while it was local."""
    at = disk.mount()
    write(at, 'cache/f', 'cache/dir/g', 'src/x')
    disk.sync()
    os.rename(at / 'cache/f', at / 'src/f')
    os.rename(at / 'cache/dir', at / 'src/dir')
    with open(at / 'src/dir/g', 'a') as file:
        file.write(' more')
    disk.sync()
    assert disk.keys() == ['src/dir/g', 'src/f', 'src/x']
    assert disk.status()['localOnly']['files'] == 0
    disk.unmount()
    other = disk.site.host()
    disk.mount(host=other)
    assert tree(at) == {'src/dir/g': 'cache/dir/g more', 'src/f': 'cache/f', 'src/x': 'src/x'}
    disk.unmount(other)


def test_a_file_renamed_out_of_the_white_lists_stays_here_and_goes_from_the_bucket(disk: Disk) -> None:
    """Also where its bytes were only in the bucket."""
    at = disk.mount()
    write(at, 'src/f', 'src/dir/g', 'src/stays')
    disk.unmount()
    shutil.rmtree(Path(disk.host.state_dir))        # another host, as far as bytes are concerned
    disk.mount()
    os.rename(at / 'src/f', at / 'f')
    os.rename(at / 'src/dir', at / 'dir')
    assert (at / 'f').read_text() == 'src/f'
    disk.sync()
    assert disk.keys() == ['src/stays']
    assert disk.status()['pending']['files'] == 0 and disk.status()['localOnly']['files'] == 2
    disk.unmount()
    disk.mount()
    assert tree(at) == {'f': 'src/f', 'dir/g': 'src/dir/g', 'src/stays': 'src/stays'}
    disk.unmount()


def test_there_and_back_again_changes_nothing_in_the_bucket(disk: Disk) -> None:
    """A directory out and in between two uploads."""
    at = disk.mount()
    write(at, 'src/dir/g')
    disk.sync()
    os.rename(at / 'src/dir', at / 'away')
    os.rename(at / 'away', at / 'src/dir')
    disk.sync()
    assert disk.keys() == ['src/dir/g'] and tree(at) == {'src/dir/g': 'src/dir/g'}
    disk.unmount()


def test_a_hard_link_across_the_boundary_is_one_file_with_one_object(disk: Disk) -> None:
    """Writes through either name are uploaded under the synced one; the local name survives the synced one's removal."""
    at = disk.mount()
    write(at, 'src/a')
    disk.sync()
    (at / 'cache').mkdir()
    os.link(at / 'src/a', at / 'cache/b')
    (at / 'cache/b').write_text('through the local name')
    disk.sync()
    assert disk.keys() == ['src/a']
    assert disk.site.bucket().body(f'contexts/{disk.site.context_id("c")}/src/a') == b'through the local name'
    disk.unmount()
    disk.mount()
    assert os.stat(at / 'src/a').st_ino == os.stat(at / 'cache/b').st_ino
    os.unlink(at / 'src/a')
    disk.sync()
    assert disk.keys() == [] and (at / 'cache/b').read_text() == 'through the local name'
    os.link(at / 'cache/b', at / 'src/again')
    disk.sync()
    assert disk.keys() == ['src/again']
    disk.unmount()


def test_a_local_name_keeps_its_bytes_when_the_synced_one_is_removed_remotely(disk: Disk) -> None:
    """The object goes; what this host keeps does not."""
    at = disk.mount()
    write(at, 'src/a', 'src/other')
    (at / 'cache').mkdir()
    os.link(at / 'src/a', at / 'cache/b')
    disk.sync()
    disk.site.bucket().delete(f'contexts/{disk.site.context_id("c")}/src/a')
    disk.host.cli('sync', str(at), '--mode', 'download')
    assert not (at / 'src/a').exists() and (at / 'cache/b').read_text() == 'src/a'
    disk.sync()
    assert disk.keys() == ['src/other']
    disk.unmount()


def test_a_local_name_follows_when_the_synced_one_is_changed_remotely(disk: Disk) -> None:
    """It is one file."""
    at = disk.mount()
    write(at, 'src/a')
    (at / 'cache').mkdir()
    os.link(at / 'src/a', at / 'cache/b')
    disk.sync()
    disk.site.bucket().put(f'contexts/{disk.site.context_id("c")}/src/a', b'changed elsewhere')
    disk.host.cli('sync', str(at), '--mode', 'download')
    assert (at / 'cache/b').read_text() == (at / 'src/a').read_text() == 'changed elsewhere'
    disk.sync()
    disk.unmount()
    disk.mount()
    assert (at / 'cache/b').read_text() == 'changed elsewhere'
    assert disk.site.bucket().body(f'contexts/{disk.site.context_id("c")}/src/a') == b'changed elsewhere'
    disk.unmount()


def test_fewer_white_lists_remove_nothing_from_the_bucket(disk: Disk) -> None:
    """What is not synced any more is not shown; what was changed and not uploaded stays on this host."""
    at = disk.mount({'uploadPolicy': {'autoUpload': False}})
    write(at, 'src/a', 'data/clean', 'data/changed', 'data/moved')
    disk.sync()
    (at / 'data/changed').write_text('not uploaded')
    os.rename(at / 'data/moved', at / 'data/renamed')
    disk.host.run('fusermount3', '-u', at)
    disk.host.cli('wait', 'c', check=False)
    disk.mount()
    assert tree(at) == {'src/a': 'src/a', 'data/changed': 'not uploaded', 'data/renamed': 'data/moved'}
    disk.sync()
    assert disk.keys() == ['data/changed', 'data/clean', 'data/moved', 'src/a']
    disk.unmount()


def test_more_white_lists_upload_what_was_local_and_show_what_is_there(disk: Disk) -> None:
    """A local file and an object of one name: both are kept."""
    at = disk.mount({})
    write(at, 'data/theirs', 'data/both')
    disk.unmount()
    other = disk.site.host()
    disk.mount(host=other)
    write(at, 'data/mine')
    (at / 'data/both').write_text('mine')
    disk.unmount(other)
    disk.mount({}, host=other)
    other.cli('sync', str(at))
    found = tree(at)
    assert found['data/theirs'] == 'data/theirs' and found['data/mine'] == 'data/mine' and found['data/both'] == 'data/both'
    assert [text for name, text in found.items() if name.startswith('data/both.conflict-')] == ['mine']
    assert {'data/theirs', 'data/mine', 'data/both'} <= set(disk.keys())
    disk.unmount(other)


def test_a_kept_object_is_hidden_here_and_stays_in_the_bucket(disk: Disk) -> None:
    """deletePolicy.syncLocalFile false: a removed file stays removed here, also after a remount, and other hosts have it."""
    policy = {'deletePolicy': {'syncLocalFile': False}}
    at = disk.mount(policy)
    write(at, 'gone', 'stays', 'old')
    disk.sync()
    os.unlink(at / 'gone')
    os.rename(at / 'old', at / 'new')
    disk.sync()
    assert disk.keys() == ['gone', 'new', 'old', 'stays'] and disk.status()['pending']['files'] == 0
    disk.host.cli('sync', str(at), '--mode', 'download')
    assert set(tree(at)) == {'stays', 'new'}
    disk.unmount()
    disk.mount(policy)
    assert set(tree(at)) == {'stays', 'new'}
    (at / 'gone').write_text('made anew')
    disk.sync()
    assert disk.site.bucket().body(f'contexts/{disk.site.context_id("c")}/gone') == b'made anew'
    assert disk.status()['conflicts'] == 0
    disk.unmount()
    other = disk.site.host()
    disk.mount(policy, host=other)
    assert set(tree(at)) == {'gone', 'stays', 'new', 'old'}
    disk.unmount(other)


def test_a_kill_while_bytes_are_brought_here_loses_nothing(file_disk: Disk) -> None:
    """The file is here and its object still wanted: the next mount goes on."""
    disk = file_disk
    at = disk.mount()
    write(at, 'src/f')
    disk.unmount()
    disk.mount(env={'CTXFS_CRASH_POINT': 'localise-after-stage'})
    pid = disk.host.pid(at)
    os.rename(at / 'src/f', at / 'f')
    disk.host.run('fusermount3', '-u', at)
    eventually('the daemon dies', lambda: not is_running(pid))
    disk.mount()
    assert tree(at) == {'f': 'src/f'}
    disk.unmount()
    assert disk.keys() == []


def test_a_program_that_renames_directories_outside_costs_no_journal(file_disk: Disk) -> None:
    """What npm does in node_modules: nothing is pending after it."""
    disk = file_disk
    at = disk.mount()
    write(at, 'src/node_modules/.p-1/index.js', 'src/node_modules/.p-1/lib/a.js')
    disk.sync()
    os.rename(at / 'src/node_modules/.p-1', at / 'src/node_modules/p')
    (at / 'src/node_modules/p/index.js').write_text('changed')
    os.chmod(at / 'src/node_modules/p/lib/a.js', 0o600)
    assert disk.status()['pending']['files'] == 0
    disk.unmount()


def test_local_only_files_may_be_larger_than_the_cache(file_disk: Disk, tmp_path: Path) -> None:
    """The bound is for what waits for its upload; the disk bounds the rest."""
    disk = file_disk
    policy = tmp_path / 'p.json'
    policy.write_text(json.dumps(POLICY))
    disk.host.mount('c', disk.at, create=True, options=('--policy', str(policy), '--cache-size', '4M'))
    for number in range(3):
        (disk.at / f'local{number}').write_bytes(os.urandom(3 << 20))
    (disk.at / 'src').mkdir()
    (disk.at / 'src/small').write_bytes(b'x' * 100_000)
    assert disk.status()['localOnly'] == {'files': 3, 'bytes': 9 << 20}
    disk.unmount()
