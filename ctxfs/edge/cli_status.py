"""`ctxfs status`: the mounts of this host, what is pending, what is being transferred, what failed and why.

Owns the status of a mount that cannot speak for itself (its daemon died, or ended with files left). It must not know where the numbers
come from (daemons answer `status` with what scripts get as JSON), nor how they look (status_text.py).
"""
from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ctxfs.config import nearest
from ctxfs.edge import flush_wait
from ctxfs.edge.cli_common import Invocation, common_options, names_of, print_json, select
from ctxfs.edge.runtime_dir import Mount
from ctxfs.edge.screen import Screen
from ctxfs.edge.status_text import render
from ctxfs.errors import CtxfsError, NotFound

WATCH_SECONDS = 1.0


@click.command()
@click.argument('reference', metavar='[CTX]', required=False)
@click.option('--watch', is_flag=True, help='Show it again every second, until interrupted or nothing is mounted any more.')
@common_options
def status(invocation: Invocation, reference: str | None, watch: bool) -> int:
    """Show mounts, what is pending and being transferred, and what failed with its cause."""
    if watch:
        return _watch(invocation, reference)
    mounts = collect(invocation, reference)
    if invocation.as_json:
        print_json({'mounts': mounts})
    else:
        print('\n'.join(render(mounts)))
    return 0


def _watch(invocation: Invocation, reference: str | None) -> int:
    """On a terminal in place; elsewhere one block, or one line of JSON, a second."""
    if invocation.as_json:
        return _repeat(invocation, reference, lambda mounts: print(json.dumps({'mounts': mounts}), flush=True))
    if not sys.stdout.isatty():
        return _repeat(invocation, reference, lambda mounts: print('\n'.join([*render(mounts), '']), flush=True))
    with Screen() as screen:
        return _repeat(invocation, reference, lambda mounts: screen.show(list(render(mounts))))


def _repeat(invocation: Invocation, reference: str | None, show: Callable[[list[dict[str, Any]]], None]) -> int:
    """Until Ctrl-C, which is how one ends it and no failure, or until no daemon is left that could change anything."""
    try:
        while True:
            began = time.monotonic()
            mounts = collect(invocation, reference)
            show(mounts)
            if all(mount['pid'] is None for mount in mounts):
                return 0
            time.sleep(max(0.0, began + WATCH_SECONDS - time.monotonic()))
    except KeyboardInterrupt:
        return 0


def collect(invocation: Invocation, reference: str | None) -> list[dict[str, Any]]:
    """Running mounts first. Raises NotFound for a CTX that was never mounted on this host."""
    mounts = invocation.mounts()
    chosen = select(mounts, reference, invocation.configuration)
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
        return value | _journaled(mount)
    return _silent(mount, 'died', None, 'its daemon died; mount again to upload what is journaled') | _journaled(mount)


def _journaled(mount: Mount) -> dict[str, Any]:
    """What the state directory holds for the next mount; nothing where its database cannot be read (of another version, say)."""
    from ctxfs.edge.tally_json import tally_to_dict  # brings in SQLite, which a status of running mounts can do without
    try:
        return tally_to_dict(Path(mount.record.state_dir))
    except CtxfsError:
        return {}


def _silent(mount: Mount, state: str, pid: int | None, message: str) -> dict[str, Any]:
    r = mount.record
    return {'contextId': r.context_id, 'contextName': r.context_name, 'mountpoint': r.mountpoint, 'pid': pid, 'store': r.store,
            'stateDir': r.state_dir, 'state': state, 'message': message, 'pending': {'files': 0, 'bytes': 0, 'oldestSeconds': 0},
            'localOnly': {'files': 0, 'bytes': 0}, 'conflicts': 0, 'tasks': [], 'failedFiles': 0, 'failed': [], 'unmountable': []}
