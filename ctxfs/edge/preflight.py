"""What is checked before a mount is tried, so that bad input ends in one line that says what to do.

Owns the checks of this host (FUSE, the mount point, mounts that are there already) and the way to a checked store and its context. It
must not start or mount anything; the one thing that it changes is a mount point whose daemon is dead, which it frees.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from ctxfs.config import FuseOptions, file_store_url, store_identity
from ctxfs.edge.mount_table import MountEntry, mount_at, probe
from ctxfs.edge.runtime_dir import Mount, find_mounts, wait_for_end
from ctxfs.errors import CtxfsError, Denied, Exists, NotADirectory, NotEmpty, NotFound, NotPermitted, RemoteUnavailable, UsageError
from ctxfs.records import RESERVED_DIR
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.registry import ContextRecord, Registry, context_prefix
from ctxfs.storage.remembered import Remembered
from ctxfs.sync.process_guard import helper_environment

_T = TypeVar('_T')

FUSE_DEVICE = '/dev/fuse'
FUSE_CONF = '/etc/fuse.conf'
#: what any access to a FUSE mount without a daemon answers
DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
#: a store that is restarted, or too busy for a moment, is asked again after so many seconds each, but not when that took so long
PATIENT_DELAYS = (0.25, 0.5, 1.0)
PATIENT_SECONDS = 8.0
#: a killed process with much memory takes a while to go
KILLED_SECONDS = 10.0


# --- this host ---------------------------------------------------------------------------------------------------------------------

def check_fuse(device: str = FUSE_DEVICE) -> None:
    """Raises NotFound or Denied when this host cannot do FUSE for this user."""
    if not os.path.exists(device):
        raise NotFound(f'no {device}: load the module (modprobe fuse), or give the container the device (docker run --device {device} '
                       '--cap-add SYS_ADMIN)')
    helper = shutil.which('fusermount3')
    if helper is None:
        raise NotFound('fusermount3 is missing: apt-get install fuse3')
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        if e.errno == errno.EACCES:     # fusermount3 could open it, but libfuse does not ask that to where it may not itself (mount.c there)
            raise Denied(f'no right to open {device}: chmod a+rw {device} gives it to all users, as udev does') from e
        # exists, but no driver behind it (ENODEV, ENXIO) or a container that forbids it (EPERM)
        raise Denied(f'cannot open {device} ({e.strerror}): load the module (modprobe fuse), or let the container use the device') from e
    if os.geteuid() != 0 and not _may_mount_for_users(helper):
        raise Denied(f'{helper} is not setuid root, so only root can mount: chmod u+s {helper}')


def _may_mount_for_users(helper: str) -> bool:
    found = os.stat(helper)
    if found.st_mode & stat.S_ISUID and found.st_uid == 0:
        return True
    try:
        return bool(os.getxattr(helper, 'security.capability'))
    except OSError:
        return False


def check_allow_other(options: FuseOptions, conf: str = FUSE_CONF) -> None:
    """Raises NotPermitted where fusermount3 would refuse allow_other to this user (mount.fuse3(8))."""
    if not options.allow_other or os.geteuid() == 0:
        return
    try:
        words = {line.split('#')[0].strip() for line in Path(conf).read_text('utf-8', 'replace').splitlines()}
    except OSError:
        words = set()
    if 'user_allow_other' not in words:
        raise NotPermitted(f'-o allow_other needs the line user_allow_other in {conf} (or root)')


# --- the mount point ---------------------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def made_directories(path: str) -> Iterator[None]:
    """Make what is missing of the path; when the block fails, what was made goes again. Raises Denied."""
    # a mount point whose daemon is dead looks as if it were not there
    missing = [] if mount_at(path) is not None else [place for place in (Path(path), *Path(path).parents) if not os.path.lexists(place)]
    try:
        for directory in reversed(missing):
            try:
                directory.mkdir()
            except OSError as e:
                raise Denied(f'cannot make {directory}: {e.strerror}') from e
        yield
    except BaseException:
        for directory in missing:
            with contextlib.suppress(OSError):
                directory.rmdir()
        raise


def check_mountpoint(path: str, options: FuseOptions, runtime_root: Path) -> None:
    """`path` as mount_table.real_mountpoint made it. The table of mounts is read before the directory is touched: it may hang.
    Raises UsageError, Exists, NotFound, NotADirectory, NotPermitted or NotEmpty. A dead ctxfs mount there is freed first."""
    if path == '/':
        raise UsageError('/ cannot be a mount point')
    entry = mount_at(path)
    if entry is not None:
        check_not_mounted(path, entry, runtime_root, nonempty=options.nonempty)
    check_directory(path, nonempty=options.nonempty)


def check_not_mounted(path: str, entry: MountEntry, runtime_root: Path, *, nonempty: bool) -> None:
    """Raises Exists when something is mounted at `path`, except a ctxfs without a daemon, which is taken away."""
    if not entry.is_ctxfs:
        if nonempty:    # hiding a container's volume below a context is a legitimate wish
            return
        raise Exists(f'{path}: a file system ({entry.fstype}) is mounted there already; unmount it, or hide it with -o nonempty')
    owner = next((m for m in reversed(find_mounts(runtime_root)) if m.record.mountpoint == path and m.is_alive()), None)
    if owner is not None and not is_ending(owner):
        raise Exists(f'{path}: context {owner.record.context_name} is mounted there already (pid {owner.record.pid}); '
                     f'unmount it with fusermount3 -u {path}')
    failure = probe(path, device=entry.device)
    if failure not in DEAD:
        raise Exists(f'{path}: another user\'s ctxfs, or yours with another XDG_RUNTIME_DIR, is mounted there already')
    clear_dead_mount(path)


def is_ending(mount: Mount) -> bool:
    """Whether its daemon was killed but is not quite gone: the kernel closes /dev/fuse before the process. Waits until it is."""
    return probe(mount.record.mountpoint) in DEAD and wait_for_end(mount, KILLED_SECONDS)


def clear_dead_mount(path: str) -> None:
    """Detach a ctxfs whose daemon is gone (every access gives ENOTCONN). Raises NotPermitted where we may not."""
    done = subprocess.run(['fusermount3', '-uz', '--', path], capture_output=True, text=True, check=False, env=helper_environment())
    left = mount_at(path)
    if done.returncode and left is not None and left.is_ctxfs:
        raise NotPermitted(f'{path}: a dead ctxfs is mounted there and cannot be removed: {" ".join(done.stderr.split())}')


def check_directory(path: str, *, nonempty: bool) -> None:
    try:
        found = os.stat(path)
        is_empty = not stat.S_ISDIR(found.st_mode) or _is_empty(path)
    except FileNotFoundError:
        raise NotFound(f'{path}: no such directory; make it with mkdir -p {path}') from None
    except OSError as e:
        raise NotPermitted(f'{path}: {e.strerror}') from e
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectory(f'{path} is not a directory')
    if os.geteuid() != 0 and not _user_may_mount(path, found):
        raise NotPermitted(f'{path}: you may only mount on a directory that you may write to (and own, where it is sticky)')
    if not is_empty and not nonempty:
        raise NotEmpty(f'{path} is not empty; choose an empty directory, or hide what is in it with -o nonempty')


def _is_empty(path: str) -> bool:
    with os.scandir(path) as entries:
        return next(entries, None) is None


def _user_may_mount(path: str, found: os.stat_result) -> bool:
    """The rule of fusermount3: writable, and of this user where the directory is sticky."""
    return os.access(path, os.W_OK) and not (found.st_mode & stat.S_ISVTX and found.st_uid != os.getuid())


@contextlib.contextmanager
def exclusive(path: str) -> Iterator[None]:
    """Hold the directory below the coming mount, so that of two `ctxfs mount` at once the second gets a clear line. Raises Exists.
    The lock is advisory and on the directory itself: nothing is left behind."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:     # writable but not readable: legal for a mount point, only not lockable
        yield
        return
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Exists(f'{path}: another ctxfs mount is on its way there') from None
    finally:
        os.close(directory)


# --- the context -------------------------------------------------------------------------------------------------------------------

def running_mount(runtime_root: Path, context_id: str, state_dir: Path) -> Mount | None:
    """The daemon, mounted or still uploading, that has this context's state."""
    return next((m for m in find_mounts(runtime_root)
                 if m.record.context_id == context_id and m.record.state_dir == str(state_dir) and m.is_alive()), None)


def free_dead_mount_of(runtime_root: Path, state_dir: Path) -> None:
    """Detach what a killed daemon of this state directory left elsewhere."""
    for mount in find_mounts(runtime_root):
        entry = mount_at(mount.record.mountpoint)
        if mount.record.state_dir == str(state_dir) and not mount.is_alive() and entry is not None and entry.is_ctxfs \
                and probe(entry.mountpoint, device=entry.device) in DEAD:
            clear_dead_mount(entry.mountpoint)


def check_not_running(mount: Mount | None) -> None:
    """Raises Exists that names pid and mount point."""
    if mount is not None and mount.is_attached() and not is_ending(mount):
        r = mount.record
        raise Exists(f'context {r.context_name} is mounted here already, at {r.mountpoint} (pid {r.pid}); use that, or another --state-dir')



def open_checked_store(url: str, *, create: bool, context: str | None = None, state_root: Path | None = None) -> ObjectStore:
    """The store, answering. `create` makes the directory of a file:// store. Credentials that reach only `context`'s prefix are enough.
    `state_root`: where it is remembered what the store can do. Raises RemoteUnavailable, Denied, NotFound, UsageError, each with one line."""
    from ctxfs.storage.stores import open_store  # boto3 and its like: only here, so that other commands start fast
    store = open_store(url, create=create, memory=Remembered(state_root, url, RESERVED_DIR) if state_root is not None else None)
    try:
        check_store(store, context)
    except BaseException:
        store.close()
        raise
    return store


def patiently(ask: Callable[[], _T]) -> _T:
    """What `ask` returns, asked again where the store only just now does not answer. Raises its last error after a few seconds."""
    began = time.monotonic()
    for delay in PATIENT_DELAYS:
        try:
            return ask()
        except RemoteUnavailable:
            if time.monotonic() - began > PATIENT_SECONDS:
                raise
        time.sleep(delay)
    return ask()


def check_store(store: ObjectStore, context: str | None) -> None:
    """As open_checked_store, of one that is open."""
    try:
        patiently(store.check)
    except Denied:
        if context is None:
            raise
        try:
            patiently(lambda: store.list(context_prefix(context), limit=1))
        except CtxfsError:
            pass
        else:
            return
        raise


def find_context(store: ObjectStore, reference: str, *, create: bool,
                 created: Callable[[ContextRecord], None] = lambda record: None) -> ContextRecord:
    """The context to mount; `created` is told of one that is new. Raises NotFound with the nearest name and how to create it."""
    registry = Registry(store)
    try:
        return patiently(lambda: registry.find(reference))
    except NotFound as e:
        if create:
            record = patiently(lambda: registry.create(reference))
            created(record)
            return record
        raise NotFound(f'{e}; ctxfs mount --create makes a new one') from e


def is_default_store(url: str, data_root: Path) -> bool:
    """Whether this is the embedded store, which is made on first use."""
    return store_identity(url) == store_identity(file_store_url(data_root / 'store'))
