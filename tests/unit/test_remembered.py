"""What is remembered of a store on this host: found again, not for ever, and never believed when it is damaged."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from ctxfs.storage.object_store import UNKNOWN, Capabilities
from ctxfs.storage.remembered import EXPIRY_SECONDS, Remembered

URL = 's3://bucket?endpoint=http://127.0.0.1:1'
KNOWN = Capabilities(conditional_create=True, conditional_overwrite=True, conditional_delete=False, conditional_copy=False, batch_delete=True)
LIMITED = msgspec.structs.replace(KNOWN, is_limited=True)


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def memory(root: Path, clock: Clock, *, url: str = URL, prefix: str = 'contexts/a/.ctxfs/') -> Remembered:
    return Remembered(root, url, prefix, clock=clock)


def files(root: Path) -> list[Path]:
    return sorted(root.rglob('*.json'))


def test_it_is_found_by_the_next_process_and_by_nobody_else(tmp_path: Path, clock: Clock) -> None:
    """By the same store whatever way leads to it; for no eyes but the user's."""
    assert memory(tmp_path, clock).recall() is None
    memory(tmp_path, clock).keep(KNOWN)
    assert memory(tmp_path, clock).recall() == KNOWN
    assert memory(tmp_path, clock, url=URL + '&region=elsewhere').recall() == KNOWN
    assert memory(tmp_path, clock, url='s3://bucket?endpoint=http://127.0.0.1:2').recall() is None
    assert memory(tmp_path, clock, url='s3://bucket/prefix?endpoint=http://127.0.0.1:1').recall() is None
    file, = files(tmp_path)
    assert [path.stat().st_mode & 0o777 for path in (file, file.parent, file.parent.parent)] == [0o600, 0o700, 0o700]


def test_the_endpoint_that_the_environment_names_counts(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL without one means another store then."""
    monkeypatch.setenv('AWS_ENDPOINT_URL', 'http://127.0.0.1:1')
    memory(tmp_path, clock, url='s3://bucket').keep(KNOWN)
    assert memory(tmp_path, clock, url='s3://bucket').recall() == KNOWN
    monkeypatch.setenv('AWS_ENDPOINT_URL_S3', 'http://127.0.0.1:2')
    assert memory(tmp_path, clock, url='s3://bucket').recall() is None


def test_other_prefixes_share_what_is_no_matter_of_rights(tmp_path: Path, clock: Clock) -> None:
    """The newest; a prefix of its own goes first."""
    memory(tmp_path, clock, prefix='p/').keep(LIMITED)
    assert memory(tmp_path, clock).recall() is None
    memory(tmp_path, clock, prefix='q/').keep(KNOWN)
    clock.now += 1
    newest = msgspec.structs.replace(KNOWN, tagging=True)
    memory(tmp_path, clock, prefix='r/').keep(newest)
    assert memory(tmp_path, clock).recall() == newest
    assert memory(tmp_path, clock, prefix='p/').recall() == LIMITED


def test_it_is_asked_again_after_some_days(tmp_path: Path, clock: Clock) -> None:
    """Also when the clock was set back by far."""
    memory(tmp_path, clock).keep(KNOWN)
    clock.now += EXPIRY_SECONDS - 1
    assert memory(tmp_path, clock).recall() == KNOWN
    clock.now += 2
    assert memory(tmp_path, clock).recall() is None
    clock.now -= EXPIRY_SECONDS + 60
    assert memory(tmp_path, clock).recall() == KNOWN
    clock.now -= 86_400
    assert memory(tmp_path, clock).recall() is None


def test_what_nobody_asks_about_any_more_goes(tmp_path: Path) -> None:
    """Of contexts and of stores: a host that mounts one after the other keeps those of a week. A file that a kill left half-written, too."""
    clock = Clock()
    for number in range(50):
        clock.now += EXPIRY_SECONDS / 5
        url = URL if number % 2 else f's3://bucket-{number}'
        memory(tmp_path, clock, url=url, prefix=f'contexts/{number}/').keep(KNOWN)
        newest = max((path for path in (tmp_path / 'stores').glob('*/*')), key=lambda path: path.stat().st_ctime_ns)
        left = newest.parent / f'.{newest.name}.1.ab'
        left.touch()
        os.utime(left, (clock.now, clock.now))
        assert len(list((tmp_path / 'stores').glob('*/*'))) <= 2 * 7


DAMAGE = {
    'cut': lambda data: data[:50], 'empty': lambda data: b'', 'noise': lambda data: b'\xff\x00' + data, 'deep': lambda data: b'[' * 100_000,
    'another version': lambda data: _with(data, version=1), 'another store': lambda data: _with(data, store='s3://other@'),
    'an unknown key': lambda data: _with(data, more=1), 'no capabilities': lambda data: _with(data, capabilities={}),
    'a wrong type': lambda data: _with(data, askedAt='yesterday'),
}


def _with(data: bytes, **changes: object) -> bytes:
    return json.dumps({**json.loads(data), **changes}).encode()


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_file_that_is_not_what_was_written_is_not_believed(tmp_path: Path, clock: Clock, damage: str) -> None:
    """And is replaced by the next answer."""
    memory(tmp_path, clock).keep(KNOWN)
    file, = files(tmp_path)
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    assert memory(tmp_path, clock).recall() is None
    memory(tmp_path, clock).keep(KNOWN)
    assert memory(tmp_path, clock).recall() == KNOWN


def test_what_is_forgotten_is_forgotten_for_all_prefixes(tmp_path: Path, clock: Clock) -> None:
    """The store is another one than it was. Other stores stay."""
    for prefix in ('p/', 'q/'):
        memory(tmp_path, clock, prefix=prefix).keep(KNOWN)
    memory(tmp_path, clock, url='s3://other').keep(KNOWN)
    memory(tmp_path, clock).forget()
    assert memory(tmp_path, clock, prefix='p/').recall() is None
    assert memory(tmp_path, clock, url='s3://other').recall() == KNOWN


def test_a_state_that_cannot_be_written_costs_requests_and_nothing_else(tmp_path: Path, clock: Clock) -> None:
    """And what nobody could find out is not kept."""
    (tmp_path / 'stores').write_text('in the way')
    memory(tmp_path, clock).keep(KNOWN)
    assert memory(tmp_path, clock).recall() is None
    memory(tmp_path, clock).forget()
    memory(tmp_path / 'other', clock).keep(UNKNOWN)
    assert files(tmp_path) == []


WRITER = '''
import sys
from pathlib import Path
from ctxfs.storage.object_store import Capabilities
from ctxfs.storage.remembered import Remembered
known = Capabilities(conditional_create=True, conditional_overwrite=True, conditional_delete=False, conditional_copy=False, batch_delete=True)
memory = Remembered(Path(sys.argv[1]), sys.argv[2], 'p/')
for _ in range(200):
    memory.keep(known)
    assert memory.recall() == known
'''


def test_many_processes_at_once_never_see_half_of_it(tmp_path: Path) -> None:
    """A file appears whole."""
    writers = [subprocess.Popen([sys.executable, '-c', WRITER, tmp_path, URL], stderr=subprocess.PIPE) for _ in range(3)]
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [(b'', 0)] * 3
    assert len(list((tmp_path / 'stores').rglob('*'))) == 2
