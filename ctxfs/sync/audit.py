"""What of a mount's work goes into the audit log: every change of the bucket's files, with its outcome, and what decides about them.

Owns the translation of operations and events into lines. It must not know the file (storage/audit_log.py) or who does the work: the pool
tells of each operation when it ended, also when nobody waited for it any more, and the daemon tells events and the mount's own life.

A line is written after the outcome is known, and there is none before: what a kill cuts off in between is settled by the next mount, which
finds a write that arrived (`recovered`) and repeats a delete, and so writes the line that is missing. Where nobody can say whether a request
arrived, its result is `unknown`. ctxfs's own objects (.ctxfs/) get no lines.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ctxfs.errors import Contradicted, Corrupted, OutOfTurn, RemoteUnavailable
from ctxfs.records import RESERVED_DIR
from ctxfs.storage.audit_log import Tell
from ctxfs.storage.journal import Known
from ctxfs.storage.object_store import Condition
from ctxfs.sync.protocol import Copy, DeleteMany, EnsureExpiry, Operation, PutBytes, PutDone, PutFile, PutMany

#: events that get a line, by their kind
EVENTS = frozenset({'conflict', 'policy-applied', 'policy-refused'})


class _Line(NamedTuple):
    operation: str
    key: str
    data: dict[str, Any]
    error: Exception | None = None


class Auditor:
    """`ended` for the pool, `event` for whoever publishes. `prefix`: of the context's keys."""

    def __init__(self, tell: Tell, *, prefix: str) -> None:
        self._tell = tell
        self._prefix = prefix
        self._own = prefix + RESERVED_DIR

    def wants(self, operation: Operation[Any]) -> bool:
        return isinstance(operation, PutFile | PutMany | PutBytes | Copy | DeleteMany | EnsureExpiry)

    def ended(self, operation: Operation[Any], outcome: Any) -> None:
        """`outcome`: what the operation returned, or the exception that it raised."""
        for line in _lines(operation, outcome):
            if not line.key.startswith(self._own):
                data = {'key': line.key, **line.data} if line.key else line.data
                self._tell(line.operation, result=_result(line.error), error=str(line.error or ''), **data)

    def event(self, kind: str, **data: Any) -> None:
        if kind in EVENTS:
            self._tell(kind, **data)

    def member(self, key: str, etag: str, before: str, size: int) -> None:
        """A commit wrote the member of that key, or removed it (etag '')."""
        if not etag:
            self._tell('delete', key=self._prefix + key, oldEtag=before, result='ok')
            return
        self._tell('overwrite' if before else 'upload', key=self._prefix + key, size=size, oldEtag=before or None, etag=etag, result='ok')

    def arrived(self, known: Known) -> None:
        """A write of an earlier mount that was in doubt had arrived."""
        self._tell('upload', key=self._prefix + known.key, size=known.size, etag=known.etag, recovered=True)

    def reverted(self, path: str, kept_at: str | None) -> None:
        """After a power cut the file is the bucket's version again."""
        self._tell('quarantine', path=path, keptAt=kept_at)


def _result(error: Exception | None) -> str:
    if error is None:
        return 'ok'
    if isinstance(error, OutOfTurn | Contradicted):     # nothing was sent
        return 'failed'
    return 'unknown' if isinstance(error, RemoteUnavailable | Corrupted) else 'failed'


def _lines(operation: Operation[Any], outcome: Any) -> Iterator[_Line]:
    error = outcome if isinstance(outcome, Exception) else None
    if isinstance(operation, PutFile | PutBytes):
        if error is not None or not (outcome.is_skipped or outcome.is_aborted):
            yield _put(operation, outcome, error)
    elif isinstance(operation, PutMany):
        for number, file in enumerate(operation.files):
            yield from _lines(file, outcome if error is not None else outcome.items[number].outcome())
    elif isinstance(operation, Copy):
        yield _Line('copy', operation.key, {'source': operation.source, **_versions(operation.condition, outcome)}, error)
    elif isinstance(operation, DeleteMany):
        yield from _deletes(operation, outcome, error)
    elif isinstance(operation, EnsureExpiry):
        yield _Line('expiry-rule', '', {'lifecycle': operation.lifecycle, 'days': operation.days}, error)


def _put(operation: PutFile | PutBytes, outcome: Any, error: Exception | None) -> _Line:
    data = _versions(operation.condition, outcome)
    if error is not None:
        data['size'] = operation.size if isinstance(operation, PutFile) else len(operation.body)
    if operation.member:
        data['oldEtag'] = operation.member
    if isinstance(outcome, PutDone) and outcome.is_recovered:
        data['recovered'] = True
    is_over = operation.condition.etag is not None or bool(operation.member)
    return _Line('overwrite' if is_over else 'upload', operation.key, data, error)


def _versions(condition: Condition, outcome: Any) -> dict[str, Any]:
    if isinstance(outcome, Exception):
        return {'oldEtag': condition.etag}
    return {'size': outcome.size, 'oldEtag': condition.etag, 'etag': outcome.etag}


def _deletes(operation: DeleteMany, outcome: Any, error: Exception | None) -> Iterator[_Line]:
    failed = {} if error is not None else {failure.key: failure.error() for failure in outcome.failures}
    for key, etag in operation.items if not operation.is_replaced else ():
        yield _Line('expire' if operation.is_expiry else 'delete', key, {'oldEtag': etag}, error or failed.get(key))
