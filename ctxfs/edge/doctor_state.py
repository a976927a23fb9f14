"""State directories for `ctxfs doctor`: whether they contradict themselves or the bucket, and their repair.

Owns which directories are looked at, the lock meanwhile, and the words. It must not know what is compared (storage/consistency.py) or how
anything is mended (storage/repair.py).
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ctxfs.config import nearest
from ctxfs.edge import preflight, runtime_dir
from ctxfs.edge.cli_common import human_files, names_of, select
from ctxfs.edge.doctor import Finding, Level
from ctxfs.edge.runtime_dir import Mount
from ctxfs.edge.state_lock import locked
from ctxfs.errors import CtxfsError, Exists, NotFound
from ctxfs.storage import repair
from ctxfs.storage.consistency import Bucket, check_against_bucket, check_state, is_sound
from ctxfs.storage.consistency_rules import Problem, Severity
from ctxfs.storage.registry import context_prefix
from ctxfs.sync.archive_log import members_of

#: a daemon that begins or ends has the directory for a moment
WAIT_SECONDS = 2.0
_LEVELS = {Severity.WRONG: Level.FAIL, Severity.LEFT: Level.WARN, Severity.NOTE: Level.OK}


class Place(NamedTuple):
    """A state directory. `mount`: the last of it, None where no record says."""
    name: str
    state_dir: Path
    mount: Mount | None

    @property
    def repair_hint(self) -> str:
        return f'unmount it and run ctxfs doctor --repair {self.name}' if self.mount is not None else 'mount it once'


def places(mounts: Sequence[Mount], state_root: Path, reference: str | None) -> list[Place]:
    """Those of that context id, name or mount point; all without one. Raises NotFound."""
    chosen = select(mounts, reference)
    if reference is not None and not chosen:
        raise NotFound(f'{reference} has no state on this host{nearest(reference, names_of(mounts))}')
    found = [Place(mount.record.context_name, Path(mount.record.state_dir), mount) for mount in chosen]
    known = {place.state_dir for place in found}
    others = [path.parent for path in state_root.glob('*/tree.db') if path.parent not in known] if reference is None else []
    return found + [Place(path.name, path, None) for path in sorted(others)]


# --- checks ------------------------------------------------------------------------------------------------------------------------

def check(place: Place) -> Iterator[Finding]:
    """What contradicts; one line where nothing does. Beside a mount that runs only what can be seen from outside."""
    with contextlib.ExitStack() as stack:
        is_running, damage = False, ''
        try:
            stack.enter_context(locked(place.state_dir, seconds=WAIT_SECONDS, is_shared=True))
            damage = repair.find_damage(place.state_dir, is_same_boot=_is_same_boot(place))
        except Exists:
            is_running = True
        problems = [Problem(Severity.WRONG, 'database', damage)] if damage else check_state(place.state_dir, is_running=is_running)
        yield from (_finding(place, problem) for problem in problems)
        if is_sound(problems) and not is_running:
            yield from _beside_bucket(place)
        if not problems:
            yield Finding(Level.OK, 'state', f'{place.name}: {place.state_dir} agrees with itself{" (it is mounted)" if is_running else ""}')


def _is_same_boot(place: Place) -> bool:
    return place.mount is not None and place.mount.record.boot_id == runtime_dir.boot_id()


def _finding(place: Place, problem: Problem) -> Finding:
    fix = {Severity.WRONG: place.repair_hint, Severity.LEFT: 'the next mount settles it'}.get(problem.severity, '')
    return Finding(_LEVELS[problem.severity], f'state-{problem.area}', f'{place.name}: {problem.text}', fix)


def _beside_bucket(place: Place) -> Iterator[Finding]:
    if place.mount is None:
        return
    record = place.mount.record
    try:
        with contextlib.closing(preflight.open_checked_store(record.store, create=False, context=record.context_id)) as store:
            prefix = context_prefix(record.context_id)
            members = [(item.record.path[len(record.below):], item.record.etag) for item in members_of(store, prefix, below=record.below)]
            bucket = Bucket(store, prefix + record.below, members)
            problems = check_against_bucket(place.state_dir, bucket)
    except CtxfsError as error:
        yield Finding(Level.WARN, 'state-bucket', f'{place.name}: the bucket could not be compared: {error}')
        return
    for problem in problems:
        yield Finding(Level.OK, 'state-bucket', f'{place.name}: {problem.text}', 'the next mount takes it over')


# --- repair ------------------------------------------------------------------------------------------------------------------------

def repair_state(place: Place) -> Iterator[Finding]:
    """Mend what is damaged or contradicts itself. Raises Exists while it is mounted."""
    if place.mount is not None and place.mount.is_alive():
        at = place.mount.record.mountpoint
        raise Exists(f'{place.name} is mounted at {at}, and a repair needs it alone: fusermount3 -u {at}')
    with locked(place.state_dir, seconds=WAIT_SECONDS):
        if repair.complete(place.state_dir):
            yield Finding(Level.OK, 'repair', f'{place.name}: a repair that was interrupted is complete')
        damage = repair.find_damage(place.state_dir, is_same_boot=_is_same_boot(place))
        problems = [] if damage else check_state(place.state_dir)
        if not damage and is_sound(problems):
            yield Finding(Level.OK, 'repair', f'{place.name}: there is nothing to repair in {place.state_dir}')
            return
        done = repair.repair(place.state_dir, uid=os.getuid(), gid=os.getgid())
        yield from _told(place, damage or problems[0].text, done)


def _told(place: Place, damage: str, done: repair.Repaired) -> Iterator[Finding]:
    mended, name = done.mended, place.name
    yield Finding(Level.OK, 'repair', f'{name}: {damage}: rebuilt, with {human_files(mended.staged)} to be uploaded',
                  'mount it: what the bucket has is shown again')
    if mended.found:
        yield Finding(Level.WARN, 'repair', f'{name}: names that were lost: {mended.found}',
                      'they are in lost+found in the root of the context: rename them')
    if mended.renamed:
        yield Finding(Level.OK, 'repair', f'{name}: {mended.renamed} lost names are those that the bucket knew')
    if mended.lost:
        yield Finding(Level.WARN, 'repair', f'{name}: the bytes of {human_files(mended.lost)} changed here are gone',
                      'they are as the bucket has them, or empty')
    if mended.aside:
        yield Finding(Level.OK, 'repair', f'{name}: {human_files(len(mended.aside))} removed while open, kept in {done.kept}/staging')
    yield Finding(Level.OK, 'repair', f'{name}: the damaged file is kept in {done.kept}', 'remove it when nothing is missing')
