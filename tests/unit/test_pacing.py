"""The number of uploads at once follows the store: many to a far one, few to a near one."""
from __future__ import annotations

import random

import pytest

from ctxfs.sync.pacing import MAX_SIZE, Pace


def settle(pace: Pace, *, latency: float, cpu: float, rounds: int = 6000, seed: int = 1) -> list[int]:
    """Simulate transfers that wait `latency` for the store and need `cpu` of one shared interpreter; the limits of the last quarter."""
    chance = random.Random(seed)
    limits = []
    for _ in range(rounds):
        crowd = pace.limit
        pace.took(max(latency + cpu, crowd * cpu) * chance.uniform(0.9, 1.3), 40_000)
        limits.append(pace.limit)
    return limits[-rounds // 4:]


def test_a_far_store_gets_all_the_threads() -> None:
    """20 ms of waiting for 1 ms of work: nothing is gained by holding back."""
    assert set(settle(Pace(12), latency=0.020, cpu=0.001)) == {12}


def test_a_near_store_gets_few() -> None:
    """When transfers are nearly all work, more at once only wait for each other."""
    limits = settle(Pace(12), latency=0.0002, cpu=0.001)
    assert min(limits) >= 2 and max(limits) <= 7


def test_the_limit_follows_when_the_store_moves_away_and_comes_back() -> None:
    """Old minima are forgotten."""
    pace = Pace(12)
    settle(pace, latency=0.0002, cpu=0.001)
    assert min(settle(pace, latency=0.050, cpu=0.001)) == 12
    assert max(settle(pace, latency=0.0002, cpu=0.001)) <= 7


def test_sizes_are_compared_with_their_like() -> None:
    """Large files beside small ones, each at its own steady duration, are no sign of a crowd; the largest say nothing at all."""
    pace = Pace(12)
    for _ in range(300):
        pace.took(0.02, 1000)
        pace.took(0.2, 500_000)
        pace.took(9.0, MAX_SIZE + 1)
    assert pace.limit == 12


@pytest.mark.parametrize('most', [0, 1, 2])
def test_few_threads_stay_within_their_bound(most: int) -> None:
    """The limit is never 0 and never above what there is."""
    pace = Pace(most)
    for number in range(100):
        pace.took(0.001 * (number % 7 + 1), 10)
        assert 1 <= pace.limit <= max(1, most)
