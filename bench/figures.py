"""From samples to figures: medians over rounds, ratios within a round.

Owns the arithmetic, and what a result looks like in JSON. It must not know how anything is measured.

A *round* is what one side and its basis reached side by side: {side: raw, basis: raw}, raw in seconds, rates or counts. A row without a basis
has rounds {side: raw}. What is said of a side is the ratio of the medians, with the smallest and the largest ratio of one round: other load
comes and goes, and what it does to both sides of one round it does not do to their ratio.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bench.rows import CTXFS, Row

Round = Mapping[str, float]


class Figure(NamedTuple):
    """`raw` and `basis`: the medians that the value is made of; `basis` None where there is none."""

    value: float
    min: float
    max: float
    raw: float
    basis: float | None


class Samples:
    """Rounds of each row and side, in the order in which they were measured, with notes."""

    def __init__(self) -> None:
        self.rounds: dict[str, dict[str, list[Round]]] = {}
        self.notes: dict[str, list[str]] = {}

    def add(self, row: str, side: str, found: Round) -> None:
        self.rounds.setdefault(row, {}).setdefault(side, []).append(found)

    def note(self, row: str, text: str) -> None:
        """Said once, however often it is noted."""
        notes = self.notes.setdefault(row, [])
        if text not in notes:
            notes.append(text)


def figure(row: Row, side: str, rounds: Sequence[Round]) -> Figure:
    """Of one side over its rounds, at least one."""
    raw = [one[side] for one in rounds]
    if not row.basis:
        return Figure(statistics.median(raw), min(raw), max(raw), statistics.median(raw), None)
    basis = [one[row.basis] for one in rounds]
    ratios = [_ratio(ours, theirs) for ours, theirs in zip(raw, basis, strict=True)]
    median, against = statistics.median(raw), statistics.median(basis)
    return Figure(_ratio(median, against), min(ratios), max(ratios), median, against)


def _ratio(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else float('inf') if ours else 1.0


def is_met(row: Row, value: float) -> bool:
    return value >= row.goal if row.is_floor else value <= row.goal


def results(rows: Iterable[Row], samples: Samples) -> list[dict[str, Any]]:
    """One entry for each row that was measured on some side, in the rows' order."""
    return [result(row, samples.rounds[row.name], samples.notes.get(row.name, ())) for row in rows if row.name in samples.rounds]


def result(row: Row, by_side: Mapping[str, Sequence[Round]], notes: Sequence[str] = ()) -> dict[str, Any]:
    sides = {side: figure(row, side, rounds)._asdict() for side, rounds in by_side.items()}
    entry: dict[str, Any] = {'name': row.name, 'title': row.title, 'unit': row.unit, 'goal': row.goal, 'direction': row.direction,
                             'basis': row.basis, 'rawUnit': row.raw_unit, 'sides': sides, 'notes': list(notes)}
    if CTXFS in sides:
        ours = sides[CTXFS]
        entry |= {name: ours[name] for name in ('value', 'min', 'max')} | {'met': is_met(row, ours['value'])}
        entry['fastest'] = is_fastest(row, sides)
    return entry


def is_fastest(row: Row, sides: Mapping[str, Mapping[str, Any]]) -> bool | None:
    """Whether ctxfs is ahead of every rival; None where no rival did it."""
    others = [found['value'] for side, found in sides.items() if side != CTXFS]
    if not others:
        return None
    ours = sides[CTXFS]['value']
    return bool(ours > max(others) if row.is_floor else ours < min(others))
