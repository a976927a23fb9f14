"""A directory used as a bucket (`file:///DIR`): the port's verbs over plain files that a person can read and edit.

Owns the order of steps that makes each verb atomic against other threads, processes and power cuts. Where an object lies is
`file_layout`'s, the order of keys `file_walk`'s; it must not know contexts, paths on the mount, or schedules.

A put writes a temp file and syncs it without any lock; then, under the key's lock: condition, sidecar (naming the old version and the
new one), rename, sync of the directory. A crash before the rename leaves the old object with its metadata, one after it the new.
"""
from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

import msgspec

from ctxfs.crash_points import crash_point
from ctxfs.errors import CtxfsError, Denied, NoSpace, NotFound, ReadOnly, RemoteChanged, RemoteUnavailable, Unsupported
from ctxfs.records import ListPage, ObjectInfo, PutResult
from ctxfs.storage import file_layout as at
from ctxfs.storage.file_bytes import copy_bytes, read_range, write_all
from ctxfs.storage.file_find import READ_FLAGS, Finder, Found, check_condition, check_etag, existing
from ctxfs.storage.file_walk import Page, Walker, after, from_token
from ctxfs.storage.object_store import ALWAYS, Aborted, Capabilities, Condition, ExpiryRule, Failures, Resume, check_metadata, check_tags

#: how often a read is begun anew when somebody edits the file in place meanwhile
_READ_ATTEMPTS = 5
_ERRNOS: dict[int, type[CtxfsError]] = {
    errno.ENOSPC: NoSpace, errno.EDQUOT: NoSpace, errno.EROFS: ReadOnly, errno.EACCES: Denied, errno.EPERM: Denied,
}


@contextlib.contextmanager
def _translate(what: str) -> Iterator[None]:
    """The one place where an OSError of the store's directory becomes an error of ctxfs."""
    try:
        yield
    except OSError as exc:
        raise _ERRNOS.get(exc.errno or 0, RemoteUnavailable)(f'{what}: {exc.strerror or exc}') from exc


class FileStore:
    """See the port. `create` makes the directory (0700) where it is missing; without `durable` nothing is synced to the disk, and a
    power cut may lose or tear what was put."""

    def __init__(self, directory: str, *, create: bool = False, durable: bool = True) -> None:
        self.url = f'file://{directory}'
        self._layout = at.Layout(directory, durable=durable)
        self._finder = Finder(self._layout)
        self._walker = Walker(self._layout)
        if create:
            with _translate(f'cannot create the store directory {directory}'):
                self._layout.create()

    def capabilities(self) -> Capabilities:
        return Capabilities(conditional_create=True, conditional_overwrite=True, conditional_delete=True, conditional_copy=True,
                            conditional_copy_source=True, conditional_parts=True, batch_delete=True, conditional_batch_delete=True,
                            tagging=True)

    def learn(self, known: Capabilities | None) -> None:
        """A directory is what it is."""

    def etag_maker(self, size: int) -> None:
        return None

    def proves(self, etag: str, pieces: Callable[[], Iterable[bytes]]) -> bool:
        return True

    def etag_of(self, body: bytes) -> str | None:
        return None

    def check(self) -> None:
        directory = self._layout.directory
        with _translate(f'the store directory {directory} cannot be read'):
            if not os.fstat(self._layout.root).st_nlink:
                raise NotFound(f'the store directory {directory} was removed')
            os.close(os.open('.', os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._layout.root))
            self._layout.clean_stale()

    def close(self) -> None:
        self._layout.close()

    # reading

    def head(self, key: str) -> ObjectInfo:
        raw = at.encode_key(key)
        with _translate(key), self._finder.found(raw) as found:
            return existing(found, key).info

    def get(self, key: str, start: int = 0, stop: int | None = None, *, if_match: str | None = None) -> bytes:
        raw = at.encode_key(key)
        for _ in range(_READ_ATTEMPTS):
            with _translate(key), self._finder.opened(raw, key) as (fd, info):
                check_etag(info, if_match, key)
                data = read_range(fd, start, info.size if stop is None else stop) if fd is not None else b''
                if fd is None or at.file_etag(os.fstat(fd)) == info.etag:
                    return data
        raise RemoteUnavailable(f'{key}: the file is being written in place in the store directory')

    def tags(self, key: str) -> dict[str, str]:
        with _translate(key), self._finder.found(at.encode_key(key)) as found:
            return dict(existing(found, key).version.tags)

    def presigned(self, method: str, key: str, seconds: int) -> str:
        raise Unsupported(f'{self.url} is a directory without a server that could answer a URL; presigned URLs need an s3:// store '
                          '(AWS S3, Alibaba OSS, MinIO, R2, Ceph …)')

    def ensure_expiry(self, rule_id: str, *, tag: tuple[str, str], days: int) -> None:
        raise Unsupported('a directory removes nothing by itself')

    def expiry_rules(self) -> list[ExpiryRule]:
        return []

    def list(self, prefix: str, *, delimiter: str = '', token: str | None = None, start_after: str = '', limit: int = 1000) -> ListPage:
        page = Page(prefix.encode('utf-8', 'replace'), delimiter.encode('utf-8', 'replace'), max(1, min(limit, 1000)))
        lower = after(start_after.encode('utf-8', 'replace')) if start_after else b''
        if token is not None:
            lower = max(lower, from_token(token))
        with _translate(f'listing {prefix!r}'):
            while self._fill(page, lower):
                lower = page.lower
        return page.result()

    def _fill(self, page: Page, lower: bytes) -> bool:
        """Add candidates to the page; True when the walk has to go on behind a common prefix (from `page.lower`)."""
        last = None
        with self._walker.walk(page.prefix, lower) as candidates:
            for candidate in candidates:
                found = self._finder.examine(candidate) if candidate.raw != last else None
                if found is None:
                    continue
                last = candidate.raw
                if page.is_full():
                    page.is_truncated = True
                    return False
                if page.add(candidate.raw, found.info):
                    return True
        return False

    # writing

    def put(self, key: str, body: bytes, *, metadata: dict[str, str] | None = None, content_type: str | None = None,
            condition: Condition = ALWAYS, tags: Mapping[str, str] | None = None) -> PutResult:
        version = _version(metadata, content_type, tags)
        with _translate(key):
            return self._put(key, lambda fd: write_all(fd, body), len(body), version, condition)

    def put_file(self, key: str, file: BinaryIO, size: int, *, metadata: dict[str, str] | None = None,
                 content_type: str | None = None, condition: Condition = ALWAYS, tags: Mapping[str, str] | None = None,
                 may_commit: Callable[[], bool] = lambda: True, progress: Callable[[int], None] = lambda n: None,
                 resume: Resume | None = None) -> PutResult:
        version = _version(metadata, content_type, tags)

        def fill(fd: int) -> None:
            if copy_bytes(file, fd, size, progress) < size or not may_commit():
                raise Aborted(f'{key}: the content moved while it was being stored')
        with _translate(key):
            return self._put(key, fill, size, version, condition)

    def abandon(self, key: str, upload_id: str) -> None:
        """There are no uploads in parts here."""

    def copy(self, source: str, key: str, *, source_etag: str | None = None, size: int | None = None, condition: Condition = ALWAYS,
             metadata: dict[str, str] | None = None, content_type: str | None = None, tags: Mapping[str, str] | None = None) -> PutResult:
        raw = at.encode_key(source)
        given = _version(metadata, content_type, tags)
        with _translate(source), self._finder.found(raw) as maybe:
            found = existing(maybe, source)
            check_etag(found.info, source_etag, source)
            version = at.Version(metadata=found.version.metadata if metadata is None else given.metadata,
                                 content_type=content_type or found.version.content_type,
                                 tags=found.version.tags if tags is None else given.tags)
            return self._put(key, lambda fd: self._copy_found(found, fd, source), found.info.size, version, condition)

    def _copy_found(self, found: Found, target: int, key: str) -> None:
        if found.is_marker:
            return
        try:
            fd = os.open(found.name, READ_FLAGS, dir_fd=found.directory)
        except FileNotFoundError as exc:
            raise RemoteChanged(f'{key} was removed while it was being copied') from exc
        with open(fd, 'rb') as file:
            copy_bytes(file, target, found.info.size, lambda n: None)
            if at.file_etag(os.fstat(fd)) != found.info.etag:
                raise RemoteChanged(f'{key} changed while it was being copied')

    def _put(self, key: str, fill: Callable[[int], None], size: int, version: at.Version, condition: Condition) -> PutResult:
        raw = at.encode_key(key)
        if raw.endswith(b'/') and not size:
            with contextlib.suppress(at.NotInTree):
                fill(-1)
                return self._put_marker(raw, version, condition)
        fd, temp = self._layout.new_temp()
        try:
            with at.closing_fd(fd):
                fill(fd)
                # the kernel's file times tick every few ms, so two versions could share theirs: set it to the ns
                now_ns = time.time_ns()
                os.utime(fd, ns=(now_ns, now_ns))
                if self._layout.durable:
                    os.fsync(fd)
                return self._commit(raw, temp, at.file_etag(os.fstat(fd)), version, condition)
        except BaseException:
            self._layout.drop_temp(temp)
            raise

    def _commit(self, raw: bytes, temp: bytes, etag: str, version: at.Version, condition: Condition) -> PutResult:
        with self._layout.key_lock(raw), self._finder.found(raw) as found:
            check_condition(found, condition, raw)
            old = {found.info.etag: found.version} if found and found.version != at.Version() else {}
            crash_point('worker-store-before-sidecar')
            if version != at.Version():
                self._layout.write_sidecar(raw, {etag: version, **old})
            crash_point('worker-store-before-place')
            try:
                self._place_in_tree(raw, temp)
                if found and not found.in_tree:
                    os.unlink(found.name, dir_fd=found.directory)
            except at.NotInTree:
                self._place_odd(raw, temp)
                if found and found.is_marker:
                    self._remove_marker(raw)
            crash_point('worker-store-after-place')
            if version != at.Version():
                self._layout.sync_sidecar(raw)
            elif old:
                self._layout.remove_sidecar(raw)
            return PutResult(etag=etag, size=int(etag.split('-')[1], 16))

    def _place_in_tree(self, raw: bytes, temp: bytes) -> None:
        *parents, name = at.tree_names(raw)
        if raw.endswith(b'/'):
            raise at.NotInTree
        try:
            with at.in_tree(), at.closing_fd(at.open_dir(self._layout.root, parents)) as directory:
                return self._place(temp, directory, name)
        except FileNotFoundError:
            # no such directory yet, or removed with its last object just now
            pass
        with self._layout.tree_lock(), at.in_tree():
            try:
                with at.closing_fd(at.open_dir(self._layout.root, parents, create=True, durable=self._layout.durable)) as directory:
                    self._place(temp, directory, name)
            except OSError:
                self._prune(parents)
                raise

    def _place(self, temp: bytes, directory: int, name: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            # a symlink or a device that somebody made here is not ours to replace
            if not at.is_file(os.stat(name, dir_fd=directory, follow_symlinks=False)):
                raise at.NotInTree
        self._layout.place_temp(temp, directory, name)

    def _place_odd(self, raw: bytes, temp: bytes) -> None:
        *parents, name = at.odd_names(raw)
        with at.closing_fd(self._layout.private_dir(b'odd', *parents, create=True)) as directory:
            self._layout.place_temp(temp, directory, name)

    def _put_marker(self, raw: bytes, version: at.Version, condition: Condition) -> PutResult:
        """Make the directory, and a sidecar that says that it was meant. Raises NotInTree where a file or a symlink is in its place."""
        names = at.tree_names(raw)
        with self._layout.key_lock(raw), self._finder.found(raw) as found:
            check_condition(found, condition, raw)
            with self._layout.tree_lock(), at.in_tree(), at.closing_fd(
                    at.open_dir(self._layout.root, names, create=True, durable=self._layout.durable)) as directory:
                etag = at.new_marker_etag(os.fstat(directory))
                self._layout.write_sidecar(raw, {etag: msgspec.structs.replace(version, mtime_ns=time.time_ns())})
            self._layout.sync_sidecar(raw)
            if found and not found.in_tree:
                os.unlink(found.name, dir_fd=found.directory)
            return PutResult(etag=etag, size=0)

    # removing

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        changed: set[tuple[bytes, ...]] = set()
        with _translate(key):
            self._delete(key, if_match, changed)
            self._sync(changed)

    def delete_many(self, items: Sequence[tuple[str, str | None]]) -> Failures:
        failed: Failures = []
        changed: set[tuple[bytes, ...]] = set()
        for key, etag in items:
            try:
                with _translate(key):
                    self._delete(key, etag, changed)
            except CtxfsError as exc:
                failed.append((key, exc))
        with _translate('removing objects'):
            self._sync(changed)
        return failed

    def _delete(self, key: str, if_match: str | None, changed: set[tuple[bytes, ...]]) -> None:
        raw = at.encode_key(key)
        with self._finder.found(raw) as found:
            # without the lock, so that removing what is not there writes nothing (not even in a directory that is no bucket yet)
            if found is None:
                return
        with self._layout.key_lock(raw), self._finder.found(raw) as found:
            if found is None:
                return
            check_etag(found.info, if_match, key)
            if found.in_tree:
                self._remove_odd_copy(raw)
                parents = self._remove_from_tree(raw, found)
            else:
                os.unlink(found.name, dir_fd=found.directory)
                parents = (at.PRIVATE, b'odd', *at.odd_names(raw)[:-1])
            crash_point('worker-store-delete-before-sidecar')
            if not found.is_marker:
                self._layout.remove_sidecar(raw)
            changed.add(parents)

    def _remove_odd_copy(self, raw: bytes) -> None:
        """What was odd when it was put, and has a file in its place in the tree now, must not come back when that file goes."""
        with contextlib.ExitStack() as stack:
            odd = self._finder.find_odd(raw, stack)
            if odd:
                os.unlink(odd.name, dir_fd=odd.directory)

    def _remove_from_tree(self, raw: bytes, found: Found) -> tuple[bytes, ...]:
        if found.is_marker:
            return self._remove_marker(raw)
        parents = at.tree_names(raw)[:-1]
        with self._layout.tree_lock():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(found.name, dir_fd=found.directory)
            return self._prune(parents)

    def _remove_marker(self, raw: bytes) -> tuple[bytes, ...]:
        with self._layout.tree_lock():
            self._layout.remove_sidecar(raw)
            return self._prune(at.tree_names(raw))

    def _prune(self, names: Sequence[bytes]) -> tuple[bytes, ...]:
        """Remove the directories from `names` upwards that are empty and no markers: S3 has none without objects. Returns the directory
        that is left. Needs the tree lock."""
        for depth in range(len(names), 0, -1):
            raw = b'/'.join(names[:depth]) + b'/'
            try:
                with at.closing_fd(at.open_dir(self._layout.root, names[:depth - 1])) as parent:
                    st = os.stat(names[depth - 1], dir_fd=parent, follow_symlinks=False)
                    sidecar = self._layout.read_sidecar(raw)
                    if sidecar and any(at.is_marker_etag(etag, st) for etag in sidecar.versions):
                        return tuple(names[:depth])
                    os.rmdir(names[depth - 1], dir_fd=parent)
            except FileNotFoundError:
                continue
            except OSError:
                # not empty (or not ours to remove, as a mount point): it stays, and so does all above it
                return tuple(names[:depth])
        return ()

    def _sync(self, changed: set[tuple[bytes, ...]]) -> None:
        """Make removals durable, once per directory; one that vanished meanwhile was synced through its parent by who removed it."""
        for names in changed if self._layout.durable else ():
            with (contextlib.suppress(FileNotFoundError, NotADirectoryError),
                  at.closing_fd(at.open_dir(self._layout.root, [*names])) as directory):
                os.fsync(directory)


def _version(metadata: Mapping[str, str] | None, content_type: str | None, tags: Mapping[str, str] | None) -> at.Version:
    return at.Version(metadata=dict(check_metadata(metadata or {})), content_type=content_type, tags=dict(check_tags(tags or {})))


