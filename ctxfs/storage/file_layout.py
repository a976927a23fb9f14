"""Where an object lives in a directory that is used as a bucket, and what is known of it there: places, etags, sidecars, locks.

Owns everything below `DIR/.bucket/` and the rule which key lies where; `file_store` does the verbs and `file_walk` the listings on top of
it. It must not know conditions, pages or retries.

    DIR/a/b                    the object `a/b`: a plain file, to be read, edited, added or removed by anybody
    DIR/a/                     the marker `a/`: an empty directory, or one that has a sidecar
    DIR/.bucket/odd/<hex>-     an object whose key no directory tree can hold (`a//b`, `../x`, `a` beside `a/b`, `d/` with content …)
    DIR/.bucket/meta/xx/<id>   sidecar (JSON): metadata, tags and content type of the versions it names, and of no other
    DIR/.bucket/lock/xx        flock, by hash of the key; `tree` for adding and removing directories
    DIR/.bucket/tmp/           files being written; each is flocked by its writer, so that a stale one is known and removed

INVARIANT: a key's content is looked up in the tree first and in `odd` after it. A writer that can use the tree does so and then removes the
odd copy, so every reader at every instant finds one whole version.

Symlinks are never followed: paths are opened name by name with O_NOFOLLOW from a descriptor of DIR.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import threading
import time
from collections.abc import Iterator, Sequence

import msgspec

from ctxfs.errors import InvalidArgument, NotFound, RemoteUnavailable
from ctxfs.storage.keys import KEY_MAX, NAME_MAX

PRIVATE = b'.bucket'
#: hex digits in one directory level of an odd key's place (120 bytes of the key: a name of 240, below NAME_MAX)
ODD_CHUNK = 240
LOCK_SECONDS = 30.0
#: a temp file younger than this is left alone even when nobody holds its lock: its writer may be between open() and flock()
STALE_SECONDS = 600
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: what the file system says when a path cannot exist in the tree as it is now
_NOT_IN_TREE = frozenset({errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTEMPTY, errno.EINVAL,
                          errno.EILSEQ, errno.EXDEV})


class NotInTree(Exception):
    """The directory tree cannot hold this key (now): its place is the odd area."""


class Version(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the sidecar keeps of one version of an object."""
    metadata: dict[str, str] = {}
    content_type: str | None = None
    mtime_ns: int = 0
    tags: dict[str, str] = {}


class Sidecar(msgspec.Struct, frozen=True):
    """The versions by etag: the one being put and the one before it, because the sidecar is written before the object is renamed."""
    key: str
    versions: dict[str, Version]


def encode_key(key: str) -> bytes:
    """The key's bytes; InvalidArgument for what no store can hold."""
    try:
        raw = key.encode('utf-8')
    except UnicodeEncodeError as exc:
        raise InvalidArgument(f'the key {key!r} is no valid Unicode text') from exc
    if not 0 < len(raw) <= KEY_MAX:
        raise InvalidArgument(f'the key {key[:40]!r}… has {len(raw)} bytes, and 1 to {KEY_MAX} are possible')
    return raw


def tree_names(raw: bytes) -> list[bytes]:
    """The names from DIR to the object (a marker's without its slash). Raises NotInTree when no tree could ever hold the key."""
    names = raw.removesuffix(b'/').split(b'/')
    if names[0] == PRIVATE or b'\0' in raw or any(name in (b'', b'.', b'..') or len(name) > NAME_MAX for name in names):
        raise NotInTree
    return names


def odd_names(raw: bytes) -> list[bytes]:
    """The names below `.bucket/odd`: hex, because it keeps the byte order and holds anything; a leaf ends with a dash, which sorts
    before any digit."""
    digits = raw.hex().encode()
    whole = len(digits) // ODD_CHUNK * ODD_CHUNK
    return [digits[at:at + ODD_CHUNK] for at in range(0, whole, ODD_CHUNK)] + [digits[whole:] + b'-']


def file_etag(st: os.stat_result) -> str:
    """Cheap and new for each put: a put brings a new inode and the present time in ns; an edit in place moves mtime or size."""
    return f'"{st.st_mtime_ns:x}-{st.st_size:x}-{st.st_ino:x}"'


def new_marker_etag(st: os.stat_result) -> str:
    return f'"d-{st.st_ino:x}-{os.urandom(8).hex()}"'


def is_marker_etag(etag: str, st: os.stat_result) -> bool:
    """Whether the sidecar entry was written for this very directory, and not for one before it at the same path."""
    return etag.startswith(f'"d-{st.st_ino:x}-')


def found_marker_etag(st: os.stat_result) -> str:
    """Of an empty directory that nobody put: it is an object for as long as it is empty."""
    return f'"d-{st.st_ino:x}"'


def is_found_marker(etag: str) -> bool:
    return etag.startswith('"d-') and etag.count('-') == 1


def is_file(st: os.stat_result) -> bool:
    return stat.S_ISREG(st.st_mode)


def is_empty(directory: int) -> bool:
    with os.scandir(directory) as entries:
        return next(entries, None) is None


@contextlib.contextmanager
def in_tree() -> Iterator[None]:
    """Turns the errnos that mean "no such place in a tree" into NotInTree."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _NOT_IN_TREE:
            raise NotInTree from exc
        raise


@contextlib.contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def open_dir(root: int, names: Sequence[bytes], *, create: bool = False, durable: bool = True) -> int:
    """A descriptor of the directory at `names` below `root`; the caller closes it. OSError as the system says; no symlink is followed."""
    fd = os.dup(root)
    try:
        for name in names:
            child = _open_child(fd, name, create, durable)
            os.close(fd)
            fd = child
        return fd
    except BaseException:
        os.close(fd)
        raise


def _open_child(fd: int, name: bytes, create: bool, durable: bool) -> int:
    while True:
        try:
            return os.open(name, _DIR_FLAGS, dir_fd=fd)
        except FileNotFoundError:
            if not create:
                raise
        try:
            os.mkdir(name, 0o755, dir_fd=fd)
        except FileExistsError:
            continue
        if durable:
            os.fsync(fd)


class Layout:
    """The directory and its private area. Thread-safe: it holds one descriptor of DIR and no other state."""

    def __init__(self, directory: str, *, durable: bool) -> None:
        self.directory = directory
        self.durable = durable
        self._root = -1
        self._opening = threading.Lock()

    @property
    def root(self) -> int:
        """The descriptor of DIR. Raises NotFound when DIR does not exist (any more)."""
        with self._opening:
            if self._root < 0:
                try:
                    self._root = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                except (FileNotFoundError, NotADirectoryError) as exc:
                    raise NotFound(f'the store directory {self.directory} does not exist; --create makes it') from exc
            return self._root

    def create(self) -> None:
        """Make DIR, private to the user, where it is missing."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        self.clean_stale()

    def close(self) -> None:
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def private_dir(self, *names: bytes, create: bool = False) -> int:
        return open_dir(self.root, [PRIVATE, *names], create=create, durable=self.durable)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Mutual exclusion of threads and processes, in LOCK_SECONDS or RemoteUnavailable (its holder is stopped, not dead: the system
        frees the lock of a dead one). Each call opens the file anew, so flock also separates threads."""
        with closing_fd(self.private_dir(b'lock', create=True)) as directory:
            fd = os.open(name.encode(), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
        with closing_fd(fd):
            self._wait_for(fd, name)
            yield

    def _wait_for(self, fd: int, name: str) -> None:
        deadline, pause = time.monotonic() + LOCK_SECONDS, 0.0002
        while True:
            try:
                return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                if time.monotonic() > deadline:
                    raise RemoteUnavailable(f'{self.directory}/.bucket/lock/{name} is held by another process since '
                                            f'{LOCK_SECONDS:.0f} s') from exc
            time.sleep(pause)
            pause = min(pause * 1.5, 0.02)

    def key_lock(self, raw: bytes) -> contextlib.AbstractContextManager[None]:
        return self.lock(hashlib.sha256(raw).hexdigest()[:2])

    def tree_lock(self) -> contextlib.AbstractContextManager[None]:
        """Held while directories appear or vanish with their first or last object, so that a listing never takes one of them for a
        marker. Always taken after a key's lock, never before it, and never twice."""
        return self.lock('tree')

    def marker(self, raw: bytes, directory: int) -> tuple[str, Version] | None:
        """Etag and version of the marker that the open directory is; None where it only exists because of what lies in it.

        A directory is a marker when `dir/` was put (its sidecar names the inode), or when it is empty: somebody made it by hand. Not to
        be called with the tree lock held.
        """
        st = os.fstat(directory)
        sidecar = self.read_sidecar(raw)
        for etag, version in (sidecar.versions if sidecar else {}).items():
            if is_marker_etag(etag, st):
                return etag, version
        if not is_empty(directory) or raw == PRIVATE + b'/':
            return None
        with contextlib.ExitStack() as stack:
            # no lock directory, or no right to it: no writer is at work here whose half-made directories could be seen
            with contextlib.suppress(FileNotFoundError, PermissionError):
                os.close(self.private_dir(b'lock'))
                stack.enter_context(self.tree_lock())
            st = os.fstat(directory)
            if st.st_nlink and is_empty(directory) and not self.read_sidecar(raw):
                return found_marker_etag(st), Version(mtime_ns=st.st_mtime_ns)
        return None

    def new_temp(self) -> tuple[int, bytes]:
        """A flocked empty file in `.bucket/tmp`: (descriptor, name)."""
        name = os.urandom(12).hex().encode()
        with closing_fd(self.private_dir(b'tmp', create=True)) as directory:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=directory)
        fcntl.flock(fd, fcntl.LOCK_EX)
        return fd, name

    def place_temp(self, name: bytes, directory: int, target: bytes, *, sync: bool = True) -> None:
        """Rename a temp file to its place, durably unless not `sync`. OSError as the system says."""
        with closing_fd(self.private_dir(b'tmp')) as tmp:
            os.rename(name, target, src_dir_fd=tmp, dst_dir_fd=directory)
        if self.durable and sync:
            os.fsync(directory)

    def drop_temp(self, name: bytes) -> None:
        with contextlib.suppress(FileNotFoundError), closing_fd(self.private_dir(b'tmp')) as tmp:
            os.unlink(name, dir_fd=tmp)

    def clean_stale(self) -> int:
        """Remove what dead writers left in `.bucket/tmp`; returns how many files."""
        try:
            directory = self.private_dir(b'tmp')
        except (FileNotFoundError, PermissionError):
            return 0
        with closing_fd(directory):
            return sum(self._is_stale_removed(directory, name) for name in os.listdir(directory))

    def _is_stale_removed(self, directory: int, name: str) -> bool:
        try:
            with closing_fd(os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)) as fd:
                if time.time() - os.fstat(fd).st_mtime < STALE_SECONDS:
                    return False
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=directory)
                return True
        except OSError:
            # in use, just placed or removed, or not ours to remove: nobody lists it, and the next start tries again
            return False

    def read_sidecar(self, raw: bytes) -> Sidecar | None:
        """None where there is none, or where it is damaged: an object without a sidecar is whole, it only has no metadata."""
        group, name = self._sidecar_names(raw)
        try:
            with closing_fd(self.private_dir(b'meta', group)) as directory:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            with closing_fd(fd):
                sidecar = msgspec.json.decode(os.read(fd, 1 << 16), type=Sidecar)
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return sidecar if sidecar.key.encode('utf-8', 'replace') == raw else None

    def write_sidecar(self, raw: bytes, versions: dict[str, Version]) -> None:
        """Replace the key's sidecar: its content is on the disk, its name by `sync_sidecar`."""
        group, name = self._sidecar_names(raw)
        fd, temp = self.new_temp()
        try:
            with closing_fd(fd):
                os.write(fd, msgspec.json.encode(Sidecar(raw.decode('utf-8'), versions)))
                if self.durable:
                    os.fsync(fd)
            with closing_fd(self.private_dir(b'meta', group, create=True)) as directory:
                self.place_temp(temp, directory, name, sync=False)
        except BaseException:
            self.drop_temp(temp)
            raise

    def sync_sidecar(self, raw: bytes) -> None:
        """To be called when the object is in its place, before the put returns. Not earlier: the journals of ext4 and xfs keep the order of
        the two renames, and one flush for both is a third cheaper; elsewhere a power cut in between may cost the metadata of a put that
        had not returned yet."""
        if self.durable:
            with closing_fd(self.private_dir(b'meta', self._sidecar_names(raw)[0])) as directory:
                os.fsync(directory)

    def remove_sidecar(self, raw: bytes) -> None:
        group, name = self._sidecar_names(raw)
        with contextlib.suppress(FileNotFoundError), closing_fd(self.private_dir(b'meta', group)) as directory:
            os.unlink(name, dir_fd=directory)

    @staticmethod
    def _sidecar_names(raw: bytes) -> tuple[bytes, bytes]:
        digest = hashlib.sha256(raw).hexdigest().encode()
        return digest[:2], digest[2:34]


