"""Commands without a mount on a store where hosts take turns: they wait for the turn of another host, and let others write afterwards."""
from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ctxfs.edge.cli import run
from ctxfs.storage.object_store import UNKNOWN, Capabilities
from ctxfs.storage.registry import Registry
from ctxfs.storage.stores import open_store
from ctxfs.sync.held_turns import HeldTurns, takes_turns
from tests.fakes.s3_server import FakeS3, Quirk

ALL = Capabilities(conditional_create=True, conditional_overwrite=True, conditional_delete=True, conditional_copy=True, batch_delete=True,
                   conditional_parts=True)


@pytest.fixture
def oss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    for name, variable in (('home', 'HOME'), ('run', 'XDG_RUNTIME_DIR')):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'AKID')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')
    with FakeS3(quirks={Quirk.FORBID_OVERWRITE}) as fake:
        monkeypatch.setenv('CTXFS_STORE', fake.url)
        yield fake


def test_who_takes_turns() -> None:
    """Whoever cannot write everything under conditions."""
    assert takes_turns(UNKNOWN) and not takes_turns(ALL)


def test_put_and_rm_wait_for_the_turn_of_another_host(oss: FakeS3, tmp_path: Path) -> None:
    """What that host writes in its turn comes first; afterwards the turn is free, so that nobody waits for a command that has ended."""
    assert run(['context', 'create', 'c']) == 0
    local = tmp_path / 'f'
    local.write_bytes(b'put')
    with closing(open_store(oss.url)) as store:
        prefix = Registry(store).find('c').prefix
        for command, key in ((['files', 'put', 'c', str(local), '/f'], 'f'), (['files', 'rm', 'c', '/f'], 'f')):
            other = HeldTurns(store, prefix, host='other')
            statuses: list[int] = []
            thread = threading.Thread(target=lambda command=command, statuses=statuses: statuses.append(run(command)))  # type: ignore[misc]
            with other.turn([f'{prefix}other']):
                asks = oss.hold_next('GET', when=lambda request: request.query.get('prefix', '').endswith('.ctxfs/turn/'))
                thread.start()
                assert asks.arrived.wait(60), 'it asks whose turn it is'
                asks.release.set()
                before = len(oss.requests)
                oss.objects[f'{prefix}other'] = oss.objects[next(iter(oss.objects))]
                assert not [request for request in oss.requests[before:] if request.key == prefix + key]
                written = (prefix + key in oss.objects)
            other.close()
            thread.join(60)
            assert statuses == [0] and (prefix + key in oss.objects) is not written
        newest = min(key for key in oss.objects if '.ctxfs/turn/' in key)
        assert f'{newest}-free' in oss.objects


def test_a_store_that_compares_and_swaps_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No object of turns, no thread."""
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'AKID')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')
    with FakeS3() as fake, closing(open_store(fake.url)) as store:
        turns = HeldTurns(store, 'contexts/c/', host='h')
        with turns.turn(['contexts/c/a']):
            assert not any(thread.name == 'ctxfs-turns' for thread in threading.enumerate())
        turns.close()
        assert not [key for key in fake.objects if 'turn' in key]
