"""What once lost or mixed up bytes, replayed on real mounts: changes beside a running upload, after a kill, and from another host.

Owns the replays; each says what a user saw. It must not know how it was mended. Races are not left to luck: the transfer workers are
stopped (SIGSTOP) when the bucket shows how far the upload got, and go on when the change is made.
"""
from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.crash.watch import children, eventually, is_running
from tests.model.hosts import IS_DOUBLE
from tests.model.processes import Child, Gate, gates
from tests.mount.harness import Host
from tests.mount.sites import MountingSite, site_maker

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no bucket'), pytest.mark.timeout(150)]

FILES = 120
#: enough that an upload which began with other files is not at its end when some of these are in the bucket
BULK = 300


class Disk:
    """A context `c` at one mount point, on the first of any number of hosts."""

    def __init__(self, site: MountingSite) -> None:
        self.site = site
        self.at = site.mount_point()
        self.host: Any = site.host()
        self._prefix = ''

    @contextmanager
    def mounted(self, host: Any = None, *, options: tuple[str, ...] = ()) -> Iterator[Path]:
        """Mounted by the host (None: the first one) in the block, then unmounted: everything is in the bucket."""
        host = host or self.host
        host.mount('c', self.at, create=True, options=options)
        yield self.at
        host.unmount(self.at)

    def killed(self, crash_point: str, work: Callable[[], object]) -> None:
        """Mounted by the first host, whose daemon kills itself at that point of the upload of this work."""
        self.host.mount('c', self.at, create=True, env={'CTXFS_CRASH_POINT': crash_point})
        pid = self.host.pid(self.at)
        work()
        self.host.run('fusermount3', '-u', self.at)
        eventually(f'the daemon dies at {crash_point}', lambda: not is_running(pid))
        assert self.host.cli('wait', 'c', '--timeout', '1', check=False).returncode == 1

    @property
    def prefix(self) -> str:
        """Of the context's keys, with its slash."""
        if not self._prefix:
            self._prefix = f'contexts/{self.site.context_id("c")}/'
        return self._prefix

    def user_keys(self) -> set[str]:
        """Of the user's objects, relative to the context."""
        found = {key[len(self.prefix):] for key in self.site.bucket().keys(self.prefix)}
        return {key for key in found if not key.startswith('.ctxfs/')}

    def body(self, key: str) -> bytes:
        return self.site.bucket().body(self.prefix + key)

    def uploaded(self) -> int:
        """How many files the directory that is the bucket has of the user, looked at without the store: it may be asked every millisecond."""
        return sum(len(files) for top, _, files in os.walk(self.site.bucket().root / self.prefix)  # type: ignore[attr-defined]
                   if '/.ctxfs' not in top)

    @contextmanager
    def sync_stopped(self, *, at_files: int) -> Iterator[None]:
        """`ctxfs sync` runs, and its transfers stand still in the block; they were stopped when the bucket had so many files."""
        assert self.uploaded() < at_files
        workers = children(self.host.pid(self.at))
        with ThreadPoolExecutor(1) as pool:
            sync = pool.submit(Host.cli, self.host, 'sync', self.at, check=False)      # executed: beside others
            try:
                eventually('the upload comes so far', lambda: self.uploaded() >= at_files or sync.done(), every=0.001)
                signal_all(workers, signal.SIGSTOP)
                assert not sync.done(), 'the upload was over before it could be stopped'
                yield
            finally:
                signal_all(workers, signal.SIGCONT)
                sync.result()

    def read_everywhere(self) -> dict[str, bytes]:
        """All regular files as a new mount of this host, one of a host that knows nothing, and the bucket have them: all the same."""
        with self.mounted() as at:
            here = contents(at)
        with self.mounted(self.site.host()) as at:
            elsewhere = contents(at)
        assert {name for name in here if elsewhere.get(name) != here[name]} == set()
        assert sorted(elsewhere) == sorted(here)
        assert {key for key in self.user_keys() if not key.endswith('/')} == set(here)
        assert {name for name, data in here.items() if self.body(name) != data} == set()
        return here


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file() and not path.is_symlink()}


def signal_all(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def make_bulk(at: Path) -> dict[str, bytes]:
    (at / 'bulk').mkdir()
    want = {f'bulk/{n}': b'%d' % n for n in range(BULK)}
    for name, data in want.items():
        (at / name).write_bytes(data)
    return want


def append(path: Path, data: bytes) -> None:
    with open(path, 'ab') as f:
        f.write(data)


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return Disk(site_maker('file', request)(tmp_path))


# -- names that move beside an upload --------------------------------------------------------------------------------------------------

def make_logs(at: Path) -> None:
    for n in range(FILES):
        (at / f'log{n}').write_bytes(b'old %d ' % n * 1000)


def rotate_logs(at: Path) -> None:
    for n in range(FILES):
        os.rename(at / f'log{n}', at / f'log{n}.1')
        (at / f'log{n}').write_bytes(b'new %d\n' % n)


ROTATED_LOGS = {f'log{n}.1': b'old %d ' % n * 1000 for n in range(FILES)} | {f'log{n}': b'new %d\n' % n for n in range(FILES)}


def test_names_rotated_during_an_upload(disk: Disk) -> None:
    """Logs renamed and written anew while some of them are uploaded and some are not: every old and new content is kept."""
    with disk.mounted() as at:
        make_logs(at)
        with disk.sync_stopped(at_files=FILES // 4):
            rotate_logs(at)
        assert contents(at) == ROTATED_LOGS
    assert disk.read_everywhere() == ROTATED_LOGS


def test_names_rotated_after_they_were_uploaded_by_a_running_sync(disk: Disk) -> None:
    """The same when the sync is past all of them and busy with other files."""
    with disk.mounted() as at:
        make_logs(at)
        want = ROTATED_LOGS | make_bulk(at)
        with disk.sync_stopped(at_files=FILES + BULK // 3):
            rotate_logs(at)
    assert disk.read_everywhere() == want


@pytest.mark.parametrize('rotation', ['new-files', 'ring'])
def test_names_rotated_after_a_kill_behind_the_upload(rotation: str, disk: Disk) -> None:
    """The daemon died when all was uploaded and noted; then names rotate, with new files behind or in a ring: nothing is lost."""
    disk.killed('index-after-segment', lambda: make_logs(disk.at))
    want = ROTATED_LOGS
    with disk.mounted() as at:
        if rotation == 'new-files':
            rotate_logs(at)
        else:
            os.rename(at / f'log{FILES - 1}', at / 'last')
            for n in range(FILES - 2, -1, -1):
                os.rename(at / f'log{n}', at / f'log{n + 1}')
            os.rename(at / 'last', at / 'log0')
            want = {f'log{(n + 1) % FILES}': b'old %d ' % n * 1000 for n in range(FILES)}
    assert disk.read_everywhere() == want


def test_a_directory_moved_during_an_upload(disk: Disk) -> None:
    """A directory that the bucket has is renamed while other files are uploaded: it is in the bucket by its new name only."""
    with disk.mounted() as at:
        (at / 'd/sub').mkdir(parents=True)
        for n in range(3):
            (at / f'd/f{n}').write_bytes(b'%d' % n)
        (at / 'd/sub/deep').write_bytes(b'deep')
        disk.host.cli('sync', at)
        want = make_bulk(at) | {f'e/f{n}': b'%d' % n for n in range(3)} | {'e/sub/deep': b'deep'}
        with disk.sync_stopped(at_files=4 + BULK // 3):
            os.rename(at / 'd', at / 'e')
        disk.host.cli('sync', at)
        assert not [key for key in disk.user_keys() if key.startswith('d/')]
    assert disk.read_everywhere() == want


def test_an_open_unlinked_file_keeps_its_bytes_across_a_sync(disk: Disk) -> None:
    """Unlinked before the sync, between its upload and the sync's end, or long after its upload: the handle reads and writes on."""
    data = {name: name.encode() * 20_000 for name in ('long-since', 'before', 'during')}
    with disk.mounted() as at:
        (at / 'long-since').write_bytes(data['long-since'])
        disk.host.cli('sync', at)
        for name in ('before', 'during'):
            (at / name).write_bytes(data[name])
        handles = {name: os.open(at / name, os.O_RDWR) for name in data}
        make_bulk(at)
        for name in ('long-since', 'before'):
            os.unlink(at / name)
        with disk.sync_stopped(at_files=BULK // 3):
            os.unlink(at / 'during')
        for name, fd in handles.items():
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(fd, 1 << 20, 0) == data[name]
            os.pwrite(fd, b'more', 100)
            os.fsync(fd)
            assert os.pread(fd, 8, 98) == data[name][98:100] + b'more' + data[name][104:106]
            os.close(fd)
    assert not disk.user_keys() & data.keys()


# -- sync with open files, small caches ------------------------------------------------------------------------------------------------

def test_sync_uploads_what_was_written_to_open_files(disk: Disk) -> None:
    """write() without close(), munmap() with the descriptor open: after `ctxfs sync` the bucket has the bytes, each time."""
    rounds = 3
    written, mapped = b'', bytearray(20_000)
    # The descriptors are in a process of their own: to start `ctxfs sync` from this one would close copies of them, which writes all out.
    with disk.mounted() as at, gates(rounds) as changed, gates(rounds) as synced:
        child = Child(lambda: change_open_files(changed, synced), at)
        for n in range(rounds):
            changed[n].wait()
            disk.host.cli('sync', at)
            written += b'part %d' % n * 1000
            mapped[n * 5000:n * 5000 + 6] = b'page %d' % n
            assert disk.body('written') == written
            assert disk.body('mapped') == mapped
            synced[n].open()
        child.result()
    assert disk.read_everywhere() == {'written': written, 'mapped': mapped}


def change_open_files(changed: list[Gate], synced: list[Gate]) -> None:
    written, mapped = os.open('written', os.O_RDWR | os.O_CREAT), os.open('mapped', os.O_RDWR | os.O_CREAT)
    os.ftruncate(mapped, 20_000)
    for n in range(len(changed)):
        os.write(written, b'part %d' % n * 1000)
        write_mapped(mapped, n * 5000, b'page %d' % n)
        changed[n].open()
        synced[n].wait()


def write_mapped(fd: int, offset: int, data: bytes) -> None:
    """mmap, store, munmap. Not Python's mmap: that duplicates the descriptor and closes it again, which writes all out."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    size = os.fstat(fd).st_size
    address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    ctypes.memmove(address + offset, data, len(data))
    assert libc.munmap(address, size) == 0


@pytest.mark.timeout(75)
def test_a_file_larger_than_the_cache_size_is_written_through_one_handle(disk: Disk) -> None:
    """100 MB written at once with --cache-size 64M: no error, it reads back equal, and it arrives whole."""
    block = os.urandom(1 << 20)
    with disk.mounted(options=('--cache-size', '64M')) as at:
        with open(at / 'big', 'wb', buffering=0) as f:
            for n in range(100):
                assert f.write(n.to_bytes(4, 'big') + block[4:]) == 1 << 20
        check_big(at / 'big', block)
    check_big(disk.site.bucket().root / disk.prefix / 'big', block)  # type: ignore[attr-defined]


def check_big(path: Path, block: bytes) -> None:
    with open(path, 'rb', buffering=0) as f:
        for n in range(100):
            assert f.read(1 << 20) == n.to_bytes(4, 'big') + block[4:], f'{path}: other bytes in MB {n}'
        assert f.read(1) == b''


def test_a_sparse_file_larger_than_the_cache_size_stalls_nobody(disk: Disk) -> None:
    """After `truncate -s 5G` with --cache-size 64M another program writes and reads its own file at once."""
    with disk.mounted(options=('--cache-size', '64M')) as at:
        with open(at / 'sparse', 'wb') as f:
            f.truncate(5 << 30)
        done = subprocess.run(['sh', '-c', 'echo hello > small; cat small'], cwd=at, capture_output=True, timeout=20, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b'hello\n', b'')
        assert os.stat(at / 'sparse').st_size == 5 << 30
        os.unlink(at / 'sparse')
    assert disk.user_keys() == {'small'}


# -- two hosts -------------------------------------------------------------------------------------------------------------------------

def test_a_hard_link_broken_on_another_host(disk: Disk) -> None:
    """An editor's atomic save of a file with a hard link elsewhere: the other name keeps the old content, on every host and for good."""
    with disk.mounted() as at:
        (at / 'bak').mkdir()
        (at / 'f').write_bytes(b'old')
        os.link(at / 'f', at / 'bak/f')
    other = disk.site.host()
    with disk.mounted(other) as at:
        assert os.stat(at / 'f').st_ino == os.stat(at / 'bak/f').st_ino
    with disk.mounted() as at:
        (at / 'f.tmp').write_bytes(b'new')
        os.replace(at / 'f.tmp', at / 'f')
    with disk.mounted(other) as at:
        assert contents(at) == {'f': b'new', 'bak/f': b'old'}
        append(at / 'f', b' and more')
        assert contents(at) == {'f': b'new and more', 'bak/f': b'old'}
    assert disk.read_everywhere() == {'f': b'new and more', 'bak/f': b'old'}


@pytest.mark.parametrize('size', [500_000, 10], ids=['longer', 'shorter'])
def test_remote_content_of_another_size_is_taken_over(size: int, disk: Disk) -> None:
    """After `ctxfs sync --mode download` all see the new file, and a handle from before has old bytes or ESTALE, never a mixture."""
    old, new = b'o' * 300_000, b'n' * size
    with disk.mounted() as at:
        (at / 'f').write_bytes(old)
    with disk.mounted() as at:
        assert (at / 'f').read_bytes() == old
        before = os.open(at / 'f', os.O_RDONLY)
        assert os.pread(before, 1000, 0) == old[:1000]
        other, there = disk.site.host(), disk.site.mount_point()
        other.mount('c', there)
        (there / 'f').write_bytes(new)
        other.unmount(there)
        disk.host.cli('sync', at, '--mode', 'download')
        eventually('stat tells the new size', lambda: os.stat(at / 'f').st_size == size, seconds=10)
        assert read_or_estale(before) <= {ord('o')}
        assert (at / 'f').read_bytes() == new
        assert subprocess.run(['cat', at / 'f'], capture_output=True, check=True).stdout == new
        subprocess.run(['cp', at / 'f', at / 'copy'], check=True)
        assert (at / 'copy').read_bytes() == new
        assert read_or_estale(before) <= {ord('o')}
        os.close(before)
    assert disk.read_everywhere() == {'f': new, 'copy': new}


def read_or_estale(fd: int) -> set[int]:
    """The distinct bytes of the whole file."""
    found: set[int] = set()
    offset = 0
    try:
        while data := os.pread(fd, 65536, offset):
            found |= set(data)
            offset += len(data)
    except OSError as error:
        assert error.errno == errno.ESTALE
    return found


def test_a_directory_moved_before_anybody_looked_into_it(disk: Disk) -> None:
    """Modes and symlinks that only the objects' own metadata has (s3fs wrote them, no index) survive a rename of their directory."""
    with disk.mounted() as at:
        (at / 'd').mkdir()
        (at / 'd/run').write_bytes(b'#!/bin/sh\n')
        (at / 'd/run').chmod(0o751)
        (at / 'd/link').symlink_to('run')
    bucket = disk.site.bucket()
    for key in bucket.keys(f'{disk.prefix}.ctxfs/index/'):
        bucket.delete(key)
    with disk.mounted(disk.site.host()) as at:
        os.rename(at / 'd', at / 'e')
    for host in (disk.site.host(), disk.host):
        with disk.mounted(host) as at:
            assert os.listdir(at) == ['e']
            assert os.readlink(at / 'e/link') == 'run'
            assert stat.S_IMODE(os.stat(at / 'e/run').st_mode) == 0o751
            assert (at / 'e/run').read_bytes() == b'#!/bin/sh\n'


# -- a kill between an upload and its record -------------------------------------------------------------------------------------------

def write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda at: (at / name).write_bytes(data)


def unlink(name: str) -> Callable[[Path], object]:
    return lambda at: os.unlink(at / name)


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda at: os.rename(at / old, at / new)


def nothing(at: Path) -> None:
    """Only what the crash left is finished."""


@pytest.mark.parametrize('is_known', [True, False], ids=['changed', 'created'])
@pytest.mark.parametrize(('before', 'after', 'want'), [
    (write('f', b'second'), write('f', b'the third'), {'f': b'the third'}),
    (write('f', b'second'), unlink('f'), {}),
    (write('f', b'second'), rename('f', 'g'), {'g': b'second'}),
], ids=['edited', 'removed', 'renamed'])
def test_a_change_after_a_kill_between_upload_and_record(
        is_known: bool, before: Callable[[Path], object], after: Callable[[Path], object], want: dict[str, bytes], disk: Disk) -> None:
    """The bucket had the upload, and the journal did not know: no conflict copy, nothing comes back, nothing stale stays."""
    if is_known:
        with disk.mounted() as at:
            (at / 'f').write_bytes(b'first')
    disk.killed('upload-before-record', lambda: before(disk.at))
    with disk.mounted() as at:
        after(at)
    assert disk.read_everywhere() == want


@pytest.mark.parametrize(('after', 'want'), [
    (nothing, {'b': b'first'}), (write('b', b'second'), {'b': b'second'}), (rename('b', 'a'), {'a': b'first'}),
], ids=['nothing', 'edited', 'renamed-back'])
def test_a_kill_between_a_rename_s_copy_and_its_record(
        after: Callable[[Path], object], want: dict[str, bytes], disk: Disk) -> None:
    """A renamed file's copy is in the bucket, unrecorded: the file has one name afterwards."""
    with disk.mounted() as at:
        (at / 'a').write_bytes(b'first')
    disk.killed('upload-before-record', lambda: os.rename(disk.at / 'a', disk.at / 'b'))
    with disk.mounted() as at:
        after(at)
    assert disk.read_everywhere() == want
