"""One transfer worker as the daemon sees it: a child process and the daemon's end of the socket pair to it.

Owns the process (start, end, reaping) and the bytes on the socket. It must not know what the frames mean, which requests are pending, or
when a worker is to be started again: pool.py does.
"""
from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence

import trio

from ctxfs.sync import same_code, spare_worker
from ctxfs.sync.frames import FrameReader

_RECEIVE_BYTES = 256 << 10
#: a child that was sent SIGKILL is gone within this, or is stuck in the kernel where nobody can help
_REAP_SECONDS = 5.0


class WorkerProcess:
    """A started child. `load` counts the requests it is working on, of these `background` and `bulk` by their priority; they belong to the
    pool's gate."""

    def __init__(self, number: int, *, slots_fd: int, board_fd: int, keep_fds: Sequence[int] = (), without: Sequence[str] = ()) -> None:
        """Start the child, in this environment `without` some variables; `number`: its place on the board. To be called from
        the main thread: PR_SET_PDEATHSIG fires when the *thread* that forked ends."""
        self.load = 0
        self.background = 0
        self.bulk = 0
        self.is_ready = False
        self._outgoing = bytearray()
        self._has_outgoing = trio.Event()
        self._frames = FrameReader()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = _spawn([theirs.fileno(), slots_fd, os.getpid(), board_fd, number], [theirs.fileno(), slots_fd, board_fd, *keep_fds],
                                       without)
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        self._socket = ours

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, data: bytes) -> None:
        """Hand frames to the kernel, or keep what it does not take now for `flush_forever`. Never blocks, never raises: a worker that is
        gone is noticed by `receive`."""
        if self._outgoing:
            self._outgoing += data
            return
        sent = self._send_now(data)
        if sent < len(data):
            self._outgoing += data[sent:]
            self._has_outgoing.set()

    def _send_now(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:  # EPIPE, ECONNRESET: the child is dead; its requests fail when `receive` sees the end of file
            return len(data)

    async def flush_forever(self) -> None:
        """Send what `send` had to keep, as the child takes it."""
        while True:
            await self._has_outgoing.wait()
            await trio.lowlevel.wait_writable(self._socket)
            del self._outgoing[:self._send_now(self._outgoing)]
            if not self._outgoing:
                self._has_outgoing = trio.Event()

    async def receive(self) -> list[bytes] | None:
        """The frames that arrived, at least one; None when the child closed its end or died. Raises Corrupted."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError:  # ECONNRESET: it died with unread requests
                return None
            if not data:
                return None
            bodies = self._frames.feed(data)
            if bodies:
                return bodies

    def ask_to_end(self) -> None:
        """No request comes any more: the child answers what it has, then exits."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:  # ENOTCONN: it is dead already, which is what was asked for
            return

    def kill(self) -> None:
        self._process.kill()

    async def reap(self) -> int | None:
        """SIGKILL if it still runs, collect it, close the socket. The exit status, or None if the kernel would not let it go."""
        self.kill()
        try:
            return await trio.to_thread.run_sync(self._wait)
        finally:
            self._socket.close()

    def _wait(self) -> int | None:
        try:
            return self._process.wait(_REAP_SECONDS)
        except subprocess.TimeoutExpired:
            return None


def _spawn(numbers: Sequence[int], fds: Sequence[int], without: Sequence[str]) -> subprocess.Popen[bytes]:
    """The first three `fds` are named in the arguments. All stay open in the child for as long as it lives, also those that it does not use: the
    state directory's lock is one."""
    _, _, parent_pid, _, number = numbers
    spare = spare_worker.hand_over(fds, parent_pid=parent_pid, number=number) if not without else None
    return spare or spare_worker.execute([*map(str, numbers), same_code.MINE], fds, without)
