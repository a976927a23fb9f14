"""What a running mount does and answers on its control socket: the methods, each a few lines over the part that knows.

Owns what a client may ask for and what it waits for. It must not know sockets, protocol or the command line (control.py), nor how an
answer is made (mount_status.py, mount_explain.py) or an upload done (sync).
"""
from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import trio

from ctxfs import logs
from ctxfs.edge.mount_cache import CacheDesk
from ctxfs.edge.mount_conflicts import ConflictDesk, Keep
from ctxfs.edge.mount_explain import Explainer
from ctxfs.edge.mount_status import Schedule, StatusReport
from ctxfs.errors import CtxfsError, InvalidArgument, NotFound
from ctxfs.sync.engine import FlushResult, UploadEngine
from ctxfs.sync.events import EventHub
from ctxfs.sync.tasks import TaskLog

#: how long the kernel may take to hand over the pages that it has not written yet
PAGES_SECONDS = 60.0


class DaemonControl:
    """Implements edge.control.MountControl."""

    def __init__(self, report: StatusReport, explainer: Explainer, desk: ConflictDesk, *, engine: UploadEngine, tasks: TaskLog, events: EventHub,
                 switch: Schedule, request_unmount: Callable[[], None], collect_dirty_pages: Callable[[], Awaitable[None]],
                 download: Callable[[Sequence[bytes]], Awaitable[FlushResult]], wait_download: Callable[[], Awaitable[FlushResult]],
                 tell_workers: Callable[[int], None], cache: CacheDesk) -> None:
        self._report = report
        self._explainer = explainer
        self._desk = desk
        self._engine = engine
        self._tasks = tasks
        self._events = events
        self._switch = switch
        self._request_unmount = request_unmount
        self._collect_dirty_pages = collect_dirty_pages
        self._download = download
        self._wait_download = wait_download
        self._tell_workers = tell_workers
        self._cache = cache
        #: set when the final write-back ended, with its result
        self.finished = trio.Event()
        self.final: FlushResult | None = None

    def unmounted(self) -> None:
        """The mount point is gone; what is asked from here on is about the final write-back."""
        self._report.state = 'flushing'

    @property
    def _is_mounted(self) -> bool:
        return self._report.state == 'mounted'

    # --- questions --------------------------------------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """See edge.control.MountControl, also for all that follow."""
        return await self._report.status()

    async def mount_info(self) -> dict[str, Any]:
        return self._report.mount_info()

    async def statistics(self) -> dict[str, Any]:
        return await self._report.statistics()

    async def policy(self) -> dict[str, Any]:
        return self._report.policy()

    async def info(self, context_id: str | None = None, path: str | None = None, task_type: str | None = None) -> dict[str, Any]:
        return {'contextStatusData': [
            task for task in self._tasks.to_list()
            if context_id in (None, task['contextId']) and task_type in (None, task['taskType']) and _is_at(task['path'], path)]}

    async def explain(self, path: str) -> dict[str, Any]:
        return await self._explainer.explain(path)

    async def conflicts(self) -> list[dict[str, Any]]:
        return self._desk.conflicts()

    async def watch(self, kinds: list[str] | None = None) -> AsyncIterator[dict[str, Any]]:
        listener = self._events.subscribe(kinds)
        try:
            yield {**self._events.stamp('watching'), 'contextId': self._report.context_id}
            while (event := await listener.next()) is not None:
                yield event
        finally:
            self._events.leave(listener)

    # --- orders -----------------------------------------------------------------------------------------------------------------------

    async def sync(self, path: str | None = None, mode: Literal['upload', 'download'] = 'upload', wait: bool = True) -> dict[str, Any]:
        """Everything pending is uploaded, `path` or not: more than asked for, never less. A download is of what is at and below `path`."""
        if not self._is_mounted:
            return await self._final()
        if self._report.damage:
            return {'ok': False, 'files': 0, 'bytes': 0, 'message': self._report.damage}
        run = self._engine.flush if mode == 'upload' else partial(self._download, self._explainer.names_of(path or ''))
        with trio.move_on_after(PAGES_SECONDS) as pages:
            await self._collect_dirty_pages()
        if pages.cancelled_caught:
            return {'ok': False, 'files': 0, 'bytes': 0, 'message': f'the kernel did not write its pages of open files within {PAGES_SECONDS:g} s'}
        if not wait:
            self._engine.spawn(_unheard, run)
            return {'ok': True, 'files': 0, 'bytes': 0, 'message': 'scheduled'}
        return _answer(await run())

    async def wait(self, timeout: float | None = None, what: Literal['upload', 'download'] = 'upload') -> dict[str, Any]:
        """While mounted: upload what is pending now and wait for it, unless the policy leaves that to `sync`; afterwards: wait for the final
        write-back."""
        if timeout is not None and not timeout >= 0:
            raise InvalidArgument('timeout must be 0 or more seconds')
        ok, message = False, f'not done within {timeout:g} s' if timeout is not None else ''
        with trio.move_on_after(1e9 if timeout is None else timeout):
            answer = await self._uploaded() if what == 'upload' else _answer(await self._wait_download())
            ok, message = answer['ok'], answer['message']
        pending = self._engine.pending()
        return {'ok': ok, 'pending': {'files': pending['files'], 'bytes': pending['bytes']}, 'message': message}

    async def _uploaded(self) -> dict[str, Any]:
        if not (self._is_mounted and self._switch.is_manual):
            return await self.sync()
        files = int(self._engine.pending()['files'])
        message = f'autoUpload is off: {files} {"change is" if files == 1 else "changes are"} uploaded by ctxfs sync only' if files else ''
        return {'ok': not files, 'message': message}

    async def resolve(self, path: str, keep: Keep) -> dict[str, Any]:
        if not self._is_mounted:
            raise NotFound('the context is unmounted and still being written back: mount it again to settle a conflict')
        return await self._desk.resolve(self._explainer.names_of(path), keep)

    async def _final(self) -> dict[str, Any]:
        await self.finished.wait()
        assert self.final is not None
        return _answer(self.final)

    async def pause(self) -> dict[str, Any]:
        return self._set_paused(True)

    async def resume(self) -> dict[str, Any]:
        return self._set_paused(False)

    def _set_paused(self, is_paused: bool) -> dict[str, Any]:
        was_paused = self._switch.is_paused
        if is_paused != was_paused:
            (self._switch.pause if is_paused else self._switch.resume)()
        return {'paused': is_paused, 'was': was_paused}

    async def log_level(self, level: Literal['debug', 'info', 'warning', 'error'] | None = None) -> dict[str, Any]:
        was = logs.level()
        if level is not None:
            self._tell_workers(logs.set_level(level))
        return {'level': level or was, 'was': was}

    async def cache_warm(self, path: str, wait: bool = True) -> dict[str, Any]:
        return await self._cache.warm(self._explainer.names_of(path), wait=wait)

    async def cache_drop(self, path: str | None = None) -> dict[str, Any]:
        return await self._cache.drop(self._explainer.names_of(path or ''))

    async def shutdown(self) -> dict[str, Any]:
        self._request_unmount()
        return {'ok': True}


def _answer(result: FlushResult) -> dict[str, Any]:
    return {'ok': result.ok, 'files': result.files, 'bytes': result.bytes, 'message': result.message}


async def _unheard(run: Callable[[], Awaitable[FlushResult]]) -> None:
    """Nobody waits for it: the task says how it ended."""
    with suppress(CtxfsError):
        await run()


def _is_at(place: str, path: str | None) -> bool:
    """Whether a task that is about `place` is about `path`, which may be a file below it."""
    return path is None or path.rstrip('/') == place.rstrip('/') or path.startswith(place.rstrip('/') + '/')
