"""The policy of a live mount: read again when its file changed, checked, applied; or refused, and the old one stays.

Owns the order: check everything, exchange the rules, make the tree agree, look for what is synced now. It must not know what a policy
means (rules.py) or how files are watched (watcher.py).
"""
from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from ctxfs.errors import CtxfsError
from ctxfs.policy import SyncPolicy
from ctxfs.rules import Rules
from ctxfs.sync.regate import Regater

log = logging.getLogger(__name__)


class LivePolicy:
    """`read` gives the checked policy or raises CtxfsError; `alone` runs a job while nothing is transferred; `look` lists the bucket again
    (`forget`: what it showed until then counts no more, so that a look that fails is made up for); `tell` publishes an event (kind, fields)."""

    def __init__(self, rules: Rules, regater: Regater, *, read: Callable[[], SyncPolicy],
                 alone: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]], look: Callable[[], Awaitable[object]],
                 forget: Callable[[], None], tell: Callable[..., None]) -> None:
        self._rules = rules
        self._regater = regater
        self._read = read
        self._alone = alone
        self._look = look
        self._forget = forget
        self._tell = tell

    async def reload(self) -> None:
        """The file changed. Never raises CtxfsError or OSError: a refused policy is logged with the reason."""
        try:
            policy = self._read()
        except CtxfsError as error:
            log.warning('the changed policy is refused, the old one stays: %s', error)
            self._tell('policy-refused', message=str(error))
            return
        if policy == self._rules.policy:
            return
        try:
            await self._alone(lambda: self._apply(policy))
        except (CtxfsError, OSError) as error:
            log.warning('the changed policy cannot be applied now, the old one stays: %s', error)
            self._tell('policy-refused', message=str(error))
        else:
            log.info('the changed policy is applied')
            self._tell('policy-applied')
        self._forget()
        await self._look()

    async def _apply(self, policy: SyncPolicy) -> None:
        before = self._rules.policy
        self._rules.replace(policy)
        try:
            await self._agree()
        except (CtxfsError, OSError):       # a moved file's bytes could not be had from the store, or have no room here
            self._rules.replace(before)
            await self._agree()
            raise

    async def _agree(self) -> None:
        if self._regater.is_due:
            found = await self._regater.run()
            log.info('other white lists: %d objects are not synced any more, %d files and directories changed sides', found.objects,
                     found.inodes)
