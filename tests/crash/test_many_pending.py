"""Very many files that wait for their upload: what they cost in memory, descriptors and answers. CTXFS_TEST_PENDING says how many (default: few);
the figures are printed.
"""
from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from tests.crash.watch import children
from tests.model.hosts import IS_DOUBLE
from tests.mount.executed import executed_hosts  # noqa: F401
from tests.mount.sites import MountingHost, site_maker

COUNT = int(os.environ.get('CTXFS_TEST_PENDING', '1200'))
PER_DIRECTORY = 500
#: what a daemon may need beyond what it has without any: for each file that the kernel knows, and for the uploads themselves
BYTES_EACH, LEAST = 2_500, 40 << 20

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='nothing is pending in a directory'), pytest.mark.timeout(200 + COUNT // 20)]


def resident(pid: int) -> int:
    text = Path(f'/proc/{pid}/status').read_text()
    return int(re.search(r'VmHWM:\s+(\d+) kB', text)[1]) << 10  # type: ignore[index]


def descriptors(pid: int) -> int:
    return len(os.listdir(f'/proc/{pid}/fd'))


class Stopwatch:
    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self, what: str) -> float:
        now = time.monotonic()
        print(f'{what}: {now - self._last:.1f} s')
        took, self._last = now - self._last, now
        return took


def test_many_files_wait_and_are_uploaded(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Status says how many at once, memory and descriptors are bounded, one sync uploads all, and the next mount has nothing to do."""
    site = site_maker('file', request)(tmp_path)
    host: MountingHost = site.host()  # type: ignore[assignment]
    at = site.mount_point()
    host.mount('c', at, create=True, options=('--sync-every', 'unmount'))
    pid = host.pid(at)
    before, watch = resident(pid), Stopwatch()
    for number in range(COUNT):
        if number % PER_DIRECTORY == 0:
            directory = at / f'd{number // PER_DIRECTORY:04}'
            directory.mkdir()
        (directory / f'f{number % PER_DIRECTORY:03}').write_bytes(b'%d' % number)
    watch.lap(f'{COUNT} files made')
    directories = -(-COUNT // PER_DIRECTORY)
    pending = host.status(at)['pending']
    watch.lap('status')
    assert COUNT <= pending['files'] <= COUNT + directories + 1 and pending['bytes'] == sum(len(str(number)) for number in range(COUNT))
    host.cli('sync', at, timeout=COUNT)
    watch.lap('sync')
    processes = (pid, *children(pid))
    grown = resident(pid) - before
    print(f'daemon {resident(pid) >> 20} MiB at most ({grown >> 20} MiB more than before), descriptors {[descriptors(p) for p in processes]}, '
          f'workers {[resident(p) >> 20 for p in processes[1:]]} MiB')
    assert grown <= LEAST + BYTES_EACH * COUNT
    assert all(descriptors(process) < 300 for process in processes)
    assert host.status(at)['pending'] == {'files': 0, 'bytes': 0, 'oldestSeconds': 0}
    host.unmount(at)
    watch.lap('unmount')
    prefix = f'contexts/{site.context_id("c")}/'
    assert sum(not key.startswith(f'{prefix}.ctxfs/') for key in site.bucket().keys(prefix)) == COUNT
