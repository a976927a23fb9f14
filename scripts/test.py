"""Runs pytest in an environment of its own and checks what is left afterwards; started by scripts/test, which installs what is needed.

Owns the run's directory (TMPDIR of everything below it) and its marker in the environment. It must not know the tests.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import leftovers  # noqa: E402 - this script runs isolated, without the checkout on its path

#: what runs side by side when everything is run: each about half of the time
HALVES = (
    ('tests/mount',),
    ('tests/crash', 'tests/unit', 'tests/contract', 'tests/model', 'tests/fuzz',
     *sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'tests').glob('test_*.py'))),
)


class Run:
    """One pytest with a directory and a marker of its own, and what it leaves behind."""

    def __init__(self, arguments: list[str], *, output: IO[bytes] | None = None) -> None:
        self._marker = secrets.token_hex(8)
        self._directory = Path(tempfile.mkdtemp(prefix='ctxfs-test-'))
        self._directory.chmod(0o711)  # tests that act as another user must be able to pass through
        self.output = output
        environment = dict(os.environ, TMPDIR=str(self._directory), **{leftovers.RUN_VARIABLE: self._marker})
        self.child = subprocess.Popen(
            [sys.executable, '-m', 'pytest', '--durations=15', '-p', 'no:cacheprovider', *arguments],
            cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT if output else None)

    def finish(self) -> int:
        """pytest's status, or 1 where something was left behind."""
        try:
            status = self.child.wait()
        finally:
            left = leftovers.report(self._directory, self._marker)
        if self.output is not None:
            self.output.seek(0)
            shutil.copyfileobj(self.output, sys.stdout.buffer)
            sys.stdout.flush()
        leftovers.complain(left)
        return status or (1 if left else 0)


def main(arguments: list[str]) -> int:
    # started in the background, a shell has SIGINT ignored, and pytest would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryFile() as output:
        if any(not argument.startswith('-') for argument in arguments):
            runs = [Run(arguments)]
        else:
            runs = [Run([*arguments, *HALVES[1]], output=output), Run([*arguments, *HALVES[0]])]

        def interrupt(number: int, frame: FrameType | None) -> None:
            for run in runs:
                run.child.send_signal(signal.SIGINT)

        # an interrupt or a termination reaches pytest too, and is waited for, so that its fixtures clean up
        signal.signal(signal.SIGTERM, interrupt)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to pytest as well
        return max(run.finish() for run in reversed(runs))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
