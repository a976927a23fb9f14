"""Sync tasks: what the engine did and does, in the terms of AgentBay's ContextStatusData.

Owns the records and their life (Pending → Running → Success or Failed; only the last two are terminal) and a bounded history. It must
not know how anything is transferred.
"""
from __future__ import annotations

import time
from collections import deque
from typing import Any

from ctxfs.sync.events import Publish, unheard

HISTORY = 32


class SyncTask:
    """One upload or download task. Times in Unix seconds, as AgentBay's (0: not yet)."""

    def __init__(self, *, context_id: str, path: str, task_type: str, publish: Publish = unheard) -> None:
        self.context_id = context_id
        self.path = path
        self.task_type = task_type
        self._publish = publish
        self.status = 'Pending'
        self.start_time = 0.0
        self.finish_time = 0.0
        #: why it failed; while it runs: why its last try did, or what failed so far in this one
        self.error_message = ''
        self.bytes_done = 0
        self.bytes_total = 0
        self.files_done = 0
        self.files_total = 0
        self.attempt = 1
        self.next_retry = 0.0

    def start(self) -> None:
        self.status = 'Running'
        self.start_time = time.time()
        self._publish('task-began', **self.to_dict())

    def finish(self, error: str = '') -> None:
        self.status = 'Failed' if error else 'Success'
        self.error_message = error
        self.finish_time = time.time()
        self.next_retry = 0.0
        self._publish('task-ended', **self.to_dict())

    @property
    def is_terminal(self) -> bool:
        return self.status in ('Success', 'Failed')

    def to_dict(self) -> dict[str, Any]:
        return {'contextId': self.context_id, 'path': self.path, 'taskType': self.task_type, 'status': self.status,
                'startTime': int(self.start_time), 'finishTime': int(self.finish_time), 'errorMessage': self.error_message,
                'bytesDone': self.bytes_done, 'bytesTotal': self.bytes_total, 'filesDone': self.files_done,
                'filesTotal': self.files_total, 'attempt': self.attempt, 'nextRetry': self.next_retry}


class TaskLog:
    """The running tasks and, of the others, the last HISTORY."""

    def __init__(self, *, context_id: str, path: str, publish: Publish = unheard) -> None:
        self._context_id = context_id
        self._path = path
        self._publish = publish
        self._tasks: deque[SyncTask] = deque()
        self._ended: dict[str, int] = {}

    def begin(self, task_type: str) -> SyncTask:
        """A task that runs from now on."""
        while len(self._tasks) >= HISTORY and (oldest := next((task for task in self._tasks if task.is_terminal), None)):
            self._tasks.remove(oldest)
        task = SyncTask(context_id=self._context_id, path=self._path, task_type=task_type, publish=self._note)
        self._tasks.append(task)
        task.start()
        return task

    def _note(self, kind: str, **data: Any) -> None:
        if kind == 'task-ended':
            self._ended[data['taskType']] = self.ended_of(data['taskType']) + 1
        self._publish(kind, **data)

    @property
    def ended(self) -> int:
        """How many have ended so far."""
        return sum(self._ended.values())

    def ended_of(self, task_type: str) -> int:
        return self._ended.get(task_type, 0)

    @property
    def running(self) -> list[SyncTask]:
        return [task for task in self._tasks if not task.is_terminal]

    def to_list(self) -> list[dict[str, Any]]:
        """Of all that are kept, oldest first, as AgentBay's ContextStatusData."""
        return [task.to_dict() for task in self._tasks]
