"""Feeds hostile input to every reader for a given time; started by scripts/fuzz --input. Exits with 1 at the first finding, which it prints.

Owns the clock and the order: the properties of tests/fuzz with new seeds and more and more examples for half of the time, then atheris on
each target of tests/fuzz/targets.py, with a corpus of its own under the system's temporary directory. It must not know any reader.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: examples of each property in the first round; each further one has twice as many
FIRST = 200
#: bytes of one input, and libFuzzer's other bounds for one: seconds and MiB
LONGEST = 4096
LIMITS = ('-timeout=20', '-rss_limit_mb=1024', f'-max_len={LONGEST}', '-print_final_stats=1')


def run_properties(deadline: float) -> int:
    examples = FIRST
    while time.monotonic() < deadline:
        seed = random.SystemRandom().randrange(1 << 32)
        print(f'CTXFS_FUZZ_EXAMPLES={examples} --hypothesis-seed={seed}', flush=True)
        status = subprocess.run(
            [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--timeout=0', f'--hypothesis-seed={seed}', 'tests/fuzz'],
            cwd=ROOT, env=dict(os.environ, CTXFS_FUZZ_EXAMPLES=str(examples)), check=False).returncode
        if status:
            return status
        examples *= 2
    return 0


def run_targets(names: list[str], seeds: list[bytes], deadline: float) -> int:
    if importlib.util.find_spec('atheris') is None:
        print('atheris is not installed: only the properties were tried')
        return 0
    corpora = Path(tempfile.gettempdir()) / f'ctxfs-fuzz-{os.getuid()}'
    for number, name in enumerate(names):
        seconds = max(5, int((deadline - time.monotonic()) / (len(names) - number)))
        corpus = corpora / name
        corpus.mkdir(mode=0o700, parents=True, exist_ok=True)
        for which, seed in enumerate(seeds):
            (corpus / f'seed-{which}').write_bytes(seed[:LONGEST])
        print(f'{name}: {seconds} s, corpus {corpus}', flush=True)
        status = subprocess.run([sys.executable, '-m', 'tests.fuzz.targets', name, f'-max_total_time={seconds}', f'-artifact_prefix={corpora}/',
                                 *LIMITS, str(corpus)], cwd=ROOT, check=False).returncode
        if status:
            print(f'{name}: found something; the input is in {corpora}')
            return 1
    return 0


def main() -> int:
    sys.path.insert(0, str(ROOT))
    from tests.fuzz.targets import SEEDS, TARGETS

    parser = argparse.ArgumentParser(prog='scripts/fuzz --input', description='Hostile input for every reader.')
    parser.add_argument('seconds', type=int, help='how long, in all')
    parser.add_argument('targets', nargs='*', metavar='TARGET', help=f'only these, and no properties: {", ".join(TARGETS)}')
    arguments = parser.parse_args()
    unknown = [name for name in arguments.targets if name not in TARGETS]
    if unknown:
        parser.error(f'no target {unknown[0]}; there are {", ".join(TARGETS)}')
    end = time.monotonic() + arguments.seconds
    if not arguments.targets and (status := run_properties(end - arguments.seconds / 2)):
        return status
    return run_targets(arguments.targets or list(TARGETS), SEEDS, end)


if __name__ == '__main__':
    sys.exit(main())
