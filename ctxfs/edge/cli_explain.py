"""`ctxfs explain`: what is known of one path.

Owns how a path leads to its mount, and the words. It must not touch the path itself: a mount that is stuck would hold whoever does.
"""
from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import click

from ctxfs.edge.cli_common import Invocation, common_options, human_bytes, human_seconds, print_json, printable
from ctxfs.edge.client import ControlClient
from ctxfs.edge.mount_table import real_mountpoint
from ctxfs.edge.runtime_dir import Mount
from ctxfs.errors import NotFound


@click.command()
@click.argument('path', metavar='PATH')
@common_options
def explain(invocation: Invocation, path: str) -> int:
    """Say whether PATH is synced and by which rule, its state, and what is pending. PATH need not exist."""
    mount, relative = find(invocation, path)
    with ControlClient(mount.socket) as client:
        answer = client.call('explain', path=relative)
    if invocation.as_json:
        print_json({'contextId': mount.record.context_id, 'mountpoint': mount.record.mountpoint, **answer})
    else:
        print('\n'.join(render(mount.record.mountpoint, answer)))
    return 0


def find(invocation: Invocation, path: str) -> tuple[Mount, str]:
    """The running mount that the path lies in, and the path below its root. Raises NotFound outside of any."""
    mounts = sorted((m for m in invocation.mounts() if m.is_alive()), key=lambda m: len(m.record.mountpoint), reverse=True)
    for place in (os.path.abspath(os.path.expanduser(path)), _resolved(path)):
        for mount in mounts:
            if place == mount.record.mountpoint or place.startswith(mount.record.mountpoint.rstrip('/') + '/'):
                return mount, place[len(mount.record.mountpoint):].lstrip('/')
    at = ', '.join(mount.record.mountpoint for mount in mounts)
    raise NotFound(f'{path} is in no mounted context' + (f'; mounted are {at}' if at else '; nothing is mounted'))


def _resolved(path: str) -> str:
    """With the symlinks of its parents followed, but not the path itself: a symlink is what is asked about."""
    parent, name = os.path.split(os.path.abspath(os.path.expanduser(path)))
    return os.path.join(real_mountpoint(parent), name)


def render(mountpoint: str, answer: dict[str, Any]) -> Iterator[str]:
    synced = 'synced' if answer['isSynced'] else 'stays on this host'
    yield printable(f'{mountpoint.rstrip("/")}{answer["path"]}: {_STATES.get(answer["state"], answer["state"])}; {synced}')
    for label, text in (('rule', answer['rule']), ('size', human_bytes(answer['size']) if answer['exists'] else None),
                        ('object', answer['etag'] and f'version {answer["etag"]}'), ('lifecycle', _lifecycle(answer['lifecycle'])),
                        ('pending', _pending(answer['pending'])), ('keys', ', '.join(answer['keys']) if len(answer['keys']) > 1 else None),
                        ('conflict', _conflict(answer['conflict']))):
        if text:
            yield f'  {label:9} {printable(text)}'


_STATES = {'absent': 'does not exist', 'kept': 'removed here, kept in the bucket', 'directory': 'a directory', 'local': 'local-only',
           'dirty': 'changed here, not uploaded yet', 'uploading': 'being uploaded', 'sealed': 'uploaded', 'clean': 'as in the bucket'}


def _lifecycle(lifecycle: str) -> str | None:
    return f'{lifecycle}: deleted so long after its upload' if lifecycle else None


def _pending(pending: dict[str, Any] | None) -> str | None:
    if pending is None:
        return None
    parts = [', '.join(pending['reasons']), f'for {human_seconds(max(0.0, time.time() - pending["since"]))}']
    if pending['error']:
        parts.append(f'attempt {pending["attempt"]} failed: {pending["error"]}')
    if pending['nextRetry']:
        parts.append(f'next in {human_seconds(max(0.0, pending["nextRetry"] - time.time()))}')
    return ', '.join(parts)


def _conflict(conflict: dict[str, Any] | None) -> str | None:
    if conflict is None:
        return None
    whose = 'the published version of' if conflict.get('holds') == 'remote' else 'this host\'s version of'
    return (f'{whose} {conflict["original"]}, which two hosts changed, since {human_seconds(max(0.0, time.time() - conflict["since"]))}; '
            'settle it with ctxfs conflicts resolve')
