"""`ctxfs conflicts`: the files that two hosts changed, and which version is to have the name.

Owns the words of the command and how a path leads to its mount. It must not know how conflicts come about, nor what settling one does.
"""
from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from ctxfs.config import nearest
from ctxfs.edge.cli_common import Invocation, common_options, human_seconds, names_of, print_json, printable, select, select_running
from ctxfs.edge.cli_explain import find
from ctxfs.edge.client import ControlClient
from ctxfs.edge.runtime_dir import Mount
from ctxfs.errors import CtxfsError, NotFound, UsageError

_USAGE = 'write ctxfs conflicts [CTX] list, or ctxfs conflicts [CTX] resolve PATH --keep local|remote|both; see ctxfs conflicts --help'


@click.command()
@click.argument('words', metavar='[CTX] list|resolve [PATH]', nargs=-1)
@click.option('--keep', type=click.Choice(('local', 'remote', 'both')), help='The version that has the name afterwards; both: as they are.')
@common_options
def conflicts(invocation: Invocation, words: tuple[str, ...], keep: str | None) -> int:
    """List the files that two hosts changed, or settle which version has the name.

    \b
    list      both versions of each, one beside the other under a name of its own; without a running mount, what the last one left
    resolve   PATH is either of the two, below the mount point or from the root of CTX. --keep local: this host's version has the
              name, the other is removed; --keep remote: the published one has it, this host's is removed; --keep both: both stay.

    Renaming or removing the one with the name of its own settles a conflict, too.
    """
    reference, verb, path = _parsed(words)
    if (verb == 'resolve') != (keep is not None):
        raise UsageError('ctxfs conflicts resolve needs --keep local, --keep remote or --keep both' if keep is None
                         else 'ctxfs conflicts list takes no --keep; write ctxfs conflicts resolve PATH --keep …')
    return _list(invocation, reference) if verb == 'list' else _resolve(invocation, reference, path, str(keep))


def _parsed(words: tuple[str, ...]) -> tuple[str | None, str, str]:
    """(CTX, verb, PATH)."""
    match words:
        case () | ('list',):
            return None, 'list', ''
        case ('resolve', path):
            return None, 'resolve', path
        case (reference, 'list'):
            return reference, 'list', ''
        case (reference, 'resolve', path):
            return reference, 'resolve', path
    raise UsageError(_USAGE)


# --- list --------------------------------------------------------------------------------------------------------------------------

def _list(invocation: Invocation, reference: str | None) -> int:
    mounts = invocation.mounts()
    chosen = select(mounts, reference, invocation.configuration)
    if reference is not None and not chosen:
        raise NotFound(f'{reference} was not mounted here{nearest(reference, [*names_of(mounts), *invocation.configuration.mounts])}')
    found = [{**entry, 'mountpoint': mount.record.mountpoint, 'contextId': mount.record.context_id} for mount in chosen for entry in _of(mount)]
    if invocation.as_json:
        print_json({'conflicts': found})
    else:
        for entry in found:
            print(_line(entry))
    return 0


def _of(mount: Mount) -> list[dict[str, Any]]:
    if mount.is_alive():
        with ControlClient(mount.socket) as client:
            return client.call('conflicts')
    from ctxfs.edge.tally_json import copy_to_dict  # brings in SQLite, as what it renders does
    from ctxfs.storage.tally import copies_at
    try:
        return [copy_to_dict(copy) for copy in copies_at(Path(mount.record.state_dir))]
    except NotFound:
        return []       # it never came to have a database
    except CtxfsError as error:
        raise CtxfsError(f'{mount.record.context_name} is not mounted, and its state directory cannot be read: {error}') from error


def _line(entry: dict[str, Any]) -> str:
    age = human_seconds(max(0.0, time.time() - entry['since']))
    whose = 'the published version' if entry.get('holds') == 'remote' else 'this host\'s version'
    held = ', not uploaded' if entry.get('held') else ''
    return printable(f'{entry["mountpoint"]}{entry["path"]}: {whose} of {entry["original"]}{held}, {age} ago')


# --- resolve -----------------------------------------------------------------------------------------------------------------------

def _resolve(invocation: Invocation, reference: str | None, path: str, keep: str) -> int:
    mount, relative = _located(invocation, reference, path)
    with ControlClient(mount.socket) as client:
        answer = client.call('resolve', path=relative, keep=keep)
    if invocation.as_json:
        print_json({'contextId': mount.record.context_id, 'mountpoint': mount.record.mountpoint, **answer})
    return 0


def _located(invocation: Invocation, reference: str | None, path: str) -> tuple[Mount, str]:
    """The mount that settles it, and what to ask it for. Raises NotFound where none runs, UsageError where several do."""
    if reference is None:
        try:
            return find(invocation, path)
        except NotFound:
            if path.startswith('/'):
                raise
    try:
        running = select_running(invocation, reference)
    except NotFound as error:
        raise NotFound(f'{error}: a conflict is settled on a running mount; mount the context first') from None
    if len(running) > 1:
        raise UsageError(f'{len(running)} contexts are mounted: write ctxfs conflicts CTX resolve {path}, or a path below the mount point')
    return running[0], path
