"""ContextManager on real mounts: under asyncio, under trio, without a loop, and with a callback."""
from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trio

import ctxfs
from ctxfs import ContextInfoResult, ContextManager, ContextStatusData, ContextSyncResult

ROOT = Path(__file__).resolve().parents[2]
BOTH_OR_NEITHER = ('context_id and path must be provided together or both omitted. If you want to sync a specific context, both context_id and '
                   'path are required. If you want to sync all contexts, omit both parameters.')


class Host:
    """A user with a home of his own, whose mounts this process sees as its own."""

    def __init__(self, tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tmp = tmp
        for name, variable in (('home', 'HOME'), ('run', 'XDG_RUNTIME_DIR')):
            (tmp / name).mkdir(mode=0o700)
            monkeypatch.setenv(variable, str(tmp / name))
        monkeypatch.setenv('PYTHONPATH', str(ROOT))
        self.mounted: list[Path] = []

    def run(self, *args: str | Path) -> str:
        done = subprocess.run([sys.executable, '-m', 'ctxfs', *map(str, args)], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def mount(self, name: str, *options: str) -> Path:
        at = self.tmp / f'm-{name}'
        at.mkdir(exist_ok=True)
        self.run('mount', '--create', name, at, '--sync-every', 'unmount', *options)
        self.mounted.append(at)
        return at

    def unmount(self, at: Path) -> None:
        self.mounted.remove(at)
        self.run('umount', at)

    def context_id(self, at: Path) -> str:
        return next(m for m in self.status() if m['mountpoint'] == str(at))['contextId']

    def status(self):
        import json
        return json.loads(self.run('status', '--json'))['mounts']

    def pending(self) -> int:
        return sum(m['pending']['files'] for m in self.status())


@pytest.fixture
def host(tmp, monkeypatch):
    host = Host(tmp, monkeypatch)
    yield host
    for at in list(host.mounted):
        host.unmount(at)


def test_awaited_under_asyncio(host):
    """As AGB's example does it; asyncio.run and create_task take it, too, and other tasks run meanwhile."""
    at = host.mount('one')
    (at / 'a').write_text('hello')

    async def main():
        result = await ContextManager().sync()
        assert (result.success, result.error_message) == (True, '') and result.request_id
        (at / 'b').write_text('hello')
        ticks = []

        async def tick():
            while True:
                ticks.append(1)
                await asyncio.sleep(0)
        ticker = asyncio.create_task(tick())
        assert (await asyncio.create_task(ContextManager().sync())).success
        ticker.cancel()
        assert ticks
    asyncio.run(main())
    assert host.pending() == 0
    (at / 'c').write_text('hello')
    assert asyncio.run(ContextManager().sync(mode='upload')).success and host.pending() == 0


def test_awaited_under_trio(host):
    """Also by start_soon, and where asyncio is imported."""
    at = host.mount('one')
    (at / 'a').write_text('hello')
    results = []

    async def main():
        results.append(await ContextManager().sync())

        async def more():
            results.append(await ContextManager().sync(host.context_id(at), str(at), 'download'))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(more)
            nursery.start_soon(ContextManager().sync)
    trio.run(main)
    assert [type(result) for result in results] == [ContextSyncResult] * 2
    assert all(result.success for result in results), results
    assert host.pending() == 0


def test_the_readme_says_so(host, capfd):
    """The README's example runs as it stands."""
    at = host.mount('one')
    (at / 'a').write_text('hello')
    host.run('sync', 'one')
    example, = [text for text in re.findall(r'^```python\n(.*?)^```', (ROOT / 'README.md').read_text(), re.M | re.S) if 'ContextManager' in text]
    done = subprocess.run([sys.executable, '-c', example], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, '') and f'{at} upload Success 5 of 5 bytes' in done.stdout


def test_without_a_loop(host):
    """The fields wait for the end; a call whose result nobody looks at has begun all the same."""
    at = host.mount('one')
    (at / 'a').write_text('hello')
    result = ContextManager().sync(host.context_id(at), str(at), 'upload')
    assert result.success and result.error_message == '' and host.pending() == 0
    (at / 'b').write_text('hello')
    ContextManager().sync()
    deadline = time.monotonic() + 30
    while host.pending():
        assert time.monotonic() < deadline


def test_with_a_callback(host):
    """Returns at once; the callback comes once, from another thread, with the outcome. Awaiting the returned is right, too."""
    at = host.mount('one')
    (at / 'a').write_text('hello')
    called, arrived = [], threading.Event()

    def callback(success):
        called.append((success, threading.current_thread() is threading.main_thread(), host.pending()))
        arrived.set()
    result = ContextManager().sync(callback=callback)
    assert isinstance(result, ContextSyncResult) and result.success
    assert arrived.wait(60) and called == [(True, False, 0)]

    async def main():
        return await ContextManager().sync(mode='upload', callback=lambda success: arrived.set())
    arrived.clear()
    assert asyncio.run(main()).success and arrived.wait(60)


@pytest.mark.parametrize('args, said', [
    ({'context_id': 'SdkCtx-1'}, BOTH_OR_NEITHER), ({'path': '/m'}, BOTH_OR_NEITHER), ({'context_id': 'SdkCtx-1', 'path': ' '}, BOTH_OR_NEITHER),
    ({'mode': 'sideways'}, "mode 'sideways' is unknown; write upload or download"), ({}, 'no context is mounted on this host'),
    ({'context_id': 'SdkCtx-1', 'path': '/m'}, 'SdkCtx-1 is not mounted at /m')])
def test_what_cannot_be_synced(host, args, said):
    """A result that says why; no exception, and a callback hears of it."""
    result = asyncio.run(ContextManager().sync(**args))
    assert (result.success, result.error_message) == (False, said)
    heard, arrived = [], threading.Event()
    refused = ContextManager().sync(**args, callback=lambda success: (heard.append(success), arrived.set()))
    assert (refused.success, refused.error_message) == (False, said)
    assert arrived.wait(30) and heard == [False]


def test_one_context_of_two(host):
    """A context is named by its id and mount point, or a path below it; the other one is left alone. Blank arguments are none."""
    one, two = host.mount('one'), host.mount('two')
    for at in (one, two):
        (at / 'a').write_text('hello')
    assert ContextManager().sync(host.context_id(one), f'{one}/a', 'upload').success
    assert {m['contextName']: m['pending']['files'] > 0 for m in host.status()} == {'one': False, 'two': True}
    assert 'is not mounted at' in ContextManager().sync(host.context_id(one), str(two)).error_message
    assert ContextManager().sync('', ' ').success and host.pending() == 0
    assert ContextManager().sync().success      # nothing to sync


def test_info(host):
    """The fields of AGB's ContextStatusData, filtered by context, path and type; also of a mount that has ended."""
    one, two = host.mount('one'), host.mount('two')
    (one / 'a').write_text('hello')
    manager = ContextManager(session='anything')
    assert manager.session == 'anything'
    assert manager.sync(host.context_id(one), str(one), 'upload').success
    found = manager.info(task_type='upload')
    assert isinstance(found, ContextInfoResult) and found.success and found.request_id and found.error_message == ''
    entry, = found.context_status_data
    assert isinstance(entry, ContextStatusData)
    assert (entry.context_id, entry.path, entry.status, entry.task_type, entry.error_message) == (
        host.context_id(one), str(one), 'Success', 'upload', '')
    assert 0 < entry.start_time <= entry.finish_time <= time.time() + 1 and (entry.files_done, entry.bytes_done) == (1, 5)
    assert manager.info(path=f'{one}/a', task_type='upload').context_status_data == [entry]
    assert manager.info(context_id=host.context_id(two), task_type='upload').context_status_data == []
    assert manager.info(path='/elsewhere').context_status_data == []
    context_id = host.context_id(one)
    host.unmount(one)
    ended, = manager.info(context_id, str(one)).context_status_data
    assert (ended.status, ended.task_type, ended.context_id) == ('Success', 'upload', context_id)


def test_a_daemon_that_is_gone_or_stuck(host):
    """Said in the result, within the time that was given; info() says of which mount."""
    at = host.mount('one')
    (at / 'a').write_text('hello')
    pid, = [m['pid'] for m in host.status()]
    os.kill(pid, signal.SIGSTOP)
    try:
        result = ContextManager().sync(max_retries=3, retry_interval=100)
        assert not result.success and 'not done within 0.3 s; it goes on' in result.error_message
    finally:
        os.kill(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGCONT)
    assert 'no context is mounted' in _after_death(host, pid)
    found = ContextManager().info()
    assert not found.success and found.error_message == f'{at}: its daemon died; mount again to upload what is journaled'
    subprocess.run(['fusermount3', '-uz', at], check=True)
    host.run('mount', 'one', at)


def _after_death(host, pid) -> str:
    deadline = time.monotonic() + 30
    while os.path.exists(f'/proc/{pid}') and time.monotonic() < deadline:
        time.sleep(0.02)
    return ContextManager().sync().error_message


def test_a_cancelled_wait_ends_alone(host):
    """asyncio's timeout and trio's scope end the waiting; the loops end cleanly while the thread still waits."""
    at = host.mount('one')
    pid, = [m['pid'] for m in host.status()]
    os.kill(pid, signal.SIGSTOP)
    try:
        async def with_asyncio():
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(ContextManager().sync(max_retries=20, retry_interval=100), 0.1)

        async def with_trio():
            with trio.move_on_after(0.1) as scope:
                await ContextManager().sync(max_retries=20, retry_interval=100)
            assert scope.cancelled_caught
        asyncio.run(with_asyncio())
        trio.run(with_trio)
    finally:
        os.kill(pid, signal.SIGCONT)
    for thread in threading.enumerate():
        if thread.name == 'ctxfs-call':
            thread.join(30)
    (at / 'a').write_text('x')
    assert ContextManager().sync().success


def test_the_package_stays_light():
    """`import ctxfs` loads nothing of it, the names are there, and no event loop is imported that the program does not use."""
    code = ("import sys, ctxfs; assert not [m for m in sys.modules if m.startswith('ctxfs.')], sys.modules; "
            "assert {'ContextManager', 'ContextStatusData'} <= set(dir(ctxfs)); from ctxfs import ContextManager; "
            "ContextManager().info(); ContextManager().sync().success; "
            "sys.exit(' '.join({'trio', 'asyncio', 'boto3', 'pyfuse3', 'rich', 'sqlite3'} & set(sys.modules)) or None)")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, '')
    with pytest.raises(AttributeError, match='nothing'):
        _ = ctxfs.nothing
