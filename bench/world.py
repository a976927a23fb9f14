"""What a group of rows gets to measure with: sizes, servers, sides, and where to put what it found.

Owns the directory of the run and the sizes. It must not know a single row.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from bench import tree
from bench.delay_proxy import DelayProxy
from bench.figures import Samples
from bench.rivals import Rival
from bench.sides import BY_HAND, Disk, Mount, mounted
from tests.servers import S3Server, ministack

#: of a round trip, where a row says "20 ms"
ROUND_TRIP = 0.020


class Sizes(NamedTuple):
    """Of the whole rows; `small()` is for trying everything out."""

    files: int = 2500
    tree_mb: int = 100
    large: int = 512
    huge: int = 1024
    repository: int = 3000
    scale: int = 100_000
    million: int = 1_000_000
    flush: int = 10_000
    queued: int = 10_000
    busy: int = 5000
    create: int = 3000
    fio_seconds: int = 5


SMALL = Sizes(files=200, tree_mb=4, large=16, huge=64, repository=100, scale=2000, million=5000, flush=300, queued=400, busy=300, create=200,
              fio_seconds=1)


class World:
    """`rounds` of a row that is a ratio to the local disk; other mounts do the same work in `rival_rounds`."""

    def __init__(self, directory: Path, sizes: Sizes, *, rounds: int, rival_rounds: int, rivals: Sequence[type[Rival]]) -> None:
        self.directory = directory
        self.sizes = sizes
        self.rounds = rounds
        self.rival_rounds = rival_rounds
        self.rivals = rivals
        self.samples = Samples()
        #: rows that are wanted: what only others need is not done
        self.wanted: set[str] = set()

    def say(self, text: str) -> None:
        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 3
            print(f'\r  {text[:width]:{width}}', end='', file=sys.stderr, flush=True)

    def fresh(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f'{name}-', dir=self.directory))

    def disk(self) -> Disk:
        return Disk(self.fresh('disk'))

    @contextlib.contextmanager
    def server(self) -> Iterator[S3Server]:
        """A new ministack in memory, with what it needs in the run's directory."""
        with ministack() as server:
            yield server

    def proxy(self, server: S3Server, seconds: float = ROUND_TRIP) -> DelayProxy:
        return DelayProxy(server.endpoint, seconds=seconds)

    def mount(self, server: S3Server, *, bucket: str = '', endpoint: str = '', options: Sequence[str] = BY_HAND) -> AbstractContextManager[Mount]:
        """A context of a bucket (a new one unless said) on a new host."""
        store = server.url(bucket or server.make_bucket()).replace(server.endpoint, endpoint or server.endpoint)
        return mounted(self.directory, store, server.environment, options=options)

    def archive(self) -> Path:
        """The tar archive that is unpacked, made at the first call."""
        path = self.directory / 'tree.tar'
        if not path.exists():
            tree.write_archive(path, files=self.sizes.files, size=self.sizes.tree_mb * 1_000_000)
        return path


def write_back() -> None:
    """Before a timing: nobody pays for another's dirty pages."""
    os.sync()
