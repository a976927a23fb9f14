"""The fixtures of tests/mount: sites in both stores; and a site behind a network that fails."""
from __future__ import annotations

import pytest

from tests.crash.faulty import faulty
from tests.mount import sites
from tests.mount.conftest import new_site, site

__all__ = ['faulty', 'new_site', 'site']


@pytest.fixture(autouse=True)
def executed_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits, preloaded libraries and kills are for whole processes. Tests of crash points fork theirs themselves."""
    monkeypatch.setattr(sites, 'IS_FORKED', False)
