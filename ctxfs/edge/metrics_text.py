"""Metrics of what mounts answer to `status` and `statistics`, in Prometheus's text format (version 0.0.4) or in OpenMetrics (1.0.0).

Owns the names of the metrics, which dashboards rely on. It must not ask anybody; what an older daemon does not say is left out.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

#: name → (type, help, where it is in {"status": …, "statistics": …})
_METRICS: dict[str, tuple[str, str, str]] = {
    'uptime_seconds': ('gauge', 'Seconds since the mount began.', 'statistics.uptime'),
    'read_only': ('gauge', '1 when changes are refused.', 'status.readOnly'),
    'paused': ('gauge', '1 while nothing begins by itself.', 'status.paused'),
    'pending_files': ('gauge', 'Files with changes that the bucket does not have.', 'status.pending.files'),
    'pending_bytes': ('gauge', 'Bytes of them.', 'status.pending.bytes'),
    'pending_oldest_seconds': ('gauge', 'For how long the oldest change has waited for its upload.', 'status.pending.oldestSeconds'),
    'lag_limit_seconds': ('gauge', 'From when on a change waits too long; 0: never.', 'status.lag.limit'),
    'lag_alarm': ('gauge', '1 while the oldest change waits too long.', 'status.lag.alarm'),
    'failed_files': ('gauge', 'Files whose last upload failed.', 'status.failedFiles'),
    'local_only_files': ('gauge', 'Files that stay on this host.', 'status.localOnly.files'),
    'local_only_bytes': ('gauge', 'Bytes of them.', 'status.localOnly.bytes'),
    'conflicts': ('gauge', 'Files that two hosts changed, not settled yet.', 'status.conflicts'),
    'cache_used_bytes': ('gauge', 'Clean blocks in the local cache.', 'status.cache.used'),
    'cache_dirty_bytes': ('gauge', 'Staged bytes that wait for their upload.', 'status.cache.dirty'),
    'cache_limit_bytes': ('gauge', 'The bound of both.', 'status.cache.limit'),
    'cache_full': ('gauge', '1 while writers get ENOSPC.', 'status.cache.full'),
    'cache_damaged_blocks_total': ('counter', 'Cached blocks whose bytes had gone bad.', 'status.cache.damaged'),
    'cache_hits_total': ('counter', 'Blocks read from the cache.', 'statistics.cache.hits'),
    'cache_misses_total': ('counter', 'Blocks that had to be fetched.', 'statistics.cache.misses'),
    'uploaded_bytes_total': ('counter', 'Bytes sent to the store.', 'statistics.bytesUploaded'),
    'downloaded_bytes_total': ('counter', 'Bytes that came from it.', 'statistics.bytesDownloaded'),
    'polls_total': ('counter', 'Looks for remote changes.', 'statistics.polls'),
    'last_poll_timestamp_seconds': ('gauge', 'When the bucket was last looked at.', 'status.remote.lastPoll'),
    'store_error': ('gauge', '1 while the bucket cannot be read.', 'status.remote.error'),
    'remote_objects': ('gauge', 'Objects in the last listing.', 'status.remote.objects'),
    'known_inodes': ('gauge', 'Files and directories that the kernel refers to.', 'statistics.inodes.known'),
    'unhardened_files': ('gauge', 'Files with bytes that a power cut may lose.', 'statistics.durability.unhardened'),
    'workers': ('gauge', 'Transfer workers.', 'statistics.workers.workers'),
    'worker_restarts_total': ('counter', 'Transfer workers that died and were replaced.', 'statistics.workers.restarts'),
    'upload_limit_bytes_per_second': ('gauge', 'The bound on bytes sent; none where it is missing.', 'status.limits.uploadBytes'),
    'download_limit_bytes_per_second': ('gauge', 'The bound on bytes received.', 'status.limits.downloadBytes'),
    'requests_in_flight': ('gauge', 'Operations that transfer workers are at.', 'statistics.workers.inFlight'),
    'audit_lost_lines_total': ('counter', 'Lines that the audit log could not take.', 'status.audit.lost'),
    'quarantined_files': ('gauge', 'Files that a power cut left in doubt.', 'status.quarantine.files'),
}
#: (name, help, label, where the values of that label are, the number of each)
_LABELLED = (
    ('operations_total', 'Operations of the transfer workers.', 'operation', 'statistics.operations', 'calls'),
    ('operation_failures_total', 'Those that failed.', 'operation', 'statistics.operations', 'failed'),
    ('requests_total', 'Requests to the store.', 'kind', 'statistics.requests', 'count'),
    ('request_errors_total', 'Requests without an answer, or with one that tells of a fault.', 'kind', 'statistics.requests', 'errors'),
    ('request_retries_total', 'Requests that were made again.', 'kind', 'statistics.requests', 'retries'),
    ('request_sent_bytes_total', 'Bytes of the bodies of requests.', 'kind', 'statistics.requests', 'bytesSent'),
    ('request_received_bytes_total', 'Bytes of the bodies of answers.', 'kind', 'statistics.requests', 'bytesReceived'),
)


class Reading(NamedTuple):
    """One mount. `answers`: {"status": …, "statistics": …}; None for one whose daemon died, or does not answer."""
    labels: dict[str, str]
    answers: dict[str, Any] | None


def labels_of(context_id: str, context_name: str, mountpoint: str) -> dict[str, str]:
    """Of one mount, on all its metrics."""
    return {'context_id': context_id, 'context': context_name, 'mountpoint': mountpoint}


class Sample(NamedTuple):
    suffix: str
    labels: dict[str, str]
    value: float


class Family(NamedTuple):
    """One metric of all mounts. `name` is without `_total`, which is a counter's suffix."""
    name: str
    kind: str
    text: str
    samples: list[Sample]


def families(readings: Iterable[Reading]) -> Iterator[Family]:
    """Those that anybody has a number for."""
    readings = list(readings)
    running = [(r.labels, r.answers) for r in readings if r.answers is not None]
    yield from _family('up', 'gauge', 'Whether the daemon of the mount answers.', [(r.labels, 0 if r.answers is None else 1) for r in readings])
    for name, (kind, text, path) in _METRICS.items():
        yield from _family(name, kind, text, [
            (labels, number) for labels, answers in running if (number := _number(_at(answers, path))) is not None])
    for name, text, label, path, key in _LABELLED:
        yield from _family(name, 'counter', text, [
            ({**labels, label: each}, counts.get(key, 0)) for labels, answers in running
            for each, counts in sorted((_at(answers, path) or {}).items())])
    samples = [sample for labels, answers in running for kind, counts in sorted((_at(answers, 'statistics.requests') or {}).items())
               for sample in _histogram({**labels, 'kind': kind}, counts)]
    if samples:
        yield Family('ctxfs_request_duration_seconds', 'histogram', 'How long requests to the store took.', samples)


def _family(name: str, kind: str, text: str, samples: list[tuple[dict[str, str], float]]) -> Iterator[Family]:
    if samples:
        suffix = '_total' if kind == 'counter' else ''
        yield Family(f'ctxfs_{name}'.removesuffix(suffix), kind, text, [Sample(suffix, labels, value) for labels, value in samples])


def _histogram(labels: dict[str, str], counts: dict[str, Any]) -> Iterator[Sample]:
    for bound, count in counts.get('times', ()):
        yield Sample('_bucket', {**labels, 'le': '+Inf' if bound is None else f'{float(bound)}'}, count)
    yield Sample('_sum', labels, counts.get('seconds', 0))
    yield Sample('_count', labels, counts.get('count', 0))


def render(readings: Iterable[Reading], *, is_open: bool = False) -> Iterator[str]:
    """Lines, without their ends; `is_open`: in the OpenMetrics format."""
    for family in families(readings):
        name = family.name if is_open or family.kind != 'counter' else f'{family.name}_total'
        yield f'# HELP {name} {family.text}'
        yield f'# TYPE {name} {family.kind}'
        for suffix, labels, value in family.samples:
            yield f'{family.name}{suffix}{{{",".join(f"{key}={_quoted(label)}" for key, label in labels.items())}}} {value:.15g}'
    if is_open:
        yield '# EOF'


def _at(answers: Any, path: str) -> Any:
    for key in path.split('.'):
        answers = answers.get(key) if isinstance(answers, dict) else None
    return answers


def _number(value: Any) -> float | None:
    """A text that says why something is so counts as 1."""
    if isinstance(value, str):
        return float(bool(value))
    return float(value) if isinstance(value, int | float) else None


def _quoted(label: str) -> str:
    text = label.encode('utf-8', 'backslashreplace').decode()
    return '"' + text.replace('\\', '\\\\').replace('"', '\\"').replace('\n', '\\n') + '"'
