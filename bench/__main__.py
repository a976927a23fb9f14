"""The command line of the bench; started by scripts/bench, isolated from the user's Python environment."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

if __name__ == '__main__':
    from bench.command import main

    sys.exit(main(sys.argv[1:]))
