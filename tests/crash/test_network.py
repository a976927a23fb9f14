"""A network that hangs, lies, loses answers or runs out of credentials, between real mounts and a real server: what programs see of it, what is
asked how often, and that it is over when it is over.
"""
from __future__ import annotations

import errno
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import leftovers
from tests.crash.fault_proxy import RETRY_AFTER
from tests.crash.faulty import Faulty
from tests.crash.watch import eventually
from tests.model.hosts import IS_DOUBLE
from tests.model.operations import content
from tests.mount.sites import MountingHost

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no network'), pytest.mark.timeout(200)]

#: as impatient as a mount may be, for tests in which the store hangs
IMPATIENT = '3s'


class Desk:
    """A context that another host filled, mounted through the proxy; nothing is fetched before it is read."""

    def __init__(self, faulty: Faulty, work: Path, files: dict[str, bytes], *, foreign: dict[str, bytes] | None = None,
                 env: dict[str, str] | None = None, patience: str = '30s') -> None:
        self.faulty, self.proxy = faulty, faulty.proxy
        there = faulty.direct.mount_point()
        other = faulty.direct.host()
        other.mount('c', there, create=True)
        for name, body in files.items():
            (there / name).write_bytes(body)
        other.unmount(there)
        for name, body in (foreign or {}).items():
            faulty.direct.bucket().put(f'contexts/{faulty.direct.context_id("c")}/{name}', body)
        policy = work / 'policy.json'
        policy.write_text('{"downloadPolicy": {"autoDownload": false}}')
        self.host: MountingHost = faulty.site.host()  # type: ignore[assignment]
        self.at = faulty.site.mount_point()
        self.options = ('--store-timeout', patience, '--sync-every', 'unmount', '--policy', str(policy))
        self.host.mount('c', self.at, options=self.options, env=env)
        eventually('the context is known', lambda: self.host.status(self.at)['remote']['isComplete'])

    def read(self, name: str) -> bytes | int:
        """The file's bytes, or the errno that a program gets."""
        try:
            return (self.at / name).read_bytes()
        except OSError as e:
            return e.errno or 0

    def sync(self) -> subprocess.CompletedProcess[str]:
        return self.host.cli('sync', self.at, check=False)


def background(function: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    return thread, results


def test_a_hung_store_holds_only_who_needs_it_and_not_for_ever(faulty: Faulty, tmp_path: Path) -> None:
    """Whatever the store does not say: who reads a cold file gets EIO while it still hangs, or dies when he is killed; listing, attributes, cached
    and staged bytes are there meanwhile; afterwards the same file is read."""
    cold = {f'cold{n}': content(50_000, n) for n in range(4)}
    desk = Desk(faulty, tmp_path, {**cold, 'warm': b'warm' * 1000}, patience=IMPATIENT)
    assert desk.read('warm') == b'warm' * 1000
    (desk.at / 'staged').write_bytes(b'staged')
    for number, fault in enumerate(('hang', 'half-header', 'trickle')):
        asked = len(desk.proxy.asked)
        desk.proxy.plan = lambda method, path, fault=fault: fault  # type: ignore[misc]
        reader, results = background(lambda number=number: desk.read(f'cold{number}'))  # type: ignore[misc]
        eventually('the store was asked', lambda asked=asked: len(desk.proxy.asked) > asked)  # type: ignore[misc]
        assert sorted(os.listdir(desk.at)) == sorted([*cold, 'warm', 'staged'] + [f'new{n}' for n in range(number)])
        assert (desk.at / 'cold3').stat().st_size == 50_000
        assert desk.read('staged') == b'staged'
        # past the kernel's own pages
        with open(os.open(desk.at / 'warm', os.O_RDONLY), 'rb') as warm:
            os.posix_fadvise(warm.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert warm.read() == b'warm' * 1000
        (desk.at / f'new{number}').write_bytes(b'n')
        assert results == [] and reader.is_alive()
        reader.join(60)
        assert results == [errno.EIO]
    asked = len(desk.proxy.asked)
    killed = subprocess.Popen([sys.executable, '-c', 'import sys; open(sys.argv[1], "rb").read()', str(desk.at / 'cold3')])
    eventually('the store was asked', lambda: len(desk.proxy.asked) > asked)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(30) == -signal.SIGKILL
    faulty.clear()
    eventually('all is read', lambda: {name: desk.read(name) for name in cold} == cold, every=0.5)
    desk.host.unmount(desk.at)


def test_an_unmount_in_an_outage_ends_and_the_next_mount_goes_on(faulty: Faulty, tmp_path: Path) -> None:
    """A hundred files, and a store that answers nothing: the unmount ends by itself with all of them journaled, none is asked for a hundred times;
    the next mount uploads each once."""
    desk = Desk(faulty, tmp_path, {'old': b'old'}, patience=IMPATIENT)
    for number in range(100):
        (desk.at / f'f{number:02}').write_bytes(b'%d' % number)
    desk.proxy.plan = lambda method, path: 'hang'
    desk.proxy.asked.clear()
    desk.host.run('fusermount3', '-u', desk.at)
    waited = desk.host.cli('wait', 'c', '--timeout', '100', check=False)
    assert waited.returncode == 1 and 'not uploaded' in waited.stderr, waited.stderr
    assert not leftovers.mounts_below(desk.at) and all(mount['pid'] is None for mount in desk.host.json('status')['mounts'])
    assert desk.proxy.count('PUT') < 100
    faulty.clear()
    desk.proxy.asked.clear()
    desk.host.mount('c', desk.at, options=desk.options[2:])     # patient now: the machine may be slow, too
    assert sorted(os.listdir(desk.at)) == [*(f'f{number:02}' for number in range(100)), 'old']
    desk.host.unmount(desk.at)
    assert [desk.proxy.count('PUT', f'/f{number:02}') for number in range(100)] == [1] * 100
    bucket = faulty.direct.bucket()
    prefix = f'contexts/{faulty.direct.context_id("c")}/'
    assert {name: bucket.body(prefix + name) for name in ('old', 'f00', 'f99')} == {'old': b'old', 'f00': b'0', 'f99': b'99'}


def test_a_busy_store_is_asked_when_it_wants_to_be(faulty: Faulty, tmp_path: Path) -> None:
    """503 with Retry-After, four times: no try of a file comes before that, and the upload succeeds without a new sync."""
    desk = Desk(faulty, tmp_path, {})
    (desk.at / 'file').write_bytes(b'x')
    left = [4]

    def plan(method: str, path: str) -> str | None:
        if method == 'PUT' and path.endswith('/file') and left[0]:
            left[0] -= 1
            return 'busy'
        return None

    desk.proxy.plan = plan
    done = desk.sync()
    assert done.returncode == 0, done.stderr
    times = [asked.at for asked in desk.proxy.asked if asked.method == 'PUT' and asked.path.endswith('/file')]
    assert len(times) == 5 and all(later - sooner >= RETRY_AFTER for sooner, later in itertools.pairwise(times))
    desk.host.unmount(desk.at)


@pytest.mark.timeout(280)
def test_a_lost_answer_costs_no_second_upload(faulty: Faulty, tmp_path: Path) -> None:
    """Each write of its kind is done and its answer lost: a PUT, the completion of an upload in parts, a copy, an index segment, a batch delete,
    and the claim of a context's name. Each file is sent once, nobody sees a conflict, and nothing is left."""
    desk = Desk(faulty, tmp_path, {'moved': content(3000, 1), 'gone': b'gone'})
    (desk.at / 'first').write_bytes(b'')
    assert desk.sync().returncode == 0      # what the store can do was asked for this
    lost: set[str] = set()
    kinds = {'PUT /.ctxfs/contexts/': 'registry', 'PUT /.ctxfs/index/': 'index', 'POST uploadId=': 'complete', 'POST ?delete': 'batch'}

    def plan(method: str, path: str) -> str | None:
        kind = next((kind for mark, kind in kinds.items() if f'{method} {path}'.startswith(mark.split()[0]) and mark.split()[1] in path), None)
        if kind is None and method == 'PUT' and 'partNumber' not in path and '/.ctxfs/' not in path:
            kind = path
        if kind is None or kind in lost:
            return None
        lost.add(kind)
        return 'lost'

    desk.proxy.plan = plan
    desk.proxy.asked.clear()
    (desk.at / 'small').write_bytes(b's')
    (desk.at / 'large').write_bytes(content(20 << 20, 3))
    (desk.at / 'moved').rename(desk.at / 'here')
    (desk.at / 'gone').unlink()
    eventually('a sync that succeeds', lambda: desk.sync().returncode == 0)
    created = desk.host.cli('context', 'create', 'another', check=False)
    assert created.returncode == 0, created.stderr
    assert {'registry', 'index', 'complete', 'batch'} <= lost and sum(key.endswith(('/small', '/here')) for key in lost) == 2
    assert desk.proxy.count('PUT', '/small') == 1 and desk.proxy.count('PUT', '/here') == 1
    assert desk.proxy.count('PUT', 'partNumber') == 3 and desk.proxy.count('POST', '/large?uploads') == 1
    assert [context['name'] for context in desk.host.json('context', 'list')['contexts']].count('another') == 1
    faulty.clear()
    desk.host.unmount(desk.at)
    other, there = faulty.direct.host(), faulty.direct.mount_point()
    other.mount('c', there)
    assert sorted(os.listdir(there)) == ['first', 'here', 'large', 'small'] and other.status(there)['conflicts'] == 0
    assert (there / 'large').read_bytes() == content(20 << 20, 3) and (there / 'here').read_bytes() == content(3000, 1)
    other.unmount(there)


def test_wrong_bytes_are_never_read(faulty: Faulty, tmp_path: Path) -> None:
    """A bit of each body is another: EIO, whatever wrote the object and however large it is, never its bytes. When every second body is right, all
    is read right, also what is brought here to be written to."""
    mine = {'small': content(4000, 1), 'blocks': content(3 << 20, 2), 'parts': content(21 << 20, 3)}
    foreign = {'theirs': content(70_000, 5), 'theirs-large': content(5 << 20, 6)}
    desk = Desk(faulty, tmp_path, mine, foreign=foreign)
    flipped = dict.fromkeys((*mine, *foreign), 0)

    def always(method: str, path: str) -> str | None:
        return 'flipped' if method == 'GET' and path.rpartition('/')[2] in {**mine, **foreign} else None

    def every_second(method: str, path: str) -> str | None:
        name = path.rpartition('/')[2]
        if always(method, path) is None:
            return None
        flipped[name] += 1
        # two GETs bring it together, and only the whole can be verified
        return 'flipped' if flipped[name] % 2 and (name != 'theirs-large' or flipped[name] == 1) else None

    desk.proxy.plan = always
    assert [desk.read(name) for name in ('small', 'blocks', 'theirs')] == [errno.EIO] * 3
    with open(desk.at / 'parts', 'rb') as file, pytest.raises(OSError) as caught:
        file.read(100)
    assert caught.value.errno == errno.EIO
    desk.proxy.plan = every_second
    assert {name: digest(desk.read(name)) for name in (*mine, 'theirs')} == {name: digest(body) for name, body in {**mine, **foreign}.items()
                                                                             if name != 'theirs-large'}
    with open(desk.at / 'theirs-large', 'r+b') as file:     # brought here whole, so that the whole can be verified
        file.write(b'!')
    assert digest(desk.read('theirs-large')) == digest(b'!' + foreign['theirs-large'][1:])
    assert desk.proxy.done['flipped'] > 8
    faulty.clear()
    desk.host.unmount(desk.at)


def digest(body: bytes | int) -> str | int:
    return hashlib.sha256(body).hexdigest() if isinstance(body, bytes) else body


def test_credentials_are_renewed_while_mounted(faulty: Faulty, tmp_path: Path) -> None:
    """The session token expires: uploads wait with the cause, and go on by themselves when somebody has written a new one into the file; so does
    who reads."""
    env = faulty.site.env
    file = tmp_path / 'credentials'

    def write(token: str) -> None:
        file.write_text(f'[default]\naws_access_key_id = {env["AWS_ACCESS_KEY_ID"]}\naws_secret_access_key = {env["AWS_SECRET_ACCESS_KEY"]}\n'
                        f'aws_session_token = {token}\n')
    write('old')
    desk = Desk(faulty, tmp_path, {'cold': b'cold' * 100},
                env={'AWS_SHARED_CREDENTIALS_FILE': str(file), 'AWS_ACCESS_KEY_ID': '', 'AWS_SECRET_ACCESS_KEY': ''})
    desk.proxy.refused_token = 'old'
    (desk.at / 'file').write_bytes(b'x')
    assert desk.read('cold') == errno.EACCES
    refused = desk.host.cli('sync', desk.at, '--no-wait', check=False)
    assert refused.returncode == 0
    eventually('the cause is shown', lambda: 'expired' in str(desk.host.status(desk.at)))
    write('new')
    eventually('it is uploaded', lambda: not desk.host.status(desk.at)['pending']['files'])
    assert desk.read('cold') == b'cold' * 100
    desk.host.unmount(desk.at)


def test_a_mount_that_the_store_lets_down_shows_what_the_last_one_knew(faulty: Faulty, tmp_path: Path) -> None:
    """The store answers the mount itself and then nothing more: names, attributes, cached and staged bytes are there, also in directories that nobody
    looked into; what another host did appears when it answers again."""
    desk = Desk(faulty, tmp_path, {'cached': b'cached'}, patience=IMPATIENT)
    (desk.at / 'd').mkdir()
    (desk.at / 'd/mine').write_bytes(b'mine')
    assert desk.read('cached') == b'cached'
    desk.host.unmount(desk.at)
    first = ('/.ctxfs/contexts/', 'max-keys=1&', '/.ctxfs/policy', '/.ctxfs/mode')      # what `ctxfs mount` asks for
    desk.proxy.plan = lambda method, path: None if any(mark in path for mark in first) else 'hang'
    desk.host.mount('c', desk.at, options=desk.options[:4])
    assert sorted(os.listdir(desk.at)) == ['cached', 'd'] and os.listdir(desk.at / 'd') == ['mine']
    assert desk.read('cached') == b'cached' and (desk.at / 'd/mine').stat().st_size == 4 and not (desk.at / 'theirs').exists()
    (desk.at / 'd/new').write_bytes(b'new')
    faulty.direct.bucket().put(f'contexts/{faulty.direct.context_id("c")}/theirs', b'theirs')
    faulty.clear()
    eventually('what another host did is there', lambda: (desk.at / 'theirs').exists())
    desk.host.unmount(desk.at)
    assert faulty.direct.bucket().body(f'contexts/{faulty.direct.context_id("c")}/d/new') == b'new'
