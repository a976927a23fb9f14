"""The fixtures of tests/mount: sites in both stores."""
from __future__ import annotations

from tests.mount.conftest import new_site, site

__all__ = ['new_site', 'site']
