"""`ctxfs wait` and `ctxfs sync`.

Owns what these two promise when they exit 0: it is in the bucket. It must not know how anything gets there.
"""
from __future__ import annotations

import os
import time

import click

from ctxfs.config import nearest
from ctxfs.edge import flush_wait, preflight
from ctxfs.edge.cli_common import Invocation, common_options, names_of, print_json, select
from ctxfs.edge.cli_orders import order, targets
from ctxfs.edge.download_wait import left_to_download
from ctxfs.edge.progress import Progress
from ctxfs.edge.runtime_dir import Mount
from ctxfs.errors import CtxfsError, NotFound
from ctxfs.storage.registry import Registry


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
    mounts, relative = targets(invocation, reference, path)
    left = flush_wait.left_to_upload if mode == 'upload' else left_to_download
    with Progress(quiet=invocation.as_json) as progress:
        results = [order(mount, 'sync', progress, left, path=relative, mode=mode, wait=not no_wait) for mount in mounts]
    if invocation.as_json:
        print_json({'ok': all(r['ok'] for r in results), 'mounts': results})
    failed = [f'{r["contextName"]} ({r["mountpoint"]}): {r["message"]}' for r in results if not r['ok']]
    if failed:
        raise CtxfsError('; '.join(failed))
    if not invocation.as_json and not no_wait:
        for remark in [f'{r["contextName"]}: {r["message"]}' for r in results if r['message']]:
            click.echo(remark, err=True)
    return 0
