"""Waiting until a mount has nothing pending, whatever its daemon does meanwhile: serve, flush, end, die, or make room for the next.

Owns the rule that makes `fusermount3 -u M; ctxfs wait CTX` free of races: first the process, then the result (see runtime_dir). It must
not print: progress goes to the callable it was given.
"""
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import msgspec

from ctxfs.edge.client import ControlClient, NoAnswer
from ctxfs.edge.runtime_dir import Mount, MountResult, Pending, reread, wait_for_end
from ctxfs.errors import CtxfsError

POLL_SECONDS = 0.2
#: a daemon that left its result ends within this time
END_SECONDS = 10.0

Report = Callable[[Mount, Pending], None]


class Outcome(msgspec.Struct, frozen=True, kw_only=True, rename='camel'):
    """How the wait for one mount ended; `message` is for people, one line."""
    ok: bool
    context_id: str
    context_name: str
    mountpoint: str
    state_dir: str
    pending: Pending
    message: str


def wait_for(mount: Mount, *, timeout: float | None, report: Report = lambda mount, pending: None) -> Outcome:
    """Until nothing is pending: a daemon that serves a mount has uploaded everything, one that flushes has ended. At most `timeout`
    seconds. Never raises for what the mount does."""
    with contextlib.closing(_Asker()) as asker:
        return _wait_for(mount, timeout, report, asker)


def _wait_for(mount: Mount, timeout: float | None, report: Report, asker: _Asker) -> Outcome:
    deadline = None if timeout is None else time.monotonic() + timeout
    pending = Pending()
    while True:
        left = POLL_SECONDS if deadline is None else min(POLL_SECONDS, deadline - time.monotonic())
        ended = wait_for_end(mount, max(0.0, left))
        result = mount.result()             # INVARIANT: read after the process, never before
        if ended or result is not None:
            now = reread(mount)
            if now.record != mount.record:  # the next mount of this context has taken over, and what is pending with it
                mount = now
                continue
            if not ended:
                wait_for_end(mount, END_SECONDS)    # its locks go with it: the caller may want to mount again
            return _finished(mount, result) if result else _died(mount, pending)
        status = ask_status(mount)
        if status is not None:
            pending = pending_of(status)
            report(mount, left_to_upload(status))
            if status.get('damage'):
                return outcome(mount, ok=False, pending=pending, message=status['damage'])
            if status.get('state') != 'flushing' and mount.is_attached():
                if not pending.files:
                    return outcome(mount, ok=True, pending=pending, message='everything is in the bucket')
                failure = asker.failure_of(mount)
                if failure:
                    return outcome(mount, ok=False, pending=pending, message=failure)
        if deadline is not None and time.monotonic() >= deadline:
            message = f'still {describe(pending)} pending after {round(timeout or 0, 1):g} s'
            if status is not None and status.get('state') != 'flushing' and not mount.is_attached():
                message += '; unmounted here, but another mount namespace (a container?) has it, too, or files in it are open'
            return outcome(mount, ok=False, pending=pending, message=message)


def wait_detached(mount: Mount, seconds: float) -> bool:
    """Until the mount point is gone; False where it is not within so many seconds."""
    deadline = time.monotonic() + seconds
    while mount.is_attached():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS / 4)
    return True


class _Asker:
    """Has a mount that serves upload now what it would upload later, and knows why it could not."""

    def __init__(self) -> None:
        self._client: ControlClient | None = None
        self._mount: Mount | None = None

    def failure_of(self, mount: Mount) -> str:
        """Asks at the first call for a mount, and again when the daemon's answer came and something new is pending."""
        try:
            if self._client is None or self._mount != mount:
                self.close()
                self._client, self._mount = ControlClient(mount.socket), mount
                self._client.send('wait')
            answer = self._client.receive(0)
        except NoAnswer:
            return ''
        except CtxfsError:      # gone, or it does not know how: the process and its result tell
            self.close()
            return ''
        self.close()
        return '' if answer['ok'] else str(answer['message'])

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def pending_of(status: dict[str, Any]) -> Pending:
    pending = status.get('pending') or {}
    return Pending(files=int(pending.get('files', 0)), bytes=int(pending.get('bytes', 0)))


def left_to_upload(status: dict[str, Any]) -> Pending:
    """As far as is known: of an upload that runs, what it has not sent; files stay pending until the index knows them, too."""
    pending = pending_of(status)
    for task in status.get('tasks') or ():
        if task['taskType'] == 'upload' and task['status'] == 'Running' and task['filesTotal']:
            return Pending(files=min(pending.files, max(1, task['filesTotal'] - task['filesDone'])),
                           bytes=min(pending.bytes, max(0, task['bytesTotal'] - task['bytesDone'])))
    return pending


def ask_status(mount: Mount) -> dict[str, Any] | None:
    """None when the daemon does not answer now."""
    try:
        with ControlClient(mount.socket) as client:
            return client.call('status')
    except CtxfsError:
        return None     # before its socket is there, or after; too busy, or failing: asked again


def describe(pending: Pending) -> str:
    from ctxfs.edge.cli_common import human_bytes, human_files
    return f'{human_files(pending.files)} ({human_bytes(pending.bytes)})'


def _finished(mount: Mount, result: MountResult) -> Outcome:
    return outcome(mount, ok=result.ok, pending=result.pending, message=result.message)


def _died(mount: Mount, pending: Pending) -> Outcome:
    return outcome(mount, ok=False, pending=pending, message='its daemon died; mount again to upload what is journaled')


def outcome(mount: Mount, *, ok: bool, pending: Pending, message: str) -> Outcome:
    r = mount.record
    return Outcome(ok=ok, context_id=r.context_id, context_name=r.context_name, mountpoint=r.mountpoint, state_dir=r.state_dir,
                   pending=pending, message=message)


def failure_of(outcomes: list[Outcome]) -> CtxfsError | None:
    """One error for all that failed; None when none did."""
    failed = [f'{o.context_name} ({o.mountpoint}): {o.message}' for o in outcomes if not o.ok]
    return CtxfsError('; '.join(failed)) if failed else None
