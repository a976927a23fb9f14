"""Checks of this host for `ctxfs doctor`: can it mount at all.

Owns what is asked of the system. It must not know stores or contexts.
"""
from __future__ import annotations

from collections.abc import Iterator

from ctxfs.edge import preflight
from ctxfs.edge.doctor import Finding, Level


def check_fuse() -> Iterator[Finding]:
    """Raises what preflight.check_fuse raises."""
    preflight.check_fuse()
    yield Finding(Level.OK, 'fuse', f'{preflight.FUSE_DEVICE} and fusermount3 are there')
