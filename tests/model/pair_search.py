"""Searches for programs that break two hosts:  python -m tests.model.pair_search FIRST COUNT [LENGTH] [Archive]   (seeds FIRST, FIRST + 1, …)

Owns the loop, what goes with a seed besides its program, and the shortening. It must not know operations. What it prints is to be kept as a
regression in tests/model/test_pair.py.
"""
from __future__ import annotations

import logging
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tests.model.archived_pair import ArchivedWorld
from tests.model.history import Violation
from tests.model.pair import Operation, PairWorld, play
from tests.model.pair_draw import drawn, shorten

WORLDS: dict[str, type[PairWorld]] = {'File': PairWorld, 'Archive': ArchivedWorld}
PREFERENCES = ('keep-both', 'prefer-local', 'prefer-remote')


def options_of(seed: int, mode: str = 'File') -> dict[str, Any]:
    rng = random.Random(seed * 13 + 5)
    preferences = ('keep-both', 'keep-both') if rng.random() < 0.4 else (rng.choice(PREFERENCES), rng.choice(PREFERENCES))
    return {'preferences': preferences, 'page': rng.choice((1000, 1000, 2)), 'in_flight': rng.choice((1, 1, 1, 4)),
            'store': rng.choice(('directory', 'by content', 'by content', 'by content', 'by version')), 'world': WORLDS[mode]}


def attempt(program: list[Operation], options: dict[str, Any]) -> BaseException | None:
    """What the program breaks."""
    work = Path(tempfile.mkdtemp(prefix='pair-'))
    try:
        play(work, program, **options)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return None


def kind_of(error: BaseException | None) -> str:
    """The same for the same defect, mostly."""
    return '' if error is None else f'{type(error).__name__} {re.sub(r"[0-9]+|b?{q}[^{q}]*{q}".format(q=chr(39)), "#", str(error))[:60]}'


def search(first: int, count: int, length: int = 60, mode: str = 'File') -> None:
    began, seen = time.time(), set()
    for seed in range(first, first + count):
        program, options = drawn(seed, length), options_of(seed, mode)
        error = attempt(program, options)
        kind = kind_of(error)
        if error is not None and kind not in seen:
            seen.add(kind)
            _show(seed, error, shorten(program, lambda shorter: kind_of(attempt(shorter, options)) == kind), options)     # noqa: B023
        if (seed - first) % 100 == 99:
            print(f'# {seed + 1 - first} programs in {time.time() - began:.0f} s', flush=True)


def _show(seed: int, error: BaseException, shortest: list[Operation], options: dict[str, Any]) -> None:
    print(f'# seed {seed}: {type(error).__name__}: {error}', flush=True)
    if not isinstance(error, Violation):
        traceback.print_exception(error)
    print(f'# shortened: {attempt(shortest, options)}\n([' + ',\n  '.join(map(repr, shortest)) + f'],\n {options})', flush=True)


if __name__ == '__main__':
    logging.disable(logging.CRITICAL)
    search(*map(int, sys.argv[1:4]), *sys.argv[4:])
