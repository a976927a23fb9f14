"""The sides that do the same work: a directory of the local disk, and a mounted context. (Other mounts: rivals.py.)

Owns what it takes to have each, and the end of it. It must not know the work.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from bench.processes import family
from bench.rows import CTXFS, LOCAL
from ctxfs.edge.client import ControlClient
from tests.mount.harness import Host

#: nothing is fetched that nobody reads
ON_DEMAND = {'downloadPolicy': {'autoDownload': False}}
#: uploads happen when the bench says so
BY_HAND = ('--sync-every', 'unmount')
SETTLE_SECONDS = 600


class Side(Protocol):
    name: str
    #: where work is done; it is there already
    directory: Path

    def settle(self) -> None:
        """Returns when all that was written is where it stays: in the bucket."""


class Disk:
    """A directory on the file system that the mounts' own state is on."""

    name = LOCAL

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)

    def settle(self) -> None:
        """It is there already."""


class Mount:
    """A context mounted on a host that has its state directory, runtime directory and home to itself."""

    name = CTXFS

    def __init__(self, host: Host, at: Path) -> None:
        self.host = host
        self.directory = at
        self.socket, = host.runtime.glob('ctxfs/*/control.sock')

    def settle(self) -> None:
        self.call('sync')

    def call(self, method: str, **parameters: Any) -> Any:
        with ControlClient(self.socket) as client:
            return client.call(method, timeout=SETTLE_SECONDS, **parameters)

    def pids(self) -> list[int]:
        """The daemon and its workers."""
        return family(int(self.call('status')['pid']))


def new_host(work: Path, store: str, environment: dict[str, str]) -> Host:
    """One that has never mounted anything."""
    home = Path(tempfile.mkdtemp(prefix='host-', dir=work))
    names = {name: home / name for name in ('state', 'run', 'home')}
    for path in names.values():
        path.mkdir(mode=0o700)
    policy = home / 'on-demand.json'
    policy.write_text(json.dumps(ON_DEMAND))
    return Host(names['state'], store=store, runtime=names['run'], env={**environment, 'HOME': str(names['home'])})


def on_demand(host: Host) -> tuple[str, str]:
    """Options of a mount that fetches only what is read."""
    return '--policy', str(host.state_dir.parent / 'on-demand.json')


@contextlib.contextmanager
def mounted(work: Path, store: str, environment: dict[str, str], *, options: Sequence[str] = BY_HAND) -> Iterator[Mount]:
    """The context `bench` of `store`, mounted on a new host; unmounted at the end, with everything written back."""
    host, at = new_host(work, store, environment), Path(tempfile.mkdtemp(dir=work, prefix='mount-'))
    host.mount('bench', at, create=True, options=[*options, *on_demand(host)])
    mount = Mount(host, at)
    try:
        yield mount
    finally:
        host.unmount(at, timeout=SETTLE_SECONDS)
