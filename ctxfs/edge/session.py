"""Sessions without a cloud: several contexts mounted at their paths for the life of a block or of a process.

Owns which mounts belong together: all of them come up, or none stays, and all go at the end, whatever happened in between. It must not know how a
mount is made or written back: `ctxfs mount` and the daemons do that.

    with ctxfs.session(ContextSync.new(context.id, '/home/me/work', policy)) as s:
        …                               # /home/me/work is the context
        s.context.sync()
    # everything is in the bucket, or an error says what is not

`async with` does the same under asyncio and trio.
"""
from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ctxfs.edge import flush_wait
from ctxfs.edge.cli_common import Invocation
from ctxfs.edge.client import ControlClient
from ctxfs.edge.context_manager import ContextManager
from ctxfs.edge.daemon_process import child_environment
from ctxfs.edge.mount_table import real_mountpoint
from ctxfs.edge.runtime_dir import Mount
from ctxfs.edge.sdk_policy import ContextSync
from ctxfs.edge.sync_call import in_thread
from ctxfs.errors import CtxfsError, UsageError

#: a mount point is gone so soon after it was told to go, also while programs use it
DETACH_SECONDS = 60.0
#: how long one waits for the mounts that came up beside one that did not
UNDO_SECONDS = 30.0


class Session:
    """See the module docstring; made by `session`. `open` and `close` are what the block does at its ends."""

    def __init__(self, syncs: Sequence[ContextSync], *, store: str | None = None, state_dir: str | None = None, sync_context: bool = True,
                 options: Sequence[str] = ()) -> None:
        if not syncs:
            raise UsageError('a session needs a context: session(ContextSync.new(context.id, "/path"))')
        self.session_id = f'session-{uuid.uuid4().hex[:16]}'
        self.context_syncs = tuple(syncs)
        self.sync_context = sync_context
        self.context = ContextManager(self)
        self._invocation = Invocation(store, state_dir, False)
        self._where = [word for name, value in (('--store', store), ('--state-dir', state_dir)) if value for word in (name, value)]
        self._options = tuple(options)
        self._places: list[str] = []
        self._made: list[str] = []
        self._files = contextlib.ExitStack()

    # --- its life -------------------------------------------------------------------------------------------------------------------

    def open(self) -> Session:
        """Returns when all contexts are mounted. Raises CtxfsError with the cause when one cannot be; then none is."""
        directory = Path(self._files.enter_context(tempfile.TemporaryDirectory(prefix='ctxfs-session-')))
        atexit.register(self.close)
        try:
            for sync in self.context_syncs:
                self._make(os.path.abspath(os.path.expanduser(sync.path)))
            with ThreadPoolExecutor(len(self.context_syncs)) as pool:
                outcomes = list(pool.map(self._mount, self.context_syncs, (directory / str(n) for n in range(len(self.context_syncs)))))
            if failures := [outcome for outcome in outcomes if outcome is not None]:
                raise failures[0]
        except BaseException:
            with contextlib.suppress(CtxfsError):       # their processes end, too, unless they have much to upload of before
                self.close(sync_context=True, timeout=UNDO_SECONDS)
            raise
        return self

    def close(self, *, sync_context: bool | None = None, timeout: float | None = None) -> None:
        """Unmount all, also where programs still use them, and with `sync_context` (default: as the session was made) wait until everything is
        in the bucket, for `timeout` seconds each at most; what is left then, or without, goes on in the background. Raises CtxfsError for what
        could not be uploaded; it is kept on this host."""
        atexit.unregister(self.close)
        mounts = self.mounts()
        self._places.clear()
        try:
            waits = self.sync_context if sync_context is None else sync_context
            outcomes = [_end(mount, waits=waits, timeout=timeout) for mount in mounts]
        finally:
            for place in reversed(self._made):
                with contextlib.suppress(OSError):      # not empty, not ours any more
                    os.rmdir(place)
            self._made.clear()
            self._files.close()
        if (failure := flush_wait.failure_of([outcome for outcome in outcomes if outcome is not None])) is not None:
            raise failure

    def mounts(self) -> list[Mount]:
        """Those of this session, as long as their daemons run."""
        return [mount for mount in self._invocation.mounts() if mount.record.mountpoint in self._places and mount.is_alive()]

    def _make(self, path: str) -> None:
        """The directory, where there is none yet; it goes again with the session."""
        missing = []
        while not os.path.lexists(path):
            missing.append(path)
            path = os.path.dirname(path)
        for place in reversed(missing):
            try:
                os.mkdir(place)
            except OSError as error:
                raise CtxfsError(f'{place} cannot be made: {error.strerror}') from error
            self._made.append(place)

    def _mount(self, sync: ContextSync, policy: Path) -> CtxfsError | None:
        place = real_mountpoint(sync.path)
        words = ['mount', sync.context_id, place, *self._where, *self._options]
        if sync.policy is not None:
            policy.write_text(sync.policy.to_json())
            words += ['--policy', str(policy)]
        done = subprocess.run([sys.executable, '-m', 'ctxfs', *words, '--json'], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              env=child_environment(), check=False)
        if done.returncode == 0:
            self._places.append(json.loads(done.stdout)['mountpoint'])
            return None
        kind = UsageError if done.returncode == 2 else CtxfsError
        return kind(done.stderr.strip().removeprefix('ctxfs: ') or f'{sync.context_id} could not be mounted at {place}')

    # --- blocks ---------------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Session:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except CtxfsError as failure:
            if error is None:
                raise
            _add_note(error, f'and of the session: {failure}')

    async def __aenter__(self) -> Session:
        return await in_thread(self.open)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        await in_thread(lambda: self.__exit__(kind, error, trace))


def session(*context_syncs: ContextSync, store: str | None = None, state_dir: str | None = None, sync_context: bool = True,
            options: Sequence[str] = ()) -> Session:
    """A session, to be entered by `with` or `async with`, or begun by `open`. `sync_context`: whether leaving waits until everything is in the
    bucket. `store`, `state_dir`: as --store and --state-dir; `options`: more words for `ctxfs mount`."""
    return Session(context_syncs, store=store, state_dir=state_dir, sync_context=sync_context, options=options)


def _end(mount: Mount, *, waits: bool, timeout: float | None) -> flush_wait.Outcome | None:
    """Unmount; with `waits` how the upload ended."""
    with contextlib.suppress(CtxfsError), ControlClient(mount.socket) as client:     # somebody was faster
        client.call('shutdown')
    if waits:
        return flush_wait.wait_for(mount, timeout=timeout)
    flush_wait.wait_detached(mount, DETACH_SECONDS)
    return None


def _add_note(error: BaseException, note: str) -> None:
    if sys.version_info >= (3, 11):
        error.add_note(note)
