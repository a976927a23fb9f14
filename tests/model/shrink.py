"""Shortens what the state machine found:  python -m tests.model.shrink FILE   (the output of a failed run; `-` reads stdin)

Owns the halving. Each program that a Divergence printed in FILE is replayed on real mounts with a directory as its store, and pieces
are left out of it as long as it still fails in the same way; what remains is printed as a regression. It must not know operations.
"""
from __future__ import annotations

import ast
import os
import re
import sys
import tempfile
from pathlib import Path

from tests import leftovers
from tests.model.operations import Operation
from tests.model.world import Divergence, replay


def programs(text: str) -> list[list[Operation]]:
    """The operation lists in a pytest report, whose lines begin with `E`."""
    found = re.findall(r'replay\(\[\n(.*?)\]\)', text, re.S)
    return [list(ast.literal_eval('[' + re.sub(r'^E ?', '', program, flags=re.M) + ']')) for program in found]


def failure(operations: list[Operation]) -> str | None:
    """How the program fails: the message with paths and numbers left out, or None."""
    from tests.mount.sites import DirectoryBucket, MountingSite

    work = Path(tempfile.mkdtemp(prefix='shrink-'))
    store = work / 'store'
    store.mkdir(mode=0o700)
    try:
        replay(MountingSite(work, f'file://{store}', {}, lambda: DirectoryBucket(store)), operations)
    except Divergence as e:
        return re.sub(r"b'[^']*'|[0-9]+", '', str(e).partition('\n\nafter')[0].splitlines()[-1])
    finally:
        leftovers.abort(work)
        leftovers.remove_tree(work)
    return None


def shrink(operations: list[Operation], how: str) -> list[Operation]:
    """Leave out ever smaller pieces, until no single operation can go."""
    size = max(1, len(operations) // 2)
    while True:
        before, start = len(operations), 0
        while start < len(operations):
            shorter = operations[:start] + operations[start + size:]
            if failure(shorter) == how:
                operations = shorter
            else:
                start += size
        if size == 1 and len(operations) == before:
            return operations
        size = max(1, size // 2)


def main(source: str) -> None:
    os.environ['XDG_RUNTIME_DIR'] = os.environ['HOME'] = tempfile.mkdtemp(prefix='shrink-home-')
    try:
        for number, program in enumerate(programs(sys.stdin.read() if source == '-' else Path(source).read_text())):
            how = failure(program)
            print(f'# program {number}: {how or "does not fail with a directory as its store, or not every time"}', flush=True)
            if how:
                print('[' + ',\n '.join(map(repr, shrink(program, how))) + ']', flush=True)
    finally:
        leftovers.remove_tree(Path(os.environ['HOME']))


if __name__ == '__main__':
    main(sys.argv[1])
