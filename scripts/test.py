"""Runs pytest in an environment of its own and checks what is left afterwards; started by scripts/test, which installs what is needed.

Owns the run's directory (TMPDIR of everything below it) and its marker in the environment. It must not know the tests.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import leftovers  # noqa: E402 - this script runs isolated, without the checkout on its path


def main(arguments: list[str]) -> int:
    run = secrets.token_hex(8)
    directory = Path(tempfile.mkdtemp(prefix='ctxfs-test-'))
    directory.chmod(0o711)  # tests that act as another user must be able to pass through
    environment = dict(os.environ, TMPDIR=str(directory), **{leftovers.RUN_VARIABLE: run})
    try:
        status = run_pytest(arguments, environment)
    finally:
        left = leftovers.report(directory, run)
    leftovers.complain(left)
    return status or (1 if left else 0)


def run_pytest(arguments: list[str], environment: dict[str, str]) -> int:
    """pytest's status. An interrupt or a termination reaches it too, and is waited for, so that its fixtures clean up."""
    # started in the background, a shell has SIGINT ignored, and pytest would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    child = subprocess.Popen([sys.executable, '-m', 'pytest', '--durations=15', *arguments], cwd=ROOT, env=environment)

    def interrupt(number: int, frame: FrameType | None) -> None:
        child.send_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to pytest as well
    return child.wait()


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
