"""What the command line and the Python API do with contexts and their files without a mount: one open store, and what this host knows of it.

Owns the way from a reference to a context that may be changed, and what counts as in use as seen from here. It must not know how results look: one
caller prints, the other returns the SDK's objects. Raises ctxfs.errors.
"""
from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from ctxfs.config import load_host_id
from ctxfs.edge import policy_choice, preflight
from ctxfs.edge.cli_common import Invocation
from ctxfs.edge.state_lock import is_locked
from ctxfs.errors import Denied, InUse, NotFound
from ctxfs.records import RESERVED_DIR
from ctxfs.storage import registry_changes
from ctxfs.storage.heartbeats import Beat, live_mounts
from ctxfs.storage.object_store import Capabilities, ObjectStore
from ctxfs.storage.registry import ContextRecord, Registry
from ctxfs.storage.remembered import Remembered
from ctxfs.storage.stores import directory_of, open_store
from ctxfs.sync import clearing, converting, copying
from ctxfs.sync.context_files import ContextFiles
from ctxfs.sync.context_mode import mode_of
from ctxfs.sync.held_turns import HeldTurns
from ctxfs.sync.resumable import UploadNotes

_LOOKS = 8


class ContextDesk:
    """Of one invocation's store; thread-safe. `close` it."""

    def __init__(self, invocation: Invocation, store: ObjectStore) -> None:
        self._invocation = invocation
        self.store = store
        self.registry = Registry(store)
        self._turns: dict[str, HeldTurns] = {}

    def close(self) -> None:
        for turns in self._turns.values():
            turns.close()
        self.store.close()

    @functools.cached_property
    def host(self) -> str:
        return load_host_id(self._invocation.paths.state)

    # --- looking --------------------------------------------------------------------------------------------------------------------

    def shown(self, record: ContextRecord) -> ContextRecord:
        """With its state as it is now: in use where a mount, here or on any host, says so."""
        if record.state != 'available' or not (self._local(record.id) or self.mounts(record)):
            return record
        return msgspec.structs.replace(record, state='in-use')

    def shown_all(self, records: Iterable[ContextRecord]) -> list[ContextRecord]:
        with ThreadPoolExecutor(max_workers=_LOOKS) as pool:
            return list(pool.map(self.shown, records))

    def mounts(self, record: ContextRecord) -> list[Beat]:
        """The mounts that write to the context, on any host; [] where they cannot be read."""
        try:
            return live_mounts(self.store, record.id, is_dead=self._is_dead)
        except Denied:
            return []

    def _local(self, context_id: str) -> list[Beat]:
        """This host's own, those that only read among them: they leave no trace in the bucket."""
        return [Beat(host_id='', host='this host', mountpoint=mount.record.mountpoint, pid=mount.record.pid, since='')
                for mount in self._invocation.mounts() if mount.record.context_id == context_id and mount.is_alive() and mount.result() is None]

    def _is_dead(self, beat: Beat) -> bool:
        """What this host's own daemons left behind when they were killed. What this host knows nothing of lives: a copy of this machine has its
        id, too, and a container that shares its directories sees none of its processes, but their locks."""
        if beat.host_id != self.host:
            return False
        known = [mount for mount in self._invocation.mounts() if (mount.record.pid, mount.record.mountpoint) == (beat.pid, beat.mountpoint)]
        return bool(known) and not any(mount.is_alive() or is_locked(Path(mount.record.state_dir)) for mount in known)

    # --- changing -------------------------------------------------------------------------------------------------------------------

    def begin_clearing(self, record: ContextRecord, *, deletes: bool, force: bool) -> ContextRecord:
        """See clearing.begin. Raises InUse also for what this host has mounted."""
        local = self._local(record.id)
        if local and not force:
            raise InUse(f'context {record.name} is mounted here at {local[0].mountpoint}; unmount it, or '
                        f'{"delete" if deletes else "clear"} it with --force')
        return clearing.begin(self.store, record, deletes=deletes, force=force, is_dead=self._is_dead)

    def finish_clearing(self, record: ContextRecord, progress: Callable[[int], None] = lambda count: None) -> int:
        return clearing.finish(self.store, record, host=self.host, progress=progress)

    def begin_copy(self, source: ContextRecord, target: ContextRecord, *, update: bool, mode: str = '') -> ContextRecord:
        """See copying.begin. Raises InUse also for what this host has mounted, and for a source that is not whole."""
        registry_changes.check_whole(source)
        if local := self._local(target.id):
            raise InUse(f'context {target.name} is mounted here at {local[0].mountpoint}; unmount it first')
        return copying.begin(self.store, source, target, update=update, is_dead=self._is_dead, mode=mode)

    def measure_copy(self, source: ContextRecord, *, mode: str = '') -> tuple[int, int]:
        """(objects, bytes) that there are to be copied."""
        return converting.measure(self.store, source, host=self.host) if self._converts(source, mode) else copying.measure(self.store, source)

    def finish_copy(self, source: ContextRecord, target: ContextRecord, progress: copying.Progress = lambda objects, size: None, *,
                    mode: str = '') -> copying.Copied:
        """`mode`: in which the copy is kept ('File', 'Archive'); '': as the source."""
        if self._converts(source, mode):
            return converting.finish(self.store, source, target, mode=mode, host=self.host, progress=progress)
        return copying.finish(self.store, source, target, host=self.host, progress=progress)

    def _converts(self, source: ContextRecord, mode: str) -> bool:
        return bool(mode) and mode_of(self.store, source.prefix) != mode

    def target(self, reference: str, *, create: bool) -> ContextRecord:
        """The context to copy to, made where there is none with `create`. Raises NotFound."""
        try:
            return self.registry.find(reference)
        except NotFound as error:
            if create:
                return self.registry.create(reference)
            raise NotFound(f'{error}; --create makes a new one') from error

    def rename(self, record: ContextRecord, name: str) -> ContextRecord:
        return clearing.renamed(self.store, record, name)

    def files(self, record: ContextRecord, *, for_writing: bool = False) -> ContextFiles:
        """Raises InUse where nothing may be added, and UsageError for a stored policy that cannot be read."""
        turns = self._turns.setdefault(record.id, HeldTurns(self.store, record.prefix, host=self.host,
                                                            abilities=functools.cache(functools.partial(self._abilities, record))))
        if not for_writing:
            return ContextFiles(self.store, record.id, host=self.host, turns=turns)
        registry_changes.check_whole(record)
        chosen = policy_choice.stored(self.store, record)
        return ContextFiles(self.store, record.id, host=self.host, policy=chosen.policy if chosen is not None else None,
                            uploads=UploadNotes(self._invocation.paths.state / 'uploads'), turns=turns)

    def _abilities(self, record: ContextRecord) -> Capabilities:
        """What the store can do below the context's prefix, for which alone the credentials may be good: as a mount here found out, or asked."""
        url = self._invocation.store_url
        if directory_of(url) is not None:
            return self.store.capabilities()
        scratch = record.prefix + RESERVED_DIR
        memory = Remembered(self._invocation.paths.state, url, scratch)
        with contextlib.closing(open_store(url, scratch_prefix=scratch, memory=memory)) as store:
            return store.capabilities()


@contextlib.contextmanager
def open_desk(invocation: Invocation, *, create: bool = False, reference: str | None = None) -> Iterator[ContextDesk]:
    """`create` makes the directory of a file:// store, as the embedded one's always is. Credentials that reach only the context `reference`
    are enough for what concerns only it."""
    with contextlib.closing(new_desk(invocation, create=create, reference=reference)) as desk:
        yield desk


def new_desk(invocation: Invocation, *, create: bool = False, reference: str | None = None) -> ContextDesk:
    is_default = preflight.is_default_store(invocation.store_url, invocation.paths.data)
    return ContextDesk(invocation, preflight.open_checked_store(invocation.store_url, create=create or is_default, context=reference,
                                                                state_root=invocation.paths.state))

