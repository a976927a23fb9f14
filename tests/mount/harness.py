"""A host as its user drives it: the installed command line, fusermount3 and kill, and nothing else of ctxfs.

Owns the environment that makes a process tree one host: a state directory, a runtime directory, a home. It must not import ctxfs: what
a test reaches through it is the command line's contract. What two trees have in common is said by tests.model.observe.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests import leftovers

#: what scripts/ctxfs executes
CTXFS = (sys.executable, '-I', '-m', 'ctxfs')
#: nothing that a test does may take longer; far more than the slowest machine needs
TIMEOUT = 240


class CommandFailed(AssertionError):
    """A command ended with another status than 0; the message has its output."""


class Host:
    """One machine: contexts of `store` (a URL) are mounted with the state in `state_dir`. Any number of hosts share a machine.

    `env` is added to the environment of every command (credentials, proxies, crash points); `prefix` stands before every command, as in
    `('runuser', '-u', 'nobody', '--')`.
    """

    def __init__(
        self, state_dir: Path, *, store: str, env: Mapping[str, str] | None = None, prefix: Sequence[str] = (), runtime: Path | None = None
    ) -> None:
        self.state_dir = state_dir
        self.store = store
        # short: a Unix socket's path has 107 bytes, and the state directories of tests lie deep
        self.runtime = runtime or Path(tempfile.mkdtemp(dir=os.environ['XDG_RUNTIME_DIR']))
        self.env = {'XDG_RUNTIME_DIR': str(self.runtime), **(env or {})}
        self.prefix = tuple(prefix)
        self._names: dict[Path, str] = {}

    def run(
        self, *command: str | os.PathLike[str], check: bool = True, env: Mapping[str, str] | None = None, timeout: float = TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """A command on this host, without a terminal or stdin. CommandFailed on a status other than 0 unless `check` is False."""
        words = [*self.prefix, *map(os.fspath, command)]
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors='surrogateescape',
            timeout=timeout,
            env={**os.environ, **self.env, **(env or {})},
            check=False,
        )
        if check and done.returncode:
            raise CommandFailed(f'{" ".join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}')
        return done

    def cli(
        self, *arguments: str | os.PathLike[str], check: bool = True, env: Mapping[str, str] | None = None, timeout: float = TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """`ctxfs` with this host's store and state directory."""
        return self.run(*CTXFS, *arguments, '--store', self.store, '--state-dir', self.state_dir, check=check, env=env, timeout=timeout)

    def json(self, *arguments: str | os.PathLike[str]) -> Any:
        return json.loads(self.cli(*arguments, '--json').stdout)

    def mount(
        self, name: str, at: Path, *, create: bool = False, options: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> None:
        """Returns when the mount answers; `options` are further arguments of `ctxfs mount`."""
        self.cli('mount', name, at, *(['--create'] if create else []), *options, env=env)
        if not leftovers.mounts_below(at):
            raise CommandFailed(f'ctxfs mount {name} {at}: status 0, but nothing is mounted there')
        self._names[at] = name

    def unmount(self, at: Path, *, timeout: float = TIMEOUT) -> None:
        """fusermount3 -u, then wait until all is in the bucket: CommandFailed with the cause where it is not."""
        name = self._names.pop(at)
        self.run('fusermount3', '-u', at)
        self.cli('wait', name, '--timeout', str(timeout), timeout=timeout + 30)

    def status(self, at: Path) -> dict[str, Any]:
        """What `ctxfs status` says of the mount at `at`."""
        mounts = self.json('status', at)['mounts']
        assert [entry['mountpoint'] for entry in mounts] == [str(at)], mounts
        return mounts[0]

    def pid(self, at: Path) -> int:
        """The daemon's."""
        return int(self.status(at)['pid'])

    def kill9(self, at: Path, *, pid: int | None = None) -> None:
        """SIGKILL to the daemon, and the dead mount taken away; returns when the process is gone. `pid` where the caller knows it."""
        pid = self.pid(at) if pid is None else pid
        os.kill(pid, signal.SIGKILL)
        left = leftovers.wait_for_end([leftovers.Process(pid, 'the daemon')], 30)
        assert not left, f'the daemon {pid} survives SIGKILL'
        if leftovers.mounts_below(at):
            self.run('fusermount3', '-uz', at)
        self._names.pop(at, None)
