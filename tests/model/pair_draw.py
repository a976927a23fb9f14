"""Programs for two hosts, drawn by a seed, and shortened when they show something.

Owns the distribution: few names, so that hosts meet; much that happens in the middle of a flush. It must not know what an operation does.
"""
from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Operation = tuple[Any, ...]

#: what one program is about; 'd' and 'e' may be files or directories
THEMES = (('a', 'b', 'c', 'd/x', 'a.txt', 'e', 'd', 'e/x'), ('a',), ('a', 'b'), ('a', 'b', 'c'), ('d', 'd/x', 'e', 'e/x', 'a'),
          ('d/x', 'd/y', 'e/x', 'a', 'd'))
#: operations with a script of what happens between their requests
SCRIPTED = ('flush', 'clock', 'poll', 'remount', 'tidy')
SIZES = (0, 10, 10, 150, 400)


def program(seed: int, length: int) -> list[Operation]:
    rng = _Rng(seed)
    rng.theme, rng.is_plain = rng.choice(THEMES), rng.random() < 0.3
    directories = [('mkdir', 0, path) for path in ('d', 'e') if f'{path}/x' in rng.theme and rng.random() < 0.7]
    shared = [('write', 0, path, rng.choice(SIZES)) for path in sorted({_path(rng) for _ in range(rng.randrange(4))})]
    return [*directories, *shared, ('flush', 0, {}), ('poll', 1, {}), *(_operation(rng) for _ in range(length))]


class _Rng(random.Random):
    theme: tuple[str, ...] = THEMES[0]
    #: files keep their names: more can be said of what they hold in the end
    is_plain = False


def _path(rng: _Rng) -> str:
    return rng.choice(rng.theme)


def _operation(rng: _Rng) -> Operation:
    kind = rng.random()
    if kind < 0.17:
        return ('flush' if kind < 0.12 else 'clock', rng.randrange(2), _script(rng) if rng.random() < 0.6 else {})
    if kind < 0.26:
        return ('poll', rng.randrange(2), _script(rng) if rng.random() < 0.2 else {})
    if kind < 0.265:
        return ('reload', rng.randrange(2))
    if kind < 0.28:
        return ('remount', rng.randrange(2), _script(rng) if rng.random() < 0.3 else {})
    if kind < 0.31:
        return ('kill', rng.randrange(2))
    if kind < 0.33:
        return ('tidy', rng.randrange(2), _script(rng) if rng.random() < 0.5 else {})
    return _outside(rng) if kind < 0.41 else _program(rng, rng.randrange(2))


def _outside(rng: _Rng) -> Operation:
    kind = rng.random()
    if kind < 0.5:
        return ('put', _path(rng), rng.choice(SIZES[:4]))
    return ('edit', _path(rng)) if kind < 0.65 else ('delete', _path(rng))


def _program(rng: _Rng, host: int) -> Operation:
    kind = rng.random() if not rng.is_plain else rng.choice((rng.uniform(0, 0.66), rng.uniform(0, 0.66), rng.uniform(0.86, 1)))
    if kind < 0.30:
        return ('write', host, _path(rng), rng.choice(SIZES))
    if kind < 0.38:
        return ('append', host, _path(rng))
    if kind < 0.43:
        return ('same', host, _path(rng))
    if kind < 0.48:
        return ('open', host, rng.randrange(2), _path(rng))
    if kind < 0.54:
        return ('pwrite', host, rng.randrange(2))
    if kind < 0.58:
        return ('close', host, rng.randrange(2))
    if kind < 0.66:
        return ('unlink', host, _path(rng))
    if kind < 0.76:
        return ('rename', host, _path(rng), _path(rng))
    if kind < 0.78:
        return ('exchange', host, _path(rng), _path(rng))
    if kind < 0.83:
        return ('link', host, _path(rng), _path(rng))
    if kind < 0.86:
        return ('symlink', host, _path(rng))
    if kind < 0.90:
        return ('mkdir', host, rng.choice(('d', 'e', 'd', 'a')))
    if kind < 0.92:
        return ('rmdir', host, rng.choice(('d', 'e')))
    return ('chmod', host, _path(rng), rng.choice((0o600, 0o755, 0o640))) if kind < 0.96 else ('read', host, _path(rng))


def _script(rng: _Rng) -> dict[int, Operation]:
    return {rng.choice((1, 2, 2, 3, 3, 4, 5, 6, 8, 10, 14)): _action(rng) for _ in range(rng.choice((1, 1, 2, 3, 4)))}


def _action(rng: _Rng) -> Operation:
    kind = rng.random()
    if kind < 0.17:
        return ('lose',)
    if kind < 0.27:
        return ('drop',)
    if kind < 0.40:
        return ('die', rng.random() < 0.6)
    if kind < 0.52:
        return _outside(rng)
    # replaced by host numbers when the script is known to be of one: see `with_hosts`
    if kind < 0.70:
        return ('theirs', rng.random(), rng.theme, rng.is_plain)
    return ('ours', rng.random(), rng.theme, rng.is_plain)


def resolve(operations: list[Operation]) -> list[Operation]:
    """Actions that name hosts by their part in the flush get their numbers."""
    return [(*op[:2], {n: _resolved(action, op[1]) for n, action in op[2].items()}) if op[0] in SCRIPTED else op
            for op in operations]


def _resolved(action: Operation, host: int) -> Operation:
    if action[0] == 'ours':
        return _program(_of(action), host)
    if action[0] != 'theirs':
        return action
    rng = _of(action)
    return rng.choice((('flush', 1 - host, {}), ('flush', 1 - host, {}), ('poll', 1 - host, {}), ('tidy', 1 - host, {}), _program(rng, 1 - host)))


def _of(action: Operation) -> _Rng:
    rng = _Rng(action[1])
    rng.theme, rng.is_plain = action[2:]
    return rng


def drawn(seed: int, length: int) -> list[Operation]:
    return resolve(program(seed, length))


def shorten(operations: list[Operation], fails: Callable[[list[Operation]], bool]) -> list[Operation]:
    """Leave out ever smaller pieces, then actions, for as long as it fails."""
    size = max(1, len(operations) // 2)
    while True:
        before, start = len(operations), 0
        while start < len(operations):
            shorter = operations[:start] + operations[start + size:]
            if fails(shorter):
                operations = shorter
            else:
                start += size
        if size == 1 and len(operations) == before:
            break
        size = max(1, size // 2)
    for at, op in enumerate(operations):
        if op[0] in SCRIPTED:
            for number in list(op[2]):
                less = (*op[:2], {n: action for n, action in operations[at][2].items() if n != number})
                shorter = [*operations[:at], less, *operations[at + 1:]]
                if fails(shorter):
                    operations = shorter
    return operations
