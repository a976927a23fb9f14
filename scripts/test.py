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

#: tests that run side by side when everything is run: many of them wait, for a timeout or for a process to end
LANES = min(8, (os.cpu_count() or 1) + 1)


class Run:
    """One pytest with a directory and a marker of its own, and what it leaves behind."""

    def __init__(self, arguments: list[str]) -> None:
        self._marker = secrets.token_hex(8)
        self._directory = Path(tempfile.mkdtemp(prefix='ctxfs-test-'))
        self._directory.chmod(0o711)  # tests that act as another user must be able to pass through
        environment = dict(os.environ, TMPDIR=str(self._directory), **{leftovers.RUN_VARIABLE: self._marker})
        self.child = subprocess.Popen([sys.executable, '-m', 'pytest', '--durations=15', '-p', 'no:cacheprovider',
                                       f'--basetemp={self._directory / "home/pytest"}', *arguments], cwd=ROOT, env=environment)

    def finish(self) -> int:
        """pytest's status, or 1 where something was left behind."""
        try:
            status = self.child.wait()
        finally:
            left = leftovers.report(self._directory, self._marker)
        leftovers.complain(left)
        return status or (1 if left else 0)


def main(arguments: list[str]) -> int:
    # started in the background, a shell has SIGINT ignored, and pytest would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    is_everything = all(argument.startswith('-') for argument in arguments)
    run = Run([*(['-n', str(LANES), '--dist', 'worksteal'] if is_everything else []), *arguments])

    def interrupt(number: int, frame: FrameType | None) -> None:
        run.child.send_signal(signal.SIGINT)

    # an interrupt or a termination reaches pytest too, and is waited for, so that its fixtures clean up
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to pytest as well
    return run.finish()


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
