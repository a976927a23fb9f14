"""What commands that order something of running mounts have in common: which mounts, which path below their roots, and progress meanwhile.

Owns how CTX and PATH are told apart. It must not know what is ordered.
"""
from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Sequence
from typing import Any

from ctxfs.edge import flush_wait
from ctxfs.edge.cli_common import Invocation, select, select_running
from ctxfs.edge.client import ControlClient, NoAnswer
from ctxfs.edge.mount_table import real_mountpoint
from ctxfs.edge.progress import Progress
from ctxfs.edge.runtime_dir import Mount, Pending
from ctxfs.errors import UsageError

PROGRESS_SECONDS = 0.5


def targets(invocation: Invocation, reference: str | None, path: str | None) -> tuple[list[Mount], str | None]:
    """The mounts and the path below their root. A lone path inside a mount means both. Raises NotFound, UsageError."""
    if reference is not None and path is None and (found := _inside(invocation, reference)) is not None:
        return [found[0]], found[1]
    mounts = select_running(invocation, reference)
    return mounts, None if path is None else _below_root(path, mounts)


def targets_of(invocation: Invocation, words: Sequence[str]) -> list[tuple[Mount, str]]:
    """Of `[CTX] PATH…`: each path with its mount. The first word is CTX where that is mounted; alone, it means all of it."""
    first, *rest = words
    if select([m for m in invocation.mounts() if m.is_alive()], first, invocation.configuration):
        mounts = select_running(invocation, first)
        return [(mount, _below_root(path, mounts)) for path in rest or [''] for mount in mounts]
    found = []
    for path in words:
        mounts, below = targets(invocation, path, None)
        found += [(mount, below or '') for mount in mounts]
    return found


def _inside(invocation: Invocation, path: str) -> tuple[Mount, str] | None:
    place = real_mountpoint(path)
    for mount in (m for m in invocation.mounts() if m.is_alive()):
        if place.startswith(mount.record.mountpoint + os.sep):
            return mount, os.path.relpath(place, mount.record.mountpoint)
    return None


def _below_root(path: str, mounts: list[Mount]) -> str:
    for mount in mounts:
        if path == mount.record.mountpoint or path.startswith(mount.record.mountpoint + os.sep):
            path = path[len(mount.record.mountpoint):]
            break
    relative = posixpath.normpath(path.lstrip('/') or '.')
    if relative == '..' or relative.startswith('../'):
        raise UsageError(f'{path} is outside of the mount')
    return '' if relative == '.' else relative


def order(mount: Mount, method: str, progress: Progress, left: Callable[[dict[str, Any]], Pending], **params: Any) -> dict[str, Any]:
    """The daemon's answer, however long it takes, with what is `left` by its status meanwhile, over a second connection."""
    with ControlClient(mount.socket) as client:
        client.send(method, **params)
        while True:
            try:
                result = client.receive(PROGRESS_SECONDS)
                break
            except NoAnswer:
                status = flush_wait.ask_status(mount)
                if status is not None:
                    progress.update(mount, left(status))
    return {**identity(mount), 'ok': True, 'message': '', **result}


def identity(mount: Mount) -> dict[str, Any]:
    """By which JSON tells mounts apart."""
    r = mount.record
    return {'contextId': r.context_id, 'contextName': r.context_name, 'mountpoint': r.mountpoint}
