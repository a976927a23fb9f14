"""For modules whose hosts must be executed as a user does it, from the start: their memory is looked at, or they are killed in every state.

Owns the fixture, which a module gets by importing it. It must not know hosts.
"""
from __future__ import annotations

import pytest

from tests.mount import sites


@pytest.fixture(autouse=True)
def executed_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever CTXFS_TEST_FORKED says."""
    monkeypatch.setattr(sites, 'IS_FORKED', False)
