"""Rules: what the sync policy says about one path, and the rule that says so.

Owns the matching of paths against white lists, excludes and recycle paths (AGENTBAY's readings: relative to the mount, prefixes at whole
components, a regular expression anchored at its start), and the one place where a live mount's policy is exchanged. Pure: no tree, no I/O.

Keys are relative to the mount's root, `a/b`, a directory's with or without its `/`.
"""
from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from ctxfs.patterns import Pattern
from ctxfs.policy import FOREVER, BWList, SyncPolicy, WhiteList


class Decision(NamedTuple):
    """Whether a path is synced, and the rule: `bwList.whiteLists[0].excludePaths[1] "node_modules"`."""
    is_synced: bool
    rule: str


class Reach(Enum):
    """What the white lists say about everything below a directory."""
    ALL = 'all'
    NONE = 'none'
    SOME = 'some'


class _Entry:
    """One white list, compiled."""

    def __init__(self, white_list: WhiteList, number: int) -> None:
        self._name = f'bwList.whiteLists[{number}]'
        self.path = white_list.path.strip('/')
        self.pattern = Pattern(white_list.path.removeprefix('/')) if white_list.is_path_regex else None
        self._text = white_list.path
        self.excludes = [(text, _exclude(text, white_list.is_exclude_regex)) for text in white_list.exclude_paths]

    def match(self, key: str) -> Decision | None:
        """None: the entry says nothing of the key."""
        rest = self._rest(key)
        if rest is None:
            return None
        if rest:
            for number, (text, is_excluded) in enumerate(self.excludes):
                if is_excluded(rest):
                    return Decision(False, f'{self._name}.excludePaths[{number}] "{text}"')
        return Decision(True, f'{self._name} "{self._text}"')

    def _rest(self, key: str) -> str | None:
        """What follows the matched directory or file; None where the entry does not match."""
        if self.pattern is None:
            if not self.path or key == self.path:
                return key if not self.path else ''
            return key[len(self.path) + 1:] if key.startswith(self.path + '/') else None
        end = -1
        while end < len(key):
            end = key.find('/', end + 1)
            end = len(key) if end < 0 else end
            if self.pattern.matches(key[:end]):
                return key[end + 1:]
        return None

    def reach(self, key: str) -> Reach:
        if self.pattern is not None:
            return Reach.SOME
        if self.path and key != self.path and not key.startswith(self.path + '/'):
            return Reach.SOME if self.path.startswith(key + '/') else Reach.NONE
        found = self.match(key)
        if found is not None and not found.is_synced:
            return Reach.NONE
        return Reach.SOME if self.excludes else Reach.ALL


def _exclude(text: str, is_regex: bool) -> Callable[[str], bool]:
    if is_regex:
        return Pattern(text.removeprefix('/')).matches
    path = text.strip('/')
    return lambda rest: rest == path or rest.startswith(path + '/')


class Gate:
    """The white lists: which keys are synced. Entries are a union: a path that one of them excludes may be let in by another."""

    def __init__(self, bw_list: BWList) -> None:
        self._entries = [_Entry(white_list, number) for number, white_list in enumerate(bw_list.white_lists)]
        #: nothing is ever local-only by policy: callers skip the question
        self.is_everything = not self._entries or any(
            not entry.path and entry.pattern is None and not entry.excludes for entry in self._entries)

    def decide(self, key: str) -> Decision:
        key = key.rstrip('/')
        if not self._entries:
            return Decision(True, 'bwList.whiteLists is empty: everything is synced')
        if not key:
            return Decision(True, 'the root of the mount')
        refused = None
        for entry in self._entries:
            found = entry.match(key)
            if found is not None and found.is_synced:
                return found
            refused = refused or found
        return refused or Decision(False, 'no entry of bwList.whiteLists matches')

    def is_synced(self, key: str) -> bool:
        return self.is_everything or self.decide(key).is_synced

    def reach(self, key: str) -> Reach:
        """Of everything below the directory `key`. SOME is always a right answer, only slower."""
        if self.is_everything:
            return Reach.ALL
        key = key.rstrip('/')
        if not key:
            return Reach.SOME
        found = {entry.reach(key) for entry in self._entries}
        if Reach.ALL in found:
            return Reach.ALL
        return Reach.NONE if found == {Reach.NONE} else Reach.SOME


class Rules:
    """The policy of one mount, as the rest of the daemon asks it. `replace` exchanges it for all who hold this object."""

    def __init__(self, policy: SyncPolicy) -> None:
        self.replace(policy)

    def replace(self, policy: SyncPolicy) -> None:
        self.policy = policy
        self.gate = Gate(policy.bw_list)
        self._recycled = () if policy.recycle_policy.lifecycle == FOREVER else tuple(
            path.strip('/') for path in policy.recycle_policy.paths)

    @property
    def deletes_remotely(self) -> bool:
        """False: a local delete hides the file here and keeps the object (deletePolicy.syncLocalFile)."""
        return self.policy.delete_policy.sync_local_file

    def lifecycle_of(self, key: str) -> str:
        """The lifecycle that an upload to this key carries; '' for ever."""
        for path in self._recycled:
            if not path or key == path or key.startswith(path + '/'):
                return self.policy.recycle_policy.lifecycle
        return ''
