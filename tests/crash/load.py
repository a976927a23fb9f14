"""A program that works on a mount until the mount dies, and tells through a pipe what it had done by then.

Owns the loads and the meaning of "acknowledged": an operation whose call returned before the pipe ended. It must not know how the
daemon is killed. Operations are those of tests.model.operations, so that the same list, run on a local directory, is the oracle.
"""
from __future__ import annotations

import ast
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.model import observe
from tests.model.operations import Operation, Side, perform
from tests.model.processes import Child

#: verbs that one system call does: after a crash they have happened or they have not
ATOMIC = frozenset({'mkdir', 'rmdir', 'unlink', 'rename', 'link', 'symlink', 'chmod', 'truncate'})


class Load:
    """`steps(directory)` runs in a child: it yields what it is about to do, and what it yielded is acknowledged when it is asked for the
    next. The child ends at the first error of the file system, or after `limit` acknowledgements."""

    def __init__(self, steps: Callable[[], Iterator[Any]], directory: Path, limit: int) -> None:
        self._reader, writer = os.pipe()
        self._child = Child(lambda: _tell(steps, writer, limit), directory)
        os.close(writer)
        self._lines = os.fdopen(self._reader, encoding='utf-8')
        self.begun: list[Any] = []
        self.done = 0

    def until(self, acknowledged: int) -> None:
        """Returns when so many steps were acknowledged, or the load has ended."""
        while self.done < acknowledged and self._read():
            pass

    def end(self) -> None:
        """Wait for the load's end, which the death of the mount brings; counts what was acknowledged until then."""
        while self._read():
            pass
        self._lines.close()
        self._child.result()

    def kill(self) -> None:
        self._lines.close()
        self._child.kill()

    @property
    def acknowledged(self) -> list[Any]:
        return self.begun[:self.done]

    @property
    def in_flight(self) -> Any | None:
        """The step that had begun and was not acknowledged: it may have happened or not."""
        return self.begun[self.done] if len(self.begun) > self.done else None

    def _read(self) -> bool:
        line = self._lines.readline()
        if line.startswith('+'):
            self.begun.append(ast.literal_eval(line[1:]))
        elif line:
            self.done += 1
        return bool(line)


def _tell(steps: Callable[[], Iterator[Any]], writer: int, limit: int) -> str | None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    done = 0
    try:
        for step in steps():
            if done:
                os.write(writer, b'.\n')
            if done == limit:
                return None
            os.write(writer, f'+{step!r}\n'.encode())
            done += 1
    except OSError as e:
        return str(e)
    return None


# -- loads -------------------------------------------------------------------------------------------------------------------------

def files(seed: int, first: int) -> Iterator[Operation]:
    """Files written whole, renamed, linked, removed, directories moved: each operation on names that exist. `first` numbers new names,
    so that rounds do not meet. Hard links are made of files that are not written again."""
    rng = random.Random(seed)
    side = Side(b'.')
    plain: list[bytes] = []
    directories = [b'']
    number = first
    while True:
        number += 1
        operation = _draw(rng, plain, directories, b'%06d' % number)
        yield operation
        outcome = perform(side, operation)
        if outcome.error:
            raise OSError(outcome.error)
        _note(operation, plain, directories)


def _draw(rng: random.Random, plain: list[bytes], directories: list[bytes], new: bytes) -> Operation:
    place = os.path.join(rng.choice(directories), new)
    kind = rng.random()
    if kind < 0.45 or len(plain) < 3:
        return ('write_file', place, rng.choice((0, 10, 4097, 30_000, 200_000)), rng.randrange(1000))
    old = rng.choice(plain)
    if kind < 0.55:
        return ('write_file', old, rng.choice((1, 5000, 70_000)), rng.randrange(1000))
    if kind < 0.70:
        return ('rename', old, rng.choice((place, rng.choice(plain))))
    if kind < 0.78:
        return ('mkdir', place + b'd', 0o750)
    if kind < 0.84:
        return ('symlink', old, place)
    if kind < 0.90:
        return ('chmod', old, rng.choice((0o600, 0o755, 0o4711)))
    return ('unlink', old) if kind < 0.96 else ('truncate', old, rng.choice((0, 100, 50_000)))


def _note(operation: Operation, plain: list[bytes], directories: list[bytes]) -> None:
    verb, path = operation[0], operation[1]
    if verb == 'mkdir':
        directories.append(path)
    if verb in ('rename', 'unlink') and (verb == 'unlink' or path != operation[2]):
        plain.remove(path)
    target = operation[2] if verb == 'rename' else path
    if verb in ('write_file', 'rename') and target not in plain:
        plain.append(target)


# -- the oracle --------------------------------------------------------------------------------------------------------------------

def check_against(local: Side, load: Load, mounted: Path, since_ns: int) -> None:
    """Everything acknowledged is there and nothing else; of the step in flight either all or, where it is several calls, any part.

    Afterwards `local` is what the mount shows: the step in flight is repeated there or left out.
    """
    for operation in load.acknowledged:
        perform(local, operation)
    got = observe.snapshot(os.fsencode(mounted))
    before = observe.snapshot(local.root)
    lines = observe.differences(got, before, since_ns=since_ns)
    step = load.in_flight
    if step is None or not lines:
        assert not lines, '\n'.join(lines)
        return
    if step[0] in ATOMIC:
        perform(local, step)
        after = observe.differences(got, observe.snapshot(local.root), since_ns=since_ns)
        assert not after, f'neither before nor after {step!r}:\n' + '\n'.join([*lines, 'or', *after])
        return
    touched = step[1]
    rest = [line for line in lines if not line.startswith(f'{touched!r}: ')]
    assert not rest, f'in flight was {step!r}:\n' + '\n'.join(rest)
    _follow(local, mounted, touched)


def _follow(local: Side, mounted: Path, path: bytes) -> None:
    """Make the local file what the interrupted write left on the mount."""
    source = os.path.join(os.fsencode(mounted), path)
    if not os.path.exists(source):
        if os.path.exists(local.at(path)):
            os.unlink(local.at(path))
        return
    with open(source, 'rb') as f, open(local.at(path), 'wb') as g:
        g.write(f.read())
    os.chmod(local.at(path), os.stat(source).st_mode & 0o7777)
