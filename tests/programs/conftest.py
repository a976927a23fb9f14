"""Fixtures of the tests that run real programs: a home in a mount that moves from host to host.

Owns which programs a run cannot do without. `CTXFS_TEST_PROGRAMS=all` (scripts/programs) wants every one, and the large examples; otherwise
a program that is not there is skipped with a word.
"""
from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.model.hosts import Site
from tests.mount.conftest import new_site, site  # noqa: F401 - fixtures
from tests.programs.home import Home


@pytest.fixture
def home(site: Site, request: pytest.FixtureRequest) -> Iterator[Home]:  # noqa: F811
    """Mounted with `MOUNT_OPTIONS` of the module; unmounted at the end, which must leave nothing unsent."""
    made = Home(site, getattr(request.module, 'MOUNT_OPTIONS', ()))
    yield made
    made.close()


@pytest.fixture
def needs() -> Callable[..., None]:
    """`needs('git')`: skips the test without that program, or, where all are wanted, fails it."""
    def check(*programs: str) -> None:
        missing = [program for program in programs if not shutil.which(program)]
        if missing and os.environ.get('CTXFS_TEST_PROGRAMS') == 'all':
            pytest.fail(f'{missing[0]} is not installed; scripts/programs installs it')
        if missing:
            pytest.skip(f'{missing[0]} is not installed (scripts/programs installs it)')
    return check


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that is not in the mount."""
    directory = tmp_path / 'outside'
    directory.mkdir()
    return directory
