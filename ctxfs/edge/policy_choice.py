"""Which policy a mount gets: --policy FILE, else the one kept with the context, else [policy] of config.toml, else the default; with the white
lists of --browser laid over it.

Owns that order, and when a policy is kept with a context. It must not print or mount: refusals are raised before anything is made, and
what the user should know is returned.
"""
from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from ctxfs.config import FileConfig
from ctxfs.errors import CtxfsError, UsageError
from ctxfs.policy import SyncPolicy
from ctxfs.policy_parse import parse_policy, policy_to_bytes, read_policy_file
from ctxfs.policy_presets import Browser, with_browser
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.policy_store import load_policy, save_policy
from ctxfs.storage.registry import ContextRecord
from ctxfs.sync.context_mode import refusal


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A policy and where it comes from: `source` and `file` as in MountOptions, `origin` for messages."""
    policy: SyncPolicy
    source: str
    origin: str
    file: str | None = None
    #: the preset whose white lists it has
    browser: Browser | None = None


class Check(Protocol):
    def __call__(self, policy: SyncPolicy, *, origin: str) -> None:
        """Raises UsageError for a policy that the mount cannot have."""


def fallback(config: FileConfig, config_file: Path) -> Choice:
    """What a context without a policy of its own gets. Raises UsageError for a bad [policy] in config.toml."""
    if config.policy is None:
        return Choice(policy=SyncPolicy(), source='default', origin='the default policy')
    origin = f'{config_file}: [policy]'
    return Choice(policy=parse_policy(config.policy, origin=origin), source='config', origin=origin)


def stored(store: ObjectStore, context: ContextRecord) -> Choice | None:
    """The policy kept with the context. Raises UsageError, which says how to mend it, for one that cannot be read."""
    data = load_policy(store, context.id)
    if data is None:
        return None
    origin = f'the policy stored with context {context.name}'
    try:
        return Choice(policy=parse_policy(data, origin=origin), source='context', origin=origin)
    except UsageError as e:
        raise _with_remedy(e, context) from e


def _with_remedy(error: UsageError, context: ContextRecord) -> UsageError:
    return UsageError(f'{error}; store a right one with ctxfs policy set {context.name} FILE, or mount with --policy FILE')


class Chooser:
    """For one mount. Raises UsageError at once for a --policy FILE that is wrong, or wrong for this mount."""

    def __init__(self, file: str | None, config: FileConfig, config_file: Path, *, check: Check, browser: Browser | None = None) -> None:
        self._check = check
        self._browser = browser
        self._given: Choice | None = None
        #: it is known that the context has no policy of its own: nobody need ask
        self.has_none_stored = False
        #: `keep` stored it
        self.is_kept = False
        #: why a context without a policy of its own cannot be mounted: to be raised before such a context is made
        self.refusal: UsageError | None = None
        if file is not None:
            path = os.path.abspath(file)
            self._given = self._dressed(Choice(policy=read_policy_file(file), source=path, origin=file, file=path))
            check(self._given.policy, origin=file)
        self._chosen = self._given
        self._seen: list[SyncPolicy | Literal['unreadable'] | None] = []
        self._fallback = fallback(config, config_file)
        if file is not None:
            return
        try:
            self._fallback = self._dressed(self._fallback)
            check(self._fallback.policy, origin=self._fallback.origin)
        except UsageError as e:
            self.refusal = e

    def choose(self, store: ObjectStore, context: ContextRecord) -> Choice:
        """Raises UsageError for a policy that the mount cannot have, or what the store raises. Changes nothing in the store."""
        self._chosen = self._given or self._of(store, context)
        return self._chosen

    def _of(self, store: ObjectStore, context: ContextRecord) -> Choice:
        found = None if self.has_none_stored else stored(store, context)
        if found is None:
            if self.refusal is not None:
                raise self.refusal
            return self._fallback
        found = self._dressed(found)
        try:
            self._check(found.policy, origin=found.origin)
        except UsageError as e:
            raise _with_remedy(e, context) from e
        return found

    def _dressed(self, choice: Choice) -> Choice:
        """With the white lists of --browser. Raises UsageError."""
        policy = with_browser(choice.policy, self._browser, origin=choice.origin)
        return msgspec.structs.replace(choice, policy=policy, browser=self._browser)

    def look(self, store: ObjectStore, context: ContextRecord, *, read_only: bool) -> None:
        """Do now what `keep` would have to ask the store for; it asks itself where that fails."""
        if self._may_keep():
            with contextlib.suppress(CtxfsError):
                self._seen = [None if self.has_none_stored else self._stored(store, context)]
                if self._seen == [None] and not read_only:
                    store.capabilities()        # the policy is stored under a condition

    def _may_keep(self) -> bool:
        return self._given is not None or (self._browser is not None and self._chosen is not None)

    def keep(self, store: ObjectStore, context: ContextRecord, *, read_only: bool) -> str:
        """Keep the policy of --policy or --browser with a context that has none. Returns one line for the user, '' where there is nothing to
        say: whatever the store does, the mount has its policy."""
        if self._chosen is None or not self._may_keep():
            return ''
        name, chosen = f'--browser {self._browser}' if self._given is None else self._given.origin, self._chosen.policy
        try:
            found = self._seen[0] if self._seen else self._stored(store, context)        # first: most mounts bring the policy that is there
            if found is None and not read_only:
                self.is_kept = save_policy(store, context.id, policy_to_bytes(chosen), only_if_none=True)
                found = chosen if self.is_kept else self._stored(store, context)
        except CtxfsError as e:
            return f'this mount uses {name}, which could not be stored with context {context.name}: {e}'
        if found is None or found == chosen:
            return ''
        return (f'this mount uses {name}; context {context.name} has another policy stored with it, '
                f'which ctxfs policy set {context.name} {"FILE" if self._browser else name} would replace')

    @staticmethod
    def _stored(store: ObjectStore, context: ContextRecord) -> SyncPolicy | Literal['unreadable'] | None:
        try:
            found = stored(store, context)
        except UsageError:
            return 'unreadable'
        return None if found is None else found.policy


def fitted(choice: Choice, context: ContextRecord, mode: str) -> Choice:
    """The choice for a context whose recorded mode is `mode` ('' where none is): what nobody has chosen follows it. Raises UsageError, which says
    what to do, for a policy with the other mode."""
    upload = choice.policy.upload_policy
    if mode in ('', upload.upload_mode):
        return choice
    if choice.source != 'default':
        raise UsageError(f'{choice.origin}: {refusal(context.name, mode, upload.upload_mode)}')
    policy = msgspec.structs.replace(choice.policy, upload_policy=msgspec.structs.replace(upload, upload_mode=mode))
    return msgspec.structs.replace(choice, policy=policy)
