"""What is done to a context without a mount, beside mounts that have it: they see it, and it sees them."""
from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.watch import eventually
from tests.fakes.s3_server import FakeS3, StoredObject
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingSite

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory is no mount'), pytest.mark.timeout(200)]

ENV = {'AWS_ACCESS_KEY_ID': 'any', 'AWS_SECRET_ACCESS_KEY': 'any'}
OPTIONS = ('--sync-every', 'unmount', '--poll-every', '1s')


@pytest.fixture
def fake() -> Iterator[FakeS3]:
    with FakeS3() as fake:
        yield fake


@pytest.fixture
def site(fake: FakeS3, tmp_path: Path) -> MountingSite:
    return MountingSite(tmp_path, fake.url, ENV, lambda: pytest.fail('look at fake.objects'))


def keys(fake: FakeS3, prefix: str) -> list[str]:
    with fake.lock:
        return [key for key in fake.objects if key.startswith(prefix)]


def test_a_live_mount_sees_it_and_is_seen(site: MountingSite, fake: FakeS3, tmp_path: Path) -> None:
    """Of 1,100 objects: what is put, removed and cleared here appears there, told by the index; while it is mounted another host empties it
    only by force, and a killed mount does not hold up its own host."""
    here: Any = site.host()
    there: Any = site.host()
    at = site.mount_point()
    context = here.json('context', 'create', 'c')
    prefix = f'contexts/{context["id"]}/'
    for number in range(1100):
        fake.objects[f'{prefix}d{number % 7}/f{number}'] = StoredObject(b'.', {}, f'"{number:032x}"', time.time())
    here.mount('c', at, options=OPTIONS)
    eventually('the heartbeat', lambda: there.json('context', 'show', 'c')['state'] == 'in-use')
    assert [beat['mountpoint'] for beat in there.json('context', 'show', 'c')['mounts']] == [str(at)]
    for verb in ('delete', 'clear'):
        done = there.cli('context', verb, 'c', check=False)
        assert (done.returncode, f':{at}); unmount it there, or {verb} it with --force' in done.stderr) == (1, True), done.stderr

    (tmp_path / 'new').write_text('from elsewhere')
    (tmp_path / 'new').chmod(0o640)
    assert len(os.listdir(at / 'd1')) == 157
    there.cli('files', 'put', 'c', tmp_path / 'new', '/d1/')
    there.cli('files', 'rm', 'c', '/d1/f1', '/d1/f8')
    eventually('all three', lambda: len(os.listdir(at / 'd1')) == 156 and (at / 'd1/new').exists())
    assert (at / 'd1/new').read_text() == 'from elsewhere' and (at / 'd1/new').stat().st_mode & 0o777 == 0o640
    there.cli('files', 'rm', 'c', '-r', '/d2')
    eventually('the folder goes', lambda: not (at / 'd2').exists())

    here.cli('context', 'rename', 'c', 'named')
    there.cli('context', 'clear', 'named', '--force')
    eventually('nothing is left', lambda: os.listdir(at) == [])
    (at / 'again').write_text('x')
    here.kill9(at)
    assert there.cli('context', 'delete', 'named', check=False).returncode == 1
    here.cli('context', 'delete', 'named')
    assert keys(fake, prefix) == []


def test_an_unmounted_context_is_free_at_once(site: MountingSite, fake: FakeS3) -> None:
    """Its heartbeat goes with the mount; a read-only mount has none."""
    here: Any = site.host()
    there: Any = site.host()
    at = site.mount_point()
    here.mount('c', at, create=True, options=OPTIONS)
    prefix = f'contexts/{here.json("context", "show", "c")["id"]}/.ctxfs/mounts/'
    eventually('the heartbeat', lambda: len(keys(fake, prefix)) == 1)
    here.unmount(at)
    assert keys(fake, prefix) == []
    here.mount('c', at, options=('--read-only',))
    assert here.json('context', 'show', 'c')['state'] == 'in-use'
    assert here.cli('context', 'clear', 'c', check=False).returncode == 1
    here.unmount(at)
    assert keys(fake, prefix) == []
    there.cli('context', 'delete', 'c')
