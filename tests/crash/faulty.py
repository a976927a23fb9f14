"""A site behind a network that fails, and what is done on it.

Owns the fixture `faulty`. It must not know which faults a test plans.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.fault_proxy import FaultProxy
from tests.model import observe
from tests.model.operations import content
from tests.mount.sites import MountingSite, site_maker


class Faulty:
    """A site whose store is reached through the proxy, and one that reaches the same bucket directly."""

    def __init__(self, site: MountingSite, proxy: FaultProxy, work: Path) -> None:
        self.proxy = proxy
        self.direct = site
        (work / 'faulty').mkdir()
        self.site = MountingSite(work / 'faulty', site.url.partition('?')[0] + f'?endpoint={proxy.endpoint}', site.env, site.bucket)

    def clear(self) -> None:
        """The network works from now on, and nobody hangs."""
        self.proxy.plan = lambda method, path: None
        self.proxy.release()

    def check(self, name: str, want: observe.Tree) -> None:
        """Another host, with a network that works, sees exactly that: no conflict copy, nothing missing."""
        other, there = self.direct.host(), self.direct.mount_point()
        other.mount(name, there)
        got = observe.snapshot(os.fsencode(there))
        assert other.status(there)['conflicts'] == 0
        other.unmount(there)
        assert observe.differences(got, want, directory_times=False) == []


@pytest.fixture
def faulty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Faulty]:
    site = site_maker('s3', request)(tmp_path)
    with FaultProxy(request.getfixturevalue('s3_server').endpoint) as proxy:
        yield Faulty(site, proxy, tmp_path)


def work(at: Path, generation: int) -> None:
    """Files small and large, overwritten, renamed and removed, links, directories."""
    for n in range(40):
        (at / f'd{n % 4}').mkdir(exist_ok=True)
        (at / f'd{n % 4}/f{n}').write_bytes(content(3000 + n, n + generation))
    (at / 'large').write_bytes(content(20 << 20, generation))
    (at / 'd0/f0').rename(at / f'renamed{generation}')
    for n in range(1, 40, 8):
        (at / f'd{n % 4}/f{n}').unlink()
    os.symlink('large', at / f'soft{generation}')
    (at / f'empty{generation}').mkdir()
    os.chmod(at / 'd2/f2', 0o600 + generation)
