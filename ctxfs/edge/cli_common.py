"""What the commands share: common options, the invocation's configuration, the choice of mounts by CTX, and output.

Owns how CTX is matched against this host's mounts and how values look to people and as JSON. It must not know any single command.
"""
from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click
import msgspec

from ctxfs.config import FileConfig, Paths, nearest, normalise_store_url, resolve_paths, store_identity
from ctxfs.config_file import Configuration, NamedMount, load_configuration, resolve_store_url
from ctxfs.edge.human import human_bytes as human_bytes
from ctxfs.edge.human import human_files as human_files
from ctxfs.edge.human import human_seconds as human_seconds
from ctxfs.edge.human import printable as printable
from ctxfs.edge.mount_table import real_mountpoint
from ctxfs.edge.runtime_dir import Mount, current_mounts
from ctxfs.errors import NotFound
from ctxfs.store_url import with_sse


class Invocation:
    """The configuration of one command: what was given, then the environment, the config file, the defaults. Raises UsageError."""

    def __init__(self, store: str | None, state_dir: str | None, as_json: bool) -> None:
        self.configuration: Configuration = load_configuration(resolve_paths(os.environ).config_file)
        self.config: FileConfig = self.configuration.values
        self.paths: Paths = resolve_paths(os.environ, state_dir or self.config.state_dir)
        self.as_json = as_json
        self._given_store, self._given_state_dir = store, state_dir
        if store is not None:   # a wrong one is wrong also where a running mount would do without
            normalise_store_url(store)

    @functools.cached_property
    def store_url(self) -> str:
        return resolve_store_url(self._given_store, os.environ, self.config, self.paths.data)

    def encrypted(self, sse: str | None) -> Invocation:
        """The same command, with a store that is told to encrypt so. Raises UsageError."""
        return self if sse is None else Invocation(with_sse(self.store_url, sse), self._given_state_dir, self.as_json)

    def for_named(self, mount: NamedMount) -> Invocation:
        """The same command, with the store and state directory of a named mount where none were given."""
        return Invocation(self._given_store or mount.store, self._given_state_dir or mount.state_dir, self.as_json)

    def mounts(self) -> list[Mount]:
        """This host's mounts, running or finished, one for each state directory; only those of --store and --state-dir if given."""
        found = current_mounts(self.paths.runtime, self.paths.state)
        if self._given_store is not None:
            wanted = store_identity(self.store_url)
            found = [m for m in found if store_identity(m.record.store) == wanted]
        if self._given_state_dir is not None:
            found = [m for m in found if os.path.dirname(m.record.state_dir) == str(self.paths.state)]
        return found


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--store, --state-dir and --json; the command gets an Invocation first."""
    @click.option('--store', metavar='URL', help='The object store: s3://BUCKET[/PREFIX]?endpoint=URL or file:///DIRECTORY.')
    @click.option('--state-dir', metavar='DIR', help='Where this host keeps journals and caches.')
    @click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
    @functools.wraps(command)
    def wrapped(*args: Any, store: str | None, state_dir: str | None, as_json: bool, **kwargs: Any) -> Any:
        return command(Invocation(store, state_dir, as_json), *args, **kwargs)
    return wrapped


def select(mounts: Sequence[Mount], reference: str | None, configuration: Configuration | None = None) -> list[Mount]:
    """The mounts of that context id, name, mount point, or (with `configuration`) name in the config file; all without one. A finished mount
    gives up its mount point to a newer one."""
    if reference is None:
        return list(mounts)
    found = [m for m in mounts if reference in (m.record.context_id, m.record.context_name)]
    if found:
        return found
    if configuration is not None:
        reference = configuration.place(reference)
    at = [m for m in mounts if m.record.mountpoint == real_mountpoint(reference)]
    return [m for m in at if m.is_alive()] or at[-1:]


def select_running(invocation: Invocation, reference: str | None) -> list[Mount]:
    """The mounts whose daemon runs. Raises NotFound when there is none, with the nearest name."""
    mounts = [m for m in invocation.mounts() if m.is_alive()]
    found = select(mounts, reference, invocation.configuration)
    if not found:
        raise NotFound('nothing is mounted' if reference is None else f'{reference} is not mounted{nearest(reference, names_of(mounts))}')
    return found


def names_of(mounts: Sequence[Mount]) -> list[str]:
    return [name for m in mounts for name in (m.record.context_name, m.record.context_id, m.record.mountpoint)]


def print_json(value: Any) -> None:
    text = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(text.decode() + '\n')


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of one width; the headers for people only, so that scripts may count and cut lines."""
    shown = [[printable(cell) for cell in row] for row in rows]
    lines = [list(headers), *shown] if sys.stdout.isatty() and rows else shown
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        print('  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
