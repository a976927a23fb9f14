"""`ctxfs watch`: the events of running mounts, one a line.

Owns the merging of several mounts' streams and the words. It must not know when an event is published.
"""
from __future__ import annotations

import json
import queue
import threading
import time
from typing import Any

import click

from ctxfs.edge.cli_common import Invocation, common_options, human_bytes, human_files, printable, select_running
from ctxfs.edge.client import ControlClient, DaemonGone
from ctxfs.edge.runtime_dir import Mount
from ctxfs.edge.status_text import is_telling, progress_of
from ctxfs.errors import CtxfsError

#: events that wait for a slow reader of this program; beyond that the daemons drop theirs and say so
QUEUED = 1000

_Item = tuple[Mount, 'dict[str, Any] | CtxfsError | None']


@click.command()
@click.argument('reference', metavar='[CTX]', required=False)
@click.option('--kind', 'kinds', multiple=True, metavar='KIND', help='Only events of this kind; may be repeated.')
@common_options
def watch(invocation: Invocation, reference: str | None, kinds: tuple[str, ...]) -> int:
    """Print what happens as it happens, one event a line, until interrupted or nothing is mounted any more."""
    mounts = select_running(invocation, reference)
    clients = [ControlClient(mount.socket) for mount in mounts]
    items: queue.Queue[_Item] = queue.Queue(QUEUED)
    for mount, client in zip(mounts, clients, strict=True):
        threading.Thread(target=_read, args=(mount, client, list(kinds) or None, items), daemon=True).start()
    try:
        return _print_all(items, len(mounts), invocation.as_json)
    except KeyboardInterrupt:
        return 0    # how one ends it
    finally:
        for client in clients:
            client.close()


def _read(mount: Mount, client: ControlClient, kinds: list[str] | None, items: queue.Queue[_Item]) -> None:
    try:
        for event in client.stream('watch', kinds=kinds):
            items.put((mount, event))
    except DaemonGone:
        items.put((mount, None))
    except CtxfsError as error:
        items.put((mount, error))


def _print_all(items: queue.Queue[_Item], running: int, as_json: bool) -> int:
    while running:
        mount, event = items.get()
        if isinstance(event, CtxfsError):
            raise event
        if event is None:
            running -= 1
        elif as_json:
            r = mount.record
            print(json.dumps({'contextId': r.context_id, 'contextName': r.context_name, 'mountpoint': r.mountpoint, **event}), flush=True)
        elif event['kind'] != 'watching':
            at = time.strftime('%H:%M:%S', time.localtime(event['time']))
            print(printable(f'{at} {mount.record.context_name}: {describe(event)}'), flush=True)
    return 0


def describe(event: dict[str, Any]) -> str:
    """One event in words."""
    lost = f' ({event["dropped"]} events before it are lost)' if event.get('dropped') else ''
    return _words(event) + lost


def _words(event: dict[str, Any]) -> str:
    kind = event['kind']
    if kind.startswith('task-'):
        return _task(kind, event)
    if kind == 'pending':
        return f'{human_files(event["files"])} ({human_bytes(event["bytes"])}) pending' if event['files'] else 'nothing is pending'
    if kind == 'conflict':
        whose = 'theirs' if event.get('holds') == 'remote' else 'ours'
        return f'conflict: another host changed {event["original"]}, too; {whose} is {event["path"]} now'
    if kind == 'remote-change':
        return 'from the bucket: ' + ', '.join(f'{event[what]} {what}' for what in ('created', 'changed', 'removed') if event.get(what))
    if kind in ('error', 'policy-refused'):
        return f'{kind}: {event.get("message", "")}'
    return kind


def _task(kind: str, event: dict[str, Any]) -> str:
    what = event['taskType']
    if kind == 'task-began':
        return f'{what} begins'
    if kind == 'task-progress':
        return f'{what} {progress_of(event, {})}' if is_telling(event) else f'{what} goes on'
    if event['errorMessage']:
        return f'{what} failed: {event["errorMessage"]}'
    return f'{what} done: {human_files(event["filesDone"])}, {human_bytes(event["bytesDone"])}'
