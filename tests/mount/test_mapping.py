"""mappingPolicy on real mounts: a mount whose root is a directory of the context, beside one of the whole context.

Owns what a user sees of it; how a policy's path becomes a key prefix is tests/unit/test_keys.py's.
"""
from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tests.crash.watch import eventually
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import site_maker

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no bucket'), pytest.mark.timeout(150)]


@pytest.mark.parametrize('kind', ['file', 's3'])
def test_a_mapped_mount_and_one_of_the_whole_context_are_one_tree(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Content, attributes and removals, both ways; and attributes that were changed while both are mounted."""
    (tmp_path / 'site').mkdir()
    site = site_maker(kind, request)(tmp_path / 'site')
    policy = tmp_path / 'mapped.json'
    policy.write_text(json.dumps({'mappingPolicy': {'path': '/home/wuying/Downloads'}}))
    whole, mapped = site.mount_point(), site.mount_point()
    one, two = site.host(), site.host()
    one.mount('c', whole, create=True, options=('--sync-every', 'unmount', '--poll-every', '1s'))
    directory = whole / 'home/wuying/Downloads'
    (directory / 'sub').mkdir(parents=True)
    (directory / 'sub/a').write_text('a')
    (directory / 'gone').write_text('gone')
    (whole / 'outside').write_text('not there')
    os.chmod(directory / 'sub/a', 0o640)
    one.cli('sync', whole)

    two.mount('c', mapped, options=('--policy', str(policy), '--sync-every', 'unmount', '--poll-every', '1s'))
    assert sorted(os.listdir(mapped)) == ['gone', 'sub'] and (mapped / 'sub/a').read_text() == 'a'
    assert stat.S_IMODE(os.stat(mapped / 'sub/a').st_mode) == 0o640
    (mapped / 'b').write_text('b')
    os.chmod(mapped / 'b', 0o600)
    os.unlink(mapped / 'gone')
    two.cli('sync', mapped)
    eventually('the whole context shows it', lambda: sorted(os.listdir(directory)) == ['b', 'sub'])
    assert (directory / 'b').read_text() == 'b' and stat.S_IMODE(os.stat(directory / 'b').st_mode) == 0o600

    os.chmod(directory / 'sub/a', 0o604)
    one.cli('sync', whole)
    eventually('the mapped mount shows the mode', lambda: stat.S_IMODE(os.stat(mapped / 'sub/a').st_mode) == 0o604)
    one.unmount(whole)
    two.unmount(mapped)


def test_a_path_that_no_context_can_have_is_refused(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Before anything is made."""
    (tmp_path / 'site').mkdir()
    site = site_maker('file', request)(tmp_path / 'site')
    policy = tmp_path / 'mapped.json'
    policy.write_text(json.dumps({'mappingPolicy': {'path': '/home/../etc'}}))
    done = site.host().cli('mount', 'c', site.mount_point(), '--create', '--policy', policy, check=False)  # type: ignore[attr-defined]
    assert done.returncode == 2 and 'mappingPolicy.path' in done.stderr and done.stderr.count('\n') == 1
