"""The targets of the coverage-led fuzzer work: each takes some seeds, and any bytes."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS
from tests.fuzz.tools import DEEP, fuzz


@pytest.mark.parametrize('name', TARGETS)
def test_a_target_takes_any_bytes(name: str) -> None:
    """What it finds is an assertion or another error."""
    for seed in [*SEEDS, *DEEP]:
        TARGETS[name](seed)
    given(st.binary(max_size=60))(fuzz(TARGETS[name]))()
