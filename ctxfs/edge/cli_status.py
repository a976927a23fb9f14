"""`ctxfs status`: the mounts of this host, what is pending, what failed and why.

Owns the status of a mount that cannot speak for itself (its daemon died, or ended with files left) and how all of it looks to people.
It must not know where the numbers come from: daemons answer `status` with what scripts get as JSON.
"""
from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from ctxfs.config import nearest
from ctxfs.edge import flush_wait
from ctxfs.edge.cli_common import (
    Invocation,
    common_options,
    human_bytes,
    human_files,
    human_seconds,
    names_of,
    print_json,
    printable,
    select,
)
from ctxfs.edge.runtime_dir import Mount
from ctxfs.errors import NotFound

WATCH_SECONDS = 1.0
#: so many failed files and odd keys are listed for people; JSON has all
MAX_LISTED = 20


@click.command()
@click.argument('reference', metavar='[CTX]', required=False)
@click.option('--watch', is_flag=True, help='Show it again every second, until interrupted.')
@common_options
def status(invocation: Invocation, reference: str | None, watch: bool) -> int:
    """Show mounts, what is pending, and what failed with its cause."""
    while True:
        shown = {'mounts': collect(invocation, reference)}
        if watch and sys.stdout.isatty():
            sys.stdout.write('\x1b[H\x1b[2J')
        if invocation.as_json:
            print_json(shown)
        else:
            print('\n'.join(render(shown['mounts'])))
        if not watch:
            return 0
        sys.stdout.flush()
        time.sleep(WATCH_SECONDS)


def collect(invocation: Invocation, reference: str | None) -> list[dict[str, Any]]:
    """Running mounts first. Raises NotFound for a CTX that was never mounted on this host."""
    mounts = invocation.mounts()
    chosen = select(mounts, reference)
    if reference is not None and not chosen:
        raise NotFound(f'{reference} is not mounted here{nearest(reference, names_of(mounts))}')
    found = [value for mount in chosen if (value := status_of(mount)) is not None]
    return sorted(found, key=lambda value: value['pid'] is None)


def status_of(mount: Mount) -> dict[str, Any] | None:
    """What the daemon says; what is known of one that is gone and left something; None for one that ended well."""
    if mount.is_alive():
        answer = flush_wait.ask_status(mount)
        if answer is not None:
            return answer
    # a daemon that ended between the two questions: its result is there now (INVARIANT of runtime_dir)
    result = mount.result()
    if result is not None and result.ok:
        return None
    if mount.is_alive():
        return _silent(mount, 'busy', mount.record.pid, 'does not answer now')
    if result is not None:
        value = _silent(mount, 'failed', None, result.message)
        value['pending'].update(files=result.pending.files, bytes=result.pending.bytes)
        return value
    return _silent(mount, 'died', None, 'its daemon died; mount again to upload what is journaled')


def _silent(mount: Mount, state: str, pid: int | None, message: str) -> dict[str, Any]:
    r = mount.record
    return {'contextId': r.context_id, 'contextName': r.context_name, 'mountpoint': r.mountpoint, 'pid': pid, 'store': r.store,
            'stateDir': r.state_dir, 'state': state, 'message': message, 'pending': {'files': 0, 'bytes': 0, 'oldestSeconds': 0},
            'localOnly': {'files': 0, 'bytes': 0}, 'conflicts': 0, 'tasks': [], 'unmountable': []}


def render(mounts: list[dict[str, Any]]) -> Iterator[str]:
    if not mounts:
        yield 'nothing is mounted'
    for number, mount in enumerate(mounts):
        if number:
            yield ''
        yield from _render_mount(mount)


def _render_mount(mount: dict[str, Any]) -> Iterator[str]:
    pid = f', pid {mount["pid"]}' if mount.get('pid') else ''
    yield printable(f'{mount["contextName"]} ({mount["contextId"]}) at {mount["mountpoint"]}: {mount.get("state", "mounted")}{pid}')
    yield printable(f'  store     {mount["store"]}')
    if mount.get('message'):
        yield printable(f'  note      {mount["message"]}')
    yield f'  pending   {_pending(mount["pending"])}'
    local = mount.get('localOnly') or {}
    if local.get('files'):
        yield f'  local     {human_files(local["files"])} ({human_bytes(local["bytes"])}) stay on this host'
    if mount.get('conflicts'):
        yield f'  conflicts {mount["conflicts"]}'
    yield from _listed('failed', [_failed(task) for task in mount.get('tasks', ()) if task.get('errorMessage')])
    yield from _listed('hidden', [f'{entry["key"]}: {entry["reason"]}' for entry in mount.get('unmountable', ())])


def _pending(pending: dict[str, Any]) -> str:
    if not pending.get('files'):
        return 'nothing'
    age = pending.get('oldestSeconds')
    return f'{human_files(pending["files"])} ({human_bytes(pending["bytes"])})' + (f', the oldest for {human_seconds(age)}' if age else '')


def _failed(task: dict[str, Any]) -> str:
    """`src/a: CAUSE (attempt 3, next in 12 s)`."""
    notes = [f'attempt {task["attempt"]}'] if task.get('attempt') else []
    if task.get('nextRetry'):
        notes.append(f'next in {human_seconds(max(0.0, task["nextRetry"] - time.time()))}')
    return f'{task.get("path") or "/"}: {task["errorMessage"]}' + (f' ({", ".join(notes)})' if notes else '')


def _listed(label: str, lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines[:MAX_LISTED]):
        yield f'  {label if number == 0 else "":9} {printable(line)}'
    if len(lines) > MAX_LISTED:
        yield f'  {"":9} and {len(lines) - MAX_LISTED} more; --json has them all'
