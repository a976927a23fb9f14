"""How the loop of requests ends: pyfuse3's own shape of it, with a kernel that says what the test wants."""
from __future__ import annotations

import errno
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import trio

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup  # what trio itself uses there

from ctxfs.edge import fuse_loop


def run_loop(code: int, done: list[str]) -> None:
    """Two tasks as pyfuse3 makes them: one is told `code` by the kernel while the other is in the middle of a request."""
    pyfuse3: Any = SimpleNamespace()
    fuse_loop.install(pyfuse3, before_request=lambda: None)
    told = trio.Event()

    async def second(nursery: Any, minimum: int) -> None:
        await told.wait()
        await trio.lowlevel.checkpoint()
        done.append('request')

    async def first(nursery: Any, minimum: int) -> None:
        nursery.start_soon(second, nursery, minimum, name='2')
        told.set()
        raise OSError(code, 'fuse_session_receive_buf failed')

    async def main() -> None:
        async with pyfuse3.trio.open_nursery() as nursery:
            nursery.start_soon(first, nursery, 4, name='1')

    trio.run(main)


def test_an_aborted_connection_ends_the_loop_and_cuts_nothing_off() -> None:
    done: list[str] = []
    run_loop(errno.ECONNABORTED, done)
    assert done == ['request']


def test_any_other_failure_is_one() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        run_loop(errno.EIO, [])
    assert caught.value.exceptions[0].errno == errno.EIO  # type: ignore[union-attr]
