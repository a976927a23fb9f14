"""What a mounted disk does, by example: files, handles, directories, times, locks, errors. Each example is what ext4 does.

Owns nothing but the examples; they share one mount and have a directory each. It must not know ctxfs: with CTXFS_TEST_DOUBLE=1 all
of it passes on a local disk. Other users are in test_permissions.py, whole programs in test_programs.py.
"""
from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.model import syscalls
from tests.model.hosts import IS_DOUBLE
from tests.model.processes import Child, gates, in_child

on_a_mount = pytest.mark.skipif(IS_DOUBLE, reason='says what a mount does, not what any disk does')


def fails_with(code: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as raised:
        call()
    assert errno.errorcode[raised.value.errno or 0] == errno.errorcode[code]


# -- files and handles -------------------------------------------------------------------------------------------------------------

@on_a_mount
def test_a_time_that_cannot_be_kept_is_the_nearest_that_can(disk: Path) -> None:
    """As ext4 does it with its own bounds (1901 to 2446; here 1677 to 2262): no error, and the mount ends as it should, with it uploaded."""
    (disk / 'f').write_text('x')
    for second, kept in [(10**12, (1 << 63) - 1), (-10**12, -(1 << 63)), (9 * 10**9, 9 * 10**18)]:
        os.utime(disk / 'f', ns=(second * 10**9, second * 10**9))
        assert (disk / 'f').stat().st_mtime_ns // 10**9 in (second, kept // 10**9)      # the kernel may still know better
        os.chmod(disk / 'f', 0o600)


def test_unlinked_open_file_can_be_written_and_read(disk: Path) -> None:
    """A file lives until its last handle is closed, and shows no links meanwhile."""
    with open(disk / 'f', 'w+b') as f:
        os.unlink(disk / 'f')
        f.write(b'x' * 100_000)
        f.flush()
        f.seek(0)
        assert f.read() == b'x' * 100_000
        assert os.fstat(f.fileno()).st_nlink == 0
        assert os.listdir(disk) == []


def test_two_appending_processes_never_overwrite_each_other(disk: Path) -> None:
    """With O_APPEND each write lands whole at the end, whoever else writes."""
    def append(mark: str) -> None:
        fd = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for i in range(500):
            os.write(fd, f'{mark}{i:08}\n'.encode())
        os.close(fd)

    children = [Child(lambda m=mark: append(m), disk) for mark in 'ab']
    for child in children:
        child.result()
    lines = (disk / 'log').read_text().splitlines()
    assert sorted(lines) == sorted(f'{mark}{i:08}' for mark in 'ab' for i in range(500))


def test_open_handle_follows_a_rename(disk: Path) -> None:
    """What is written through a handle after a rename is in the renamed file, also where it replaced another."""
    (disk / 'other').write_bytes(b'old')
    with open(disk / 'f', 'wb') as f:
        f.write(b'one ')
        f.flush()
        os.rename(disk / 'f', disk / 'other')
        f.write(b'two')
    assert (disk / 'other').read_bytes() == b'one two'
    assert not (disk / 'f').exists()


def test_replaced_open_file_keeps_its_old_content(disk: Path) -> None:
    """A reader that opened before an atomic replacement reads the old version to its end."""
    (disk / 'f').write_bytes(b'old' * 50_000)
    (disk / 'new').write_bytes(b'new')
    with open(disk / 'f', 'rb') as f:
        assert f.read(3) == b'old'
        os.rename(disk / 'new', disk / 'f')
        assert f.read() == b'old' * 49_999
        assert os.fstat(f.fileno()).st_nlink == 0
    assert (disk / 'f').read_bytes() == b'new'


def test_reader_sees_another_process_append_at_once(disk: Path) -> None:
    """tail -f works: bytes are visible when write() returned, without a close."""
    with gates(2) as (written, seen):
        def write() -> None:
            fd = os.open('f', os.O_WRONLY | os.O_CREAT, 0o644)
            for i in range(20):
                os.write(fd, b'%05d' % i)
                written.open()
                seen.wait()
            os.close(fd)

        child = Child(write, disk)
        for i in range(20):
            written.wait()
            data = (disk / 'f').read_bytes()
            seen.open()
            assert data == b''.join(b'%05d' % n for n in range(i + 1))
        child.result()


def test_shared_mapping_is_the_file(disk: Path) -> None:
    """What is stored through a shared mapping is read through read(), and the other way round."""
    (disk / 'f').write_bytes(b'-' * 300_000)
    with open(disk / 'f', 'r+b') as f, mmap.mmap(f.fileno(), 0) as mapped:
        mapped[200_000:200_005] = b'hello'
        assert os.pread(f.fileno(), 5, 200_000) == b'hello'
        os.pwrite(f.fileno(), b'world', 100)
        assert mapped[100:105] == b'world'
        mapped.flush()
    assert (disk / 'f').read_bytes()[200_000:200_005] == b'hello'


def test_mapping_outlives_its_handle(disk: Path) -> None:
    """Linkers and databases close the file and store through the mapping: the bytes arrive when it is unmapped."""
    (disk / 'f').write_bytes(b'-' * 10_000)
    with open(disk / 'f', 'r+b') as f:
        mapped = mmap.mmap(f.fileno(), 0)
    mapped[5000:5003] = b'abc'
    mapped.close()
    assert (disk / 'f').read_bytes()[4999:5004] == b'-abc-'


def test_private_mapping_leaves_the_file_alone(disk: Path) -> None:
    """A private mapping is copied on write."""
    (disk / 'f').write_bytes(b'-' * 10_000)
    with open(disk / 'f', 'r+b') as f, mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
        mapped[0:5] = b'hello'
        assert mapped[0:5] == b'hello'
    assert (disk / 'f').read_bytes() == b'-' * 10_000


def test_holes_read_as_zeros_and_take_no_space(disk: Path) -> None:
    """A file of a gigabyte with a few bytes in it occupies a few blocks."""
    with open(disk / 'f', 'wb') as f:
        f.write(b'start')
        f.seek(1 << 30)
        f.write(b'end')
        os.fsync(f.fileno())
    st = os.stat(disk / 'f')
    assert st.st_size == (1 << 30) + 3
    assert st.st_blocks * 512 < 4 << 20
    with open(disk / 'f', 'rb') as f:
        assert os.pread(f.fileno(), 8192, 3) == b'rt' + b'\0' * 8190
        assert os.pread(f.fileno(), 8, (1 << 30) - 5) == b'\0' * 5 + b'end'
    os.unlink(disk / 'f')


def test_offsets_beyond_four_gigabytes(disk: Path) -> None:
    """Offsets are 64 bits wide everywhere."""
    with open(disk / 'f', 'w+b') as f:
        os.pwrite(f.fileno(), b'far', 5 << 30)
        assert os.fstat(f.fileno()).st_size == (5 << 30) + 3
        assert os.pread(f.fileno(), 10, (5 << 30) - 1) == b'\0far'
    os.unlink(disk / 'f')


def test_truncating_and_growing_leaves_zeros(disk: Path) -> None:
    """Bytes cut off by a truncation never come back when the file grows again."""
    with open(disk / 'f', 'w+b') as f:
        f.write(b'x' * 10_000)
        f.truncate(100)
        f.truncate(10_000)
        f.seek(0)
        assert f.read() == b'x' * 100 + b'\0' * 9900


def test_o_direct_reads_what_was_written(disk: Path) -> None:
    """Databases open with O_DIRECT: aligned reads and writes work and agree with the page cache."""
    fd = os.open(disk / 'f', os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
    with mmap.mmap(-1, 8192) as aligned:
        aligned.write(b'd' * 8192)
        assert os.write(fd, aligned) == 8192
        assert (disk / 'f').read_bytes() == b'd' * 8192
        aligned[:] = b'\0' * 8192
        assert os.preadv(fd, [aligned], 0) == 8192
        assert aligned[:] == b'd' * 8192
    os.close(fd)


def test_copy_file_range_and_sendfile(disk: Path) -> None:
    """cp and web servers move bytes inside the kernel."""
    (disk / 'f').write_bytes(os.urandom(300_000))
    with open(disk / 'f', 'rb') as source, open(disk / 'g', 'wb') as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), 300_000) == 300_000
    with open(disk / 'f', 'rb') as source, open(disk / 'h', 'wb') as target:
        assert os.sendfile(target.fileno(), source.fileno(), 0, 300_000) == 300_000
    assert (disk / 'f').read_bytes() == (disk / 'g').read_bytes() == (disk / 'h').read_bytes()


def test_posix_fallocate_makes_the_size(disk: Path) -> None:
    """Downloaders reserve their file first; glibc does it by writing where the file system cannot."""
    with open(disk / 'f', 'w+b') as f:
        os.posix_fallocate(f.fileno(), 0, 1 << 20)
        assert os.fstat(f.fileno()).st_size == 1 << 20
        assert f.read() == b'\0' * (1 << 20)


def test_two_thousand_open_files(disk: Path) -> None:
    """Handles are limited by the program's own limit, not by the mount's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        files = [open(disk / str(i), 'w+b') for i in range(2000)]  # noqa: SIM115 - all of them stay open
        for i, f in enumerate(files):
            f.write(b'%d' % i)
            f.flush()
        for i, f in enumerate(files):
            f.seek(0)
            assert f.read() == b'%d' % i
            f.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_exclusive_creation_has_one_winner(disk: Path) -> None:
    """O_CREAT|O_EXCL is the lock that programs build locks from; so is mkdir."""
    won: list[str] = []

    def attempt(me: int) -> None:
        for i in range(50):
            for kind, make in (('f', lambda p: os.close(os.open(p, os.O_CREAT | os.O_EXCL | os.O_RDONLY))), ('d', os.mkdir)):
                try:
                    make(disk / f'{kind}{i}')
                    won.append(f'{kind}{i}')
                except FileExistsError:
                    pass  # the other thread won this one

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(won) == sorted([f'f{i}' for i in range(50)] + [f'd{i}' for i in range(50)])


def test_programs_can_be_run(disk: Path) -> None:
    """A binary and a script run from the mount; a running binary cannot be written (ETXTBSY)."""
    binary = disk / 'sleep'
    binary.write_bytes(Path('/bin/sleep').read_bytes())
    binary.chmod(0o755)
    (disk / 'script').write_text('#!/bin/sh\necho from a script\n')
    (disk / 'script').chmod(0o755)
    assert subprocess.run([disk / 'script'], capture_output=True, text=True, check=True).stdout == 'from a script\n'
    process = subprocess.Popen([binary, '60'])
    try:
        fails_with(errno.ETXTBSY, lambda: os.open(binary, os.O_WRONLY))
    finally:
        process.kill()
        process.wait()


# -- names and directories ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', [b'\xff\xfe bytes', 'ünï ☃'.encode(), b'new\nline', b'\x01\x1f\x7f', '\u201bFF'.encode(), b'L' * 255, b'\xff' * 100,
                                  b'%2F', b'back\\slash', b' ', b'*?[', b'-rf', b'...', b'CON', b'a\xcc\x8a'])
def test_any_name_is_a_name(name: bytes, disk: Path) -> None:
    """Every byte but NUL and / may be in a name, up to 255 of them, and readdir gives it back unchanged."""
    path = os.path.join(os.fsencode(disk), name)
    with open(path, 'wb') as f:
        f.write(name)
    os.mkdir(path + b'd' if len(name) < 255 else path[:-1])
    assert name in os.listdir(os.fsencode(disk))
    with open(path, 'rb') as f:
        assert f.read() == name


def test_case_is_significant(disk: Path) -> None:
    """`a` and `A` are two files, and no name is normalised."""
    for name in ('a', 'A', 'å', 'a\u030a'):
        (disk / name).write_text(name)
    assert sorted(os.listdir(disk)) == sorted(['a', 'A', 'å', 'a\u030a'])


def test_directory_link_counts(disk: Path) -> None:
    """A directory has two links and one for each subdirectory, as find's leaf optimisation wants it."""
    (disk / 'd').mkdir()
    assert os.stat(disk / 'd').st_nlink == 2
    (disk / 'd/x').mkdir()
    (disk / 'd/y').mkdir()
    (disk / 'd/f').touch()
    assert os.stat(disk / 'd').st_nlink == 4
    os.rename(disk / 'd/x', disk / 'x')
    (disk / 'd/y').rmdir()
    assert os.stat(disk / 'd').st_nlink == 2


def test_hard_links_are_one_file(disk: Path) -> None:
    """All names of a file share inode, content, mode and times; removing one leaves the others."""
    (disk / 'a').write_bytes(b'one')
    os.link(disk / 'a', disk / 'b')
    (disk / 'd').mkdir()
    os.link(disk / 'b', disk / 'd/c')
    (disk / 'd/c').write_bytes(b'two')
    os.chmod(disk / 'b', 0o600)
    stats = [os.stat(disk / n) for n in ('a', 'b', 'd/c')]
    assert len({(s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns, s.st_nlink) for s in stats}) == 1
    assert stats[0].st_nlink == 3
    os.unlink(disk / 'a')
    assert (disk / 'b').read_bytes() == b'two'
    assert os.stat(disk / 'd/c').st_nlink == 2


def test_symlinks_keep_any_target(disk: Path) -> None:
    """A symlink may dangle, loop, point outside, hold odd bytes, and be 4,095 bytes long."""
    for i, target in enumerate([b'nowhere', b'4', b'/etc/hostname', b'\xff\n\x01', b'4', b'x/' * 2047 + b'x', b'..']):
        os.symlink(target, os.path.join(os.fsencode(disk), b'%d' % i))
        assert os.readlink(os.path.join(os.fsencode(disk), b'%d' % i)) == target
        assert os.lstat(disk / str(i)).st_size == len(target)
    fails_with(errno.ELOOP, lambda: os.stat(disk / '4'))
    assert os.path.samefile(disk / '6', disk.parent)


def test_listing_stays_right_while_the_directory_changes(disk: Path) -> None:
    """2,500 entries, others created and removed meanwhile: no stable name is missing, none comes twice."""
    stable = {f'stable-{i:05}' for i in range(2_500)}
    for name in stable:
        (disk / name).touch()
    with gates(1) as (started,):
        def disturb() -> None:
            for i in range(1000):
                os.close(os.open(f'coming-{i}', os.O_CREAT | os.O_WRONLY))
                if i == 100:
                    started.open()
                if i >= 50:
                    os.unlink(f'coming-{i - 50}')

        child = Child(disturb, disk)
        started.wait()
        listings = [os.listdir(disk) for _ in range(4)]
        child.result()
    for listing in listings:
        assert len(listing) == len(set(listing))
        assert stable <= set(listing)
    assert len(os.listdir(disk)) == 2_550


def test_everything_is_removed_while_it_is_listed(disk: Path) -> None:
    """`rm -rf` unlinks what it lists: removing entries shifts none of the others out of the listing."""
    for i in range(1300):
        (disk / str(i)).touch()
    seen = []
    with os.scandir(disk) as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
    assert sorted(seen) == sorted(map(str, range(1300)))
    assert os.listdir(disk) == []


def test_directory_positions_can_be_returned_to(disk: Path) -> None:
    """seekdir to a telldir position goes on with the entry that came next, also after entries before it were removed."""
    for i in range(1000):
        (disk / str(i)).touch()
    with syscalls.DirectoryStream(os.fsencode(disk)) as stream:
        first = [next(stream) for _ in range(500)]
        position = stream.tell()
        rest = list(stream)
        assert sorted([*first, *rest]) == sorted([b'.', b'..', *(b'%d' % i for i in range(1000))])
        for name in first[:100]:
            if name not in (b'.', b'..'):
                os.unlink(os.path.join(os.fsencode(disk), name))
        stream.seek(position)
        assert list(stream) == rest
        stream.rewind()
        assert sorted(stream) == sorted({b'.', b'..', *first[100:], *rest} | {n for n in first[:100] if n in (b'.', b'..')})


def test_new_files_are_listed_after_rewinddir(disk: Path) -> None:
    """An open directory stream shows what was created since, once it is rewound."""
    with syscalls.DirectoryStream(os.fsencode(disk)) as stream:
        assert sorted(stream) == [b'.', b'..']
        (disk / 'new').touch()
        stream.rewind()
        assert sorted(stream) == [b'.', b'..', b'new']


def test_a_directory_can_be_synced(disk: Path) -> None:
    """fsync on a directory, which databases call after every creation and rename, succeeds."""
    (disk / 'f').touch()
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)


def test_removed_working_directory(disk: Path) -> None:
    """A process whose directory was removed gets ENOENT for new files, and can still list nothing."""
    (disk / 'd').mkdir()

    def remove_and_use() -> tuple[list[str], int | None]:
        os.rmdir('../d')
        try:
            os.close(os.open('f', os.O_CREAT | os.O_WRONLY))
        except OSError as e:
            return os.listdir('.'), e.errno
        return os.listdir('.'), None

    assert in_child(remove_and_use, disk / 'd') == ([], errno.ENOENT)


def test_deep_trees(disk: Path) -> None:
    """Two hundred levels of directories are created, walked and removed."""
    deep = disk.joinpath(*['d'] * 200)
    deep.mkdir(parents=True)
    (deep / 'f').write_text('down here')
    assert sum(1 for _ in os.walk(disk)) == 201
    assert (deep / 'f').read_text() == 'down here'
    os.rename(disk / 'd', disk / 'e')
    assert disk.joinpath('e', *['d'] * 199, 'f').read_text() == 'down here'


@on_a_mount
def test_reserved_directory_is_neither_seen_nor_made(mounted_root: Path) -> None:
    """ctxfs's own objects are not in the tree, and a program that wants their name is told so instead of losing its file."""
    assert '.ctxfs' not in os.listdir(mounted_root)
    for attempt in (lambda: os.mkdir(mounted_root / '.ctxfs'), lambda: (mounted_root / '.ctxfs').write_text('x'),
                    lambda: os.symlink('x', mounted_root / '.ctxfs'), lambda: os.mkfifo(mounted_root / '.ctxfs')):
        with pytest.raises(OSError):
            attempt()
    (mounted_root / 'to-be-moved').write_text('x')
    with pytest.raises(OSError):
        os.rename(mounted_root / 'to-be-moved', mounted_root / '.ctxfs')
    os.unlink(mounted_root / 'to-be-moved')


# -- errors ------------------------------------------------------------------------------------------------------------------------

def _errors() -> list:
    create = os.O_CREAT | os.O_WRONLY
    return [
        ('ENAMETOOLONG name', errno.ENAMETOOLONG, lambda d: os.close(os.open(d / ('n' * 256), create))),
        ('ENAMETOOLONG rename', errno.ENAMETOOLONG, lambda d: os.rename(d / 'f', d / ('n' * 256))),
        ('ENAMETOOLONG mkdir', errno.ENAMETOOLONG, lambda d: os.mkdir(d / ('n' * 256))),
        ('ENAMETOOLONG symlink', errno.ENAMETOOLONG, lambda d: os.symlink('x' * 4096, d / 'l')),
        ('ENAMETOOLONG stat', errno.ENAMETOOLONG, lambda d: os.stat(d / ('n' * 256))),
        ('ENOTEMPTY rmdir', errno.ENOTEMPTY, lambda d: os.rmdir(d / 'full')),
        ('ENOTEMPTY rename', errno.ENOTEMPTY, lambda d: os.rename(d / 'empty', d / 'full')),
        ('EISDIR open', errno.EISDIR, lambda d: os.open(d / 'full', os.O_WRONLY)),
        ('EISDIR unlink', errno.EISDIR, lambda d: os.unlink(d / 'full')),
        ('EISDIR rename', errno.EISDIR, lambda d: os.rename(d / 'f', d / 'empty')),
        ('EISDIR truncate', errno.EISDIR, lambda d: os.truncate(d / 'full', 0)),
        ('ENOTDIR below a file', errno.ENOTDIR, lambda d: os.stat(d / 'f/x')),
        ('ENOTDIR rmdir', errno.ENOTDIR, lambda d: os.rmdir(d / 'f')),
        ('ENOTDIR rename', errno.ENOTDIR, lambda d: os.rename(d / 'empty', d / 'f')),
        ('ENOTDIR opendir', errno.ENOTDIR, lambda d: os.listdir(d / 'f')),
        ('EEXIST mkdir', errno.EEXIST, lambda d: os.mkdir(d / 'f')),
        ('EEXIST link', errno.EEXIST, lambda d: os.link(d / 'f', d / 'full')),
        ('EEXIST symlink', errno.EEXIST, lambda d: os.symlink('x', d / 'f')),
        ('EEXIST O_EXCL on a symlink', errno.EEXIST, lambda d: os.open(d / 'dangling', create | os.O_EXCL)),
        ('EEXIST noreplace', errno.EEXIST, lambda d: syscalls.renameat2(os.fsencode(d / 'f'), os.fsencode(d / 'g'), 1)),
        ('ENOENT exchange', errno.ENOENT, lambda d: syscalls.renameat2(os.fsencode(d / 'f'), os.fsencode(d / 'none'), 2)),
        ('EINVAL flags', errno.EINVAL, lambda d: syscalls.renameat2(os.fsencode(d / 'f'), os.fsencode(d / 'g'), 3)),
        ('EINVAL into itself', errno.EINVAL, lambda d: os.rename(d / 'full', d / 'full/sub/x')),
        ('EINVAL readlink', errno.EINVAL, lambda d: os.readlink(d / 'f')),
        ('EINVAL negative size', errno.EINVAL, lambda d: os.truncate(d / 'f', -1)),
        ('ENOTEMPTY over its own parent', errno.ENOTEMPTY, lambda d: os.rename(d / 'full/sub', d / 'full')),
        ('EINVAL rmdir dot', errno.EINVAL, lambda d: os.rmdir(f'{d}/empty/.')),
        ('ELOOP', errno.ELOOP, lambda d: os.open(d / 'loop', os.O_RDONLY)),
        ('ELOOP O_NOFOLLOW', errno.ELOOP, lambda d: os.open(d / 'dangling', os.O_RDONLY | os.O_NOFOLLOW)),
        ('ENOENT unlink', errno.ENOENT, lambda d: os.unlink(d / 'none')),
        ('ENOENT create below nothing', errno.ENOENT, lambda d: os.open(d / 'none/f', create)),
        ('ENOENT link from nothing', errno.ENOENT, lambda d: os.link(d / 'none', d / 'x')),
        ('EPERM link of a directory', errno.EPERM, lambda d: os.link(d / 'full', d / 'x')),
        ('EXDEV rename', errno.EXDEV, lambda d: os.rename(d / 'f', '/dev/shm/never-made')),
        ('EXDEV link', errno.EXDEV, lambda d: os.link(d / 'f', '/dev/shm/never-made')),
        ('EFBIG', errno.EFBIG, lambda d: os.truncate(d / 'f', (1 << 63) - 1)),
        ('ENXIO fifo without reader', errno.ENXIO, lambda d: os.open(d / 'fifo', os.O_WRONLY | os.O_NONBLOCK)),
        ('ENXIO socket', errno.ENXIO, lambda d: os.open(d / 'socket', os.O_RDONLY)),
    ]


@pytest.mark.parametrize(('code', 'call'), [pytest.param(code, call, id=name) for name, code, call in _errors()])
def test_errors_are_those_of_ext4(code: int, call: Callable[[Path], object], disk: Path) -> None:
    """A program that looks at errno finds the one it knows from a local disk, and nothing was changed by the failed call."""
    (disk / 'full/sub').mkdir(parents=True)
    (disk / 'empty').mkdir()
    for name in 'fg':
        (disk / name).write_text(name)
    os.symlink('loop', disk / 'loop')
    os.symlink('nowhere', disk / 'dangling')
    os.mkfifo(disk / 'fifo')
    os.mknod(disk / 'socket', stat.S_IFSOCK | 0o600)
    before = sorted(os.listdir(disk))
    fails_with(code, lambda: call(disk))
    assert sorted(os.listdir(disk)) == before
    assert (disk / 'f').read_text() == 'f'


def test_a_handle_keeps_its_rights(disk: Path) -> None:
    """A handle opened for reading cannot write, and the other way round."""
    (disk / 'f').write_text('x')
    reading, writing = os.open(disk / 'f', os.O_RDONLY), os.open(disk / 'f', os.O_WRONLY)
    fails_with(errno.EBADF, lambda: os.write(reading, b'y'))
    fails_with(errno.EBADF, lambda: os.read(writing, 1))
    fails_with(errno.EINVAL, lambda: os.ftruncate(reading, 0))
    os.close(reading)
    os.close(writing)


# -- attributes and times ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('ns', [0, 1, 1_700_000_000_123_456_789, -1, -2_000_000_000_999_999_999, 4_300_000_000_987_654_321])
def test_times_are_kept_to_the_nanosecond(ns: int, disk: Path) -> None:
    """Also before 1970 and after 2106, for files, directories and symlinks themselves."""
    (disk / 'f').touch()
    (disk / 'd').mkdir()
    os.symlink('f', disk / 'l')
    for name in 'fdl':
        os.utime(disk / name, ns=(ns + 1, ns), follow_symlinks=False)
    for name in 'fdl':
        st = os.lstat(disk / name)
        assert (st.st_atime_ns, st.st_mtime_ns) == (ns + 1, ns)


def test_times_move_when_they_should(disk: Path) -> None:
    """Content moves mtime and ctime, attributes only ctime, entries the directory's mtime; reading and a failed call move none."""
    def times(path: Path) -> tuple[int, int]:
        st = os.stat(path)
        return st.st_mtime_ns, st.st_ctime_ns

    def moved(path: Path, action: Callable[[], object]) -> tuple[bool, bool]:
        before = times(path)
        # The kernel stamps files with a clock of up to 10 ms per tick: act again until a tick has passed, at most for a second.
        end = time.monotonic() + 1
        while True:
            action()
            after = times(path)
            if after[1] != before[1] or time.monotonic() > end:
                return after[0] > before[0], after[1] > before[1]

    f = disk / 'f'
    f.write_text('x')
    os.utime(f, ns=(0, 0))
    assert moved(f, lambda: f.write_text('y')) == (True, True)
    assert moved(f, lambda: os.chmod(f, 0o600)) == (False, True)
    numbers = iter(range(1 << 30))
    assert moved(f, lambda: os.link(f, disk / f'l{next(numbers)}')) == (False, True)
    assert moved(disk, lambda: (disk / f'n{next(numbers)}').touch()) == (True, True)
    (disk / 'd').mkdir()
    os.utime(disk / 'd', ns=(0, 0))
    assert moved(disk / 'd', lambda: os.rename(f, disk / 'd/f') if f.exists() else os.rename(disk / 'd/f', f)) == (True, True)
    before = times(disk / 'd'), times(disk)
    fails_with(errno.ENOENT, lambda: os.unlink(disk / 'd/none'))
    assert (times(disk / 'd'), times(disk)) == before


def test_time_set_on_an_open_file_survives_its_close(disk: Path) -> None:
    """tar and rsync set the time before they close: bytes that the kernel still holds must not move it again."""
    with open(disk / 'f', 'wb') as f:
        f.write(b'x' * 50_000)
        f.flush()
        os.utime(f.fileno(), ns=(5, 1_000_000_000_000_000_007))
    assert os.stat(disk / 'f').st_mtime_ns == 1_000_000_000_000_000_007


def test_new_files_get_mode_and_umask(disk: Path) -> None:
    """The umask applies as on a local disk, to files, directories and fifos."""
    def make() -> None:
        os.umask(0o027)
        os.close(os.open('f', os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir('d', 0o777)
        os.mkfifo('p', 0o666)

    in_child(make, disk)
    assert [stat.S_IMODE(os.stat(disk / n).st_mode) for n in 'fdp'] == [0o640, 0o750, 0o640]


def test_a_setgid_directory_hands_its_group_down(disk: Path) -> None:
    """Files in a setgid directory get its group; directories also the bit."""
    if os.geteuid() != 0:
        pytest.skip('needs root to choose a group')
    (disk / 'd').mkdir()
    os.chown(disk / 'd', 0, 1234)
    os.chmod(disk / 'd', 0o2775)
    (disk / 'd/f').touch()
    (disk / 'd/sub').mkdir(mode=0o755)
    os.symlink('x', disk / 'd/l')
    assert {os.lstat(disk / 'd' / n).st_gid for n in ('f', 'sub', 'l')} == {1234}
    assert stat.S_IMODE(os.stat(disk / 'd/sub').st_mode) == 0o2755
    assert stat.S_IMODE(os.stat(disk / 'd/f').st_mode) & 0o2000 == 0


def test_statvfs_says_real_numbers(disk: Path) -> None:
    """df and installers that check for space see sizes that make sense, and names of up to 255 bytes."""
    st = os.statvfs(disk)
    assert st.f_namemax == 255
    assert st.f_frsize >= 512
    assert st.f_blocks >= st.f_bfree >= st.f_bavail > 0
    assert st.f_files == 0 or st.f_files >= st.f_ffree > 0
    assert st.f_bavail * st.f_frsize > 1 << 20


def test_inode_numbers_are_stable_and_unique(disk: Path) -> None:
    """The same file has the same number in stat, fstat and readdir, also after a rename, and no two files share one."""
    for i in range(100):
        (disk / str(i)).touch()
    with os.scandir(disk) as entries:
        listed = {e.name: e.inode() for e in entries}
    assert len(set(listed.values())) == 100
    os.rename(disk / '0', disk / 'renamed')
    with open(disk / 'renamed') as f:
        assert os.fstat(f.fileno()).st_ino == os.stat(disk / 'renamed').st_ino == listed['0']


# -- locks, fifos, sockets, events -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('lock', [lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
                                  lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)], ids=['fcntl', 'flock'])
def test_locks_exclude_other_processes(lock: Callable[[int], None], disk: Path) -> None:
    """A lock is held against another process until it is released by close, also by the death of its holder."""
    with gates(1) as (locked,), open(disk / 'f', 'w') as mine:
        def hold() -> None:
            fd = os.open('f', os.O_RDWR)
            lock(fd)
            locked.open()
            signal.pause()

        holder = Child(hold, disk)
        locked.wait()
        with pytest.raises(BlockingIOError):
            lock(mine.fileno())
        holder.kill()
        lock(mine.fileno())


def test_byte_range_locks(disk: Path) -> None:
    """Two processes may lock two ranges of one file."""
    (disk / 'f').write_bytes(b'x' * 100)

    def lock(start: int) -> bool:
        with open('f', 'r+b') as f:
            try:
                fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, start)
            except BlockingIOError:
                return False
        return True

    with open(disk / 'f', 'r+b') as f:
        fcntl.lockf(f, fcntl.LOCK_EX, 10, 20)
        assert in_child(lambda: (lock(0), lock(25), lock(30)), disk) == (True, False, True)


def test_fifo_connects_two_processes(disk: Path) -> None:
    """A named pipe made on the mount carries bytes."""
    os.mkfifo(disk / 'p')
    child = Child(lambda: Path('p').write_bytes(b'through the pipe'), disk)
    assert (disk / 'p').read_bytes() == b'through the pipe'
    child.result()


def test_unix_socket_can_be_bound_and_reached(disk: Path) -> None:
    """A Unix socket bound on the mount accepts connections: language servers and agents put theirs into the work directory."""
    with gates(1) as (listening,):
        def serve() -> bytes:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind('s')
                server.listen()
                listening.open()
                connection, _ = server.accept()
                with connection:
                    return connection.recv(100)

        child = Child(serve, disk)
        listening.wait()

        def connect() -> None:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect('s')
                client.send(b'hello')

        in_child(connect, disk)
        assert child.result() == b'hello'
    assert stat.S_ISSOCK(os.stat(disk / 's').st_mode)


def test_device_nodes_belong_to_root(disk: Path) -> None:
    """As root a device node can be made and keeps its number."""
    if os.geteuid() != 0:
        pytest.skip('needs root')
    os.mknod(disk / 'null', stat.S_IFCHR | 0o666, os.makedev(1, 3))
    st = os.stat(disk / 'null')
    assert stat.S_ISCHR(st.st_mode) and st.st_rdev == os.makedev(1, 3)


def test_inotify_reports_local_changes(disk: Path) -> None:
    """Watchers of the directory (editors, dev servers) hear of local changes."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    assert libc.inotify_add_watch(fd, os.fsencode(disk), 0x00000100 | 0x00000008 | 0x00000200) >= 0   # IN_CREATE, CLOSE_WRITE, DELETE
    (disk / 'watched').write_text('x')
    (disk / 'watched').unlink()
    assert os.read(fd, 65536).count(b'watched\0') == 3
    os.close(fd)


def test_unnamed_files_work_or_are_refused_as_programs_expect(disk: Path) -> None:
    """O_TMPFILE either works or is EOPNOTSUPP, after which programs use a name."""
    try:
        fd = os.open(disk, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as e:
        assert e.errno == errno.EOPNOTSUPP
    else:
        os.write(fd, b'x')
        os.close(fd)
    assert os.listdir(disk) == []
