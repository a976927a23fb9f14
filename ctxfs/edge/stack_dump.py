"""SIGUSR1: the stacks of all threads and of all trio tasks go to the log, for a mount that seems to hang.

Owns the signal. It must not know what the tasks do. The threads come first and from C (faulthandler), so also from a loop that is stuck; the
tasks come when the interpreter gets to it.
"""
from __future__ import annotations

import faulthandler
import linecache
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import trio

#: frames of one task
MAX_FRAMES = 40


def dump_on_signal() -> None:
    signal.signal(signal.SIGUSR1, _dump)
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)


def _dump(number: int, frame: FrameType | None) -> None:
    try:
        root = trio.lowlevel.current_root_task()
    except RuntimeError:
        return      # no loop runs: the threads are all there is
    text = '\n'.join(lines_of(root)) if root is not None else 'no tasks'
    # as one write, past the log: its lock may be held by what is interrupted here
    os.write(sys.stderr.fileno(), f'Tasks (most recent call last):\n{text}\n'.encode('utf-8', 'backslashreplace'))


def lines_of(task: trio.lowlevel.Task, depth: int = 0) -> Iterator[str]:
    """The task, its frames, and below it those that it waits for."""
    indent = '  ' * depth
    yield f'{indent}{task.name}'
    for number, (frame, line) in enumerate(task.iter_await_frames()):
        if number == MAX_FRAMES:
            yield f'{indent}    …'
            break
        code = frame.f_code
        source = linecache.getline(code.co_filename, line).strip()
        yield f'{indent}    {code.co_filename}:{line} in {code.co_name}' + (f': {source}' if source else '')
    for nursery in task.child_nurseries:
        for child in sorted(nursery.child_tasks, key=lambda child: child.name):
            yield from lines_of(child, depth + 1)
