"""Progress on stderr: a bar on a terminal, now and then a line elsewhere, nothing at all for work that is soon done.

Owns how progress looks: what is left, how fast it goes, how long it takes. It must not know what is waited for: it is told how much is left.
"""
from __future__ import annotations

import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ctxfs.edge.cli_common import human_bytes, human_files, human_seconds
from ctxfs.edge.runtime_dir import Mount, Pending
from ctxfs.edge.status_text import eta

LINE_SECONDS = 5.0
#: seconds over which the rate is taken
RATE_SECONDS = 5.0


class Course:
    """One mount's way from the most that was left to nothing. `clock`: seconds, monotonic."""

    def __init__(self, first: Pending, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._most = first
        self._seen: deque[tuple[float, int]] = deque([(self._began, first.bytes)])
        self.left = first

    def note(self, left: Pending) -> None:
        self.left = left
        self._most = Pending(files=max(self._most.files, left.files), bytes=max(self._most.bytes, left.bytes))
        now = self._clock()
        self._seen.append((now, left.bytes))
        while len(self._seen) > 2 and now - self._seen[1][0] >= RATE_SECONDS:
            self._seen.popleft()

    @property
    def done(self) -> float:
        """Half by files, half by bytes: many small files and a few big ones both move the bar."""
        parts = [1 - left / most for left, most in ((self.left.files, self._most.files), (self.left.bytes, self._most.bytes)) if most]
        return sum(parts) / len(parts) if parts else 1.0

    def rate(self) -> float:
        """Bytes a second; what was added meanwhile does not count against it."""
        pairs = list(self._seen)
        moved = sum(max(0, before - after) for (_, before), (_, after) in itertools.pairwise(pairs))
        return moved / max(1e-9, pairs[-1][0] - pairs[0][0])

    def text(self) -> str:
        """`4 files, 1.0 MiB left, 1.2 MiB/s, 12 s`."""
        parts = [human_files(self.left.files), f'{human_bytes(self.left.bytes)} left']
        rate = self.rate()
        if rate >= 1:
            parts.append(f'{human_bytes(rate)}/s')
        seconds = eta(self.done, self._clock() - self._began)
        if seconds is not None:
            parts.append(human_seconds(seconds))
        return ', '.join(parts)


class Progress:
    """A context manager whose update() fits flush_wait.Report."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._is_terminal = sys.stderr.isatty()
        self._last_line_at = time.monotonic()
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._courses: dict[str, Course] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, mount: Mount, pending: Pending) -> None:
        if self._quiet or not pending.files:
            return
        # one context may be mounted at several places, with several state directories
        course = self._courses.setdefault(mount.record.state_dir, Course(pending))
        course.note(pending)
        if self._is_terminal:
            self._update_bar(mount, course)
        elif time.monotonic() - self._last_line_at >= LINE_SECONDS:
            self._last_line_at = time.monotonic()
            print(f'{mount.record.context_name}: {course.text()}', file=sys.stderr)

    def _update_bar(self, mount: Mount, course: Course) -> None:
        if self._bar is None:
            self._bar = _new_bar()
            self._bar.start()
        place = mount.record.state_dir
        if place not in self._tasks:
            self._tasks[place] = self._bar.add_task(mount.record.context_name, total=1.0, left='')
        self._bar.update(self._tasks[place], completed=course.done, left=course.text())


class Transfer:
    """One piece of work of this process: called with so many more files and bytes, by any thread. `left`: what there is to do, where that is
    known."""

    def __init__(self, name: str, left: Pending | None = None, *, quiet: bool = False) -> None:
        self._name = name
        self._course = Course(left) if left is not None else None
        self._left = left or Pending(files=0, bytes=0)
        self._quiet = quiet
        self._is_terminal = sys.stderr.isatty()
        self._last_line_at = time.monotonic()
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, files: int, size: int = 0) -> None:
        with self._lock:
            self._left = Pending(files=self._left.files - files, bytes=self._left.bytes - size)
            if self._course is not None:
                self._course.note(Pending(files=max(0, self._left.files), bytes=max(0, self._left.bytes)))
            if not self._quiet:
                self._show()

    def _text(self) -> str:
        return self._course.text() if self._course is not None else human_files(-self._left.files)

    def _show(self) -> None:
        if self._is_terminal:
            if self._bar is None:
                self._bar = _new_bar()
                self._bar.start()
                self._task = self._bar.add_task(self._name, total=1.0 if self._course is not None else None, left='')
            self._bar.update(self._task, completed=self._course.done if self._course is not None else None, left=self._text())
        elif time.monotonic() - self._last_line_at >= LINE_SECONDS:
            self._last_line_at = time.monotonic()
            print(f'{self._name}: {self._text()}', file=sys.stderr)


def _new_bar() -> Any:
    from rich.console import Console  # 60 ms of import that only a terminal needs
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress
    name, left = TextColumn('{task.description}', markup=False), TextColumn('{task.fields[left]}', markup=False)
    return RichProgress(name, BarColumn(), left, console=Console(stderr=True), transient=True)
