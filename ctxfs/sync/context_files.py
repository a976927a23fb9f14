"""The files of one context without a mount: one level of a folder, single files, and what tells the mounts of what was done here.

Owns the reading of paths, what of the bucket shows (ctxfs's own objects and keys that no file system can hold do not), and that every change
is followed by a segment of the index, as a mount's own. It must not know local files (file_transfers.py), people or schedules. Synchronous,
thread-safe.

A change is seen by mounts like any other host's: the object tells those that list the whole context, the segment those that do not. The
segment comes after the object, so a crash between the two leaves what another tool's change is: found by the next whole listing.
"""
from __future__ import annotations

import base64
import binascii
import contextlib
import heapq
import itertools
import operator
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import msgspec

from ctxfs.errors import CtxfsError, InvalidArgument, IsADirectory, NotADirectory, NotFound, RemoteChanged, Unsupported, UsageError
from ctxfs.policy import LIFECYCLE_DAYS, SyncPolicy
from ctxfs.records import LIFECYCLE_NAME, IndexRecord, ObjectInfo
from ctxfs.rules import Rules
from ctxfs.storage.archive_log_format import MemberRecord
from ctxfs.storage.keys import Unmountable, key_of_path, key_to_path, mapped_prefix, path_of_key
from ctxfs.storage.listing import pages
from ctxfs.storage.members import is_member
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.posix_meta import version_id
from ctxfs.storage.registry import context_prefix
from ctxfs.sync.clearing import tombstones
from ctxfs.sync.context_members import ContextMembers
from ctxfs.sync.held_turns import HeldTurns
from ctxfs.sync.index_log import IndexLog
from ctxfs.sync.resumable import UploadNotes

#: records in one segment
SEGMENT_RECORDS = 5000


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One name in a folder. `path` is the context's (`/data/x`), `key` relative to it; a folder's has no size, etag and time."""
    path: str
    key: str
    is_dir: bool
    size: int = 0
    etag: str = ''
    mtime_ns: int = 0

    @property
    def name(self) -> str:
        return self.path.rpartition('/')[2]


class EntryPage(msgspec.Struct, frozen=True, kw_only=True):
    """`next_token` is None on the last one."""
    entries: list[Entry]
    next_token: str | None


class ContextFiles:
    """See the module docstring. Paths are as people write them (keys.key_of_path). Raises what the store raises, and InvalidArgument."""

    def __init__(self, store: ObjectStore, context_id: str, *, host: str, policy: SyncPolicy | None = None,
                 uploads: UploadNotes | None = None, turns: HeldTurns | None = None) -> None:
        """`policy` says which uploads carry a lifetime; `uploads` notes large ones, so that they can be gone on with; `turns`: how to wait for other
        hosts where the store makes that necessary."""
        self.store = store
        self._turns = turns
        self.uploads = uploads
        self._rules = Rules(policy or SyncPolicy())
        self._below = mapped_prefix(policy.mapping_policy.path) if policy is not None and policy.mapping_policy is not None else ''
        self._seen_to: set[str] = set()
        self.host = host
        self.prefix = context_prefix(context_id)
        self.index = IndexLog(store, self.prefix, host=host)
        self.members = ContextMembers(store, self.prefix, host=host)
        self._displaced: dict[str, str] = {}

    # --- looking --------------------------------------------------------------------------------------------------------------------

    def page(self, folder: str, limit: int, token: str | None = None) -> EntryPage:
        """Up to `limit` entries of a folder, in the order of their keys; short only where the folder ends. Raises UsageError for a token that
        is none."""
        below = self._folder(folder)
        found: list[Entry] = []
        at = None if token is None else _decoded(token)
        if self.members.is_archived:
            return self._archived_page(below, limit, at or '')
        while len(found) < limit:
            page = self.store.list(self.prefix + below, delimiter='/', token=at, limit=min(1000, limit - len(found)))
            found += self._entries([*page.objects, *page.prefixes], below)
            at = page.next_token
            if at is None:
                return EntryPage(entries=found, next_token=None)
        return EntryPage(entries=found, next_token=_encoded(str(at)))

    def _archived_page(self, below: str, limit: int, after: str) -> EntryPage:
        """The same with what lies in archives; the token is the last key."""
        self.members.look()
        names: dict[str, ObjectInfo | str] = {}
        for item in self.members.below(below):
            name, slash, rest = item.record.path[len(below):].partition('/')
            names[f'{below}{name}{slash}'] = f'{self.prefix}{below}{name}/' if rest or slash else self.members.info(item)
        token = None
        while True:
            page = self.store.list(self.prefix + below, delimiter='/', token=token)
            names.update((info.key[len(self.prefix):], info) for info in page.objects if self._counts(info))
            names.update((prefix[len(self.prefix):], prefix) for prefix in page.prefixes)
            token = page.next_token
            if token is None:
                break
        found = self._entries([names[key] for key in sorted(names) if key > after], below)
        return EntryPage(entries=found[:limit], next_token=_encoded(found[limit - 1].key) if len(found) > limit else None)

    def _counts(self, info: ObjectInfo) -> bool:
        """Whether an object shows: not if a member took its place."""
        item = self.members.get(info.key[len(self.prefix):])
        return item is None or item.shadows != info.etag

    def _member_at(self, key: str) -> MemberRecord | None:
        """The member that shows at the key."""
        item = self.members.get(key)
        if item is None:
            return None
        with contextlib.suppress(NotFound):
            return item if self.store.head(self.prefix + key).etag == item.shadows else None
        return item

    def entries(self, folder: str) -> Iterator[Entry]:
        """All of a folder's."""
        token = None
        while True:
            page = self.page(folder, 1000, token)
            yield from page.entries
            token = page.next_token
            if token is None:
                return

    def _entries(self, found: Sequence[ObjectInfo | str], below: str) -> list[Entry]:
        entries = [self._entry(item) for item in found if (item if isinstance(item, str) else item.key) != self.prefix + below]
        return sorted((entry for entry in entries if entry is not None), key=lambda entry: entry.key)

    def _entry(self, found: ObjectInfo | str) -> Entry | None:
        """None for what is ctxfs's own, or has no place in a file system."""
        key = (found if isinstance(found, str) else found.key)[len(self.prefix):]
        if isinstance(key_to_path(key), Unmountable):
            return None
        path = path_of_key(key.removesuffix('/'))
        if isinstance(found, str):
            return Entry(path=path, key=key, is_dir=True)
        return Entry(path=path, key=key, is_dir=key.endswith('/'), size=found.size, etag=found.etag, mtime_ns=found.mtime_ns)

    def _folder(self, folder: str) -> str:
        key = key_of_path(folder)
        return f'{key}/' if key else ''

    def below(self, folder: str) -> Iterator[Entry]:
        """Everything below a folder, in the order of keys; folders as far as they have an object of their own."""
        below = self._folder(folder)
        self.members.look()
        for info in self.infos(below):
            if info.key != self.prefix + below and (entry := self._entry(info)) is not None:
                yield entry

    def infos(self, below: str) -> Iterator[ObjectInfo]:
        """Objects and members below a key, in the order of their keys (full ones), one of each, as of the last look at archives."""
        objects = (info for page in pages(self.store, self.prefix + below) for info in page.objects if self._counts(info))
        members = (self.members.info(item) for item in self.members.below(below))
        last = ''
        for info in heapq.merge(objects, members, key=lambda info: info.key):       # of two the object is first, and counts
            if info.key != last:
                yield info
            last = info.key

    def find(self, path: str) -> Entry:
        """The file or folder at `path`. Raises NotFound."""
        key = key_of_path(path)
        if not key:
            return Entry(path='/', key='', is_dir=True)
        if not path.endswith('/'):
            with contextlib.suppress(NotFound):
                info = self.head(key)
                return Entry(path=path_of_key(key), key=key, is_dir=False, size=info.size, etag=info.etag, mtime_ns=info.mtime_ns)
        if self.has_folder(key):
            return Entry(path=path_of_key(key), key=f'{key}/', is_dir=True)
        raise NotFound(f'there is no {path_of_key(key)} in the context')

    def file(self, path: str) -> Entry:
        """Raises NotFound, IsADirectory."""
        found = self.find(path)
        if found.is_dir:
            raise IsADirectory(f'{found.path} is a folder; name a file')
        return found

    def has_folder(self, key: str) -> bool:
        """Whether anything lies below that key, which has no slash at its end."""
        self.members.look()
        return self.members.has_below(f'{key}/') or bool(self.store.list(f'{self.prefix}{key}/', limit=1).objects)

    def head(self, key: str) -> ObjectInfo:
        """Of an object or a member. Raises NotFound."""
        self.members.look()
        item = self._member_at(key)
        return self.store.head(self.prefix + key) if item is None else self.members.info(item)

    def read(self, entry: Entry, start: int, stop: int) -> bytes:
        """A range of the version that the entry shows. Raises RemoteChanged."""
        if not is_member(entry.etag):
            return self.store.get(self.prefix + entry.key, start, stop, if_match=entry.etag)
        item = self.members.get(entry.key)
        if item is None or item.record.etag != entry.etag:
            raise RemoteChanged(f'{entry.key} changed')
        return self.members.content(item)[start:stop]

    def check_parents(self, key: str) -> None:
        """Raises NotADirectory where what is put at `key` would lie below a file."""
        parts = key.rstrip('/').split('/')
        for depth in range(1, len(parts)):
            above = '/'.join(parts[:depth])
            with contextlib.suppress(NotFound):
                self.head(above)
                raise NotADirectory(f'{path_of_key(above)} is a file; nothing can lie below it')

    def records(self) -> Iterator[IndexRecord]:
        """What the index says, in the order of paths; a record counts only for the version that it names."""
        said = ((record.path, 1, record) for record in self.index.read() if record.attrs is not None)
        packed = ((item.record.path, 0, item.record) for item in self.members.below(''))
        for _, same in itertools.groupby(heapq.merge(said, packed, key=operator.itemgetter(0, 1)), key=operator.itemgetter(0)):
            yield _said([record for _, _, record in same])

    # --- URLs -----------------------------------------------------------------------------------------------------------------------

    def upload_url(self, path: str, seconds: int) -> str:
        key = key_of_path(path)
        if not key or path.endswith('/'):
            raise InvalidArgument(f'{path!r} names no file')
        return self.store.presigned('PUT', self.prefix + key, seconds)

    def download_url(self, path: str, seconds: int) -> str:
        """Raises NotFound: a URL that answers 404 helps nobody."""
        url = self.store.presigned('GET', self.prefix + (key_of_path(path) or '/'), seconds)
        if is_member(self.file(path).etag):
            raise Unsupported(f'{path} lies in an archive, which has no URL for one file; ctxfs files get fetches it, and so does a mount')
        return url

    # --- changing -------------------------------------------------------------------------------------------------------------------

    def lifecycle_of(self, key: str) -> str:
        """What an upload to this key carries, '' for ever; the store's own rule for it is seen to, where it has rules."""
        wanted = self._rules.lifecycle_of(key[len(self._below):]) if key.startswith(self._below) else ''
        if wanted and wanted not in self._seen_to:
            self._seen_to.add(wanted)
            with contextlib.suppress(CtxfsError):       # then mounts remove what has expired
                self.store.ensure_expiry(f'ctxfs-{wanted}', tag=(LIFECYCLE_NAME, wanted), days=LIFECYCLE_DAYS[wanted])
        return wanted

    def announce(self, records: Sequence[IndexRecord]) -> None:
        for start in range(0, len(records), SEGMENT_RECORDS):
            self.index.append(records[start:start + SEGMENT_RECORDS])
        # an object counts before the member of its key: whoever lists sees what was put, and the log follows. A member that came meanwhile is
        # nobody's who put this: mounts keep it under another name
        self.members.delete([record.path for record in records if record.attrs is not None], known=self._displaced)

    def displaced(self, key: str) -> str:
        """What the stamp of an object that is put there says of the member that shows at the key; '' where none does."""
        item = self.members.get(key)
        if item is None:
            return ''
        self._displaced[key] = item.record.etag
        return version_id(self.prefix + key, item.record.etag)

    def turn(self, keys: Sequence[str]) -> AbstractContextManager[None]:
        """Around writes of these keys. Raises RemoteUnavailable."""
        return self._turns.turn([self.prefix + key for key in keys]) if self._turns is not None else contextlib.nullcontext()

    def delete_file(self, path: str) -> Entry:
        """Raises NotFound, IsADirectory."""
        found = self.file(path)
        self._delete([found.key])
        return found

    def delete_below(self, folder: str) -> Iterator[int]:
        """The folder and all below it, in batches; yields how many objects each had. Cut short, the rest stays as it is."""
        below = self._folder(folder)
        if not below:
            raise UsageError('/ is the whole context; ctxfs context clear empties it')
        self.members.look()
        if packed := self.members.delete([item.record.path for item in self.members.below(below)]):
            yield len(packed)
        for page in pages(self.store, self.prefix + below):
            keys = [info.key[len(self.prefix):] for info in page.objects]
            if keys:
                self._delete(keys)
                yield len(keys)

    def _delete(self, keys: list[str]) -> None:
        self.members.delete(keys)
        began_ns = time.time_ns()
        with self.turn(keys):
            failures = self.store.delete_many([(self.prefix + key, None) for key in keys])
        failed = {key for key, _ in failures}
        gone = [key for key in keys if self.prefix + key not in failed]
        if gone:
            self.announce(tombstones(gone, began_ns))
        if failures:
            key, error = failures[0]
            raise error if isinstance(error, CtxfsError) else CtxfsError(f'{key}: {error}')


def _said(records: Sequence[IndexRecord]) -> IndexRecord:
    """Of what a commit and the index say of one path: of the member's version the later, else what the commit says."""
    first, last = records[0], records[-1]
    return last if first.etag == last.etag and last.changed_ns >= first.changed_ns else first


def _encoded(token: str) -> str:
    """A store's token as one word of harmless characters."""
    return base64.urlsafe_b64encode(token.encode()).decode().rstrip('=')


def _decoded(token: str) -> str:
    try:
        if not re.fullmatch(r'[A-Za-z0-9_-]+', token):
            raise ValueError
        return base64.urlsafe_b64decode(token + '=' * (-len(token) % 4)).decode()
    except (ValueError, binascii.Error):
        raise UsageError(f'{token[:80]!r} is no token of a list') from None

