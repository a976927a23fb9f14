"""Where random tests begin: at the same place whenever everything is run, so that a commit has one verdict; anywhere in a search.

Owns the meaning of `CTXFS_FUZZ_SEED`. It must not know what is drawn.
"""
from __future__ import annotations

import os
import random


def first_seed() -> int:
    """The seed that was asked for; a new one where a size of the run was (scripts/fuzz sets them); else always the same."""
    if given := os.environ.get('CTXFS_FUZZ_SEED'):
        return int(given)
    return random.SystemRandom().randrange(1 << 32) if any(name.startswith('CTXFS_FUZZ_') for name in os.environ) else 1
