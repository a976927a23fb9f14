"""Two real mounts of one context and an outside writer, on each kind of store: nothing acknowledged is lost, and no conflict is a false one.

Owns the kinds of stores and the size of a run: `CTXFS_FUZZ_EXAMPLES` programs for each (scripts/fuzz sets it), `CTXFS_FUZZ_STEPS` operations
each, `CTXFS_FUZZ_SEED` to repeat one. What was found stays below as a list of operations. What an operation is, and the verdict, are
tests/model/mounted_pair.py's; tests/model/test_pair.py searches deeper, without kernels.
"""
from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.fakes.s3_server import FakeS3, Fault, Quirk, StoredObject
from tests.model.hosts import IS_DOUBLE
from tests.model.mounted_pair import ArchivedPair, MountedPair, Operation, replay
from tests.model.seeds import first_seed
from tests.mount.sites import MountingSite, site_maker

EXAMPLES = int(os.environ.get('CTXFS_FUZZ_EXAMPLES', '2'))
STEPS = int(os.environ.get('CTXFS_FUZZ_STEPS', '40'))
MAX_UPHEAVALS = 1       # in one example: each costs seconds, the operations between them milliseconds

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no other host'), pytest.mark.timeout(300 + EXAMPLES * 60)]

#: name → (quirks, which version keeps the name on each host)
FAKES: dict[str, tuple[set[Quirk], tuple[str, str]]] = {
    'conditional': (set(), ('prefer-local', 'prefer-remote')),
    'forbid-overwrite': ({Quirk.FORBID_OVERWRITE}, ('keep-both', 'prefer-local')),
    'ignores-conditions': ({Quirk.IGNORES_CONDITIONS, Quirk.BARE_LISTED_ETAGS}, ('prefer-remote', 'keep-both')),
}
#: stores where both hosts may flush at the same instant
WITH_RACES = {'file', 's3', 'conditional', 'archive'}


class FakeBucket:
    """What the outside writer does to a fake server, in its memory."""

    def __init__(self, fake: FakeS3) -> None:
        self._fake = fake

    def put(self, key: str, body: bytes, metadata: dict[str, str] | None = None, content_type: str | None = None) -> None:
        with self._fake.lock:
            self._fake.objects[key] = StoredObject(body, {f'x-amz-meta-{name}': value for name, value in (metadata or {}).items()},
                                                   self._fake.new_etag(body), self._fake.clock())

    def body(self, key: str) -> bytes:
        return self._fake.objects[key].body

    def delete(self, key: str) -> None:
        with self._fake.lock:
            self._fake.objects.pop(key, None)

    def keys(self, prefix: str) -> list[str]:
        with self._fake.lock:
            return sorted(key for key in self._fake.objects if key.startswith(prefix))


@contextmanager
def pair_on(kind: str, request: pytest.FixtureRequest, work: Path, preferences: tuple[str, str] | None = None) -> Iterator[MountedPair]:
    """Two hosts on a store of that kind; in the end a third one sees what they see."""
    if kind == 'archive':
        policy = work / 'archive.json'
        policy.write_text('{"uploadPolicy": {"uploadMode": "Archive"}}')
        with _judged(ArchivedPair(site_maker('file', request)(work), options=('--policy', str(policy)))) as pair:
            yield pair
        return
    if kind not in FAKES:
        with _judged(MountedPair(site_maker(kind, request)(work), preferences=preferences or ('keep-both', 'keep-both'))) as pair:
            yield pair
        return
    quirks, usual = FAKES[kind]
    with FakeS3(quirks=quirks) as fake:
        def fail(method: str, name: str) -> None:
            fake.fail_next(method, Fault[name], when=lambda arrived: '/.ctxfs/' not in arrived.key)

        env = {'AWS_ACCESS_KEY_ID': 'AKIA' + secrets.token_hex(4), 'AWS_SECRET_ACCESS_KEY': secrets.token_hex(8)}
        site = MountingSite(work, fake.url, env, lambda: FakeBucket(fake))  # type: ignore[arg-type, return-value]
        with _judged(MountedPair(site, preferences=preferences or usual, fail=fail)) as pair:
            yield pair
            fake.forget_faults()


@contextmanager
def _judged(pair: MountedPair) -> Iterator[MountedPair]:
    try:
        yield pair
        pair.check_newcomer()
        pair.close()
    finally:
        pair.let_go()


PATHS = ('a', 'b', 'a.txt', 'd', 'd/x')
paths = st.sampled_from(PATHS)
hosts = st.integers(0, 1)
slots = st.integers(0, 1)
sizes = st.sampled_from((0, 10, 5000))
faults = st.one_of(st.none(), st.none(), st.tuples(st.sampled_from(('PUT', 'HEAD', 'DELETE')), st.sampled_from(('DROP', 'LOSE_ANSWER', 'SLOW_DOWN'))))


class Machine(RuleBasedStateMachine):
    """Draws operations; `pair` and `has_races` are set by the test."""
    pair: MountedPair
    has_races = True

    def __init__(self) -> None:
        super().__init__()
        self._upheavals = 0
        self._failed = False
        self.pair.example()

    def teardown(self) -> None:
        if not self._failed:
            self.pair.settle()

    def _apply(self, *operation: Any) -> None:
        try:
            self.pair.apply(operation)
        except BaseException:
            self._failed = True
            raise

    @rule(host=hosts, path=paths, size=sizes)
    def write(self, host: int, path: str, size: int) -> None:
        self._apply('write', host, path, size)

    @rule(host=hosts, path=paths, verb=st.sampled_from(('append', 'append', 'same', 'read', 'unlink', 'symlink')))
    def change(self, host: int, path: str, verb: str) -> None:
        self._apply(verb, host, path)

    @rule(host=hosts, old=paths, new=paths, verb=st.sampled_from(('rename', 'rename', 'rename', 'link', 'exchange')))
    def name(self, host: int, old: str, new: str, verb: str) -> None:
        if not f'{new}/'.startswith(f'{old}/') and not f'{old}/'.startswith(f'{new}/'):
            self._apply(verb, host, old, new)

    @rule(host=hosts, slot=slots, path=paths)
    def open(self, host: int, slot: int, path: str) -> None:
        self._apply('open', host, slot, path)

    @rule(host=hosts, slot=slots, verb=st.sampled_from(('pwrite', 'pwrite', 'close')))
    def use(self, host: int, slot: int, verb: str) -> None:
        self._apply(verb, host, slot)

    @rule(host=hosts, verb=st.sampled_from(('mkdir', 'mkdir', 'rmdir')), path=st.sampled_from(('d', 'a')))
    def directory(self, host: int, verb: str, path: str) -> None:
        self._apply(verb, host, path)

    @rule(host=hosts, path=paths, mode=st.sampled_from((0o600, 0o755)))
    def chmod(self, host: int, path: str, mode: int) -> None:
        self._apply('chmod', host, path, mode)

    @rule(path=paths, size=st.sampled_from((0, 10)))
    def put(self, path: str, size: int) -> None:
        self._apply('put', path, size)

    @rule(path=paths)
    def delete(self, path: str) -> None:
        self._apply('delete', path)

    @rule(host=hosts, fault=faults)
    def flush(self, host: int, fault: tuple[str, str] | None) -> None:
        self._apply('flush', host, fault)

    @rule(host=hosts, verb=st.sampled_from(('poll', 'poll', 'poll', 'look')))
    def look(self, host: int, verb: str) -> None:
        self._apply(verb, host)

    @precondition(lambda self: self.has_races)
    @rule()
    def race(self) -> None:
        self._apply('race')

    @precondition(lambda self: self._upheavals < MAX_UPHEAVALS and len(self.pair.trace) > 5)
    @rule(host=hosts, what=st.sampled_from((('remount',), ('kill', False), ('kill', True))))
    def upheave(self, host: int, what: tuple[Any, ...]) -> None:
        self._upheavals += 1
        self._apply(what[0], host, *what[1:])


@pytest.mark.parametrize('kind', ['file', 's3', *FAKES, 'archive'])
def test_two_hosts_lose_nothing_of_each_others(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Whatever two hosts and a tool do: each version that was acknowledged is current, was overwritten by somebody who had seen it, or is
    beside; a retry is no conflict; and in the end all show the same."""
    seed = first_seed()
    print(f'CTXFS_FUZZ_SEED={seed} CTXFS_FUZZ_EXAMPLES={EXAMPLES} CTXFS_FUZZ_STEPS={STEPS}')
    settings = hypothesis.settings(
        max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, database=None, report_multiple_bugs=False, print_blob=False,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate), suppress_health_check=list(hypothesis.HealthCheck))
    with pair_on(kind, request, tmp_path) as pair:
        class OnThisStore(Machine):
            has_races = kind in WITH_RACES

        OnThisStore.pair = pair
        hypothesis.seed(seed)(OnThisStore)
        run_state_machine_as_test(OnThisStore, settings=settings)


#: programs that once lost something or found a false conflict, and some that are likely to
REGRESSIONS: dict[str, list[Operation]] = {
    'regression_everything_once': [
        ('write', 0, 'a', 10), ('mkdir', 1, 'd'), ('write', 1, 'd/x', 5000), ('flush', 0, None), ('poll', 1), ('write', 1, 'a', 5),
        ('append', 0, 'a'), ('open', 0, 0, 'b'), ('pwrite', 0, 0), ('race',), ('pwrite', 0, 0), ('put', 'b', 10), ('look', 0), ('close', 0, 0),
        ('flush', 0, None), ('link', 1, 'd/x', 'a.txt'), ('symlink', 0, 'c'), ('chmod', 1, 'd/x', 0o600), ('kill', 1, True),
        ('rename', 1, 'd', 'e'), ('delete', 'd/x'), ('unlink', 0, 'a'), ('same', 0, 'a.txt'), ('exchange', 1, 'a', 'a.txt'), ('remount', 0),
        ('read', 0, 'a.txt')],
}


def test_regressions_stay_fixed(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Each program runs through, on one pair of hosts."""
    with pair_on('file', request, tmp_path) as pair:
        for operations in REGRESSIONS.values():
            replay(pair, operations)
