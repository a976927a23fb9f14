"""The control socket of real mounts: docs/CONTROL.md is so, counts are right, events come, and a crowd of clients harms nobody."""
from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ctxfs.edge.client import ControlClient
from ctxfs.edge.control import METHODS
from ctxfs.errors import InvalidArgument
from ctxfs.sync.events import KINDS
from tests import leftovers
from tests.model.hosts import Site
from tests.mount import harness

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / 'docs/CONTROL.md').read_text()
SECONDS = 30


@pytest.fixture
def mount(site: Site) -> Iterator[tuple[harness.Host, Path]]:
    """A context with no upload by the clock, mounted."""
    host, at = site.host(), site.mount_point()
    host.mount('c', at, create=True, options=['--sync-every', 'unmount'])
    yield host, at
    if leftovers.mounts_below(at):
        host.unmount(at)


@pytest.fixture(autouse=True)
def no_double(request: pytest.FixtureRequest) -> None:
    """The stand-in for a mount has no socket."""
    from tests.model.hosts import IS_DOUBLE
    if IS_DOUBLE:
        pytest.skip('a directory has no control socket')


def control(host: harness.Host) -> ControlClient:
    found = list(Path(host.runtime).glob('ctxfs/*/control.sock'))
    assert len(found) == 1, found
    return ControlClient(found[0])


def until(claim: Callable[[], Any], what: str) -> Any:
    """What `claim` returns as soon as that is true."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found = claim()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f'{what}: not within {SECONDS} s')


def examples() -> list[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """(method, request, what comes back) of the document."""
    found = []
    for section in re.split(r'^### ', DOCUMENT, flags=re.M)[1:]:
        request, *answers = [json.loads(text) for text in re.findall(r'^```json\n(.*?)^```', section, re.M | re.S)]
        found.append((section.split('\n')[0], request, answers))
    return found


def differences(example: Any, real: Any, at: str = '') -> list[str]:
    """Keys that only one of the two has; null, and an empty list or object beside a full one, say nothing."""
    if isinstance(example, dict) and isinstance(real, dict) and not at.endswith(('.operations', '.requests')):
        found = [f'{at}.{key}' for key in sorted(example.keys() ^ real.keys())]
        return found + [each for key in example.keys() & real.keys() for each in differences(example[key], real[key], f'{at}.{key}')]
    if isinstance(example, list) and isinstance(real, list):
        return differences(example[0], real[0], f'{at}[]') if example and real else []
    is_number = isinstance(example, (int, float)) and isinstance(real, (int, float))
    return [] if None in (example, real) or is_number or type(example) is type(real) else [f'{at}: {example!r} is {real!r}']


def exchange(host: harness.Host, request: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The request as it stands in the document, by hand, and the lines that come back."""
    path, = Path(host.runtime).glob('ctxfs/*/control.sock')
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(str(path))
        connection.sendall(json.dumps(request).encode() + b'\n')
        with connection.makefile() as lines:
            return [json.loads(lines.readline()) for _ in range(count)]


def test_the_document_has_every_method_and_kind() -> None:
    """Each method with an example, each kind of event in the table."""
    assert sorted(name for name, _, _ in examples()) == sorted(METHODS)
    assert all(name == request['method'] for name, request, _ in examples())
    table = ' '.join(line for line in DOCUMENT.splitlines() if line.startswith('|'))
    assert {kind for kind in KINDS if f'`{kind}`' in table} == set(KINDS)


def test_each_example_is_so(mount: tuple[harness.Host, Path], site: Any) -> None:
    """The document's requests, sent to a mount, are answered with the document's keys and types."""
    host, at = mount
    (at / 'src').mkdir()
    (at / 'src/other.py').write_text('x')
    (at / 'report.txt').write_text('ours')
    site.bucket().put(f'contexts/{site.context_id("c")}/report.txt', b'theirs')
    host.cli('sync', 'c')
    (at / 'src/main.py').write_text('print("hi")\n')
    for name, request, answers in sorted(examples(), key=lambda example: example[0] == 'shutdown'):
        real = exchange(host, request, len(answers))
        for example, line in zip(answers, real, strict=True):
            assert differences(example, line) == [], f'{name}: {line}'
            assert example.get('id') == line.get('id')
    until(lambda: not leftovers.mounts_below(at), 'the unmount')
    host.cli('wait', 'c')


def test_explain_follows_a_file(mount: tuple[harness.Host, Path]) -> None:
    """From absent over dirty to clean, with the object's version; hard links with all names; a directory is one; a path outside is refused."""
    host, at = mount
    with control(host) as client:
        assert client.call('explain', path='d/a')['state'] == 'absent'
        (at / 'd').mkdir()
        (at / 'd/a').write_text('hello')
        os.link(at / 'd/a', at / 'b')
        found = client.call('explain', path='d/a')
        assert (found['exists'], found['state'], found['size'], found['keys']) == (True, 'dirty', 5, ['b', 'd/a'])
        assert found['pending']['since'] == pytest.approx(time.time(), abs=60) and 'content' in found['pending']['reasons']
        client.call('sync', timeout=SECONDS)
        found = client.call('explain', path=f'{at}/d/a')
        assert (found['path'], found['state'], found['pending']) == ('/d/a', 'clean', None) and found['etag']
        assert client.call('explain', path='d')['state'] == 'directory' and client.call('explain', path='')['state'] == 'directory'
        for path in ('.ctxfs/index', 'd/a/x', 'nope/x'):
            assert client.call('explain', path=path)['exists'] is False
        with pytest.raises(InvalidArgument):
            client.call('explain', path='d/../../etc')
    shown = json.loads(host.cli('explain', at / 'd/a', '--json').stdout)
    assert (shown['mountpoint'], shown['path'], shown['state']) == (str(at), '/d/a', 'clean')
    assert 'synced' in host.cli('explain', at / 'new/file').stdout
    refused = host.cli('explain', at.parent, check=False)
    assert refused.returncode == 1 and f'is in no mounted context; mounted are {at}' in refused.stderr


def test_explain_names_the_rule_of_a_local_file(site: Site) -> None:
    """White lists and their exceptions by their place in the policy, and the lifecycle that an upload would get."""
    host, at = site.host(), site.mount_point()
    policy = {'bwList': {'whiteLists': [{'path': '/src', 'excludePaths': ['node_modules']}]},
              'recyclePolicy': {'lifecycle': 'Lifecycle_3Days', 'paths': ['src/logs']}}
    (site.work / 'policy.json').write_text(json.dumps(policy))
    host.mount('c', at, create=True, options=['--policy', str(site.work / 'policy.json')])
    (at / 'src/node_modules').mkdir(parents=True)
    (at / 'src/node_modules/x').write_text('x')
    with control(host) as client:
        found = client.call('explain', path='src/node_modules/x')
        assert (found['isSynced'], found['state'], found['lifecycle']) == (False, 'local', '')
        assert found['rule'] == 'bwList.whiteLists[0].excludePaths[0] "node_modules"'
        found = client.call('explain', path='src/logs/1')
        assert (found['isSynced'], found['lifecycle']) == (True, 'Lifecycle_3Days') and found['rule'].startswith('bwList.whiteLists[0]')
        status = client.call('status')
        assert (status['localOnly']['files'], status['policy']['whiteLists']) == (1, 1)
    host.unmount(at)


def test_a_watcher_sees_an_upload(mount: tuple[harness.Host, Path]) -> None:
    """Pending, begin, end, pause, resume and the end of the mount, in order; and nothing that it did not ask for."""
    host, at = mount
    heard: list[dict[str, Any]] = []
    client = control(host)

    def listen() -> None:
        heard.extend(client.stream('watch', kinds=['pending', 'task-began', 'task-ended', 'paused', 'resumed']))
    listener = threading.Thread(target=listen)
    listener.start()
    with control(host) as asker:
        (at / 'a').write_text('x' * 100)
        assert asker.call('info') == {'contextStatusData': []}
        asker.call('sync', timeout=SECONDS)
        assert asker.call('pause') == {'paused': True, 'was': False} and asker.call('status')['paused'] is True
        assert asker.call('pause') == {'paused': True, 'was': True} and asker.call('resume') == {'paused': False, 'was': True}
        entry, = asker.call('info', task_type='upload', path=f'{at}/a')['contextStatusData']
        assert (entry['status'], entry['path'], entry['filesDone']) == ('Success', str(at), 1)
        assert asker.call('info', context_id='other') == {'contextStatusData': []}
    host.unmount(at)
    listener.join(SECONDS)
    client.close()
    assert not listener.is_alive()
    kinds = [event['kind'] for event in heard]
    assert kinds[0] == 'watching' and [kind for kind in kinds if kind in ('paused', 'resumed')] == ['paused', 'resumed']
    began, ended = kinds.index('task-began'), kinds.index('task-ended')
    assert began < ended and (heard[ended]['filesDone'], heard[ended]['status']) == (1, 'Success')
    assert not {'error', 'task-progress'} & set(kinds) and heard == sorted(heard, key=lambda event: event['time'])


def test_a_conflict_is_an_event_and_is_explained(site: Site) -> None:
    """On the host that lost the name: told to who listens, listed, explained with what it stands beside."""
    one, two = site.host(), site.host()
    here, there = site.mount_point(), site.mount_point()
    one.mount('c', here, create=True, options=['--sync-every', 'unmount'])
    two.mount('c', there, options=['--sync-every', 'unmount'])
    (here / 'a.txt').write_text('one')
    (there / 'a.txt').write_text('two')
    one.cli('sync', 'c')
    with control(two) as watcher, control(two) as asker:
        events = watcher.stream('watch', kinds=['conflict'])
        assert next(events)['kind'] == 'watching'
        asker.call('sync', timeout=SECONDS)
        event = next(events)
        found, = asker.call('conflicts')
        assert found == {'path': event['path'], 'original': '/a.txt', 'since': found['since'], 'holds': 'local', 'held': False}
        assert (event['original'], event['holds']) == ('/a.txt', 'local')
        explained = asker.call('explain', path=event['path'].lstrip('/'))
        assert explained['conflict'] == {'original': '/a.txt', 'since': found['since'], 'holds': 'local', 'held': False}
        assert explained['state'] in ('clean', 'sealed')
        assert asker.call('explain', path='a.txt')['conflict'] is None
        assert asker.call('status')['conflicts'] == 1
    assert f'{there}{event["path"]}: this host\'s version of /a.txt, ' in two.cli('conflicts', 'c', 'list').stdout
    for host, at in ((one, here), (two, there)):
        host.unmount(at)


def test_statistics_count_what_was_moved(mount: tuple[harness.Host, Path]) -> None:
    """Bytes up by size, operations by kind, inodes and tasks."""
    host, at = mount
    for number in range(3):
        (at / str(number)).write_bytes(b'x' * 1000)
    with control(host) as client:
        client.call('sync', timeout=SECONDS)
        found = client.call('statistics')
    assert found['operations']['PutFile'] == {'calls': 3, 'failed': 0} and 3000 <= found['bytesUploaded'] < 10_000
    assert found['tasks']['upload'] == {'running': 0, 'ended': 1} and found['inodes']['known'] >= 3 and found['uptime'] > 0


def test_what_a_killed_daemon_left_is_told(mount: tuple[harness.Host, Path]) -> None:
    """By `ctxfs status`, from the state directory, without a daemon; the next mount has it."""
    host, at = mount
    for number in range(3):
        (at / str(number)).write_bytes(b'x' * 1000)
    before = host.status(at)['pending']
    assert (before['files'], before['bytes']) == (3, 3000)
    os.kill(host.pid(at), signal.SIGKILL)
    shown = until(lambda: next((m for m in host.json('status', 'c')['mounts'] if m['state'] == 'died'), None), 'its death')
    assert (shown['pid'], shown['pending']['files'], shown['pending']['bytes']) == (None, 3, 3000)
    assert '3 files' in host.cli('status', 'c').stdout
    host.run('fusermount3', '-uz', at)
    host.mount('c', at)
    assert host.status(at)['pending']['files'] == 3


def test_status_is_right_at_every_moment(mount: tuple[harness.Host, Path]) -> None:
    """What was written is pending at once, what was synced is not, whatever was asked before; also the Python way of asking."""
    host, at = mount
    with control(host) as client:
        for number in range(1, 6):
            (at / 'a').write_text(str(number))
            assert client.call('status')['pending']['files'] >= 1
            client.call('sync', timeout=SECONDS)
            assert client.call('status')['pending'] == {'files': 0, 'bytes': 0, 'oldestSeconds': 0}


def test_a_crowd_of_clients_does_not_hold_the_mount(mount: tuple[harness.Host, Path]) -> None:
    """Stalled watchers, floods and nonsense beside a working program: it works, and the socket goes on answering."""
    host, at = mount
    path, = Path(host.runtime).glob('ctxfs/*/control.sock')
    crowd = []
    for number in range(20):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        connection.setblocking(False)
        crowd.append(connection)
        line = (b'{"jsonrpc":"2.0","id":1,"method":"watch"}\n', b'{"jsonrpc":"2.0","id":1,"method":"status"}\n', b'nonsense\n')[number % 3]
        try:
            connection.sendall(line * 2000)
        except BlockingIOError:
            continue
    try:
        began = time.monotonic()
        for number in range(100):
            (at / f'f{number}').write_text('x')
        took = time.monotonic() - began
        assert took < 10, f'100 files took {took:.1f} s'
        with control(host) as client:
            assert client.call('sync', timeout=SECONDS)['ok']
            assert client.call('status')['pending']['files'] == 0
    finally:
        for connection in crowd:
            connection.close()
