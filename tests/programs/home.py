"""A work directory in a mount, as it goes from one host to the next: written back, and mounted at the same place from nothing.

Owns the comparison that every such move makes: all that the programs left is there on the next host, entry for entry.
"""
from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tests.model import observe
from tests.model.hosts import Site


def wants_all() -> bool:
    """Whether the large examples run, too."""
    return os.environ.get('CTXFS_TEST_PROGRAMS') == 'all'


class Home:
    """The context `home`, mounted at `at`; the same place on each host, for programs write down where they are."""

    def __init__(self, site: Site, options: Sequence[str] = ()) -> None:
        self._site = site
        self._options = tuple(options)
        self.at = site.mount_point()
        self.host = site.host()
        self.host.mount('home', self.at, create=True, options=self._options)

    def move(self, *, inexact: Collection[str] = ()) -> None:
        """To a host that has never seen it. Raises AssertionError where anything differs there, but for the times of `inexact` files: of a
        process that is killed in fsync(2) the kernel may drop what it has to say of the file's time (not of its bytes)."""
        before = self.snapshot()
        self.move_unchecked()
        after = self.snapshot()
        for path in map(os.fsencode, inexact):
            before[path] = before[path]._replace(mtime_ns=after[path].mtime_ns)
        found = observe.differences(after, before, directory_times=False)
        assert found == [], '\n'.join(found[:20])

    def move_unchecked(self) -> None:
        self.host.unmount(self.at)
        self.host = self._site.host()
        self.host.mount('home', self.at, options=self._options)

    def snapshot(self) -> observe.Tree:
        return observe.snapshot(os.fsencode(self.at))

    def close(self) -> None:
        self.host.unmount(self.at)

    def run(self, *command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None, status: int = 0) -> str:
        """A program in the home; its stdout. AssertionError with what it said where it ends with another status."""
        done = subprocess.run([os.fspath(word) for word in command], cwd=cwd or self.at, env={**os.environ, **(env or {})},
                              capture_output=True, text=True, errors='replace', stdin=subprocess.DEVNULL, timeout=240)
        assert done.returncode == status, f'{command}: exit {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}'
        return done.stdout
