"""`ctxfs cache show`, `warm` and `drop`: the block cache of running mounts.

Owns what is printed. It must not know how the cache is kept, or what may leave it: the daemon does.
"""
from __future__ import annotations

from typing import Any

import click

from ctxfs.edge.cli_common import Invocation, common_options, human_bytes, human_files, print_json, printable, select_running
from ctxfs.edge.cli_orders import identity, order, targets, targets_of
from ctxfs.edge.client import ControlClient
from ctxfs.edge.download_wait import left_to_download
from ctxfs.edge.progress import Progress
from ctxfs.edge.runtime_dir import Mount
from ctxfs.errors import CtxfsError


@click.group()
def cache() -> None:
    """Show, fill or empty the local cache of mounts."""


@cache.command()
@click.argument('reference', metavar='[CTX]', required=False)
@common_options
def show(invocation: Invocation, reference: str | None) -> int:
    """How full the cache is and of what, how often it had what was read, and where it lies."""
    found = [_described(mount) for mount in select_running(invocation, reference)]
    if invocation.as_json:
        print_json({'mounts': found})
    else:
        print('\n\n'.join(map(_text, found)))
    return 0


def _described(mount: Mount) -> dict[str, Any]:
    with ControlClient(mount.socket) as client:
        statistics, info = client.call('statistics'), client.call('mount_info')
    return {**identity(mount), 'directory': info['cacheDir'], **statistics['cache'], 'warmup': statistics['warmup']}


def _text(found: dict[str, Any]) -> str:
    lines = [('cache', f'{human_bytes(found["used"] + found["dirty"])} of {human_bytes(found["limit"])}, in {found["directory"]}'),
             ('clean', f'{human_bytes(found["used"])}, which ctxfs cache drop frees'),
             ('staged', f'{human_bytes(found["dirty"])} wait for their upload'),
             ('kept', f'{human_bytes(found["kept"])} stay on this host, beyond the bound' if found['kept'] else ''),
             ('full', found['full']), ('read', _reads(found)), ('warm-up', _warmup(found['warmup']))]
    head = f'{found["contextName"]} ({found["contextId"]}) at {found["mountpoint"]}'
    return '\n'.join([printable(head), *(f'  {label:9} {printable(text)}' for label, text in lines if text)])


def _reads(found: dict[str, Any]) -> str:
    total = found['hits'] + found['misses']
    damaged = f', {found["damaged"]} cached blocks had gone bad' if found['damaged'] else ''
    return f'{found["hits"]} of {total} pieces were here ({100 * found["hits"] / total:.0f} %){damaged}' if total else ''


def _warmup(warmup: dict[str, Any]) -> str:
    if warmup['state'] in ('off', 'waiting', 'ended') or not warmup['filesTotal']:
        return warmup['state'] if warmup['state'] != 'idle' else ''
    return f'{warmup["state"]}, {warmup["filesDone"]} of {human_files(warmup["filesTotal"])}'


@cache.command()
@click.argument('words', metavar='[CTX] PATH…', nargs=-1, required=True)
@click.option('--no-wait', is_flag=True, help='Return when it has begun.')
@common_options
def warm(invocation: Invocation, words: tuple[str, ...], no_wait: bool) -> int:
    """Bring the content of each PATH into the cache, as far as it fits; of CTX alone, all of it.

    It is the content that the mount knows of: ctxfs sync --mode download looks for remote changes first.
    """
    with Progress(quiet=invocation.as_json) as progress:
        results = [{**order(mount, 'cache_warm', progress, left_to_download, path=path, wait=not no_wait), 'path': f'/{path}'}
                   for mount, path in targets_of(invocation, words)]
    if invocation.as_json:
        print_json({'ok': all(r['ok'] for r in results), 'mounts': results})
    failed = [f'{r["contextName"]}: {r["path"]}: {r["message"]}' for r in results if not r['ok']]
    if failed:
        raise CtxfsError('; '.join(failed))
    if not invocation.as_json and not no_wait:
        for r in results:
            click.echo(printable(f'{r["path"]}: {r["message"] or _in_cache(r)}'), err=bool(r['message']))
    return 0


def _in_cache(result: dict[str, Any]) -> str:
    return f'{human_files(result["files"])} ({human_bytes(result["bytes"])}) are in the cache'


@cache.command()
@click.argument('reference', metavar='[CTX]', required=False)
@click.argument('path', metavar='[PATH]', required=False)
@common_options
def drop(invocation: Invocation, reference: str | None, path: str | None) -> int:
    """Take clean content at and below PATH, or all of it, out of the cache; it is fetched again when it is read.

    What is not uploaded yet stays, whatever is dropped.
    """
    mounts, below = targets(invocation, reference, path)
    results = []
    for mount in mounts:
        with ControlClient(mount.socket) as client:
            results.append({**identity(mount), **client.call('cache_drop', path=below, timeout=None)})
    if invocation.as_json:
        print_json({'mounts': results})
    else:
        for r in results:
            print(printable(f'{r["contextName"]} ({r["mountpoint"]}): {human_bytes(r["bytes"])} are free again'))
    return 0
