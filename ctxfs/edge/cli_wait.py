"""`ctxfs wait` and `ctxfs sync`.

Owns what these two promise when they exit 0: it is in the bucket. It must not know how anything gets there.
"""
from __future__ import annotations

import os
import posixpath
import time
from typing import Any

import click

from ctxfs.config import nearest
from ctxfs.edge import flush_wait, preflight
from ctxfs.edge.cli_common import Invocation, common_options, names_of, print_json, select, select_running
from ctxfs.edge.client import ControlClient, NoAnswer
from ctxfs.edge.download_wait import left_to_download
from ctxfs.edge.mount_table import real_mountpoint
from ctxfs.edge.progress import Progress
from ctxfs.edge.runtime_dir import Mount
from ctxfs.errors import CtxfsError, NotFound, UsageError
from ctxfs.storage.registry import Registry

PROGRESS_SECONDS = 0.5


@click.command()
@click.argument('reference', metavar='[CTX]', required=False)
@click.option('--timeout', type=click.FloatRange(min=0), metavar='S', help='Give up after so many seconds.')
@common_options
def wait(invocation: Invocation, reference: str | None, timeout: float | None) -> int:
    """Wait until nothing is pending; fails with the cause when something could not be uploaded.

    After an unmount it waits for the end of the write-back; while mounted, until what was changed so far has been uploaded.
    """
    mounts = invocation.mounts()
    found = select(mounts, reference, invocation.configuration)
    if not found and reference is not None:
        _check_known(invocation, reference, mounts)
    with Progress(quiet=invocation.as_json) as progress:
        outcomes = _wait_for_all(found, timeout, progress)
    if invocation.as_json:
        print_json({'ok': all(o.ok for o in outcomes), 'mounts': outcomes})
    failure = flush_wait.failure_of(outcomes)
    if failure is not None:
        raise failure
    return 0


def _wait_for_all(mounts: list[Mount], timeout: float | None, progress: Progress) -> list[flush_wait.Outcome]:
    """One after the other: the slowest decides in any order. The timeout is for all of them."""
    deadline = None if timeout is None else time.monotonic() + timeout
    outcomes = []
    for mount in mounts:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        outcomes.append(flush_wait.wait_for(mount, timeout=left, report=progress.update))
    return outcomes


def _check_known(invocation: Invocation, reference: str, mounts: list[Mount]) -> None:
    """A context that was never mounted here has nothing pending; a mistyped one must not look like that. Raises NotFound."""
    if os.sep in reference:
        raise NotFound(f'no context is or was mounted at {reference}{nearest(reference, names_of(mounts))}')
    is_default = preflight.is_default_store(invocation.store_url, invocation.paths.data)
    store = preflight.open_checked_store(invocation.store_url, create=is_default, context=reference)
    try:
        Registry(store).find(reference)
    except NotFound as e:
        hint = nearest(reference, names_of(mounts))
        if not hint:
            raise
        raise NotFound(f'no context {reference}{hint}') from e
    finally:
        store.close()


@click.command()
@click.argument('reference', metavar='[CTX]', required=False)
@click.argument('path', metavar='[PATH]', required=False)
@click.option('--mode', type=click.Choice(['upload', 'download']), default='upload', show_default=True,
              help='Upload local changes, or take over remote ones and fetch their content.')
@click.option('--no-wait', is_flag=True, help='Return when it has begun.')
@common_options
def sync(invocation: Invocation, reference: str | None, path: str | None, mode: str, no_wait: bool) -> int:
    """Upload what is pending now, or have what is in the bucket at PATH (relative to the mount's root) here, names and content."""
    mounts, relative = _targets(invocation, reference, path)
    with Progress(quiet=invocation.as_json) as progress:
        results = [_sync_one(mount, relative, mode, not no_wait, progress) for mount in mounts]
    if invocation.as_json:
        print_json({'ok': all(r['ok'] for r in results), 'mounts': results})
    failed = [f'{r["contextName"]} ({r["mountpoint"]}): {r["message"]}' for r in results if not r['ok']]
    if failed:
        raise CtxfsError('; '.join(failed))
    if not invocation.as_json and not no_wait:
        for remark in [f'{r["contextName"]}: {r["message"]}' for r in results if r['message']]:
            click.echo(remark, err=True)
    return 0


def _targets(invocation: Invocation, reference: str | None, path: str | None) -> tuple[list[Mount], str | None]:
    """The mounts and the path below their root. A lone path inside a mount means both."""
    if reference is not None and path is None:
        place = real_mountpoint(reference)
        for mount in (m for m in invocation.mounts() if m.is_alive()):
            if place.startswith(mount.record.mountpoint + os.sep):
                return [mount], os.path.relpath(place, mount.record.mountpoint)
    mounts = select_running(invocation, reference)
    return mounts, None if path is None else _below_root(path, mounts)


def _below_root(path: str, mounts: list[Mount]) -> str:
    for mount in mounts:
        if path == mount.record.mountpoint or path.startswith(mount.record.mountpoint + os.sep):
            path = path[len(mount.record.mountpoint):]
            break
    relative = posixpath.normpath(path.lstrip('/') or '.')
    if relative == '..' or relative.startswith('../'):
        raise UsageError(f'{path} is outside of the mount')
    return '' if relative == '.' else relative


def _sync_one(mount: Mount, path: str | None, mode: str, wait: bool, progress: Progress) -> dict[str, Any]:
    """The daemon's answer, however long it takes, with progress meanwhile over a second connection."""
    with ControlClient(mount.socket) as client:
        client.send('sync', path=path, mode=mode, wait=wait)
        while True:
            try:
                result = client.receive(PROGRESS_SECONDS)
                break
            except NoAnswer:
                status = flush_wait.ask_status(mount)
                if status is not None:
                    progress.update(mount, flush_wait.left_to_upload(status) if mode == 'upload' else left_to_download(status))
    r = mount.record
    return {'contextId': r.context_id, 'contextName': r.context_name, 'mountpoint': r.mountpoint, 'ok': True, 'message': '', **result}
