"""`mount -t fuse.ctxfs` and lines of /etc/fstab: `ctxfs fstab`, and what mount(8) runs.

Owns the helper's file, and how mount's words become those of `ctxfs mount`. It must not mount: it runs that command.

    mount -t fuse.ctxfs CTX DIR -o policy=FILE,ro   →   /sbin/mount.fuse.ctxfs CTX DIR -o rw,policy=FILE,ro
                                                    →   ctxfs mount CTX DIR --policy FILE -o rw,ro
"""
from __future__ import annotations

import getopt
import re
import shlex
from pathlib import Path

import click

from ctxfs.edge import installed
from ctxfs.edge.cli_common import Invocation, common_options, print_json
from ctxfs.errors import UsageError

#: where mount(8) looks
DIRECTORY = '/sbin'
HELPER = 'mount.fuse.ctxfs'
#: exit statuses of mount(8)
_USAGE, _FAILED = 1, 32

#: words of -o that are options of `ctxfs mount`; `-` and `_` are the same
_VALUES = frozenset({'store', 'state_dir', 'policy', 'browser', 'cache_size', 'fsync', 'conflict', 'sync_every', 'poll_every',
                     'store_timeout', 'log_level', 'lag_alarm', 'audit_log', 'max_upload_rate', 'max_download_rate', 'transfers', 'metrics_addr',
                     'sse'})
_FLAGS = frozenset({'create', 'wait_download', 'log_json'})
#: words that are for mount(8), systemd or nobody, or say what is so anyway
_FOREIGN = re.compile(r'defaults|(no)?auto|(no)?users?|user=.*|owner|group|_netdev|(no)?fail|async|relatime|comment=.*|[xX]-.*|uhelper=.*|')


@click.group()
def fstab() -> None:
    """Let `mount -t fuse.ctxfs CTX DIR` and lines of /etc/fstab work."""


@fstab.command()
@click.option('--directory', default=DIRECTORY, metavar='DIR', help=f'Where mount(8) looks for it (default: {DIRECTORY}).')
@common_options
def install(invocation: Invocation, directory: str) -> int:
    """Install mount(8)'s helper, /sbin/mount.fuse.ctxfs."""
    path = Path(directory) / HELPER
    command = shlex.join(installed.own_command())
    installed.write(path, f'#!/bin/sh\n# {installed.MARK}: what mount -t fuse.ctxfs runs\nexec {command} fstab mount "$@"\n', mode=0o755)
    if invocation.as_json:
        print_json({'path': str(path)})
    return 0


@fstab.command()
@click.option('--directory', default=DIRECTORY, metavar='DIR', help=f'Where it is (default: {DIRECTORY}).')
@common_options
def remove(invocation: Invocation, directory: str) -> int:
    """Remove it again."""
    path = Path(directory) / HELPER
    installed.remove(path)
    if invocation.as_json:
        print_json({'path': str(path)})
    return 0


@fstab.command(hidden=True, context_settings={'ignore_unknown_options': True, 'help_option_names': []})
@click.argument('words', nargs=-1, type=click.UNPROCESSED)
def mount(words: tuple[str, ...]) -> int:
    """What the helper runs: the exit statuses are those that mount(8) expects."""
    from ctxfs.edge import cli  # it imports this module when the command is used
    try:
        arguments = translate(words)
    except UsageError as e:
        return cli.fail(str(e), _USAGE)
    return {0: 0, 2: _USAGE}.get(cli.run(arguments), _FAILED) if arguments else 0


def translate(words: tuple[str, ...]) -> list[str]:
    """The arguments of `ctxfs` for those of the helper: CTX DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]. Empty: there is nothing to do.
    Raises UsageError."""
    try:
        flags, places = getopt.gnu_getopt(list(words), 'sfnvN:o:t:')
    except getopt.GetoptError as e:
        raise UsageError(f'{HELPER}: {e}') from e
    if len(places) != 2:
        raise UsageError(f'{HELPER} CTX DIRECTORY [-o OPTIONS] is what mount -t fuse.ctxfs runs; use that, or ctxfs mount')
    if ('-f', '') in flags:
        return []
    options, rest = [], []
    for word in (word for flag, text in flags if flag == '-o' for word in split_options(text)):
        name, equals, value = word.partition('=')
        key = name.replace('-', '_')
        if key in _VALUES and equals:
            options.append(f'--{key.replace("_", "-")}={value}')
        elif key in _FLAGS and not equals:
            options.append(f'--{key.replace("_", "-")}')
        elif name == 'remount':
            raise UsageError('a context cannot be mounted over itself (-o remount): unmount it and mount it again')
        elif not _FOREIGN.fullmatch(word):
            rest.append(word)
    return ['mount', *options, *(['-o', ','.join(rest)] if rest else []), '--', *places]


def split_options(text: str) -> list[str]:
    """At commas, but for those between double quotes, which keep a value together and are not part of it (mount(8))."""
    return [word.replace('"', '') for word in re.findall(r'((?:[^,"]|"[^"]*"?)+)', text)]
