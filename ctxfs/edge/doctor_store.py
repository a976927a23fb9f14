"""Checks of the store for `ctxfs doctor`: does it answer.

Owns what is asked of the store and what the answers mean to a user. It must not know mounts or this host.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ctxfs.edge import preflight
from ctxfs.edge.doctor import Finding, Level


def check_store(url: str, *, create: bool, context: str | None) -> Iterator[Finding]:
    """`create`: it is the embedded store, made on first use. Raises what preflight.open_checked_store raises."""
    with contextlib.closing(preflight.open_checked_store(url, create=create, context=context)) as store:
        yield Finding(Level.OK, 'store', f'{store.url} answers')
