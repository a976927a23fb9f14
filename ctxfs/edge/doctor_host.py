"""Checks of this host for `ctxfs doctor`: can it mount at all.

Owns what is asked of the system. It must not know stores or contexts.
"""
from __future__ import annotations

from collections.abc import Iterator

from ctxfs.edge import fuse_ops, preflight
from ctxfs.edge.doctor import Finding, Level


def check_fuse() -> Iterator[Finding]:
    """Raises what preflight.check_fuse raises."""
    preflight.check_fuse()
    yield Finding(Level.OK, 'fuse', f'{preflight.FUSE_DEVICE} and fusermount3 are there')


def check_library() -> Iterator[Finding]:
    """The library that opens and lists without Python: ctxfs works without it."""
    if fuse_ops.is_loaded():
        yield Finding(Level.OK, 'library', 'known files are opened without the interpreter')
    else:
        yield Finding(Level.WARN, 'library', 'it was not built, so trees of many files are walked more slowly',
                      'install gcc, pkg-config and libfuse3-dev (libfuse before 3.17), and install ctxfs again')
