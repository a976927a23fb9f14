"""Every error that ctxfs raises on purpose, and the one table that maps an error to an errno.

Owns the exception tree and each class's `errno`. It must not know who raises or who answers: the FUSE boundary reads `errno`, the
command line prints the message, the sync engine asks `transient`.

    CtxfsError
     ├─ NotFound ENOENT           ├─ NotPermitted EPERM        ├─ NoSpace ENOSPC
     ├─ Exists EEXIST             ├─ ReadOnly EROFS            ├─ TooLarge EFBIG
     ├─ NotEmpty ENOTEMPTY        ├─ StaleHandle EBADF         ├─ TooManyLinks EMLINK
     ├─ IsADirectory EISDIR       ├─ RemoteChanged ESTALE      ├─ InvalidArgument EINVAL
     ├─ NotADirectory ENOTDIR     ├─ Unsupported ENOTSUP       ├─ NoAttribute ENODATA
     ├─ NameTooLong ENAMETOOLONG  ├─ Denied EACCES             ├─ NoSuchDevice ENXIO
     ├─ InUse EBUSY
     ├─ RemoteUnavailable EIO (transient)  ├─ Corrupted EIO (permanent; Damaged: the tree database)
     │   ├─ WrongBytes   ├─ Unanswered   ├─ OutOfTurn   └─ Contradicted
     ├─ CredentialsExpired, ClockSkewed EACCES (each a Denied that is transient)      ├─ DiskFull ENOSPC (a NoSpace that is transient)
     └─ UsageError (a wrong command line or option: exit status 2)
"""
from __future__ import annotations

import errno as _errno


class CtxfsError(Exception):
    """Base of all expected errors. `errno` is what a program on the mount sees; `transient` says whether a retry may help."""
    errno: int = _errno.EIO
    transient: bool = False


class NotFound(CtxfsError):
    errno = _errno.ENOENT


class Exists(CtxfsError):
    errno = _errno.EEXIST


class NotEmpty(CtxfsError):
    errno = _errno.ENOTEMPTY


class IsADirectory(CtxfsError):
    errno = _errno.EISDIR


class NotADirectory(CtxfsError):
    errno = _errno.ENOTDIR


class NameTooLong(CtxfsError):
    errno = _errno.ENAMETOOLONG


class Denied(CtxfsError):
    """The store or the system refused: wrong credentials, no right. Permanent until somebody changes something."""
    errno = _errno.EACCES


class CredentialsExpired(Denied):
    """The credentials had their time. Whoever gives them out mostly gives out new ones."""
    transient = True


class ClockSkewed(Denied):
    """The store refuses requests that are dated so wrongly. Clocks are set right, mostly by themselves."""
    transient = True


class InUse(CtxfsError):
    """Somebody has it mounted, or is doing something with it that does not go together with what was asked."""
    errno = _errno.EBUSY


class NotPermitted(CtxfsError):
    errno = _errno.EPERM


class ReadOnly(CtxfsError):
    errno = _errno.EROFS


class StaleHandle(CtxfsError):
    errno = _errno.EBADF


class RemoteChanged(CtxfsError):
    """A condition failed (HTTP 412/409): the object is not the version that the caller named."""
    errno = _errno.ESTALE


class NoSpace(CtxfsError):
    errno = _errno.ENOSPC


class DiskFull(NoSpace):
    """The disk of the state or of the cache has no space, or this user's quota there is used up. Space may become free."""
    transient = True


class TooLarge(CtxfsError):
    errno = _errno.EFBIG


class TooManyLinks(CtxfsError):
    errno = _errno.EMLINK


class InvalidArgument(CtxfsError):
    errno = _errno.EINVAL


class NoAttribute(CtxfsError):
    errno = _errno.ENODATA


class NoSuchDevice(CtxfsError):
    errno = _errno.ENXIO


class Unsupported(CtxfsError):
    """The store or the file system has no such operation (also: HTTP 501)."""
    errno = _errno.ENOTSUP


class RemoteUnavailable(CtxfsError):
    """The store could not be reached or answered 5xx/429: transient. `retry_after`: seconds in which it does not want to be asked."""
    errno = _errno.EIO
    transient = True
    retry_after: float = 0.0


class WrongBytes(RemoteUnavailable):
    """Bytes came that contradict their checksum, several times: the network, or the store."""


class Unanswered(RemoteUnavailable):
    """A request may have been sent, and no answer says what became of it: it may have been done, or be done yet."""


class OutOfTurn(RemoteUnavailable):
    """The store cannot make this write atomic, and another host has its turn now, or this one's is over. Nothing was written."""


class Contradicted(RemoteUnavailable):
    """The store refused what it was found to be able to do: its capabilities are to be asked anew. Nothing was written."""


class Corrupted(CtxfsError):
    """Bytes or records that contradict their checksum or format: permanent."""
    errno = _errno.EIO


class Damaged(Corrupted):
    """The tree database is damaged: the mount goes on read-only, and `ctxfs doctor --repair` is what helps."""


class UsageError(CtxfsError):
    """The command line or an option is wrong; the message says what to do. Exit status 2."""
    errno = _errno.EINVAL
