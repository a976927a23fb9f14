"""A damaged tree database: the mount shows what the bucket has, read-only, and says why; a repair brings back what was only here."""
from __future__ import annotations

import errno
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.model.hosts import IS_DOUBLE, Site
from tests.unit import damage

pytestmark = pytest.mark.skipif(IS_DOUBLE, reason='a directory has no tree database')


def kept(state: Path) -> dict[str, str]:
    """What must not change while nobody knows what is right."""
    files = [*state.glob('tree.db'), *state.glob('tree.db-wal'), *(path for path in (state / 'staging').rglob('*') if path.is_file())]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def findings(host: Any, *arguments: str) -> tuple[int, str]:
    done = host.cli('doctor', *arguments, '--json', check=False)
    found = json.loads(done.stdout)['findings'] if done.stdout else []
    return done.returncode, '\n'.join(f'{finding["level"]} {finding["text"]}; {finding["fix"]}' for finding in found) + done.stderr


def test_damage_is_told_nothing_is_lost_and_a_repair_helps(site: Site) -> None:
    """Mounted, asked, refused, unmounted, repaired, mounted again: every step as README says."""
    host, at = site.host(), site.mount_point()
    host.mount('c', at, create=True, options=('--sync-every', 'unmount'))
    (at / 'directory').mkdir()
    (at / 'directory/uploaded').write_bytes(b'in the bucket')
    host.cli('sync', at)
    only_here = {f'directory/new {n}': b'only here %d' % n for n in range(20)}
    for name, content in only_here.items():
        (at / name).write_bytes(content)
    host.kill9(at)
    state, = (path.parent for path in host.state_dir.glob('*/tree.db'))
    damage.log_garbage(state, random.Random(1))
    before = kept(state)

    done = host.cli('mount', 'c', at)
    assert 'damaged' in done.stderr and 'ctxfs doctor --repair c' in done.stderr and done.stderr.count('\n') == 1
    assert (at / 'directory/uploaded').read_bytes() == b'in the bucket'
    assert os.listdir(at / 'directory') == ['uploaded']
    with pytest.raises(OSError) as refused:
        (at / 'directory/another').touch()
    assert refused.value.errno == errno.EROFS
    answer = host.status(at)
    assert 'damaged' in answer['damage'] and answer['readOnly'] and answer['pending']['files'] == 20
    assert (waited := host.cli('wait', 'c', '--timeout', '9', check=False)).returncode == 1 and 'doctor --repair' in waited.stderr
    status, text = findings(host, '--repair', 'c')
    assert status == 1 and f'fusermount3 -u {at}' in text
    host.run('fusermount3', '-u', at)
    assert host.cli('wait', 'c', check=False).returncode == 1
    assert kept(state) == before

    status, text = findings(host, '--state', 'c')
    assert status == 1 and 'run ctxfs doctor --repair c' in text
    status, text = findings(host, '--repair', 'c')
    assert status == 0 and 'rebuilt' in text, text
    status, text = findings(host, '--repair', 'c')
    assert status == 0 and 'nothing to repair' in text
    host.mount('c', at)
    found = {str(path.relative_to(at)): path.read_bytes() for path in at.rglob('*') if path.is_file()}
    assert found.pop('directory/uploaded') == b'in the bucket'
    assert sorted(found.values()) == sorted(only_here.values())
    assert all(name in only_here or name.startswith('lost+found/') for name in found)
    host.unmount(at)
