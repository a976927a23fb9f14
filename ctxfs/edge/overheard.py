"""What a C library, or a program that it runs, says on stderr: kept for whoever has to tell its user, and said there all the same.

Owns the detour of the descriptor. It must not know who speaks. What other threads write meanwhile takes the same way.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_MOST = 64 << 10


@contextmanager
def overheard() -> Iterator[Callable[[], str]]:
    """While the block runs; what is given says the last line so far, '' where there is none."""
    stderr, memory = os.dup(2), os.memfd_create('ctxfs-stderr')
    try:
        os.dup2(memory, 2)
        try:
            yield lambda: _last_line(os.pread(memory, _MOST, 0))
        finally:
            os.dup2(stderr, 2)
            _copy(memory)
    finally:
        os.close(stderr)
        os.close(memory)


def _last_line(said: bytes) -> str:
    lines = [line.strip() for line in said.decode('utf-8', 'replace').split('\n')]
    return next((line for line in reversed(lines) if line), '')


def _copy(memory: int) -> None:
    said = os.pread(memory, _MOST, 0)
    while said:
        said = said[os.write(2, said):]
