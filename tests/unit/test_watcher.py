"""What the watcher tells of files and directories on this disk, with the system's own events.

Owns nothing but temporary directories. A test waits for a call back, in bounded time.
"""
from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from ctxfs.edge import watcher as module
from ctxfs.edge.watcher import Changes, Watcher

#: watcher.py says why; pytest makes errors of all warnings
pytestmark = pytest.mark.filterwarnings('ignore:Callback with id:RuntimeWarning')
SECONDS = 10.0


class Told:
    """Gathers what a watch tells; `until` waits for more until the condition holds of all of it."""

    def __init__(self) -> None:
        self.paths: set[bytes] = set()
        self.is_all = False
        self.calls = 0
        self._more = trio.Event()

    async def __call__(self, changes: Changes) -> None:
        self.calls += 1
        self.paths |= changes.paths
        self.is_all |= changes.is_all
        self._more.set()

    async def file(self) -> None:
        await self(Changes(frozenset(), False))

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(SECONDS):
            while not condition():
                await self._more.wait()
                self._more = trio.Event()


def run(watched: Callable[[Watcher, Told], None], test: Callable[[Told], Awaitable[None]]) -> None:
    """`test` runs once the watches are set; afterwards no thread of them is left."""
    async def main() -> None:
        watcher, told, is_set = Watcher(), Told(), trio.Event()
        watched(watcher, told)
        tend = watcher._tend

        def tend_and_say(observer: object) -> None:
            tend(observer)  # type: ignore[arg-type]
            trio.from_thread.run_sync(is_set.set)

        watcher._tend = tend_and_say  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watcher.run)
            with trio.fail_after(SECONDS):
                await is_set.wait()
            await test(told)
            nursery.cancel_scope.cancel()

    before = set(threading.enumerate())
    trio.run(main)
    left = [thread for thread in set(threading.enumerate()) - before if 'watchdog' in type(thread).__module__]
    for thread in left:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in left)


def test_a_file_is_seen_written_replaced_and_made_again(tmp_path: Path) -> None:
    """However an editor saves; other files beside it are not."""
    path = tmp_path / 'policy.json'
    path.write_text('{}')

    async def test(told: Told) -> None:
        for number, save in enumerate((lambda: path.write_text('{"a": 1}'), replace, path.unlink, lambda: path.write_text('{}')), 1):
            (tmp_path / 'beside').write_text(str(number))
            save()
            calls = told.calls
            await told.until(lambda: told.calls > calls)  # noqa: B023

    def replace() -> None:
        (tmp_path / 'new~').write_text('{"b": 1}')
        (tmp_path / 'new~').rename(path)

    run(lambda watcher, told: watcher.watch_file(str(path), told.file), test)


def test_other_files_of_the_directory_are_not_told(tmp_path: Path) -> None:
    """A change beside it, then one of it: exactly one call."""
    async def test(told: Told) -> None:
        (tmp_path / 'beside').write_text('x')
        await trio.sleep(3 * module.FILE_SECONDS)   # nothing is to happen: there is no event to wait for
        assert told.calls == 0
        (tmp_path / 'it').write_text('x')
        await told.until(lambda: told.calls == 1)

    run(lambda watcher, told: watcher.watch_file(str(tmp_path / 'it'), told.file), test)


def test_a_tree_tells_files_and_directories_below_it(tmp_path: Path) -> None:
    """New, nested, moved in as a whole, and removed; names that are no UTF-8, too."""
    top = tmp_path / 'top'
    top.mkdir()
    (tmp_path / 'outside/a').mkdir(parents=True)
    (tmp_path / 'outside/a/f').write_text('x')

    async def test(told: Told) -> None:
        at = os.fsencode(top)
        (top / 'd/e').mkdir(parents=True)
        (top / 'd/e/f').write_text('x')
        await told.until(lambda: {at + b'/d/', at + b'/d/e/f'} <= told.paths)
        os.mknod(at + b'/\xff', 0o100600)
        await told.until(lambda: at + b'/\xff' in told.paths)
        (tmp_path / 'outside').rename(top / 'inside')
        await told.until(lambda: {at + b'/inside/', at + b'/inside/a/f'} <= told.paths)
        told.paths.clear()
        shutil.rmtree(top / 'd')
        await told.until(lambda: {at + b'/d/', at + b'/d/e/f'} <= told.paths)
        assert not told.is_all

    run(lambda watcher, told: watcher.watch_tree(str(top), told), test)


def test_a_directory_that_comes_later_or_again_is_watched(tmp_path: Path) -> None:
    """What happened meanwhile is told as "anything"; then single paths are again."""
    top = tmp_path / 'top'

    async def test(told: Told) -> None:
        for is_slow in (True, False, False):
            told.paths.clear()
            told.is_all = False
            top.mkdir()
            await told.until(lambda: told.is_all)
            (top / 'f').write_text('x')
            await told.until(lambda: os.fsencode(top / 'f') in told.paths)
            told.is_all = False
            shutil.rmtree(top)
            if is_slow:
                await told.until(lambda: told.is_all)

    run(lambda watcher, told: watcher.watch_tree(str(top), told), test)


def test_a_flood_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More paths than may be noted become "anything"."""
    monkeypatch.setattr(module, 'MAX_NOTED', 5)

    async def test(told: Told) -> None:
        for number in range(50):
            (tmp_path / str(number)).write_text('x')
        await told.until(lambda: told.is_all)

    run(lambda watcher, told: watcher.watch_tree(str(tmp_path), told), test)


def test_a_system_without_watches_is_logged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """ENOSPC from inotify: one line for all watches, tried again later, and no end of the task."""
    caplog.set_level(logging.INFO, 'ctxfs')
    monkeypatch.setattr(module, 'TEND_SECONDS', 0.01)
    tried: list[str] = []

    def schedule(observer: object, handler: object, path: str, **_: object) -> None:
        tried.append(path)
        raise OSError(errno.ENOSPC, 'inotify watch limit reached')

    monkeypatch.setattr(module.Observer, 'schedule', schedule)

    async def test(told: Told) -> None:
        with trio.fail_after(SECONDS):
            while len(tried) < 6:
                await trio.sleep(0.01)

    def watched(watcher: Watcher, told: Told) -> None:
        watcher.watch_tree(str(tmp_path), told)
        watcher.watch_file(str(tmp_path / 'f'), told.file)

    run(watched, test)
    assert [record.levelname for record in caplog.records] == ['INFO']
    assert 'inotify watch limit reached' in caplog.text
