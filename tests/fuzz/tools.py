"""What tests of hostile input share: how many examples, a child with little memory and time, texts and values that nobody expects.

Owns these only. It must not know any reader. `CTXFS_FUZZ_EXAMPLES` says how many examples each property gets; scripts/fuzz sets it.
"""
from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from tests.model.processes import in_child

EXAMPLES = int(os.environ.get('CTXFS_FUZZ_EXAMPLES', '25'))
#: of CPU, for what takes milliseconds: only a loop that does not end, or a power too many, takes longer
SECONDS = 20
MIB = 1 << 20

#: `CTXFS_FUZZ_SHRINK=0`: what is found is told as it is, at once
PHASES = [phase for phase in Phase if phase is not Phase.shrink or os.environ.get('CTXFS_FUZZ_SHRINK') != '0']
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)


def bounded(function: Callable[[], Any], *, megabytes: int = 128, seconds: int = SECONDS) -> Any:
    """What the function returns, or raises, in a process that may take so much more memory than this one, and so much CPU. AssertionError
    where it does not end in time; MemoryError where that is not enough."""
    def limited() -> Any:
        size = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + megabytes * MIB, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds, resource.RLIM_INFINITY))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds * 5)       # for what waits without computing
        return function()
    return in_child(limited, Path('/'))


#: integers around every boundary that a field may have
integers = st.one_of(st.integers(), st.sampled_from([sign * (1 << bits) + more for bits in (7, 15, 16, 31, 32, 53, 62, 63, 64, 127, 400)
                                                     for sign in (1, -1) for more in (-1, 0, 1)]))
#: names and keys that lead elsewhere, end early, or are none
PIECES = ('..', '.', '', '/', '//', '.ctxfs', '.bucket', '\0', '\n', '\r', 'a', 'ä', '\u202e', '‛', '‛‛FF', 'CON', '~', 'a' * 256, '%2e%2e', '%00',
          '\x1b[2J', '\x7f', '\ufffe', '\U0010ffff', ' ', '&amp;', '<', ',', '\\')
surrogates = st.sampled_from(['\ud800', '\udc80', '\udfff'])
texts = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=6).map('/'.join),
                  st.lists(st.one_of(st.sampled_from(PIECES), surrogates), max_size=5).map(''.join), st.just('x' * 5000))
scalars = st.one_of(st.none(), st.booleans(), integers, st.floats(), texts)
#: what JSON can say, and a little more
values = st.recursive(scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)), max_leaves=6)


def nested(opening: str, closing: str, depth: int) -> bytes:
    return (opening * depth + closing * depth).encode()


#: JSON texts that are legal, and deadly for who recurses
DEEP = [nested('[', ']', 100_000), nested('{"a":', '}', 100_000).replace(b'{"a":}', b'{"a":1}'), b'[' * 500_000]


def mutated(seeds: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes of a good text with a few of them cut out, doubled, flipped or replaced."""
    @st.composite
    def mutate(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(seeds))
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(data)))
            kind = draw(st.integers(0, 4))
            if kind == 0:
                del data[at:at + draw(st.integers(1, 20))]
            elif kind == 1:
                data[at:at] = data[at:at + draw(st.integers(1, 20))]
            elif kind == 2 and at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            elif kind == 3:
                data[at:at] = draw(st.binary(max_size=8))
            else:
                del data[at:]
        return bytes(data)
    return mutate()
