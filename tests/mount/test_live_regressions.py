"""What once lost bytes on a real mount when the bucket, or the policy, changed under programs.

Owns what depends on the kernel (its dirty pages, its open files) or on a second mount; the same defects in their parts are
tests/unit/test_policy_regressions.py's.
"""
from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.watch import eventually
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingSite, site_maker

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no bucket'), pytest.mark.timeout(150)]

OPTIONS = ('--poll-every', '1s', '--sync-every', 'unmount')


class Shared:
    """A context, any number of hosts, and the bucket behind them."""

    def __init__(self, site: MountingSite) -> None:
        self.site = site
        self._mounted: list[tuple[Any, Path]] = []
        self.host: Any = site.host()
        self.host.create_context('c')
        self.prefix = f'contexts/{site.context_id("c")}/'

    def mount(self, host: Any = None, *options: str) -> Path:
        host, at = host or self.host, self.site.mount_point()
        host.mount('c', at, options=(*OPTIONS, *options))
        self._mounted.append((host, at))
        eventually('the context is listed', lambda: host.status(at)['remote']['isComplete'])
        return at

    def unmount(self, at: Path) -> None:
        host = next(host for host, other in self._mounted if other == at)
        self._mounted.remove((host, at))
        host.unmount(at)

    def unmount_all(self) -> None:
        for _, at in list(self._mounted):
            self.unmount(at)

    def put(self, key: str, body: bytes) -> None:
        self.site.bucket().put(self.prefix + key, body)

    def content(self) -> dict[str, bytes]:
        """The user's objects by their keys."""
        bucket = self.site.bucket()
        found = [key.removeprefix(self.prefix) for key in bucket.keys(self.prefix)]
        return {key: bucket.body(self.prefix + key) for key in found if not key.startswith('.ctxfs/') and not key.endswith('/')}


@pytest.fixture(params=['file', 's3'])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shared]:
    made = Shared(site_maker(request.param, request)(tmp_path))
    yield made
    made.unmount_all()


def test_what_only_the_kernel_has_of_an_open_file_is_not_lost_to_a_remote_change(shared: Shared) -> None:
    """A log is open and uploaded; a line that is written then lies in the kernel when another host's version comes: both are kept."""
    at = shared.mount()
    with open(at / 'log', 'wb', buffering=0) as log:
        log.write(b'first\n')
        os.fsync(log.fileno())
        shared.host.cli('sync', str(at))
        log.write(b'second\n')
        shared.put('log', b'theirs, and longer\n')
        shared.put('marker', b'.')
        eventually('the remote change was looked at', (at / 'marker').exists)
    shared.unmount(at)
    found = shared.content()
    assert found['log'] == b'theirs, and longer\n'
    assert b'first\nsecond\n' in found.values(), f'what the program wrote is nowhere: {sorted(found)}'


def test_what_is_written_to_a_file_that_another_host_removed_is_put_back(shared: Shared) -> None:
    """A log is open and uploaded, its object is removed, and lines go on coming: the file stays, and is in the bucket again."""
    at = shared.mount()
    with open(at / 'log', 'wb', buffering=0) as log:
        log.write(b'first\n')
        os.fsync(log.fileno())
        shared.host.cli('sync', str(at))
        shared.site.bucket().delete(shared.prefix + 'log')
        shared.put('marker', b'.')
        eventually('the removal was looked at', (at / 'marker').exists)
        log.write(b'second\n')
    assert (at / 'log').read_bytes() == b'first\nsecond\n'
    shared.unmount(at)
    assert shared.content()['log'] == b'first\nsecond\n'


def content_of(path: Path) -> bytes:
    """Of a file that is just being replaced nothing: it was opened before, and is read after that."""
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return b''


def test_links_that_another_host_rewrites_are_not_deleted_by_a_remount(shared: Shared) -> None:
    """One file with two names is rewritten on one host while the other has it open; that one's next mount leaves both in the bucket."""
    other = shared.site.host()
    at, there = shared.mount(), shared.mount(other)
    (there / 'a').write_bytes(b'one')
    os.link(there / 'a', there / 'b')
    other.cli('sync', str(there))
    eventually('both names', lambda: (at / 'b').exists() and (at / 'a').exists())
    with open(at / 'a', 'rb'):
        shared.host.cli('pause', str(at))       # both objects and what the index says of them are seen at once
        (there / 'a').write_bytes(b'two!')
        other.cli('sync', str(there))
        shared.host.cli('resume', str(at))
        eventually('the new content', lambda: all(content_of(at / name) == b'two!' for name in 'ab'))
        shared.host.kill9(at)
    shared._mounted.remove((shared.host, at))
    again = shared.mount()
    shared.host.cli('sync', str(again))
    assert shared.content() == {'a': b'two!', 'b': b'two!'}
    assert (there / 'a').read_bytes() == (there / 'b').read_bytes() == b'two!'


def test_a_renamed_directory_survives_an_edited_policy(shared: Shared, tmp_path: Path) -> None:
    """It moved from what is not synced any more into what is, and was not uploaded in between: its files are there, and are uploaded."""
    policy = tmp_path / 'policy.json'
    policy.write_text('{}')
    shared.put('old/d/f', b'precious')
    at = shared.mount(None, '--policy', str(policy))
    (at / 'new').mkdir()
    os.rename(at / 'old/d', at / 'new/d')
    policy.write_text(json.dumps({'bwList': {'whiteLists': [{'path': '/new'}]}}))
    eventually('the policy is applied', lambda: not json.loads(shared.host.cli('explain', str(at / 'old/x'), '--json').stdout)['isSynced'])
    assert (at / 'new/d/f').read_bytes() == b'precious'
    shared.unmount(at)
    assert shared.content()['new/d/f'] == b'precious'
