"""Whether a figure that was sampled again and again grows: the trend of a soak, and the table that tells it.

Owns the statistics. Memory goes up and down, and up once while caches fill: the first part of a run is warm-up, and the slope of the rest is
Theil and Sen's, the median of the slopes between all pairs, which a few high samples do not move. It must not know what is sampled.
"""
from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

#: of a run, in which nothing is judged
WARM_UP = 0.4
#: samples that a slope is made of: all pairs of them are looked at
MOST = 300


class Allowance(NamedTuple):
    """How much more there may be at the end than after the warm-up: so much, and such a part of what there was."""
    absolute: float
    part: float


class Trend(NamedTuple):
    """`growth`: from the end of the warm-up to the end of the run, by the slope."""
    first: float
    middle: float
    last: float
    growth: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        return self.growth <= self.allowed


def trend(samples: Sequence[tuple[float, float]], allowance: Allowance) -> Trend:
    """Of (second, value) samples, in order. Raises ValueError for fewer than ten."""
    if len(samples) < 10:
        raise ValueError(f'{len(samples)} samples are too few for a trend; let it run longer')
    start, end = samples[0][0], samples[-1][0]
    judged = [sample for sample in samples if sample[0] >= start + WARM_UP * (end - start)]
    judged = judged[::len(judged) // MOST + 1]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for n, a in enumerate(judged) for b in judged[n + 1:] if b[0] > a[0]]
    middle = statistics.median(value for _, value in judged)
    growth = statistics.median(slopes) * (end - judged[0][0])
    return Trend(samples[0][1], middle, statistics.median(value for _, value in judged[-5:]), growth, allowance.absolute + allowance.part * middle)


def table(trends: Mapping[str, Trend]) -> str:
    rows = [('', 'first', 'median', 'last', 'growth', 'allowed', '')]
    rows += [(name, *(f'{value:,.1f}' for value in found), '' if found.is_flat else 'GROWS') for name, found in trends.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(7)]
    return '\n'.join('  '.join(cell.ljust(width) if n == 0 else cell.rjust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True)))
                     .rstrip() for row in rows)
