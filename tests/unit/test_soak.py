"""The judgement of scripts/soak: what grows is told, what only goes up and down, or up once, is not."""
from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope='module')
def soak() -> ModuleType:
    file = Path(__file__).resolve().parents[2] / 'scripts/soak_trend.py'
    spec = importlib.util.spec_from_file_location('soak_trend', file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noisy(value: float, number: int) -> float:
    """Up and down by a fifth, with a peak now and then."""
    return value * (1 + random.Random(number).uniform(-0.2, 0.2)) + (value if number % 17 == 0 else 0)


def test_what_is_flat_after_a_warm_up_is_flat(soak: ModuleType) -> None:
    """Caches fill in the first third."""
    samples = [(float(n), noisy(100 * min(1.0, 0.2 + n / 70), n)) for n in range(200)]
    found = soak.trend(samples, soak.Allowance(2, 0.05))
    assert found.is_flat, found


def test_what_grows_is_told(soak: ModuleType) -> None:
    """A quarter more at the end, under the same noise; and in the table."""
    samples = [(float(n), noisy(100 + n / 4, n)) for n in range(200)]
    found = soak.trend(samples, soak.Allowance(2, 0.05))
    assert not found.is_flat and 15 < found.growth < 60
    lines = soak.table({'it': found}).splitlines()
    assert len(lines) == 2 and lines[1].endswith('GROWS')


def test_a_run_that_is_too_short_is_refused(soak: ModuleType) -> None:
    """Instead of being called flat."""
    with pytest.raises(ValueError, match='let it run longer'):
        soak.trend([(0.0, 1.0)] * 9, soak.Allowance(1, 0))
