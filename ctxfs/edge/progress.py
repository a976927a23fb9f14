"""Progress on stderr: a bar on a terminal, now and then a line elsewhere, nothing at all for work that is soon done.

Owns how progress looks. It must not know what is waited for: it is told how much is left.
"""
from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from ctxfs.edge.cli_common import human_bytes, human_files
from ctxfs.edge.runtime_dir import Mount, Pending

LINE_SECONDS = 5.0


class Progress:
    """A context manager whose update() fits flush_wait.Report."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._is_terminal = sys.stderr.isatty()
        self._last_line_at = time.monotonic()
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._most: dict[str, Pending] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, mount: Mount, pending: Pending) -> None:
        if self._quiet or not pending.files:
            return
        if self._is_terminal:
            self._update_bar(mount.record.context_name, pending)
        elif time.monotonic() - self._last_line_at >= LINE_SECONDS:
            self._last_line_at = time.monotonic()
            print(f'{mount.record.context_name}: {human_files(pending.files)} ({human_bytes(pending.bytes)}) left', file=sys.stderr)

    def _update_bar(self, name: str, pending: Pending) -> None:
        if self._bar is None:
            self._bar = _new_bar()
            self._bar.start()
        most = self._most.get(name, pending)
        self._most[name] = most = Pending(files=max(most.files, pending.files), bytes=max(most.bytes, pending.bytes))
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(name, total=1.0, left='')
        # half by files, half by bytes: many small files and a few big ones both move the bar
        left = (pending.files / most.files + (pending.bytes / most.bytes if most.bytes else 0)) / (2 if most.bytes else 1)
        self._bar.update(self._tasks[name], completed=1.0 - left, left=f'{human_files(pending.files)}, {human_bytes(pending.bytes)} left')


def _new_bar() -> Any:
    from rich.console import Console  # 60 ms of import that only a terminal needs
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress
    name, left = TextColumn('{task.description}', markup=False), TextColumn('{task.fields[left]}', markup=False)
    return RichProgress(name, BarColumn(), left, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
