"""Sync tasks: what the engine did and does, in the terms of AgentBay's ContextStatusData.

Owns the records and their life (Pending → Running → Success or Failed; only the last two are terminal) and a bounded history. It must
not know how anything is transferred.
"""
from __future__ import annotations

import time
from collections import deque
from typing import Any

HISTORY = 32


class SyncTask:
    """One upload or download task. Times in Unix seconds, as AgentBay's (0: not yet)."""

    def __init__(self, *, context_id: str, path: str, task_type: str) -> None:
        self.context_id = context_id
        self.path = path
        self.task_type = task_type
        self.status = 'Pending'
        self.start_time = 0.0
        self.finish_time = 0.0
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

    def finish(self, error: str = '') -> None:
        self.status = 'Failed' if error else 'Success'
        self.error_message = error
        self.finish_time = time.time()
        self.next_retry = 0.0

    @property
    def is_terminal(self) -> bool:
        return self.status in ('Success', 'Failed')

    def to_dict(self) -> dict[str, Any]:
        return {'contextId': self.context_id, 'path': self.path, 'taskType': self.task_type, 'status': self.status,
                'startTime': int(self.start_time), 'finishTime': int(self.finish_time), 'errorMessage': self.error_message,
                'bytesDone': self.bytes_done, 'bytesTotal': self.bytes_total, 'filesDone': self.files_done,
                'filesTotal': self.files_total, 'attempt': self.attempt, 'nextRetry': self.next_retry}


class TaskLog:
    """The running tasks and the last HISTORY of all."""

    def __init__(self, *, context_id: str, path: str) -> None:
        self._context_id = context_id
        self._path = path
        self._tasks: deque[SyncTask] = deque(maxlen=HISTORY)

    def begin(self, task_type: str) -> SyncTask:
        task = SyncTask(context_id=self._context_id, path=self._path, task_type=task_type)
        task.start()
        self._tasks.append(task)
        return task

    def to_list(self) -> list[dict[str, Any]]:
        return [task.to_dict() for task in self._tasks]
