"""`ctxfs cache show`, `warm` and `drop`: the block cache of running mounts.

Owns what is printed. It must not know how the cache is kept, or what may leave it: the daemon does.
"""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctxfs.edge.cli_common import Invocation, common_options, human_bytes, human_files, print_json, printable, select, select_running
from ctxfs.edge.cli_orders import identity, order, targets, targets_of
from ctxfs.edge.client import ControlClient
from ctxfs.edge.download_wait import left_to_download
from ctxfs.edge.progress import Progress
from ctxfs.edge.runtime_dir import Mount
from ctxfs.errors import CtxfsError

if TYPE_CHECKING:
    from ctxfs.storage.block_cache import BlockCache


@click.group()
def cache() -> None:
    """Show, fill or empty the local cache of mounts."""


@cache.command()
@click.argument('reference', metavar='[CTX]', required=False)
@common_options
def show(invocation: Invocation, reference: str | None) -> int:
    """How full the cache is and of what, how often it had what was read, and where it lies; also of contexts that are not mounted any more."""
    found = [_described(mount) if mount.is_alive() else _left(invocation, mount) for mount in _known(invocation, reference)]
    if invocation.as_json:
        print_json({'mounts': found})
    else:
        print('\n\n'.join(map(_text, found)))
    return 0


def _known(invocation: Invocation, reference: str | None) -> list[Mount]:
    """Those that run, and those that have left a cache. Raises NotFound."""
    known = [mount for mount in invocation.mounts() if mount.is_alive() or _directory(invocation, mount).is_dir()]
    return select(known, reference, invocation.configuration) or select_running(invocation, reference)


def _directory(invocation: Invocation, mount: Mount) -> Path:
    state = Path(mount.record.state_dir)
    return state / 'cache' if invocation.paths.cache is None else invocation.paths.cache / state.name


def _left(invocation: Invocation, mount: Mount) -> dict[str, Any]:
    """Of one that does not run; what nobody counts any more is null."""
    directory = _directory(invocation, mount)
    return {**identity(mount), 'directory': str(directory), 'used': _cache_at(directory).volume(), 'dirty': None, 'kept': None, 'limit': None,
            'full': '', 'damaged': None, 'hits': None, 'misses': None, 'warmup': None}


def _cache_at(directory: Path) -> BlockCache:
    from ctxfs.storage.block_cache import BlockCache  # and diskcache, which the commands for running mounts need not wait for
    return BlockCache(directory, 0)


def _described(mount: Mount) -> dict[str, Any]:
    with ControlClient(mount.socket) as client:
        statistics, info = client.call('statistics'), client.call('mount_info')
    return {**identity(mount), 'directory': info['cacheDir'], **statistics['cache'], 'warmup': statistics['warmup']}


def _text(found: dict[str, Any]) -> str:
    head = f'{found["contextName"]} ({found["contextId"]}) at {found["mountpoint"]}'
    if found['limit'] is None:
        return '\n'.join(map(printable, (f'{head}: not mounted', f'  {"cache":9} {human_bytes(found["used"])}, in {found["directory"]}')))
    lines = [('cache', f'{human_bytes(found["used"] + found["dirty"])} of {human_bytes(found["limit"])}, in {found["directory"]}'),
             ('clean', f'{human_bytes(found["used"])}, which ctxfs cache drop frees'),
             ('staged', f'{human_bytes(found["dirty"])} wait for their upload'),
             ('kept', f'{human_bytes(found["kept"])} stay on this host, beyond the bound' if found['kept'] else ''),
             ('full', found['full']), ('read', _reads(found)), ('warm-up', _warmup(found['warmup']))]
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
    verb = 'is' if result['files'] == 1 else 'are'
    return f'{human_files(result["files"])} ({human_bytes(result["bytes"])}) {verb} in the cache'


def _dropped(invocation: Invocation, mount: Mount, below: str | None) -> dict[str, int]:
    if mount.is_alive():
        with ControlClient(mount.socket) as client:
            answer: dict[str, int] = client.call('cache_drop', path=below, timeout=None)
            return answer
    directory = _directory(invocation, mount)
    if not directory.is_dir():
        return {'entries': 0, 'bytes': 0}
    found = _cache_at(directory)
    before = found.volume()
    return {'entries': found.clear(), 'bytes': max(0, before - found.volume())}


@cache.command()
@click.argument('reference', metavar='[CTX]', required=False)
@click.argument('path', metavar='[PATH]', required=False)
@common_options
def drop(invocation: Invocation, reference: str | None, path: str | None) -> int:
    """Take clean content at and below PATH, or all of it, out of the cache; it is fetched again when it is read.

    What is not uploaded yet stays, whatever is dropped. Without PATH also of contexts that are not mounted any more.
    """
    whole = select(invocation.mounts(), reference, invocation.configuration) if path is None and reference is not None else []
    mounts, below = (whole, None) if whole else targets(invocation, reference, path)
    results = [{**identity(mount), **_dropped(invocation, mount, below)} for mount in mounts]
    if invocation.as_json:
        print_json({'mounts': results})
    else:
        for r in results:
            print(printable(f'{r["contextName"]} ({r["mountpoint"]}): {human_bytes(r["bytes"])} are free again'))
    return 0
