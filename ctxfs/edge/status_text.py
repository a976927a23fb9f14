"""`ctxfs status` for people: a block for each mount, a line for each thing that is not as usual.

Owns the words. It must not ask anybody: it renders what `status` answers, also of older daemons that say less.
"""
from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ctxfs.durations import spell_duration
from ctxfs.edge.cli_common import human_bytes, human_files, human_seconds, printable

#: so many failed files and odd keys are listed for people; JSON has more
MAX_LISTED = 20


def render(mounts: list[dict[str, Any]]) -> Iterator[str]:
    if not mounts:
        yield 'nothing is mounted'
    for number, mount in enumerate(mounts):
        if number:
            yield ''
        yield from _mount(mount)


def _mount(mount: dict[str, Any]) -> Iterator[str]:
    pid = f', pid {mount["pid"]}' if mount.get('pid') else ''
    is_read_only = ', read-only' if mount.get('readOnly') else ''
    yield printable(f'{mount["contextName"]} ({mount["contextId"]}) at {mount["mountpoint"]}: {mount.get("state", "mounted")}{is_read_only}{pid}')
    yield from _line('store', mount['store'])
    yield from _line('note', mount.get('message'))
    yield from _line('damaged', mount.get('damage'))
    yield from _line('policy', _policy(mount.get('policy')))
    if mount.get('paused'):
        yield from _line('paused', f'nothing begins by itself until ctxfs resume {mount["contextName"]}')
    yield from _line('limits', _limits(mount.get('limits') or {}))
    yield from _line('pending', _pending(mount))
    if (mount.get('lag') or {}).get('alarm'):
        yield from _line('late', f'the oldest change waits longer than {human_seconds(mount["lag"]["limit"])}')
    yield from _line('full', (mount.get('cache') or {}).get('full'))
    for task in mount.get('tasks', ()):
        if task.get('status') == 'Running' and is_telling(task):
            yield from _line(task['taskType'], progress_of(task, mount.get('rates') or {}))
    local = mount.get('localOnly') or {}
    if local.get('files'):
        yield from _line('local', f'{human_files(local["files"])} ({human_bytes(local["bytes"])}) stay on this host')
    if mount.get('conflicts'):
        yield from _line('conflicts', f'{mount["conflicts"]}; see ctxfs conflicts {mount["contextName"]} list')
    yield from _remote(mount.get('remote') or {})
    yield from _line('audit', _audit(mount.get('audit') or {}))
    if kept := mount.get('quarantine'):
        yield from _line('kept', f'{human_files(kept["files"])} that a power cut or a lost database left in doubt, in {kept["directory"]}')
    yield from _listed('failed', [failure_of(entry) for entry in failures_of(mount)], mount.get('failedFiles', 0))
    yield from _listed('hidden', [f'{entry["key"]}: {entry["reason"]}' for entry in mount.get('unmountable', ())])


def _line(label: str, text: str | None) -> Iterator[str]:
    if text:
        yield f'  {label:9} {printable(text)}'


def _listed(label: str, lines: list[str], total: int = 0) -> Iterator[str]:
    shown = lines[:MAX_LISTED]
    for number, line in enumerate(shown):
        yield f'  {label if number == 0 else "":9} {printable(line)}'
    left = max(total, len(lines)) - len(shown)
    if left > 0:
        yield f'  {"":9} and {left} more'


def _policy(policy: dict[str, Any] | None) -> str | None:
    """`uploads 60 s after a change, 2 white lists (context)`."""
    if not policy:
        return None
    period = policy.get('period')
    when = ('only by ctxfs sync' if not policy.get('autoUpload') else 'on unmount' if period is None
            else 'when a file is closed' if period == 0 else f'{spell_duration(period)} after a change')
    parts = [f'uploads {when}']
    if policy.get('whiteLists'):
        parts.append(f'{policy["whiteLists"]} white list{"" if policy["whiteLists"] == 1 else "s"}')
    if not policy.get('autoDownload'):
        parts.append('remote changes only by ctxfs sync --mode download')
    return f'{", ".join(parts)} ({policy.get("source", "default")})'


def _limits(limits: dict[str, Any]) -> str:
    """`uploads 10.0 MiB/s, 4 transfers`."""
    parts = [f'{what}s {human_bytes(limits[f"{what}Bytes"])}/s' for what in ('upload', 'download') if limits.get(f'{what}Bytes')]
    if number := limits.get('transfers'):
        parts.append(f'{number} transfer{"" if number == 1 else "s"} at once')
    return ', '.join(parts)


def _pending(mount: dict[str, Any]) -> str:
    pending = mount['pending']
    if not pending.get('files'):
        return 'nothing'
    parts = [f'{human_files(pending["files"])} ({human_bytes(pending["bytes"])})']
    if pending.get('oldestSeconds'):
        parts.append(f'the oldest for {human_seconds(pending["oldestSeconds"])}')
    is_uploading = any(task.get('taskType') == 'upload' and task.get('status') == 'Running' for task in mount.get('tasks', ()))
    if mount.get('nextUpload') and not is_uploading:
        left = mount['nextUpload'] - time.time()
        parts.append(f'next upload in {human_seconds(left)}' if left >= 0.5 else 'next upload now')
    return ', '.join(parts)


def _audit(audit: dict[str, Any]) -> str | None:
    """Only what an operator should look at."""
    if audit.get('error'):
        return f'{audit["path"]} cannot be written: {audit["error"]}; {audit["lost"]} lines are missing'
    return f'{audit["lost"]} lines are missing in {audit["path"]}' if audit.get('lost') else None


def _remote(remote: dict[str, Any]) -> Iterator[str]:
    if remote.get('error'):
        yield from _line('bucket', f'cannot be read: {remote["error"]}')
    elif remote and not remote.get('isComplete', True):
        yield from _line('bucket', f'is being listed: {remote.get("objects", 0)} objects so far')


# --- tasks -------------------------------------------------------------------------------------------------------------------------

def is_telling(task: dict[str, Any]) -> bool:
    """Whether it is known how much the task has to do."""
    return bool(task.get('filesTotal') or task.get('bytesTotal'))


def fraction_of(task: dict[str, Any]) -> float:
    """Half by files, half by bytes: many small files and a few big ones both move it."""
    parts = [min(1.0, task[f'{what}Done'] / task[f'{what}Total']) for what in ('files', 'bytes') if task.get(f'{what}Total')]
    return sum(parts) / len(parts) if parts else 0.0


def progress_of(task: dict[str, Any], rates: dict[str, float]) -> str:
    """`45 %, 12 of 30 files, 1.0 MiB of 3.4 MiB, 1.2 MiB/s, 12 s left`."""
    done = fraction_of(task)
    parts = [f'{100 * done:.0f} %', f'{task["filesDone"]} of {human_files(task["filesTotal"])}']
    if task.get('bytesTotal'):
        parts.append(f'{human_bytes(task["bytesDone"])} of {human_bytes(task["bytesTotal"])}')
    rate = rates.get(f'{task["taskType"]}Bytes', 0)
    if rate:
        parts.append(f'{human_bytes(rate)}/s')
    if task.get('nextRetry', 0) > time.time():
        parts.append(f'attempt {task["attempt"] + 1} in {human_seconds(task["nextRetry"] - time.time())}')
    elif (left := eta(done, time.time() - task['startTime'])) is not None:
        parts.append(f'{human_seconds(left)} left')
    return ', '.join(parts)


def eta(done: float, elapsed: float) -> float | None:
    """Seconds that the rest takes when it goes on like this; None while too little is done to say."""
    return elapsed * (1 - done) / done if 0.02 < done < 1 and elapsed > 1 else None


# --- failures ----------------------------------------------------------------------------------------------------------------------

def failures_of(mount: dict[str, Any]) -> list[dict[str, Any]]:
    """Of files; where no file failed, of the last task that has ended, or whose last try failed."""
    if mount.get('failed'):
        return list(mount['failed'])
    told = [task for task in mount.get('tasks', ()) if task.get('status') in ('Success', 'Failed') or task.get('errorMessage')]
    return [{**told[-1], 'error': told[-1]['errorMessage']}] if told and told[-1].get('errorMessage') else []


def failure_of(entry: dict[str, Any]) -> str:
    """`/src/a: CAUSE (attempt 3, next in 12 s)`."""
    notes = [f'attempt {entry["attempt"]}'] if entry.get('attempt') else []
    if entry.get('nextRetry'):
        notes.append(f'next in {human_seconds(max(0.0, entry["nextRetry"] - time.time()))}')
    return f'{entry.get("path") or "/"}: {entry["error"]}' + (f' ({", ".join(notes)})' if notes else '')
