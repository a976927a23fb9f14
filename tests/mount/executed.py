"""For modules whose hosts must be processes of their own from the start: limits, preloaded libraries, crash points in the environment, kills.

Owns the fixture, which a module gets by importing it. It must not know hosts.
"""
from __future__ import annotations

import pytest

from tests.mount import sites


@pytest.fixture(autouse=True)
def executed_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked host has its environment too late for what is read when the program begins."""
    monkeypatch.setattr(sites, 'IS_FORKED', False)
