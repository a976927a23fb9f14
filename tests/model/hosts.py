"""Where the tests' contexts live and who mounts them: a site (one store, one working directory) and its hosts.

Owns the naming of state directories and mount points, and the double that stands for a mount when the tests themselves are tested. It
must not know what a test does with a mount. `CTXFS_TEST_DOUBLE=1` puts a plain directory where a mount would be: every test that says
what a local disk does must pass on it too, or the test is wrong.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

IS_DOUBLE = os.environ.get('CTXFS_TEST_DOUBLE') == '1'


class Host(Protocol):
    """One machine's view: a state directory that stays. A context can be mounted by several hosts at once, each at its own place."""

    def mount(self, name: str, at: Path, *, create: bool = False, options: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        """Returns when the mount answers; `options` are further arguments of `ctxfs mount`."""

    def unmount(self, at: Path) -> None:
        """fusermount3 -u, then wait until all is in the bucket; AssertionError with the cause where it is not."""

    def kill9(self, at: Path) -> None:
        """SIGKILL to the daemon, and the dead mount taken away. What was not acknowledged may be lost."""


class LocalHost:
    """The double: a context is a directory under `contexts`, and mounting moves it to the mount point."""

    def __init__(self, contexts: Path) -> None:
        self._contexts = contexts
        self._mounted: dict[Path, str] = {}

    def mount(self, name: str, at: Path, *, create: bool = False, options: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        home = self._contexts / name
        if create:
            home.mkdir(parents=True, exist_ok=True)
        at.rmdir()
        home.rename(at)
        self._mounted[at] = name

    def unmount(self, at: Path) -> None:
        at.rename(self._contexts / self._mounted.pop(at))
        at.mkdir()

    def kill9(self, at: Path) -> None:
        self.unmount(at)


class Site:
    """One store and any number of hosts. `new_host(state_dir)` makes a host whose state is that directory."""

    def __init__(self, work: Path, new_host: Callable[[Path], Host]) -> None:
        self.work = work
        self._new_host = new_host
        self.hosts: list[Host] = []
        self._mount_points = 0

    def host(self) -> Host:
        """A host that this store has never seen."""
        state = self.work / f'state-{len(self.hosts)}'
        self.hosts.append(self._new_host(state))
        return self.hosts[-1]

    def mount_point(self) -> Path:
        self._mount_points += 1
        at = self.work / f'mnt-{self._mount_points}'
        at.mkdir()
        return at


def local_site(work: Path) -> Site:
    contexts = work / 'contexts'
    contexts.mkdir()
    return Site(work, lambda state: LocalHost(contexts))


def fresh_site(make: Callable[[Path], Site], work: Path, number: int) -> Site:
    """A site in a directory of its own below `work`: examples of one test must not share a state directory."""
    directory = work / f'example-{number}'
    directory.mkdir()
    return make(directory)
