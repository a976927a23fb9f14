"""Directories and small files on the host that are the user's alone.

Owns how they are made (0700 and 0600 whatever the umask is, whole or not at all), checked and read. It must not know what is kept
in them, nor where: see config.py.
"""
from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

from ctxfs.errors import Denied

#: bytes of a small file of ctxfs's own
MAX_STATE_FILE = 1 << 20


def make_private(path: Path) -> None:
    """mkdir -p, each new directory 0700 whatever the umask is (Path.mkdir gives parents the default mode), and durable."""
    if path.is_dir():
        return
    make_private(path.parent)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    path.chmod(0o700)
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def private_dir(path: Path) -> Path:
    """Create `path` (0700, parents too) or check that the existing one is ours alone. Returns it. Raises Denied otherwise: in a
    world-writable place such as /tmp somebody else may have made it first."""
    try:
        make_private(path)
        found = path.lstat()
    except (FileExistsError, NotADirectoryError):
        raise Denied(f'{path} must be a directory, but something else is in the way') from None
    except OSError as e:
        raise Denied(f'cannot create {path}: {e.strerror}') from e
    if not stat.S_ISDIR(found.st_mode):
        raise Denied(f'{path} must be a directory, but something else is in the way')
    if found.st_uid != os.getuid():
        raise Denied(f'{path} belongs to user {found.st_uid}, not to you; choose another place or remove it')
    if found.st_mode & stat.S_ISVTX:
        raise Denied(f'{path} is shared by many users; choose a directory of its own in it')
    if found.st_mode & 0o077:
        path.chmod(0o700)
    return path


def read_state_file(file: Path) -> bytes:
    """A small file that ctxfs itself wrote. Raises OSError; also for what is no such file, which could block or have no end."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    with open(fd, 'rb') as opened:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_STATE_FILE:
            raise OSError(errno.EINVAL, 'it is no small file', str(file))
        return opened.read(MAX_STATE_FILE)


def publish(file: Path, text: str, *, replace: bool) -> None:
    """The file appears whole, or not at all; one that is there stays, or is replaced. Raises Denied."""
    temporary = file.with_name(f'.{file.name}.{os.getpid()}.{secrets.token_hex(4)}')
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), 'w', encoding='ascii') as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())      # else a power cut could leave it empty
        if replace:
            os.replace(temporary, file)
        else:
            os.link(temporary, file)
    except FileExistsError:
        return      # another process was first
    except OSError as e:
        raise Denied(f'cannot write {file}: {e.strerror}') from e
    finally:
        temporary.unlink(missing_ok=True)
