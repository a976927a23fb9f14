"""The fixtures of tests/mount: sites in both stores; and a site behind a network that fails."""
from __future__ import annotations

from tests.crash.faulty import faulty
from tests.mount.conftest import new_site, site

__all__ = ['faulty', 'new_site', 'site']
