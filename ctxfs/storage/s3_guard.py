"""Conditions of writes to an S3 server that may know them or not: how each is sent, and what takes its place where it would be ignored.

Owns what the server is known to honour, the spelling of etags, the look before a write that the server would not check itself, and the verdict
when a server refuses what it was found to do. It must not know what is written, nor how capabilities are found out (s3_probe.py) or kept.

    the server checks                 one request with If-None-Match, If-Match or x-oss-forbid-overwrite
    it does not, and hosts take       the turn must last, the object is looked at, and what is sent next ends before the turn does
    turns (`turn_left`)
    it does not, and nobody does      the object is looked at; the window up to the write is what such a server leaves open
"""
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from ctxfs.errors import (
    Contradicted,
    CtxfsError,
    Denied,
    InvalidArgument,
    NotFound,
    OutOfTurn,
    RemoteChanged,
    RemoteUnavailable,
    Unsupported,
)
from ctxfs.storage import fibers
from ctxfs.storage.keys import KEY_MAX
from ctxfs.storage.object_store import ALWAYS, UNKNOWN, Capabilities, Condition, Memory, Write
from ctxfs.storage.s3_client import S3Client
from ctxfs.storage.s3_errors import code_of
from ctxfs.storage.s3_http import Response, Timeouts
from ctxfs.storage.s3_probe import probe
from ctxfs.storage.s3_xml import parse_listing, quoted_etag

#: a write that needs a turn begins only while the turn lasts for so long
TURN_MARGIN = 10.0
_CONFLICT_ATTEMPTS = 4
_FORBID = {'x-oss-forbid-overwrite': 'true'}


class Sending(NamedTuple):
    """What a write is sent with: headers, and how long it may take."""
    headers: Mapping[str, str] = {}
    timeouts: Timeouts | None = None


class Guard:
    """See the module docstring. Thread-safe. Keys are the store's, `prefix` goes before them; `turn_left`: seconds for which this host has its
    turn, None where hosts do not take turns. `memory`: from where `known` comes if it is not given, and to where an answer goes."""

    def __init__(self, client: S3Client, *, prefix: str, scratch: str, known: Capabilities | None = None, memory: Memory | None = None,
                 turn_left: Callable[[], float] | None = None) -> None:
        self._client = client
        self._prefix = prefix
        self._scratch = scratch
        self._turn_left = turn_left
        self._memory = memory
        self._probing = fibers.Lock()
        self.learn(known if known is not None or memory is None else memory.recall())

    # what the server can do

    def capabilities(self) -> Capabilities:
        with self._probing:
            if self._known is None:
                try:
                    found = probe(self._client, self._scratch)
                except Denied as exc:
                    if exc.transient:       # expired credentials, a wrong clock
                        raise
                    return UNKNOWN      # nor will a condition be needed; not remembered, because rights can be given
                if self._memory is not None:
                    self._memory.keep(found)
                self.learn(found)
                return found
            return self._known

    def learn(self, known: Capabilities | None) -> None:
        self._known = known
        self.is_unquoted = known is not None and known.unquoted_etags

    def spell(self, etag: str) -> str:
        """As the server compares it."""
        return etag.strip('"') if self.is_unquoted else etag

    # looking

    def full(self, key: str) -> str:
        full = self._prefix + key
        try:
            size = len(full.encode('utf-8'))
        except UnicodeEncodeError as exc:
            raise InvalidArgument(f'the key {key!r} is no valid Unicode text') from exc
        if not key or size > KEY_MAX:
            raise InvalidArgument(f'the key {key[:40]!r}… has {size} bytes, and 1 to {KEY_MAX} are possible')
        return full

    def head(self, key: str) -> Response:
        with self.knows_missing(key):
            return self._client.request('HEAD', self.full(key))

    @contextlib.contextmanager
    def knows_missing(self, key: str) -> Iterator[None]:
        """Around a read. Without the right to list the whole bucket S3 says 403 of what is not there (docs.aws.amazon.com, "HeadObject"), and
        credentials for one prefix do not have it: the prefix is listed to tell."""
        try:
            yield
        except Denied as exc:
            if self._is_missing(key):
                raise NotFound(f'{key} does not exist') from exc
            raise

    def _is_missing(self, key: str) -> bool:
        """False where that cannot be told."""
        full = self.full(key)
        try:
            response = self._client.request('GET', query={'list-type': '2', 'encoding-type': 'url', 'prefix': full, 'max-keys': '1'})
            return full not in [info.key for info in parse_listing(response.body, strip='').objects]
        except (CtxfsError, ValueError):
            return False

    def exists(self, key: str) -> bool:
        try:
            self.head(key)
        except NotFound:
            return False
        return True

    def is_version(self, key: str, etag: str) -> bool:
        """Raises NotFound."""
        return quoted_etag(self.head(key).headers.get('ETag', '')) == etag

    def expect(self, key: str, etag: str | None, *, missing: type[CtxfsError]) -> None:
        """Look whether the object is there (else `missing`), and is `etag` (else RemoteChanged)."""
        try:
            response = self.head(key)
        except NotFound as exc:
            raise missing(f'{key} does not exist') from exc
        if etag is not None and quoted_etag(response.headers.get('ETag', '')) != etag:
            raise RemoteChanged(f'{key} is no longer the version {etag}')

    def look_before(self, key: str, condition: Condition) -> None:
        """Raises RemoteChanged where the condition does not hold now."""
        if condition.etag is not None:
            self.expect(key, condition.etag, missing=RemoteChanged)
        elif condition.absent and self.exists(key):
            raise RemoteChanged(f'{key} exists already')

    # writing

    def admit(self, write: Write, key: str, condition: Condition) -> Sending:
        """What to send the write with, at once. Raises RemoteChanged, OutOfTurn."""
        if condition == ALWAYS:
            return Sending()
        known = self.capabilities()
        if known.is_atomic(write, condition):
            return Sending(self._headers(write, condition, known), self._check_turn(key) if known.needs_turn(write, condition) else None)
        self._check_turn(key)
        self.look_before(key, condition)
        return Sending(self._headers(write, condition, known), self._check_turn(key))

    def admit_delete(self, key: str, etag: str | None) -> Sending:
        """The same for a delete of that version. What is gone already may be deleted once more."""
        if etag is None:
            return Sending()
        if self.capabilities().conditional_delete:
            return Sending({'If-Match': self.spell(etag)})
        self._check_turn(key)
        with contextlib.suppress(NotFound):
            self.expect(key, etag, missing=NotFound)
        return Sending(timeouts=self._check_turn(key))

    def foresee(self, key: str, condition: Condition) -> None:
        """Before gigabytes are sent in parts: would their end be admitted now?"""
        if condition == ALWAYS:
            return
        if self.capabilities().is_atomic(Write.PARTS, condition):
            self.look_before(key, condition)
        else:
            self.admit(Write.PARTS, key, condition)

    def write(self, write: Write, key: str, condition: Condition, send: Callable[[Sending], Response]) -> Response:
        """Admit and send. A conflict with another request in flight (AWS: 409) says nothing of the condition: again."""
        for attempt in range(1, _CONFLICT_ATTEMPTS + 1):
            sending = self.admit(write, key, condition)
            try:
                with self.verdict(key, condition, sending):
                    return send(sending)
            except RemoteUnavailable as exc:
                if code_of(exc) not in ('ConditionalRequestConflict', 'OperationAborted') or attempt == _CONFLICT_ATTEMPTS:
                    raise
            fibers.sleep(0.02 * 2 ** attempt)
        raise AssertionError('not reached: the last attempt returns or raises')

    @contextlib.contextmanager
    def verdict(self, key: str, condition: Condition, sending: Sending) -> Iterator[None]:
        """Around a conditional request: what the server's refusal means."""
        try:
            yield
        except (NotFound, Denied) as exc:
            # AWS's answer to If-Match where nothing is
            if condition.etag is None or code_of(exc) in ('NoSuchBucket', 'NoSuchUpload') or (isinstance(exc, Denied) and not self._is_missing(key)):
                raise
            raise RemoteChanged(f'{key} was removed') from exc
        except Unsupported as exc:
            if sending.headers:
                raise self.contradicted(f'{key}: the server refuses a condition that it is known to honour ({exc})') from exc
            raise
        except RemoteChanged as exc:
            if self._is_wrong(key, condition, sending):
                raise self.contradicted(f'{key}: the server refuses to replace the version that is there ({exc})') from exc
            raise

    def contradicted(self, message: str) -> Contradicted:
        """What was known is forgotten, and asked again before the next write."""
        self.learn(None)
        if self._memory is not None:
            self._memory.forget()
        return Contradicted(message)

    def _is_wrong(self, key: str, condition: Condition, sending: Sending) -> bool:
        """Whether a refused If-Match named the version that is there: then etags are not compared as they are known to be."""
        if condition.etag is None or 'If-Match' not in sending.headers:
            return False
        try:
            return self.is_version(key, condition.etag)
        except CtxfsError:
            return False

    def _headers(self, write: Write, condition: Condition, known: Capabilities) -> Mapping[str, str]:
        """Where the server checks only some writes, OSS's header is sent with the others as well: it can do no harm."""
        if condition.absent and known.forbid_overwrite:
            return _FORBID
        if not known.is_atomic(write, condition):
            return {}
        return {'If-None-Match': '*'} if condition.absent else {'If-Match': self.spell(condition.etag or '')}

    def _check_turn(self, key: str) -> Timeouts | None:
        """How long what is sent now may take, where that is limited. Raises OutOfTurn."""
        if self._turn_left is None:
            return None
        left = self._turn_left()
        if left < TURN_MARGIN:
            raise OutOfTurn(f'{key}: this host has no turn to write now')
        return Timeouts(read=min(Timeouts().read, left), ends_at=time.clock_gettime(time.CLOCK_BOOTTIME) + left)
