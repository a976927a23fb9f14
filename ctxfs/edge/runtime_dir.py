"""The runtime directory of each mount: how a command line finds daemons, and how a daemon leaves its result behind.

Owns the files below and their order; nothing in them is needed to keep data. It must not know the control protocol or the store.
mount.json and result.json exist twice: here, and in the state directory for the time after a reboot, or after a logout that emptied
/run/user/UID under a running daemon.

    <runtime root>/<12 hex of mount point, context, state directory>/
        mount.json      who mounts what: written by the daemon before it mounts, stays
        control.sock    while the daemon answers (ctxfs.edge.control)
        result.json     how the mount ended; written (temporary file, rename) before control.sock and the process go away
    <state directory>/last-mount/{mount.json,result.json}

INVARIANT: a mount.json whose process is gone has a result.json beside it, unless the daemon was killed. So whoever reads first the
process, then the result, needs no lock: gone and no result means died.

    daemon:  lock the state directory → claim() → mount → confirm() → serve … unmounted → flush → finish() → close the socket → exit
                                         claim() → cannot mount → discard()
"""
from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import select
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from ctxfs import __version__
from ctxfs.config import MountOptions, private_dir, read_state_file
from ctxfs.edge.mount_table import mount_at
from ctxfs.edge.state_lock import locked
from ctxfs.errors import CtxfsError
from ctxfs.records import UNREADABLE

#: a superseded record is kept so long for somebody who still waits for its result
KEEP_RESULT_SECONDS = 3600
#: records of mounts that ended, of all state directories together
MOST_ENDED = 100
#: the copy of mount.json and result.json inside a state directory
LAST_MOUNT = 'last-mount'

#: pid_t's; Linux gives out less
MAX_PID = (1 << 31) - 1

_T = TypeVar('_T')


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    files: int = 0
    bytes: int = 0


class MountRecord(msgspec.Struct, frozen=True, kw_only=True, rename='camel'):
    """mount.json. pid, pid_start (clock ticks, /proc/PID/stat) and boot_id name one process for good: pids are used again."""
    context_id: str
    context_name: str
    mountpoint: str
    store: str
    state_dir: str
    log_file: str
    pid: Annotated[int, msgspec.Meta(ge=1, le=MAX_PID)]
    pid_start: int
    boot_id: str
    started_at: float
    version: str = __version__
    #: the prefix in the context that the mount's root stands for
    below: str = ''
    #: where the socket is: who has another $XDG_RUNTIME_DIR than the mount finds it by the record in the state directory
    runtime_dir: str = ''

    @classmethod
    def of_this_process(cls, options: MountOptions) -> MountRecord:
        pid = os.getpid()
        return cls(context_id=options.context_id, context_name=options.context_name, mountpoint=options.mountpoint,
                   store=options.store_url, state_dir=options.state_dir, log_file=options.log_file, pid=pid,
                   pid_start=process_start(pid) or 0, boot_id=boot_id(), started_at=time.time(), below=options.below,
                   runtime_dir=options.runtime_dir)


class MountResult(msgspec.Struct, frozen=True, kw_only=True, rename='camel'):
    """result.json. ok: everything is in the bucket. Otherwise `message` is the cause in one line, and `pending` what the journal keeps."""
    ok: bool
    context_id: str
    context_name: str
    mountpoint: str
    state_dir: str
    pending: Pending
    message: str
    finished_at: float


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """One runtime directory as it was read."""
    path: Path
    record: MountRecord

    @property
    def socket(self) -> Path:
        return Path(self.record.runtime_dir or self.path) / 'control.sock'

    def is_alive(self) -> bool:
        """Whether the daemon runs (a zombie does not)."""
        return self.record.boot_id == boot_id() and process_start(self.record.pid) == self.record.pid_start

    def is_attached(self) -> bool:
        """Whether a ctxfs is mounted at its mount point (this one, unless the daemon says that it is flushing)."""
        entry = mount_at(self.record.mountpoint)
        return entry is not None and entry.is_ctxfs

    def result(self) -> MountResult | None:
        return _load(self.path / 'result.json', MountResult)


# --- the daemon's side -------------------------------------------------------------------------------------------------------------

def runtime_dir_of(root: Path, mountpoint: str, context_id: str, state_dir: Path) -> Path:
    text = '\0'.join((mountpoint, context_id, str(state_dir)))
    return root / hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:12]


def claim(options: MountOptions) -> Mount:
    """Make the runtime directory this process's: the caller holds the state directory's lock, so what lies there is of a daemon that is
    gone. Raises Denied when the directory cannot be ours."""
    path = Path(options.runtime_dir)
    private_dir(path.parent)
    private_dir(path)
    _prune(path.parent, options.state_dir)
    for name in ('result.json', 'control.sock'):
        (path / name).unlink(missing_ok=True)
    record = MountRecord.of_this_process(options)
    _store(path / 'mount.json', record)
    return Mount(path=path, record=record)


def confirm(mount: Mount) -> None:
    """Note in the state directory that this mount began. Call it when mounting succeeded, before the first request is served: from here
    on changes may be journaled, and what the last mount left says nothing any more."""
    last = private_dir(Path(mount.record.state_dir) / LAST_MOUNT)
    (last / 'result.json').unlink(missing_ok=True)
    _store(last / 'mount.json', mount.record, durable=True)


def finish(options: MountOptions, *, ok: bool, pending: Pending, message: str) -> None:
    """Leave the result. Call it when nothing more will be uploaded, and before the control socket closes."""
    result = MountResult(ok=ok, context_id=options.context_id, context_name=options.context_name, mountpoint=options.mountpoint,
                         state_dir=options.state_dir, pending=pending, message=message, finished_at=time.time())
    _store(private_dir(Path(options.state_dir) / LAST_MOUNT) / 'result.json', result, durable=True)
    with contextlib.suppress(FileNotFoundError):    # a logout may have emptied /run/user/UID
        _store(Path(options.runtime_dir) / 'result.json', result)


def discard(path: Path) -> None:
    """Remove the runtime directory of a mount that never was. The state directory keeps saying how the one before ended."""
    shutil.rmtree(path, ignore_errors=True)


def _prune(root: Path, state_dir: str) -> None:
    """Of mounts that ended long ago, drop what newer ones of this state directory have superseded, and of the others the oldest, beyond MOST_ENDED:
    what they say stands in their state directories, too."""
    ended = [mount for mount in find_mounts(root) if not mount.is_alive()]
    for number, mount in enumerate(ended):
        result = mount.result()
        if time.time() - (mount.record.started_at if result is None else result.finished_at) <= KEEP_RESULT_SECONDS:
            continue
        if result is not None and mount.record.state_dir == state_dir:
            discard(mount.path)
        elif number < len(ended) - MOST_ENDED:
            _discard_other(mount)


def _discard_other(mount: Mount) -> None:
    """Unless somebody has its state directory: he may be about to claim this one, or its workers still end."""
    try:
        with contextlib.ExitStack() as stack:
            if os.path.isdir(mount.record.state_dir):
                stack.enter_context(locked(Path(mount.record.state_dir), seconds=0))
            discard(mount.path)
    except (CtxfsError, OSError):
        return


def _store(file: Path, value: msgspec.Struct, *, durable: bool = False) -> None:
    """Whole or not at all; durable: also after a power cut, never torn."""
    temporary = file.with_name(f'.{file.name}.{secrets.token_hex(4)}')
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), 'wb') as out:
            out.write(msgspec.json.encode(value) + b'\n')
            out.flush()
            if durable:
                os.fsync(out.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


# --- the reader's side -------------------------------------------------------------------------------------------------------------

def find_mounts(root: Path, pattern: str = '*') -> list[Mount]:
    """Every mount that left a record in a directory root/pattern, oldest first. What cannot be read is no record: claim() may be
    writing it now."""
    found = [Mount(path=path, record=record) for path in sorted(root.glob(pattern)) if (record := _load(path / 'mount.json', MountRecord))]
    return sorted(found, key=lambda mount: mount.record.started_at)


def current_mounts(runtime_root: Path, state_root: Path) -> list[Mount]:
    """The newest mount of each state directory that still exists: one runs at a time, so an older record's failure is history. Where a
    record is in both places, the runtime directory's counts: it has the socket."""
    found = sorted([*find_mounts(state_root, f'*/{LAST_MOUNT}'), *find_mounts(runtime_root)], key=lambda mount: mount.record.started_at)
    newest = {mount.record.state_dir: mount for mount in found}
    return [mount for mount in newest.values() if mount.is_alive() or os.path.isdir(mount.record.state_dir)]


def reread(mount: Mount) -> Mount:
    """The same directory as it is now: another mount may have claimed it since."""
    record = _load(mount.path / 'mount.json', MountRecord)
    return mount if record is None else Mount(path=mount.path, record=record)


def _load(file: Path, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(read_state_file(file), type=kind)
    except (OSError, *UNREADABLE):
        return None


# --- processes ---------------------------------------------------------------------------------------------------------------------

def boot_id() -> str:
    with open('/proc/sys/kernel/random/boot_id', encoding='ascii') as file:
        return file.read().strip()


def process_start(pid: int) -> int | None:
    """When the process started, in clock ticks after boot; None when there is none, or only a zombie."""
    try:
        with open(f'/proc/{pid}/stat', 'rb') as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the command's name is in parentheses and may hold anything, so fields count from the last one: state is the third, start the 22nd
    fields = text[text.rindex(b')') + 2:].split()
    return None if fields[0] in (b'Z', b'X') else int(fields[19])


def wait_for_end(mount: Mount, timeout: float) -> bool:
    """Whether the daemon is gone, after at most `timeout` seconds."""
    try:
        watch = os.pidfd_open(mount.record.pid)
    except OSError as e:
        if e.errno == errno.ESRCH:
            return True
        raise
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, watch)
        if not mount.is_alive():    # asked after opening: the pid was another process's, or a zombie
            return True
        return bool(select.select([watch], [], [], timeout)[0])


@contextlib.contextmanager
def short_path(path: str) -> Iterator[str]:
    """A name for the socket `path` that fits sockaddr_un's 108 bytes, however deep its directory: unix(7) has no other way, and
    /proc/self/fd/N leads to any open directory."""
    if len(os.fsencode(path)) < 100:
        yield path
        return
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f'/proc/self/fd/{directory}/{os.path.basename(path)}'
    finally:
        os.close(directory)
