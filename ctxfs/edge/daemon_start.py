"""`python -m ctxfs.edge.daemon_start`: the daemon's process, as daemon_process.py begins it.

Owns the order of its first steps: the worker goes first, so that the two import at the same time. It must not know what either does.
"""
from __future__ import annotations

import gc
import sys

from ctxfs.sync import spare_worker
from ctxfs.sync.process_guard import hide_process


def main() -> int:
    hide_process()
    spare_worker.begin()
    gc.disable()    # what imports make stays: `run` freezes it
    from ctxfs.edge import daemon, launch
    return launch.daemon_main(daemon.run)


if __name__ == '__main__':
    sys.exit(main())
