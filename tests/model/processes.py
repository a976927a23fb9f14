"""A second process for tests that need one: run a function in it, as another user or killed half-way, and get its answer back.

Owns the fork and the pipe. It must not know mounts. A fork, not a new interpreter, so that a user who may not even read this Python
can be played: the child changes its directory and loads its code before it gives up its rights.
"""
from __future__ import annotations

import os
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NOBODY = 65534


class Child:
    """A forked process that runs `function()` in `directory`, as `uid` when given. End it with `result()` or `kill()`."""

    def __init__(self, function: Callable[[], Any], directory: Path, uid: int | None = None) -> None:
        self._read, write = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 warns of a fork beside threads. The only other threads are watchdogs that wait for their timers.
            warnings.simplefilter('ignore', DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _run_and_exit(function, directory, uid, write)
        os.close(write)

    def result(self) -> Any:
        """What the function returned; raises what it raised, AssertionError where the process died without an answer."""
        with os.fdopen(self._read, 'rb') as pipe:
            answer = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        assert answer, f'the child ended without an answer, wait status {status}'
        raised, value = pickle.loads(answer)
        if raised:
            raise value
        return value

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.close(self._read)
        os.waitpid(self.pid, 0)


def _run_and_exit(function: Callable[[], Any], directory: Path, uid: int | None, write: int) -> None:
    try:
        try:
            os.chdir(directory)
            if uid is not None:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            answer = pickle.dumps((False, function()))
        except BaseException as e:
            traceback.print_exc()
            answer = pickle.dumps((True, e))
        with os.fdopen(write, 'wb') as pipe:
            pipe.write(answer)
    finally:
        os._exit(0)


def in_child(function: Callable[[], Any], directory: Path, uid: int | None = None) -> Any:
    return Child(function, directory, uid).result()


class Gate:
    """One process waits until another opens: `wait()` blocks until `open()` was called in any process, without a clock."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def open(self) -> None:
        os.write(self._write, b'x')

    def wait(self) -> None:
        assert os.read(self._read, 1) == b'x'

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@contextmanager
def gates(number: int):
    """`number` gates for processes forked inside."""
    made = [Gate() for _ in range(number)]
    try:
        yield made
    finally:
        for gate in made:
            gate.close()
