"""Prometheus's text format (version 0.0.4) of what mounts answer to `status` and `statistics`.

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
    'requests_in_flight': ('gauge', 'Operations that transfer workers are at.', 'statistics.workers.inFlight'),
    'audit_lost_lines_total': ('counter', 'Lines that the audit log could not take.', 'status.audit.lost'),
    'quarantined_files': ('gauge', 'Files that a power cut left in doubt.', 'status.quarantine.files'),
}


class Reading(NamedTuple):
    """One mount. `answers`: {"status": …, "statistics": …}; None for one whose daemon died, or does not answer."""
    labels: dict[str, str]
    answers: dict[str, Any] | None


def render(readings: Iterable[Reading]) -> Iterator[str]:
    """Lines, without their ends."""
    readings = list(readings)
    yield from _family('up', 'gauge', 'Whether the daemon of the mount answers.', [(r.labels, 0 if r.answers is None else 1) for r in readings])
    running = [(r.labels, r.answers) for r in readings if r.answers is not None]
    for name, (kind, text, path) in _METRICS.items():
        found = [(labels, number) for labels, answers in running if (number := _number(_at(answers, path))) is not None]
        yield from _family(name, kind, text, found)
    for name, text, key in (('operations_total', 'Operations of the transfer workers.', 'calls'),
                            ('operation_failures_total', 'Those that failed.', 'failed')):
        yield from _family(name, 'counter', text, [
            ({**labels, 'operation': operation}, counts.get(key, 0)) for labels, answers in running
            for operation, counts in sorted((_at(answers, 'statistics.operations') or {}).items())])


def _family(name: str, kind: str, text: str, samples: list[tuple[dict[str, str], float]]) -> Iterator[str]:
    if not samples:
        return
    yield f'# HELP ctxfs_{name} {text}'
    yield f'# TYPE ctxfs_{name} {kind}'
    for labels, value in samples:
        yield f'ctxfs_{name}{{{",".join(f"{key}={_quoted(label)}" for key, label in labels.items())}}} {value:.15g}'


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
