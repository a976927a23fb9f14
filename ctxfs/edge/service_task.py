"""What a mount that is a service says of itself while it runs: its state in one line, that it lives, and, at the end, that it still works.

Owns when and how often. It must not know the protocol (service_notify.py), nor how a mount is made or ended: it is told, and looks at the counts.

    mounted ──stop()──> unmounting ──stop()──> flushing ──end()──> ended
A manager that stops the service gets a sign every few seconds for as long as that lasts, because its time limit is for a daemon that hangs, not
for one that uploads much. That the upload ends is the engine's promise.
"""
from __future__ import annotations

import trio

from ctxfs.edge.human import human_bytes, human_files, human_seconds
from ctxfs.edge.live_tally import LiveTally
from ctxfs.edge.service_notify import Notifier
from ctxfs.edge.tally_json import pending_of
from ctxfs.errors import CtxfsError

#: while mounted the line follows what is pending so often, while stopping more
STATUS_SECONDS = 10.0
STOPPING_SECONDS = 1.0
#: what waits for less long is as it should be
WORTH_TELLING_SECONDS = 120.0
#: asked for with each sign while stopping; one lost sign must not be the end
EXTENSION_SECONDS = 60.0


class ServiceTask:
    """`run` as a background task, with the daemon's notifier; without one nothing happens."""

    def __init__(self, tally: LiveTally, mountpoint: str) -> None:
        self._notifier: Notifier | None = None
        self._tally = tally
        self._mountpoint = mountpoint
        self._is_stopping = False
        self._woken = trio.Event()
        self._told = ''
        self._scope = trio.CancelScope()

    async def run(self, notifier: Notifier | None) -> None:
        self._notifier = notifier
        if notifier is None:
            return
        with self._scope:
            async with trio.open_nursery() as nursery:
                if notifier.watchdog_seconds is not None:
                    nursery.start_soon(self._beat, notifier, notifier.watchdog_seconds / 3)
                nursery.start_soon(self._follow, notifier)

    def stop(self) -> None:
        """The mount is about to end, or has: whoever waits for that is told so at once."""
        self._is_stopping = True
        self._woken.set()

    def end(self, message: str) -> None:
        """The mount is over, and this is the last word; `message`: why something is not in the bucket, '' when all is."""
        self._scope.cancel()
        if self._notifier is not None:
            self._notifier.extend(EXTENSION_SECONDS)
            self._notifier.status(message or 'unmounted; everything is in the bucket')

    async def _beat(self, notifier: Notifier, seconds: float) -> None:
        """From the loop that serves the mount: when that hangs, so does this."""
        while True:
            notifier.alive()
            await trio.sleep(seconds)

    async def _follow(self, notifier: Notifier) -> None:
        was_stopping = False
        while True:
            if self._is_stopping:
                notifier.extend(EXTENSION_SECONDS)
            text = await self._text()
            if self._is_stopping and not was_stopping:
                notifier.stopping(text)
                was_stopping = True
            elif text != self._told:
                notifier.status(text)
            self._told = text
            with trio.move_on_after(STOPPING_SECONDS if self._is_stopping else STATUS_SECONDS):
                await self._woken.wait()
            self._woken = trio.Event()

    async def _text(self) -> str:
        try:
            counts = await self._tally.read()
        except CtxfsError as error:
            return str(error)
        left = f'{human_files(counts.files)} ({human_bytes(counts.bytes)})'
        if self._is_stopping:
            return f'uploading what is left: {left}' if counts.files else 'unmounting'
        oldest = pending_of(counts)['oldestSeconds']
        since = f', the oldest for {human_seconds(oldest)}' if oldest >= WORTH_TELLING_SECONDS else ''
        return f'mounted on {self._mountpoint}' + (f'; {left} pending{since}' if counts.files else '')
