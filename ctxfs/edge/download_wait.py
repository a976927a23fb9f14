"""`ctxfs mount --wait-download`: waiting until a new mount has everything in its cache.

Owns that wait. It must not print: progress goes to the callable it was given.
"""
from __future__ import annotations

from typing import Any

from ctxfs.edge.client import ControlClient, NoAnswer
from ctxfs.edge.flush_wait import Report, ask_status
from ctxfs.edge.runtime_dir import Mount, Pending
from ctxfs.errors import CtxfsError

REPORT_SECONDS = 0.5


def wait_for_download(mount: Mount, *, report: Report) -> str:
    """Until the daemon says that the warm-up is done; returns what a person should know, mostly ''. Raises CtxfsError with the cause where
    it fails, or DaemonGone."""
    with ControlClient(mount.socket) as client:
        client.send('wait', what='download')
        while True:
            try:
                answer = client.receive(REPORT_SECONDS)
                break
            except NoAnswer:
                status = ask_status(mount)
                if status is not None:
                    report(mount, left_to_download(status))
    if not answer.get('ok'):
        raise CtxfsError(f'{mount.record.mountpoint} is mounted, but not everything is downloaded: {answer.get("message")}')
    return str(answer.get('message') or '')


def left_to_download(status: dict[str, Any]) -> Pending:
    """Of the download tasks that are not ended."""
    running = [task for task in status.get('tasks') or [] if task.get('taskType') == 'download' and not task.get('finishTime')]
    return Pending(files=sum(max(0, task['filesTotal'] - task['filesDone']) for task in running),
                   bytes=sum(max(0, task['bytesTotal'] - task['bytesDone']) for task in running))
