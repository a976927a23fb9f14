"""Conflicts on a real mount, as a user meets them: which version keeps the name, what is listed, and how one is settled.

Owns what depends on the kernel (names that it remembers, open files), on remounts and on the command line. The rules themselves are
tests/unit/test_conflicts.py's.
"""
from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.crash.watch import eventually
from tests.model.hosts import IS_DOUBLE, Site

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no conflicts'), pytest.mark.timeout(200)]

OPTIONS = ('--sync-every', 'unmount', '--poll-every', '1h')
COPY = re.compile(r'.*\.conflict-[A-Za-z0-9-]{1,20}-\d{8}T\d{6}Z(-\d+)?(\.txt)?')


class Desk:
    """One host, its mount, and the bucket behind it."""

    def __init__(self, site: Any) -> None:
        self.site, self.host, self.at = site, site.host(), site.mount_point()

    def mount(self, *options: str) -> None:
        self.host.mount('c', self.at, create=True, options=(*OPTIONS, *options))
        self.prefix = f'contexts/{self.site.context_id("c")}/'

    def sync(self) -> None:
        self.host.cli('sync', 'c')

    def cli(self, *words: str | Path, check: bool = True) -> Any:
        return self.host.cli('conflicts', *words, check=check)

    def refused(self, *words: str | Path, status: int = 1) -> str:
        done = self.cli(*words, check=False)
        assert done.returncode == status and done.stderr.count('\n') == 1, done.stderr
        return str(done.stderr)

    def disagree(self, *names: str) -> dict[str, Path]:
        """Each file has a version of ours and one that was published: the copies, by the name that they stand beside."""
        for name in names:
            (self.at / name).write_text('ours')
            self.site.bucket().put(self.prefix + name, b'theirs')
        self.sync()
        listed = json.loads(self.cli('c', 'list', '--json').stdout)['conflicts']
        return {entry['original'][1:]: self.at / entry['path'][1:] for entry in listed}

    def shown(self) -> dict[str, str]:
        """What is on the mount, with the names that the kernel remembers."""
        return {name: (self.at / name).read_text() for name in sorted(os.listdir(self.at))}

    def published(self) -> dict[str, str]:
        bucket = self.site.bucket()
        found = (key.removeprefix(self.prefix) for key in bucket.keys(self.prefix))
        return {key: bucket.body(self.prefix + key).decode() for key in found if not key.startswith('.ctxfs/')}


@pytest.fixture
def desk(new_site: Callable[[Path], Site], tmp_path: Path) -> Desk:
    return Desk(new_site(tmp_path))


def test_each_answer_settles_a_conflict(desk: Desk) -> None:
    """By the original or by the copy, with a path below the mount point or in the context; the kernel sees it at once, the bucket with the next
    upload, and nothing is listed any more."""
    desk.mount()
    copies = desk.disagree('local.txt', 'remote.txt', 'both.txt', 'there')
    assert sorted(copies) == ['both.txt', 'local.txt', 'remote.txt', 'there'] and all(COPY.fullmatch(str(path)) for path in copies.values())
    assert desk.shown() == {**dict.fromkeys(copies, 'theirs'), **{path.name: 'ours' for path in copies.values()}} == desk.published()
    assert desk.host.status(desk.at)['conflicts'] == 4 and 'conflicts 4; see ctxfs conflicts c list' in desk.host.cli('status').stdout
    assert 'this host\'s version of /local.txt' in desk.host.cli('explain', copies['local.txt']).stdout
    with open(copies['local.txt']) as held_open:
        desk.cli('resolve', desk.at / 'local.txt', '--keep', 'local')
        assert held_open.read() == 'ours'
    desk.cli('c', 'resolve', copies['remote.txt'].name, '--keep', 'remote')
    answer = json.loads(desk.cli('resolve', copies['both.txt'], '--keep', 'both', '--json').stdout)
    assert (answer['original'], answer['copy'], answer['keep']) == ('/both.txt', f'/{copies["both.txt"].name}', 'both')
    (desk.at / 'there').unlink()
    desk.cli('c', 'resolve', '/there', '--keep', 'local')
    assert desk.shown() == {'local.txt': 'ours', 'remote.txt': 'theirs', 'both.txt': 'theirs', copies['both.txt'].name: 'ours', 'there': 'ours'}
    assert desk.cli('list').stdout == '' and desk.host.status(desk.at)['conflicts'] == 0
    assert 'no conflict is known of /local.txt' in desk.refused('resolve', desk.at / 'local.txt', '--keep', 'both')
    desk.sync()
    assert desk.shown() == desk.published()
    desk.host.unmount(desk.at)


def test_several_copies_and_directories_are_settled_one_by_one(desk: Desk) -> None:
    """A name that was lost twice has two copies, and the answer names one; a directory is not removed by it."""
    desk.mount()
    desk.disagree('f')
    desk.disagree('f')
    copies = [name for name in desk.shown() if name != 'f']
    said = desk.refused('resolve', desk.at / 'f', '--keep', 'local')
    assert len(copies) == 2 and all(name in said for name in copies)
    desk.cli('resolve', desk.at / copies[0], '--keep', 'remote')
    desk.cli('resolve', desk.at / 'f', '--keep', 'local')
    assert desk.shown() == {'f': 'ours'}
    (desk.at / 'd').mkdir()
    (desk.at / 'd/x').write_text('ours')
    desk.site.bucket().put(desk.prefix + 'd', b'theirs')
    desk.host.cli('sync', 'c', '--mode', 'download')
    moved, = [path for path in desk.at.iterdir() if path.is_dir()]
    assert COPY.fullmatch(str(moved)) and (desk.at / 'd').read_text() == 'theirs' and (moved / 'x').read_text() == 'ours'
    assert 'is a directory: remove it as one' in desk.refused('resolve', moved, '--keep', 'remote')
    desk.cli('resolve', desk.at / 'd', '--keep', 'local')
    eventually('the kernel hears that it is a directory', (desk.at / 'd').is_dir)
    assert (desk.at / 'd/x').read_text() == 'ours' and sorted(os.listdir(desk.at)) == ['d', 'f']
    desk.host.unmount(desk.at)
    assert desk.published() == {'d/x': 'ours', 'f': 'ours'}


def test_the_preferred_version_keeps_the_name(desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """prefer-local by config.toml, and prefer-remote, whose copy stays on this host across remounts, is listed without a mount, and is
    uploaded when it is settled."""
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path / 'config'))
    config = tmp_path / 'config/ctxfs/config.toml'
    config.parent.mkdir(parents=True)
    config.write_text('conflict = "prefer-local"\n')
    desk.mount()
    copy, = desk.disagree('f.txt').values()
    assert desk.shown() == {'f.txt': 'ours', copy.name: 'theirs'} == desk.published()
    assert desk.host.status(desk.at)['policy']['conflict'] == 'prefer-local'
    assert 'this host\'s version keeps the name' in desk.host.cli('policy', 'show', desk.at).stdout
    desk.cli('resolve', copy, '--keep', 'remote')
    assert desk.shown() == {'f.txt': 'theirs'}
    desk.host.unmount(desk.at)

    desk.mount('--conflict', 'prefer-remote')
    copies = desk.disagree('a.txt', 'b.txt')
    desk.host.unmount(desk.at)
    assert desk.published() == {'f.txt': 'theirs', 'a.txt': 'theirs', 'b.txt': 'theirs'}
    listed = desk.cli('c', 'list').stdout
    assert all(f'{path}: this host\'s version of /{name}, not uploaded' in listed for name, path in copies.items())
    assert 'c is not mounted: a conflict is settled on a running mount; mount the context first' in desk.refused('c', 'resolve', 'a.txt',
                                                                                                             '--keep', 'both')
    desk.mount()
    assert desk.shown() == {'f.txt': 'theirs', **dict.fromkeys(copies, 'theirs'), **{path.name: 'ours' for path in copies.values()}}
    assert 'local-only' in desk.host.cli('explain', copies['a.txt']).stdout
    desk.cli('resolve', desk.at / 'a.txt', '--keep', 'both')
    desk.cli('resolve', desk.at / 'b.txt', '--keep', 'local')
    desk.host.unmount(desk.at)
    assert desk.published() == {'f.txt': 'theirs', 'a.txt': 'theirs', copies['a.txt'].name: 'ours', 'b.txt': 'ours'}
