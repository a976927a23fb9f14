"""What is done to a context without a mount, beside mounts that have it: they see it, and it sees them."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.crash.watch import eventually
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import site_maker

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory is no mount'), pytest.mark.timeout(200)]

OPTIONS = ('--sync-every', 'unmount', '--poll-every', '1s')


@pytest.fixture(params=['file', 's3'])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return site_maker(request.param, request)(tmp_path)


def test_a_live_mount_sees_it_and_is_seen(site: Any, tmp_path: Path) -> None:
    """Of 1,100 objects: what is put, removed and cleared here appears there, told by the index; while it is mounted another host empties it
    only by force, and a killed mount does not hold up its own host."""
    here, there, at = site.host(), site.host(), site.mount_point()
    context = here.json('context', 'create', 'c')
    prefix = f'contexts/{context["id"]}/'
    bucket = site.bucket()
    for number in range(1100):
        bucket.put(f'{prefix}d{number % 7}/f{number}', b'.')
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
    assert bucket.keys(prefix) == []


def test_an_unmounted_context_is_free_at_once(site: Any) -> None:
    """Its heartbeat goes with the mount; a read-only mount has none."""
    here, there, at = site.host(), site.host(), site.mount_point()
    here.mount('c', at, create=True, options=OPTIONS)
    prefix = f'contexts/{site.context_id("c")}/.ctxfs/mounts/'
    eventually('the heartbeat', lambda: len(site.bucket().keys(prefix)) == 1)
    here.unmount(at)
    assert site.bucket().keys(prefix) == []
    here.mount('c', at, options=('--read-only',))
    assert here.json('context', 'show', 'c')['state'] == 'in-use'
    assert here.cli('context', 'clear', 'c', check=False).returncode == 1
    here.unmount(at)
    assert site.bucket().keys(prefix) == []
    there.cli('context', 'delete', 'c')
