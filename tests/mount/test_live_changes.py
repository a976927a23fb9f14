"""What others do to the bucket appears on a mount while programs use it: in listings, in lookups, in open files.

Owns what the kernel and programs see of a remote change; what two hosts see of each other is test_two_hosts.py's. The change is made behind
ctxfs's back, by the means of another tool.
"""
from __future__ import annotations

import errno
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.crash.watch import eventually
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import Bucket, MountingSite, site_maker

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no bucket'), pytest.mark.timeout(150)]

#: changes of a server's bucket are seen by polling; a directory is watched, so there the clock must not be what brings them
POLL = {'s3': '1s', 'file': '1h'}


class Live:
    """A mounted context and the bucket behind it."""

    def __init__(self, kind: str, site: MountingSite) -> None:
        self.kind = kind
        self.site = site
        self.host: Any = site.host()
        self.at = site.mount_point()
        self.host.create_context('c')
        self.prefix = f'contexts/{site.context_id("c")}/'
        self.bucket: Bucket = site.bucket()

    def put(self, key: str, body: bytes, metadata: dict[str, str] | None = None) -> None:
        self.bucket.put(self.prefix + key, body, metadata)

    def delete(self, key: str) -> None:
        self.bucket.delete(self.prefix + key)

    def mount(self, *options: str) -> Path:
        self.host.mount('c', self.at, options=('--poll-every', POLL[self.kind], *options))
        self.wait_listed()
        return self.at

    def wait_listed(self) -> None:
        eventually('the context is listed', lambda: self.host.status(self.at)['remote']['isComplete'])


@pytest.fixture(params=['file', 's3'])
def live(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    made = Live(request.param, site_maker(request.param, request)(tmp_path))
    yield made
    made.host.unmount(made.at)


def test_a_new_object_appears_where_its_absence_was_known(live: Live) -> None:
    """A name that was looked up in vain, in a directory that was listed, is there soon after somebody put it; its directory's time says so."""
    live.put('d/old', b'1')
    at = live.mount()
    assert os.listdir(at / 'd') == ['old']
    assert not (at / 'd/new').exists()
    before = (at / 'd').stat().st_mtime_ns
    live.put('d/new', b'fresh')
    eventually('the file is there', (at / 'd/new').exists)
    assert (at / 'd/new').read_bytes() == b'fresh'
    assert sorted(os.listdir(at / 'd')) == ['new', 'old']
    assert (at / 'd').stat().st_mtime_ns > before


def test_a_deleted_object_goes_and_so_does_a_directory_without_content(live: Live) -> None:
    """A file whose object was deleted is gone from lookups and listings; a directory that only it made exist, too."""
    live.put('d/only', b'1')
    live.put('stays', b'2')
    at = live.mount()
    assert (at / 'd/only').read_bytes() == b'1'
    live.delete('d/only')
    eventually('the file is gone', lambda: not (at / 'd/only').exists())
    eventually('the directory is gone', lambda: not (at / 'd').exists())
    assert os.listdir(at) == ['stays']


def test_replaced_content_comes_with_its_size_and_time(live: Live) -> None:
    """After an object was overwritten, stat and read through the path give the new version, and a handle of the old one never mixes them."""
    live.put('f', b'a' * 5000)
    at = live.mount()
    before = (at / 'f').stat()
    with open(at / 'f', 'rb', buffering=0) as old:
        assert old.read(10) == b'a' * 10
        eventually('another second of the store', lambda: time.time() >= before.st_mtime + 1)
        live.put('f', b'b' * 70_000)
        eventually('the new size', lambda: (at / 'f').stat().st_size == 70_000)
        assert (at / 'f').stat().st_mtime_ns > before.st_mtime_ns
        assert (at / 'f').read_bytes() == b'b' * 70_000
        old.seek(0)
        try:
            assert old.read() == b'a' * 5000
        except OSError as error:
            assert error.errno == errno.ESTALE


def test_a_file_becomes_a_directory_and_a_file_again(live: Live) -> None:
    """`x` is replaced by `x/y` and comes back."""
    live.put('x', b'file')
    at = live.mount()
    assert (at / 'x').read_bytes() == b'file'
    live.delete('x')
    live.put('x/y', b'below')
    eventually('a directory', lambda: (at / 'x').is_dir() and (at / 'x/y').exists())
    assert (at / 'x/y').read_bytes() == b'below'
    live.delete('x/y')
    live.put('x', b'file again')
    eventually('a file', (at / 'x').is_file)
    assert (at / 'x').read_bytes() == b'file again'


def test_an_open_directory_goes_on_beside_changes(live: Live) -> None:
    """A directory stream that was opened before a change comes to its end with every name that stayed, once."""
    for n in range(30):
        live.put(f'd/f{n:02}', b'.')
    at = live.mount()
    with os.scandir(at / 'd') as stream:
        seen = [next(stream).name]
        live.delete('d/f29')
        live.put('d/zz', b'new')
        eventually('both are seen', lambda: (at / 'd/zz').exists() and not (at / 'd/f29').exists())
        seen += [entry.name for entry in stream]
    stayed = [f'f{n:02}' for n in range(29)]
    assert sorted(name for name in seen if name in stayed) == stayed
    assert sorted(os.listdir(at / 'd')) == [*stayed, 'zz']


def test_tail_follows_an_object_that_grows(live: Live, tmp_path: Path) -> None:
    """`tail -f`, which holds the file open, prints what others append, more than once; reads of the whole file give the new version."""
    lines = [b'line %d\n' % n for n in range(400)]
    live.put('log', b''.join(lines[:100]))
    at = live.mount()
    out = tmp_path / 'out'
    with open(out, 'wb') as to:
        tail = subprocess.Popen(['tail', '-n', '2', '-s', '0.1', '-f', at / 'log'], stdout=to)
    try:
        eventually('the last two lines', lambda: out.read_bytes() == b''.join(lines[98:100]))
        for count in (101, 250, 400):
            live.put('log', b''.join(lines[:count]))
            eventually(f'{count} lines', lambda: out.read_bytes() == b''.join(lines[98:count]))  # noqa: B023
            assert (at / 'log').read_bytes() == b''.join(lines[:count])
    finally:
        tail.terminate()
        tail.wait()
    # closed now: the kernel forgets the file with the next look, and with it the time that it kept for it
    if live.kind == 's3':
        eventually('the time of the last version', lambda: time.time() - (at / 'log').stat().st_mtime < 60)
    with open(at / 'log', 'ab') as more:
        more.write(b'ours\n')
    live.host.cli('sync', str(at))
    assert live.bucket.body(live.prefix + 'log') == b''.join(lines) + b'ours\n'


def test_a_longer_object_with_another_beginning_is_another_file(live: Live) -> None:
    """Only what was added at the end reaches an open file: a change before it makes the handle stale."""
    live.put('f', b'x' * 4000)
    at = live.mount()
    with open(at / 'f', 'rb', buffering=0) as old:
        assert len(old.read(4096)) == 4000
        live.put('f', b'y' + b'x' * 5000)
        eventually('the new size', lambda: (at / 'f').stat().st_size == 5001)
        assert os.fstat(old.fileno()).st_size == 4000
        assert (at / 'f').read_bytes() == b'y' + b'x' * 5000


def test_without_automatic_download_changes_wait_for_a_download(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """downloadPolicy.autoDownload false: what others put appears by `ctxfs sync --mode download`, and not before, also where it is seen at
    once otherwise."""
    live = Live('file', site_maker('file', request)(tmp_path))
    policy = tmp_path / 'policy.json'
    policy.write_text('{"downloadPolicy": {"autoDownload": false}}')
    live.host.mount('c', live.at, options=('--policy', str(policy)))
    live.wait_listed()
    live.put('new', b'1')
    time.sleep(2.5)     # nothing is to happen: there is no event to wait for
    assert not (live.at / 'new').exists()
    live.host.cli('sync', str(live.at), '--mode', 'download')
    assert (live.at / 'new').read_bytes() == b'1'
    live.host.unmount(live.at)


def test_what_a_local_file_hid_appears_when_that_is_removed(live: Live) -> None:
    """A new local file has a name that somebody's object has, too: it stays as long as it is there, then the object is seen."""
    at = live.mount('--sync-every', 'unmount')
    (at / 'f').write_bytes(b'local and new')
    live.put('f', b'of the bucket')
    live.put('marker', b'.')
    eventually('the other object', (at / 'marker').exists)
    assert (at / 'f').read_bytes() == b'local and new'
    (at / 'f').unlink()
    live.put('marker', b'..')
    eventually('the object', (at / 'f').exists)
    assert (at / 'f').read_bytes() == b'of the bucket'


def test_a_removal_does_not_win_over_a_newer_object(live: Live) -> None:
    """A file is removed here while somebody overwrites its object: that is not deleted, and is seen again."""
    live.put('f', b'old')
    at = live.mount('--sync-every', 'unmount')
    assert (at / 'f').read_bytes() == b'old'
    live.host.cli('pause', str(at))
    (at / 'f').unlink()
    live.put('f', b'newer')
    live.host.cli('sync', str(at))
    live.host.cli('resume', str(at))
    eventually('the newer one', (at / 'f').exists)
    assert (at / 'f').read_bytes() == b'newer'
    assert live.bucket.body(live.prefix + 'f') == b'newer'


def test_an_edited_policy_counts_at_once_and_a_bad_one_does_not(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The policy file of a mount is watched: what it says after an edit is in force, a mistake in it is logged and changes nothing."""
    live = Live('file', site_maker('file', request)(tmp_path))
    live.put('logs/x', b'1')
    live.put('src/y', b'2')
    policy = tmp_path / 'policy.json'
    policy.write_text('{"bwList": {"whiteLists": [{"path": "/src"}]}}')
    at = live.mount('--policy', str(policy))
    assert os.listdir(at) == ['src']
    (tmp_path / 'new').write_text('{"bwList": {"whiteLists": [{"path": "/src"}, {"path": "/logs"}]}}')
    (tmp_path / 'new').rename(policy)
    eventually('what is synced now', (at / 'logs/x').exists)
    policy.write_text('{"bwList": {"whiteLists": [{"path": "*.txt"}]}}')
    log = next(live.host.state_dir.rglob('ctxfs.log'))
    eventually('the refusal', lambda: 'the changed policy is refused' in log.read_text())
    assert sorted(os.listdir(at)) == ['logs', 'src']
    live.host.unmount(at)
