"""A store that fails in every way a network can: nothing is lost, nothing is taken for somebody else's change.

Owns the plans of faults. It must not know how ctxfs retries; CTXFS_FUZZ_SEED repeats a random plan.
"""
from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.crash.faulty import Faulty, work
from tests.crash.watch import eventually
from tests.model import observe
from tests.model.hosts import IS_DOUBLE
from tests.model.seeds import first_seed
from tests.mount.harness import CommandFailed
from tests.mount.sites import MountingHost

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no network'), pytest.mark.timeout(300)]


def sync_until_done(host: MountingHost, at: Path) -> None:
    """A sync may fail with a request of its own that nobody repeats at once; what it says is pending, the next one uploads."""
    eventually('a sync that succeeds', lambda: host.cli('sync', at, check=False).returncode == 0, seconds=60)


def mounts(host: MountingHost, at: Path) -> bool:
    """Mounting asks the store once or twice, and says so when it was refused."""
    try:
        host.mount('c', at)
    except CommandFailed:
        return False
    return True


@pytest.mark.parametrize('fault', ['unavailable', 'cut', 'lost', 'truncated', 'slow', 'internal reset busy flipped'])
def test_faults_of_one_kind(fault: str, faulty: Faulty) -> None:
    """A fifth of all requests fail, in two generations of one tree: everything arrives once, as it was written, at the latest by the
    next mount where an unmount gives up before its luck turns."""
    kinds = fault.split()
    seed = first_seed()
    print(f'CTXFS_FUZZ_SEED={seed}')
    rng = random.Random(seed)
    host, at = faulty.site.host(), faulty.site.mount_point()
    host.mount('c', at, create=True)
    faulty.proxy.plan = lambda method, path: rng.choice(kinds) if rng.random() < 0.2 else None
    work(at, 0)
    host.cli('sync', at, check=False)
    work(at, 1)
    want = observe.snapshot(os.fsencode(at))
    for _ in range(5):
        host.run('fusermount3', '-u', at)
        waited = host.cli('wait', 'c', '--timeout', '60', check=False)
        if waited.returncode == 0:
            break
        eventually('a mount that meets no fault', lambda: mounts(host, at))
        assert observe.differences(observe.snapshot(os.fsencode(at)), want) == []
    assert waited.returncode == 0, waited.stderr
    assert sum(faulty.proxy.done[kind] for kind in kinds) > 10
    faulty.check('c', want)


@pytest.mark.parametrize('methods', ['PUT', 'DELETE POST'])
def test_every_first_answer_is_lost(methods: str, faulty: Faulty) -> None:
    """Each change is done by the store and its answer lost, once for each object: the retry recognises its own work."""
    host, at = faulty.site.host(), faulty.site.mount_point()
    host.mount('c', at, create=True)
    seen: set[tuple[str, str]] = set()

    def first(asked: str, path: str) -> str | None:
        # Index segments get a new name with each attempt: all of them together lose one answer.
        what = (asked, 'index' if '/.ctxfs/' in path else path)
        if asked not in methods.split() or what in seen:
            return None
        seen.add(what)
        return 'lost'

    work(at, 0)
    host.cli('sync', at)
    faulty.proxy.plan = first
    work(at, 1)
    sync_until_done(host, at)
    seen.clear()
    work(at, 2)
    want = observe.snapshot(os.fsencode(at))
    host.unmount(at)
    assert faulty.proxy.done['lost'] > 0
    faulty.check('c', want)


def test_reads_through_a_bad_network_are_right(faulty: Faulty, tmp_path: Path) -> None:
    """Cut, truncated and refused downloads: a reader gets the right bytes, or EIO and the right bytes later; never others."""
    direct, at = faulty.direct.host(), faulty.direct.mount_point()
    direct.mount('c', at, create=True)
    work(at, 0)
    want = observe.snapshot(os.fsencode(at))
    direct.unmount(at)
    host, there = faulty.site.host(), faulty.site.mount_point()
    policy = tmp_path / 'policy.json'
    policy.write_text('{"downloadPolicy": {"autoDownload": false}}')     # else everything is here before the network turns bad
    host.mount('c', there, options=('--policy', str(policy)))
    rng = random.Random(3)
    faulty.proxy.plan = lambda method, path: rng.choice(('cut', 'truncated', 'unavailable')) if method == 'GET' and rng.random() < 0.3 else None

    def read_all() -> observe.Tree | None:
        try:
            return observe.snapshot(os.fsencode(there))
        except OSError as e:
            assert e.errno == 5, e
            return None

    got = eventually('everything was read', read_all, seconds=120)
    faulty.proxy.plan = lambda method, path: None
    host.unmount(there)
    assert sum(faulty.proxy.done.values()) > 5
    assert observe.differences(got, want, directory_times=False) == []


def test_a_store_that_is_away_for_a_while(faulty: Faulty) -> None:
    """Work goes on locally; sync says why it fails, status names the cause, and all is written back once the store is there again."""
    host, at = faulty.site.host(), faulty.site.mount_point()
    host.mount('c', at, create=True)
    work(at, 0)
    host.cli('sync', at)
    faulty.proxy.plan = lambda method, path: 'cut'
    work(at, 1)
    waited = host.cli('wait', at, '--timeout', '3', check=False)
    assert waited.returncode == 1 and waited.stderr.strip()
    host.cli('sync', at, '--no-wait')
    status = eventually('a failed attempt is shown', lambda: (s := host.status(at)) and any(t.get('errorMessage') for t in s['tasks']) and s)
    assert status['pending']['files'] > 0
    want = observe.snapshot(os.fsencode(at))
    host.run('fusermount3', '-u', at)
    assert host.cli('wait', 'c', '--timeout', '3', check=False).returncode == 1
    faulty.proxy.plan = lambda method, path: None
    host.cli('wait', 'c', '--timeout', '200')
    faulty.check('c', want)
