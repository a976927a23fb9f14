"""Fixtures of the tests that run on mounts: sites for both stores, and a mount that examples share.

Owns their lifetime. It must not know what is tested. Everything that a test leaves mounted is taken away by tests/conftest.py.
"""
from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import leftovers
from tests.model.hosts import IS_DOUBLE, Site, local_site

STORES = ['double'] if IS_DOUBLE else ['file', 's3']


@pytest.fixture(params=STORES)
def new_site(request: pytest.FixtureRequest) -> Callable[[Path], Site]:
    """Makes sites whose contexts live in one store: `file`, a directory, or `s3`, a server on the loopback interface."""
    if request.param == 'double':
        return local_site
    from tests.mount.sites import site_maker
    return site_maker(request.param, request)


@pytest.fixture
def site(new_site: Callable[[Path], Site], tmp_path: Path) -> Site:
    return new_site(tmp_path)


@pytest.fixture(scope='module')
def mounted_root(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The root of one mount for all examples of a module; `MOUNT_OPTIONS` of the module are given to `ctxfs mount`."""
    work = Path(tempfile.mkdtemp(prefix='shared-'))
    if IS_DOUBLE:
        made = local_site(work)
    else:
        from tests.mount.sites import site_maker
        made = site_maker('file', request)(work)
    host, at = made.host(), made.mount_point()
    host.mount('shared', at, create=True, options=getattr(request.module, 'MOUNT_OPTIONS', ()))
    try:
        yield at
        host.unmount(at)
    finally:
        leftovers.remove_tree(work)


@pytest.fixture
def disk(mounted_root: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory on the shared mount."""
    directory = mounted_root / re.sub(r'\W', '_', request.node.name)[:60]
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)
