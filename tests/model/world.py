"""A mount and a local directory that must not be told apart, and the operations that turn the mount over.

Owns the comparison after every step and the meaning of an upheaval: unmounting, another host, `kill -9`. It must not know how
operations are chosen: the state machine draws them, a regression lists them.
"""
from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence

from tests.model import observe
from tests.model.hosts import Host, Site
from tests.model.operations import Operation, Outcome, Side, perform

CONTEXT = 'model'


class Divergence(AssertionError):
    """The mount did something else than the local directory; the message ends with the program that shows it."""


class World:
    """One context of one site beside one local directory. `close()` leaves neither mount nor open handle."""

    def __init__(self, site: Site, *, options: Sequence[str] = ()) -> None:
        """`options`: of the first mount, which creates the context."""
        self._site = site
        self._at = site.mount_point()
        local = site.work / 'local'
        local.mkdir()
        self.since_ns = time.time_ns()
        self.trace: list[Operation] = []
        self._host: Host = site.host()
        self._host.mount(CONTEXT, self._at, create=True, options=options)
        self._is_mounted = True
        self.mounted = Side(os.fsencode(self._at))
        self.local = Side(os.fsencode(local))
        self.known: observe.Tree = {}
        self._upheavals: dict[str, Callable[..., None]] = {
            'remount': self._remount, 'other_host': self._other_host, 'kill9': self._kill9}

    # -- steps ---------------------------------------------------------------------------------------------------------------------

    def apply(self, operation: Operation) -> Outcome | None:
        """Perform one operation on both sides and compare everything. Raises Divergence."""
        self.trace.append(operation)
        try:
            if operation[0] in self._upheavals:
                self._upheavals[operation[0]](*operation[1:])
                outcome = None
            else:
                outcome = self._both(operation)
            self.compare()
        except Divergence:
            raise
        except AssertionError as e:
            raise self._divergence(str(e)) from e
        return outcome

    def _both(self, operation: Operation) -> Outcome:
        want = perform(self.local, operation)
        got = perform(self.mounted, operation)
        if got != want:
            raise self._divergence(f'{operation[0]} answered {got}, should answer {want}')
        return want

    def compare(self) -> None:
        want = observe.snapshot(self.local.root)
        got = observe.snapshot(self.mounted.root)
        lines = observe.differences(got, want, since_ns=self.since_ns) + self._handle_differences()
        links = os.lstat(self.mounted.root).st_nlink, os.lstat(self.local.root).st_nlink
        if links[0] != links[1]:
            lines.append(f'the root has {links[0]} links, should have {links[1]}')
        if lines:
            raise self._divergence('\n'.join(lines))
        self.known = want

    def _handle_differences(self) -> list[str]:
        lines = []
        for slot, fd in self.local.handles.items():
            readable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY
            want = observe.handle_state(fd, readable)
            got = observe.handle_state(self.mounted.handles[slot], readable)
            if got != want:
                lines.append(f'handle {slot} shows (mode, nlink, uid, gid, size, content) {got!r:.200}, should show {want!r:.200}')
        return lines

    def _divergence(self, what: str) -> Divergence:
        program = ',\n    '.join(map(repr, self.trace))
        return Divergence(f'{what}\n\nafter {len(self.trace)} operations, replay([\n    {program}])')

    # -- upheavals -----------------------------------------------------------------------------------------------------------------

    def _remount(self) -> None:
        """Unmount and mount again on the same host."""
        self._turn_over(lambda: self._unmount(self._host), self._host)

    def _other_host(self, index: int) -> None:
        """Mount elsewhere: `index` 0 is a host that never saw the store, others are those that had it mounted before.

        Fifos and sockets belong to one host and are not stored, so they go first; natural times of directories stay behind too.
        """
        for path, entry in sorted(self.known.items()):
            if stat.S_ISFIFO(entry.type) or stat.S_ISSOCK(entry.type):
                self._both(('unlink', path))
        target = self._site.host() if index == 0 or len(self._site.hosts) == 1 else self._site.hosts[(index - 1) % len(self._site.hosts)]
        self._turn_over(lambda: self._unmount(self._host), target, directory_times=False)

    def _kill9(self, fsync: bool) -> None:
        """SIGKILL to the daemon: what was closed must survive; with `fsync` handles are synced and still open when it happens."""
        if fsync:
            for slot in sorted(self.local.handles):
                self._both(('fsync', slot))
        self._turn_over(lambda: self._kill(self._host), self._host, close_first=not fsync)

    def _turn_over(self, take_down: Callable[[], None], target: Host, *, close_first: bool = True, directory_times: bool = True) -> None:
        if close_first:
            for slot in sorted(self.local.handles):
                self._both(('close', slot))
        before = observe.snapshot(self.mounted.root)
        take_down()
        self.local.close_all()
        for slot in sorted(self.mounted.handles):
            _close_lost(self.mounted.handles.pop(slot))
        target.mount(CONTEXT, self._at)
        self._is_mounted, self._host = True, target
        lines = observe.differences(observe.snapshot(self.mounted.root), before, directory_times=directory_times)
        if lines:
            raise self._divergence('\n'.join(['before and after the upheaval differ:', *lines]))

    def _unmount(self, host: Host) -> None:
        host.unmount(self._at)
        self._is_mounted = False

    def _kill(self, host: Host) -> None:
        host.kill9(self._at)
        self._is_mounted = False

    def close(self) -> None:
        self.local.close_all()
        for slot in sorted(self.mounted.handles):
            _close_lost(self.mounted.handles.pop(slot))
        if self._is_mounted:
            self._unmount(self._host)


def _close_lost(fd: int) -> None:
    """Close a handle whose daemon may be dead: close(2) then fails with the mount's errno, and has closed it all the same."""
    try:
        os.close(fd)
    except OSError:
        return


def replay(site: Site, operations: Iterable[Operation], *, options: Sequence[str] = ()) -> None:
    """Run a program that a Divergence printed, or that a regression keeps."""
    world = World(site, options=options)
    try:
        for operation in operations:
            world.apply(operation)
    finally:
        world.close()
