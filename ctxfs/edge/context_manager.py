"""The Python API of this host's mounts: AGB's ContextManager (AgentBay's `session.context`), on control sockets instead of a service.

Owns the result objects and the reading of arguments, with AGB's names, defaults and texts. It must not know how anything is synced: the
daemons do. Nothing here raises for what a mount does or does not: results carry the error, as AGB's do.

    from ctxfs import ContextManager
    contexts = ContextManager()
    contexts.info().context_status_data                 # what was synced, is being synced, and failed
    (await contexts.sync()).success                     # under asyncio or trio
    contexts.sync(callback=print)                       # returns at once; print(True) from a thread when it is in the bucket
    contexts.sync().success                             # a program without a loop: waits here
"""
from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ctxfs.edge.cli_common import Invocation, select
from ctxfs.edge.client import ControlClient, NoAnswer
from ctxfs.edge.runtime_dir import Mount
from ctxfs.edge.sync_call import ThreadCall
from ctxfs.errors import CtxfsError, UsageError

MODES = ('upload', 'download')
_BOTH_OR_NEITHER = (
    'context_id and path must be provided together or both omitted. If you want to sync a specific context, both context_id and path are '
    'required. If you want to sync all contexts, omit both parameters.')


@dataclass
class ContextStatusData:
    """One upload or download. `status`: Pending, Running, Success, Failed; only the last two are final. Times in Unix seconds, 0: not yet.
    The fields from `bytes_done` on are ctxfs's own."""
    context_id: str = ''
    path: str = ''
    error_message: str = ''
    status: str = ''
    start_time: int = 0
    finish_time: int = 0
    task_type: str = ''
    bytes_done: int = 0
    bytes_total: int = 0
    files_done: int = 0
    files_total: int = 0
    attempt: int = 0
    next_retry: float = 0

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ContextStatusData:
        """Of the wire form: contextId, startTime …; keys that are not known are left out."""
        names = {_camel(name): name for name in cls.__dataclass_fields__}
        return cls(**{names[key]: value for key, value in data.items() if key in names})


def _camel(name: str) -> str:
    first, *others = name.split('_')
    return first + ''.join(word.title() for word in others)


@dataclass
class ContextInfoResult:
    request_id: str = ''
    success: bool = False
    context_status_data: list[ContextStatusData] = field(default_factory=list)
    error_message: str = ''


@dataclass
class ContextSyncResult:
    """Awaitable as well, so that `await sync(callback=…)` is right, too."""
    request_id: str = ''
    success: bool = False
    error_message: str = ''

    def __await__(self) -> Generator[Any, Any, ContextSyncResult]:
        yield from ()
        return self


class PendingSync(ThreadCall[ContextSyncResult]):
    """A sync that was begun: await it, or ask for its result, which waits for it."""

    @property
    def request_id(self) -> str:
        return self.wait().request_id

    @property
    def success(self) -> bool:
        return self.wait().success

    @property
    def error_message(self) -> str:
        return self.wait().error_message


class ContextManager:
    """The contexts of a session (ctxfs.edge.session); without one, all that are mounted on this host by this user. Any other `session` is kept and
    not used: here a host stands for it."""

    def __init__(self, session: object = None) -> None:
        self.session = session

    def _all(self) -> list[Mount]:
        """Raises UsageError for a config file that is wrong."""
        mounts: Callable[[], list[Mount]] | None = getattr(self.session, 'mounts', None)
        return mounts() if mounts is not None else select(Invocation(None, None, False).mounts(), None)

    def info(self, context_id: str | None = None, path: str | None = None, task_type: str | None = None) -> ContextInfoResult:
        """Running and recent uploads and downloads, of mounts and of those that have ended. `path`: a mount point, or a path below one."""
        request_id, found, failures = str(uuid.uuid4()), [], []
        try:
            for mount in _chosen(self._all(), context_id, path):
                try:
                    found += _status_of(mount, path, task_type)
                except CtxfsError as error:
                    failures.append(f'{mount.record.mountpoint}: {error}')
        except CtxfsError as error:
            failures.append(str(error))
        return ContextInfoResult(request_id, not failures, found, '; '.join(failures))

    def sync(self, context_id: str | None = None, path: str | None = None, mode: str | None = None,
             callback: Callable[[bool], None] | None = None, max_retries: int = 150,
             retry_interval: int = 1500) -> Coroutine[Any, Any, ContextSyncResult] | ContextSyncResult | PendingSync:
        """Upload (the default) or download: one context by its id and mount point (or a path below it), or, with neither, all.

        It has begun when this returns. Without `callback` the result is awaitable under asyncio and trio, and its fields may be read
        without a loop, which waits. With `callback` it returns at once, and `callback(success)` is called from a background thread.
        `max_retries` times `retry_interval` (ms) is how long is waited; what is not done then goes on all the same."""
        request_id = str(uuid.uuid4())
        requests, problem = _begin(self._all, context_id, path, mode)
        seconds = max(0, max_retries) * max(0, retry_interval) / 1000

        def work() -> ContextSyncResult:
            if problem:
                return ContextSyncResult(request_id, False, problem)
            return ContextSyncResult(request_id, *_collect(requests, seconds))

        pending = PendingSync(work, None if callback is None else lambda result: callback(result.success))
        if problem:
            return pending.wait() if callback is not None else pending
        return pending if callback is None else ContextSyncResult(request_id, True)


# --- mounts ------------------------------------------------------------------------------------------------------------------------

def _given(text: str | None) -> str | None:
    """AGB takes blank arguments for none."""
    return text if text is not None and text.strip() else None


def _chosen(found: list[Mount], context_id: str | None, path: str | None) -> list[Mount]:
    if _given(context_id) is not None:
        found = [mount for mount in found if mount.record.context_id == context_id]
    if _given(path) is not None:
        found = [mount for mount in found if _below(mount, str(path)) is not None]
    return found


def _below(mount: Mount, path: str) -> str | None:
    """The path below the mount's root ('' for the root); None where it is elsewhere."""
    place, top = os.path.abspath(os.path.expanduser(path)), mount.record.mountpoint.rstrip('/')
    if place == (top or '/'):
        return ''
    return place[len(top) + 1:] if place.startswith(top + '/') else None


def _status_of(mount: Mount, path: str | None, task_type: str | None) -> list[ContextStatusData]:
    if mount.is_alive():
        # a daemon that ended between the question and the answer has left its result
        with suppress(CtxfsError), ControlClient(mount.socket) as client:
            answer = client.call('info', path=_given(path), task_type=_given(task_type))
            return [ContextStatusData.from_dict(entry) for entry in answer['contextStatusData']]
    result = mount.result()
    if result is None:
        raise CtxfsError('its daemon does not answer' if mount.is_alive() else 'its daemon died; mount again to upload what is journaled')
    if _given(task_type) not in (None, 'upload'):
        return []
    at = int(result.finished_at)
    return [ContextStatusData(result.context_id, result.mountpoint, '' if result.ok else result.message, 'Success' if result.ok else 'Failed',
                              at, at, 'upload', bytes_total=result.pending.bytes, files_total=result.pending.files)]


# --- sync --------------------------------------------------------------------------------------------------------------------------

_Request = tuple[Mount, ControlClient]


def _begin(all_mounts: Callable[[], list[Mount]], context_id: str | None, path: str | None, mode: str | None) -> tuple[list[_Request], str]:
    """Ask the daemons; returns the requests whose answers are to come, or why nothing was asked."""
    if (_given(context_id) is None) != (_given(path) is None):
        return [], _BOTH_OR_NEITHER
    if _given(mode) is not None and mode not in MODES:
        return [], f'mode {mode!r} is unknown; write upload or download'
    requests: list[_Request] = []
    try:
        mounts = [mount for mount in _chosen(all_mounts(), context_id, path) if mount.is_alive()]
        if not mounts:
            what = 'no context is' if _given(context_id) is None else f'{context_id} is not'
            return [], f'{what} mounted' + (f' at {path}' if _given(path) is not None else ' on this host')
        for mount in mounts:
            client = ControlClient(mount.socket)
            requests.append((mount, client))
            below = _below(mount, str(path)) if _given(path) is not None else None
            client.send('sync', path=below or None, mode=_given(mode) or 'upload', wait=True)
    except (CtxfsError, UsageError) as error:
        for _, client in requests:
            client.close()
        return [], str(error)
    return requests, ''


def _collect(requests: list[_Request], seconds: float) -> tuple[bool, str]:
    """(whether all succeeded, the causes of those that did not), after at most so many seconds. Closes the connections."""
    deadline, failures = time.monotonic() + seconds, []
    for mount, client in requests:
        with client:
            failure = _failure_of(client, deadline, seconds)
        if failure:
            failures.append(f'{mount.record.context_name} ({mount.record.mountpoint}): {failure}')
    return not failures, '; '.join(failures)


def _failure_of(client: ControlClient, deadline: float, seconds: float) -> str:
    try:
        answer = client.receive(max(0.001, deadline - time.monotonic()))
    except NoAnswer:
        return f'not done within {seconds:g} s; it goes on'
    except CtxfsError as error:
        return str(error)
    return '' if answer['ok'] else str(answer['message'])
