"""An object store in memory, with etags as S3 makes them (the same content has the same one) or a new one for each version.

Owns the port's verbs for one process; all conditions are honoured. It must not know who tests what. tests/contract holds it to the port.
"""
from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import BinaryIO, NamedTuple

from ctxfs.errors import CtxfsError, NotFound, RemoteChanged, Unsupported
from ctxfs.records import ListPage, ObjectInfo, PutResult
from ctxfs.storage.file_layout import encode_key
from ctxfs.storage.object_store import ALWAYS, Aborted, Capabilities, Condition, ExpiryRule, Failures, check_metadata, check_tags
from ctxfs.storage.s3_verify import EtagMaker


class _Object(NamedTuple):
    body: bytes
    etag: str
    metadata: dict[str, str]
    content_type: str | None
    tags: dict[str, str]
    mtime_ns: int


class MemoryStore:
    """See the port. `by_content`: etags are MD5s."""

    url = 'memory:'

    def __init__(self, *, by_content: bool = True) -> None:
        self._by_content = by_content
        self._objects: dict[str, _Object] = {}
        self._count = itertools.count(1)
        self._lock = threading.RLock()

    def capabilities(self) -> Capabilities:
        return Capabilities(conditional_create=True, conditional_overwrite=True, conditional_delete=True, conditional_copy=True,
                            conditional_copy_source=True, conditional_parts=True, batch_delete=True, conditional_batch_delete=True, tagging=True)

    def learn(self, known: Capabilities | None) -> None:
        """It is what it is."""

    def etag_maker(self, size: int) -> EtagMaker | None:
        return EtagMaker(0) if self._by_content else None

    def proves(self, etag: str, pieces: Callable[[], Iterable[bytes]]) -> bool:
        return not self._by_content or self.etag_of(b''.join(pieces())) == etag

    def etag_of(self, body: bytes) -> str | None:
        return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"' if self._by_content else None

    def check(self) -> None:
        """It is there."""

    def close(self) -> None:
        """Nothing is open."""

    # reading

    def _existing(self, key: str) -> _Object:
        found = self._objects.get(key)
        if found is None:
            raise NotFound(f'{key} does not exist')
        return found

    def head(self, key: str) -> ObjectInfo:
        found = self._existing(key)
        return ObjectInfo(key=key, size=len(found.body), etag=found.etag, mtime_ns=found.mtime_ns, metadata=dict(found.metadata),
                          content_type=found.content_type)

    def get(self, key: str, start: int = 0, stop: int | None = None, *, if_match: str | None = None) -> bytes:
        found = self._existing(key)
        if if_match not in (None, found.etag):
            raise RemoteChanged(f'{key} is no longer the version {if_match}')
        return found.body[start:stop]

    def tags(self, key: str) -> dict[str, str]:
        return dict(self._existing(key).tags)

    def presigned(self, method: str, key: str, seconds: int) -> str:
        raise Unsupported('memory has no URL')

    def ensure_expiry(self, rule_id: str, *, tag: tuple[str, str], days: int) -> None:
        raise Unsupported('nothing is removed by itself')

    def expiry_rules(self) -> list[ExpiryRule]:
        return []

    def list(self, prefix: str, *, delimiter: str = '', token: str | None = None, start_after: str = '', limit: int = 1000) -> ListPage:
        lower = max(token or '', start_after, key=str.encode)
        objects: list[ObjectInfo] = []
        prefixes: list[str] = []
        with self._lock:
            for key in sorted(self._objects, key=str.encode):
                if not key.startswith(prefix) or key.encode() <= lower.encode():
                    continue
                end = key.find(delimiter, len(prefix)) + 1 if delimiter else 0
                if end and prefixes[-1:] == [key[:end]]:
                    continue
                if len(objects) + len(prefixes) == min(limit, 1000):
                    last = max([info.key for info in objects[-1:]] + [found + '\U0010ffff' for found in prefixes[-1:]], key=str.encode)
                    return ListPage(objects=objects, prefixes=prefixes, next_token=last)
                if end and not lower.startswith(key[:end]):
                    prefixes.append(key[:end])
                elif not end:
                    found = self._objects[key]
                    objects.append(ObjectInfo(key=key, size=len(found.body), etag=found.etag, mtime_ns=found.mtime_ns))
        return ListPage(objects=objects, prefixes=prefixes, next_token=None)

    # writing

    def put(self, key: str, body: bytes, *, metadata: dict[str, str] | None = None, content_type: str | None = None,
            condition: Condition = ALWAYS, tags: Mapping[str, str] | None = None) -> PutResult:
        encode_key(key)
        etag = self.etag_of(body) or f'"{next(self._count):x}"'
        made = _Object(bytes(body), etag, dict(check_metadata(metadata or {})), content_type, dict(check_tags(tags or {})), time.time_ns())
        with self._lock:
            current = self._objects.get(key)
            if condition.absent and current is not None:
                raise RemoteChanged(f'{key} exists already')
            if condition.etag is not None and (current is None or current.etag != condition.etag):
                raise RemoteChanged(f'{key} is no longer the version {condition.etag}')
            self._objects[key] = made
        return PutResult(etag=etag, size=len(body))

    def put_file(self, key: str, file: BinaryIO, size: int, *, metadata: dict[str, str] | None = None, content_type: str | None = None,
                 condition: Condition = ALWAYS, tags: Mapping[str, str] | None = None, may_commit: Callable[[], bool] = lambda: True,
                 progress: Callable[[int], None] = lambda n: None) -> PutResult:
        file.seek(0)
        body = file.read(size)
        progress(len(body))
        if len(body) < size or not may_commit():
            raise Aborted(f'{key}: the content moved while it was being stored')
        return self.put(key, body, metadata=metadata, content_type=content_type, condition=condition, tags=tags)

    def copy(self, source: str, key: str, *, source_etag: str | None = None, size: int | None = None, condition: Condition = ALWAYS,
             metadata: dict[str, str] | None = None, content_type: str | None = None, tags: Mapping[str, str] | None = None) -> PutResult:
        with self._lock:
            found = self._existing(source)
            if source_etag not in (None, found.etag):
                raise RemoteChanged(f'{source} is no longer the version {source_etag}')
            return self.put(key, found.body, metadata=found.metadata if metadata is None else metadata,
                            content_type=content_type or found.content_type, condition=condition, tags=found.tags if tags is None else tags)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        with self._lock:
            current = self._objects.get(key)
            if current is not None and if_match not in (None, current.etag):
                raise RemoteChanged(f'{key} is no longer the version {if_match}')
            self._objects.pop(key, None)

    def delete_many(self, items: Sequence[tuple[str, str | None]]) -> Failures:
        failed: Failures = []
        for key, etag in items:
            try:
                self.delete(key, if_match=etag)
            except CtxfsError as error:
                failed.append((key, error))
        return failed
