"""A transfer worker: the process that moves bytes between local files and the store, so that the daemon's interpreter does not.

Owns the process side of the pipe: its life (it dies with the daemon), its threads, one `Channel` for each request, and the translation of
errors. It must not know what an operation does (worker_ops*.py), nor schedules or retries (the daemon does).

Run as `python -m ctxfs.sync.worker SOCKET_FD SLOTS_FD PARENT_PID BOARD_FD NUMBER CODE` by worker_process.py. The first frame carries the options.
Or as `… spare CHANNEL_FD PARENT_PID` by spare_worker.py: it imports everything first, and is given the rest then.
"""
from __future__ import annotations

import ctypes
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import Any

from ctxfs import logs
from ctxfs.sync import protocol, same_code
from ctxfs.sync.abort_slots import AbortFlags
from ctxfs.sync.error_travel import translate
from ctxfs.sync.frames import FrameReader
from ctxfs.sync.free_memory import FreeMemory, use_one_heap
from ctxfs.sync.lifo_threads import LifoThreads
from ctxfs.sync.process_guard import hide_process
from ctxfs.sync.protocol import Cancel, Credit, Failed, Learn, Limit, LogLevel, Part, Progress, Ready, Reply, Request, Start

#: how far a worker stands back where processors are scarce: the daemon, whom every program on the mount waits for, goes first
NICE = 4
_PR_SET_PDEATHSIG = 1
_RECEIVE_BYTES = 256 << 10
_PROGRESS_SECONDS = 0.25
#: a worker that has done something and then rests so long gives back memory
_REST_SECONDS = 2.0


class Abandoned(Exception):
    """Nobody waits for this request any more; raised from `Channel.part` to end it where nothing is half done."""


class Pipe:
    """The socket to the daemon: frames of several threads, each sent whole."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self._frames = FrameReader()

    def send(self, message: Any) -> None:
        data = protocol.frame(message)
        with self._lock:
            self._socket.sendall(data)

    def is_silent(self, seconds: float) -> bool:
        """Whether the daemon says nothing for so long."""
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        return not waiting.poll(seconds * 1000)

    def receive(self) -> list[Any] | None:
        """Messages that arrived, maybe none yet; None when the daemon has nothing more to say."""
        data = self._socket.recv(_RECEIVE_BYTES)
        if not data:
            return None
        return [protocol.decode_to_worker(body) for body in self._frames.feed(data)]


class Channel:
    """What an operation says while it runs: parts of a stream (within the reader's credit) and progress."""

    def __init__(self, pipe: Pipe, request: Request) -> None:
        self.request = request
        self._pipe = pipe
        self._changed = threading.Condition()
        self._credit = request.credit
        self._is_cancelled = False
        self._moved = 0
        self._told_at = time.monotonic()

    @property
    def is_cancelled(self) -> bool:
        return self._is_cancelled

    def part(self, value: Any) -> None:
        """Send one element of the stream as soon as the reader has room. Raises Abandoned when there is no reader any more."""
        with self._changed:
            while self._credit <= 0 and not self._is_cancelled:
                self._changed.wait()
            if self._is_cancelled:
                raise Abandoned
            self._credit -= 1
        self._pipe.send(Part(id=self.request.id, value=protocol.raw(value)))

    def moved(self, count: int) -> None:
        """Account `count` bytes and tell the daemon a few times a second. Called from any thread."""
        if not self.request.wants_progress:
            return
        with self._changed:
            self._moved += count
            now = time.monotonic()
            if now - self._told_at < _PROGRESS_SECONDS:
                return
            self._told_at, moved = now, self._moved
        self._pipe.send(Progress(id=self.request.id, done=moved))

    def give_credit(self, count: int) -> None:
        with self._changed:
            self._credit += count
            self._changed.notify_all()

    def cancel(self) -> None:
        with self._changed:
            self._is_cancelled = True
            self._changed.notify_all()


class Worker:
    """The request loop: the main thread reads frames, at most `threads` others run operations."""

    def __init__(self, pipe: Pipe, context: Any, handlers: dict[type[Any], Any], threads: int) -> None:
        self._pipe = pipe
        self._context = context
        self._handlers = handlers
        self._channels: dict[int, Channel] = {}
        self._threads = LifoThreads(threads, 'transfer')
        self._memory = FreeMemory()
        #: something was done since memory was given back
        self._has_worked = False

    def run(self) -> None:
        """Serve until the daemon closes its side, then finish what was begun."""
        self._pipe.send(Ready(pid=os.getpid()))
        while (messages := self._receive()) is not None:
            for message in messages:
                self._take(message)
        for channel in list(self._channels.values()):
            channel.cancel()
        self._threads.shutdown()

    def _receive(self) -> list[Any] | None:
        while self._has_worked and self._pipe.is_silent(_REST_SECONDS):
            if not self._channels:
                self._has_worked = False
                if self._memory.has_grown():
                    self._memory.give_back()
        return self._pipe.receive()

    def _take(self, message: Any) -> None:
        if isinstance(message, Request):
            self._has_worked = True
            channel = self._channels[message.id] = Channel(self._pipe, message)
            self._threads.start(self._work, channel)
        elif isinstance(message, LogLevel):
            logging.getLogger('ctxfs').setLevel(message.level)
        elif isinstance(message, Limit):
            self._context.set_cache_limit(message.cache_bytes)
        elif isinstance(message, Learn):
            self._context.learn(message.capabilities)
        elif isinstance(message, (Credit, Cancel)):
            known = self._channels.get(message.id)
            if known is None:  # answered meanwhile
                return
            if isinstance(message, Credit):
                known.give_credit(message.count)
            else:
                known.cancel()

    def _work(self, channel: Channel) -> None:
        answer = self._answer(channel)
        del self._channels[channel.request.id]
        self._pipe.send(answer)

    def _answer(self, channel: Channel) -> Reply | Failed:
        request = channel.request
        try:
            if channel.is_cancelled:
                raise Abandoned
            began = time.thread_time()
            with self._context.attend(request.operation):
                result = self._handlers[type(request.operation)](self._context, request.operation, channel)
            return Reply(id=request.id, value=protocol.raw(result), cpu=time.thread_time() - began)
        except Abandoned:
            return Failed(id=request.id, name='CtxfsError', message='nobody waited for it any more')
        except Exception as error:
            name, message = protocol.describe(translate(error))
            return Failed(id=request.id, name=name, message=message, retry_after=getattr(error, 'retry_after', 0.0))


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when the daemon ends, however it ends: a worker without one could still change the bucket while
    the next daemon recovers. If the daemon died before this call, end now."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), 'prctl(PR_SET_PDEATHSIG)')
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def _spare(channel_fd: int, parent_pid: int) -> list[str] | None:
    die_with(parent_pid)
    hide_process()
    gc.disable()
    import ctxfs.storage.s3_store
    import ctxfs.sync.worker_context
    import ctxfs.sync.worker_ops  # noqa: F401 - what `main` would import, most likely
    from ctxfs.sync import spare_worker
    gc.freeze()     # what imports made stays
    gc.enable()
    return spare_worker.wait(channel_fd)


def main(arguments: list[str]) -> int:
    if arguments[0] == 'spare':
        given = _spare(*map(int, arguments[1:]))
        return 0 if given is None else main(given)
    socket_fd, slots_fd, parent_pid, board_fd, place = map(int, arguments[:5])
    die_with(parent_pid)
    hide_process()
    use_one_heap()
    # Ctrl-C and a service manager's SIGTERM go to the whole group: the daemon handles them, and needs its workers to write back.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICE)
    pipe = Pipe(socket.socket(fileno=socket_fd))
    if arguments[5:] != [same_code.MINE]:
        pipe.send(Failed(id=0, name='RemoteUnavailable', message=same_code.REFUSAL))
        return 1
    flags = AbortFlags(slots_fd)
    messages: list[Any] | None = []
    while not messages:
        messages = pipe.receive()
        if messages is None:
            return 0
    start = messages[0]
    assert isinstance(start, Start), 'the first frame is Start'
    options = start.options
    logs.set_up(logging.WARNING, options.log_style)
    logging.getLogger('ctxfs').setLevel(options.log_level)
    try:
        # Imported here, when the socket is served: these bring in the store's client, which takes most of the start.
        from ctxfs.storage.traffic import Limits
        from ctxfs.sync.traffic_board import traffic_of
        from ctxfs.sync.worker_context import WorkerContext
        from ctxfs.sync.worker_ops import HANDLERS
        context = WorkerContext(options, flags, traffic_of(board_fd, place, Limits(options.upload_rate, options.download_rate)))
    except Exception as error:
        name, message = protocol.describe(translate(error))
        pipe.send(Failed(id=0, name=name, message=message))
        return 1
    try:
        Worker(pipe, context, HANDLERS, options.threads).run()
    except BrokenPipeError:  # the daemon is gone; so shall we be
        return 1
    finally:
        context.close()
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
