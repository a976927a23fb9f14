"""Checks before a mount that need no mount: this host's FUSE, the directory, the store, the table of mounts."""
from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from ctxfs.config import FuseOptions
from ctxfs.edge import busy, mount_table, preflight
from ctxfs.edge.overheard import overheard
from ctxfs.errors import Denied, Exists, NotADirectory, NotEmpty, NotFound, NotPermitted, UsageError
from ctxfs.storage.registry import Registry


def test_no_fuse_device(tmp):
    """The line says how to get one."""
    with pytest.raises(NotFound, match='modprobe fuse'):
        preflight.check_fuse(str(tmp / 'fuse'))


def test_no_fusermount3(tmp, monkeypatch):
    """The line names the package."""
    monkeypatch.setenv('PATH', str(tmp))
    with pytest.raises(NotFound, match='apt-get install fuse3'):
        preflight.check_fuse('/dev/null')


@pytest.mark.needs_root
def test_a_device_without_a_driver(tmp, monkeypatch):
    """As in a container that has the node but not the right."""
    os.mknod(tmp / 'fuse', 0o666 | 0o020000, os.makedev(10, 254))
    (tmp / 'fusermount3').write_text('#!/bin/sh\n')
    (tmp / 'fusermount3').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp))
    with pytest.raises(Denied, match='cannot open'):
        preflight.check_fuse(str(tmp / 'fuse'))


def test_a_device_of_roots_alone(tmp, monkeypatch):
    """As where no udev runs: libfuse opens it as the user, whatever fusermount3 may do."""
    (tmp / 'fuse').write_text('')
    opened = os.open

    def refuse(path, *more, **words):
        if path == str(tmp / 'fuse'):
            raise PermissionError(errno.EACCES, 'Permission denied')
        return opened(path, *more, **words)

    monkeypatch.setattr(os, 'open', refuse)
    with pytest.raises(Denied, match=r'chmod a\+rw .*fuse gives it to all users'):
        preflight.check_fuse(str(tmp / 'fuse'))


def test_a_helper_that_is_not_setuid(tmp, monkeypatch):
    """Only root can do without; a user is told what to do, before anything is tried."""
    (tmp / 'fusermount3').write_text('#!/bin/sh\n')
    (tmp / 'fusermount3').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp))
    monkeypatch.setattr(os, 'geteuid', lambda: 1000)
    with pytest.raises(Denied, match=rf'only root can mount: chmod u\+s {tmp}/fusermount3'):
        preflight.check_fuse('/dev/null')
    monkeypatch.setattr(os, 'geteuid', lambda: 0)
    preflight.check_fuse('/dev/null')


def test_allow_other_needs_permission_in_fuse_conf(tmp, monkeypatch):
    """As fusermount3 will see it: a commented line is none."""
    monkeypatch.setattr(os, 'geteuid', lambda: 1000)
    wants = FuseOptions(allow_other=True)
    (tmp / 'conf').write_text('#user_allow_other\nmount_max = 10\n')
    for conf in (tmp / 'conf', tmp / 'missing'):
        with pytest.raises(NotPermitted, match='user_allow_other'):
            preflight.check_allow_other(wants, str(conf))
    preflight.check_allow_other(FuseOptions(), str(tmp / 'conf'))
    (tmp / 'conf').write_text('user_allow_other  # all\n')
    preflight.check_allow_other(wants, str(tmp / 'conf'))


def test_bad_mount_points(tmp):
    """Each gets its own error with what to do."""
    (tmp / 'file').write_text('')
    (tmp / 'full').mkdir()
    (tmp / 'full/x').write_text('')
    none = FuseOptions()
    for name, error, said in (('missing', NotFound, 'mkdir -p'), ('file', NotADirectory, 'not a directory'), ('full', NotEmpty, 'nonempty'),
                              ('file/x', NotPermitted, 'Not a directory')):
        with pytest.raises(error, match=said):
            preflight.check_mountpoint(str(tmp / name), none, tmp)
    preflight.check_mountpoint(str(tmp / 'full'), FuseOptions(nonempty=True), tmp)
    with pytest.raises(UsageError):
        preflight.check_mountpoint('/', none, tmp)


def test_a_directory_that_the_user_may_not_write_to(tmp, monkeypatch):
    """fusermount3 would refuse it with less words."""
    monkeypatch.setattr(os, 'geteuid', lambda: 1000)
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    with pytest.raises(NotPermitted, match='write to'):
        preflight.check_mountpoint(str(tmp), FuseOptions(nonempty=True), tmp)


def test_another_file_system_is_not_hidden_by_accident(tmp):
    """It is named; -o nonempty allows it."""
    with pytest.raises(Exists, match=r'a file system \(proc\) is mounted'):
        preflight.check_mountpoint('/proc', FuseOptions(), tmp)
    preflight.check_mountpoint('/proc', FuseOptions(nonempty=True), tmp)


def test_two_mounts_at_once_on_one_directory(tmp):
    """The second is told, and nothing is left behind by either."""
    with preflight.exclusive(str(tmp)), pytest.raises(Exists, match='on its way'), preflight.exclusive(str(tmp)):
        pass
    with preflight.exclusive(str(tmp)):
        assert list(tmp.iterdir()) == []


def test_stores_that_do_not_answer(tmp):
    """A missing directory of a file store is made only when something is created."""
    url = f'file://{tmp}/store'
    with pytest.raises(NotFound):
        preflight.open_checked_store(url, create=False).close()
    assert not (tmp / 'store').exists()
    preflight.open_checked_store(url, create=True).close()
    preflight.open_checked_store(url, create=False).close()


def test_credentials_that_reach_one_context_only(tmp, monkeypatch):
    """A bucket that may not be listed is no obstacle when the context's prefix may."""
    from ctxfs.storage import file_store

    def denied(self):
        raise Denied('the bucket may not be listed')
    real = file_store.FileStore.list
    monkeypatch.setattr(file_store.FileStore, 'check', denied)
    url = f'file://{tmp}/store'
    with pytest.raises(Denied, match='may not be listed'):
        preflight.open_checked_store(url, create=True)
    preflight.open_checked_store(url, create=True, context='mine').close()

    def prefix_only(self, prefix, **kwargs):
        if not prefix.startswith('contexts/mine/'):
            raise Denied('not yours')
        return real(self, prefix, **kwargs)
    monkeypatch.setattr(file_store.FileStore, 'list', prefix_only)
    with pytest.raises(Denied, match='the bucket may not be listed'):
        preflight.open_checked_store(url, create=True, context='other')


def test_an_unknown_context_is_created_only_when_told(tmp):
    """Else the line says how."""
    store = preflight.open_checked_store(f'file://{tmp}/store', create=True)
    with pytest.raises(NotFound, match='--create'):
        preflight.find_context(store, 'new', create=False)
    made = preflight.find_context(store, 'new', create=True)
    assert Registry(store).find('new') == made
    store.close()


def test_the_table_of_mounts(tmp):
    """Optional fields, escapes and bytes that are no UTF-8 are read as mountinfo writes them."""
    (tmp / 'table').write_bytes(b'36 35 98:0 /mnt1 /mnt2\\040x rw,noatime master:1 shared:2 - ext3 /dev/root rw\n'
                                b'40 35 0:52 / /m\xff rw - fuse.ctxfs ctxfs rw,user_id=0\n')
    first, second = mount_table.read_mounts(str(tmp / 'table'))
    assert (first.mountpoint, first.fstype, first.is_ctxfs, first.device) == ('/mnt2 x', 'ext3', False, os.makedev(98, 0))
    assert (os.fsencode(second.mountpoint), second.is_ctxfs, second.mount_id) == (b'/m\xff', True, 40)
    assert mount_table.mount_at('/proc').fstype == 'proc' and mount_table.mount_at(str(tmp)) is None


def test_probe(tmp):
    """The errno of a stat that cannot hang the asker; the device too."""
    assert mount_table.probe(str(tmp)) == 0
    assert mount_table.probe(str(tmp), device=os.stat(tmp).st_dev) == 0
    assert mount_table.probe(str(tmp), device=1) == errno.EXDEV
    assert mount_table.probe(str(tmp / 'x')) == errno.ENOENT
    (tmp / 'file').write_text('')
    assert mount_table.probe(str(tmp / 'file/x')) == errno.ENOTDIR


def test_real_mountpoint_resolves_the_parents(tmp):
    """A path through a symlink is the place where the kernel will show the mount."""
    (tmp / 'real/m').mkdir(parents=True)
    (tmp / 'link').symlink_to(tmp / 'real')
    (tmp / 'to-m').symlink_to(tmp / 'real/m')
    for name in ('link/m', 'real/m/', 'to-m', 'real/../real/m'):
        assert mount_table.real_mountpoint(str(tmp / name)) == os.path.realpath(tmp / 'real/m')


MAPS = ('import ctypes, os, sys; fd = os.open(sys.argv[1] + "/f", 0); libc = ctypes.CDLL(None); libc.mmap.restype = ctypes.c_void_p; '
        'assert libc.mmap(None, ctypes.c_size_t(1), 1, 2, fd, ctypes.c_size_t(0)) != 2**64 - 1; os.close(fd)')


@pytest.mark.parametrize('how, what', [('import os, sys; os.chdir(sys.argv[1])', 'working directory'),
                                       ('import sys; f = open(sys.argv[1] + "/f")', 'open file'), (MAPS, 'mapped file')])
def test_who_keeps_a_directory_busy(tmp, how, what):
    """Pid, program and what it holds; nobody when nobody does."""
    (tmp / 'f').write_text('x')
    assert busy.holders_of(str(tmp)) == [] and busy.describe(str(tmp)) == ''
    with subprocess.Popen([sys.executable, '-c', how + '; print(1, flush=True); input()', str(tmp)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.readline()
        holder, = busy.holders_of(str(tmp))
        assert holder.pid == process.pid and what in holder.what
        assert f'pid {process.pid}' in busy.describe(str(tmp))


def test_what_a_library_says_is_overheard(capfd):
    """The last line, also of a program that it runs; all of it comes to stderr as well, and so does what comes later."""
    with overheard() as last_line:
        assert last_line() == ''
        os.write(2, b'first\n')
        subprocess.run(['sh', '-c', 'echo "fuse: no such device" >&2'], check=True)
        assert last_line() == 'fuse: no such device'
    os.write(2, b'later\n')
    assert capfd.readouterr().err == 'first\nfuse: no such device\nlater\n'
