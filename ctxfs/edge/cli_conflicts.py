"""`ctxfs conflicts`: the copies that were made because two hosts changed one file.

Owns how they are listed. It must not know how they came about.
"""
from __future__ import annotations

import time
from typing import Any

import click

from ctxfs.edge.cli_common import Invocation, common_options, human_seconds, print_json, printable, select_running
from ctxfs.edge.client import ControlClient
from ctxfs.edge.runtime_dir import Mount
from ctxfs.errors import UsageError


@click.command()
@click.argument('words', metavar='[CTX] list', nargs=-1)
@common_options
def conflicts(invocation: Invocation, words: tuple[str, ...]) -> int:
    """List the files that two hosts changed: both contents are kept, ours under a name of its own.

    A conflict is settled by removing or renaming one of the two.
    """
    *references, verb = words or ('list',)
    if verb != 'list' or len(references) > 1:
        raise UsageError('write ctxfs conflicts [CTX] list; see ctxfs conflicts --help')
    found = [{**entry, 'mountpoint': mount.record.mountpoint, 'contextId': mount.record.context_id}
             for mount in select_running(invocation, references[0] if references else None) for entry in _of(mount)]
    if invocation.as_json:
        print_json({'conflicts': found})
    else:
        for entry in found:
            print(_line(entry))
    return 0


def _of(mount: Mount) -> list[dict[str, Any]]:
    with ControlClient(mount.socket) as client:
        return client.call('conflicts')


def _line(entry: dict[str, Any]) -> str:
    age = human_seconds(max(0.0, time.time() - entry['since']))
    return printable(f'{entry["mountpoint"]}{entry["path"]}: beside {entry["original"]}, {age} ago')
