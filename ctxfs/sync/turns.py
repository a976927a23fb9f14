"""Turns: on a store that cannot compare and swap, one host at a time writes what would not be atomic there.

Owns when this host may write, and for how long. It must not know what is written, nor which writes need a turn (guarded.py), nor the objects by
which hosts take turns (turn_objects.py). The store itself refuses such a write without a turn (storage/s3_guard.py), by the time at which it ends,
which the workers read in a shared page.

                     ┌────────────── G is there, young, not free: look again ──────────────┐
                     ▼                                                                     │
    idle ──enter──▶ LIST ── no G, G free, or G expired ──▶ make G+1 ──▶ LIST: it is the newest ──▶ held ──end──▶ free it ──▶ idle
                     │                                       │                             ▲ │ ▲
                     └── G is young and ours (a crash) ──────┼──── PUT G once more ────────┘ └─┘ every 20 s: PUT G, or it runs out
                                                             └── somebody else made it: LIST

Exactly one of several makes a generation:
  - where the store can create atomically, it says who. Alibaba OSS does so only while versioning is off: a second attempt must be refused.
  - where it cannot (rclone serve s3, old proxies), each writes G+1 at most CONTEND_SECONDS after it saw G free, waits for longer than that, and
    reads: by then nobody writes any more who did not see G+1, and the last one who wrote it has it (Fischer's algorithm).

Time. A turn lasts LEASE_SECONDS from before its last PUT was sent, by this host's clock, which also counts while the host sleeps; an answer that
comes later than the end renews nothing. Others take it for expired GRACE_SECONDS after that, by the store's own clock (Last-Modified against
Date; where it does not say the time, by having seen it unchanged for so long): no two clocks are compared, only rates. Writes end before
the turn does: not a byte of one is sent afterwards, however slowly it goes. What a lost answer leaves in the network may still arrive: then the
turn is not given up, but runs out; and the key that it is for is not written again for as long, or it would land on what we wrote next.

Crashes. G stays and expires, or the next daemon of this state directory goes on with it: it knows the nonce in G.
"""
from __future__ import annotations

import contextlib
import logging
import random
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import trio

from ctxfs.crash_points import crash_point
from ctxfs.errors import Contradicted, CtxfsError, RemoteChanged, RemoteUnavailable, Unanswered
from ctxfs.storage.object_store import Capabilities
from ctxfs.sync.abort_slots import boot_seconds
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.ports import Spawn
from ctxfs.sync.turn_objects import Mine, TurnObjects, View

log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
GRACE_SECONDS = 30.0
_RENEW_SECONDS = 20.0
#: a renewal that failed is tried again so soon
_RENEW_AGAIN_SECONDS = 4.0
#: nothing begins in a turn that ends sooner (the store wants 10 s left for each write)
_ENOUGH_SECONDS = 20.0
#: how long one waits for another's turn to end; what waited is tried again later, and what comes just after it is not kept waiting as well
PATIENCE_SECONDS = 20.0
_REFUSED_SECONDS = 2.0
_LOOK_SECONDS = (0.4, 1.0)
#: a turn is given up after so long although there is more to write, and others get so much time to take it
LONGEST_SECONDS = 60.0
YIELD_SECONDS = 3.0
#: see "Exactly one": from the look to the answer of the PUT, and from then to the reading
CONTEND_SECONDS = 2.0
SETTLE_SECONDS = 3.0
#: what was sent and never answered may be done for so long
STRAY_SECONDS = 20.0
#: old generations are removed when their objects are so many
_OLD = 20
#: in the tree database: generation and nonce of the last turn
META = 'turn'


class Notes(Protocol):
    """What survives a crash (the tree database's `meta`)."""

    def meta(self, name: str) -> Any: ...

    def set_meta(self, name: str, value: Any) -> None: ...


class Turns:
    """See the module docstring. `prefix`: the context's; `tell`: the turn ends then (0: none), in boot seconds, for the workers to know."""

    def __init__(self, pool: TransferPool, *, prefix: str, host: str, tell: Callable[[float], None], spawn: Spawn, notes: Notes,
                 clock: Callable[[], float] = boot_seconds) -> None:
        self._objects = TurnObjects(pool, prefix=prefix, host=host, clock=clock)
        self._tell = tell
        self._spawn = spawn
        self._notes = notes
        self._clock = clock
        self._lock = trio.Lock()
        self._mine: Mine | None = self._load()
        self._beat = 0
        self._until = self._since = 0.0
        #: what is held now; another object for each time
        self._held: object | None = None
        self._old: list[str] = []
        self._users = 0
        self._idle = trio.Event()
        #: keys to which something was sent that was never answered, and when; '': any, by the daemon before this one
        self._strays: dict[str, float] = {} if self._mine is None else {'': clock()}
        self._refused: tuple[float, str] = (float('-inf'), '')

    # --- what a writer does -----------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def turn(self, known: Capabilities, keys: Iterable[str]) -> AsyncIterator[None]:
        """Around writes of these keys that the store does not make atomic. Raises RemoteUnavailable when another host's turn does not end,
        Contradicted."""
        await self._wait_for_strays(keys)
        async with self._lock:
            if self._held and self._clock() - self._since > LONGEST_SECONDS:
                await self._yield()
            if not self._held or self._until - self._clock() < _ENOUGH_SECONDS:
                await self._take(known)
            if self._users == 0:
                self._idle = trio.Event()
            self._users += 1
        try:
            yield
        except (Unanswered, trio.Cancelled):
            self.note_strays(keys)
            raise
        finally:
            self._users -= 1
            if self._users == 0:
                self._idle.set()

    def note_strays(self, keys: Iterable[str]) -> None:
        """What was sent to these keys may yet be done. What was sent long before is: of it nothing is kept."""
        now = self._clock()
        self._strays = {**self._fresh_strays(now), **dict.fromkeys(keys, now)}

    def _fresh_strays(self, now: float) -> dict[str, float]:
        return {key: at for key, at in self._strays.items() if now - at < STRAY_SECONDS}

    async def _wait_for_strays(self, keys: Iterable[str]) -> None:
        while any(key in self._strays for key in ('', *keys)):
            now = self._clock()
            self._strays = self._fresh_strays(now)
            waits = [self._strays[key] for key in ('', *keys) if key in self._strays]
            if waits:
                await trio.sleep(max(waits) + STRAY_SECONDS - now)

    async def end(self) -> None:
        """The flush is over. Never raises for what the store does: then the turn runs out."""
        async with self._lock:
            if self._held:
                await self._give_up()

    async def _yield(self) -> None:
        if self._users:
            await self._idle.wait()
        await self._give_up()
        await trio.sleep(YIELD_SECONDS)

    # --- taking it ----------------------------------------------------------------------------------------------------------------------

    async def _take(self, known: Capabilities) -> None:
        self._drop()
        if self._clock() < self._refused[0]:
            raise RemoteUnavailable(self._refused[1])
        patience_ends = self._clock() + PATIENCE_SECONDS
        while True:
            view = await self._objects.look()
            if _is_open(view):
                if await self._make(view, known):
                    return
            elif await self._go_on(view):
                return
            if self._clock() >= patience_ends:
                await self._refuse(view)
            await trio.sleep(random.uniform(*_LOOK_SECONDS))

    async def _refuse(self, view: View) -> None:
        host = (await self._objects.owner(view.generation))[:8] or 'another'
        message = (f'it is the turn of host {host} to write to this context; a turn ends with the upload, or '
                   f'{LEASE_SECONDS + GRACE_SECONDS:.0f} s after a crash')
        self._refused = self._clock() + _REFUSED_SECONDS, message
        raise RemoteUnavailable(message)

    async def _make(self, view: View, known: Capabilities) -> bool:
        """The next generation. False: another host made it, or it took too long."""
        mine = Mine(view.generation + 1, secrets.token_hex(8))
        if known.can_create:
            self._note(mine)        # should the answer be lost: whoever finds this nonce in it made it
        sent_at = self._clock()
        try:
            await self._objects.put(mine, 0, only_new=known.can_create)
            crash_point('turn-after-make')
            if not await (self._prove(mine, known) if known.can_create else self._settle(view, mine)):
                return False
        except RemoteChanged:
            return False
        now = await self._objects.look()
        if now.generation != mine.generation or now.is_free:
            return False
        return self._hold(mine, beat=0, sent_at=sent_at, valid_until=sent_at + LEASE_SECONDS, old=now.old)

    async def _prove(self, mine: Mine, known: Capabilities) -> bool:
        """OSS ignores the header in a bucket with versions, and says nothing."""
        if not known.forbid_overwrite or (await self._objects.put(mine, 0, only_new=True)).is_recovered:
            return True
        self._forget()
        with contextlib.suppress(CtxfsError):       # who made it by the same mistake finds it out, too
            await self._objects.free(mine)
        raise Contradicted('an object was created twice: x-oss-forbid-overwrite is ignored (is versioning on?)')

    async def _settle(self, view: View, mine: Mine) -> bool:
        if self._clock() - view.seen_at > CONTEND_SECONDS:
            return False
        await trio.sleep(SETTLE_SECONDS)
        return await self._objects.beat_of(mine) == 0

    async def _go_on(self, view: View) -> bool:
        """With a turn of our own that a crash, or an outage, has left: it must be renewed before anybody may take it for expired."""
        mine = self._mine
        if mine is None or mine.generation != view.generation or (beat := await self._objects.beat_of(mine)) is None:
            return False
        sent_at = self._clock()
        await self._objects.put(mine, beat + 1)
        expires_at = view.seen_at + LEASE_SECONDS + GRACE_SECONDS - view.age
        return self._hold(mine, beat=beat + 1, sent_at=sent_at, valid_until=expires_at - _RENEW_AGAIN_SECONDS, old=view.old)

    def _hold(self, mine: Mine, *, beat: int, sent_at: float, valid_until: float, old: list[str]) -> bool:
        """The turn is ours, if the answer came in time."""
        if self._clock() > min(valid_until, sent_at + LEASE_SECONDS - _ENOUGH_SECONDS):
            return False
        self._note(mine)
        self._beat, self._old, self._since = beat, old, self._clock()
        self._held = held = object()
        self._extend(sent_at + LEASE_SECONDS)
        self._spawn(self._keep, mine, held)
        log.info('this host has turn %d to write to the context', mine.generation)
        return True

    # --- keeping it, and giving it up ------------------------------------------------------------------------------------------------

    async def _keep(self, mine: Mine, held: object) -> None:
        """Renew it while it is held; the end of a turn that cannot be renewed stops the writes."""
        pause = _RENEW_SECONDS
        while True:
            await trio.sleep(pause)
            sent_at = self._clock()
            if self._held is not held or sent_at >= self._until:
                return
            self._beat += 1
            pause = _RENEW_AGAIN_SECONDS
            try:
                with trio.move_on_after(self._until - sent_at):
                    await self._objects.put(mine, self._beat)
                    if self._held is held and self._clock() < self._until:
                        self._extend(sent_at + LEASE_SECONDS)
                        pause = _RENEW_SECONDS
            except CtxfsError as error:
                log.info('turn %d is not renewed: %s', mine.generation, error)

    async def _give_up(self) -> None:
        """Nobody writes any more. After a lost answer it runs out instead: what was sent may still arrive."""
        mine, has_ended = self._mine, self._clock() >= self._until
        self._drop()
        if mine is None or self._users or has_ended or any(self._clock() - at < STRAY_SECONDS for at in self._strays.values()):
            return
        try:
            with trio.move_on_after(PATIENCE_SECONDS):
                await self._objects.free(mine)
                self._forget()
                if len(self._old) >= _OLD:
                    await self._objects.remove(self._old)
        except CtxfsError as error:
            log.info('turn %d runs out by itself: %s', mine.generation, error)

    def _extend(self, until: float) -> None:
        self._until = until
        self._tell(until)

    def _drop(self) -> None:
        self._held = None
        self._extend(0.0)

    # --- across crashes -----------------------------------------------------------------------------------------------------------------

    def _note(self, mine: Mine) -> None:
        if mine != self._mine:
            self._mine = mine
            self._notes.set_meta(META, f'{mine.generation} {mine.nonce}')

    def _forget(self) -> None:
        self._mine = None
        self._notes.set_meta(META, '')

    def _load(self) -> Mine | None:
        found = re.fullmatch(r'([0-9]{1,12}) ([0-9a-f]{16})', str(self._notes.meta(META)))
        return Mine(int(found[1]), found[2]) if found else None


def _is_open(view: View) -> bool:
    """Whether the next generation may be made."""
    return view.generation == 0 or view.is_free or view.age > LEASE_SECONDS + GRACE_SECONDS
