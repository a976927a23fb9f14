"""Following what happens outside the mount: the bucket by polling, the store's directory and the policy file by watching.

Owns which parts that takes and how they are connected. It must not know what any of them does.
"""
from __future__ import annotations

from collections.abc import Awaitable, Callable

from ctxfs.config import MountOptions
from ctxfs.edge.live_policy import LivePolicy
from ctxfs.edge.store_watch import build_watcher
from ctxfs.policy_parse import reload_policy
from ctxfs.rules import Rules
from ctxfs.storage.block_cache import BlockCache
from ctxfs.storage.journal import Journal
from ctxfs.storage.tree_db import TreeDB
from ctxfs.sync.content import ContextCache
from ctxfs.sync.engine import UploadEngine
from ctxfs.sync.events import Publish
from ctxfs.sync.growth import Growth
from ctxfs.sync.poller import Poller
from ctxfs.sync.pool import TransferPool
from ctxfs.sync.ports import Invalidator
from ctxfs.sync.reconcile import Reconciler
from ctxfs.sync.regate import Regater
from ctxfs.sync.remote_tree import RemoteTreeLoader


class Following:
    """Made by the daemon; `tasks` run as long as the mount."""

    def __init__(self, options: MountOptions, db: TreeDB, journal: Journal, *, pool: TransferPool, invalidator: Invalidator,
                 cache: BlockCache, reconciler: Reconciler, remote: RemoteTreeLoader, engine: UploadEngine, rules: Rules, regater: Regater,
                 publish: Publish, prefix: str) -> None:
        growth = Growth(db, journal, pool, invalidator, blocks=ContextCache(cache, prefix=prefix), prefix=prefix)
        remote.changes.growth = growth
        self.poller = Poller(remote, engine, rules, every=options.poll_every, counts=reconciler.counts, growth=growth, publish=publish)
        live = LivePolicy(rules, regater, read=lambda: reload_policy(options), alone=engine.alone, look=engine.download,
                          forget=remote.changes.forget, tell=publish)
        self._watcher = build_watcher(options, journal, prefix=prefix, remote=remote, poller=self.poller, policy_changed=live.reload)

    def tasks(self) -> list[Callable[[], Awaitable[None]]]:
        return [self.poller.run, self._watcher.run]
